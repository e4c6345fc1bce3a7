"""What disks, users and other programs do to an index and its sources: typed, the rest indexed, nothing stale."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from rolecall.config.errors import RolecallError
from rolecall.retrieval.contract import Found, Passage
from rolecall.retrieval.retriever import LanceRetriever

from .embedding import HashEmbedder, assert_whole, opened, stored

pytestmark = pytest.mark.anyio


def quotes_the_disk(passage: Passage) -> bool:
    data = Path(passage.path).read_bytes()
    return data[passage.start_byte : passage.end_byte].decode() == passage.text


def note(number: int, word: str = "first") -> str:
    return f"# Note {number}\n\nThe {word} marker of it is m{number}{word}.\n"


def notes(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{number:06}.md" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_text(note(number))
    return paths


def _same_size_and_time(path: Path, number: int) -> set[Path]:
    before = path.stat()
    path.write_text(note(number, "other"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return {path}


def _replaced(path: Path, number: int) -> set[Path]:
    new = path.with_suffix(".new")
    new.write_text(note(number, "second"))
    new.replace(path)
    return {path}


def _longer(path: Path, number: int) -> set[Path]:
    path.write_text("A line above.\n" + path.read_text())
    return {path}


def _emptied(path: Path, number: int) -> set[Path]:
    path.write_text("")
    return {path}


def _moved(path: Path, number: int) -> set[Path]:
    return {path, path.rename(path.with_name(f"moved-{number}.md"))}


def _moved_out(path: Path, number: int) -> set[Path]:
    path.rename(path.parent.parent / path.name)
    return {path}


def _deleted(path: Path, number: int) -> set[Path]:
    path.unlink()
    return {path}


CHANGES: tuple[Callable[[Path, int], set[Path]], ...] = (
    _same_size_and_time, _replaced, _longer, _emptied, _moved, _moved_out, _deleted,
)  # fmt: skip


@pytest.mark.parametrize("count", [35, pytest.param(200, marks=pytest.mark.soak)])
async def test_each_file_edited_moved_or_deleted_shows_in_the_next_answer_and_none_is_quoted_stale(
    tmp_path: Path, count: int
) -> None:
    docs, rng = tmp_path / "docs", random.Random(4)
    paths = notes(docs, count + 10)
    changed: set[Path] = set()
    async with opened(tmp_path, HashEmbedder()) as retriever:
        await retriever.add(docs)
        for number, path in enumerate(rng.sample(paths, count)):
            (was,) = (n for n, each in enumerate(paths) if each == path)
            assert path in _cited(await retriever.search(f"m{was}first"))
            changed |= CHANGES[number % len(CHANGES)](path, was)
            found = await retriever.search(f"m{was}first")
            assert found.index.pending == len(changed)
            assert all(map(quotes_the_disk, found.passages))
        (status,) = await retriever.status()
        assert set(map(Path, status.pending_files)) == changed
        await retriever.add(docs)
        living = {path for path in docs.iterdir() if path.stat().st_size}
        for path in living:
            marker = path.read_text().split()[-1].rstrip(".")
            found = await retriever.search(marker)
            assert path in _cited(found) and found.index.pending == 0
        assert found.index.indexed == len(living)
        assert all(map(quotes_the_disk, found.passages))


def _cited(found: Found) -> set[Path]:
    return {Path(passage.path) for passage in found.passages}


async def test_a_folder_full_of_traps_is_indexed_but_for_them_and_each_has_its_reason(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    notes(docs, 3)
    with (docs / "huge.md").open("wb") as huge:
        huge.truncate(2_000_000_000)
    os.mkfifo(docs / "pipe.md")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(docs / "socket.md"))  # a socket's name is at most 104 bytes long
    (docs / "round.md").symlink_to(docs / "round.md")
    (docs / "up").symlink_to(docs.parent)
    (tmp_path / "outside.md").write_text("outside secret\n")
    (docs / "out.md").symlink_to(tmp_path / "outside.md")
    (docs / "nul.md").write_bytes(b"a\0b")
    (docs / "latin.md").write_bytes(b"caf\xe9")
    (docs / "blank.md").write_text("")
    (docs / "two\nlines.md").write_text("named in two lines\n")
    async with opened(tmp_path, HashEmbedder()) as retriever:
        report = await retriever.add(docs)
        found = await retriever.search("named in two lines outside secret")
    assert report.indexed == 4
    assert "two\nlines.md" in {path.name for path in _cited(found)}
    assert all("outside" not in passage.text for passage in found.passages)
    state = found.index
    assert (state.indexed, state.pending) == (4, 0)
    assert sum(state.reasons.values()) == state.skipped + state.failed == 9
    assert (state.reasons["too_large"], state.reasons["link"], state.reasons["empty"]) == (1, 3, 1)
    reasons = {Path(failed.path).name: failed.reason for failed in report.failed}
    assert reasons.keys() == {"pipe.md", "socket.md", "nul.md", "latin.md"}
    assert reasons["pipe.md"] == reasons["socket.md"] == "not a regular file"


@pytest.mark.parametrize("count", [1_000, pytest.param(100_000, marks=pytest.mark.soak)])
async def test_very_many_tiny_files_are_each_indexed_once(tmp_path: Path, count: int) -> None:
    docs, embedder = tmp_path / "docs", HashEmbedder()
    docs.mkdir()
    for start in range(0, count, 1_000):
        notes(docs / f"{start}", 1_000)
    told = Counter[str]()
    async with opened(tmp_path, embedder) as retriever:
        report = await retriever.add(docs, on_progress=lambda done, total, path, *_: told.update([path]))
        assert (report.indexed, report.failed) == (count, ())
        assert set(told.values()) == {1} and len(told) == count
        assert (await retriever.search("m999first")).index.pending == 0
        asked = len(embedder.texts)
        assert (await retriever.add(docs)).indexed == count
        assert len(embedder.texts) == asked
    files, chunks = await stored(tmp_path / "home" / "index")
    assert len(files) == len(chunks) == count


async def test_files_that_change_and_vanish_while_they_are_read_are_stored_as_they_were_at_one_moment(
    tmp_path: Path,
) -> None:
    docs, stop = tmp_path / "docs", threading.Event()
    versions = {hashlib.sha256(path.read_bytes()).hexdigest(): path.read_bytes() for path in notes(docs, 100)}
    versions[hashlib.sha256(b"").hexdigest()] = b""

    def restless() -> None:
        turn = 0
        while not stop.is_set():
            path, turn = docs / f"restless-{turn % 5}.md", turn + 1
            data = note(turn, "grown " * (turn % 3 * 150)).encode()  # within a page, so that a write is seen whole
            versions[hashlib.sha256(data).hexdigest()] = data
            path.write_bytes(data)
            if turn % 4 == 0:
                path.unlink()

    other = threading.Thread(target=restless)
    other.start()
    try:
        async with opened(tmp_path, HashEmbedder()) as retriever:
            for _ in range(3):
                await retriever.add(docs)
                await retriever.search("grown marker")
                files, chunks = await stored(tmp_path / "home" / "index")
                assert len(files) >= 100
                assert_whole(files, chunks, versions)
            stop.set()
            other.join()
            await retriever.add(docs)
            found = await retriever.search("grown marker")
            assert found.index.pending == 0 and all(map(quotes_the_disk, found.passages))
    finally:
        stop.set()
        other.join()


async def test_a_full_disk_is_typed_loses_nothing_that_was_told_and_once_there_is_room_the_index_is_completed(
    tmp_path: Path,
) -> None:
    unshare, disk = shutil.which("unshare"), tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=64m none {disk}"
    own = [unshare or "", "--mount", "--map-root-user", "sh", "-c"]
    if not unshare or subprocess.run([*own, mount], capture_output=True).returncode:
        pytest.skip("this system lets no user mount a small disk of his own")
    python = f"{sys.executable} -m tests.retrieval.full_disk {tmp_path}"
    done = subprocess.run([*own, f"{mount} && exec {python}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["code"] == "retrieval_error" and seen["found"] == "the disk is full"
    assert 0 < seen["told"] == seen["kept"] < seen["files"]
    assert seen["completed"] == seen["files"]


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.soak)])
async def test_a_damaged_index_file_costs_a_typed_error_or_passages_but_never_a_wrong_quote(
    tmp_path: Path, every: int
) -> None:
    docs, rng = tmp_path / "docs", random.Random(16)
    notes(docs, 40)
    async with opened(tmp_path, HashEmbedder()) as retriever:
        await retriever.add(docs)
        (docs / "000007.md").write_text(note(7, "second"))
        await retriever.add(docs)
    index = tmp_path / "home" / "index"
    names = sorted(path.relative_to(index) for path in index.rglob("*") if path.is_file())
    outcomes = Counter[str]()
    for name, damage in list(product(names, (_truncated, _flipped, _missing)))[::every]:
        shutil.rmtree(tmp_path / "damaged", ignore_errors=True)
        shutil.copytree(tmp_path / "home", tmp_path / "damaged")
        damage(tmp_path / "damaged" / "index" / name, rng)
        async with opened(tmp_path, HashEmbedder(), home=tmp_path / "damaged") as retriever:
            outcomes[await _outcome(retriever, docs)] += 1
    assert set(outcomes) <= {"fine", "index_corrupt"} and outcomes["fine"] and outcomes["index_corrupt"], outcomes

    (tmp_path / "damaged" / "index").rename(tmp_path / "away")  # as the error's advice says
    async with opened(tmp_path, HashEmbedder(), home=tmp_path / "damaged") as retriever:
        assert (await retriever.add(docs)).indexed == 40


async def _outcome(retriever: LanceRetriever, docs: Path) -> str:
    try:
        for number in (3, 7):
            found = await retriever.search(f"m{number}first marker")
            assert all(map(quotes_the_disk, found.passages))
        assert (await retriever.add(docs)).indexed == 40
    except RolecallError as error:
        return error.code
    return "fine"


def _truncated(path: Path, rng: random.Random) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flipped(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    at = rng.randrange(max(1, len(data) - 16))
    data[at : at + 16] = bytes(byte ^ 0xFF for byte in data[at : at + 16])
    path.write_bytes(data)


def _missing(path: Path, rng: random.Random) -> None:
    path.unlink()
