"""Downloads that the host finishes in the background, one after the other, whoever asked for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import anyio
import structlog

from ..errors import told

Pull = Callable[[str, Callable[[str, int, int], None]], Awaitable[object]]
"""Gets one model; reports what is being done, bytes done and bytes in all."""

log = structlog.get_logger()


class Downloads:
    """A queue with one runner. A failed download is reported, not retried: asking again resumes it."""

    def __init__(self, pull: Pull) -> None:
        self._pull = pull
        self._waiting: deque[str] = deque()
        self._current = ""
        self._bytes = (0, 0)
        self._failed: dict[str, str] = {}
        self._news = anyio.Event()

    @property
    def busy(self) -> bool:
        return bool(self._current or self._waiting)

    def add(self, names: Iterable[str]) -> None:
        """Queue the models that are not queued already."""
        for name in names:
            self._failed.pop(name, None)
            if name != self._current and name not in self._waiting:
                self._waiting.append(name)
        self._news.set()

    def state(self) -> dict[str, Any]:
        """`{"current", "done_bytes", "total_bytes", "waiting": [...], "failed": {name: reason}}`."""
        done_bytes, total_bytes = self._bytes
        now = {"current": self._current, "done_bytes": done_bytes, "total_bytes": total_bytes}
        return {**now, "waiting": list(self._waiting), "failed": dict(self._failed)}

    async def run(self) -> None:
        """Serve the queue until cancelled."""
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            while self._waiting:
                self._current = self._waiting.popleft()
                try:
                    await self._pull(self._current, self._seen)
                except Exception as error:  # whatever it is, the host and the other downloads go on
                    typed = told(f"The download of {self._current}", error)
                    log.warning("download_failed", model=self._current, code=typed.code)
                    self._failed[self._current] = str(typed)
                finally:
                    self._current, self._bytes = "", (0, 0)

    def _seen(self, doing: str, done_bytes: int, total_bytes: int) -> None:
        self._bytes = (done_bytes, total_bytes)
