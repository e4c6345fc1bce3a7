"""`rolecall uninstall` leaves no client with an entry, and with `--purge` only what is not Rolecall's."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rolecall.config.home import Home
from rolecall.server.cli.app import main
from rolecall.server.connect import lock_holder, lock_note
from tests.server.cli.test_install import CLIENTS, client_of, existing, files, user

__all__ = ["user"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_every_client_gets_its_bytes_back_and_the_host_stops(
    user: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: existing(name)[1] for name in CLIENTS}
    assert [main(["install", name]) for name in CLIENTS] == [0] * 5
    assert main(["allow", "--list"]) == 0
    assert lock_holder(home) is not None
    capsys.readouterr()

    assert main(["uninstall", "--json"]) == 0
    said = report(capsys)
    assert (said["clients"], said["stopped"], said["removed"]) == (list(CLIENTS), True, [])
    assert {name: client_of(name).file.read_bytes() for name in CLIENTS} == before
    assert lock_holder(home) is None and home.models.is_dir()


def test_a_broken_configuration_is_named_and_the_others_are_still_cleaned(
    user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [main(["install", name]) for name in CLIENTS] == [0] * 5
    client_of("cursor").file.write_text("{")
    capsys.readouterr()
    assert main(["uninstall", "--json"]) == 3
    said = report(capsys)
    assert [problem["client"] for problem in said["problems"]] == ["cursor"]
    assert said["clients"] == [name for name in CLIENTS if name != "cursor"]


def test_a_purge_removes_what_a_used_home_holds_and_says_how_much(
    user: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    (home.models / "maker" / "model").mkdir(parents=True)
    (home.models / "maker" / "model" / "weights.safetensors").write_bytes(bytes(1_000_000))
    home.settings_file.write_text("profile: starter\n")
    assert main(["ask", "what is 17 * 23?", "--json"]) == 0
    socket = Path(lock_note(home)["socket"])
    capsys.readouterr()

    assert main(["uninstall", "--purge", "--yes", "--json"]) == 0
    said = report(capsys)
    assert said["stopped"] and said["left"] == [] and not home.root.exists()
    sizes = {Path(item["path"]).name: item["size_bytes"] for item in said["removed"]}
    assert sizes["models"] == 1_000_000 and sizes["receipts.sqlite3"] > 0
    assert said["freed_bytes"] == sum(sizes.values())
    assert not socket.exists()


def test_a_purge_leaves_what_is_behind_links_and_what_is_not_rolecalls(
    user: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = user / "outside"
    (outside / "maker").mkdir(parents=True)
    (outside / "maker" / "weights").write_bytes(b"mine")
    home.models.rmdir()
    home.models.symlink_to(outside)
    (home.index / "link").symlink_to(outside)
    (home.logs / "hard").hardlink_to(outside / "maker" / "weights")
    (home.root / "notes.txt").write_text("mine")

    assert main(["uninstall", "--purge", "--yes", "--json"]) == 0
    said = report(capsys)
    assert files(outside) == {str(outside / "maker" / "weights"): b"mine"}
    assert said["left"] == [str(home.root / "notes.txt")]
    assert [path.name for path in home.root.iterdir()] == ["notes.txt"]
    assert said["freed_bytes"] < 4096  # links' own bytes at most


def test_a_purge_asks_on_a_terminal_and_nowhere_else(
    user: Path, home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["install", "cursor"]) == 0
    home.settings_file.write_text("profile: starter\n")
    before = files(user)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert main(["uninstall", "--purge", "--json"]) == 1
    assert "--yes" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    assert main(["uninstall", "--purge"]) == 130
    assert "config.yaml" in capsys.readouterr().err
    assert files(user) == before
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert main(["uninstall", "--purge"]) == 0
    assert not home.root.exists()


def test_a_home_around_the_users_folder_is_never_purged(
    user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (user / "models").mkdir()
    for root in (user, user.parent):
        monkeypatch.setenv("ROLECALL_HOME", str(root))
        assert main(["uninstall", "--purge", "--yes", "--json"]) == 1
        assert json.loads(capsys.readouterr().err)["error"]["code"] == "bad_request"
    assert (user / "models").is_dir()
