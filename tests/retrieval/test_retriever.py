"""Folders in, passages with checked citations out."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from rolecall.config.home import Home
from rolecall.retrieval.access import AllowedFolders
from rolecall.retrieval.contract import Filters
from rolecall.retrieval.errors import IndexEmpty, IndexLarge, PathMissing, PathNotAllowed, RetrievalError

from .embedding import HashEmbedder, names, opened

pytestmark = pytest.mark.anyio


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "pump.md").write_text("# Pump\r\n\r\nThe valve opens at 42 bar.\r\n", newline="")
    (folder / "tea.txt").write_text("Green tea wants water of 70 degrees, naïve or not.\n")
    (folder / "main.py").write_text("def parseUserName(raw):\n    return raw.strip()\n")
    return folder


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
    progress: list[tuple[int, int, str, int]] = []
    async with opened(tmp_path, embedder) as retriever:
        report = await retriever.add(docs, on_progress=lambda *seen: progress.append(seen))
        assert embedder.passages == embedded + 1
        assert report.indexed == 2
        assert [(done, total, chunks) for done, total, _, chunks in progress] == [(1, 2, 1), (2, 2, 1)]
        assert names(await retriever.search("red paint")) == ["pump.md", "tea.txt"]
        assert (await retriever.search("valve bar", filters=Filters(glob="*.md"))).passages[0].text.endswith("red.")
        assert (await retriever.add(docs)).indexed == 2
        (info,) = await retriever.collections()
    assert embedder.passages == embedded + 1
    assert (info.collection, info.folders, info.files, info.chunks) == ("docs", (str(docs),), 2, 2)


async def test_cancelling_keeps_what_was_reported_and_the_next_add_goes_on(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    for i in range(300):
        (docs / f"{i:03}.txt").write_text(f"note {i} of the day\n")
    acknowledged: list[str] = []
    embedder.stop_at = 150
    async with opened(tmp_path, embedder) as retriever:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(retriever.add, docs, None, lambda done, total, path, chunks: acknowledged.append(path))
                await embedder.stopped.wait()
                group.cancel_scope.cancel()
        embedder.stop_at = -1
        state = (await retriever.search("note")).index
        assert 0 < len(acknowledged) == state.indexed < 303
        assert state.pending == 303 - state.indexed and state.age_s is None
        embedded = embedder.passages
        assert (await retriever.add(docs)).indexed == 303
    assert embedder.passages == embedded + 303 - len(acknowledged)


async def test_another_embedder_indexes_all_folders_anew_and_until_then_the_old_index_answers(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "left.md").write_text("left behind\n")
    async with opened(tmp_path, embedder) as retriever:
        await retriever.add(docs)
        await retriever.add(other, private=True)
        embedder.identity, embedder.dimensions = "hash-2", 16
        assert names(await retriever.search("valve")) == ["pump.md"]
        embedder.stop_at = len(embedder.texts) + 4  # the probe of its dimensions and the first folder's passages
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(retriever.add, docs)
                await embedder.stopped.wait()
                group.cancel_scope.cancel()
        embedder.stop_at = -1
        assert names(await retriever.search("valve")) == ["pump.md"]
        assert names(await retriever.search("behind", "other")) == ["left.md"]
        docs_status, _ = await retriever.status()
        assert (docs_status.embedder, docs_status.rebuilding_for) == ("hash-1", "hash-2")
    async with opened(tmp_path, embedder) as retriever:
        assert names(await retriever.search("behind", "other")) == ["left.md"]
        embedded = embedder.passages
        assert [report.collection for report in await retriever.sync("docs")] == ["docs"]
        assert embedder.passages == embedded + 1, "the folder that was left, and no other"
        assert names(await retriever.search("valve"))[0] == "pump.md"
        found = await retriever.search("behind", "other")
        assert (names(found), found.passages[0].private) == (["left.md"], True)
        statuses = await retriever.status()
    assert {(each.embedder, each.rebuilding_for) for each in statuses} == {("hash-2", None)}
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
