"""How far an index is from its folders as the disk shows them now."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field
from functools import reduce

import anyio.to_thread

from .contract import FailedFile, IndexState
from .rows import Key
from .sources import Sources, Tree
from .store import Store
from .watching import Notices

CHEAP_FILES = 2_000
"""So many are looked at for every answer (some 10 ms where none changed), as the next answer must tell of every change.
Of more, the system tells what changed since they were looked at, within milliseconds."""
REST = 10.0  # a dearer look is reused for ten times as long as it took, so that looks never take more than a tenth
MAX_REST_S = 30.0  # and no longer than this, whatever the system tells
IDLE_S = 60.0  # without a look for so long, the system is no longer asked to tell


@dataclass(frozen=True, slots=True)
class Look:
    """One or more folders beside what is indexed of them. `pending` are files changed, new or gone."""

    indexed: int = 0
    pending: frozenset[str] = frozenset()
    failed: tuple[FailedFile, ...] = ()
    skipped: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Look) -> Look:
        return Look(
            self.indexed + other.indexed,
            self.pending | other.pending,
            self.failed + other.failed,
            self.skipped + other.skipped,
        )

    def state(self, age_s: float | None, stale: Set[str] = frozenset()) -> IndexState:
        """`stale` are paths found changed otherwise."""
        return IndexState(
            indexed=self.indexed,
            pending=len(self.pending | stale),
            skipped=self.skipped.total(),
            failed=len(self.failed),
            age_s=age_s,
            reasons=self.skipped + Counter(file.code for file in self.failed),
        )


class _Folder:
    """A folder as it was last seen. Safe to use from several threads."""

    def __init__(self, sources: Sources, root: str) -> None:
        self._sources, self._root = sources, root
        self._notices = Notices(root)
        self._lock = threading.Lock()
        self._tree: Tree | None = None
        self._rests_until = self._holds_until = 0.0

    def seen(self) -> Tree:
        """The folder, looked at again where it may have changed. Blocking."""
        with self._lock:
            now, known = time.monotonic(), self._tree
            if known and len(known.sources) + sum(known.skipped.values()) > CHEAP_FILES:
                if now < self._rests_until or (now < self._holds_until and not self._notices.any()):
                    return known
                self._holds_until = 0.0  # should the look fail, what was told is lost
            started = time.thread_time()
            self._tree = self._sources.tree(self._root, known)
            self._holds_until = now + MAX_REST_S
            self._rests_until = now + min(MAX_REST_S, REST * (time.thread_time() - started))
            return self._tree


class Freshness:
    """Looks at every file's size, times and inode. A very large folder's look may be seconds old where the system does
    not tell of changes."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._folders: dict[str, _Folder] = {}
        self._looks: dict[Key, tuple[Tree, Store, int, Look]] = {}
        self._idle: asyncio.TimerHandle | None = None

    def forget(self) -> None:
        """See each folder anew at the next look."""
        self._folders.clear()
        self._looks.clear()
        if self._idle:
            self._idle.cancel()

    async def look(self, store: Store, collection: str | None) -> Look:
        if self._idle:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE_S, self.forget)
        keys = [key for key in store.roots if collection in (None, key[0])]
        return reduce(Look.__add__, [await self._look_at(store, key) for key in keys], Look())

    async def _look_at(self, store: Store, key: Key) -> Look:
        folder = self._folders.setdefault(key[1], _Folder(self._sources, key[1]))
        tree = await anyio.to_thread.run_sync(folder.seen, abandon_on_cancel=True)
        seen = self._looks.get(key)
        if seen is None or seen[:3] != (tree, store, store.revision):
            seen = self._looks[key] = (tree, store, store.revision, _compared(tree, store, key))
        return seen[3]


def age_s(store: Store, collection: str | None) -> float | None:
    """Seconds since the oldest of the last finished syncs; None where one was never finished."""
    times = [root.synced_at for (name, _), root in store.roots.items() if collection in (None, name)]
    known = [at for at in times if at is not None]
    return round(max(0.0, time.time() - min(known)), 1) if known and len(known) == len(times) else None


def _compared(tree: Tree, store: Store, key: Key) -> Look:
    files = store.files_in(*key)
    now = {source.path: source for source in tree.sources}
    pending = files.keys() ^ now.keys()
    pending |= {path for path in files.keys() & now.keys() if files[path].stamp != now[path].stamp}
    broken = [FailedFile(path=file.path, code=file.code, reason=file.reason) for file in files.values() if file.code]
    return Look(len(files) - len(broken), frozenset(pending), (*tree.failed, *broken), Counter(tree.skipped))
