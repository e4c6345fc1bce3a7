"""Simulated workers: the interface of `roles.worker.process.Worker`, with a `Call` in place of a request's text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import anyio
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from rolecall.roles.contract import Finish
from rolecall.roles.errors import WorkerDied, WorkerTimeout
from rolecall.roles.footprint import stepped
from rolecall.roles.lease import PrefillLease
from rolecall.roles.plan import ENCODER_OVERHEAD_BYTES, PROCESS_OVERHEAD_BYTES
from rolecall.roles.worker.wire import Loaded, WorkerSpec

from .device import Device, Flow, SimulatedMachine
from .rates import ModelRates

MIN_CHUNK_TOKENS = 8  # as the worker's own
CACHED_PROMPTS = 10  # Source: default size of mlx-lm's LRUPromptCache
STOP_S = 0.3  # assumed: from the word to the end of the process
LOAD_SLICES = 16


@dataclass(frozen=True, slots=True)
class Call:
    """One request: what is asked, and what the model will make of it (`completion_tokens`, at most `max_tokens`).

    The first `document_tokens` of the prompt are those of every request with the same `document`. `kind` is its class
    in the report.
    """

    at_s: NonNegativeFloat
    client: str
    role: str
    prompt_tokens: PositiveInt
    completion_tokens: NonNegativeInt
    max_tokens: NonNegativeInt
    document: str | None = None
    document_tokens: NonNegativeInt = 0
    kind: str = ""


class Served(NamedTuple):
    """What a simulated worker tells of a call: the fields of these names in `EngineResult`."""

    finish: Finish
    completion_tokens: int
    cached_tokens: int


@dataclass(eq=False)
class SimulatedWorker:
    """One process. `die` is a kill from outside."""

    device: Device
    machine: SimulatedMachine
    pid: int
    lease: PrefillLease | None = None
    comes_first: bool = False
    spec: WorkerSpec | None = None
    exited: anyio.Event = field(default_factory=anyio.Event)
    _rates: ModelRates = field(init=False, repr=False)  # from the load on
    _loaded_bytes: float = 0.0
    _running: dict[Flow, int] = field(default_factory=dict)  # tokens reserved, by the flow of the request's first one
    _cached: dict[str, int] = field(default_factory=dict)  # tokens of the last prompt, by document, latest last
    _decoding: int = 0
    _turn: anyio.Lock = field(default_factory=anyio.Lock)
    _granted: anyio.Event = field(default_factory=anyio.Event)
    _scopes: set[anyio.CancelScope] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._measure()

    @property
    def measured_bytes(self) -> int:
        return self.machine.held.get(self.pid, 0)

    async def load(self, spec: WorkerSpec, on_loading: Callable[[int, int], None] = lambda done, total: None) -> Loaded:
        rates = self._rates = self.device.rates.models[spec.model]
        self.spec = spec
        with self._unless_dead():
            for done in range(1, LOAD_SLICES + 1):
                await self.device.run(Flow("load", self, rates, rates.load_s / LOAD_SLICES))
                self._loaded_bytes = rates.weights_bytes * done / LOAD_SLICES
                self._measure()
                on_loading(int(self._loaded_bytes), int(rates.weights_bytes))
        return Loaded(
            weights_bytes=int(rates.weights_bytes),
            measured_bytes=self.measured_bytes,
            kv_bytes_per_token=int(rates.kv_bytes_per_token),
            decode_tokens_per_s=1 / rates.step_s(1, 0),
        )

    async def serve(self, call: Call, timeout_s: float, on_first_token: Callable[[], None]) -> Served:
        """One generation, or one pass of the embedder (no tokens to complete); `timeout_s` counts from its prefill.

        Raises: WorkerDied, WorkerTimeout.
        """
        context = call.prompt_tokens + call.completion_tokens / 2
        first = Flow("decode", self, self._rates, min(1, call.completion_tokens), context)
        rest = Flow("decode", self, self._rates, call.completion_tokens - first.amount, context)
        self._running[first] = stepped(call.prompt_tokens + call.max_tokens)
        try:
            with self._unless_dead(), anyio.CancelScope() as limit:
                await anyio.sleep(self.device.rates.request_overhead_s)
                self._measure()
                # The last token of a prompt is always prefilled, for its logits
                kept_tokens = self._cached.get(call.document or "", 0)
                cached_tokens = min(kept_tokens, call.document_tokens, call.prompt_tokens - 1)
                async with self._turn:  # one prompt of a worker is prefilled at a time
                    limit.deadline = anyio.current_time() + timeout_s
                    await self._prefill(call, cached_tokens)
                if call.document:
                    self._cached.pop(call.document, None)
                    self._cached[call.document] = call.prompt_tokens
                self._measure()
                self._decoding += 1
                try:
                    await self.device.run(first)
                    on_first_token()
                    await self.device.run(rest)
                finally:
                    self._decoding -= 1
        finally:
            del self._running[first]
            self._measure()
        made = int(call.completion_tokens - first.left - rest.left + 1e-3)
        if limit.cancelled_caught and not made:
            raise WorkerTimeout("No token came in time.", found=f"{call.prompt_tokens} tokens of prompt")
        full: Finish = "length" if call.completion_tokens >= call.max_tokens else "stop"
        return Served("timeout" if limit.cancelled_caught else full, made, cached_tokens)

    def grant_prefill(self) -> None:
        self._granted.set()

    def limit_kv(self, kv_bytes: int) -> None:
        if self.spec:
            self.spec = replace(self.spec, kv_bytes=kv_bytes)
            self._measure()

    async def stop(self) -> str:
        if not self.exited.is_set():
            with anyio.CancelScope(shield=True):  # as the real one
                await anyio.sleep(STOP_S)
            self.die()
        return "exited"

    def die(self) -> None:
        self.exited.set()
        self.machine.held.pop(self.pid, None)
        for scope in self._scopes:
            scope.cancel()

    @contextmanager
    def _unless_dead(self) -> Iterator[None]:
        if self.exited.is_set():
            raise WorkerDied("The process ended.")
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)
        if scope.cancelled_caught:
            raise WorkerDied("The process ended.")

    async def _prefill(self, call: Call, done: int) -> None:
        assert self.spec is not None
        rates, device = self._rates, self.device.rates
        while done < call.prompt_tokens:
            left = call.prompt_tokens - done
            fitting = int((device.chunk_s - rates.chunk_overhead_s) / rates.prefill_s(1, done))
            tokens = min(left, device.chunk_tokens, max(MIN_CHUNK_TOKENS, fitting))
            alone_s = rates.chunk_overhead_s + rates.prefill_s(tokens, done)
            decode_s = rates.step_s(self._decoding, done) if self._decoding else 0.0
            chunk = Flow("prefill", self, rates, alone_s + decode_s)
            if self.lease and self.spec.leased:
                self._granted = anyio.Event()
                try:
                    self.lease.want(self, self.comes_first)
                    await self._granted.wait()
                    await self.device.run(chunk)
                finally:
                    self.lease.leave(self)
            else:
                await self.device.run(chunk)
            done += tokens

    def _measure(self) -> None:
        """Tell the machine what this process holds. Kept prompts go, the least recently used first, until the others
        fit in what running requests leave of the KV bytes, as in `LRUPromptCache`."""
        if self.exited.is_set():
            return
        held = PROCESS_OVERHEAD_BYTES + self._loaded_bytes
        if self.spec:
            per_token = self._rates.kv_bytes_per_token
            if self.spec.kind == "embedder":
                held += ENCODER_OVERHEAD_BYTES - PROCESS_OVERHEAD_BYTES
            running = sum(self._running.values()) * per_token
            room = self.spec.kv_bytes - running
            kept = [stepped(tokens) * per_token for tokens in self._cached.values()]
            while kept and (sum(kept) > room or len(kept) > CACHED_PROMPTS):
                self._cached.pop(next(iter(self._cached)))
                kept.pop(0)
            held += running + sum(kept)
        self.machine.held[self.pid] = int(held)
