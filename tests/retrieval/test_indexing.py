"""Folders brought up to date: what is embedded again, what is not, and what becomes of files that cannot be read."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lancedb
import numpy.typing as npt
import pytest

from rolecall.config.errors import RolecallError
from rolecall.config.home import Home
from rolecall.retrieval.access import AllowedFolders
from rolecall.retrieval.errors import IndexEmpty, PathMissing
from rolecall.retrieval.store import Database

from .embedding import HashEmbedder, names, opened, stored

pytestmark = pytest.mark.anyio


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / "pump.md").write_text("# Pump\n\nThe valve opens at 42 bar.\n")
    (folder / "deep" / "tea.txt").write_text("Green tea wants water of 70 degrees.\n")
    (folder / "page.html").write_text("<html><body><h1>Cranes</h1><p>A crane lifts nine tonnes.</p></body></html>\n")
    return folder


async def test_moved_and_copied_files_are_not_embedded_again(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    async with opened(tmp_path, embedder) as retriever:
        await retriever.add(docs)
        embedded = embedder.passages
        (docs / "deep").rename(docs / "moved")
        (docs / "page.html").rename(docs / "crane.html")
        shutil.copytree(docs, tmp_path / "copies")
        await retriever.add(docs)
        await retriever.add(tmp_path / "copies", "other")
        assert embedder.passages == embedded
        for collection, folder in (("docs", docs), ("other", tmp_path / "copies")):
            for query, name in (("green tea", "moved/tea.txt"), ("crane tonnes", "crane.html"), ("valve", "pump.md")):
                found = await retriever.search(query, collection)
                assert found.passages[0].path == str(folder / name) and found.index.pending == 0
        assert names(await retriever.search("copies moved", "other", leg="text"))[0] == "tea.txt", "under its new title"
        (docs / "moved" / "tea.txt").write_text("Black tea wants boiling water.\n")
        await retriever.sync()
        assert embedder.passages == embedded + 1
    files, chunks = await stored(tmp_path / "home" / "index")
    assert (len(files), len(chunks)) == (6, 6)


async def test_a_file_that_moves_while_another_takes_its_place_keeps_its_own_vectors(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    async with opened(tmp_path, embedder) as retriever:
        await retriever.add(docs)
        embedded = embedder.passages
        (docs / "pump.md").rename(docs / "valve.md")
        (docs / "pump.md").write_text("# Pump\n\nIt is painted red.\n")
        await retriever.sync("docs")
        assert embedder.passages == embedded + 1
        assert names(await retriever.search("valve opens at 42 bar"))[0] == "valve.md"
        assert names(await retriever.search("painted red"))[0] == "pump.md"


async def test_a_folder_that_cannot_be_read_keeps_what_is_indexed_of_it(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    access = AllowedFolders(Home(tmp_path / "home"), user_home=tmp_path)
    async with opened(tmp_path, embedder) as retriever:
        await retriever.add(docs)
        embedded = embedder.passages
        docs.rename(tmp_path / "away")
        (report,) = await retriever.sync()
        assert [(file.path, file.code) for file in report.failed] == [(str(docs), "path_missing")]
        (status,) = await retriever.status()
        assert (status.files, status.index.pending) == (3, 3)
        assert (await retriever.search("valve")).passages == ()
        (tmp_path / "away").rename(docs)
        access.remove(docs)
        (report,) = await retriever.sync()
        assert [(file.path, file.code) for file in report.failed] == [(str(docs), "path_not_allowed")]
        access.add(docs)
        (report,) = await retriever.sync()
        assert (report.indexed, report.failed, embedder.passages) == (3, (), embedded)
        assert names(await retriever.search("valve"))[0] == "pump.md"


async def test_what_no_parser_can_read_is_tried_again_only_when_it_changed(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    (docs / "nul.txt").write_bytes(b"a\0b")
    tried: list[str] = []
    async with opened(tmp_path, embedder) as retriever:
        assert [file.code for file in (await retriever.add(docs)).failed] == ["binary"]
        report = await retriever.add(docs, on_progress=lambda done, total, path, chunks: tried.append(path))
        assert ([file.code for file in report.failed], tried) == (["binary"], [])
        (docs / "nul.txt").write_text("a and b")
        assert (await retriever.add(docs)).failed == ()


async def test_a_chunk_that_the_disk_damaged_is_not_quoted_shows_as_pending_and_is_made_anew_by_the_next_sync(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    async with opened(tmp_path, embedder) as retriever:
        await retriever.add(docs)
    connection = await lancedb.connect_async(str(tmp_path / "home" / "index"))
    (name,) = (await connection.list_tables()).tables
    await (await connection.open_table(name)).update(
        {"text": "The valve opens at 43 bar."}, where="text LIKE '%42 bar%'"
    )
    async with opened(tmp_path, embedder) as retriever:
        found = await retriever.search("valve opens")
        assert ("pump.md" not in names(found), found.index.pending) == (True, 1)
        await retriever.sync()
        found = await retriever.search("valve opens")
        assert (names(found)[0], found.index.pending) == ("pump.md", 0)


async def test_a_long_document_is_stored_whole(tmp_path: Path, docs: Path, embedder: HashEmbedder) -> None:
    text = "\n\n".join(f"Paragraph {i} tells of marker m{i} and of much else that is long." for i in range(900))
    (docs / "long.txt").write_text(text)
    async with opened(tmp_path, embedder, chunk_tokens=20) as retriever:
        await retriever.add(docs)
        for i in (0, 450, 899):
            assert f"m{i} " in (await retriever.search(f"m{i}", leg="text")).passages[0].text
    files, chunks = await stored(tmp_path / "home" / "index")
    assert files[str(docs / "long.txt")]["chunks"] >= 900 and len(chunks) == len({row["id"] for row in chunks})


async def test_an_embedder_that_fails_is_the_error_and_what_was_stored_stays(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    class Failing(HashEmbedder):
        async def __call__(self, texts: Sequence[str]) -> npt.NDArray[Any]:
            if any("nine tonnes" in text for text in texts):
                raise RolecallError("The worker died.")
            return await super().__call__(texts)

    async with opened(tmp_path, Failing()) as retriever:
        with pytest.raises(RolecallError, match="died"):
            await retriever.add(docs)
        (docs / "page.html").unlink()
        assert (await retriever.add(docs)).indexed == 2


async def test_a_preview_changes_nothing_and_tells_what_will_be_done(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    (docs / "empty.md").touch()
    (docs / "photo.jpg").write_bytes(b"\xff\xd8")
    async with opened(tmp_path, embedder) as retriever:
        preview = await retriever.preview(docs)
        assert (preview.files, preview.kinds) == (3, {"markdown": 1, "text": 1, "html": 1})
        assert preview.size_bytes == sum(
            each.stat().st_size for each in docs.rglob("*") if each.suffix in (".md", ".txt", ".html")
        )
        assert preview.skipped == {"empty": 1, "unknown_kind": 1}
        assert preview.folders == {str(docs): 2, str(docs / "deep"): 1}
        assert preview.seconds is not None and preview.seconds >= 0
        embedder.identity = None
        assert (await retriever.preview(docs)).seconds is None
        with pytest.raises(PathMissing):
            await retriever.preview(tmp_path / "nowhere")
        with pytest.raises(IndexEmpty):
            await retriever.sync()
    assert AllowedFolders(Home(tmp_path / "home"), user_home=tmp_path).list() == ()
    assert not (tmp_path / "home" / "index").exists()


async def test_citations_are_looked_up_again(tmp_path: Path, docs: Path, embedder: HashEmbedder) -> None:
    async with opened(tmp_path, embedder) as retriever:
        await retriever.add(docs)
        found = await retriever.search("valve tea crane")
        by_name = {Path(passage.path).name: passage for passage in found.passages}
        assert {name: bool(passage.extracted_sha256) for name, passage in by_name.items()} == {
            "pump.md": False, "tea.txt": False, "page.html": True
        }  # fmt: skip
        page = by_name["page.html"]
        assert page.sha256 == hashlib.sha256((docs / "page.html").read_bytes()).hexdigest()

        async def verdicts() -> dict[str, str]:
            return dict(zip(by_name, await retriever.check([*by_name.values()]), strict=True))

        assert await verdicts() == dict.fromkeys(by_name, "same")
        with (docs / "pump.md").open("a") as file:
            file.write("\nIt is painted red.\n")
        (docs / "page.html").write_text("<p>A crane lifts ten tonnes.</p>")
        (docs / "deep" / "tea.txt").unlink()
        assert await verdicts() == {"pump.md": "same", "page.html": "changed", "tea.txt": "gone"}
        wrong = by_name["pump.md"].model_copy(update={"text": "The valve opens at 43 bar."})
        (one,) = await retriever.check([wrong])
        assert one == "changed"
        AllowedFolders(Home(tmp_path / "home"), user_home=tmp_path).remove(docs)
        assert set((await verdicts()).values()) == {"refused"}


async def test_a_private_collection_stays_private_in_all_its_folders_until_told_otherwise(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "valve.md").write_text("Another valve.\n")
    async with opened(tmp_path, embedder) as retriever:
        await retriever.add(docs, "mine", private=True)
        await retriever.add(other, "mine")
        await retriever.add(other, "ours")
    async with opened(tmp_path, embedder) as retriever:
        for collection, private in (("mine", True), ("ours", False)):
            found = await retriever.search("valve", collection)
            assert {passage.private for passage in found.passages} == {private}
        assert {info.collection: info.private for info in await retriever.collections()} == {
            "mine": True,
            "ours": False,
        }
        await retriever.add(other, "mine", private=False)
        assert not any(passage.private for passage in (await retriever.search("valve")).passages)


async def test_names_that_are_no_titles_are_indexed(tmp_path: Path, docs: Path, embedder: HashEmbedder) -> None:
    odd = docs / "a\nb 'c' %_\\ \U0001f600.md"
    odd.write_text("odd names are names\n")
    async with opened(tmp_path, embedder) as retriever:
        await retriever.add(docs)
        odd.replace(docs / "d\ne.md")
        await retriever.sync()
        assert names(await retriever.search("odd names"))[0] == "d\ne.md"


async def test_a_folder_is_private_before_it_can_be_read_even_if_it_cannot_be_indexed(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    embedder.identity = None
    async with opened(tmp_path, embedder) as retriever:
        with pytest.raises(RolecallError):
            await retriever.add(docs, private=True)
    access = AllowedFolders(Home(tmp_path / "home"), user_home=tmp_path)
    assert docs in access.list() and access.is_private(docs / "any.md")


async def test_a_kill_while_another_embedders_index_is_begun_loses_no_folder(
    tmp_path: Path, docs: Path, embedder: HashEmbedder
) -> None:
    async with opened(tmp_path, embedder) as retriever:
        await retriever.add(docs, "one")
        await retriever.add(docs, "two")
    await Database(Home(tmp_path / "home").index).create("hash-2", embedder.dimensions)  # and no folder listed in it
    embedder.identity = "hash-2"
    async with opened(tmp_path, embedder) as retriever:
        await retriever.add(docs, "one")
        assert [each.collection for each in await retriever.collections()] == ["one", "two"]
        assert (await retriever.search("docs", "two")).index.pending == 0
