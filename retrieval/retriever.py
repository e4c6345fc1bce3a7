"""The retrieval agent: folders in, passages with checked citations out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Set
from datetime import datetime
from pathlib import Path

import anyio
import anyio.to_thread
import numpy as np
import structlog

from rolecall.config.errors import RolecallError
from rolecall.config.home import Home
from rolecall.config.settings import RetrievalSettings

from .access import AllowedFolders
from .chunks import Chunk
from .contract import AddReport, CollectionInfo, Embed, Filters, Found, IndexState, OnIndexed, Passage
from .errors import IndexEmpty, RetrievalError
from .fusion import fuse
from .indexing import Indexer
from .names import glob_matches
from .sources import Tree, scan
from .store import SPAN_COLUMNS, FileState, Store, Vectors, where_clause

OVERFETCH = 100  # hits per leg before fusion
MAX_QUERY_CHARS = 4_000
MAX_RESULTS = 100
CHEAP_S = 0.05  # a sweep of a folder that takes less processor time (some 2,000 files) is made for every answer
REST = 10.0  # a dearer one is reused for ten times as long as it took, so that sweeps never take more than a tenth
MAX_REST_S = 30.0

log = structlog.get_logger(__name__)


class LanceRetriever:
    """Retrieval over LanceDB in the home's index folder. Nothing heavy is imported before the first call.

    `embedder` names the vectors' maker (None: not on disk, search goes by full text alone). `tokenizer` is where its
    `tokenizer.json` is or will be: without one tokens are estimated. The caller awaits `aclose`. For one event loop.
    """

    def __init__(
        self,
        home: Home,
        settings: RetrievalSettings,
        embed: Embed,
        embedder: Callable[[], str | None],
        access: AllowedFolders,
        tokenizer: Path | None = None,
    ) -> None:
        self._home, self._embed, self._embedder = home, embed, embedder
        self._access, self._max_bytes = access, int(settings.max_file_mb * 1_000_000)
        self._indexer = Indexer(access, embed, tokenizer, settings.chunk_tokens, self._max_bytes)
        self._opening, self._writing = anyio.Lock(), anyio.Lock()
        self._connection: object | None = None
        self._stores: list[Store] = []
        self._trees: dict[str, tuple[float, Tree]] = {}

    async def add(self, folder: Path, collection: str | None = None, on_progress: OnIndexed | None = None) -> AddReport:
        """Bring a folder's index up to date and allow the folder; only changed files are embedded again.

        Cancelling keeps every file reported to `on_progress`; the next call goes on from there.

        Raises:
            PathMissing, PathNotAllowed, IndexCorrupt, RetrievalError (disk full), and what `embed` raises.
        """
        started = time.monotonic()
        folder = await anyio.to_thread.run_sync(self._access.add, folder)
        name, root = collection or folder.name, str(folder)
        async with self._writing:
            tree = await anyio.to_thread.run_sync(scan, folder, self._max_bytes, abandon_on_cancel=True)
            store = await self._store_for_writing()
            if (name, root) not in store.roots:
                await store.save_root(name, root, None)
            failed = await self._indexer.sync(store, name, root, tree.sources, on_progress or (lambda *_: None))
            await store.finish()
            with anyio.CancelScope(shield=True):
                await store.save_root(name, root, time.time())
                await self._drop(name, root, keep=store)
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
            ranked = [
                (store.files[hit.doc], hit.chunk, score)
                for hit, score in fuse(text, dense, vector)
                if hit.doc in store.files
            ]
            wanted = max(1, min(max_results, MAX_RESULTS))
            passages, stale = await anyio.to_thread.run_sync(self._verified, ranked, wanted)
        for other in self._stores:
            if other is not store:  # indexed with another embedder and not anew yet
                stale |= {file.path for file in other.files.values() if collection in (None, file.collection)}
        return Found(passages=tuple(passages), index=await self._state(store, collection, stale))

    async def collections(self) -> tuple[CollectionInfo, ...]:
        await self._open()
        found = []
        for store in self._stores:
            for name in sorted({name for name, _ in store.roots}):
                files = [file for file in store.files.values() if file.collection == name and not file.code]
                found.append(
                    CollectionInfo(
                        collection=name,
                        folders=tuple(root for other, root in store.roots if other == name),
                        files=len(files),
                        chunks=sum(file.chunks for file in files),
                        index=await self._state(store, name),
                    )
                )
        return tuple(found)

    async def remove(self, collection: str) -> int:
        """Drop a collection; its folders stay allowed. Returns the number of files that were in it.

        Raises:
            IndexEmpty: no such collection.
        """
        await self._open()
        async with self._writing:
            roots = {root for store in self._stores for name, root in store.roots if name == collection}
            if not roots:
                raise self._no_collection(collection)
            files = sum(file.collection == collection for store in self._stores for file in store.files.values())
            with anyio.CancelScope(shield=True):
                for root in roots:
                    await self._drop(collection, root)
            return files

    async def aclose(self) -> None:
        """Wait for a running write, and let the index go."""
        async with self._writing:
            self._stores, self._connection = [], None

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
        read: dict[str, tuple[str, bytes]] = {}
        for file, chunk, score in ranked:
            if len(passages) == wanted:
                break
            if file.path not in read:
                read[file.path] = self._read_hashed(file.path)
            sha256, data = read[file.path]
            if sha256 != file.sha256 or data[chunk.start_byte : chunk.end_byte] != chunk.text.encode():
                stale.add(file.path)
            elif chunk.text not in passages:
                span = {key: getattr(chunk, key) for key in SPAN_COLUMNS}
                passages[chunk.text] = Passage(path=file.path, score=score, **span)
        return list(passages.values()), stale

    def _read_hashed(self, path: str) -> tuple[str, bytes]:
        """A file's SHA-256 and bytes; empty where it cannot be read any more."""
        try:
            data, _ = self._access.read_bytes(Path(path), self._max_bytes)
        except RetrievalError:
            return "", b""
        return hashlib.sha256(data).hexdigest(), data

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
            indexed, failed, skipped = (
                indexed + len(files) - broken,
                failed + broken + len(tree.failed),
                skipped + tree.skipped,
            )
        times = [at for at in roots.values() if at is not None]
        age_s = round(max(0.0, time.time() - min(times)), 1) if times and len(times) == len(roots) else None
        return IndexState(indexed=indexed, pending=len(pending), skipped=skipped, failed=failed, age_s=age_s)

    async def _tree(self, root: str) -> Tree:
        """Small folders are swept each time, a large one's sweep may be seconds old."""

        def timed_scan() -> tuple[Tree, float]:
            started = time.thread_time()
            return scan(Path(root), self._max_bytes), time.thread_time() - started

        if root in self._trees and time.monotonic() < self._trees[root][0]:
            return self._trees[root][1]
        tree, took_s = await anyio.to_thread.run_sync(timed_scan, abandon_on_cancel=True)
        if took_s > CHEAP_S:
            self._trees[root] = (time.monotonic() + min(MAX_REST_S, REST * took_s), tree)
        return tree

    async def _open(self, *, writing: bool = False) -> None:
        """Open the index once; where there is none and nothing is to be written, LanceDB is not even imported."""
        async with self._opening:
            if self._connection is None and (writing or any(self._home.index.glob("*.lance"))):
                connection = await Store.connect(self._home.index)
                self._stores = await Store.open_all(connection)
                self._connection = connection

    async def _store_for_writing(self) -> Store:
        """The current embedder's, made where it is new."""
        await self._open(writing=True)
        for store in self._stores:
            if store.embedder == self._embedder():
                return store
        vectors = await self._embed(["probe"])  # raises what is missing and how to get it
        self._stores.append(await Store.create(self._connection, self._embedder() or "unknown", int(vectors.shape[1])))
        return self._stores[-1]

    async def _store_for_reading(self, collection: str | None) -> Store:
        """The current embedder's where it holds the collection, else the newest that does."""
        await self._open()
        holding = [store for store in self._stores if any(collection in (None, name) for name, _ in store.roots)]
        if not holding:
            raise self._no_collection(collection)
        return max(holding, key=lambda store: store.embedder == self._embedder())

    def _no_collection(self, collection: str | None) -> IndexEmpty:
        names = sorted({name for store in self._stores for name, _ in store.roots})
        if collection is None or not names:
            return IndexEmpty("Nothing is indexed.", advice="Run `rolecall index add FOLDER`.")
        return IndexEmpty(
            "No such collection.",
            found=repr(collection),
            allowed=", ".join(names),
            advice="Name one of these, or run `rolecall index add FOLDER`.",
        )

    async def _drop(self, collection: str, root: str, keep: Store | None = None) -> None:
        """Forget a folder, or only what other embedders than that of `keep` left of it."""
        for store in [*self._stores]:
            if store is not keep and (collection, root) in store.roots:
                await store.drop_root(collection, root)
                if not store.roots:
                    self._stores.remove(store)
        self._trees.clear()


def _chosen(files: dict[str, FileState], filters: Filters) -> list[str]:
    """The documents that pass the filters."""
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
        raise RetrievalError(
            "The filter `since` is not a date.",
            found=repr(since)[:60],
            allowed="2026-01-31 or 2026-01-31T08:00:00Z",
            advice="Write an ISO date or time.",
        ) from None
