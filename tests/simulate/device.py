"""The simulated machine: what its processes share (device, disk, memory), and how fast each gets on.

The model of sharing, a fluid one: processes that decode share the device evenly (each reads its own weights, so two
get half of the memory bandwidth each). While a process prefills, all other decoding together keeps a small share, and
processes that prefill at once (which the lease forbids) share the rest evenly. A process that prefills makes one
decode step per chunk, as `BatchGenerator` does, and its time is the chunk's. Loads share the disk. A request's context
counts as its mean.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import anyio

from .rates import DeviceRates, ModelRates


@dataclass(eq=False, slots=True)
class Flow:
    """Work that goes on: seconds alone of a load or of a prefill chunk, or tokens of one request's decode."""

    kind: Literal["load", "prefill", "decode"]
    owner: object
    rates: ModelRates
    amount: float
    context_tokens: float = 0.0
    left: float = field(init=False)
    speed: float = 0.0
    done: anyio.Event = field(default_factory=anyio.Event)

    def __post_init__(self) -> None:
        self.left = self.amount


@dataclass(eq=False, slots=True)
class Device:
    rates: DeviceRates
    _flows: list[Flow] = field(default_factory=list)
    _since_s: float = 0.0
    _timer: asyncio.TimerHandle | None = None

    async def run(self, flow: Flow) -> None:
        """Returns when the flow's amount is done; a caller that is cancelled leaves the rest in `flow.left`."""
        self._flows.append(flow)
        self._go_on()
        try:
            await flow.done.wait()
        finally:
            self._go_on()
            if flow in self._flows:
                self._flows.remove(flow)
                self._go_on()

    def _go_on(self) -> None:
        """Bring all flows to now and let go of those that are done; set the others' speeds and a timer."""
        now = anyio.current_time()
        for flow in tuple(self._flows):
            flow.left = max(0.0, flow.left - flow.speed * (now - self._since_s))
            if flow.left <= 1e-6 * flow.speed:
                self._flows.remove(flow)
                flow.done.set()
        self._since_s = now
        if self._timer:
            self._timer.cancel()
        if self._flows:
            self._set_speeds()
            next_s = min(flow.left / flow.speed for flow in self._flows)
            self._timer = asyncio.get_running_loop().call_later(next_s, self._go_on)

    def _set_speeds(self) -> None:
        loads = sum(flow.kind == "load" for flow in self._flows)
        chunks = {id(flow.owner): flow for flow in self._flows if flow.kind == "prefill"}
        batches = Counter(id(flow.owner) for flow in self._flows if flow.kind == "decode")
        beside = len(batches.keys() - chunks.keys())
        kept = self.rates.decode_share_beside_prefill if chunks and beside else float(not chunks)
        for chunk in chunks.values():
            chunk.speed = (1 - kept) / len(chunks)
        for flow in self._flows:
            owner = id(flow.owner)
            if flow.kind == "load":
                flow.speed = 1 / loads
            elif flow.kind == "decode" and owner in chunks:
                flow.speed = chunks[owner].speed / chunks[owner].amount
            elif flow.kind == "decode":
                flow.speed = kept / beside / flow.rates.step_s(batches[owner], flow.context_tokens)


@dataclass(eq=False, slots=True)
class SimulatedMachine:
    """Memory of the machine: what `others_bytes` (of the time in seconds) and our processes leave."""

    total_bytes: int
    others_bytes: Callable[[float], float]
    held: dict[int, int] = field(default_factory=dict)

    def available_bytes(self) -> int:
        return max(0, int(self.total_bytes - self.others_bytes(anyio.current_time()) - sum(self.held.values())))
