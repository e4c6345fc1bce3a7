"""The retrieval agent: folders in, passages with checked citations out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
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
from .chunks import Chunk, CountTokens, estimate_tokens
from .contract import AddReport, CollectionInfo, Embed, Filters, Found, OnIndexed, Passage
from .errors import IndexEmpty, RetrievalError
from .freshness import Freshness
from .fusion import fuse
from .globs import glob_regex
from .indexing import Indexer
from .sources import scan
from .store import FileState, RootState, Store, Vectors, where_clause

OVERFETCH = 100  # hits per leg before fusion
MAX_QUERY_CHARS = 4_000
MAX_RESULTS = 100

log = structlog.get_logger(__name__)


class LanceRetriever:
    """Retrieval over LanceDB in the home's index folder. Nothing heavy is imported before the first call.

    `embedder` names the vectors' maker (None: not on disk, search goes by full text alone). `count` counts the
    embedder's tokens. The caller awaits `aclose`. For one event loop.
    """

    def __init__(
        self,
        home: Home,
        settings: RetrievalSettings,
        embed: Embed,
        embedder: Callable[[], str | None],
        access: AllowedFolders,
        count: CountTokens = estimate_tokens,
    ) -> None:
        self._home, self._embed, self._embedder = home, embed, embedder
        self._access, self._max_bytes = access, int(settings.max_file_mb * 1_000_000)
        self._indexer = Indexer(access, embed, count, settings.chunk_tokens, self._max_bytes)
        self._opening, self._writing = anyio.Lock(), anyio.Lock()
        self._connection: object | None = None
        self._stores: list[Store] = []
        self._freshness = Freshness(self._max_bytes)

    async def add(self, folder: Path, collection: str | None = None, on_progress: OnIndexed | None = None) -> AddReport:
        """Bring a folder's index up to date and allow the folder; only changed files are embedded again.

        Cancelling keeps every file reported to `on_progress`; the next call goes on from there.

        Raises:
            PathMissing, PathNotAllowed, IndexCorrupt, RetrievalError (disk full), and what `embed` raises.
        """
        started = time.monotonic()
        root = await anyio.to_thread.run_sync(self._access.add, folder)
        name = collection or root.name
        async with self._writing:
            tree = await anyio.to_thread.run_sync(scan, root, self._max_bytes, abandon_on_cancel=True)
            store = await self._store_for_writing()
            if (name, str(root)) not in store.roots:
                await store.save_root(RootState(name, str(root)))
            failed = await self._indexer.sync(store, name, str(root), tree.sources, on_progress or _silent)
            await store.finish()
            with anyio.CancelScope(shield=True):
                await store.save_root(RootState(name, str(root), time.time()))
                await self._retire(store, name, str(root))
            self._freshness.forget()
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
        roots = [state for state in store.roots.values() if collection in (None, state.collection)]
        query = " ".join(query[:MAX_QUERY_CHARS].split())
        where = where_clause(collection, _chosen(store.files, collection, filters) if filters else None)
        stale: set[str] = set()
        passages: list[Passage] = []
        if query:
            vector = await self._query_vector(query, store)
            text = await store.matching(query, where, OVERFETCH)
            dense = await store.nearest(vector, where, OVERFETCH) if vector is not None else []
            text, dense = ([hit for hit in leg if hit.doc in store.files] for leg in (text, dense))
            ranked = [(store.files[hit.doc], hit.chunk, score) for hit, score in fuse(text, dense, vector)]
            wanted = max(1, min(max_results, MAX_RESULTS))
            passages, stale = await anyio.to_thread.run_sync(self._verified, ranked, wanted)
        for other in self._stores:
            if other is not store:  # indexed with another embedder and not anew yet
                stale |= {file.path for file in other.files.values() if collection in (None, file.collection)}
        return Found(passages=tuple(passages), index=await self._freshness.state(store, roots, stale))

    async def collections(self) -> tuple[CollectionInfo, ...]:
        await self._open()
        found = []
        for store in self._stores:
            for name in sorted({name for name, _ in store.roots}):
                roots = [state for state in store.roots.values() if state.collection == name]
                files = [file for file in store.files.values() if file.collection == name and not file.code]
                found.append(
                    CollectionInfo(
                        collection=name,
                        folders=tuple(state.root for state in roots),
                        files=len(files),
                        chunks=sum(file.chunks for file in files),
                        index=await self._freshness.state(store, roots),
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
            holding = [store for store in self._stores if any(name == collection for name, _ in store.roots)]
            if not holding:
                raise self._no_collection(collection)
            files = 0
            with anyio.CancelScope(shield=True):
                for store in holding:
                    files += sum(file.collection == collection for file in store.files.values())
                    await self._drop(store, collection)
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
        passages: list[Passage] = []
        seen: set[str] = set()
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
            elif chunk.text not in seen:
                seen.add(chunk.text)
                passages.append(_passage(file, chunk, score))
        return passages, stale

    def _read_hashed(self, path: str) -> tuple[str, bytes]:
        """A file's SHA-256 and bytes; empty where it cannot be read any more."""
        try:
            data, _ = self._access.read_bytes(Path(path), self._max_bytes)
        except RetrievalError:
            return "", b""
        return hashlib.sha256(data).hexdigest(), data

    async def _open(self, *, writing: bool = False) -> None:
        """Open the index once; where there is none and nothing is to be written, LanceDB is not even imported."""
        async with self._opening:
            if self._connection is None and (writing or any(self._home.index.glob("*.lance"))):
                connection = await Store.connect(self._home.index)
                self._stores = await Store.open_all(connection)
                self._connection = connection

    async def _store_for_writing(self) -> Store:
        await self._open(writing=True)
        if self._embedder() is None:
            await self._embed(["probe"])  # raises what is missing and how to get it
        identity = self._embedder() or "unknown"
        for store in self._stores:
            if store.embedder == identity:
                return store
        vectors = await self._embed(["probe"])
        store = await Store.create(self._connection, identity, int(vectors.shape[1]))
        self._stores.append(store)
        return store

    async def _store_for_reading(self, collection: str | None) -> Store:
        await self._open()
        identity = self._embedder()
        holding = [
            s for s in self._stores if s.files and (collection is None or any(n == collection for n, _ in s.roots))
        ]
        current = [store for store in holding if identity in (None, store.embedder)]
        if current:
            return current[-1]
        if holding:
            return holding[-1]
        raise self._no_collection(collection)

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

    async def _retire(self, current: Store, collection: str, root: str) -> None:
        """Another embedder's rows of a folder go once the folder is indexed anew."""
        for store in [store for store in self._stores if store is not current and (collection, root) in store.roots]:
            log.warning("reindexed_with_new_embedder", collection=collection, was=store.embedder, now=current.embedder)
            await self._drop(store, collection, root)

    async def _drop(self, store: Store, collection: str, root: str | None = None) -> None:
        await store.drop_collection(collection, root)
        if not store.roots:
            await store.destroy()
            self._stores.remove(store)
        self._freshness.forget()


def _silent(done: int, total: int, path: str) -> None:
    return None


def _passage(file: FileState, chunk: Chunk, score: float) -> Passage:
    return Passage(
        path=file.path,
        start_line=chunk.start_line,
        end_line=chunk.end_line,
        start_byte=chunk.start_byte,
        end_byte=chunk.end_byte,
        score=score,
        text=chunk.text,
    )


def _chosen(files: dict[str, FileState], collection: str | None, filters: Filters) -> list[str]:
    """The documents that pass the filters."""
    since_ns = _since_ns(filters.since) if filters.since else 0
    glob = filters.glob
    matches = glob_regex(glob.removeprefix("/") if glob.startswith("/") else f"**/{glob}") if glob else None
    return [
        doc
        for doc, file in files.items()
        if collection in (None, file.collection)
        and filters.kind in (None, file.kind)
        and filters.language in (None, file.language)
        and file.stamp.mtime_ns >= since_ns
        and (matches is None or matches.fullmatch(file.path.removeprefix("/")))
    ]


def _since_ns(since: str) -> int:
    """Nanoseconds since the epoch; a date or time without a zone is this machine's."""
    try:
        moment = datetime.fromisoformat(since)
    except ValueError:
        raise RetrievalError(
            "The filter `since` is not a date.",
            found=repr(since)[:60],
            allowed="2026-01-31 or 2026-01-31T08:00:00Z",
            advice="Write an ISO date or time.",
        ) from None
    return int(moment.timestamp() * 1_000_000_000)
