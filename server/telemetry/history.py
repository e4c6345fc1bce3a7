"""What became of the models in memory, and what memory they took: kept beside the receipts, shown by `status`."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import anyio
import structlog

from rolecall.roles.contract import MemoryState, ModelEvent, RoleModels

from ..errors import ServerError
from .store import ReceiptStore

SAMPLE_S = 10.0
MAX_EVENTS = 10_000
KEPT_HOURS = 90 * 24

_NOTE = "INSERT INTO model_events VALUES (?, ?, ?, ?, ?, ?)"
_FORGET = "DELETE FROM model_events WHERE rowid <= (SELECT MAX(rowid) FROM model_events) - ?"
_SAMPLE = """
INSERT INTO memory_hours VALUES (?1, 1, ?2, ?2, ?3, ?3, ?4) ON CONFLICT (hour) DO UPDATE SET samples = samples + 1,
measured_sum = measured_sum + ?2, measured_peak = MAX(measured_peak, ?2),
reserved_sum = reserved_sum + ?3, reserved_peak = MAX(reserved_peak, ?3), models_peak = MAX(models_peak, ?4)
"""
_EXPIRE = "DELETE FROM memory_hours WHERE hour <= ?"
_MEMORY = """
SELECT SUM(measured_sum) / SUM(samples) AS average_bytes, MAX(measured_peak) AS peak_bytes,
SUM(reserved_sum) / SUM(samples) AS average_reserved_bytes, MAX(reserved_peak) AS peak_reserved_bytes,
MAX(models_peak) AS most_models FROM memory_hours WHERE hour > ?
"""
_LOADS = """
SELECT COUNT(*) FILTER (WHERE kind = 'loaded' AND cold) AS cold_starts,
COUNT(*) FILTER (WHERE kind = 'loaded') AS loads, AVG(seconds) FILTER (WHERE kind = 'loaded') AS mean_load_s,
MAX(seconds) FILTER (WHERE kind = 'loaded') AS max_load_s, COUNT(*) FILTER (WHERE kind = 'evicted') AS evictions,
COUNT(*) FILTER (WHERE kind = 'died') AS deaths FROM model_events WHERE at > ?
"""

log = structlog.get_logger()


class ModelHistory:
    """Model events, the latest 10,000, and memory by the hour, of 90 days. A file that cannot be written loses them
    and nothing else."""

    def __init__(self, store: ReceiptStore) -> None:
        self._store = store
        self._pending: deque[tuple[object, ...]] = deque(maxlen=MAX_EVENTS)
        self._news = anyio.Event()
        self._failing = False

    def note(self, event: ModelEvent) -> None:
        """Keep an event; written with the next sample. For the event loop's thread."""
        self._pending.append((time.time(), event.kind, event.model, event.seconds, event.size_bytes, event.cold))
        self._news.set()

    async def watch(self, models: RoleModels) -> None:
        """Sample every 10 s while any model is in memory, until cancelled; without one nothing wakes up."""
        while True:
            self._news = anyio.Event()
            resident = len(models.resident())
            await self.flush(models.memory() if resident else None, resident)
            if resident:
                await anyio.sleep(SAMPLE_S)
            else:
                await self._news.wait()

    async def flush(self, memory: MemoryState | None = None, resident: int = 0) -> None:
        """Write what is pending, and a sample of `memory` where given."""
        statements = [(_NOTE, event) for event in self._pending]
        self._pending.clear()
        if memory is not None:
            hour = int(time.time() // 3600)
            statements.append((_SAMPLE, (hour, memory.measured_bytes, memory.reserved_bytes, resident)))
            statements += [(_EXPIRE, (hour - KEPT_HOURS,)), (_FORGET, (MAX_EVENTS,))]
        try:
            if statements:
                await self._store.run(*statements)
            self._failing = False
        except ServerError as error:
            if not self._failing:
                log.warning("model_history_not_kept", code=error.code)
            self._failing = True

    async def last_day(self) -> dict[str, Any]:
        """Of the last 24 hours: the sampled bytes (None without a sample: nothing was in memory) and, in `loads`,
        counts and seconds of loads. Raises as the receipts' store."""
        await self.flush()
        now = time.time()
        memory = await self._store.run((_MEMORY, (int(now // 3600) - 24,)))
        loads = await self._store.run((_LOADS, (now - 86400,)))
        return {**memory[0], "loads": dict(loads[0])}
