"""What a model is doing, in words for whoever waits."""

from __future__ import annotations

import time
from collections.abc import Callable

from rolecall.roles.contract import Event, Generated, Loading, Prefilling, Queued, Role


class Words:
    """The events of one generation by `role`, each in words: queue, bytes loaded, share read, tokens per second."""

    def __init__(self, role: Role, clock: Callable[[], float] = time.monotonic) -> None:
        self._role, self._clock = role, clock
        self._first: Generated | None = None
        self._since = 0.0

    def of(self, event: Event) -> str:
        return f"{self._role}: {self._doing(event)}"

    def _doing(self, event: Event) -> str:
        match event:
            case Queued(position):
                return f"waiting, position {position} in the queue"
            case Loading(model, done, total):
                return f"loading {model}, {done / 1e9:.2f} of {total / 1e9:.2f} GB"
            case Prefilling(done, total):
                return f"reading, {100 * done // max(total, 1)}% of {total} tokens"
            case Generated(_, channel, tokens):
                doing = f"{'thinking' if channel == 'thinking' else 'writing'}, {tokens} tokens"
                if self._first is None:
                    self._first, self._since = event, self._clock()
                    return doing
                seconds = self._clock() - self._since
                return f"{doing}, {(tokens - self._first.tokens) / max(seconds, 0.001):.1f} tokens/s"
