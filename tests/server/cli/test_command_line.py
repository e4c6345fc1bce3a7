"""What the command line says where it cannot do what it was asked; no test here starts a host."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from rolecall.config.home import Home
from rolecall.server.cli.app import main
from rolecall.server.cli.machine import _keep_profile
from rolecall.server.cli.models import size_bytes
from rolecall.server.errors import BadRequest


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["bogus", "--json"], "bogus"),
        (["doctor", "--bogus", "--json"], "rolecall doctor --help"),
        (["models", "load", "--json"], "name"),
        (["search", "x", "-k", "0", "--json"], "greater than or equal to 1"),
        (["allow", "--json"], "FOLDER"),
        (["route", "--json"], "--batch"),
    ],
)
def test_wrong_usage_is_a_typed_error_with_exit_code_2(
    argv: list[str], named: str, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    out, errors = capsys.readouterr()
    assert (out, json.loads(errors)["error"]["code"]) == ("", "bad_request")
    assert named in errors


def test_setup_that_nobody_answers_says_which_options_answer_for_it(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main(["setup", "--profile", "mac-16", "--json"]) == 1
    out, errors = capsys.readouterr()
    assert out == ""
    assert "--yes" in errors and "--starter-only" in errors
    assert not home.settings_file.exists()


def test_a_home_that_is_a_file_is_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ROLECALL_HOME", str(tmp_path / "file"))
    assert main(["setup", "--yes", "--json"]) == 1
    assert json.loads(capsys.readouterr().err)["error"]["found"]
    assert main(["doctor", "--json"]) == 3
    assert "home_unusable" in {problem["code"] for problem in json.loads(capsys.readouterr().out)["problems"]}


def test_receipts_that_cannot_be_read_are_a_problem_that_the_doctor_names(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    home.receipts_db.mkdir()
    assert main(["doctor", "--json"]) == 3
    assert "store_unusable" in {problem["code"] for problem in json.loads(capsys.readouterr().out)["problems"]}


def test_what_the_budget_cannot_hold_beside_the_pinned_models_is_named(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    home.settings_file.write_text("profile: mac-16\nmemory: {budget_gb: 2.0}\n")
    assert main(["doctor", "--json"]) == 3
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert any(each["code"] == "does_not_fit" and "with the pinned models" in each["what"] for each in problems)


@pytest.mark.parametrize("size", ["9" * 400, "0", "0.0GB", "-1", "30 apples", ""])
def test_a_budget_that_is_no_size_is_a_typed_error(size: str) -> None:
    with pytest.raises(BadRequest):
        size_bytes(size)
    assert (size_bytes("30GB"), size_bytes("1.5 GiB"), size_bytes(".5")) == (30 * 10**9, 3 << 29, 5 * 10**8)


def test_choosing_a_profile_keeps_every_other_line_of_the_settings(tmp_path: Path) -> None:
    home = Home(tmp_path)
    _keep_profile(home, "mac-16")
    home.settings_file.write_text(home.settings_file.read_text() + "# mine\nmemory: {reserve_gb: 3.0}\n")
    _keep_profile(home, "starter")
    assert home.settings_file.read_text() == "profile: starter\n# mine\nmemory: {reserve_gb: 3.0}\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stdin", "options", "code", "indexed"),
    [
        (io.StringIO("y\n"), [], 1, False),
        (io.StringIO(), ["--yes"], 0, True),
        (Terminal("n\n"), [], 1, False),
        (Terminal("y\n"), [], 0, True),
    ],
)
def test_a_large_folder_is_asked_about_on_a_terminal_and_refused_elsewhere(
    shared_home: Home, stdin: io.StringIO, options: list[str], code: int, indexed: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("ROLECALL_HOME", str(shared_home.root))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main(["index", "add", str(tmp_path), "--json", *options]) == code
    out, errors = capsys.readouterr()
    assert (json.loads(out)["indexed"] if indexed else out.strip()) == (60_000 if indexed else "")
    assert ("60,000 files" in errors) == (not options)
