"""The models' history: sampled while anything is in memory, summed up for a day, bounded, and never in the way."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
import pytest

from rolecall.roles.contract import MemoryState, ModelEvent
from rolecall.server.telemetry.history import KEPT_HOURS, MAX_EVENTS, ModelHistory
from rolecall.server.telemetry.store import ReceiptStore

from ..scripted import ScriptedModels

pytestmark = pytest.mark.anyio


def memory(measured: int, reserved: int) -> MemoryState:
    return MemoryState(
        budget_bytes=100, configured_bytes=100, reserved_bytes=reserved, measured_bytes=measured, machine_bytes=200,
        available_bytes=100,
    )  # fmt: skip


async def test_a_day_is_summed_up_with_averages_peaks_and_counts(store: ReceiptStore) -> None:
    history = ModelHistory(store)
    history.note(ModelEvent("loaded", "a", seconds=2.0, size_bytes=10, cold=True))
    history.note(ModelEvent("loaded", "b", seconds=4.0, size_bytes=10))
    history.note(ModelEvent("evicted", "a"))
    history.note(ModelEvent("died", "b"))
    await history.flush(memory(10, 20), 1)
    await history.flush(memory(40, 60), 3)

    assert await history.last_day() == {
        "average_bytes": 25, "peak_bytes": 40, "average_reserved_bytes": 40, "peak_reserved_bytes": 60,
        "most_models": 3,
        "loads": {
            "cold_starts": 1, "loads": 2, "mean_load_s": 3.0, "max_load_s": 4.0, "evictions": 1, "deaths": 1,
        },
    }  # fmt: skip


async def test_what_happened_survives_a_restart_and_leaves_the_day_after_a_day(store: ReceiptStore) -> None:
    history = ModelHistory(store)
    await history.flush(memory(10, 20), 1)
    history.note(ModelEvent("died", "a"))
    await history.flush()
    await store.aclose()
    assert (await ModelHistory(store).last_day())["loads"]["deaths"] == 1

    await store.run(("UPDATE model_events SET at = at - 90000", ()))
    await store.run(("UPDATE memory_hours SET hour = hour - 25", ()))

    day = await ModelHistory(store).last_day()
    assert (day["average_bytes"], day["peak_bytes"], day["loads"]["deaths"]) == (None, None, 0)


async def test_old_hours_and_the_oldest_events_are_dropped(store: ReceiptStore) -> None:
    history, hour = ModelHistory(store), int(time.time() // 3600)
    await history.flush(memory(1, 1), 1)
    await store.run(("UPDATE memory_hours SET hour = ?", (hour - KEPT_HOURS,)))
    for number in range(MAX_EVENTS):
        history.note(ModelEvent("idle", f"m{number}"))
    await history.flush()
    history.note(ModelEvent("idle", "last"))
    await history.flush(memory(1, 1), 1)

    assert [row[0] for row in await store.run(("SELECT hour FROM memory_hours", ()))] == [hour]
    models = [row[0] for row in await store.run(("SELECT model FROM model_events ORDER BY rowid", ()))]
    assert (len(models), models[0], models[-1]) == (MAX_EVENTS, "m1", "last")


async def test_it_samples_once_something_is_in_memory_and_sleeps_until_then(store: ReceiptStore) -> None:
    models, history = ScriptedModels(["unasked"]), ModelHistory(store)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(history.watch, models)
        await anyio.wait_all_tasks_blocked()
        assert (await history.last_day())["peak_bytes"] is None
        resident = await models.load("reasoning")
        history.note(ModelEvent("loaded", resident.model, seconds=1.0, size_bytes=1, cold=True))
        with anyio.fail_after(5):
            while (await history.last_day())["peak_bytes"] is None:
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()

    day = await history.last_day()
    assert (day["peak_bytes"], day["most_models"], day["loads"]["loads"]) == (resident.measured_bytes, 1, 1)


async def test_a_file_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "receipts.sqlite3").mkdir()
    history = ModelHistory(ReceiptStore(tmp_path / "receipts.sqlite3"))

    history.note(ModelEvent("died", "a"))
    await history.flush(memory(1, 1), 1)
    await history.flush(memory(1, 1), 1)
