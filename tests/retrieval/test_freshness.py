"""How complete an index says it is, and folders that are followed live."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import anyio
import pytest

from rolecall.config.home import Home
from rolecall.retrieval import freshness
from rolecall.retrieval.access import AllowedFolders
from rolecall.retrieval.contract import AddReport
from rolecall.retrieval.errors import IndexEmpty
from rolecall.retrieval.freshness import Freshness
from rolecall.retrieval.rows import Root
from rolecall.retrieval.sources import Sources, Tree
from rolecall.retrieval.store import Database, Store
from rolecall.retrieval.watching import changed

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


class Looks:
    """A folder's freshness beside an index that has nothing of it, and how often the disk was asked."""

    def __init__(self, store: Store, folder: Path, access: AllowedFolders) -> None:
        self._store, self._folder, self.taken = store, folder, 0
        self.freshness = Freshness(self)  # type: ignore[arg-type]
        self._sources = Sources(access, max_bytes=1_000)

    def tree(self, root: str, known: Tree | None) -> Tree:
        self.taken += 1
        return self._sources.tree(root, known)

    async def pending(self, collection: str | None = None) -> set[str]:
        look = await self.freshness.look(self._store, collection)
        return {str(Path(path).relative_to(self._folder)) for path in look.pending}

    async def come_to(self, *names: str) -> None:
        with anyio.fail_after(PATIENCE_S):
            while await self.pending() != {*names}:
                pass


@pytest.fixture
async def looks(tmp_path: Path, docs: Path) -> Looks:
    store = await Database(tmp_path / "index").create("hash-1", 8)
    await store.save_roots({("docs", str(docs)): Root()})
    access = AllowedFolders(Home(tmp_path / "home").create())
    access.add(docs)
    return Looks(store, docs, access)


async def test_a_small_folder_is_looked_at_for_every_answer(docs: Path, looks: Looks) -> None:
    assert await looks.pending() == {"pump.md", "tea.txt"}
    (docs / "tea.txt").unlink()
    assert await looks.pending("docs") == {"pump.md"}
    assert await looks.pending("other") == set()
    assert looks.taken == 2


async def test_a_large_folder_is_looked_at_again_only_when_the_system_tells_of_a_change(
    tmp_path: Path, docs: Path, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freshness, "CHEAP_FILES", 0)
    monkeypatch.setattr(freshness, "REST", 0.0)
    monkeypatch.setattr(freshness, "MAX_REST_S", 3_600.0)
    for _ in range(20):
        assert await looks.pending() == {"pump.md", "tea.txt"}
    assert looks.taken == 2, "at first, and once more when the system tells"
    (docs / "pump.md").write_text("It is red.\n")
    (docs / "new").mkdir()
    (docs / "new" / "a.md").write_text("new\n")
    await looks.come_to("pump.md", "tea.txt", "new/a.md")
    (docs / "new" / "b.md").write_text("newer\n")
    await looks.come_to("pump.md", "tea.txt", "new/a.md", "new/b.md")
    docs.rename(tmp_path / "away")
    await looks.come_to()
    (tmp_path / "away").rename(docs)
    (docs / "tea.txt").unlink()
    await looks.come_to("pump.md", "new/a.md", "new/b.md")
    (docs / "pump.md").unlink()
    await looks.come_to("new/a.md", "new/b.md")


async def test_what_the_system_does_not_tell_is_looked_at_after_a_rest(
    docs: Path, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no more watches")

    monkeypatch.setattr("watchfiles._rust_notify.RustNotify", refuse)
    monkeypatch.setattr(freshness, "CHEAP_FILES", 0)
    monkeypatch.setattr(freshness, "REST", 0.0)
    await looks.pending()
    (docs / "tea.txt").unlink()
    assert await looks.pending() == {"pump.md"}
    monkeypatch.setattr(freshness, "REST", 1e9)
    (docs / "new.md").write_text("new\n")
    assert await looks.pending() == {"pump.md", "new.md"}, "the last rest was none"
    (docs / "pump.md").unlink()
    assert await looks.pending() == {"pump.md", "new.md"}, "until the rest is over"
    looks.freshness.forget()
    assert await looks.pending() == {"new.md"}


async def test_the_system_tells_only_while_somebody_asks(
    docs: Path, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freshness, "REST", 1e9)
    monkeypatch.setattr(freshness, "MAX_REST_S", 3_600.0)
    monkeypatch.setattr(freshness, "CHEAP_FILES", 0)
    monkeypatch.setattr(freshness, "IDLE_S", 0.0)
    await looks.pending()
    (docs / "tea.txt").unlink()
    await looks.come_to("pump.md")


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
            there.rmdir()
            assert str(there) in await anext(changes)
            folders.clear()
            with pytest.raises(StopAsyncIteration):
                await anext(changes)
