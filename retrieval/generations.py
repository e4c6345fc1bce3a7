"""Which index answers and which one is written, while another embedder's takes the place of the old one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import anyio

from .contract import Embed
from .rows import Key, Root
from .store import Database, Store


class Generations:
    """The index that answers and, where the embedder changed, the one that is built meanwhile. Once that holds every
    folder it answers, and the old one goes."""

    def __init__(self, database: Database, embedder: Callable[[], str | None]) -> None:
        self._database, self._embedder = database, embedder
        self._opening, self._opened = anyio.Lock(), False
        self._serving: Store | None = None
        self.building: Store | None = None

    async def serving(self) -> Store | None:
        """The index that answers; None where nothing was ever indexed."""
        async with self._opening:
            if not self._opened:

                def whole(store: Store) -> tuple[int, int, bool]:
                    synced = sum(root.synced_at is not None for root in store.roots.values())
                    return synced, len(store.files), store.embedder == self._embedder()

                stores = sorted(await self._database.stores(), key=whole)
                self._serving = stores.pop() if stores else None
                self.building = stores.pop() if stores else None
                self._opened = True
            return self._serving

    async def for_writing(self, embed: Embed) -> Store:
        """The current embedder's index, made where there is none. Raises what `embed` does."""
        serving, identity = await self.serving(), self._embedder()
        wanted = next((each for each in (serving, self.building) if each and each.embedder == identity), None)
        if wanted is None:
            vectors = await embed(["probe"])  # raises what is missing and how to get it
            wanted = await self._database.create(self._embedder() or "unknown", int(vectors.shape[1]))
        if self.building is not None and self.building is not wanted:
            await self._database.drop(self.building)
            self.building = None
        if serving is None:
            self._serving = wanted
        elif wanted is not serving:
            missing = serving.roots.keys() - wanted.roots.keys()  # after a kill perhaps all of them
            await wanted.save_roots({key: Root(private=serving.roots[key].private) for key in missing})
            self.building = wanted
        return wanted

    def roots(self) -> tuple[Key, ...]:
        """The folders of the index that answers, as far as it is open."""
        return tuple(self._serving.roots) if self._serving else ()

    async def enlist(self, roots: Mapping[Key, Root]) -> None:
        """List folders, or mark them private; what each index holds of them stays."""
        for store in self._all():
            changed = {
                key: replace(store.roots.get(key, Root()), private=root.private)
                for key, root in roots.items()
                if key not in store.roots or store.roots[key].private != root.private
            }
            await store.save_roots(changed)

    async def drop_collection(self, collection: str) -> None:
        for store in reversed(self._all()):  # after a kill between, the one that answers still knows of it
            await store.drop_collection(collection)

    async def settle(self, out_of_reach: Collection[Key]) -> None:
        """Let the built index answer once it holds every folder, but those that cannot be read now."""
        built = self.building
        if built and all(root.synced_at is not None or key in out_of_reach for key, root in built.roots.items()):
            old, self._serving, self.building = self._serving, built, None
            if old is not None:
                await self._database.drop(old)

    def close(self) -> None:
        self._serving, self.building, self._opened = None, None, False

    def _all(self) -> list[Store]:
        return [store for store in (self._serving, self.building) if store]
