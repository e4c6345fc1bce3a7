"""How complete and how old an index is, from a look at every file's size, time and inode."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence, Set
from pathlib import Path

import anyio.to_thread

from .contract import IndexState
from .sources import Tree, scan
from .store import FileState, RootState, Store

CHEAP_S = 0.05  # a sweep that takes less processor time (some 2,000 files) is made for every answer
REST = 10.0  # a dearer one is reused for ten times as long as it took, so that sweeps never take more than a tenth
MAX_REST_S = 30.0


class Freshness:
    """Sweeps folders and keeps each sweep a short while: small trees are always fresh, large ones seconds old."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._trees: dict[str, tuple[float, Tree]] = {}

    def forget(self) -> None:
        self._trees.clear()

    async def state(self, store: Store, roots: Sequence[RootState], stale: Set[str] = frozenset()) -> IndexState:
        """The state of these folders; `stale` are paths found changed otherwise, counted as pending too."""
        pending: set[str] = set(stale)
        indexed = skipped = failed = 0
        for root in roots:
            tree = await self._tree(root.root)
            files = [f for f in store.files.values() if (f.collection, f.root) == (root.collection, root.root)]
            pending |= pending_paths(tree, files)
            indexed += sum(not file.code for file in files)
            failed += sum(bool(file.code) for file in files) + len(tree.failed)
            skipped += tree.skipped
        times = [root.synced_at for root in roots]
        oldest = min((moment for moment in times if moment is not None), default=None)
        age_s = None if oldest is None or None in times else round(max(0.0, time.time() - oldest), 1)
        return IndexState(indexed=indexed, pending=len(pending), skipped=skipped, failed=failed, age_s=age_s)

    async def _tree(self, root: str) -> Tree:
        if root in self._trees and time.monotonic() < self._trees[root][0]:
            return self._trees[root][1]
        tree, took_s = await anyio.to_thread.run_sync(_timed_scan, root, self._max_bytes, abandon_on_cancel=True)
        if took_s > CHEAP_S:
            self._trees[root] = (time.monotonic() + min(MAX_REST_S, REST * took_s), tree)
        return tree


def _timed_scan(root: str, max_bytes: int) -> tuple[Tree, float]:
    started = time.thread_time()
    return scan(Path(root), max_bytes), time.thread_time() - started


def pending_paths(tree: Tree, files: Iterable[FileState]) -> set[str]:
    """Paths that are new, changed or gone since they were indexed."""
    known = {file.path: file.stamp for file in files}
    now = {source.path: source.stamp for source in tree.sources}
    return {path for path in known.keys() | now.keys() if known.get(path) != now.get(path)}
