"""The index kept in step with its folders for as long as the host runs, where the settings say so."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import structlog

from rolecall.config.errors import RolecallError
from rolecall.retrieval.contract import AddReport, Retriever
from rolecall.retrieval.errors import IndexEmpty

log = structlog.get_logger()


class LiveIndex:
    """Watches every collection from the first `begin()` on. `retriever` is called no sooner, so that a client waits
    for no import. What ends a watch is logged; the next `begin()` starts another."""

    def __init__(self, retriever: Callable[[], Retriever]) -> None:
        self._retriever = retriever
        self._news = anyio.Event()

    def begin(self) -> None:
        """Somebody may search soon, or what is indexed changed. Returns at once."""
        self._news.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            try:
                await self._retriever().watch(None, _note)
            except IndexEmpty:
                pass  # the first folder's index is the next news
            except Exception as error:  # whatever it is, the host goes on
                code = error.code if isinstance(error, RolecallError) else type(error).__name__
                log.warning("watch_ended", code=code, exc_info=not isinstance(error, RolecallError))
                self._news = anyio.Event()  # what the watch itself changed is no news


def _note(report: AddReport) -> None:
    log.info("synced", files=report.indexed, failed=len(report.failed), seconds=report.seconds)
