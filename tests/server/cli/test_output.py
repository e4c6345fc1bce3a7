"""What a terminal shows while an answer is written, and what it is never told to do."""

from __future__ import annotations

import io
import sys

import anyio
import pytest
from rich.markdown import Markdown

from rolecall.roles.contract import Role
from rolecall.server.cli.output import Bar, Shell, console
from rolecall.server.orchestration.contract import ReasonCall

from ..desk import MakeDesk


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard error as a terminal; not in a fixture, after which pytest puts its own there."""
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "12"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    return made


def test_an_answer_is_shown_as_markdown_while_it_is_written_and_the_newest_lines_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = terminal_of(monkeypatch)
    with Bar("asking") as bar:
        for piece in ("# Depots", "\n\n", "- **north**", " opens"):
            bar.tell({"text": piece})
        bar.refresh()
        assert "north" in terminal.getvalue() and "**" not in terminal.getvalue()
        for number in range(40):
            bar.tell({"text": f"\n- line {number}"})
        terminal.truncate(0)
        bar.refresh()
        assert "line 39" in terminal.getvalue() and "line 20" not in terminal.getvalue()
        bar.tell({"text": ""})
        bar.tell({"text": "better"})
        terminal.truncate(0)
        bar.refresh()
        assert "better" in terminal.getvalue() and "line" not in terminal.getvalue()


def test_off_a_terminal_nothing_is_streamed(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar("asking") as bar:
        bar.tell({"text": "piece"})
        assert bar.disable
    assert capsys.readouterr() == ("", "")


def test_no_text_steers_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = terminal_of(monkeypatch)
    hostile = "a \x1b]0;title\x07 \x1b[2J\x9b2J b\tc"
    for text in (hostile, Markdown(hostile)):
        console(stderr=True).print(text)
    Shell(None, False).show({}, hostile)
    shown = terminal.getvalue() + capsys.readouterr().out
    assert "title" in shown and not set("\x1b\x07\x9b") & set(shown)


def test_the_pieces_of_each_attempt_are_told_before_the_checked_answer(desk: MakeDesk) -> None:
    at, heard = desk(["", "It is Paris."]), list[str]()

    async def run() -> str:
        call = at.call(ReasonCall, question="What is the capital of France?")
        return (await at.orchestrator.run(call, lambda words, fraction: None, heard.append)).answer

    assert anyio.run(run) == "It is Paris."
    assert heard == ["", "", "", "It is Paris."]
    assert [role for role, _ in at.models.requests] == [Role.REASONING, Role.REASONING]
