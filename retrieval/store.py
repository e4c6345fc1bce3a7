"""The index on disk: one LanceDB table that holds chunks and, beside them, what describes the files; and its ranking.

A document's old rows leave and its new ones enter in one table version, with its file row, so that a kill at any point
leaves it old or new, never half. One writer at a time: the caller's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import anyio.to_thread
import numpy as np
import numpy.typing as npt

from .chunks import Chunk, split_identifiers
from .errors import IndexCorrupt, RetrievalError
from .sources import Source

SCHEMA = 1
_PREFIX = f"chunks_v{SCHEMA}_"
OPTIMIZE_EVERY = 100  # commits; each leaves a fragment that every search opens
TEXT_WEIGHT = 0.5
"""Source: measured by leave-one-set-out on Cranfield and XQuAD (English, German) with all-MiniLM-L6-v2: with exact
cosines for the text leg's hits, 0.5 was not below the better leg on any set, where min-max fusion at 0.5 was."""
KEEP_VERSIONS = timedelta(hours=2)  # an open search may still read an older version

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FileState(Source):
    """A file as it was indexed; `code` and `reason` say why it failed, empty where it did not."""

    collection: str
    root: str
    sha256: str = ""
    chunks: int = 0
    code: str = ""
    reason: str = ""

    @property
    def doc(self) -> str:
        return hashlib.sha256("\0".join((self.collection, self.root, self.path)).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that a leg found; `score` is its BM25, 0 in the dense leg, `vector` of shape (dimensions,)."""

    id: str
    doc: str
    chunk: Chunk
    score: float
    vector: Vectors


class Store:
    """The index of one embedder. `files` (by document id) and `roots` (by collection and folder, with the epoch second
    of its last finished sync, None before the first) mirror the table; only this object writes it."""

    def __init__(self, table: Any, embedder: str) -> None:
        self._table, self.embedder = table, embedder
        self.files: dict[str, FileState] = {}
        self.roots: dict[tuple[str, str], float | None] = {}
        self._commits = 0

    @classmethod
    async def open(cls, folder: Path) -> Store | None:
        """The index in a folder, None where there is none yet, and then LanceDB is not even imported. IndexCorrupt
        where it cannot be read, or a newer version of Rolecall made it."""
        names = sorted(table.stem for table in folder.glob("*.lance"))
        return await cls._load(folder, names[-1]) if names else None

    @classmethod
    async def create(cls, folder: Path, embedder: str, dimensions: int, old: Store | None = None) -> Store:
        """An index for another embedder; `old` goes, its folders stay listed as not yet synced."""
        name = f"{_PREFIX}{hashlib.sha256(embedder.encode()).hexdigest()[:12]}"
        connection = await _connect(folder)
        with _guard("created"):
            await connection.create_table(name, schema=_schema(dimensions, embedder), exist_ok=True)
        store = await cls._load(folder, name)
        if old is not None:
            for collection, root in old.roots:
                await store.save_root(collection, root, None)
            with _guard("replaced"):
                await connection.drop_table(old._table.name)
        return store

    @classmethod
    async def _load(cls, folder: Path, name: str) -> Store:
        if not name.startswith(_PREFIX):
            message, advice = "A newer version of Rolecall made this index.", "Update it, or use another ROLECALL_HOME."
            raise IndexCorrupt(message, found=name, allowed=f"schema {SCHEMA}", advice=advice)
        connection = await _connect(folder)
        from lancedb.index import FTS

        with _guard("opened"):
            table = await connection.open_table(name)
            if not await table.list_indices():  # new, or a kill came between the table and its index
                # ICU words for every script, then cut at delimiters: snake_case and dotted names match by part.
                await table.create_index("search_text", config=FTS(base_tokenizer="icu/split", with_position=True))
            store = cls(table, (await table.schema()).metadata[b"embedder"].decode())
            rows = await table.query().where("what != 'chunk'").select(["what", "synced_at", *_FILE_COLUMNS]).to_arrow()
        for row in rows.to_pylist():
            if row["what"] == "root":
                store.roots[row["collection"], row["root"]] = row["synced_at"]
            else:
                file = FileState(**{key: row[key] for key in _FILE_COLUMNS})
                store.files[file.doc] = file
        return store

    def files_in(self, collection: str, root: str) -> dict[str, FileState]:
        """By path."""
        return {file.path: file for file in self.files.values() if (file.collection, file.root) == (collection, root)}

    async def swap(self, documents: Sequence[tuple[FileState, Sequence[Chunk] | None, Sequence[Vectors]]]) -> None:
        """Make these files, their chunks and the chunks' vectors the stored ones, in one table version; chunks None
        keep the stored ones."""
        rows = [row for document in documents for row in _rows(*document)]
        known = {file.doc: chunks for file, chunks, _ in documents if file.doc in self.files}
        if known:
            await self._merge(rows, [doc for doc, chunks in known.items() if chunks is not None])
        else:
            with _guard("written"):
                await self._table.add(await self._arrow(rows), on_bad_vectors="null")
        self.files.update((file.doc, file) for file, _, _ in documents)
        self._commits += 1
        if self._commits >= OPTIMIZE_EVERY:
            await self.optimize()

    async def save_root(self, collection: str, root: str, synced_at: float | None) -> None:
        row = {"id": f"root:{collection}\0{root}", "doc": "", "what": "root", "collection": collection, "root": root}
        await self._merge([{**row, "synced_at": synced_at}])
        self.roots[collection, root] = synced_at

    async def drop(self, docs: Sequence[str]) -> None:
        with _guard("written"):
            for start in range(0, len(docs), 1_000):
                await self._table.delete(f"doc IN ({_quoted(docs[start : start + 1_000])})")
        for doc in docs:
            del self.files[doc]

    async def drop_collection(self, collection: str) -> None:
        with _guard("written"):
            await self._table.delete(f"collection = {_quoted([collection])}")
        self.files = {doc: file for doc, file in self.files.items() if file.collection != collection}
        self.roots = {key: at for key, at in self.roots.items() if key[0] != collection}

    async def optimize(self) -> None:
        """Compact, and fold new rows into the full-text index."""
        self._commits = 0
        with _guard("compacted"):
            await self._table.optimize(cleanup_older_than=KEEP_VERSIONS)

    async def nearest(self, vector: Vectors, where: str, limit: int) -> list[Hit]:
        """The dense leg: hits by inner product with a unit vector of shape (dimensions,). Every vector is looked at;
        Source: measured, 11 ms at 10,000 chunks and 93 ms at 100,000 on 2 cores."""
        query = self._table.query().nearest_to(vector).distance_type("dot")
        return await self._hits(query, where, limit, "_distance")

    async def matching(self, query: str, where: str, limit: int) -> list[Hit]:
        """The text leg: hits by BM25 over header, text and split identifiers."""
        from lancedb.query import MatchQuery

        match = MatchQuery(f"{query} {split_identifiers(query)}", "search_text")
        return await self._hits(self._table.query().nearest_to_text(match), where, limit, "_score")

    async def _hits(self, query: Any, where: str, limit: int, measure: str) -> list[Hit]:
        columns = ["id", "doc", *SPAN_COLUMNS, "vector", measure]
        with _guard("searched"):
            rows = await query.where(where).select(columns).limit(limit).to_arrow()
        hits = []
        for row in rows.to_pylist():
            chunk = Chunk(**{key: row[key] for key in SPAN_COLUMNS})
            vector = np.asarray(row["vector"], dtype=np.float32)
            hits.append(Hit(row["id"], row["doc"], chunk, row.get("_score", 0.0), vector))
        return hits

    async def _merge(self, rows: list[dict[str, Any]], replaced: Sequence[str] = ()) -> None:
        """Upsert; of the `replaced` documents no other row stays."""
        merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        if replaced:
            merge = merge.when_not_matched_by_source_delete(f"doc IN ({_quoted(replaced)})")
        with _guard("written"):
            # File rows have no vector; LanceDB takes that for a bad one unless told.
            await merge.execute(await self._arrow(rows), on_bad_vectors="null")

    async def _arrow(self, rows: list[dict[str, Any]]) -> Any:
        import pyarrow as pa

        return pa.Table.from_pylist(rows, schema=await self._table.schema())


def where_clause(collection: str | None, docs: Sequence[str] | None) -> str:
    """A filter over chunks: one collection or all, and only these documents where given."""
    one = f" AND collection = {_quoted([collection])}" if collection is not None else ""
    some = f" AND doc IN ({_quoted(docs or [''])})" if docs is not None else ""
    return f"what = 'chunk'{one}{some}"


def fuse(text: Sequence[Hit], dense: Sequence[Hit], query: Vectors | None) -> list[tuple[Hit, float]]:
    """Hits of both legs with a score in [0, 1], the best first, ties by id.

    A hit's share of a leg is its BM25, or its cosine with `query` (shape (dimensions,)), over that leg's best. The
    cosine is computed for the text leg's hits too, so that a passage is not punished for missing the dense leg's cut.
    With `query` None only the text leg counts.
    """
    hits = {hit.id: hit for hit in (*text, *dense)}
    bm25 = {hit.id: hit.score for hit in text}
    best = max(bm25.values(), default=0.0)
    shares = {key: (bm25.get(key, 0.0) / best if best > 0 else 0.0) for key in hits}
    if query is not None and hits:
        cosines = {key: max(0.0, float(np.dot(query, hit.vector))) for key, hit in hits.items()}
        nearest = max(cosines.values()) or 1.0
        shares = {key: TEXT_WEIGHT * shares[key] + (1 - TEXT_WEIGHT) * cosines[key] / nearest for key in hits}
    ranked = sorted(shares.items(), key=lambda entry: (-entry[1], entry[0]))
    return [(hits[key], round(min(1.0, share), 6)) for key, share in ranked]


SPAN_COLUMNS = ("start_byte", "end_byte", "start_line", "end_line", "text")
_FILE_COLUMNS = tuple(field.name for field in fields(FileState))


async def _connect(folder: Path) -> Any:
    lancedb = await anyio.to_thread.run_sync(import_module, "lancedb")  # about 3 s
    with _guard("opened"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return await lancedb.connect_async(str(folder))


def _schema(dimensions: int, embedder: str) -> Any:
    import pyarrow as pa

    # Without this mark, concurrent merges of one id leave duplicates and no error.
    key = pa.field("id", pa.string(), nullable=False, metadata={"lance-schema:unenforced-primary-key": "true"})
    numbers = {field.name for field in fields(FileState) if field.type == "int"} | set(SPAN_COLUMNS[:-1])
    names = ("doc", "what", *_FILE_COLUMNS, *SPAN_COLUMNS, "search_text")
    plain = [pa.field(name, pa.int64() if name in numbers else pa.string()) for name in names]
    vector = pa.field("vector", pa.list_(pa.float32(), dimensions))
    return pa.schema([key, *plain, pa.field("synced_at", pa.float64()), vector], metadata={"embedder": embedder})


def _rows(file: FileState, chunks: Sequence[Chunk] | None, vectors: Sequence[Vectors]) -> Iterator[dict[str, Any]]:
    doc = file.doc
    yield {"id": doc, "doc": doc, "what": "file", **asdict(file)}
    for i, (chunk, vector) in enumerate(zip(chunks or (), vectors, strict=True)):
        place = {"id": f"{doc}:{i}", "doc": doc, "what": "chunk", "collection": file.collection, "root": file.root}
        span = {key: getattr(chunk, key) for key in SPAN_COLUMNS}
        search_text = f"{chunk.header}\n{chunk.text}\n{split_identifiers(chunk.text)}"
        yield {**place, **span, "search_text": search_text, "vector": vector}


def _quoted(values: Sequence[str]) -> str:
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
        advice = "Run `rolecall stop`, move the home's `index` folder away, and index the folders again."
        raise IndexCorrupt(message, found=reason, advice=advice) from error
