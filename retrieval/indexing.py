"""The writing half: changed files are read, cut, embedded and stored, many files to a commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import anyio.to_thread
import numpy as np

from .access import AllowedFolders
from .chunks import Chunk, CountTokens, cut
from .contract import Embed, FailedFile, OnIndexed
from .errors import RetrievalError
from .sources import Source
from .store import Document, FileState, Store, Vectors

BATCH_CHUNKS = 64  # chunks per commit: fewer make a table version per file, more lose more on a kill
BATCH_FILES = 256


@dataclass(frozen=True, slots=True)
class _Prepared:
    file: FileState
    chunks: tuple[Chunk, ...] = ()
    same_bytes: bool = False


@dataclass(frozen=True, slots=True)
class Indexer:
    """What indexing needs: who reads, who embeds, and how large chunks (tokens) and files (bytes) may be."""

    access: AllowedFolders
    embed: Embed
    count: CountTokens
    chunk_tokens: int
    max_bytes: int

    async def sync(
        self, store: Store, name: str, root: str, sources: Sequence[Source], on_progress: OnIndexed
    ) -> tuple[FailedFile, ...]:
        """Make the store hold these sources of a folder and no others; returns the files that cannot be read.

        Cancelling keeps every file reported to `on_progress`.
        """
        known = {file.path: file for file in store.files.values() if (file.collection, file.root) == (name, root)}
        gone = [known[path].doc for path in known.keys() - {source.path for source in sources}]
        if gone:
            await store.drop(gone)
        todo = [s for s in sources if s.path not in known or known[s.path].stamp != s.stamp or known[s.path].code]
        done = len(sources) - len(todo)
        batch: list[_Prepared] = []
        for i, source in enumerate(todo, 1):
            blank = FileState(name, root, source.path, source.kind, source.language, source.stamp)
            prepared = await anyio.to_thread.run_sync(
                self._prepare, blank, known.get(source.path), abandon_on_cancel=True
            )
            batch.append(prepared)
            full = sum(len(item.chunks) for item in batch) >= BATCH_CHUNKS or len(batch) >= BATCH_FILES
            if full or i == len(todo):
                await self._commit(store, batch)
                for item in batch:
                    done += 1
                    on_progress(done, len(sources), item.file.path)
                batch = []
        return tuple(
            FailedFile(path=file.path, code=file.code, reason=file.reason)
            for file in store.files.values()
            if (file.collection, file.root) == (name, root) and file.code
        )

    def _prepare(self, blank: FileState, known: FileState | None) -> _Prepared:
        """Read and cut one file; a file that cannot be read is a result, not an error."""
        try:
            source = self.access.read(Path(blank.path), self.max_bytes)
        except RetrievalError as error:
            return _Prepared(replace(blank, code=error.code, reason=error.found or error.message))
        if known and not known.code and known.sha256 == source.sha256:
            return _Prepared(replace(known, stamp=blank.stamp), same_bytes=True)
        title = Path(blank.path).relative_to(Path(blank.root).parent).as_posix()
        chunks = cut(source.text, blank.kind, title[-80:], self.chunk_tokens, self.count)
        return _Prepared(replace(blank, sha256=source.sha256, chunks=len(chunks)), chunks)

    async def _commit(self, store: Store, batch: Sequence[_Prepared]) -> None:
        texts = [f"{chunk.header}\n{chunk.text}" for item in batch for chunk in item.chunks]
        vectors: list[Vectors] = []
        for start in range(0, len(texts), BATCH_CHUNKS):
            vectors.extend(await self.embed(texts[start : start + BATCH_CHUNKS]))
        documents = []
        for item in batch:
            if not item.same_bytes:
                own, vectors = vectors[: len(item.chunks)], vectors[len(item.chunks) :]
                documents.append(Document(item.file, item.chunks, np.asarray(own, dtype=np.float32)))
        same = [item.file for item in batch if item.same_bytes]
        with anyio.CancelScope(shield=True):
            if documents:
                await store.swap(documents)
            if same:
                await store.restamp(same)
        await store.tidy()
