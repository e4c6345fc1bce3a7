"""The index on disk: one LanceDB table per embedder, holding chunks and, beside them, what describes the files.

A document's old rows leave and its new ones enter in one table version, with its file row, so that a kill at any point
leaves it old or new, never half. One writer at a time: the caller's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import numpy.typing as npt

from .chunks import Chunk, split_identifiers
from .errors import IndexCorrupt, RetrievalError
from .sources import Stamp

SCHEMA = 1
_PREFIX = f"chunks_v{SCHEMA}_"
FLAT_ROWS = 50_000  # exact search below; Source: measured, 93 ms at 100,000 rows flat against 10 ms with IVF_SQ
OPTIMIZE_EVERY = 100  # commits; each leaves a fragment that every search opens
KEEP_VERSIONS = timedelta(hours=2)  # an open search may still read an older version

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FileState:
    """A file as it was indexed; `code` and `reason` say why it failed, empty where it did not."""

    collection: str
    root: str
    path: str
    kind: str
    language: str
    stamp: Stamp
    sha256: str = ""
    chunks: int = 0
    code: str = ""
    reason: str = ""

    @property
    def doc(self) -> str:
        return hashlib.sha256("\0".join((self.collection, self.root, self.path)).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class RootState:
    """A folder of a collection; `synced_at` is the epoch second of the last finished sync, None before the first."""

    collection: str
    root: str
    synced_at: float | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """One file's next state with its chunks; `vectors` has shape (len(chunks), dimensions)."""

    file: FileState
    chunks: tuple[Chunk, ...]
    vectors: Vectors


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that a leg found; `score` is the leg's own, `vector` of shape (dimensions,)."""

    id: str
    doc: str
    chunk: Chunk
    score: float
    vector: Vectors


class Store:
    """The table of one embedder. `files` and `roots` mirror the table; only this object writes it."""

    def __init__(self, connection: Any, table: Any, embedder: str) -> None:
        self._connection, self._table, self.embedder = connection, table, embedder
        self.files: dict[str, FileState] = {}
        self.roots: dict[tuple[str, str], RootState] = {}
        self._commits = 0

    @staticmethod
    async def connect(folder: Path) -> Any:
        """A LanceDB connection; the import (about 3 s) runs in a thread."""
        lancedb = await anyio.to_thread.run_sync(_lancedb)
        with _guard("opened"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return await lancedb.connect_async(str(folder))

    @classmethod
    async def open_all(cls, connection: Any) -> list[Store]:
        """Every table of this schema, the oldest first.

        Raises:
            IndexCorrupt: a table cannot be read, or a newer version of Rolecall made it.
        """
        stores = []
        with _guard("opened"):
            for name in (await connection.list_tables()).tables:
                version = name.removeprefix("chunks_v").split("_")[0]
                if version.isdigit() and int(version) > SCHEMA:
                    raise IndexCorrupt(
                        "A newer version of Rolecall made this index.",
                        found=f"schema {version}",
                        allowed=f"schema {SCHEMA}",
                        advice="Update Rolecall, or use another ROLECALL_HOME.",
                    )
                if name.startswith(_PREFIX):
                    table = await connection.open_table(name)
                    await _ensure_text_index(table)
                    metadata = (await table.schema()).metadata or {}
                    store = cls(connection, table, metadata.get(b"embedder", b"").decode())
                    await store._load()
                    stores.append(store)
        return stores

    @classmethod
    async def create(cls, connection: Any, embedder: str, dimensions: int) -> Store:
        name = _PREFIX + hashlib.sha256(embedder.encode()).hexdigest()[:12]
        with _guard("created"):
            table = await connection.create_table(name, schema=_schema(dimensions, embedder), exist_ok=True)
            await _ensure_text_index(table)
        return cls(connection, table, embedder)

    async def _load(self) -> None:
        rows = await self._table.query().where("what != 'chunk'").select(_STATE_COLUMNS).to_arrow()
        for row in rows.to_pylist():
            if row["what"] == "root":
                root = RootState(row["collection"], row["root"], row["synced_at"])
                self.roots[root.collection, root.root] = root
            else:
                stamp = Stamp(**{key: row[key] for key in _STAMP_COLUMNS})
                plain = {key: row[key] for key in _FILE_COLUMNS}
                file = FileState(**plain, stamp=stamp)
                self.files[file.doc] = file

    async def swap(self, documents: Sequence[Document]) -> None:
        """Make these documents the stored ones, in one table version."""
        rows = [row for document in documents for row in _rows(document)]
        docs = [document.file.doc for document in documents]
        with _guard("written"):
            if self.files.keys().isdisjoint(docs):
                await self._table.add(_table(rows, await self._table.schema()), on_bad_vectors="null")
            else:
                await self._merge(rows, f"doc IN ({_quoted(docs)})")
        self._commits += 1
        self.files.update((document.file.doc, document.file) for document in documents)

    async def tidy(self) -> None:
        """Compact where enough commits have gone by; may be cancelled at any point."""
        if self._commits >= OPTIMIZE_EVERY:
            self._commits = 0
            with _guard("compacted"):
                await self._table.optimize(cleanup_older_than=KEEP_VERSIONS)

    async def restamp(self, files: Sequence[FileState]) -> None:
        """Files whose bytes are unchanged but whose times are not: their file rows only."""
        with _guard("written"):
            await self._merge([_file_row(file) for file in files], None)
        self.files.update((file.doc, file) for file in files)

    async def save_root(self, root: RootState) -> None:
        row = {"id": f"root:{root.collection}\0{root.root}", "doc": "", "what": "root", "collection": root.collection}
        with _guard("written"):
            await self._merge([{**row, "root": root.root, "synced_at": root.synced_at}], None)
        self.roots[root.collection, root.root] = root

    async def drop(self, docs: Sequence[str]) -> None:
        with _guard("written"):
            for start in range(0, len(docs), 1_000):
                await self._table.delete(f"doc IN ({_quoted(docs[start : start + 1_000])})")
        for doc in docs:
            self.files.pop(doc, None)

    async def drop_collection(self, collection: str, root: str | None = None) -> None:
        """Forget a collection, or one folder of it; the table goes with its last folder."""
        where = f"collection = {_quoted([collection])}" + (f" AND root = {_quoted([root])}" if root else "")
        with _guard("written"):
            await self._table.delete(where)
        self.files = {
            doc: file
            for doc, file in self.files.items()
            if file.collection != collection or (root and file.root != root)
        }
        self.roots = {
            key: state for key, state in self.roots.items() if key[0] != collection or (root and key[1] != root)
        }

    async def destroy(self) -> None:
        with _guard("written"):
            await self._connection.drop_table(self._table.name)

    async def finish(self) -> None:
        """After a sync: compact, fold new rows into the full-text index, index vectors beyond `FLAT_ROWS`."""
        from lancedb.index import IvfSq

        with _guard("written"):
            await self._table.optimize(cleanup_older_than=KEEP_VERSIONS)
            if await self._table.count_rows() > FLAT_ROWS:
                columns = [index.columns for index in await self._table.list_indices()]
                if ["vector"] not in columns:
                    await self._table.create_index("vector", config=IvfSq(distance_type="dot"))

    async def nearest(self, vector: Vectors, where: str, limit: int) -> list[Hit]:
        """The dense leg: hits by inner product with a unit vector of shape (dimensions,)."""
        query = self._table.query().nearest_to(vector).distance_type("dot").refine_factor(5)
        with _guard("searched"):
            rows = await query.where(where).select([*_HIT_COLUMNS, "_distance"]).limit(limit).to_arrow()
        return [_hit(row, 1.0 - row["_distance"]) for row in rows.to_pylist()]

    async def matching(self, query: str, where: str, limit: int) -> list[Hit]:
        """The text leg: hits by BM25 over header, text and split identifiers."""
        from lancedb.query import MatchQuery

        match = MatchQuery(f"{query} {split_identifiers(query)}", "search_text")
        found = self._table.query().nearest_to_text(match)
        with _guard("searched"):
            rows = await found.where(where).select([*_HIT_COLUMNS, "_score"]).limit(limit).to_arrow()
        return [_hit(row, row["_score"]) for row in rows.to_pylist()]

    async def _merge(self, rows: list[dict[str, Any]], delete_where: str | None) -> None:
        merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        if delete_where:
            merge = merge.when_not_matched_by_source_delete(delete_where)
        # File rows have no vector; LanceDB takes that for a bad one unless told.
        await merge.execute(_table(rows, await self._table.schema()), on_bad_vectors="null")


def where_clause(collection: str | None, docs: Sequence[str] | None) -> str:
    """A filter over chunks: one collection or all, and only these documents where given."""
    parts = ["what = 'chunk'"]
    if collection is not None:
        parts.append(f"collection = {_quoted([collection])}")
    if docs is not None:
        parts.append(f"doc IN ({_quoted(docs)})" if docs else "false")
    return " AND ".join(parts)


_FILE_COLUMNS = ("collection", "root", "path", "kind", "language", "sha256", "chunks", "code", "reason")
_STAMP_COLUMNS = ("size_bytes", "mtime_ns", "ctime_ns", "inode")
_STATE_COLUMNS = ["what", *_FILE_COLUMNS, *_STAMP_COLUMNS, "synced_at"]
_SPAN_COLUMNS = ("start_byte", "end_byte", "start_line", "end_line", "text")
_HIT_COLUMNS = ["id", "doc", *_SPAN_COLUMNS, "vector"]


def _lancedb() -> Any:
    import lancedb
    import lancedb.index
    import lancedb.query

    return lancedb


async def _ensure_text_index(table: Any) -> None:
    """The full-text index, also where a kill came between the table and it."""
    from lancedb.index import FTS

    if not await table.list_indices():
        # ICU words for every script, then cut at delimiters, so that snake_case and dotted names match by part.
        await table.create_index("search_text", config=FTS(base_tokenizer="icu/split", with_position=True))


def _schema(dimensions: int, embedder: str) -> Any:
    import pyarrow as pa

    # Without this mark, concurrent merges of one id leave duplicates and no error.
    key = pa.field("id", pa.string(), nullable=False, metadata={"lance-schema:unenforced-primary-key": "true"})
    strings = ("doc", "what", "collection", "root", "path", "kind", "language", "sha256", "code", "reason")
    numbers = ("chunks", *_STAMP_COLUMNS, "start_byte", "end_byte", "start_line", "end_line")
    fields = [
        key,
        *(pa.field(name, pa.string()) for name in strings),
        *(pa.field(name, pa.int64()) for name in numbers),
        pa.field("synced_at", pa.float64()),
        pa.field("text", pa.string()),
        pa.field("search_text", pa.string()),
        pa.field("vector", pa.list_(pa.float32(), dimensions)),
    ]
    return pa.schema(fields, metadata={"embedder": embedder})


def _table(rows: list[dict[str, Any]], schema: Any) -> Any:
    import pyarrow as pa

    return pa.Table.from_pylist(rows, schema=schema)


def _file_row(file: FileState) -> dict[str, Any]:
    plain = {key: getattr(file, key) for key in _FILE_COLUMNS}
    stamp = {key: getattr(file.stamp, key) for key in _STAMP_COLUMNS}
    return {"id": file.doc, "doc": file.doc, "what": "file", **plain, **stamp}


def _rows(document: Document) -> Iterator[dict[str, Any]]:
    file = document.file
    yield _file_row(file)
    for i, (chunk, vector) in enumerate(zip(document.chunks, document.vectors, strict=True)):
        yield {
            "id": f"{file.doc}:{i}",
            "doc": file.doc,
            "what": "chunk",
            "collection": file.collection,
            "root": file.root,
            **{key: getattr(chunk, key) for key in _SPAN_COLUMNS},
            "search_text": f"{chunk.header}\n{chunk.text}\n{split_identifiers(chunk.text)}",
            "vector": vector,
        }


def _hit(row: dict[str, Any], score: float) -> Hit:
    chunk = Chunk(**{key: row[key] for key in _SPAN_COLUMNS}, header="")
    return Hit(row["id"], row["doc"], chunk, score, np.asarray(row["vector"], dtype=np.float32))


def _quoted(values: Sequence[str]) -> str:
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)


@contextmanager
def _guard(action: str) -> Iterator[None]:
    """LanceDB's errors, typed."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        if "No space left" in reason or "os error 28" in reason:
            raise RetrievalError(
                f"The index could not be {action}: the disk is full.",
                found=reason,
                advice="Free disk space and try again.",
            ) from error
        raise IndexCorrupt(
            f"The index could not be {action}.",
            found=reason,
            advice="Run `rolecall stop`, move the home's `index` folder away, and index the folders again.",
        ) from error
