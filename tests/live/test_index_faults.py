"""Hosts killed at random points of indexing, and many clients that index at once: nothing lost, nothing twice."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import psutil
import pytest

from rolecall.config.home import Home
from rolecall.server.connect import lock_holder
from rolecall.server.errors import HostDied
from rolecall.server.host.control import ControlClient
from tests.conftest import eventually
from tests.retrieval.embedding import assert_whole, stored

from .conftest import Tell, connected

pytestmark = [pytest.mark.live, pytest.mark.anyio]

ROLECALL = str(Path(sys.executable).with_name("rolecall"))
PATIENCE_S = 240.0
FILES, FEW_FILES = 150, 60
AIMS = ("start", "commit", "end")
WORDS = ["water", "stone", "light", "evening", "letter", "garden", "winter", "window", "road", "bread", "river", "lamp"]


class Folder:
    """Documents that change, each with its own word, and all bytes that any of them ever had, by hash."""

    def __init__(self, root: Path, seed: int, files: int = FEW_FILES) -> None:
        self.root, self.files, self._rng, self._made = root, files, random.Random(seed), 0
        self.versions: dict[str, bytes] = {}
        self.sha256: dict[str, str] = {}
        root.mkdir()
        for number in range(files):
            self._write(root / f"{number:03}.md")

    def change(self) -> set[str]:
        """Edit a third of the files, delete some and make as many; returns the paths whose bytes are other now."""
        paths = sorted(self.sha256)
        self._rng.shuffle(paths)
        edited, deleted = paths[: self.files // 3], paths[self.files // 3 : self.files // 3 + 8]
        for path in deleted:
            Path(path).unlink()
            del self.sha256[path]
        made = [str(self.root / f"new-{self._made + number}.md") for number in range(8)]
        for path in (*edited, *made):
            self._write(Path(path))
        return {*edited, *deleted, *made}

    def _write(self, path: Path) -> None:
        self._made += 1
        sections = self._rng.choice((1, 1, 1, 3))  # some files are several chunks
        words = (" ".join(self._rng.choices(WORDS, k=20 if sections == 1 else 150)) for _ in range(sections))
        data = "".join(f"# Part {part}\n\nnote{self._made} {text}\n\n" for part, text in enumerate(words)).encode()
        path.write_bytes(data)
        self.sha256[str(path)] = hashlib.sha256(data).hexdigest()
        self.versions[self.sha256[str(path)]] = data


@pytest.mark.parametrize("count", [1, pytest.param(50, marks=pytest.mark.soak)])
async def test_a_host_killed_anywhere_in_indexing_loses_no_file_that_it_had_told_of_and_keeps_none_twice_or_half(
    staffed: Home, tmp_path: Path, count: int, tell: Tell
) -> None:
    folder = Folder(tmp_path / "docs", seed=7, files=FILES if count > 1 else FEW_FILES)
    rng, points = random.Random(7), Counter[str]()
    told: dict[str, str] = {}  # what every progress line promised: path to hash
    for number in range(count):
        acknowledged = await _killed(staffed, folder, rng, AIMS[number % len(AIMS)])
        points[f"{AIMS[number % len(AIMS)]}, {'some' if acknowledged else 'none'} told"] += 1
        told |= {path: folder.sha256[path] for path in acknowledged}
        files, chunks = await stored(staffed.index) if any(staffed.index.iterdir()) else ({}, [])
        assert_whole(files, chunks, folder.versions)
        lost = {path for path, sha256 in told.items() if path not in files or files[path]["sha256"] != sha256}
        assert not lost, f"{len(lost)} of {len(told)} acknowledged files were lost by kill {number}"
        for path in folder.change():
            told.pop(path, None)

    async with ControlClient.open(staffed) as control:
        with anyio.fail_after(PATIENCE_S):
            report = await control.call("index_add", {"folder": str(folder.root)})
        assert (report["indexed"], report["failed"]) == (len(folder.sha256), [])
        state = (await control.call("index_list"))[0]["index"]
        assert state["pending"] == 0 and state["age_s"] is not None
    files, chunks = await stored(staffed.index)
    assert {path: row["sha256"] for path, row in files.items()} == folder.sha256
    assert_whole(files, chunks, folder.versions)
    tell(f"{count} kills at {dict(points)}: {len(folder.sha256)} files, {len(chunks)} chunks, none lost or twice")


async def _killed(home: Home, folder: Folder, rng: random.Random, aim: str) -> list[str]:
    """Index the folder and kill the host, and wait until all of its processes have ended; returns the files that the
    host had told of. `aim` is the start (imports, the scan, the model's load), a commit or the end (deletions,
    compaction)."""
    acknowledged: list[str] = []
    there = anyio.Event()
    nth = rng.randrange(1, folder.files // 3)
    late_s = rng.uniform(0.0, 8.0 if aim == "start" else 0.3)
    async with ControlClient.open(home) as control:
        host = psutil.Process(lock_holder(home))

        def progress(update: dict[str, Any]) -> None:
            acknowledged.append(update["path"])
            if update["done"] == update["total"] or (aim == "commit" and len(acknowledged) >= nth):
                there.set()

        async def kill() -> None:
            if aim != "start":
                await there.wait()
            await anyio.sleep(late_s)
            family = (host, *host.children(recursive=True))
            host.kill()
            await anyio.to_thread.run_sync(eventually, lambda: not any(map(_runs, family)), "all have ended")

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(kill)
                with suppress(HostDied):
                    await control.call("index_add", {"folder": str(folder.root)}, progress)
                there.set()
    return acknowledged


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_three_command_lines_and_two_clients_index_one_folder_at_once_and_nothing_is_there_twice(
    staffed: Home, tmp_path: Path, tell: Tell
) -> None:
    folder = Folder(tmp_path / "docs", seed=8)
    searched = 0

    async def command_line() -> None:
        words = [ROLECALL, "index", "add", str(folder.root)]
        done = await anyio.run_process(words, stdin=subprocess.DEVNULL, check=False)
        assert done.returncode == 0, done.stderr.decode()

    async def control() -> None:
        async with ControlClient.open(staffed) as client:
            report = await client.call("index_add", {"folder": str(folder.root)})
        assert (report["indexed"], report["failed"]) == (FEW_FILES, [])

    async def reader(stop: anyio.Event) -> None:
        nonlocal searched
        async with connected(tmp_path) as client:
            while not stop.is_set():
                found = await client.call_tool("retrieve", {"query": "water in the garden"})
                searched += not found.is_error

    stop = anyio.Event()
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as readers:
            readers.start_soon(reader, stop)
            async with anyio.create_task_group() as writers:  # no host runs yet: they race for its start, too
                for each in (command_line, control, command_line, control, command_line):
                    writers.start_soon(each)
            stop.set()
    files, chunks = await stored(staffed.index)
    assert {path: row["sha256"] for path, row in files.items()} == folder.sha256
    assert_whole(files, chunks, folder.versions)
    tell(f"5 clients, {FEW_FILES} files, {len(chunks)} chunks, none twice; {searched} searches answered meanwhile")
