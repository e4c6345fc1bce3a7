"""How complete an index says it is, and folders that are followed live."""

from __future__ import annotations

import os
import sys
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest

from rolecall.config.home import Home
from rolecall.retrieval.access import AllowedFolders
from rolecall.retrieval.contract import AddReport
from rolecall.retrieval.errors import IndexEmpty
from rolecall.retrieval.freshness import Freshness
from rolecall.retrieval.rows import Root
from rolecall.retrieval.sources import Sources
from rolecall.retrieval.store import Database
from rolecall.retrieval.watching import changed, matters

from .embedding import HashEmbedder, opened

pytestmark = pytest.mark.anyio
PATIENCE_S = 60.0


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "pump.md").write_text("# Pump\n\nThe valve opens at 42 bar.\n")
    (folder / "tea.txt").write_text("Green tea wants water of 70 degrees.\n")
    return folder


async def test_every_answer_says_what_is_pending_skipped_and_failed_and_why(tmp_path: Path, docs: Path) -> None:
    (docs / "nul.txt").write_bytes(b"a\0b")
    (docs / "photo.jpg").write_bytes(b"\xff\xd8")
    (docs / "empty.md").touch()
    (docs / "link.md").symlink_to(docs / "pump.md")
    async with opened(tmp_path, HashEmbedder()) as retriever:
        await retriever.add(docs)
        (docs / "pump.md").write_text("# Pump\n\nIt is red.\n")
        (docs / "tea.txt").rename(docs / "coffee.txt")
        index = (await retriever.search("valve")).index
        assert (index.indexed, index.pending, index.skipped, index.failed) == (2, 3, 3, 1)
        assert index.reasons == {"unknown_kind": 1, "empty": 1, "link": 1, "binary": 1}
        (status,) = await retriever.status("docs")
        assert status.pending_files == tuple(str(docs / name) for name in ("coffee.txt", "pump.md", "tea.txt"))
        assert [(Path(file.path).name, file.code) for file in status.failed_files] == [("nul.txt", "binary")]
        assert (status.embedder, status.rebuilding_for, status.index.age_s is not None) == ("hash-1", None, True)
        with pytest.raises(IndexEmpty):
            await retriever.status("other")
        (report,) = await retriever.sync("docs")
        assert (report.indexed, report.skipped, len(report.failed)) == (2, 3, 1)
        assert (await retriever.search("valve")).index.pending == 0


async def test_a_folder_is_compared_anew_only_when_it_or_the_index_changed(tmp_path: Path, docs: Path) -> None:
    store = await Database(tmp_path / "index").create("hash-1", 8)
    await store.save_roots({("docs", str(docs)): Root()})
    access = AllowedFolders(Home(tmp_path / "home").create())
    access.add(docs)
    freshness = Freshness(Sources(access, max_bytes=1_000))
    first = await freshness.look(store, None)
    assert first.pending == {str(docs / "pump.md"), str(docs / "tea.txt")}
    (docs / "tea.txt").unlink()
    assert (await freshness.look(store, "docs")).pending == {str(docs / "pump.md")}
    assert (await freshness.look(store, "other")).pending == set()


async def test_a_watched_folder_is_followed_through_changes_and_even_if_it_vanishes_and_comes_back(
    tmp_path: Path, docs: Path
) -> None:
    tell, reports = anyio.create_memory_object_stream[AddReport](100)
    async with opened(tmp_path, HashEmbedder()) as retriever:

        async def follows(query: str, *wanted: str) -> None:
            """Reports come until the index is what it should be."""
            with anyio.fail_after(PATIENCE_S):
                async for _ in reports:
                    found = await retriever.search(query, leg="text")
                    if not found.index.pending and {Path(each.path).name for each in found.passages} == {*wanted}:
                        return

        with tell, reports:
            with pytest.raises(IndexEmpty):
                await retriever.watch(None, tell.send_nowait)
            await retriever.add(docs)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(retriever.watch, "docs", tell.send_nowait)
                await follows("valve", "pump.md")
                (docs / "new.md").write_text("a brand new valve\n")
                (docs / "tea.txt").unlink()
                await follows("valve", "pump.md", "new.md")
                (docs / "pump.md").write_text("a red pump\n")
                (docs / "photo.jpg").write_bytes(b"\xff\xd8")
                await follows("red", "pump.md")
                docs.rename(tmp_path / "away")
                (tmp_path / "away" / "back.md").write_text("it came back\n")
                (tmp_path / "away").rename(docs)
                await follows("came back", "back.md")
                tasks.cancel_scope.cancel()


async def test_a_watch_tells_the_folders_that_changed_and_those_that_came_and_went(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    folders = {str(here), str(there)}
    with anyio.fail_after(PATIENCE_S):
        async with aclosing(changed(lambda: folders)) as changes:
            assert await anext(changes) == {str(here)}
            assert await anext(changes) == {str(here)}, "once more when the watch stands"
            (here / ".git").mkdir()
            (here / ".git" / "index.md").touch()
            (here / "photo.jpg").touch()
            there.mkdir()
            assert await anext(changes) == {str(there)}
            assert str(there) in await anext(changes)
            (here / "a.md").touch()
            assert await anext(changes) == {str(here)}
            (there / "v1.2").mkdir()
            assert await anext(changes) == {str(there)}
            (there / "v1.2").rename(here / "v1.3")
            assert await anext(changes) == {str(here)}
            if sys.platform != "darwin":  # whose disks hold only names in UTF-8
                (here / os.fsdecode(b"\xff.md")).touch()
                assert await anext(changes) == {str(here), str(there)}, "what else changed is not known"
                assert await anext(changes) == {str(here), str(there)}
            there.rmdir()
            assert str(there) in await anext(changes)
            folders.clear()
            with pytest.raises(StopAsyncIteration):
                await anext(changes)


@pytest.mark.parametrize(
    ("below", "told"),
    [("a.md", True), ("v1", True), (".github/workflows/ci.yml", True), (".github", True), (".gitignore", True),
     ("", True), (".git/index", False), (".a.md", False), ("a.jpg", False), ("../other/a.md", False)],
)  # fmt: skip
def test_a_change_matters_where_it_can_change_the_index_however_the_disk_spells_it(below: str, told: bool) -> None:
    for path in (
        "/home/me/Gru\N{COMBINING DIAERESIS}ne Notes",
        "/home/me/gr\N{LATIN SMALL LETTER U WITH DIAERESIS}ne notes",
    ):
        assert (
            matters(os.path.normpath(f"{path}/{below}"), "/home/me/Gr\N{LATIN SMALL LETTER U WITH DIAERESIS}ne Notes")
            == told
        )
