"""How far an index is from its folders as the disk shows them now."""

from __future__ import annotations

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

CHEAP_FILES = 2_000
"""So many are looked at for every answer (some 10 ms where none changed). By number, not by a clock that a busy machine
makes run late: the next answer must tell of every change."""
REST = 40.0  # a dearer look is reused for so many times as long as it took: 1 s for 5,000 files that did not change
MAX_REST_S = 10.0


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


class Freshness:
    """Looks at every file's size, times and inode. A very large folder's look may be seconds old."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._trees: dict[str, tuple[float, Tree]] = {}
        self._looks: dict[Key, tuple[Tree, Store, int, Look]] = {}

    def forget(self) -> None:
        """See each folder anew at the next look."""
        self._trees.clear()
        self._looks.clear()

    async def look(self, store: Store, collection: str | None) -> Look:
        keys = [key for key in store.roots if collection in (None, key[0])]
        return reduce(Look.__add__, [await self._look_at(store, key) for key in keys], Look())

    async def _look_at(self, store: Store, key: Key) -> Look:
        until, tree = self._trees.get(key[1], (0.0, Tree((), {}, ())))
        if time.monotonic() >= until:
            tree, rest_s = await anyio.to_thread.run_sync(self._seen, key[1], tree, abandon_on_cancel=True)
            self._trees[key[1]] = time.monotonic() + rest_s, tree
        seen = self._looks.get(key)
        if seen is None or seen[:3] != (tree, store, store.revision):
            seen = self._looks[key] = (tree, store, store.revision, _compared(tree, store, key))
        return seen[3]

    def _seen(self, root: str, known: Tree) -> tuple[Tree, float]:
        """The tree, and for how many seconds it will do."""
        started = time.thread_time()
        tree = self._sources.tree(root, known)
        if len(tree.sources) + sum(tree.skipped.values()) <= CHEAP_FILES:
            return tree, 0.0
        return tree, min(MAX_REST_S, REST * (time.thread_time() - started))


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
