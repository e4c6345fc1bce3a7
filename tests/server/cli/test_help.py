"""What a person finds at the shell: few commands, each with examples that work, completion, colours on terminals."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from rolecall.server.cli.app import app, main
from rolecall.server.cli.output import EXAMPLES

ROLECALL = str(Path(sys.executable).with_name("rolecall"))


def commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


ROOT: Any = typer.main.get_command(app)
COMMANDS = dict(commands(ROOT))


def test_there_are_at_most_twenty_commands_at_the_shell() -> None:
    assert len(ROOT.commands) <= 20, sorted(ROOT.commands)
    assert {"ask", "batch", "doctor", "setup", "status"} <= set(ROOT.commands)


def test_every_command_has_examples_and_every_example_a_command() -> None:
    assert set(EXAMPLES) == set(COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_says_what_the_command_does_and_its_examples_parse(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main([*name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "Usage: rolecall" in shown
    for example in EXAMPLES[name]:
        assert example in shown
        program, *words = shlex.split(example)
        given = words[len(name.split()) :]
        assert (program, words[: len(name.split())]) == ("rolecall", name.split())
        COMMANDS[name].make_context(name, given)


def test_serve_shows_its_help_and_starts_nothing() -> None:
    done = subprocess.run([ROLECALL, "serve", "--help"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0 and EXAMPLES["serve"][-1] in done.stdout


def test_help_names_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "130 interrupted" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_the_commands(shell: str, tmp_path: Path) -> None:
    env = {**os.environ, "HOME": str(tmp_path), "_ROLECALL_COMPLETE": f"complete_{shell}"}
    env |= {"COMP_WORDS": "rolecall ba", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "rolecall ba"}
    env |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run([ROLECALL], env=env, capture_output=True, text=True, check=False)
    assert "batch" in done.stdout and "search" not in done.stdout, done.stderr

    env = {**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    installed = subprocess.run([ROLECALL, "--install-completion", shell], env=env, capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr
    scripts = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert any("_ROLECALL_COMPLETE" in script for script in scripts)


def test_colours_are_for_terminals_alone() -> None:
    env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "CI")}
    piped = subprocess.run([ROLECALL, "--help"], env=env | {"TERM": "xterm-256color"}, capture_output=True, check=True)
    assert b"\x1b[" not in piped.stdout
    leader, follower = pty.openpty()
    with subprocess.Popen([ROLECALL, "--help"], env=env | {"TERM": "xterm-256color"}, stdout=follower) as process:
        os.close(follower)
        seen = b""
        while chunk := _read(leader):
            seen += chunk
        os.close(leader)
    assert process.returncode == 0 and b"\x1b[" in seen


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:  # Linux says so where the other side is closed
        return b""
