"""The retrieval agent: folders in, passages with checked citations out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.to_thread

from rolecall.config.home import Home
from rolecall.config.settings import RetrievalSettings

from .access import AllowedFolders
from .contract import (
    AddReport,
    CollectionInfo,
    CollectionStatus,
    Embed,
    FailedFile,
    Filters,
    Found,
    Leg,
    OnIndexed,
    Passage,
    Preview,
    Rerank,
    Verdict,
)
from .errors import IndexCorrupt, IndexEmpty, IndexLarge
from .freshness import Freshness, Look, age_s
from .generations import Generations
from .indexing import Indexer
from .parsing.child import Limits
from .rows import Key, Root
from .search import Outcome, Searcher, checked, chosen
from .sources import Sources, Tree, scan
from .store import Database, Store, where_clause
from .watching import changed

SHOWN_FOLDERS = 10  # of a preview
SAMPLE_PASSAGES = 16  # embedded to tell how long an index takes
BYTES_PER_TOKEN = 4
MAX_QUERY_CHARS = 4_000
MAX_RESULTS = 100
SHOWN_FILES = 1_000  # of each list of a collection's status


class LanceRetriever:
    """Retrieval over LanceDB in the home's index folder, or where the settings' `uri` says. Nothing heavy is imported
    before the first call.

    `embedder` names the vectors' maker (None: not on disk, search goes by full text alone). `tokenizer` is where its
    `tokenizer.json` is or will be: without one tokens are estimated. `on_change` hears when what is indexed changed and
    must return at once. `embed_query` is for embedders that take a question otherwise than a passage; `rerank`, where
    given, has a say in the order. The caller awaits `aclose`. For one event loop.
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
        *,
        embed_query: Embed | None = None,
        rerank: Rerank | None = None,
    ) -> None:
        self._embed, self._embedder, self._chunk_tokens = embed, embedder, settings.chunk_tokens
        self._access, self._on_change = access, on_change
        self._sources = Sources(access, int(settings.max_file_mb * 1_000_000))
        self._indexer = Indexer(self._sources, embed, Limits(settings.chunk_tokens, tokenizer), on_change)
        self._searcher = Searcher(self._sources, embed_query or embed, embedder, tokenizer, rerank)
        self._generations = Generations(Database(home.index, settings.uri), embedder)
        self._freshness = Freshness(self._sources)
        self._writing = anyio.Lock()
        self._suspect: set[str] = set()  # files whose stored hash or chunks were found not to be theirs

    async def preview(self, folder: Path) -> Preview:
        """What `add` would do; nothing is changed. The embedder, where it is on disk, is timed with a sample. Raises
        PathMissing, PathNotAllowed."""
        folder = await anyio.to_thread.run_sync(self._access.allowable, folder)
        tree = await self._scanned(str(folder))
        size_bytes = sum(source.size_bytes for source in tree.sources)
        folders = Counter(str(Path(source.path).parent) for source in tree.sources)
        return Preview(
            folder=str(folder),
            files=len(tree.sources),
            size_bytes=size_bytes,
            kinds=Counter(source.kind for source in tree.sources),
            skipped=tree.skipped,
            folders=dict(folders.most_common(SHOWN_FOLDERS)),
            failed=tree.failed,
            seconds=None if self._embedder() is None else round(size_bytes / await self._bytes_per_s(), 3),
        )

    async def add(
        self, folder: Path, collection: str | None = None, on_progress: OnIndexed | None = None,
        max_files: int | None = None, private: bool | None = None,
    ) -> AddReport:  # fmt: skip
        """Bring a folder's index up to date and allow the folder; only changed files are embedded again.

        `private` None keeps what the collection is. Cancelling keeps every file reported to `on_progress`; the next
        call goes on from there. Where the index was made with another embedder, all its folders are brought over.

        Raises:
            IndexLarge: a folder new to the index has over `max_files` files; nothing was changed.
            PathMissing, PathNotAllowed, IndexCorrupt, RetrievalError (disk full), and what `embed` raises.
        """
        folder = await anyio.to_thread.run_sync(self._access.allowable, folder)
        key = collection or folder.name, str(folder)
        async with self._writing:
            old = await self._generations.serving()
            if max_files is not None and (old is None or key not in old.roots):
                files = len((await self._scanned(key[1])).sources)
                if files > max_files:
                    allowed, advice = f"{max_files:,} unasked", "Index a folder below it, or confirm with `--yes`."
                    raise IndexLarge("This folder is large.", found=f"{files:,} files", allowed=allowed, advice=advice)
            known = old.private if old else frozenset()
            root = Root(private=key[0] in known if private is None else private)
            keys = {other for other in (*(old.roots if old else ()), key) if other[0] == key[0]}
            if root.private or private is not None:  # before anything of it can be read or found
                folders = [Path(folder) for _, folder in keys]
                await anyio.to_thread.run_sync(self._access.set_private, folders, root.private)
            await anyio.to_thread.run_sync(self._access.add, folder)
            await self._generations.for_writing(self._embed)
            await self._generations.enlist(dict.fromkeys(keys, root))
            return (await self._sync_all([key], on_progress))[0][0]

    async def sync(self, collection: str | None = None, on_progress: OnIndexed | None = None) -> tuple[AddReport, ...]:
        """Bring a collection's folders, or all, up to date; a report for each. A folder that cannot be read now keeps
        what is indexed of it. Raises as `add` does, and IndexEmpty."""
        async with self._writing:
            store = await self._store_for_reading(collection)
            keys = [key for key in store.roots if collection in (None, key[0])]
            return tuple(report for report, _ in (await self._sync_all(keys, on_progress))[: len(keys)])

    async def watch(self, collection: str | None, on_synced: Callable[[AddReport], None]) -> None:
        """Keep a collection, or all, in step with the disk until cancelled, or until nothing of it is indexed any more.
        `on_synced` hears of each folder first and then whenever something of it changed. Raises as `sync` does."""
        await self._store_for_reading(collection)
        heard: set[Key] = set()

        def watched() -> list[Key]:
            return [key for key in self._generations.roots() if collection in (None, key[0])]

        async for folders in changed(lambda: {folder for _, folder in watched()}):
            for key in watched():
                if key[1] in folders:
                    async with self._writing:
                        if key not in self._generations.roots():
                            continue  # removed while this waited
                        report, news = (await self._sync_all([key], None))[0]
                    if news or key not in heard:
                        heard.add(key)
                        on_synced(report)

    async def search(
        self, query: str, collection: str | None = None, max_results: int = 8, filters: Filters | None = None,
        leg: Leg = "fused",
    ) -> Found:  # fmt: skip
        """The best passages, each verified against the disk now; a changed file is never quoted. Raises IndexEmpty:
        nothing is indexed, or no such collection. RetrievalError: a filter that cannot be read."""
        store = await self._store_for_reading(collection)
        query = " ".join(query[:MAX_QUERY_CHARS].encode("utf-8", "replace").decode().split())
        docs = await anyio.to_thread.run_sync(chosen, dict(store.files), filters) if filters else None
        where = where_clause(collection, docs)
        outcome, looks = Outcome(), list[Look]()

        async def look() -> None:
            looks.append(await self._freshness.look(store, collection))

        try:
            if query:
                outcome = await self._searcher.search(store, query, where, min(max_results, MAX_RESULTS), leg, look)
            else:
                await look()
        except IndexCorrupt:
            if store is await self._generations.serving():
                raise
            return await self.search(query, collection, max_results, filters, leg)  # it was replaced and dropped
        self._suspect |= outcome.damaged
        index = looks[0].state(age_s(store, collection), outcome.stale | outcome.damaged)
        return Found(passages=tuple(outcome.passages), index=index, answerable=outcome.answerable)

    async def check(self, passages: Sequence[Passage]) -> tuple[Verdict, ...]:
        """Whether the bytes that citations name are still what they were."""
        store, texts = await self._generations.serving(), list[bytes]()
        if store and (hashes := {passage.extracted_sha256 for passage in passages} - {""}):
            docs = [doc for doc, file in store.files.items() if file.extracted_sha256 in hashes]
            texts += (await store.extracted(docs)).values()
        return await anyio.to_thread.run_sync(checked, self._sources, passages, texts)

    async def collections(self) -> tuple[CollectionInfo, ...]:
        store = await self._generations.serving()
        if store is None:
            return ()
        return tuple([_info(store, name, await self._freshness.look(store, name)) for name in store.collections])

    async def status(self, collection: str | None = None) -> tuple[CollectionStatus, ...]:
        """Collections file by file. Raises IndexEmpty where there is none of that name."""
        store = await (self._store_for_reading(collection) if collection else self._generations.serving())
        if store is None:
            return ()
        building, found = self._generations.building, []
        for name in [name for name in store.collections if collection in (None, name)]:
            look = await self._freshness.look(store, name)
            status = CollectionStatus(
                **dict(_info(store, name, look)),
                pending_files=tuple(sorted(look.pending)[:SHOWN_FILES]),
                failed_files=look.failed[:SHOWN_FILES],
                embedder=store.embedder,
                rebuilding_for=building.embedder if building else None,
            )
            found.append(status)
        return tuple(found)

    async def indexed(self, collection: str, path: str) -> Path | None:
        """The collection's file that a path names, absolute or from one of its folders; None where none is indexed."""
        if (store := await self._generations.serving()) is None:
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
                await self._generations.drop_collection(collection)
            self._freshness.forget()
            self._on_change()
            return files

    async def aclose(self) -> None:
        """Wait for a running write, and let the index go."""
        async with self._writing:
            self._generations.close()

    async def _sync_all(self, keys: Sequence[Key], on_progress: OnIndexed | None) -> list[tuple[AddReport, bool]]:
        """A report for each folder, and whether anything of it changed; after these come the folders that another
        embedder's index still lacks."""
        store = await self._generations.for_writing(self._embed)
        lacking = [key for key, root in store.roots.items() if self._generations.building and root.synced_at is None]
        done: list[tuple[AddReport, bool]] = []
        out_of_reach = set()
        for key in dict.fromkeys((*keys, *lacking)):
            done.append(await self._sync_one(store, key, on_progress or (lambda *_: None)))
            if store.roots[key].synced_at is None:
                out_of_reach.add(key)
        await self._generations.settle(out_of_reach)
        self._freshness.forget()
        self._on_change()
        return done

    async def _sync_one(self, store: Store, key: Key, on_progress: OnIndexed) -> tuple[AddReport, bool]:
        started, before, news = time.monotonic(), store.revision, False
        tree = await anyio.to_thread.run_sync(self._sources.tree, key[1], abandon_on_cancel=True)
        if not any(file.path == key[1] for file in tree.failed):
            suspect = set(self._suspect)  # a search may find more meanwhile
            await self._indexer.sync(store, key, tree, suspect, on_progress)
            self._suspect -= suspect & {source.path for source in tree.sources}
            news = store.revision != before
            await store.save_roots({key: replace(store.roots[key], synced_at=time.time())})
        if news:
            await store.optimize()
            await store.narrow()
        files = store.files_in(*key).values()
        failed = [FailedFile(path=file.path, code=file.code, reason=file.reason) for file in files if file.code]
        report = AddReport(
            collection=key[0],
            indexed=len(files) - len(failed),
            skipped=sum(tree.skipped.values()),
            failed=(*tree.failed, *failed),
            seconds=round(time.monotonic() - started, 3),
        )
        return report, news

    async def _scanned(self, root: str) -> Tree:
        return await anyio.to_thread.run_sync(scan, Path(root), self._sources.max_bytes, abandon_on_cancel=True)

    async def _bytes_per_s(self) -> float:
        """The embedder's pace, by a sample."""
        passage = "word " * self._chunk_tokens
        await self._embed([passage])  # the first call may load the embedder
        started = time.monotonic()
        await self._embed([passage] * SAMPLE_PASSAGES)
        return SAMPLE_PASSAGES * self._chunk_tokens * BYTES_PER_TOKEN / (time.monotonic() - started)

    async def _store_for_reading(self, collection: str | None) -> Store:
        store = await self._generations.serving()
        if store is None or not store.roots:
            raise IndexEmpty("Nothing is indexed.", advice="Run `rolecall index add FOLDER`.")
        if collection is not None and collection not in store.collections:
            allowed, advice = ", ".join(store.collections), "Name one of these, or run `rolecall index add FOLDER`."
            raise IndexEmpty("No such collection.", found=repr(collection), allowed=allowed, advice=advice)
        return store


def _info(store: Store, name: str, look: Look) -> CollectionInfo:
    chunks = [file.chunks for file in store.files.values() if file.collection == name and not file.code]
    return CollectionInfo(
        collection=name,
        folders=tuple(root for other, root in store.roots if other == name),
        files=len(chunks),
        chunks=sum(chunks),
        index=look.state(age_s(store, name)),
        private=name in store.private,
    )
