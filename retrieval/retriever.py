"""The retrieval agent: folders in, passages with checked citations out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import anyio
import anyio.to_thread
import numpy as np
import structlog

from rolecall.config.errors import RolecallError
from rolecall.config.home import Home
from rolecall.config.settings import RetrievalSettings

from .access import AllowedFolders
from .chunks import Chunk, CountTokens, cut, estimate_tokens
from .contract import AddReport, CollectionInfo, Embed, FailedFile, Filters, Found, OnIndexed, Passage
from .errors import IndexEmpty, RetrievalError
from .freshness import Freshness
from .fusion import fuse
from .globs import glob_regex
from .sources import Source, scan
from .store import Document, FileState, RootState, Store, Vectors, where_clause

OVERFETCH = 100  # hits per leg before fusion
BATCH_CHUNKS = 64  # chunks per commit: fewer make a table version per file, more lose more on a kill
BATCH_FILES = 256
MAX_QUERY_CHARS = 4_000
MAX_RESULTS = 100

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Prepared:
    file: FileState
    chunks: tuple[Chunk, ...] = ()
    same_bytes: bool = False


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
        self._home, self._settings, self._embed, self._embedder = home, settings, embed, embedder
        self._access, self._count = access, count
        self._max_bytes = int(settings.max_file_mb * 1_000_000)
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
            tree = await anyio.to_thread.run_sync(scan, root, self._max_bytes)
            store = await self._store_for_writing()
            if (name, str(root)) not in store.roots:
                await store.save_root(RootState(name, str(root)))
            failed = await self._sync(store, name, str(root), tree.sources, on_progress or _silent)
            with anyio.CancelScope(shield=True):
                await store.finish()
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
            ranked = [
                _passage(store.files[hit.doc], hit.chunk, score)
                for hit, score in fuse(text, dense, vector)
                if hit.doc in store.files
            ]
            hashes = {file.path: file.sha256 for file in store.files.values()}
            wanted = max(1, min(max_results, MAX_RESULTS))
            passages, stale = await anyio.to_thread.run_sync(self._verified, ranked, hashes, wanted)
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

    async def _sync(
        self, store: Store, name: str, root: str, sources: Sequence[Source], on_progress: OnIndexed
    ) -> tuple[FailedFile, ...]:
        known = {file.path: file for file in store.files.values() if (file.collection, file.root) == (name, root)}
        gone = [known[path].doc for path in known.keys() - {source.path for source in sources}]
        if gone:
            await store.drop(gone)
        todo = [s for s in sources if s.path not in known or known[s.path].stamp != s.stamp or known[s.path].code]
        done = len(sources) - len(todo)
        batch: list[_Prepared] = []
        for i, source in enumerate(todo, 1):
            blank = FileState(name, root, source.path, source.kind, source.language, source.stamp)
            batch.append(await anyio.to_thread.run_sync(self._prepare, blank, known.get(source.path)))
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
            source = self._access.read(Path(blank.path), self._max_bytes)
        except RetrievalError as error:
            return _Prepared(replace(blank, code=error.code, reason=error.found or error.message))
        if known and not known.code and known.sha256 == source.sha256:
            return _Prepared(replace(known, stamp=blank.stamp), same_bytes=True)
        title = Path(blank.path).relative_to(Path(blank.root).parent).as_posix()
        chunks = cut(source.text, blank.kind, title[-80:], self._settings.chunk_tokens, self._count)
        return _Prepared(replace(blank, sha256=source.sha256, chunks=len(chunks)), chunks)

    async def _commit(self, store: Store, batch: Sequence[_Prepared]) -> None:
        texts = [f"{chunk.header}\n{chunk.text}" for item in batch for chunk in item.chunks]
        vectors: list[Vectors] = []
        for start in range(0, len(texts), BATCH_CHUNKS):
            vectors.extend(await self._embed(texts[start : start + BATCH_CHUNKS]))
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

    async def _query_vector(self, query: str, store: Store) -> Vectors | None:
        """None where there is no embedder, or another one than the index was made with: full text alone answers."""
        try:
            if self._embedder() == store.embedder:
                return np.asarray((await self._embed([query]))[0], dtype=np.float32)
        except RolecallError as error:
            log.warning("search_by_text_only", code=error.code)
        return None

    def _verified(
        self, ranked: Iterable[Passage], hashes: dict[str, str], wanted: int
    ) -> tuple[list[Passage], set[str]]:
        """The first `wanted` passages whose file is unchanged, duplicates once; and the paths of changed files."""
        passages: list[Passage] = []
        seen: set[str] = set()
        data: dict[str, bytes | None] = {}
        for passage in ranked:
            if len(passages) == wanted:
                break
            if passage.path not in data:
                data[passage.path] = self._same_bytes(passage.path, hashes[passage.path])
            found = data[passage.path]
            if found is None or passage.text in seen:
                continue
            if found[passage.start_byte : passage.end_byte] == passage.text.encode():
                seen.add(passage.text)
                passages.append(passage)
        return passages, {path for path, found in data.items() if found is None}

    def _same_bytes(self, path: str, sha256: str) -> bytes | None:
        try:
            data, _ = self._access.read_bytes(Path(path), self._max_bytes)
        except RetrievalError:
            return None
        return data if hashlib.sha256(data).hexdigest() == sha256 else None

    async def _open(self) -> None:
        async with self._opening:
            if self._connection is None:
                connection = await Store.connect(self._home.index)
                self._stores = await Store.open_all(connection)
                self._connection = connection

    async def _store_for_writing(self) -> Store:
        await self._open()
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
    glob = glob_regex(filters.glob if filters.glob.startswith("/") else f"**/{filters.glob}") if filters.glob else None
    return [
        doc
        for doc, file in files.items()
        if collection in (None, file.collection)
        and filters.kind in (None, file.kind)
        and filters.language in (None, file.language)
        and file.stamp.mtime_ns >= since_ns
        and (glob is None or glob.fullmatch(file.path))
    ]


def _since_ns(since: str) -> int:
    try:
        moment = datetime.fromisoformat(since)
    except ValueError:
        raise RetrievalError(
            "The filter `since` is not a date.",
            found=repr(since)[:60],
            allowed="2026-01-31 or 2026-01-31T08:00:00Z",
            advice="Write an ISO date or time.",
        ) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC) if "T" in since else moment.astimezone()
    return int(moment.timestamp() * 1_000_000_000)
