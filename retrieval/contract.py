"""What the retrieval agent is asked and what it gives back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Field

from rolecall.config.profile import Strict

if TYPE_CHECKING:  # the host answers its first requests without numpy
    import numpy as np
    import numpy.typing as npt

    from .retriever import LanceRetriever

Embed: TypeAlias = "Callable[[Sequence[str]], Awaitable[npt.NDArray[np.float32]]]"
"""Texts to unit-length vectors of shape (n, dimensions). `server` hands it in: retrieval knows no models."""

Rerank: TypeAlias = Callable[[str, Sequence[str]], Awaitable[Sequence[float]]]
"""A query and passages to their relevance, higher is better, in order."""

OnIndexed = Callable[[int, int, str, int], None]
"""Progress: (files done, files in all, path just finished, chunks stored by this run so far)."""

Kind = Literal["markdown", "text", "code", "notebook", "table", "json", "html", "document"]
"""Kinds of sources. `document` is what the extra `documents` converts: PDF, DOCX, PPTX, XLSX."""

Leg = Literal["fused", "text", "dense"]


class SourceText(Strict):
    """A file as read once: `text` is `data` decoded as UTF-8, `sha256` that of the bytes on disk."""

    path: Path
    text: str
    sha256: str
    size_bytes: int


FilterName = Annotated[str, Field(min_length=1, max_length=4096)]


class Filters(Strict):
    """Narrow a search. `glob` is matched against the absolute path, `since` an ISO date or time: only files modified
    at or after it. Descriptions are what a client's model reads."""

    glob: FilterName | None = Field(default=None, description="Like **/*.md.")
    kind: Kind | None = Field(default=None, description="Kind of file.")
    language: FilterName | None = Field(default=None, description="Programming language.")
    since: FilterName | None = Field(default=None, description="ISO date: changed since.")


class Passage(Strict):
    """A passage with a citation that can be re-checked: the bytes [start_byte, end_byte) decode to `text`.

    They are the file's bytes, or, where `extracted_sha256` is set, those of the text extracted from it, which has that
    hash. `sha256` is the file's, verified when the passage was found. Lines are 1-based and inclusive, in the same
    text. `place` is a page, sheet, slide or cell; `heading` the headings or the symbol above. `score` is the fused
    relevance in [0, 1], comparable within one answer only. In a `private` collection `text` never leaves the host.
    """

    path: str
    collection: str
    start_line: int
    end_line: int
    start_byte: int
    end_byte: int
    score: float
    text: str
    place: str = ""
    heading: str = ""
    sha256: str = ""
    extracted_sha256: str = ""
    private: bool = False


class FailedFile(Strict):
    path: str
    code: str
    reason: str


class IndexState(Strict):
    """How complete and how old the searched index is. `age_s` is since the last finished sync; None if never.
    `pending` counts files known to be changed, new or gone on disk since they were indexed. `reasons` counts the
    skipped and the failed by reason (`ignored`, `unknown_kind`, `too_large`, `empty`, `link`, `secret`, an error's
    code)."""

    indexed: int
    pending: int
    skipped: int
    failed: int
    age_s: float | None
    reasons: Mapping[str, int] = {}


class AddReport(Strict):
    """One folder brought up to date: the line of `rolecall index add --json`. `indexed` counts files whose chunks are
    now stored, unchanged ones included; `skipped` those left out by ignore rules, size or kind."""

    collection: str
    indexed: int
    skipped: int
    failed: tuple[FailedFile, ...]
    seconds: float


class Preview(Strict):
    """What `index add` would do: files and bytes to read, by kind and in all; `skipped` by reason; the folders with the
    most files; `seconds` estimated from this machine's rate, None where none is known yet."""

    folder: str
    files: int
    size_bytes: int
    kinds: Mapping[str, int]
    skipped: Mapping[str, int]
    folders: Mapping[str, int]
    failed: tuple[FailedFile, ...]
    seconds: float | None


ANSWERABLE = 0.5
"""From here on passages are taken to hold an answer. Source: `rolecall eval run abstention` on XQuAD; docs/retrieval.md
has both error rates."""


class Found(Strict):
    """`answerable` is how likely the passages hold an answer, in [0, 1]; None where there are no vectors, or too few
    passages to tell."""

    passages: tuple[Passage, ...]
    index: IndexState
    answerable: float | None = None


class CollectionInfo(Strict):
    collection: str
    folders: tuple[str, ...]
    files: int
    chunks: int
    index: IndexState
    private: bool = False


class CollectionStatus(CollectionInfo):
    """A collection file by file: what is pending and why others failed, the first 1,000 of each; the embedder of the
    index, and the one that it is being rebuilt for."""

    pending_files: tuple[str, ...]
    failed_files: tuple[FailedFile, ...]
    embedder: str
    rebuilding_for: str | None = None


Verdict = Literal["same", "changed", "gone", "refused"]
"""Of a citation looked up again: other bytes are there now, no file is, or it is no longer allowed."""


Retriever: TypeAlias = "LanceRetriever"
"""The retrieval agent, named without its imports. One writer: only the host holds one."""
