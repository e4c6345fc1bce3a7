"""`doctor --fix` puts right what it can, says each thing that it did, and takes nothing away from anybody."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from rolecall.config.home import Home
from rolecall.server.cli.app import main


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without clients, and without a package index."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for name in ("XDG_CONFIG_HOME", "CLAUDE_CONFIG_DIR", "CODEX_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "user"


def doctor(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[dict[str, Any], set[str]]:
    capsys.readouterr()
    assert main(["doctor", "--json", *options]) in (0, 3)
    report = json.loads(capsys.readouterr().out)
    return report, {problem["code"] for problem in report["problems"]}


def test_files_that_others_may_open_are_closed(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.env_file.write_text("HF_TOKEN=secret\n")
    home.env_file.chmod(0o644)
    home.root.chmod(0o755)
    assert "loose_permissions" in doctor(capsys)[1]

    report, problems = doctor(capsys, "--fix")

    assert "loose_permissions" not in problems
    assert sum("yours alone" in said for said in report["fixed"]) == 2
    assert (home.env_file.stat().st_mode & 0o777, home.root.stat().st_mode & 0o777) == (0o600, 0o700)
    assert home.env_file.read_text() == "HF_TOKEN=secret\n" and "secret" not in json.dumps(report)


def test_a_client_that_starts_a_command_which_has_moved_starts_this_one(
    home: Home, user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mcp = user / ".cursor" / "mcp.json"
    mcp.parent.mkdir(parents=True)
    gone = {"command": str(user / "gone" / "rolecall"), "args": ["serve"], "env": {"A": "1"}}
    mcp.write_text(json.dumps({"mcpServers": {"other": {"command": "x"}, "rolecall": gone}}, indent=4))
    assert "client_command_gone" in doctor(capsys)[1]

    report, problems = doctor(capsys, "--fix")

    assert "client_command_gone" not in problems and any("Cursor" in said for said in report["fixed"])
    servers = json.loads(mcp.read_text())["mcpServers"]
    assert os.access(servers["rolecall"]["command"], os.X_OK) and servers["rolecall"]["env"]["A"] == "1"
    assert servers["other"] == {"command": "x"}


def test_what_cannot_be_mended_is_said_and_stays_a_problem(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.settings_file.write_text("profile: starter\n")

    report, problems = doctor(capsys, "--fix")

    assert "model_missing" in problems
    assert any(said.startswith("not mended: ") for said in report["fixed"])
    assert main(["doctor"]) == 3
    capsys.readouterr()
    assert main(["doctor", "--fix"]) == 3
    assert "fixed: not mended" in capsys.readouterr().out
