"""The six tools on real models: followed, cancelled, given nonsense; and what is left of the documents they read."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from rolecall.config.home import Home
from rolecall.server.connect import lock_holder
from rolecall.server.host.control import ControlClient
from tests.conftest import ROLECALL, Stdio

from .conftest import Tell, connected
from .test_clients import FACTS

pytestmark = [pytest.mark.live, pytest.mark.anyio]

STOPPED_S = 2.0  # twice the promise: other tests share the machine; what was measured is printed
PATIENCE_S = 120.0
CANARY = "zyzzyva7734"
STORY = "Write a long story about a lighthouse keeper, with many details."
TERSE = """\
profile: starter
host: {spare_worker: false}
roles: {reasoning: {max_tokens: 48}, coding: {max_tokens: 24}, summarization: {max_tokens: 24}}
telemetry: {keep_content: false}
"""
LONG = {
    "route": {"request": STORY},
    "reason": {"question": STORY},
    "code": {"task": "Write a module with twenty functions and their tests.", "language": "python"},
    "summarize": {"text": " ".join(f"Note {number}. {FACTS[number % 3]}" for number in range(20)), "max_words": 200},
    "retrieve": {"query": "When does the north depot open, and what do deliveries need?", "mode": "answer"},
    "validate": {"output": " ".join(FACTS) * 20, "evidence": [" ".join(FACTS) * 20] * 20},
}


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    for number, fact in enumerate(FACTS):
        (folder / f"{number}.md").write_text(f"# {CANARY} {number}\n\n{fact} The word is {CANARY}.\n")
    return folder


async def test_each_tool_is_followed_cancelled_within_a_second_and_refuses_nonsense(
    staffed: Home, notes: Path, tell: Tell
) -> None:
    stopped_s: dict[str, float] = {}
    async with connected(notes) as client, ControlClient.open(staffed) as control:
        await control.call("index_add", {"folder": str(notes)})
        for tool, given in LONG.items():
            told = list[tuple[float, str]]()
            followed = anyio.Event()

            async def on_progress(
                value: float,
                total: float | None,
                message: str | None,
                told: list[tuple[float, str]] = told,
                followed: anyio.Event = followed,
            ) -> None:
                told.append((value, message or ""))
                if len(told) >= 2:
                    followed.set()

            async with anyio.create_task_group() as group:
                group.start_soon(partial(client.call_tool, tool, given, progress_callback=on_progress))
                with anyio.move_on_after(0.05 if tool == "validate" else PATIENCE_S):
                    await followed.wait()
                group.cancel_scope.cancel()
            began = time.monotonic()
            while any(each["in_use"] for each in await control.call("models_ps")):
                assert time.monotonic() < began + STOPPED_S, f"{tool} went on"
            stopped_s[tool] = time.monotonic() - began
            assert followed.is_set() or tool == "validate", f"nothing was said of {tool}"
            values = [value for value, _ in told]
            assert values == sorted(set(values)) and all(message for _, message in told)
            bad = await client.call_tool(tool, {**given, "colour": 3})
            assert bad.is_error and "[bad_request]" in bad.content[0].text and "colour" in bad.content[0].text  # type: ignore[union-attr]
        after = await client.call_tool("reason", {"question": "Name a colour.", "depth": "quick"})
        assert not after.is_error
    tell("cancelled, and no model in use after " + ", ".join(f"{tool} {s:.2f} s" for tool, s in stopped_s.items()))


@pytest.mark.parametrize("victim", ["workers", pytest.param("host", marks=pytest.mark.soak)])
def test_no_text_of_a_document_is_in_a_log_a_receipt_or_an_error(staffed: Home, notes: Path, victim: str) -> None:
    staffed.settings_file.write_text(TERSE)
    client = Stdio([ROLECALL, "serve"], notes, dict(os.environ))
    client.initialize()
    anyio.run(_index, staffed, notes)
    schema = {"type": "object", "properties": {"word": {"const": "no such word"}}, "required": ["word"]}
    (notes / "odd.txt").write_bytes(f"{CANARY} \xff".encode("latin-1"))
    (notes / "huge.txt").write_text(f"{CANARY} " * 40_000)
    calls: list[tuple[str, dict[str, Any]]] = [
        ("route", {"request": f"What is the word {CANARY}?", "paths": ["*.md"]}),
        ("reason", {"question": "What is the word?", "paths": ["0.md"], "schema": schema}),
        ("reason", {"question": "What is the word?", "paths": ["huge.txt"]}),
        ("reason", {"question": "What is the word?", "paths": ["odd.txt"]}),
        ("reason", {"question": "What is the word?", "context": CANARY, "schema": {"type": "nonsense"}}),
        ("code", {"task": "Print the word.", "paths": ["1.md"], "save_to": "2.md"}),
        ("code", {"task": "Print the word.", "paths": ["1.md"], "language": "nonsense"}),
        ("summarize", {"paths": ["0.md"], "save_to": "/nowhere/at/all.md"}),
        ("summarize", {"paths": ["0.md"], "max_words": 30}),
        ("retrieve", {"query": f"the word {CANARY}"}),
        ("retrieve", {"query": f"the word {CANARY}", "filters": {"since": "yesterday"}}),
        ("validate", {"output": f"The word is {CANARY}.", "paths": ["0.md"]}),
        ("validate", {"output": f"{{{CANARY}", "schema": schema, "language": "json"}),
    ]
    failures = [_failure(client, *call) for call in calls]
    assert sum(map(bool, failures)) >= 4, "errors are what is looked at"
    client.send(
        "tools/call",
        {"name": "reason", "arguments": {"question": STORY, "paths": ["0.md"]}, "_meta": {"progressToken": 1}},
    )
    while "token" not in str(client.receive(PATIENCE_S).get("params", {}).get("message")):
        pass
    host = psutil.Process(lock_holder(staffed))
    for process in host.children(recursive=True) if victim == "workers" else (host,):
        process.kill()
    while "method" in (line := client.receive()):
        pass
    failures.append(str(line))
    assert "died" in failures[-1]
    client.tool("route", request="what is 2 + 2?")
    _, _, said = client.close()
    assert [text for text in (*failures, said) if CANARY in text] == []
    kept = [file for file in staffed.root.rglob("*") if file.is_file() and not file.is_relative_to(staffed.index)]
    assert staffed.receipts_db in kept and staffed.logs / "host.log" in kept
    assert [str(file) for file in kept if CANARY.encode() in file.read_bytes()] == []


async def _index(home: Home, folder: Path) -> None:
    async with ControlClient.open(home) as control:
        await control.call("index_add", {"folder": str(folder)})


def _failure(client: Stdio, tool: str, arguments: dict[str, Any]) -> str:
    """What a failed call says, empty where it did not fail."""
    asked = client.send("tools/call", {"name": tool, "arguments": arguments})
    answer = client.receive(PATIENCE_S)
    assert answer["id"] == asked
    return "" if "result" in answer and not answer["result"].get("isError") else str(answer)
