"""What `route --explain` shows, and which options of `route` do not go together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rolecall.config.home import Home
from rolecall.server.cli.app import main
from rolecall.server.cli.output import Shell, readable, words

FOUND = {
    "decision": {"role": "coding", "reasons": ["one", "two"], "sha256": "feed"},
    "difficulty": 0.123456,
    "claim": None,
    "user_rules": [{"name": "first", "tag": "t"}, {"name": "second", "deny": "no"}],
    "would_change": {"type": {"runner_up": "general", "rule": None}, "role": []},
}


def test_an_explanation_is_readable_without_hashes_and_empty_parts(capsys: pytest.CaptureFixture[str]) -> None:
    Shell(None, False).show(FOUND, *readable(FOUND))
    shown = capsys.readouterr().out

    assert "decision: reasons: one; two" in shown and "difficulty: 0.1235" in shown
    assert "would change: type: runner up general, rule -" in shown
    assert not {"feed", "claim", "sha256"} & set(shown.split())
    (second,) = (line for line in shown.splitlines() if "second" in line)
    assert [cell.strip() for cell in second.split("\u2502")[1:-1]] == ["second", "-", "no"]


def test_a_name_tells_the_unit_of_its_value() -> None:
    named = {"kv_bytes_per_token": 147_456, "size_bytes": 12_340_000, "weights_bytes": 2_500_000_000, "load_s": 130.0}
    assert [words(value, name) for name, value in named.items()] == ["147.5 kB", "12.3 MB", "2.50 GB", "2 min"]
    assert words({"kept": True, "interval": [0.5, 1.0], "tokens_per_s": 2.5}) == (
        "kept yes, interval [0.5, 1], tokens per s 2.5"
    )


@pytest.mark.parametrize("more", [["--batch", "b.jsonl"], ["x", "--escalate"], []])
def test_an_explanation_is_of_one_text(more: list[str], home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["route", "--explain", *more, "--json"]) == 2
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "bad_request"


@pytest.mark.parametrize("text", ["rules: [", "rules: [{name: a, when: {contians: x}, then: {tag: y}}]", "- 1"])
def test_a_wrong_policy_is_a_typed_error_before_a_host_is_asked(
    text: str, home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rules.yaml").write_text(text)
    assert main(["route", "hello", "--policy", str(tmp_path / "rules.yaml"), "--json"]) == 1
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["code"] == "config_invalid" and "rules.yaml" in error["message"] + error["found"]
