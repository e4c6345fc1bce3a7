"""The retrieval agent: folders in, passages with checked citations out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import numpy as np
import structlog

from rolecall.config.errors import RolecallError
from rolecall.config.home import Home
from rolecall.config.settings import RetrievalSettings

from .access import AllowedFolders, glob_matches
from .chunks import Chunk, CountTokens, cut, token_counter
from .contract import AddReport, CollectionInfo, Embed, FailedFile, Filters, Found, IndexState, OnIndexed, Passage
from .errors import IndexEmpty, IndexLarge, RetrievalError
from .sources import Source, Tree, scan
from .store import SPAN_COLUMNS, FileState, Store, Vectors, fuse, where_clause

BATCH_CHUNKS = 64  # chunks per commit: fewer make a table version per file, more lose more on a kill
BATCH_FILES = 256
OVERFETCH = 100  # hits per leg before fusion
MAX_QUERY_CHARS = 4_000
MAX_RESULTS = 100
CHEAP_S = 0.05  # a sweep of a folder that takes less processor time (some 2,000 files) is made for every answer
REST = 10.0  # a dearer one is reused for ten times as long as it took, so that sweeps never take more than a tenth
MAX_REST_S = 30.0

Prepared = tuple[FileState, tuple[Chunk, ...] | None]
"""A file's next state with its chunks, None where its bytes are the stored ones."""

log = structlog.get_logger(__name__)


class LanceRetriever:
    """Retrieval over LanceDB in the home's index folder. Nothing heavy is imported before the first call.

    `embedder` names the vectors' maker (None: not on disk, search goes by full text alone). `tokenizer` is where its
    `tokenizer.json` is or will be: without one tokens are estimated. `on_change` hears when what is indexed changed and
    must return at once. The caller awaits `aclose`. For one event loop.
    """

    def __init__(
        self,
        home: Home,
        settings: RetrievalSettings,
        embed: Embed,
        embedder: Callable[[], str | None],
        access: AllowedFolders,
        tokenizer: Path | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._home, self._embed, self._embedder, self._on_change = home, embed, embedder, on_change
        self._access, self._max_bytes = access, int(settings.max_file_mb * 1_000_000)
        self._tokenizer, self._chunk_tokens = tokenizer, settings.chunk_tokens
        self._opening, self._writing = anyio.Lock(), anyio.Lock()
        self._store: Store | None = None
        self._trees: dict[str, tuple[float, Tree]] = {}

    async def add(
        self, folder: Path, collection: str | None = None, on_progress: OnIndexed | None = None,
        max_files: int | None = None,
    ) -> AddReport:  # fmt: skip
        """Bring a folder's index up to date and allow the folder; only changed files are embedded again.

        Cancelling keeps every file reported to `on_progress`; the next call goes on from there.

        Raises:
            IndexLarge: a folder new to the index has over `max_files` files; nothing was changed.
            PathMissing, PathNotAllowed, IndexCorrupt, RetrievalError (disk full), and what `embed` raises.
        """
        started = time.monotonic()
        folder = await anyio.to_thread.run_sync(self._access.allowable, folder)
        name, root = collection or folder.name, str(folder)
        async with self._writing:
            tree = await anyio.to_thread.run_sync(scan, folder, self._max_bytes, abandon_on_cancel=True)
            known = (old := await self._open()) is not None and (name, root) in old.roots
            if max_files is not None and len(tree.sources) > max_files and not known:
                found, advice = f"{len(tree.sources):,} files", "Index a folder below it, or confirm with `--yes`."
                raise IndexLarge("This folder is large.", found=found, allowed=f"{max_files:,} unasked", advice=advice)
            await anyio.to_thread.run_sync(self._access.add, folder)
            store = await self._store_for_writing()
            if (name, root) not in store.roots:
                await store.save_root(name, root, None)
            await self._sync(store, name, root, tree.sources, on_progress or (lambda *_: None))
            await store.optimize()
            await store.save_root(name, root, time.time())
            self._trees.clear()
            self._on_change()
            files = store.files_in(name, root).values()
            failed = [FailedFile(path=file.path, code=file.code, reason=file.reason) for file in files if file.code]
        return AddReport(
            collection=name,
            indexed=len(tree.sources) - len(failed),
            skipped=tree.skipped,
            failed=(*tree.failed, *failed),
            seconds=round(time.monotonic() - started, 3),
        )

    async def search(
        self, query: str, collection: str | None = None, max_results: int = 8, filters: Filters | None = None
    ) -> Found:
        """The best passages, each verified against the disk now; a changed file is never quoted.

        Raises:
            IndexEmpty: nothing is indexed, or no such collection. RetrievalError: a filter that cannot be read.
        """
        store = await self._store_for_reading(collection)
        query = " ".join(query[:MAX_QUERY_CHARS].encode("utf-8", "replace").decode().split())
        where = where_clause(collection, _chosen(store.files, filters) if filters else None)
        stale: set[str] = set()
        passages: list[Passage] = []
        if query:
            vector = await self._query_vector(query, store)
            text = await store.matching(query, where, OVERFETCH)
            dense = await store.nearest(vector, where, OVERFETCH) if vector is not None else []
            fused = [(hit, score) for hit, score in fuse(text, dense, vector) if hit.doc in store.files]
            ranked = [(store.files[hit.doc], hit.chunk, score) for hit, score in fused]
            passages, stale = await anyio.to_thread.run_sync(self._verified, ranked, min(max_results, MAX_RESULTS))
        return Found(passages=tuple(passages), index=await self._state(store, collection, stale))

    async def collections(self) -> tuple[CollectionInfo, ...]:
        store = await self._open()
        if store is None:
            return ()
        found = []
        for name in sorted({name for name, _ in store.roots}):
            folders = tuple(root for other, root in store.roots if other == name)
            chunks = [file.chunks for file in store.files.values() if file.collection == name and not file.code]
            index = await self._state(store, name)
            found.append(
                CollectionInfo(collection=name, folders=folders, files=len(chunks), chunks=sum(chunks), index=index)
            )
        return tuple(found)

    async def indexed(self, collection: str, path: str) -> Path | None:
        """The collection's file that a path names, absolute or from one of its folders; None where none is indexed."""
        if (store := await self._open()) is None:
            return None
        roots = (root for name, root in store.roots if name == collection)
        files = (store.files_in(collection, root).get(str(Path(root, path))) for root in roots)
        return next((Path(file.path) for file in files if file and not file.code), None)

    async def remove(self, collection: str) -> int:
        """Drop a collection; its folders stay allowed. Returns the number of files that were in it."""
        async with self._writing:
            store = await self._store_for_reading(collection)
            files = sum(file.collection == collection for file in store.files.values())
            with anyio.CancelScope(shield=True):
                await store.drop_collection(collection)
            self._on_change()
            return files

    async def aclose(self) -> None:
        """Wait for a running write, and let the index go."""
        async with self._writing:
            self._store = None

    async def _sync(
        self, store: Store, name: str, root: str, sources: Sequence[Source], on_progress: OnIndexed
    ) -> None:
        """Make the store hold these sources of a folder and no others."""
        known = store.files_in(name, root)
        await store.drop([known[path].doc for path in known.keys() - {source.path for source in sources}])
        todo = [s for s in sources if s.path not in known or known[s.path].stamp != s.stamp or known[s.path].code]
        done = len(sources) - len(todo)
        count = await anyio.to_thread.run_sync(token_counter, self._tokenizer)
        batch: list[Prepared] = []
        for i, source in enumerate(todo, 1):
            blank = FileState(**asdict(source), collection=name, root=root)
            prepare = partial(self._prepare, blank, known.get(source.path), count)
            batch.append(await anyio.to_thread.run_sync(prepare, abandon_on_cancel=True))
            full = sum(len(chunks or ()) for _, chunks in batch) >= BATCH_CHUNKS or len(batch) >= BATCH_FILES
            if full or i == len(todo):
                await self._commit(store, batch)
                for file, _ in batch:
                    done += 1
                    on_progress(done, len(sources), file.path)
                batch = []

    def _prepare(self, blank: FileState, known: FileState | None, count: CountTokens) -> Prepared:
        """Read and cut one file; a file that cannot be read is a result, not an error."""
        try:
            source = self._access.read(Path(blank.path), self._max_bytes)
        except RetrievalError as error:
            return replace(blank, code=error.code, reason=error.found or error.message), ()
        if known and not known.code and known.sha256 == source.sha256:
            return replace(blank, sha256=known.sha256, chunks=known.chunks), None
        title = Path(blank.path).relative_to(Path(blank.root).parent).as_posix()
        chunks = cut(source.text, blank.kind, title[-80:], self._chunk_tokens, count)
        return replace(blank, sha256=source.sha256, chunks=len(chunks)), chunks

    async def _commit(self, store: Store, batch: Sequence[Prepared]) -> None:
        texts = [f"{chunk.header}\n{chunk.text}" for _, chunks in batch for chunk in chunks or ()]
        vectors: list[Vectors] = []
        for start in range(0, len(texts), BATCH_CHUNKS):
            vectors += [*await self._embed(texts[start : start + BATCH_CHUNKS])]
        own = iter(vectors)
        documents = [(file, chunks, [next(own) for _ in chunks or ()]) for file, chunks in batch]
        with anyio.CancelScope(shield=True):
            await store.swap(documents)
        self._on_change()

    async def _query_vector(self, query: str, store: Store) -> Vectors | None:
        """None where there is no embedder, or another one than the index was made with: full text alone answers."""
        try:
            if self._embedder() == store.embedder:
                return np.asarray((await self._embed([query]))[0], dtype=np.float32)
        except RolecallError as error:
            log.warning("search_by_text_only", code=error.code)
        return None

    def _verified(
        self, ranked: Iterable[tuple[FileState, Chunk, float]], wanted: int
    ) -> tuple[list[Passage], set[str]]:
        """The first `wanted` passages whose file is unchanged, duplicates once; and the paths of changed files."""
        passages: dict[str, Passage] = {}
        stale: set[str] = set()
        read: dict[str, bytes] = {}
        for file, chunk, score in ranked:
            if len(passages) >= wanted:
                break
            if file.path not in read:
                try:
                    read[file.path], _ = self._access.read_bytes(Path(file.path), self._max_bytes)
                except RetrievalError:
                    read[file.path] = b""
                if hashlib.sha256(read[file.path]).hexdigest() != file.sha256:
                    read[file.path] = b""
            if read[file.path][chunk.start_byte : chunk.end_byte] == chunk.text.encode():
                span = {key: getattr(chunk, key) for key in SPAN_COLUMNS}
                passages.setdefault(chunk.text, Passage(path=file.path, score=score, **span))
            else:
                stale.add(file.path)
        return list(passages.values()), stale

    async def _state(self, store: Store, collection: str | None, stale: Set[str] = frozenset()) -> IndexState:
        """From a look at every file's size, times and inode; `stale` are paths found changed otherwise."""
        pending = set(stale)
        indexed = skipped = failed = 0
        roots = {key: at for key, at in store.roots.items() if collection in (None, key[0])}
        for name, root in roots:
            tree = await self._tree(root)
            files = store.files_in(name, root)
            known = {path: file.stamp for path, file in files.items()}
            now = {source.path: source.stamp for source in tree.sources}
            pending |= {path for path in known.keys() | now.keys() if known.get(path) != now.get(path)}
            broken = sum(bool(file.code) for file in files.values())
            indexed += len(files) - broken
            failed += broken + len(tree.failed)
            skipped += tree.skipped
        times = [at for at in roots.values() if at is not None]
        age_s = round(max(0.0, time.time() - min(times)), 1) if times and len(times) == len(roots) else None
        return IndexState(indexed=indexed, pending=len(pending), skipped=skipped, failed=failed, age_s=age_s)

    async def _tree(self, root: str) -> Tree:
        """Small folders are swept each time, a large one's sweep may be seconds old."""
        until, tree = self._trees.get(root, (0.0, None))
        if tree is None or time.monotonic() >= until:
            tree = await anyio.to_thread.run_sync(scan, Path(root), self._max_bytes, abandon_on_cancel=True)
            rest_s = min(MAX_REST_S, REST * tree.cpu_s) if tree.cpu_s > CHEAP_S else 0.0
            self._trees[root] = time.monotonic() + rest_s, tree
        return tree

    async def _open(self) -> Store | None:
        async with self._opening:
            if self._store is None:
                self._store = await Store.open(self._home.index)
            return self._store

    async def _store_for_writing(self) -> Store:
        """The current embedder's. Where the index was made with another it is begun anew: its folders stay listed, and
        their files are pending until each is added again."""
        store = await self._open()
        if store is None or store.embedder != self._embedder():
            vectors = await self._embed(["probe"])  # raises what is missing and how to get it
            identity = self._embedder() or "unknown"
            store = self._store = await Store.create(self._home.index, identity, int(vectors.shape[1]), store)
        return store

    async def _store_for_reading(self, collection: str | None) -> Store:
        store = await self._open()
        names = sorted({name for name, _ in store.roots}) if store else []
        if store is None or not names:
            raise IndexEmpty("Nothing is indexed.", advice="Run `rolecall index add FOLDER`.")
        if collection is not None and collection not in names:
            advice = "Name one of these, or run `rolecall index add FOLDER`."
            raise IndexEmpty("No such collection.", found=repr(collection), allowed=", ".join(names), advice=advice)
        return store


def _chosen(files: dict[str, FileState], filters: Filters) -> list[str]:
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
