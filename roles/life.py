"""The life of one worker: how it is brought up with its model, and taken down again; and the one that is kept ready."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import anyio
import anyio.abc
import structlog

from .contract import Loading
from .errors import WorkerTimeout
from .lease import PrefillLease
from .memory import Machine
from .pooled import PooledModel
from .worker.wire import Loaded, WorkerSpec

if TYPE_CHECKING:
    from .worker.process import Worker  # imported where one is started

LOAD_TIMEOUT_S = 600.0  # and where that is longer, what a slow disk takes
SLOW_DISK_BYTES_PER_S = 50_000_000
MEMORY_BACK_S = 2.0  # the longest a load waits to see an ended process's memory free again

StartWorker = Callable[[WorkerSpec | None], Awaitable["Worker"]]

_log = structlog.get_logger(__name__)


@dataclass(eq=False)
class Spare:
    """One process with its imports done: starts it in `tasks`, holds it, gives it to the next load."""

    tasks: anyio.abc.TaskGroup
    start_worker: StartWorker
    held: Worker | None = None
    _closed: bool = False
    _starting: bool = False

    async def process_for(self, spec: WorkerSpec) -> Worker:
        """The one that is held, where it is fit for it and alive, else a new one."""
        return (self._take() if spec.kind == "text" else None) or await self.start_worker(spec)

    def tend(self, wanted: Callable[[], bool]) -> None:
        """Start one where there is none and it is wanted, which looks at the disk."""
        if not self._starting and (self.held is None or self.held.exited.is_set()) and wanted():
            self._starting = True
            self.tasks.start_soon(self._start)

    async def stop(self) -> None:
        """End it: its memory is needed."""
        if process := self._take():
            await process.stop()

    async def aclose(self) -> None:
        self._closed = True
        await self.stop()

    def _take(self) -> Worker | None:
        process, self.held = self.held, None
        return process if process and not process.exited.is_set() else None

    async def _start(self) -> None:
        try:
            self.held = await self.start_worker(None)
            if self._closed:
                await self.stop()
        except Exception as error:  # a load that finds no spare starts a process of its own
            _log.warning("spare_failed", error=type(error).__name__)
        finally:
            self._starting = False


async def bring_up(model: PooledModel, spec: WorkerSpec, spare: Spare, lease: PrefillLease | None) -> Loaded:
    """Start the model's worker and load it; corrects the model's reservation by what was measured. Raises WorkerDied,
    WorkerTimeout, ModelCorrupt, ModelRefused."""
    began, planned = anyio.current_time(), model.reservation

    def on_loading(done_bytes: int, total_bytes: int) -> None:
        model.loaded_bytes = done_bytes
        for ticket in model.waiting:
            ticket.cold = True
            ticket.tell(Loading(model.model, done_bytes, total_bytes))

    on_loading(0, planned.weights_bytes)
    model.worker = worker = await spare.process_for(spec)
    worker.lease, worker.comes_first = lease, model.pinned
    timeout_s = max(LOAD_TIMEOUT_S, planned.weights_bytes / SLOW_DISK_BYTES_PER_S)
    try:
        with anyio.fail_after(timeout_s):
            loaded = await worker.load(spec, on_loading)
    except TimeoutError:
        raise WorkerTimeout(
            f"Model {model.model!r} did not finish loading.",
            found=f"nothing after {timeout_s:.0f} s",
            advice="Ask again: another process starts. If it happens again, see `rolecall doctor` and the disk.",
        ) from None
    model.reload_s, model.loaded_bytes = anyio.current_time() - began, 0
    model.made_tokens, model.made_s = loaded.decode_tokens_per_s, 1.0
    kv_bytes = loaded.kv_bytes_per_token * planned.kv_tokens + loaded.fixed_state_bytes * planned.slots
    model.reservation = replace(
        planned,
        overhead_bytes=max(planned.overhead_bytes, loaded.measured_bytes - planned.weights_bytes),
        kv_bytes=max(planned.kv_bytes, kv_bytes),
        kv_bytes_per_token=max(planned.kv_bytes_per_token, loaded.kv_bytes_per_token),
    )
    _log.info("model_loaded", model=model.model, seconds=round(model.reload_s, 2), reserved=model.reserved_bytes)
    return loaded


async def take_down(worker: Worker, model: PooledModel, machine: Machine, wait_s: float) -> int:
    """End the worker; returns how many of its bytes were not seen to come back within `wait_s`. Half of them is
    enough: other programs may take what comes back as it comes."""
    # of a process that ended by itself there is nothing left to see come back
    held_bytes = 0 if worker.exited.is_set() or not wait_s else model.held_bytes
    before = machine.available_bytes()
    outcome = await worker.stop()
    with anyio.move_on_after(wait_s):
        while held_bytes and machine.available_bytes() < before + held_bytes // 2:
            await anyio.sleep(0.02)
    missing_bytes = max(0, before + held_bytes - machine.available_bytes()) if held_bytes else 0
    _log.info("model_ended", model=model.model, why=model.ended_as, outcome=outcome, missing=missing_bytes)
    return missing_bytes
