"""A clock that jumps: an event loop whose time is virtual, so that a day passes in seconds and each run is the same."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

T = TypeVar("T")
OnTurn = Callable[[float], None]
SPIN_TURNS = 20_000  # in which time stood still: far more than any burst of events takes


class Stuck(RuntimeError):
    """Nothing can happen any more: every task waits and no timer is set, or tasks spin while time stands still."""


class _Selector(selectors.SelectSelector):
    """Waits for nothing: time is moved on to the next timer instead. No thread and no socket takes part."""

    def __init__(self, on_turn: OnTurn) -> None:
        super().__init__()
        self.now_s, self._turns, self._on_turn = 0.0, 0, on_turn

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._on_turn(self.now_s)
        self._turns = 0 if timeout else self._turns + 1
        if timeout is None or self._turns > SPIN_TURNS:
            raise Stuck(f"{'every task waits' if timeout is None else 'tasks spin'} at {self.now_s:.3f} s")
        self.now_s += max(0.0, timeout)
        return []


class _Loop(asyncio.SelectorEventLoop):
    def time(self) -> float:
        return self._selector.now_s  # type: ignore[attr-defined, no-any-return]


def run_virtual(
    main: Callable[..., Awaitable[T]], *args: Any, on_turn: OnTurn = lambda now_s: None, limit_s: float
) -> T:
    """Run `main(*args)` in virtual time, at most `limit_s` of it. `on_turn` is called with the time between all turns
    of the loop; what it raises ends the run.

    Raises: Stuck: a deadlock or a busy loop. TimeoutError: the limit was reached.
    """

    async def bounded() -> T:
        with anyio.fail_after(limit_s):
            return await main(*args)

    return anyio.run(bounded, backend_options={"loop_factory": lambda: _Loop(_Selector(on_turn))})


def on_a_clock(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test that runs in virtual time, at most ten hours of it."""

    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        run_virtual(functools.partial(test, **arguments), limit_s=36_000)

    return run
