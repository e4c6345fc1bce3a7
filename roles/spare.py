"""One process with its imports done, kept for the next load."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio.abc
import structlog

from .worker.wire import WorkerSpec

if TYPE_CHECKING:
    from .worker.process import Worker  # imported where one is started

_log = structlog.get_logger(__name__)

StartWorker = Callable[[WorkerSpec | None], Awaitable["Worker"]]


@dataclass(eq=False)
class Spare:
    """Starts one in `tasks`, holds it, gives it away."""

    tasks: anyio.abc.TaskGroup
    start_worker: StartWorker
    held: Worker | None = None
    _closed: bool = False
    _starting: bool = False

    def take(self) -> Worker | None:
        """The process, from now on the caller's; None where there is none alive."""
        process, self.held = self.held, None
        return process if process and not process.exited.is_set() else None

    def tend(self, wanted: bool) -> None:
        """Start one where it is wanted and there is none."""
        if wanted and not self._starting and (self.held is None or self.held.exited.is_set()):
            self._starting = True
            self.tasks.start_soon(self._start)

    async def stop(self) -> None:
        """End it: its memory is needed."""
        if process := self.take():
            await process.stop()

    async def aclose(self) -> None:
        self._closed = True
        await self.stop()

    async def _start(self) -> None:
        try:
            self.held = await self.start_worker(None)
            if self._closed:
                await self.stop()
        except Exception as error:  # a load that finds no spare starts a process of its own
            _log.warning("spare_failed", error=type(error).__name__)
        finally:
            self._starting = False
