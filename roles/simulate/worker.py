"""Simulated workers: the interface of `roles.worker.process.Worker`, with a `Call` in place of a request's text."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import anyio

from rolecall.roles.errors import WorkerDied, WorkerTimeout
from rolecall.roles.lease import PrefillLease
from rolecall.roles.plan import EMBEDDER_OVERHEAD_BYTES, PROCESS_OVERHEAD_BYTES
from rolecall.roles.worker.wire import Finish, Loaded, WorkerResult, WorkerSpec

from .device import Device, Flow, SimulatedMachine
from .rates import ModelRates

MAX_CHUNK_TOKENS = 2048  # as the worker's own
CACHED_PROMPTS = 10  # Source: default size of mlx-lm's LRUPromptCache
STOP_S = 0.3  # assumed: from the word to the end of the process
LOAD_SLICES = 16


@dataclass(frozen=True, slots=True)
class Call:
    """One request: what is asked, and what the model will make of it (`completion_tokens`, at most `max_tokens`).

    The first `document_tokens` of the prompt are those of every request with the same `document`. `kind` is its class
    in the report.
    """

    at_s: float
    client: str
    role: str
    prompt_tokens: int
    completion_tokens: int
    max_tokens: int
    document: str | None = None
    document_tokens: int = 0
    kind: str = ""


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
    _rates: ModelRates | None = None
    _loaded_bytes: float = 0.0
    _running: dict[int, int] = field(default_factory=dict)
    _cached: dict[str, int] = field(default_factory=dict)
    _ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _turn: anyio.Lock = field(default_factory=anyio.Lock)
    _granted: anyio.Event = field(default_factory=anyio.Event)
    _scopes: set[anyio.CancelScope] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._measure()

    @property
    def measured_bytes(self) -> int:
        return self.machine.held.get(self.pid, 0)

    async def load(self, spec: WorkerSpec, on_loading: Callable[[int, int], None] | None = None) -> Loaded:
        began, self.spec, self._rates = anyio.current_time(), spec, self.device.rates.models[spec.model]
        rates = self._rates
        with self._unless_dead():
            for done in range(1, LOAD_SLICES + 1):
                await self.device.run(Flow("load", self, rates, rates.load_s / LOAD_SLICES))
                self._loaded_bytes = rates.weights_bytes * done / LOAD_SLICES
                self._measure()
                if on_loading:
                    on_loading(int(self._loaded_bytes), int(rates.weights_bytes))
        return Loaded(
            weights_bytes=int(rates.weights_bytes),
            measured_bytes=self.measured_bytes,
            kv_bytes_per_token=int(rates.kv_bytes_per_token),
            prefill_tokens_per_s=rates.prefill_tokens_per_s,
            decode_tokens_per_s=1 / rates.step_s(1, 0),
            load_s=anyio.current_time() - began,
        )

    async def serve(self, call: Call, timeout_s: float, on_first_token: Callable[[], None]) -> WorkerResult:
        """One generation, or one pass of the embedder (no tokens to complete); `timeout_s` counts from its prefill.

        Raises: WorkerDied, WorkerTimeout.
        """
        id, rates, context = next(self._ids), self._at_work, call.prompt_tokens + call.completion_tokens / 2
        first = Flow("decode", self, rates, min(1, call.completion_tokens), context)
        rest = Flow("decode", self, rates, call.completion_tokens - first.amount, context)
        began = prefilled = 0.0
        self._running[id] = _rounded(call.prompt_tokens + call.max_tokens)
        try:
            with self._unless_dead(), anyio.CancelScope() as limit:
                await anyio.sleep(self.device.rates.request_overhead_s)
                self._measure()
                cached = self._cached_tokens(call)
                async with self._turn:  # one prompt of a worker is prefilled at a time
                    began = prefilled = anyio.current_time()
                    limit.deadline = began + timeout_s
                    await self._prefill(call, cached)
                    prefilled = anyio.current_time()
                self._keep(call)
                await self.device.run(first)
                on_first_token()
                await self.device.run(rest)
        finally:
            del self._running[id]
            self._measure()
        made = int(first.amount - first.left + rest.amount - rest.left + 1e-3)
        if limit.cancelled_caught and not made:
            raise WorkerTimeout("No token came in time.", found=f"{call.prompt_tokens} tokens of prompt")
        full: Finish = "length" if call.completion_tokens >= call.max_tokens else "stop"
        return WorkerResult(
            text="",
            thinking="",
            finish="timeout" if limit.cancelled_caught else full,
            prompt_tokens=call.prompt_tokens,
            completion_tokens=made,
            thinking_tokens=0,
            prefill_s=prefilled - began,
            decode_s=anyio.current_time() - prefilled,
            cached_tokens=cached,
        )

    def grant_prefill(self) -> None:
        self._granted.set()

    def limit_kv(self, kv_bytes: int) -> None:
        if self.spec:
            self.spec = replace(self.spec, kv_bytes=kv_bytes)
            self._measure()

    async def stop(self) -> str:
        if not self.exited.is_set():
            await anyio.sleep(STOP_S)
            self.die()
        return "exited"

    def die(self) -> None:
        self.exited.set()
        self.machine.held.pop(self.pid, None)
        for scope in self._scopes:
            scope.cancel()

    @property
    def _at_work(self) -> ModelRates:
        assert self._rates is not None
        return self._rates

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
        while done < call.prompt_tokens:
            rate = self._at_work.prefill_rate(done)
            tokens = min(call.prompt_tokens - done, MAX_CHUNK_TOKENS, max(8, int(rate * self.device.rates.chunk_s)))
            chunk = Flow("prefill", self, self._at_work, tokens, done + tokens / 2)
            try:
                if self.lease and self.spec and self.spec.leased:
                    self._granted = anyio.Event()
                    self.lease.want(self, self.comes_first)
                    await self._granted.wait()
                await self.device.run(chunk)
            finally:
                if self.lease:
                    self.lease.leave(self)
            done += tokens

    def _cached_tokens(self, call: Call) -> int:
        """Tokens of the prompt that a kept one already holds; the last is always prefilled, for its logits."""
        kept = self._cached.get(call.document or "", 0)
        return min(kept, call.document_tokens, call.prompt_tokens - 1)

    def _keep(self, call: Call) -> None:
        """Keep the prompt's cache, as `LRUPromptCache` does, in what running requests leave of the KV bytes."""
        if call.document:
            self._cached.pop(call.document, None)
            self._cached[call.document] = call.prompt_tokens
        self._measure()

    def _measure(self) -> None:
        if self.exited.is_set():
            return
        held = PROCESS_OVERHEAD_BYTES + self._loaded_bytes
        if self.spec and self.spec.kind == "embedder":
            held += EMBEDDER_OVERHEAD_BYTES - PROCESS_OVERHEAD_BYTES
        if self.spec and self._rates:
            per_token = self._rates.kv_bytes_per_token
            room = self.spec.kv_bytes - sum(self._running.values()) * per_token
            kept = [_rounded(tokens) * per_token for tokens in self._cached.values()]
            while kept and (sum(kept) > room or len(kept) > CACHED_PROMPTS):
                self._cached.pop(next(iter(self._cached)))
                kept.pop(0)
            held += sum(self._running.values()) * per_token + sum(kept)
        self.machine.held[self.pid] = int(held)


def _rounded(tokens: int) -> int:
    return -(-tokens // 256) * 256
