"""The index on disk: one LanceDB table per embedder that holds chunks and, beside them, what describes the files.

A document's old rows leave and its new ones enter in one table version, with its file row, so that a kill at any point
leaves it old or new, never half. One writer at a time: the caller's.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from .chunks import Chunk
from .errors import IndexCorrupt, RetrievalError
from .rows import (
    FILE_COLUMNS,
    SPAN_COLUMNS,
    Document,
    FileState,
    Hit,
    Key,
    Root,
    Vectors,
    chunk_of,
    documents_as_arrow,
    matrix,
    roots_as_arrow,
    schema_for,
)
from .words import split_identifiers, stem_words

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA = 2
_PREFIX = "chunks_v"
FEW_COMMITS, MANY_COMMITS = 10, 200  # each leaves a fragment that every search opens, and text that it tokenises
TIDYING = 0.05  # of the time of writing may go into folding those in, between few and many
KEEP_VERSIONS = timedelta(hours=2)  # an open search may still read an older version
FLAT_CHUNKS = 50_000
"""Up to here every vector is looked at, above an IVF_SQ index narrows the look. Source: measured on 2 cores, 384
dimensions: flat 11 ms at 10,000 chunks and 93 ms at 100,000; IVF_SQ with refine 5, 10 ms at 100,000, recall 1.0."""
REFINE = 5
STEM_WEIGHT = 0.6
"""Of a stem beside a word. Source: measured, nDCG@10 of full text with 0, 0.5 and 1: Cranfield 0.530, 0.528, 0.511;
XQuAD English 0.962, 0.965, 0.962, German 0.908, 0.936, 0.946 (every third question)."""


class Database:
    """Where the tables are: a folder, or the URI of an object store, whose keys come from the environment."""

    def __init__(self, folder: Path, uri: str | None = None) -> None:
        self._folder, self._uri = folder, uri
        self._connection: Any = None

    async def stores(self) -> list[Store]:
        """Every index, none where nothing was ever indexed, and then LanceDB is not even imported. One of an older
        version leaves its list of folders to a new, empty one. IndexCorrupt where a table cannot be read, or a newer
        version of Rolecall made it."""
        if self._uri is None and not any(self._folder.glob("*.lance")):
            return []
        connection = await self._connected()
        with _guard("listed"):
            names = [name for name in (await connection.list_tables(limit=1_000)).tables if name.startswith(_PREFIX)]
        schemas = {name: int(name.removeprefix(_PREFIX).partition("_")[0]) for name in names}
        if max(schemas.values(), default=SCHEMA) > SCHEMA:
            message, advice = "A newer version of Rolecall made this index.", "Update it, or use another ROLECALL_HOME."
            raise IndexCorrupt(message, found=max(names), allowed=f"schema {SCHEMA}", advice=advice)
        current = {await self._succeeded(name) if schemas[name] < SCHEMA else name for name in names}
        return [await self._load(name) for name in sorted(current)]

    async def create(self, embedder: str, dimensions: int) -> Store:
        """An empty index for an embedder, or the one that is there."""
        connection, name = await self._connected(), _name(embedder)
        with _guard("created"):
            await connection.create_table(name, schema=schema_for(dimensions, embedder), exist_ok=True)
        return await self._load(name)

    async def drop(self, store: Store) -> None:
        with _guard("replaced"):
            await (await self._connected()).drop_table(store.table.name)

    async def _succeeded(self, name: str) -> str:
        """Replace a table of an older version by an empty one of the same embedder with the same folders; its name."""
        connection = await self._connected()
        with _guard("opened"):
            old = await connection.open_table(name)
            schema = await old.schema()
            rows = await old.query().where("what = 'root'").select(["collection", "root"]).to_arrow()
        store = await self.create(schema.metadata[b"embedder"].decode(), schema.field("vector").type.list_size)
        await store.save_roots({(row["collection"], row["root"]): Root() for row in rows.to_pylist()})
        with _guard("replaced"):
            await connection.drop_table(name)
        return str(store.table.name)

    async def _load(self, name: str) -> Store:
        with _guard("opened"):
            table = await (await self._connected()).open_table(name)
            store = Store(table, (await table.schema()).metadata[b"embedder"].decode())
        await store.load()
        return store

    async def _connected(self) -> Any:
        if self._connection is None:
            lancedb = await anyio.to_thread.run_sync(import_module, "lancedb")  # about 3 s
            with _guard("opened"):
                if self._uri is None:
                    self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._connection = await lancedb.connect_async(self._uri or str(self._folder))
        return self._connection


class Store:
    """The index of one embedder. `files` (by document id) and `roots` mirror the table, which only this object writes;
    `revision` goes up with every write."""

    def __init__(self, table: Any, embedder: str) -> None:
        self.table, self.embedder = table, embedder
        self.files: dict[str, FileState] = {}
        self.roots: dict[Key, Root] = {}
        self.revision = 0
        self._commits, self._tidy_at = 0, 0.0

    async def load(self) -> None:
        from lancedb.index import FTS

        with _guard("opened"):
            if not await self.table.list_indices():  # new, or a kill came between the table and its index
                # ICU words for every script, then cut at delimiters: snake_case and dotted names match by part.
                await self.table.create_index("search_text", config=FTS(base_tokenizer="icu/split"))
            columns = ["what", "synced_at", "private", *FILE_COLUMNS]
            rows = await self.table.query().where("what IN ('file', 'root')").select(columns).to_arrow()
        for row in rows.to_pylist():
            if row["what"] == "root":
                self.roots[row["collection"], row["root"]] = Root(row["synced_at"], bool(row["private"]))
            else:
                file = FileState(**{key: row[key] for key in FILE_COLUMNS})
                self.files[file.doc] = file

    @property
    def private(self) -> frozenset[str]:
        """The collections whose passages stay on this machine."""
        return frozenset(collection for (collection, _), root in self.roots.items() if root.private)

    @property
    def collections(self) -> tuple[str, ...]:
        return tuple(sorted({collection for collection, _ in self.roots}))

    @property
    def chunks(self) -> int:
        return sum(file.chunks for file in self.files.values())

    def files_in(self, collection: str, root: str) -> dict[str, FileState]:
        """By path."""
        return {file.path: file for file in self.files.values() if (file.collection, file.root) == (collection, root)}

    async def swap(self, documents: Sequence[Document]) -> None:
        """Make these the stored ones, in one table version."""
        known = [document for document in documents if document.file.doc in self.files]
        data = await anyio.to_thread.run_sync(documents_as_arrow, documents, await self.table.schema())
        if known:
            await self._merge(data, [document.file.doc for document in known if document.chunks is not None])
        else:
            with _guard("written"):
                await self.table.add(data)
            self._wrote()
        self.files.update((document.file.doc, document.file) for document in documents)
        await self._tidy()

    async def save_roots(self, roots: Mapping[Key, Root]) -> None:
        if roots:
            await self._merge(roots_as_arrow(roots, await self.table.schema()))
            self.roots.update(roots)
            await self._tidy()

    async def drop(self, docs: Sequence[str]) -> None:
        with _guard("written"):
            for start in range(0, len(docs), 1_000):
                await self.table.delete(f"doc IN ({_quoted(docs[start : start + 1_000])})")
        for doc in docs:
            del self.files[doc]
        if docs:
            self._wrote()

    async def drop_collection(self, collection: str) -> None:
        with _guard("written"):
            await self.table.delete(f"collection = {_quoted([collection])}")
        self.files = {doc: file for doc, file in self.files.items() if file.collection != collection}
        self.roots = {key: root for key, root in self.roots.items() if key[0] != collection}
        self._wrote()
        await self.optimize()

    async def optimize(self) -> None:
        """Compact, and fold new rows into the indexes."""
        started, self._commits = time.monotonic(), 0
        with _guard("compacted"):
            await self.table.optimize(cleanup_older_than=KEEP_VERSIONS)
        ended = time.monotonic()
        self._tidy_at = ended + (ended - started) / TIDYING

    async def narrow(self, flat_chunks: int = FLAT_CHUNKS) -> None:
        """Build the vector index where there are more chunks, anew once they have doubled. Searches go on."""
        chunks = self.chunks
        if chunks <= flat_chunks:
            return
        from lancedb.index import IvfSq

        with _guard("indexed"):
            built = [index.name for index in await self.table.list_indices() if index.columns == ["vector"]]
            if chunks > 2 * max((int(name.rpartition("_")[2]) for name in built), default=0):
                config = IvfSq(distance_type="dot", num_partitions=round(chunks**0.5))
                await self.table.create_index("vector", config=config, name=f"vector_{chunks}")
                for name in built:
                    await self.table.drop_index(name)

    async def nearest(self, vector: Vectors, where: str, limit: int) -> list[Hit]:
        """The dense leg: hits by inner product with a unit vector of shape (dimensions,)."""
        rows = await self._found(vector_query(self.table, vector), where, limit, "_distance")
        cosines = (1 - rows["_distance"].to_numpy()).tolist()
        return [Hit(*one, cosine=cosine) for one, cosine in zip(_chunks(rows), cosines, strict=True)]

    async def matching(self, query: str, where: str, limit: int) -> tuple[list[Hit], Vectors]:
        """The text leg: hits by BM25 over header, text, parts of identifiers and stems; and their vectors."""
        rows = await self._found(
            self.table.query().nearest_to_text(text_query(query)), where, limit, "_score", "vector"
        )
        scores = rows["_score"].to_pylist()
        return [Hit(*one, bm25=score) for one, score in zip(_chunks(rows), scores, strict=True)], matrix(rows["vector"])

    async def extracted(self, docs: Collection[str]) -> dict[str, bytes]:
        """The text, as UTF-8, that the spans of converted documents count; by document."""
        if not docs:
            return {}
        where = f"what = 'extracted' AND doc IN ({_quoted(docs)})"
        with _guard("read"):
            rows = await self.table.query().where(where).select(["doc", "extracted"]).to_arrow()
        return {row["doc"]: row["extracted"].encode() for row in rows.to_pylist()}

    async def documents(self, docs: Collection[str]) -> dict[str, Document]:
        """Stored documents with their chunks, headers and vectors, so that their like need not be embedded again."""
        if not docs:
            return {}
        columns = ["doc", *SPAN_COLUMNS, "search_text", "vector"]
        files = {doc: self.files[doc] for doc in docs}
        with _guard("read"):
            where = f"what = 'chunk' AND doc IN ({_quoted(docs)})"
            rows = await self.table.query().where(where).select(columns).to_arrow()
        rows = rows.sort_by([("doc", "ascending"), ("start_byte", "ascending")])
        extracted = await self.extracted([doc for doc, file in files.items() if file.extracted_sha256])
        vectors = matrix(rows["vector"])
        found = {}
        for doc, numbered in groupby(enumerate(rows.drop_columns("vector").to_pylist()), lambda pair: pair[1]["doc"]):
            pairs = list(numbered)
            text = extracted[doc].decode() if doc in extracted else None
            own = vectors[pairs[0][0] : pairs[-1][0] + 1]
            found[doc] = Document(files[doc], tuple(chunk_of(row) for _, row in pairs), own, text)
        return found

    async def _found(self, query: Any, where: str, limit: int, *beside: str) -> pa.Table:
        with _guard("searched"):
            narrowed = query.where(where) if where else query
            return await narrowed.select(["id", *SPAN_COLUMNS, *beside]).limit(limit).to_arrow()

    async def _merge(self, data: pa.Table, replaced: Sequence[str] = ()) -> None:
        """Upsert; of the `replaced` documents no other row stays."""
        merge = self.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        if replaced:
            merge = merge.when_not_matched_by_source_delete(f"doc IN ({_quoted(replaced)})")
        with _guard("written"):
            # File rows have no vector; LanceDB takes that for a bad one unless told.
            await merge.execute(data, on_bad_vectors="null")
        self._wrote()

    async def _tidy(self) -> None:
        due = self._commits >= FEW_COMMITS and time.monotonic() >= self._tidy_at
        if due or self._commits >= MANY_COMMITS:
            await self.optimize()

    def _wrote(self) -> None:
        self.revision += 1
        self._commits += 1


def vector_query(table: Any, vector: Vectors) -> Any:
    """What the dense leg asks LanceDB for, through every partition of an index: of the 100 nearest of 20,000 sentences
    (all-MiniLM-L6-v2) LanceDB's own 20 of 141 partitions hold 0.86, half of them 0.98."""
    return table.query().nearest_to(vector).distance_type("dot").refine_factor(REFINE).maximum_nprobes(0)


def text_query(query: str) -> Any:
    """What the text leg asks LanceDB for."""
    from lancedb.query import BooleanQuery, MatchQuery, Occur

    match = MatchQuery(f"{query} {split_identifiers(query)}", "search_text")
    if not (found := stem_words(query)):
        return match
    stems = MatchQuery(found, "search_text", boost=STEM_WEIGHT)
    return BooleanQuery([(Occur.SHOULD, match), (Occur.SHOULD, stems)])


def _chunks(rows: pa.Table) -> Iterator[tuple[str, str, Chunk]]:
    """Ids of chunks, of their documents, and chunks."""
    ids, *spans = (rows[name].to_pylist() for name in ("id", *SPAN_COLUMNS))
    for key, *span in zip(ids, *spans, strict=True):
        yield key, key.rpartition(":")[0], Chunk(*span)


def where_clause(collection: str | None, docs: Sequence[str] | None) -> str:
    """A filter over chunks, which alone have vectors and full text: one collection or all, and only these documents
    where given."""
    one = [f"collection = {_quoted([collection])}"] if collection is not None else []
    some = [f"doc IN ({_quoted(docs or [''])})"] if docs is not None else []
    return " AND ".join(one + some)


def _name(embedder: str) -> str:
    return f"{_PREFIX}{SCHEMA}_{hashlib.sha256(embedder.encode()).hexdigest()[:12]}"


def _quoted(values: Iterable[str]) -> str:
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)


@contextmanager
def _guard(action: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        message = f"The index could not be {action}."
        if "No space left" in reason or "os error 28" in reason:
            raise RetrievalError(message, found="the disk is full", advice="Free disk space and try again.") from error
        if re.search(r'Generic (\{ store: ")?(S3|GCS|MicrosoftAzure)\b', reason):
            advice = "Check `retrieval.uri`, and the endpoint and keys in the environment or ROLECALL_HOME/env."
            raise RetrievalError(message, found=reason, advice=advice) from error
        advice = "Run `rolecall stop`, move the home's `index` folder away, and index the folders again."
        raise IndexCorrupt(message, found=reason, advice=advice) from error
