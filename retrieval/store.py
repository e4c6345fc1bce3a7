"""The index on disk: one LanceDB table per embedder, holding chunks and, beside them, what describes the files.

A document's old rows leave and its new ones enter in one table version, with its file row, so that a kill at any point
leaves it old or new, never half. One writer at a time: the caller's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio.to_thread
import numpy as np
import numpy.typing as npt

from .chunks import Chunk, split_identifiers
from .errors import IndexCorrupt, RetrievalError
from .sources import Source

SCHEMA = 1
FLAT_ROWS = 50_000  # exact search below; Source: measured, 93 ms at 100,000 rows flat against 10 ms with IVF_SQ
OPTIMIZE_EVERY = 100  # commits; each leaves a fragment that every search opens
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
    """The table of one embedder. `files` (by document id) and `roots` (by collection and folder, with the epoch second
    of the last finished sync, None before the first) mirror the table; only this object writes it."""

    def __init__(self, connection: Any, table: Any, embedder: str) -> None:
        self._connection, self._table, self.embedder = connection, table, embedder
        self.files: dict[str, FileState] = {}
        self.roots: dict[tuple[str, str], float | None] = {}
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
        """Every table, the oldest first.

        Raises:
            IndexCorrupt: a table cannot be read, or a newer version of Rolecall made it.
        """
        with _guard("opened"):
            return [await cls._open(connection, name) for name in (await connection.list_tables()).tables]

    @classmethod
    async def create(cls, connection: Any, embedder: str, dimensions: int) -> Store:
        name = f"chunks_v{SCHEMA}_{hashlib.sha256(embedder.encode()).hexdigest()[:12]}"
        with _guard("created"):
            await connection.create_table(name, schema=_schema(dimensions, embedder), exist_ok=True)
            return await cls._open(connection, name)

    @classmethod
    async def _open(cls, connection: Any, name: str) -> Store:
        from lancedb.index import FTS

        if not name.startswith(f"chunks_v{SCHEMA}_"):
            raise IndexCorrupt(
                "A newer version of Rolecall made this index.",
                found=name,
                allowed=f"schema {SCHEMA}",
                advice="Update Rolecall, or use another ROLECALL_HOME.",
            )
        table = await connection.open_table(name)
        if not await table.list_indices():  # new, or a kill came between the table and its index
            # ICU words for every script, then cut at delimiters, so that snake_case and dotted names match by part.
            await table.create_index("search_text", config=FTS(base_tokenizer="icu/split", with_position=True))
        store = cls(connection, table, (await table.schema()).metadata[b"embedder"].decode())
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

    async def swap(self, documents: Sequence[tuple[FileState, Sequence[Chunk], Sequence[Vectors]]]) -> None:
        """Make these files, their chunks and the chunks' vectors the stored ones, in one table version."""
        docs = [file.doc for file, _, _ in documents]
        rows = [row for document in documents for row in _rows(*document)]
        if self.files.keys().isdisjoint(docs):
            with _guard("written"):
                await self._table.add(await self._arrow(rows), on_bad_vectors="null")
        else:
            await self._merge(rows, docs)
        self._commits += 1
        self.files.update((file.doc, file) for file, _, _ in documents)

    async def restamp(self, files: Sequence[FileState]) -> None:
        """Files whose bytes are unchanged but whose times are not: their file rows only."""
        await self._merge([_file_row(file) for file in files])
        self.files.update((file.doc, file) for file in files)

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

    async def drop_root(self, collection: str, root: str) -> None:
        """Forget a folder of a collection; the table goes with its last folder."""
        with _guard("written"):
            await self._table.delete(f"collection = {_quoted([collection])} AND root = {_quoted([root])}")
            for file in self.files_in(collection, root).values():
                del self.files[file.doc]
            del self.roots[collection, root]
            if not self.roots:
                await self._connection.drop_table(self._table.name)

    async def tidy(self) -> None:
        """Compact where enough commits have gone by; may be cancelled at any point."""
        if self._commits >= OPTIMIZE_EVERY:
            await self._optimize()

    async def finish(self) -> None:
        """After a sync: compact, fold new rows into the full-text index, index vectors beyond `FLAT_ROWS`."""
        from lancedb.index import IvfSq

        await self._optimize()
        with _guard("written"):
            indexed = [index.columns for index in await self._table.list_indices()]
            if ["vector"] not in indexed and await self._table.count_rows() > FLAT_ROWS:
                await self._table.create_index("vector", config=IvfSq(distance_type="dot"))

    async def nearest(self, vector: Vectors, where: str, limit: int) -> list[Hit]:
        """The dense leg: hits by inner product with a unit vector of shape (dimensions,)."""
        query = self._table.query().nearest_to(vector).distance_type("dot").refine_factor(5)
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
        return [
            Hit(
                row["id"],
                row["doc"],
                Chunk(**{key: row[key] for key in SPAN_COLUMNS}),
                row.get("_score", 0.0),
                np.asarray(row["vector"], dtype=np.float32),
            )
            for row in rows.to_pylist()
        ]

    async def _optimize(self) -> None:
        self._commits = 0
        with _guard("compacted"):
            await self._table.optimize(cleanup_older_than=KEEP_VERSIONS)

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
    parts = ["what = 'chunk'"]
    if collection is not None:
        parts.append(f"collection = {_quoted([collection])}")
    if docs is not None:
        parts.append(f"doc IN ({_quoted(docs)})" if docs else "false")
    return " AND ".join(parts)


SPAN_COLUMNS = ("start_byte", "end_byte", "start_line", "end_line", "text")
_FILE_COLUMNS = tuple(field.name for field in fields(FileState))


def _lancedb() -> Any:
    import lancedb
    import lancedb.index
    import lancedb.query

    return lancedb


def _schema(dimensions: int, embedder: str) -> Any:
    import pyarrow as pa

    # Without this mark, concurrent merges of one id leave duplicates and no error.
    key = pa.field("id", pa.string(), nullable=False, metadata={"lance-schema:unenforced-primary-key": "true"})
    numbers = {field.name for field in fields(FileState) if field.type == "int"} | set(SPAN_COLUMNS[:-1])
    names = ("doc", "what", *_FILE_COLUMNS, *SPAN_COLUMNS, "search_text")
    return pa.schema(
        [
            key,
            *(pa.field(name, pa.int64() if name in numbers else pa.string()) for name in names),
            pa.field("synced_at", pa.float64()),
            pa.field("vector", pa.list_(pa.float32(), dimensions)),
        ],
        metadata={"embedder": embedder},
    )


def _file_row(file: FileState) -> dict[str, Any]:
    return {"id": file.doc, "doc": file.doc, "what": "file", **asdict(file)}


def _rows(file: FileState, chunks: Sequence[Chunk], vectors: Sequence[Vectors]) -> Iterator[dict[str, Any]]:
    doc = file.doc
    yield _file_row(file)
    for i, (chunk, vector) in enumerate(zip(chunks, vectors, strict=True)):
        yield {
            "id": f"{doc}:{i}",
            "doc": doc,
            "what": "chunk",
            "collection": file.collection,
            "root": file.root,
            **{key: getattr(chunk, key) for key in SPAN_COLUMNS},
            "search_text": f"{chunk.header}\n{chunk.text}\n{split_identifiers(chunk.text)}",
            "vector": vector,
        }


def _quoted(values: Sequence[str]) -> str:
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)


@contextmanager
def _guard(action: str) -> Iterator[None]:
    """LanceDB's errors, typed."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        full = "No space left" in reason or "os error 28" in reason
        kind = RetrievalError if full else IndexCorrupt
        advice = "Run `rolecall stop`, move the home's `index` folder away, and index the folders again."
        raise kind(
            f"The index could not be {action}{': the disk is full' if full else ''}.",
            found=reason,
            advice="Free disk space and try again." if full else advice,
        ) from error
