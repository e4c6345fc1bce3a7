"""Folders in, passages with checked citations out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import numpy as np
import numpy.typing as npt
import pytest

from rolecall.config.errors import RolecallError
from rolecall.config.home import Home
from rolecall.config.settings import RetrievalSettings
from rolecall.retrieval.access import AllowedFolders
from rolecall.retrieval.contract import Filters, Found
from rolecall.retrieval.errors import IndexCorrupt, IndexEmpty, IndexLarge, PathMissing, PathNotAllowed, RetrievalError
from rolecall.retrieval.retriever import LanceRetriever
from rolecall.retrieval.store import Store

pytestmark = pytest.mark.anyio
DIMENSIONS = 32


class HashEmbedder:
    """Bags of words, hashed: equal words give near vectors. Remembers what it was asked."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.identity: str | None = "hash-1"
        self.dimensions = DIMENSIONS
        self.stop_at = -1
        self.stopped = anyio.Event()

    async def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        if self.identity is None:
            raise RolecallError("The embedder is not on disk.")
        if 0 <= self.stop_at <= len(self.texts):
            self.stopped.set()
            await anyio.sleep_forever()
        self.texts += texts
        vectors = np.full((len(texts), self.dimensions), 1e-3, dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                vectors[row, int(hashlib.sha256(word.encode()).hexdigest(), 16) % self.dimensions] += 1
        unit: npt.NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    @property
    def passages(self) -> int:
        return sum(" > " in text or "\n" in text for text in self.texts)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "pump.md").write_text("# Pump\r\n\r\nThe valve opens at 42 bar.\r\n", newline="")
    (folder / "tea.txt").write_text("Green tea wants water of 70 degrees, naïve or not.\n")
    (folder / "main.py").write_text("def parseUserName(raw):\n    return raw.strip()\n")
    return folder


@pytest.fixture
def embedder() -> HashEmbedder:
    return HashEmbedder()


@asynccontextmanager
async def opened(
    tmp_path: Path, embedder: HashEmbedder, on_change: Callable[[], None] = lambda: None
) -> AsyncIterator[LanceRetriever]:
    home = Home(tmp_path / "home")
    settings = RetrievalSettings(chunk_tokens=200, max_file_mb=0.1)
    access = AllowedFolders(home, user_home=tmp_path)
    retriever = LanceRetriever(home, settings, embedder, lambda: embedder.identity, access, on_change=on_change)
    try:
        yield retriever
    finally:
        await retriever.aclose()


def names(found: Found) -> list[str]:
    return [Path(passage.path).name for passage in found.passages]


async def test_a_passage_is_the_bytes_of_its_file_at_its_span(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    async with opened(tmp_path, embedder) as retriever:
        report = await retriever.add(docs)
        found = await retriever.search("at how many bar does the valve open?")
    assert (report.collection, report.indexed, report.skipped, report.failed) == ("docs", 3, 0, ())
    assert names(found)[0] == "pump.md"
    for passage in found.passages:
        data = Path(passage.path).read_bytes()
        assert data[passage.start_byte : passage.end_byte].decode() == passage.text
        assert 0.0 <= passage.score <= 1.0
    assert found.passages[0].text == "# Pump\r\n\r\nThe valve opens at 42 bar."
    assert (found.passages[0].start_line, found.passages[0].end_line) == (1, 3)
    assert (found.index.indexed, found.index.pending, found.index.failed) == (3, 0, 0)
    assert found.index.age_s is not None


async def test_part_of_a_camel_case_name_finds_the_code(tmp_path: Path, docs: Path, embedder: HashEmbedder) -> None:
    async with opened(tmp_path, embedder) as retriever:
        await retriever.add(docs)
        embedder.identity = None
        assert names(await retriever.search("user name")) == ["main.py"]
        assert names(await retriever.search("parseUserName")) == ["main.py"]


async def test_an_unchanged_folder_is_not_embedded_again_even_after_a_restart(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    async with opened(tmp_path, embedder) as retriever:
        await retriever.add(docs)
    embedded = embedder.passages
    os.utime(docs / "tea.txt")
    (docs / "pump.md").write_text("# Pump\n\nIt is painted red.\n")
    (docs / "main.py").unlink()
    progress: list[tuple[int, int, str]] = []
    async with opened(tmp_path, embedder) as retriever:
        report = await retriever.add(docs, on_progress=lambda *seen: progress.append(seen))
        assert embedder.passages == embedded + 1
        assert report.indexed == 2
        assert [(done, total) for done, total, _ in progress] == [(1, 2), (2, 2)]
        assert names(await retriever.search("red paint")) == ["pump.md", "tea.txt"]
        assert (await retriever.search("valve bar", filters=Filters(glob="*.md"))).passages[0].text.endswith("red.")
        assert (await retriever.add(docs)).indexed == 2
        (info,) = await retriever.collections()
    assert embedder.passages == embedded + 1
    assert (info.collection, info.folders, info.files, info.chunks) == ("docs", (str(docs),), 2, 2)


async def test_a_changed_file_is_not_quoted_and_counts_as_pending_with_the_new_and_the_gone(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    async with opened(tmp_path, embedder) as retriever:
        await retriever.add(docs)
        before = (docs / "pump.md").stat()
        (docs / "pump.md").write_bytes((docs / "pump.md").read_bytes().replace(b"42", b"43"))
        os.utime(docs / "pump.md", ns=(before.st_atime_ns, before.st_mtime_ns))
        found = await retriever.search("valve bar")
        assert "pump.md" not in names(found) and found.index.pending == 1
        (docs / "tea.txt").unlink()
        (docs / "new.md").write_text("valve bar\n")
        found = await retriever.search("valve bar")
        assert names(found) == ["main.py"] and found.index.pending == 3
        await retriever.add(docs)
        found = await retriever.search("valve bar")
    assert names(found)[0] == "new.md" and found.index.pending == 0
    assert any("43 bar" in passage.text for passage in found.passages)


async def test_files_that_cannot_be_read_are_reported_and_the_rest_is_indexed(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    (docs / "latin.md").write_bytes(b"caf\xe9")
    (docs / "nul.txt").write_bytes(b"a\0b")
    (docs / "blank.md").write_text(" \n")
    (docs / "it's a\n'name'.md").write_text("quoted names are names\n")
    os.mkfifo(docs / "pipe.md")
    async with opened(tmp_path, embedder) as retriever:
        report = await retriever.add(docs)
        assert sorted((Path(f.path).name, f.code) for f in report.failed) == [
            ("latin.md", "file_unreadable"),
            ("nul.txt", "file_unreadable"),
            ("pipe.md", "file_unreadable"),
        ]
        assert report.indexed == 5
        found = await retriever.search("quoted names")
        assert names(found)[0] == "it's a\n'name'.md"
        assert (found.index.indexed, found.index.pending, found.index.failed) == (5, 0, 3)
        (docs / "latin.md").write_text("café")
        assert len((await retriever.add(docs)).failed) == 2


async def test_cancelling_keeps_what_was_reported_and_the_next_add_goes_on(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    for i in range(300):
        (docs / f"{i:03}.txt").write_text(f"note {i} of the day\n")
    acknowledged: list[str] = []
    embedder.stop_at = 200
    async with opened(tmp_path, embedder) as retriever:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(retriever.add, docs, None, lambda done, total, path: acknowledged.append(path))
                await embedder.stopped.wait()
                group.cancel_scope.cancel()
        embedder.stop_at = -1
        state = (await retriever.search("note")).index
        assert 0 < len(acknowledged) == state.indexed < 303
        assert state.pending == 303 - state.indexed and state.age_s is None
        embedded = embedder.passages
        assert (await retriever.add(docs)).indexed == 303
    assert embedder.passages == embedded + 303 - len(acknowledged)


async def test_another_embedder_indexes_anew_what_is_added_and_until_then_full_text_answers(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    async with opened(tmp_path, embedder) as retriever:
        await retriever.add(docs)
        other = tmp_path / "other"
        other.mkdir()
        (other / "left.md").write_text("left behind\n")
        await retriever.add(other)
        embedder.identity, embedder.dimensions = "hash-2", 16
        assert names(await retriever.search("valve")) == ["pump.md"]
        embedded = embedder.passages
        assert (await retriever.add(docs)).indexed == 3
        assert embedder.passages == embedded + 3
        assert names(await retriever.search("valve"))[0] == "pump.md"
        assert (await retriever.search("valve")).index.pending == 1
        assert names(await retriever.search("behind", "other")) == []
        assert (await retriever.add(other)).indexed == 1
        assert names(await retriever.search("behind", "other")) == ["left.md"]
        assert [info.collection for info in await retriever.collections()] == ["docs", "other"]
    assert len(list((tmp_path / "home" / "index").glob("*.lance"))) == 1


async def test_filters_narrow_by_path_kind_language_and_time(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    os.utime(docs / "tea.txt", (0, 0))
    async with opened(tmp_path, embedder) as retriever:
        await retriever.add(docs)

        async def narrowed(**wanted: str) -> set[str]:
            return set(names(await retriever.search("the", filters=Filters(**wanted))))

        assert await narrowed(glob="*.py") == await narrowed(language="python") == {"main.py"}
        assert await narrowed(glob=f"{docs}/*.md") == await narrowed(kind="markdown") == {"pump.md"}
        assert await narrowed(since="2000-01-01") == {"main.py", "pump.md"}
        assert await narrowed(glob="*.none") == set()
        for odd in ("yesterday", "0001-01-01"):
            with pytest.raises(RetrievalError, match="not a date"):
                await narrowed(since=odd)


async def test_two_folders_share_a_collection_and_a_repeated_passage_comes_once(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    other = tmp_path / "it's other"
    other.mkdir()
    (other / "copy.txt").write_text((docs / "tea.txt").read_text())
    async with opened(tmp_path, embedder) as retriever:
        await retriever.add(docs, "all's")
        await retriever.add(other, "all's")
        found = await retriever.search("green tea", "all's")
        assert len([passage for passage in found.passages if "Green tea" in passage.text]) == 1
        assert found.index.indexed == 4
        assert await retriever.remove("all's") == 4
        with pytest.raises(IndexEmpty):
            await retriever.search("green tea")


async def test_a_folder_that_is_no_longer_allowed_is_not_quoted(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    async with opened(tmp_path, embedder) as retriever:
        await retriever.add(docs)
        AllowedFolders(Home(tmp_path / "home"), user_home=tmp_path).remove(docs)
        assert names(await retriever.search("valve")) == []


async def test_a_large_folder_is_indexed_only_where_confirmed_and_is_not_allowed_before(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    async with opened(tmp_path, embedder) as retriever:
        with pytest.raises(IndexLarge, match=r"3 files.*2 unasked.*--yes"):
            await retriever.add(docs, max_files=2)
        assert AllowedFolders(Home(tmp_path / "home"), user_home=tmp_path).list() == ()
        assert await retriever.collections() == ()
        assert (await retriever.add(docs)).indexed == 3
        assert (await retriever.add(docs, max_files=2)).indexed == 3  # known by now
        with pytest.raises(PathNotAllowed):
            await retriever.add(tmp_path)


async def test_an_indexed_file_is_found_by_its_path_in_its_collection_alone(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    changes: list[str] = []
    async with opened(tmp_path, embedder, lambda: changes.append("changed")) as retriever:
        assert await retriever.indexed("docs", "pump.md") is None
        (docs / "bad.md").write_bytes(b"\xff")
        await retriever.add(docs)
        told = len(changes)
        assert await retriever.indexed("docs", "pump.md") == docs / "pump.md"
        assert await retriever.indexed("docs", str(docs / "tea.txt")) == docs / "tea.txt"
        for collection, path in (("other", "pump.md"), ("docs", "../docs/pump.md"), ("docs", "bad.md"), ("docs", "")):
            assert await retriever.indexed(collection, path) is None
        await retriever.remove("docs")
        assert await retriever.indexed("docs", "pump.md") is None
    assert told >= 1 and len(changes) == told + 1


async def test_an_empty_index_an_unknown_collection_and_a_missing_folder_are_typed(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    async with opened(tmp_path, embedder) as retriever:
        assert await retriever.collections() == ()
        with pytest.raises(IndexEmpty, match="index add"):
            await retriever.search("x")
        with pytest.raises(PathMissing):
            await retriever.add(tmp_path / "nowhere")
        (tmp_path / "empty").mkdir()
        await retriever.add(tmp_path / "empty")
        assert (await retriever.search("x", "empty")).passages == ()
        await retriever.add(docs)
        assert (await retriever.search(" \n")).passages == ()
        for call in (retriever.search("x", "other"), retriever.remove("other")):
            with pytest.raises(IndexEmpty, match="docs"):
                await call


async def test_any_query_is_text_and_never_syntax(tmp_path: Path, docs: Path, embedder: HashEmbedder) -> None:
    async with opened(tmp_path, embedder) as retriever:
        await retriever.add(docs)
        for query in ('"valve', "valve AND (", "'; DROP", "valve\0", "🙂", "valve \ud800", "the " * 5_000):
            assert (await retriever.search(query, max_results=1)).index.indexed == 3


async def test_a_table_that_a_kill_left_without_its_text_index_is_completed(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    table = (await Store.create(tmp_path / "home" / "index", "hash-1", DIMENSIONS))._table
    await table.drop_index("search_text_idx")
    async with opened(tmp_path, embedder) as retriever:
        await retriever.add(docs)
        embedder.identity = None
        assert names(await retriever.search("valve")) == ["pump.md"]


async def test_a_damaged_index_and_a_newer_one_are_typed(tmp_path: Path, docs: Path, embedder: HashEmbedder) -> None:
    async with opened(tmp_path, embedder) as retriever:
        await retriever.add(docs)
    (table,) = (tmp_path / "home" / "index").glob("*.lance")
    for manifest in (table / "_versions").iterdir():
        manifest.write_bytes(b"damaged")
    async with opened(tmp_path, embedder) as retriever:
        with pytest.raises(IndexCorrupt, match="move the home's `index` folder away"):
            await retriever.search("valve")
    table.rename(table.with_name("chunks_v999_x.lance"))
    async with opened(tmp_path, embedder) as retriever:
        with pytest.raises(IndexCorrupt, match="newer version"):
            await retriever.search("valve")
