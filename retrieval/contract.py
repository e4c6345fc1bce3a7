"""What the retrieval agent is asked and what it gives back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from rolecall.config.profile import Strict

if TYPE_CHECKING:  # the host answers its first requests without numpy
    import numpy as np
    import numpy.typing as npt

Embed: TypeAlias = "Callable[[Sequence[str]], Awaitable[npt.NDArray[np.float32]]]"
"""Texts to unit-length vectors of shape (n, dimensions). `server` hands it in: retrieval knows no models."""

OnIndexed = Callable[[int, int, str], None]
"""Progress: (files done, files in all, path just finished)."""


class SourceText(Strict):
    """A file as read once: `text` is `data` decoded as UTF-8, `sha256` that of the bytes on disk."""

    path: Path
    text: str
    sha256: str
    size_bytes: int


class Filters(Strict):
    """Narrow a search. `glob` is matched against the absolute path, `kind` is markdown|text|code, `language` a
    language name such as `python`, `since` an ISO date or time: only files modified at or after it."""

    glob: str | None = None
    kind: str | None = None
    language: str | None = None
    since: str | None = None


class Passage(Strict):
    """A passage with a citation that can be re-checked: the file's bytes [start_byte, end_byte) decode to `text`.
    Lines are 1-based and inclusive. `score` is the fused relevance in [0, 1], comparable within one answer only."""

    path: str
    start_line: int
    end_line: int
    start_byte: int
    end_byte: int
    score: float
    text: str


class FailedFile(Strict):
    path: str
    code: str
    reason: str


class IndexState(Strict):
    """How complete and how old the searched index is. `age_s` is since the last finished sync; None if never.
    `pending` counts files known to be changed, new or gone on disk since they were indexed."""

    indexed: int
    pending: int
    skipped: int
    failed: int
    age_s: float | None


class AddReport(Strict):
    """One `index add`: the line of `rolecall index add --json`. `indexed` counts files whose chunks are now stored,
    unchanged ones included; `skipped` those left out by ignore rules, size or kind."""

    collection: str
    indexed: int
    skipped: int
    failed: tuple[FailedFile, ...]
    seconds: float


class Found(Strict):
    passages: tuple[Passage, ...]
    index: IndexState


class CollectionInfo(Strict):
    collection: str
    folders: tuple[str, ...]
    files: int
    chunks: int
    index: IndexState


class Retriever(Protocol):
    """The retrieval agent; see `LanceRetriever`. One writer: only the host holds one."""

    async def add(
        self, folder: Path, collection: str | None = None, on_progress: OnIndexed | None = None,
        max_files: int | None = None,
    ) -> AddReport: ...  # fmt: skip

    async def search(
        self, query: str, collection: str | None = None, max_results: int = 8, filters: Filters | None = None
    ) -> Found: ...

    async def collections(self) -> tuple[CollectionInfo, ...]: ...

    async def indexed(self, collection: str, path: str) -> Path | None: ...

    async def remove(self, collection: str) -> int: ...

    async def aclose(self) -> None: ...
