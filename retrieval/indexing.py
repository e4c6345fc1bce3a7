"""The writing half: changed files are read, cut, embedded and stored, many files to a commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import anyio
import anyio.to_thread

from .access import AllowedFolders
from .chunks import Chunk, CountTokens, cut, token_counter
from .contract import Embed, FailedFile, OnIndexed
from .errors import RetrievalError
from .sources import Source
from .store import FileState, Store, Vectors

BATCH_CHUNKS = 64  # chunks per commit: fewer make a table version per file, more lose more on a kill
BATCH_FILES = 256

Prepared = tuple[FileState, tuple[Chunk, ...] | None]
"""A file's next state with its chunks, None where its bytes are the stored ones."""


@dataclass(frozen=True, slots=True)
class Indexer:
    """What indexing needs: who reads, who embeds, the embedder's `tokenizer.json`, and how large chunks (tokens) and
    files (bytes) may be."""

    access: AllowedFolders
    embed: Embed
    tokenizer: Path | None
    chunk_tokens: int
    max_bytes: int

    async def sync(
        self, store: Store, name: str, root: str, sources: Sequence[Source], on_progress: OnIndexed
    ) -> tuple[FailedFile, ...]:
        """Make the store hold these sources of a folder and no others; returns the files that cannot be read.

        Cancelling keeps every file reported to `on_progress`.
        """
        known = store.files_in(name, root)
        await store.drop([known[path].doc for path in known.keys() - {source.path for source in sources}])
        todo = [s for s in sources if s.path not in known or known[s.path].stamp != s.stamp or known[s.path].code]
        done = len(sources) - len(todo)
        count = await anyio.to_thread.run_sync(token_counter, self.tokenizer)
        batch: list[Prepared] = []
        for i, source in enumerate(todo, 1):
            blank = FileState(**asdict(source), collection=name, root=root)
            batch.append(
                await anyio.to_thread.run_sync(
                    self._prepare, blank, known.get(source.path), count, abandon_on_cancel=True
                )
            )
            full = sum(len(chunks or ()) for _, chunks in batch) >= BATCH_CHUNKS or len(batch) >= BATCH_FILES
            if full or i == len(todo):
                await self._commit(store, batch)
                for file, _ in batch:
                    done += 1
                    on_progress(done, len(sources), file.path)
                batch = []
        files = store.files_in(name, root).values()
        return tuple(FailedFile(path=file.path, code=file.code, reason=file.reason) for file in files if file.code)

    def _prepare(self, blank: FileState, known: FileState | None, count: CountTokens) -> Prepared:
        """Read and cut one file; a file that cannot be read is a result, not an error."""
        try:
            source = self.access.read(Path(blank.path), self.max_bytes)
        except RetrievalError as error:
            return replace(blank, code=error.code, reason=error.found or error.message), ()
        if known and not known.code and known.sha256 == source.sha256:
            return replace(blank, sha256=known.sha256, chunks=known.chunks), None
        title = Path(blank.path).relative_to(Path(blank.root).parent).as_posix()
        chunks = cut(source.text, blank.kind, title[-80:], self.chunk_tokens, count)
        return replace(blank, sha256=source.sha256, chunks=len(chunks)), chunks

    async def _commit(self, store: Store, batch: Sequence[Prepared]) -> None:
        texts = [f"{chunk.header}\n{chunk.text}" for _, chunks in batch for chunk in chunks or ()]
        vectors: list[Vectors] = []
        for start in range(0, len(texts), BATCH_CHUNKS):
            vectors.extend(await self.embed(texts[start : start + BATCH_CHUNKS]))
        documents = []
        for file, chunks in batch:
            if chunks is not None:
                documents.append((file, chunks, vectors[: len(chunks)]))
                vectors = vectors[len(chunks) :]
        same = [file for file, chunks in batch if chunks is None]
        with anyio.CancelScope(shield=True):
            if documents:
                await store.swap(documents)
            if same:
                await store.restamp(same)
        await store.tidy()
