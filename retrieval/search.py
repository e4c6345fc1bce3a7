"""One question to an index: what both legs find, ranked together, checked against the disk as it is now, and cited."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import numpy as np
import structlog

from rolecall.config.errors import RolecallError

from .access import glob_matches
from .chunks import tokenizer_at
from .contract import Embed, Filters, Leg, Passage, Rerank, Verdict
from .errors import PathMissing, RetrievalError
from .ranking import Likeness, Ranked, answerable, dense_weight, fuse, set_cosines
from .rows import SPAN_COLUMNS, FileState, Hit, Vectors
from .sources import Sources, stamp_at
from .store import Store
from .tasks import together

OVERFETCH = 100  # hits per leg before fusion, at least
RERANKED = 30  # candidates that a reranker reads

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Outcome:
    """`passages` checked just now. `stale` are paths whose file has changed, `damaged` those of unchanged files whose
    stored text is not theirs. `answerable` as in `contract.Found`."""

    passages: list[Passage] = field(default_factory=list)
    stale: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    answerable: float | None = None


class Searcher:
    """Searches an index; what is handed in is as of `LanceRetriever`."""

    def __init__(
        self, sources: Sources, embed: Embed, embedder: Callable[[], str | None], tokenizer: Path | None,
        rerank: Rerank | None,
    ) -> None:  # fmt: skip
        self._sources, self._embed, self._embedder = sources, embed, embedder
        self._file, self._rerank = tokenizer, rerank
        self._tokenizer: Any = None

    async def search(
        self,
        store: Store,
        query: str,
        where: str,
        wanted: int,
        leg: Leg,
        beside: Callable[[], Coroutine[None, None, None]],
    ) -> Outcome:
        """The `wanted` best passages; `beside` is done while the legs run."""
        depth = max(OVERFETCH, wanted)
        text, dense = list[Hit](), list[Hit]()
        vectors: Vectors | None = None
        vector: Vectors | None = None
        weight = 1.0

        async def by_words() -> None:
            nonlocal vectors, weight
            found, vectors = await store.matching(query, where, depth)
            text.extend(found)
            weight = await anyio.to_thread.run_sync(self._dense_weight, query)

        async def by_vector() -> None:
            nonlocal vector
            vector = await self._vector(store, query)
            if vector is not None:
                dense.extend(await store.nearest(vector, where, depth))

        async with together() as tasks:
            for other, one in (("dense", by_words), ("text", by_vector)):
                if leg != other:
                    tasks.start_soon(one)
            tasks.start_soon(beside)
        if vector is not None and vectors is not None:
            set_cosines(text, vectors, vector)
        fused = fuse(text, dense, weight if vector is not None else 0.0)
        files = {hit.doc: store.files[hit.doc] for hit, _ in fused if hit.doc in store.files}
        ranked: Ranked = [pair for pair in fused if pair[0].doc in files]
        if self._rerank is not None and leg == "fused":
            ranked = await self._reranked(self._rerank, query, ranked)
        outcome = Outcome()
        kept = await self._kept(store, files, ranked, wanted, outcome)
        outcome.passages = [_passage(store, files[hit.doc], hit, score) for hit, score in kept]
        if vector is not None and leg == "fused":
            outcome.answerable = answerable(query, kept[0][0], ranked) if kept else 0.0
        return outcome

    async def _vector(self, store: Store, query: str) -> Vectors | None:
        """None where there is no embedder, or another one than the index was made with: full text alone answers."""
        try:
            if self._embedder() == store.embedder:
                return np.asarray((await self._embed([query]))[0], dtype=np.float32)
        except RolecallError as error:
            log.warning("search_by_text_only", code=error.code)
        return None

    def _dense_weight(self, query: str) -> float:
        if self._tokenizer is None:
            self._tokenizer = tokenizer_at(self._file)
        return dense_weight(self._tokenizer, query)

    async def _reranked(self, rerank: Rerank, query: str, ranked: Ranked) -> Ranked:
        """The first candidates in the reranker's order; they keep the scores that the order had."""
        head = ranked[:RERANKED]
        try:
            relevance = await rerank(query, [hit.chunk.text for hit, _ in head])
        except RolecallError as error:
            log.warning("search_without_reranker", code=error.code)
            return ranked
        order = sorted(range(len(head)), key=lambda i: -relevance[i])
        return [*((head[i][0], score) for i, (_, score) in zip(order, head, strict=True)), *ranked[RERANKED:]]

    async def _kept(
        self, store: Store, files: Mapping[str, FileState], ranked: Ranked, wanted: int, outcome: Outcome
    ) -> Ranked:
        """The first `wanted` hits whose file is unchanged, near-duplicates once. `files` are as the search found them:
        the store's may be others by now."""
        by_doc: dict[str, list[Hit]] = {}
        for hit, _ in ranked:
            by_doc.setdefault(hit.doc, []).append(hit)
        kept, likeness = list[tuple[Hit, float]](), list[Likeness]()
        intact: dict[str, set[str]] = {}
        for start in range(0, len(ranked), wanted):
            group = ranked[start : start + wanted]
            new = {hit.doc: by_doc[hit.doc] for hit, _ in group if hit.doc not in intact}
            extracted = await store.extracted([doc for doc in new if files[doc].extracted_sha256])
            check = partial(self._intact, files, new, extracted, outcome)
            intact |= await anyio.to_thread.run_sync(check)
            for hit, score in group:
                mine = Likeness.of(hit.chunk.text)
                if hit.id in intact[hit.doc] and not any(mine.is_like(other) for other in likeness):
                    likeness.append(mine)
                    kept.append((hit, score))
                if len(kept) == wanted:
                    return kept
        return kept

    def _intact(
        self, files: Mapping[str, FileState], hits: Mapping[str, Sequence[Hit]], extracted: Mapping[str, bytes],
        outcome: Outcome,
    ) -> dict[str, set[str]]:  # fmt: skip
        """By document its hits whose text still stands where they say."""
        found = dict[str, set[str]]()
        for doc, own in hits.items():
            file, found[doc] = files[doc], set()
            try:
                data, sha256 = self._sources.read(file.path)
            except RetrievalError:
                data, sha256 = b"", ""
            if sha256 != file.sha256:
                # A file that did not change has a damaged hash in the index.
                (outcome.damaged if stamp_at(file.path) == file.stamp else outcome.stale).add(file.path)
                continue
            if file.extracted_sha256:
                data = extracted.get(doc, b"")
                if hashlib.sha256(data).hexdigest() != file.extracted_sha256:
                    data = b""
            found[doc] = {h.id for h in own if data[h.chunk.start_byte : h.chunk.end_byte] == h.chunk.text.encode()}
            if len(found[doc]) < len(own):
                outcome.damaged.add(file.path)
        return found


def _passage(store: Store, file: FileState, hit: Hit, score: float) -> Passage:
    root = store.roots.get((file.collection, file.root))
    return Passage(
        path=file.path, collection=file.collection, score=score, sha256=file.sha256,
        extracted_sha256=file.extracted_sha256, private=root is None or root.private,
        **{key: getattr(hit.chunk, key) for key in SPAN_COLUMNS},
    )  # fmt: skip


def checked(sources: Sources, passages: Sequence[Passage], extracted: Iterable[bytes]) -> tuple[Verdict, ...]:
    """Citations looked up again, a verdict for each passage; `extracted` are stored texts of converted files. A passage
    without its text (of a private collection) is the same as long as its whole file is. Blocking."""
    texts = {hashlib.sha256(text).hexdigest(): text for text in extracted}
    read = lru_cache(maxsize=1)(sources.read)  # citations of one file follow each other

    def verdict(passage: Passage) -> Verdict:
        try:
            data, sha256 = read(passage.path)
        except PathMissing:
            return "gone"
        except RetrievalError:
            return "refused"
        whole = sha256 == passage.sha256
        if passage.extracted_sha256:
            if not whole:
                return "changed"
            data = texts.get(passage.extracted_sha256, b"")
            if not data:  # no longer indexed, and the same file
                return "same"
        quoted = data[passage.start_byte : passage.end_byte] == passage.text.encode() if passage.text else whole
        return "same" if quoted else "changed"

    return tuple(map(verdict, passages))


def chosen(files: Mapping[str, FileState], filters: Filters) -> list[str]:
    """The documents that filters leave. Raises RetrievalError for a filter that cannot be read."""
    since_ns = _since_ns(filters.since) if filters.since else 0
    glob = filters.glob or "**"
    pattern = (glob if glob.startswith("/") else f"**/{glob}").removeprefix("/").split("/")
    return [
        doc
        for doc, file in files.items()
        if filters.kind in (None, file.kind)
        and filters.language in (None, file.language)
        and file.mtime_ns >= since_ns
        and glob_matches(file.path.removeprefix("/").split("/"), pattern)
    ]


def _since_ns(since: str) -> int:
    """Nanoseconds since the epoch; a date or time without a zone is this machine's."""
    try:
        return int(datetime.fromisoformat(since).timestamp() * 1_000_000_000)
    except (ValueError, OverflowError):
        message, allowed = "The filter `since` is not a date.", "2026-01-31 or 2026-01-31T08:00:00Z"
        advice = "Write an ISO date or time."
        raise RetrievalError(message, found=repr(since)[:60], allowed=allowed, advice=advice) from None
