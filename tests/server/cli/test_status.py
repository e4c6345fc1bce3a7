"""`status` with and without a host; the first test starts one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rolecall.config.home import Home
from rolecall.server.cli.app import main
from rolecall.server.connect import lock_holder


def status(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["status", "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_calls_are_counted_and_still_known_when_the_host_has_left(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", "what is 17 * 23?"]) == 0
    report = status(capsys)
    assert report["host"]["pid"] == lock_holder(home)
    today = report["usage"]["today"]
    assert (today["calls"], today["by_tool"], today["without_model"]) == (1, {"route": 1}, 1.0)
    assert (report["resident"], report["index"]) == ([], [])
    memory = report["memory"]
    assert 0 < memory["available_bytes"] <= memory["machine_bytes"]
    assert (memory["average_bytes"], memory["loads"]["loads"]) == (None, 0)

    assert main(["stop"]) == 0
    left = status(capsys)
    assert left["host"] is left["memory"] is None and left["usage"] == report["usage"]
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "route" in shown and "100%" in shown and "host: not running" in shown


def test_where_no_host_ever_ran_none_is_started_and_nothing_is_made(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(capsys)["usage"] is None
    assert main(["status"]) == 0
    assert "No call was made yet." in capsys.readouterr().out
    assert lock_holder(home) is None and not home.receipts_db.exists()
