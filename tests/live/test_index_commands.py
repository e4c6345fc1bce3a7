"""The index from the command line: seen before it is made, kept fresh, and its state told, by a real host."""

from __future__ import annotations

import json
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rolecall.config.home import Home
from tests.conftest import PATIENCE_S, ROLECALL

from . import conftest

pytestmark = pytest.mark.live


def command(*arguments: str, code: int = 0) -> Any:
    return json.loads(conftest.command(*arguments, "--json", code=code))


@contextmanager
def watching(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [ROLECALL, "index", "watch", *arguments, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        try:
            yield watch
        finally:
            watch.kill()


def told(watch: subprocess.Popen[str]) -> Any:
    """The next line."""
    assert watch.stdout is not None
    assert select.select([watch.stdout], [], [], PATIENCE_S)[0], f"no line within {PATIENCE_S} s"
    return json.loads(watch.stdout.readline())


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    (folder / "build").mkdir(parents=True)
    (folder / "depot.md").write_text("# Depots\n\nThe reference code of the north depot is 4711.\n")
    (folder / "crane.txt").write_text("The harbour crane lifts at most 43 tonnes.\n")
    (folder / "damaged.txt").write_bytes(b"\x00\x01\x02" * 100)
    (folder / "build" / "out.txt").write_text("made by a program\n")
    (folder / "app.min.js").write_text("let a=1\n")
    return folder


def test_a_folder_is_previewed_indexed_watched_and_synced(staffed: Home, notes: Path) -> None:
    preview = command("index", "add", str(notes), "--dry-run")
    assert (preview["files"], preview["kinds"]) == (3, {"markdown": 1, "text": 2})
    assert preview["skipped"] == {"ignored": 1} and preview["folders"] == {str(notes): 3} and preview["seconds"] > 0
    assert command("index", "list") == [] and command("allow", "--list")["folders"] == []

    report = command("index", "add", str(notes), "--private", code=3)
    assert report["indexed"] == 2 and [failed["code"] for failed in report["failed"]] == ["binary"]

    with watching("notes") as watch:
        assert told(watch)["indexed"] == 2
        (notes / "ferry.md").write_text("The ferry carries forty cars.\n")
        assert told(watch)["indexed"] == 3
        watch.send_signal(signal.SIGINT)
        assert watch.wait(30) == 130

    (notes / "crane.txt").write_text("The harbour crane lifts at most 44 tonnes.\n")
    (status,) = command("index", "status")
    assert status["pending_files"] == [str(notes / "crane.txt")]
    assert status["private"] and status["failed_files"][0]["path"] == str(notes / "damaged.txt")
    assert status["index"]["reasons"] == {"ignored": 1, "binary": 1} and status["rebuilding_for"] is None
    (synced,) = command("index", "sync", "notes", code=3)
    (item,) = command("index", "list")
    assert (synced["indexed"], item["files"], item["index"]["pending"]) == (3, 3, 0)
    (best, *_) = command("search", "how much does the crane lift", "-k", "1")
    assert "44 tonnes" in best["text"] and best["collection"] == "notes"

    with watching() as watch:
        assert watch.stderr is not None and told(watch)["collection"] == "notes"
        assert command("stop")["stopped"]
        assert watch.wait(30) == 0
        assert watch.stderr.read().endswith("The host was stopped, and the watch with it.\n")
    assert command("index", "remove", "notes") == {"collection": "notes", "files": 4}
