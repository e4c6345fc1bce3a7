"""What an index's table holds: a row for each indexed folder, for each file, for each chunk, and for the text extracted
from a converted file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .chunks import Chunk
from .sources import Source
from .words import split_identifiers, stem_words

if TYPE_CHECKING:
    import pyarrow as pa

Vectors = npt.NDArray[np.float32]
Key = tuple[str, str]
"""A collection and one of its folders."""


@dataclass(frozen=True, slots=True)
class FileState(Source):
    """A file as it was indexed; `code` and `reason` say why it failed, empty where it did not. `extracted_sha256` is
    that of the text whose bytes the spans count, where it was extracted from the file."""

    collection: str
    root: str
    sha256: str = ""
    extracted_sha256: str = ""
    chunks: int = 0
    code: str = ""
    reason: str = ""

    @property
    def doc(self) -> str:
        return hashlib.sha256("\0".join((self.collection, self.root, self.path)).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Document:
    """A file's next state: `chunks` None keeps the stored ones; `vectors` of shape (chunks, dimensions); `extracted` is
    the text of a converted file."""

    file: FileState
    chunks: Sequence[Chunk] | None = ()
    vectors: Vectors | None = None
    extracted: str | None = None


@dataclass(frozen=True, slots=True)
class Root:
    """An indexed folder: the epoch second of its last finished sync, None before the first."""

    synced_at: float | None = None
    private: bool = False


@dataclass(slots=True)
class Hit:
    """A chunk that a leg found, by its BM25 or by its cosine with the question; the other one may follow."""

    id: str
    doc: str
    chunk: Chunk
    bm25: float = 0.0
    cosine: float = 0.0


SPAN_COLUMNS = ("start_byte", "end_byte", "start_line", "end_line", "text", "heading", "place")
FILE_COLUMNS = tuple(field.name for field in fields(FileState))


def schema_for(dimensions: int, embedder: str) -> pa.Schema:
    import pyarrow as pa

    # Without this mark, concurrent merges of one id leave duplicates and no error.
    key = pa.field("id", pa.string(), nullable=False, metadata={"lance-schema:unenforced-primary-key": "true"})
    numbers = {field.name for field in fields(FileState) if field.type == "int"} | set(SPAN_COLUMNS[:4])
    names = ("doc", "what", *FILE_COLUMNS, *SPAN_COLUMNS, "search_text", "extracted")
    plain = [pa.field(name, pa.int64() if name in numbers else pa.string()) for name in names]
    root = [pa.field("synced_at", pa.float64()), pa.field("private", pa.bool_())]
    vector = pa.field("vector", pa.list_(pa.float32(), dimensions))
    return pa.schema([key, *plain, *root, vector], metadata={"embedder": embedder})


def roots_as_arrow(roots: Mapping[Key, Root], schema: pa.Schema) -> pa.Table:
    rows = [
        {"id": f"root:{collection}\0{folder}", "doc": "", "what": "root", "collection": collection, "root": folder,
         **asdict(root)}
        for (collection, folder), root in roots.items()
    ]  # fmt: skip
    return _as_arrow(rows, [], schema)


def chunk_of(row: Mapping[str, Any]) -> Chunk:
    """A chunk as it was stored, with its header where the row has `search_text`."""
    chunk = Chunk(**{key: row[key] for key in SPAN_COLUMNS})
    if "search_text" not in row:
        return chunk
    return replace(chunk, header=row["search_text"].removesuffix(_search_text(chunk)))


def documents_as_arrow(documents: Sequence[Document], schema: pa.Schema) -> pa.Table:
    rows = [row for document in documents for row in _rows(document)]
    vectors = [document.vectors for document in documents if document.chunks and document.vectors is not None]
    return _as_arrow(rows, vectors, schema)


def _as_arrow(rows: list[dict[str, Any]], vectors: Sequence[Vectors], schema: pa.Schema) -> pa.Table:
    """Rows as a table; `vectors` are those of its chunks, in their order."""
    import pyarrow as pa

    plain = pa.Table.from_pylist(rows, schema=schema.remove(schema.get_field_index("vector")))
    is_chunk = np.array([row["what"] == "chunk" for row in rows])
    dense = np.zeros((len(rows), schema.field("vector").type.list_size), dtype=np.float32)
    if vectors:
        dense[is_chunk] = np.concatenate(vectors)
    flat = pa.array(dense.ravel())
    column = pa.FixedSizeListArray.from_arrays(flat, dense.shape[1], mask=pa.array(~is_chunk))
    return plain.append_column(schema.field("vector"), column).select(schema.names)


def _rows(document: Document) -> Iterator[dict[str, Any]]:
    file, doc = document.file, document.file.doc
    own = {"doc": doc, "collection": file.collection, "root": file.root}
    yield {"id": doc, "doc": doc, "what": "file", **{key: getattr(file, key) for key in FILE_COLUMNS}}
    if document.extracted is not None:
        yield {"id": f"{doc}:extracted", "what": "extracted", **own, "extracted": document.extracted}
    for i, chunk in enumerate(document.chunks or ()):
        span = {key: getattr(chunk, key) for key in SPAN_COLUMNS}
        search_text = f"{chunk.header}{_search_text(chunk)}"
        yield {"id": f"{doc}:{i}", "what": "chunk", **own, **span, "search_text": search_text}


def _search_text(chunk: Chunk) -> str:
    """What full text finds of a chunk, after its header."""
    return f"\n{chunk.text}\n{split_identifiers(chunk.text)} {stem_words(chunk.text)}"


def matrix(column: Any) -> Vectors:
    """A column of vectors, shape (rows, dimensions); zeros where a damaged row has none."""
    column = column.combine_chunks()
    flat: Vectors = column.fill_null([0.0] * column.type.list_size).flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)
