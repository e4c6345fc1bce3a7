"""Receipts that recompute: made through one host, verified in a new process, with another policy, and bit for bit."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from rolecall.config.home import Home
from tests.conftest import ROLECALL, Stdio

from .conftest import command

pytestmark = pytest.mark.live
SUBJECTS = (
    "the harbour crane", "our leave policy", "a list of 40 orders", "the depot's ledger", "Rayleigh scattering",
    "une grue portuaire", "die Quittung vom Montag", "\u6e2f\u306e\u30af\u30ec\u30fc\u30f3", "an off-by-one error",
    "the minutes of May",
)  # fmt: skip
WORDINGS = (
    "Tell me about {}.", "Write a function that sorts {}.", "Summarize this: {} was seen on Monday by many. It rained.",
    "What do my notes say about {}?", "Is it true that {} weighs 43 tonnes? Check it.",
    "Plan in five steps how to move {}.",
    "what is {} times 17?", "convert {} km to miles", "{}\n\nexplain: why\n\nexecute: True", "Translate {} into French",
)  # fmt: skip


def requests(count: int) -> list[str]:
    """Requests of many kinds, two in ten for an exact agent; a number makes each its own beyond a hundred."""
    made = []
    for number in range(count):
        wording, subject = WORDINGS[number % 10], SUBJECTS[number // 10 % 10]
        exact = wording.startswith(("what is", "convert"))
        text = wording.format(number + 2 if exact else subject)
        made.append(text if exact or number < 100 else f"{text} Case {number}.")
    return made


def verified(*arguments: str, code: int = 0) -> list[dict[str, Any]]:
    return [json.loads(line) for line in command("receipt", "verify", *arguments, "--json", code=code).splitlines()]


def route_all(texts: list[str], cwd: Path) -> None:
    """Decide on each as a client's call, which leaves a receipt."""
    command("route", texts[0])  # the embedder is in memory before a client waits for it
    client = Stdio([ROLECALL, "serve"], cwd, dict(os.environ))
    client.initialize()
    for text in texts:
        assert client.tool("route", request=text, execute=False)
    assert client.close()[0] == 0


@pytest.mark.parametrize("count", [10, pytest.param(1000, marks=pytest.mark.soak)])
def test_receipts_recompute_in_a_new_process_and_under_another_policy_each_is_named(
    count: int, staffed: Home, tmp_path: Path
) -> None:
    route_all(requests(count), tmp_path)
    if count > 10:
        command("stop")  # the next host has cached nothing

    found = verified("--last", str(count))

    assert len(found) == count
    assert [line for line in found if not line["same"] or line["note"]] == []
    with sqlite3.connect(staffed.receipts_db) as store:
        assert store.execute("SELECT count(*) FROM snapshots").fetchone() == (1,)
        store.execute(
            "UPDATE receipts SET body = replace(body, 'decision_wanted', 'decision_wanter') WHERE id = ?",
            (found[0]["id"],),
        )
    store.close()
    rules = "routing: {rules: [{name: no jokes, when: {contains: crane}, then: {force: reasoning}}]}\n"
    staffed.settings_file.write_text(staffed.settings_file.read_text() + rules)
    changed = verified("--last", str(count), code=1)
    flipped = [line["id"] for line in changed if "receipt" in {each["what"] for each in line["differences"]}]
    assert flipped == [found[0]["id"]]
    assert all("policy" in {each["what"] for each in line["differences"]} for line in changed)
    decided = [line for line in changed if any(each["what"] == "decision.role" for each in line["differences"])]
    assert 0 < len(decided) < count


def test_decisions_are_the_same_bytes_in_two_hosts_alone_or_in_a_batch_on_one_thread_or_two(
    staffed: Home, tmp_path: Path
) -> None:
    rows = [json.dumps({"id": number, "text": text}) for number, text in enumerate(requests(40))]
    batch = tmp_path / "batch.jsonl"
    batch.write_text("\n".join(rows) + "\n")
    found = []
    for threads in ("1", "2"):
        env = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        found.append(command("route", "--batch", str(batch), "--json", env=env))
        found += [
            "".join(command("route", "--batch", "-", "--json", input_=row, env=env) for row in reversed(rows[::16]))
        ]
        command("stop")
    whole, some, *others = found
    lines = whole.splitlines(keepends=True)
    assert "".join(reversed(lines[::16])) == some
    assert others == [whole, some]
    assert not any("without an embedding" in line for line in lines)
    shape = ("id", "task_type", "agent", "role", "confidence", "escalated", "reasons", "decision_sha256")
    assert {tuple(json.loads(line)) for line in lines} == {shape}


def test_citations_are_looked_up_again_and_what_became_of_each_is_said(staffed: Home, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    for name, subject in (("crane", "crane lifts 43 tonnes"), ("ferry", "ferry carries forty cars"), ("tug", "tug")):
        (notes / f"{name}.md").write_text(f"# Harbour\n\nThe harbour's {subject}.\n")
    command("index", "add", str(notes), "--private")
    client = Stdio([ROLECALL, "serve"], tmp_path, dict(os.environ))
    client.initialize()
    assert "43 tonnes" not in client.tool("retrieve", query="harbour")
    assert client.close()[0] == 0

    (same,) = verified("--last", "1")
    assert same["same"], same
    (notes / "crane.md").write_text("# Harbour\n\nThe harbour's crane lifts 44 tonnes.\n")
    (notes / "ferry.md").unlink()
    (found,) = verified(same["id"], code=1)
    changed = {each["what"].rpartition("/")[2]: each["now"] for each in found["differences"]}
    assert changed == {"crane.md:1-3": "changed", "ferry.md:1-3": "gone"}

    command("allow", "--remove", str(notes))
    (found,) = verified(same["id"], code=1)
    assert {each["now"] for each in found["differences"]} == {"refused"} and len(found["differences"]) == 3
