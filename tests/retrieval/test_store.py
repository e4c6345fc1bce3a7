"""The index on disk: whole documents or none, of this version or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rolecall.retrieval.chunks import Chunk
from rolecall.retrieval.errors import IndexCorrupt
from rolecall.retrieval.rows import Document, FileState, Root, Vectors
from rolecall.retrieval.store import Database, Store, where_clause

from .embedding import stored

pytestmark = pytest.mark.anyio
DIMENSIONS = 8
KEY = ("notes", "/notes")


def unit(count: int, seed: int = 0) -> Vectors:
    vectors = np.random.default_rng(seed).normal(size=(count, DIMENSIONS)).astype(np.float32)
    found: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found


def document(name: str, texts: Sequence[str], extracted: str | None = None, seed: int = 0) -> Document:
    file = FileState(f"/notes/{name}", "text", "text", 1, 1, 1, 1, *KEY, sha256=name, chunks=len(texts))
    file = replace(file, extracted_sha256="of the text" if extracted else "")
    spans = [
        Chunk(i, i + 1, i + 1, i + 1, text, str(i), f"p. {i}", f"notes/{name} > {i}") for i, text in enumerate(texts)
    ]
    return Document(file, tuple(spans), unit(len(texts), seed), extracted)


async def made(folder: Path) -> Store:
    store = await Database(folder).create("hash-1", DIMENSIONS)
    await store.save_roots({KEY: Root()})
    return store


async def test_what_was_swapped_in_is_read_back_whole(tmp_path: Path) -> None:
    store = await made(tmp_path)
    first, second = document("a", ["alpha", "beta parseUserName"], "extracted"), document("b", ["gamma"], seed=1)
    await store.swap([first, second])
    (again,) = await Database(tmp_path).stores()
    assert (again.files, again.roots, again.embedder) == (store.files, store.roots, "hash-1")
    found = await again.documents({first.file.doc, second.file.doc})
    for want in (first, second):
        got = found[want.file.doc]
        assert (got.file, got.chunks, got.extracted) == (want.file, want.chunks, want.extracted)
        assert np.array_equal(got.vectors, want.vectors)
    assert await again.extracted([first.file.doc, second.file.doc]) == {first.file.doc: b"extracted"}


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.text(max_size=9), max_size=4)), min_size=1, max_size=3),
        max_size=4,
    )
)
async def test_a_table_holds_the_last_version_of_each_document_and_a_batch_is_one_version(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[str, list[str]]]]
) -> None:
    folder = tmp_path_factory.mktemp("index")
    store, want = await made(folder), dict[str, list[str]]()
    for batch in map(dict, batches):
        before = await store.table.version()
        await store.swap([document(name, texts, "text") for name, texts in batch.items()])
        assert await store.table.version() - before == 1
        want |= batch
    files, chunks = await stored(folder)
    assert {path.removeprefix("/notes/") for path in files} == want.keys()
    for name, texts in want.items():
        own = [chunk for chunk in chunks if chunk["doc"] == document(name, texts).file.doc]
        assert [chunk["text"] for chunk in sorted(own, key=lambda row: int(row["start_byte"]))] == texts


async def test_a_touched_document_keeps_its_chunks_and_its_extracted_text(tmp_path: Path) -> None:
    store = await made(tmp_path)
    old = document("a", ["alpha"], "extracted")
    await store.swap([old])
    await store.swap([Document(replace(old.file, mtime_ns=2), None)])
    found = (await store.documents({old.file.doc}))[old.file.doc]
    assert (found.file.mtime_ns, found.chunks, found.extracted) == (2, old.chunks, "extracted")


async def test_dropped_documents_and_collections_leave_nothing(tmp_path: Path) -> None:
    store = await made(tmp_path)
    documents = [document(name, ["alpha"], "extracted") for name in "abc"]
    await store.swap(documents)
    await store.drop([documents[0].file.doc])
    hits, vectors = await store.matching("alpha", "", 9)
    assert (len(hits), len(vectors)) == (2, 2)
    await store.drop_collection("notes")
    assert (store.files, store.roots, await store.table.count_rows()) == ({}, {}, 0)


async def test_a_table_that_a_kill_left_without_its_text_index_is_completed(tmp_path: Path) -> None:
    store = await made(tmp_path)
    await store.table.drop_index("search_text_idx")
    (store,) = await Database(tmp_path).stores()
    await store.swap([document("a", ["valve"])])
    hits, _ = await store.matching("valve", where_clause("notes", None), 9)
    assert [hit.chunk.text for hit in hits] == ["valve"]


async def test_a_vector_index_is_built_above_its_size_and_again_when_the_chunks_have_doubled(tmp_path: Path) -> None:
    store = await made(tmp_path)

    async def indexes() -> list[str]:
        return sorted(index.name for index in await store.table.list_indices() if index.columns == ["vector"])

    async def grown(name: str, seed: int) -> Vectors:
        new = document(name, [str(i) for i in range(300)], seed=seed)
        await store.swap([new])
        assert new.vectors is not None
        return new.vectors

    first = await grown("a", 1)
    await store.narrow(flat_chunks=300)
    assert await indexes() == []
    await grown("b", 2)
    await store.narrow(flat_chunks=300)
    assert await indexes() == ["vector_600"]
    await grown("c", 3)
    await store.narrow(flat_chunks=300)
    assert await indexes() == ["vector_600"]
    await grown("d", 4)
    await grown("e", 5)
    await store.narrow(flat_chunks=300)
    assert await indexes() == ["vector_1500"]
    (hit, *_) = await store.nearest(first[7], "", 10)
    assert (hit.doc, hit.chunk.text) == (document("a", []).file.doc, "7")
    assert len(await store.nearest(first[7], where_clause(None, [hit.doc]), 300)) == 300, "a filter finds all the same"


async def test_an_older_index_leaves_its_folders_to_a_new_one_and_a_newer_one_is_refused(tmp_path: Path) -> None:
    names = ("id", "doc", "what", "collection", "root", "search_text")
    vector = pa.field("vector", pa.list_(pa.float32(), DIMENSIONS))
    schema = pa.schema([*(pa.field(name, pa.string()) for name in names), vector], metadata={"embedder": "hash-1"})
    roots = [{"id": f"root:{i}", "what": "root", "collection": "notes", "root": f"/notes/{i}"} for i in range(3)]
    connection = await lancedb.connect_async(str(tmp_path))
    table = await connection.create_table("chunks_v1_0123456789ab", schema=schema)
    await table.add(pa.Table.from_pylist(roots, schema=schema))

    (store,) = await Database(tmp_path).stores()
    assert store.roots == {("notes", f"/notes/{i}"): Root() for i in range(3)}
    assert (store.embedder, store.files) == ("hash-1", {})
    assert len((await connection.list_tables()).tables) == 1

    await connection.create_table("chunks_v3_0123456789ab", schema=schema)
    with pytest.raises(IndexCorrupt, match="newer version"):
        await Database(tmp_path).stores()
