"""One folder brought into an index: read, parse, embed and store, each stage a step ahead of the next."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import TypeAlias

import anyio
import anyio.to_thread
import numpy as np
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from .chunks import Chunk
from .contract import Embed, OnIndexed
from .errors import FileUnreadable, RetrievalError
from .parsing.child import Limits
from .parsing.parser import Parser
from .rows import Document, FileState, Key, Vectors
from .sources import Source, Sources, Tree
from .store import Store
from .tasks import together

BATCH_FILES = 256  # a commit; more lose more on a kill
BATCH_BYTES = 8_000_000
READ_FILES = 64  # at a time: a hop to a thread costs about what reading a small file does
READ_BYTES = 4_000_000
MIN_WINDOW = 64  # chunks embedded at a time
MAX_WINDOW = 1_024
WINDOW_S = 4.0  # what a window should take: a longer one fills the device better, but a kill loses more

FINAL = frozenset(("binary", "encrypted", "generated", "no_text", "parse_failed", "parse_memory"))
"""Failures that the same bytes would meet again; others are tried anew with every sync."""

Content: TypeAlias = tuple[str, str, str]
"""What makes two files the same to an index: sha256, kind, language."""

Read: TypeAlias = tuple[bytes, str] | RetrievalError
"""A file's bytes with their sha256, or why there are none."""


@dataclass(frozen=True, slots=True)
class _Task:
    """What is to be done in one folder of one index: `known` are its files by path, `suspect` those whose stored chunks
    were found damaged, `like` the indexed documents by content."""

    store: Store
    key: Key
    todo: Sequence[Source]
    known: dict[str, FileState]
    suspect: Set[str]
    like: dict[Content, str]


class Indexer:
    """Writes what the files of a folder are into an index. A file that cannot be read or parsed is stored with its
    reason. `on_change` hears of every commit."""

    def __init__(self, sources: Sources, embed: Embed, limits: Limits, on_change: Callable[[], None]) -> None:
        self._sources, self._embed, self._limits, self._on_change = sources, embed, limits, on_change
        self._window = MIN_WINDOW

    async def sync(self, store: Store, key: Key, tree: Tree, suspect: Set[str], on_progress: OnIndexed) -> None:
        """Make the store hold a folder's files and no others. What `on_progress` heard of is safe, even if cancelled.
        Raises IndexCorrupt, RetrievalError (disk full), and what `embed` raises."""
        known = store.files_in(*key)

        def is_current(source: Source) -> bool:
            file = known.get(source.path)
            settled = file is not None and file.stamp == source.stamp and (not file.code or file.code in FINAL)
            return settled and source.path not in suspect

        todo = [source for source in tree.sources if not is_current(source)]
        if todo:
            like = {_content(file): doc for doc, file in store.files.items() if file.chunks}
            await self._bring(_Task(store, key, todo, known, suspect, like), len(tree.sources), on_progress)
        here = {source.path for source in tree.sources}
        out_of_reach = tuple(f"{file.path}/" for file in tree.failed)  # a folder that cannot be read now is not gone
        gone = [file.doc for path, file in known.items() if path not in here and not path.startswith(out_of_reach)]
        if gone:  # last, since a file that moved lends its vectors until here
            with anyio.CancelScope(shield=True):
                await store.drop(gone)
            self._on_change()

    async def _bring(self, task: _Task, total: int, on_progress: OnIndexed) -> None:
        drafts, drafted = anyio.create_memory_object_stream[list[Document]](1)
        vectored, embedded = anyio.create_memory_object_stream[list[Document]](1)
        done, chunks = total - len(task.todo), 0
        with drafts, drafted, vectored, embedded:
            async with together() as tasks:
                tasks.start_soon(self._draft_all, task, drafts)
                tasks.start_soon(self._embed_all, drafted, vectored)
                async for batch in embedded:
                    with anyio.CancelScope(shield=True):
                        await task.store.swap(batch)
                    self._on_change()
                    for document in batch:
                        done, chunks = done + 1, chunks + len(document.chunks or ())
                        on_progress(done, total, document.file.path, chunks)

    async def _draft_all(self, task: _Task, out: MemoryObjectSendStream[list[Document]]) -> None:
        """Documents with their chunks but, unless they are like a stored one, without vectors."""
        with out:
            async with Parser(self._limits) as parser:
                batch: list[Document] = []
                chunks = size = 0
                for group in _groups(task.todo):
                    read = await anyio.to_thread.run_sync(self._read, group, abandon_on_cancel=True)
                    stored = await _stored(task, group, read)
                    for source, found in zip(group, read, strict=True):
                        batch.append(await _draft(task, source, found, stored, parser))
                        chunks += len(_bare(batch[-1]))
                        size += source.size_bytes
                        if chunks >= self._window or size >= BATCH_BYTES or len(batch) >= BATCH_FILES:
                            await out.send(batch)
                            batch, chunks, size = [], 0, 0
                if batch:
                    await out.send(batch)

    async def _embed_all(
        self, drafted: MemoryObjectReceiveStream[list[Document]], out: MemoryObjectSendStream[list[Document]]
    ) -> None:
        with out:
            async for batch in drafted:
                texts = [f"{chunk.header}\n{chunk.text}" for each in batch for chunk in _bare(each)]
                vectors = await self._vectors(texts)
                own = np.split(vectors, np.cumsum([len(_bare(document)) for document in batch])[:-1])
                pairs = zip(batch, own, strict=True)
                await out.send([replace(document, vectors=some) if len(some) else document for document, some in pairs])

    async def _vectors(self, texts: Sequence[str]) -> Vectors:
        """Shape (texts, dimensions), in windows that come to take WINDOW_S."""
        if not texts:
            return np.zeros((0, 0), dtype=np.float32)
        found = []
        step = ceil(len(texts) / max(1, round(len(texts) / self._window)))
        for start in range(0, len(texts), step):
            started = time.monotonic()
            found.append(np.asarray(await self._embed(texts[start : start + step]), dtype=np.float32))
            elapsed_s = time.monotonic() - started
            if step >= self._window and elapsed_s < WINDOW_S / 2:
                self._window = min(MAX_WINDOW, 2 * self._window)
            elif elapsed_s > 2 * WINDOW_S:
                self._window = max(MIN_WINDOW, self._window // 2)
        return np.concatenate(found)

    def _read(self, sources: Sequence[Source]) -> list[Read]:
        """A file that cannot be read is a result, not an error."""
        found: list[Read] = []
        for source in sources:
            try:
                found.append(self._sources.read(source.path))
            except RetrievalError as error:
                found.append(error)
        return found


async def _draft(task: _Task, source: Source, read: Read, stored: dict[Content, Document], parser: Parser) -> Document:
    file = FileState(source.path, source.kind, source.language, *source.stamp, *task.key)
    if isinstance(read, RetrievalError):
        return _failed(file, read)
    data, sha256 = read
    file = replace(file, sha256=sha256)
    known = task.known.get(file.path)
    if known and not known.code and _content(known) == _content(file) and file.path not in task.suspect:
        return Document(replace(file, extracted_sha256=known.extracted_sha256, chunks=known.chunks), None)
    title = title_of(file.path, file.root)
    if (like := stored.get(_content(file))) and _holds(like, data):
        chunks = _retitled(like, title)
        file = replace(file, extracted_sha256=like.file.extracted_sha256, chunks=len(chunks))
        return Document(file, chunks, like.vectors, like.extracted)
    try:
        parsed = await parser.parse(data, source, title)
    except FileUnreadable as error:
        return _failed(file, error)
    extracted = parsed.text if parsed.converted else None
    digest = hashlib.sha256(parsed.text.encode()).hexdigest() if parsed.converted else ""
    return Document(replace(file, extracted_sha256=digest, chunks=len(parsed.chunks)), parsed.chunks, None, extracted)


async def _stored(task: _Task, group: Sequence[Source], read: Sequence[Read]) -> dict[Content, Document]:
    """The stored documents that some of these files are like, renamed or copied ones."""
    wanted = {}
    for source, found in zip(group, read, strict=True):
        if isinstance(found, tuple):
            content = (found[1], source.kind, source.language)
            doc = task.like.get(content)
            file = doc and task.store.files.get(doc)
            if file and _content(file) == content and file.path not in task.suspect:
                wanted[content] = file.doc
    documents = await task.store.documents(set(wanted.values()))
    return {content: documents[doc] for content, doc in wanted.items() if doc in documents}


def _holds(like: Document, data: bytes) -> bool:
    """Whether a stored document is whole and of these bytes: it may have been swapped while it was read."""
    chunks, text = like.chunks or (), data
    if like.file.extracted_sha256:
        text = (like.extracted or "").encode()
        if hashlib.sha256(text).hexdigest() != like.file.extracted_sha256:
            return False
    whole = len(chunks) == like.file.chunks
    return whole and all(text[chunk.start_byte : chunk.end_byte] == chunk.text.encode() for chunk in chunks)


def _retitled(like: Document, title: str) -> tuple[Chunk, ...]:
    old = title_of(like.file.path, like.file.root)
    return tuple(replace(chunk, header=title + chunk.header.removeprefix(old)) for chunk in like.chunks or ())


def _failed(file: FileState, error: RetrievalError) -> Document:
    return Document(replace(file, code=error.code, reason=error.found or error.message))


def _bare(document: Document) -> Sequence[Chunk]:
    """The chunks that need vectors."""
    return () if document.vectors is not None else document.chunks or ()


def _content(file: FileState) -> Content:
    return file.sha256, file.kind, file.language


def title_of(path: str, root: str) -> str:
    """What a file is called in its chunks' headers: the path from its folder's name on, its last 80 characters."""
    return Path(path).relative_to(Path(root).parent).as_posix()[-80:]


def _groups(sources: Sequence[Source]) -> Iterator[list[Source]]:
    group: list[Source] = []
    for source in sources:
        if group and (len(group) >= READ_FILES or sum(each.size_bytes for each in group) >= READ_BYTES):
            yield group
            group = []
        group.append(source)
    if group:
        yield group
