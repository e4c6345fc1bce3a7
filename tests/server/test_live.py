"""The host keeps the index in step with its folders, and no fault of that ends the host."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from rolecall.retrieval.contract import AddReport
from rolecall.retrieval.errors import IndexCorrupt, IndexEmpty
from rolecall.server.host.live import LiveIndex

from .desk import ListRetriever

pytestmark = pytest.mark.anyio


class Ending(ListRetriever):
    """A watch that ends as it is told to, and goes on where it is told nothing more."""

    def __init__(self, *ends: Exception) -> None:
        super().__init__()
        self.ends = list(ends)
        self.watches = 0

    async def watch(self, collection: str | None, on_synced: Callable[[AddReport], None]) -> None:
        self.watches += 1
        if self.ends:
            raise self.ends.pop(0)
        on_synced(AddReport(collection="a", indexed=1, skipped=0, failed=(), seconds=0.1))
        await anyio.sleep_forever()


async def test_nothing_is_watched_before_somebody_comes() -> None:
    def unasked() -> Ending:
        raise AssertionError("unasked")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(LiveIndex(unasked).run)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    "end", [IndexEmpty("Nothing is indexed."), IndexCorrupt("It is broken."), ValueError("of a kind nobody foresaw")]
)
async def test_a_watch_that_ended_begins_again_with_the_next_news(end: Exception) -> None:
    retriever = Ending(end)
    live = LiveIndex(lambda: retriever)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(live.run)
        live.begin()
        await anyio.wait_all_tasks_blocked()
        assert retriever.watches == 1
        for _ in range(2):  # the second finds it watching
            live.begin()
            await anyio.wait_all_tasks_blocked()
        assert retriever.watches == 2
        tasks.cancel_scope.cancel()
