"""Who may prefill now: the machine's workers share one GPU, and a long prefill in one slows decoding in all.

A grant is good for one chunk. Decoding needs none, and the embedder's short passes go outside the lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from .worker.process import Worker

GRACE_S = 0.01  # after a chunk of one that comes first: its next wish is on its way
LEASE_S = 5.0  # a chunk is meant to take half a second; past this its holder no longer keeps the others waiting

_log = structlog.get_logger(__name__)


class PrefillLease:
    """Lets one holder prefill at a time, so that a short decision does not wait behind a 30k-token prompt.

    Those that come first (the pinned router) are granted before others, else whoever has waited longest: who wants
    again after a chunk goes to the end. While `decoding` says that another decodes than those given, the device rests
    from prefilling after each chunk for as long as the chunk took, so that a long prompt takes at most half of it; what
    comes first does not rest. For one event loop.
    """

    def __init__(self, decoding: Callable[[Collection[Worker]], bool] = lambda prefilling: False) -> None:
        self.decoding = decoding
        self._waiting: dict[Worker, bool] = {}  # in order of their wishes; True comes first
        self._holder: Worker | None = None
        self._was_first = False
        self._granted_at = self._rests_until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def want(self, holder: Worker, first: bool = False) -> None:
        """Ask for one chunk; `holder.grant_prefill()` is called when it may start, perhaps before this returns."""
        self._waiting[holder] = first
        self._grant()

    def done(self, holder: Worker) -> None:
        """The holder's chunk is over. Of one whose lease has run out, or who has none, this means nothing."""
        if holder is self._holder:
            self._release()

    def leave(self, holder: Worker) -> None:
        """The holder wants nothing any more, or is dead."""
        self._waiting.pop(holder, None)
        self.done(holder)

    def _grant(self) -> None:
        if self._holder is not None or not self._waiting:
            return
        loop = asyncio.get_running_loop()
        self._cancel_timer()
        holder = max(self._waiting, key=self._waiting.__getitem__)  # the first of the largest
        rests = loop.time() < self._rests_until and (self._was_first or self.decoding(self._waiting))
        if rests and not self._waiting[holder]:
            self._timer = loop.call_at(self._rests_until, self._grant)
            return
        self._was_first = self._waiting.pop(holder)
        self._holder, self._granted_at = holder, loop.time()
        self._timer = loop.call_later(LEASE_S, self._run_out, holder)
        holder.grant_prefill()

    def _release(self) -> None:
        self._cancel_timer()
        now = asyncio.get_running_loop().time()
        self._holder, self._rests_until = None, now + (GRACE_S if self._was_first else now - self._granted_at)
        self._grant()

    def _cancel_timer(self) -> None:
        if self._timer:
            self._timer.cancel()

    def _run_out(self, holder: Worker) -> None:
        _log.warning("prefill_lease_ran_out", pid=getattr(holder, "pid", 0), seconds=LEASE_S)
        self._release()
