"""What `rolecall index` says to people and to programs, and how a watch ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from rolecall.config.home import Home
from rolecall.retrieval.contract import CollectionStatus, FailedFile, IndexState, Passage, Preview
from rolecall.server.cli.index import _passage, _previewed, _status
from rolecall.server.cli.output import Shell, duration
from tests.conftest import eventually

ROLECALL = str(Path(sys.executable).with_name("rolecall"))
FAILED = FailedFile(path="/docs/a.pdf", code="encrypted", reason="it needs a password")


def shown(capsys: Any, *parts: Any) -> str:
    Shell(None, False).show({}, *parts)
    return str(capsys.readouterr().out)


def test_a_dry_run_names_what_is_left_out_and_the_folders_with_the_most_files(capsys: Any) -> None:
    preview = Preview(
        folder="/docs", files=1_200, size_bytes=12_340_000, kinds={"markdown": 200, "code": 1_000},
        skipped={"ignored": 7_000, "too_large": 2}, folders={"/docs/my_out": 900}, failed=(FAILED,), seconds=250.0,
    )  # fmt: skip
    text = shown(capsys, *_previewed(preview.model_dump()))

    assert {"files: 1200", "size: 12.3 MB", "seconds: 4 min", "folders: /docs/my_out 900"} <= set(text.splitlines())
    assert "kinds: markdown 200, code 1000" in text and "skipped: ignored 7000, too large 2" in text
    assert ".rolecallignore" in text
    assert "(encrypted) /docs/a.pdf: it needs a password" in text


def test_a_dry_run_promises_no_time_where_none_was_ever_measured(capsys: Any) -> None:
    preview = Preview(
        folder="/docs", files=0, size_bytes=0, kinds={}, skipped={}, folders={}, failed=(), seconds=None
    )  # fmt: skip
    assert "seconds" not in shown(capsys, *_previewed(preview.model_dump()))


def test_a_status_says_what_is_pending_what_failed_and_which_embedder_is_coming(capsys: Any) -> None:
    reasons = {"ignored": 30, "encrypted": 1}
    state = IndexState(indexed=40, pending=25, skipped=30, failed=1, age_s=7_200.0, reasons=reasons)
    found = CollectionStatus(
        collection="letters", folders=("/docs",), files=40, chunks=1_234, index=state, private=True,
        pending_files=tuple(f"/docs/{number}.md" for number in range(25)), failed_files=(FAILED,), embedder="old:1",
        rebuilding_for="new:2",
    )  # fmt: skip
    text = shown(capsys, *_status(found.model_dump()))

    assert text.startswith(
        "letters (private): 1,234 chunks; files 40 indexed, 25 pending, 30 skipped, 1 failed; age 2 h"
    )
    assert "embedder old:1; being rebuilt for new:2" in text and "not indexed: 30 ignored, 1 encrypted" in text
    assert "pending: /docs/19.md" in text and "/docs/20.md" not in text and "5 more, with --json" in text
    assert "failed: (encrypted) /docs/a.pdf: it needs a password" in text


def test_a_passage_shows_its_page_and_heading(capsys: Any) -> None:
    passage = Passage(
        path="/docs/a.pdf", collection="docs", start_line=3, end_line=5, start_byte=0, end_byte=4, score=0.5,
        text="text", place="page 2", heading="Cranes",
    )  # fmt: skip
    assert "/docs/a.pdf:3-5  page 2  Cranes  0.500\ntext" in shown(capsys, _passage(passage.model_dump()))


def test_ages_are_told_in_their_largest_unit() -> None:
    assert [duration(age_s) for age_s in (None, 3.2, 130.0, 7_300.0, 200_000.0)] == [
        "never synced", "3.2 s", "2 min", "2 h", "2 d",
    ]  # fmt: skip


def test_a_watch_prints_a_line_for_each_sync_and_ends_with_the_interrupt(shared_home: Home, tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    command = [ROLECALL, "index", "watch", str(watched), "--json"]
    environment = {**os.environ, "ROLECALL_HOME": str(shared_home.root)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as watch:
        assert watch.stdout is not None and watch.stderr is not None
        reports = [json.loads(watch.stdout.readline()) for _ in range(2)]  # a line is there when it is true
        eventually(watched.exists, "the host watches")
        watch.send_signal(signal.SIGINT)
        watch.wait(30)
        left, errors = watch.stdout.read(), watch.stderr.read().decode()

    assert [report["indexed"] for report in reports] == [3, 4]
    assert (watch.returncode, left) == (130, b"")
    assert errors == "Watching; Ctrl-C ends it.\n"
    eventually(lambda: not watched.exists(), "the host has ended the watch")
