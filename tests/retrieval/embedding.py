"""A retriever over real LanceDB whose vectors cost nothing, and a look at its table that uses none of its code."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import numpy.typing as npt

from rolecall.config.errors import RolecallError
from rolecall.config.home import Home
from rolecall.config.settings import RetrievalSettings
from rolecall.retrieval.access import AllowedFolders
from rolecall.retrieval.contract import Found, Rerank
from rolecall.retrieval.retriever import LanceRetriever

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
                vectors[row, _slot(word, self.dimensions)] += 1
        unit: npt.NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    @property
    def passages(self) -> int:
        return sum(" > " in text or "\n" in text for text in self.texts)


@cache
def _slot(word: str, dimensions: int) -> int:
    return int(hashlib.sha256(word.encode()).hexdigest(), 16) % dimensions


@asynccontextmanager
async def opened(
    tmp_path: Path,
    embedder: HashEmbedder,
    on_change: Callable[[], None] = lambda: None,
    home: Path | None = None,
    rerank: Rerank | None = None,
    **settings: Any,
) -> AsyncIterator[LanceRetriever]:
    """`home` is `tmp_path / "home"` where none is named; `settings` are fields of `RetrievalSettings`."""
    at = Home(home or tmp_path / "home")
    chosen = RetrievalSettings(**{"chunk_tokens": 200, "max_file_mb": 0.1, **settings})
    access = AllowedFolders(at, user_home=tmp_path)
    retriever = LanceRetriever(
        at, chosen, embedder, lambda: embedder.identity, access, on_change=on_change, rerank=rerank
    )
    try:
        yield retriever
    finally:
        await retriever.aclose()


def names(found: Found) -> list[str]:
    """Of the passages' files, the best first."""
    return [Path(passage.path).name for passage in found.passages]


async def stored(index: str | Path) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """What the one table of an index holds: file rows by path, and all chunk rows. Fails where an id is there twice,
    or a file has not exactly the chunks that its row tells of."""
    import lancedb

    connection = await lancedb.connect_async(str(index))
    (name,) = (await connection.list_tables()).tables
    rows = (await (await connection.open_table(name)).query().to_arrow()).to_pylist()
    assert [id for id, count in Counter(row["id"] for row in rows).items() if count > 1] == []
    files = {row["doc"]: row for row in rows if row["what"] == "file"}
    chunks = [row for row in rows if row["what"] == "chunk"]
    told = {doc: row["chunks"] for doc, row in files.items() if row["chunks"]}
    assert Counter(row["doc"] for row in chunks) == told
    assert len({row["path"] for row in files.values()}) == len(files), "a file is there twice"
    return {row["path"]: row for row in files.values()}, chunks


def assert_whole(
    files: Mapping[str, Mapping[str, Any]], chunks: Sequence[Mapping[str, Any]], versions: Mapping[str, bytes]
) -> None:
    """Every stored chunk is bytes of the one version of its file that the file's row names, by `sha256`."""
    sha256 = {row["doc"]: row["sha256"] for row in files.values()}
    for chunk in chunks:
        data = versions[sha256[chunk["doc"]]]
        assert data[chunk["start_byte"] : chunk["end_byte"]].decode() == chunk["text"], "half old, half new"
