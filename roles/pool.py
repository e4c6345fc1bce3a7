"""The worker processes and who may use them: the one owner of residency.

Every change of state is made by a method without an `await` in it, which ends in `_step`: that grants, loads and ends
as things are now. Slow work (starting, loading and ending a process) runs in one task per worker and comes back with
another `_step`, so nothing is ever decided on stale knowledge.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Protocol

import anyio
import anyio.abc
import anyio.to_thread
import psutil
import structlog

from rolecall.config.errors import RolecallError
from rolecall.config.profile import RoleSpec

from .contract import GenerationRequest, Loading, OnEvent, Queued, Vectors
from .errors import DoesNotFit, QueueFull, RoleError, WorkerDied
from .manifest import Manifest
from .plan import PROCESS_OVERHEAD_BYTES, Reservation
from .residency import Admit, Evict, Refuse, ResidentModel, Verdict, Wait, admit
from .worker.wire import Loaded, WorkerResult, WorkerSpec

MEMORY_BACK_S = 2.0  # the longest a load waits to see an ended process's memory free again
LOAD_BYTES_PER_S = 3_000_000_000  # Source: cold loads on Apple silicon, 3.0 to 3.75 GB/s; until one was measured
USE_DECAY = 0.9  # how much each later use of another model takes from the probability of a model's next use

_log = structlog.get_logger(__name__)


class WorkerHandle(Protocol):
    """What the pool needs of a worker process: see `worker.process.Worker`."""

    measured_bytes: int
    exited: anyio.Event

    @property
    def pid(self) -> int: ...

    async def load(self, spec: WorkerSpec, on_loading: Callable[[int, int], None] | None = None) -> Loaded: ...

    async def generate(
        self,
        request: GenerationRequest,
        thinks: bool = False,
        thinking_budget: int | None = None,
        on_event: OnEvent | None = None,
    ) -> WorkerResult: ...

    async def embed(self, texts: Sequence[str], alone: bool = False) -> Vectors: ...

    async def stop(self) -> Any: ...


StartWorker = Callable[[WorkerSpec | None], Awaitable[WorkerHandle]]


class Phase(Enum):
    ABSENT = "absent"
    LOADING = "loading"
    READY = "ready"
    ENDING = "ending"


@dataclass(eq=False, slots=True)
class Ticket:
    """One caller's place. `role` "" only wants the model in memory; `context_tokens` is the most it may fill."""

    number: int
    role: str
    context_tokens: int
    concurrency: int
    pinned: bool
    on_event: OnEvent | None
    position: int = 0
    cold: bool = False
    queued_at: float = field(default_factory=time.monotonic)
    settled: anyio.Event = field(default_factory=anyio.Event)
    error: RolecallError | None = None

    def tell(self, event: Queued | Loading) -> None:
        if self.on_event is not None:
            try:
                self.on_event(event)
            except Exception:
                _log.exception("event_callback_failed")


@dataclass(eq=False, slots=True)
class PooledModel:
    """One model and what goes on with it. `reserved_bytes` counts while it is not absent."""

    model: str
    folder: Path
    kind: Literal["text", "embedder"]
    specs: tuple[RoleSpec, ...]
    reservation: Reservation
    reserved_bytes: int
    phase: Phase = Phase.ABSENT
    worker: WorkerHandle | None = None
    weights_sha256: str = ""
    reload_s: float = 0.0
    loads: int = 0
    uses: float = 0.0
    service_s: float = 1.0
    last_used: float = field(default_factory=time.monotonic)
    waiting: list[Ticket] = field(default_factory=list)
    active: list[Ticket] = field(default_factory=list)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    gone: anyio.Event = field(default_factory=anyio.Event)

    @property
    def pinned(self) -> bool:
        return any(spec.pinned for spec in self.specs)

    @property
    def idle_ttl_s(self) -> float:
        """0 keeps it: one role without a limit is enough."""
        limits = [spec.idle_ttl_s for spec in self.specs]
        return 0.0 if not limits or min(limits) <= 0 else max(limits)

    def worker_spec(self, cache_limit_bytes: int) -> WorkerSpec:
        context_length = max(spec.context_length for spec in self.specs) if self.specs else 0
        slots = self.reservation.slots
        return WorkerSpec(self.kind, self.folder, self.model, context_length, slots, cache_limit_bytes)

    def is_busy_with(self, role: str, concurrency: int) -> bool:
        """Whether as many requests of this role are at work as its concurrency allows."""
        return bool(role) and sum(other.role == role for other in self.active) >= concurrency

    def has_room_for(self, ticket: Ticket) -> bool:
        """Whether slots and the KV cache, which pads every request to the longest, allow one more."""
        at_work = [other for other in self.active if other.role]
        if not ticket.role or not at_work:
            return True
        longest = max(ticket.context_tokens, *(other.context_tokens for other in at_work))
        fits = (len(at_work) + 1) * longest <= self.reservation.kv_tokens or self.kind == "embedder"
        return fits and len(at_work) < self.reservation.slots


class WorkerPool:
    """Keeps reservations within `budget_bytes`; at most `queue_limit` callers wait for one model.

    `prepared` checks a model's files (blocking). `wants_spare` says whether a process with its imports done should be
    kept for the next load. Everything runs in `tasks`.
    """

    def __init__(
        self,
        tasks: anyio.abc.TaskGroup,
        budget_bytes: int,
        queue_limit: int,
        cache_limit_bytes: int,
        start_worker: StartWorker,
        prepared: Callable[[PooledModel], Manifest],
        wants_spare: Callable[[], bool],
    ) -> None:
        self._tasks = tasks
        self.budget_bytes = budget_bytes
        self._queue_limit = queue_limit
        self._cache_limit_bytes = cache_limit_bytes
        self._start_worker = start_worker
        self._prepared = prepared
        self._wants_spare = wants_spare
        self._numbers = itertools.count(1)
        self._held: dict[str, int] = {}
        self._unloading: set[str] = set()
        self._spare: WorkerHandle | None = None
        self._spare_starting = False
        self._closing = False
        self.models: dict[str, PooledModel] = {}

    @contextlib.asynccontextmanager
    async def place(
        self, model: PooledModel, role: str, spec: RoleSpec | None, on_event: OnEvent | None = None
    ) -> AsyncIterator[tuple[Ticket, WorkerHandle]]:
        """Wait for a place at the model's worker, loading it where needed; the place is free again on leaving.

        Raises:
            QueueFull, DoesNotFit, WorkerDied, ModelCorrupt, ModelRefused.
        """
        context = -(-spec.context_length // 256) * 256 if spec else 0
        concurrency = spec.concurrency if spec else model.reservation.slots
        pinned = spec is not None and spec.pinned
        ticket = Ticket(next(self._numbers), role, context, concurrency, pinned, on_event)
        self._enqueue(model, ticket)
        try:
            await ticket.settled.wait()
            if ticket.error is not None:
                raise ticket.error
            assert model.worker is not None
            granted_at = time.monotonic()
            yield ticket, model.worker
            model.service_s += 0.2 * (time.monotonic() - granted_at - model.service_s)
        finally:
            self._leave(model, ticket)

    def preload(self, model: PooledModel) -> None:
        """Load it now if it fits without ending anything and nobody waits for memory."""
        waited_for = any(other.waiting and other.phase is Phase.ABSENT for other in self.models.values())
        fits = isinstance(admit(model.reserved_bytes, self._in_memory(), self.budget_bytes), Admit)
        if model.phase is Phase.ABSENT and fits and not waited_for and not self._closing:
            self._begin_load(model)

    async def unload(self, model: PooledModel) -> bool:
        """End its worker once nobody uses it; True when its memory is free."""
        if model.phase is Phase.ABSENT:
            return False
        gone = model.gone
        self._unloading.add(model.model)
        if model.phase is Phase.LOADING:
            self._end(model)
        self._step()
        await gone.wait()
        return True

    def end_idle(self) -> None:
        """End every worker that has been idle for longer than its roles allow."""
        now = time.monotonic()
        for model in self.models.values():
            idle = model.phase is Phase.READY and not model.active and not model.waiting and not model.pinned
            if idle and 0 < model.idle_ttl_s < now - model.last_used:
                self._end(model)

    async def aclose(self) -> None:
        """End every process; callers that wait get an error."""
        self._closing = True
        with anyio.CancelScope(shield=True):
            for model in self.models.values():
                self._fail(model, RoleError("The host is ending.", advice="Ask again: a new one starts by itself."))
                if model.phase is not Phase.ABSENT:
                    self._end(model)
            for model in self.models.values():
                if model.phase is not Phase.ABSENT:
                    await model.gone.wait()
            await self._drop_spare()

    # What changes state: no await from here to `_step`.

    def _enqueue(self, model: PooledModel, ticket: Ticket) -> None:
        if self._closing:
            raise RoleError("The host is ending.", advice="Ask again: a new one starts by itself.")
        if len(model.waiting) >= self._queue_limit:
            retry_s = max(1.0, model.service_s * len(model.waiting) / max(1, model.reservation.slots))
            raise QueueFull(
                f"Too many requests wait for model {model.model!r}.",
                found=f"{len(model.waiting)} waiting",
                allowed=f"{self._queue_limit} (host.queue_limit)",
                advice=f"Try again in about {retry_s:.0f} s.",
            )
        model.waiting.append(ticket)
        self._step()

    def _leave(self, model: PooledModel, ticket: Ticket) -> None:
        if ticket in model.waiting:
            model.waiting.remove(ticket)
        if ticket in model.active:
            model.active.remove(ticket)
            for other in self.models.values():
                other.uses *= USE_DECAY
            model.uses += 1
            model.last_used = time.monotonic()
        self._step()

    def _step(self) -> None:
        """Do all that can be done as things are."""
        for model in self.models.values():
            if model.phase is Phase.READY and model.worker and model.worker.exited.is_set():
                model.phase = Phase.ENDING  # its task is about to notice
        self._held = dict.fromkeys(self._unloading, 0)
        if not self._closing:
            # a worker that measured more than was planned, or a smaller budget, may ask for an end without a load
            self._obey(admit(0, self._in_memory(), self.budget_bytes), 0)
            self._load_waiting()
            for model in self.models.values():
                self._grant(model, self._held.get(model.model))
        for model in list(self.models.values()):
            if model.model in self._unloading and model.phase is Phase.READY and not model.active:
                self._end(model)
        self._tend_spare()

    def _load_waiting(self) -> None:
        wanted = [model for model in self.models.values() if model.waiting and model.phase is Phase.ABSENT]
        for model in sorted(wanted, key=lambda m: (not m.pinned, m.kind != "embedder", m.waiting[0].number)):
            verdict = admit(model.reserved_bytes, self._in_memory(), self.budget_bytes)
            if isinstance(verdict, Refuse):
                self._fail(model, _does_not_fit(model, verdict, self.budget_bytes))
            elif isinstance(verdict, Admit):
                self._begin_load(model)
            else:
                self._obey(verdict, model.waiting[0].number)
                return  # memory that comes free is for this one

    def _obey(self, verdict: Verdict, number: int) -> None:
        """End the victims, or keep requests later than `number` from them until they are idle."""
        if isinstance(verdict, Evict):
            for key in verdict.victims:
                _log.info("model_evicted", model=key)
                self._end(self.models[key])
        elif isinstance(verdict, Wait):
            for key in verdict.victims:
                self._held.setdefault(key, number)

    def _grant(self, model: PooledModel, before: int | None) -> None:
        """Give places to who may have one; with `before`, only to tickets of a lower number."""
        if model.phase is not Phase.READY:
            return
        for ticket in sorted(model.waiting, key=lambda t: (not t.pinned, t.number)):
            if (before is not None and ticket.number >= before) or model.is_busy_with(ticket.role, ticket.concurrency):
                continue
            if not model.has_room_for(ticket):
                break  # nobody later overtakes it, or a long context would wait for ever
            model.waiting.remove(ticket)
            model.active.append(ticket)
            ticket.settled.set()
        for position, ticket in enumerate(model.waiting, 1):
            if position != ticket.position:
                ticket.position = position
                ticket.tell(Queued(position))

    def _begin_load(self, model: PooledModel) -> None:
        model.phase = Phase.LOADING
        model.scope, model.gone = anyio.CancelScope(), anyio.Event()
        self._tasks.start_soon(self._live, model)

    def _end(self, model: PooledModel) -> None:
        model.phase = Phase.ENDING
        model.scope.cancel()

    def _fail(self, model: PooledModel, error: RolecallError) -> None:
        for ticket in model.waiting:
            ticket.error = _copy(error)
            ticket.settled.set()
        model.waiting.clear()

    def _in_memory(self) -> list[ResidentModel]:
        there = [model for model in self.models.values() if model.phase is not Phase.ABSENT]
        uses = sum(model.uses for model in there) + len(there)
        return [
            ResidentModel(
                key=model.model,
                reserved_bytes=model.reserved_bytes,
                pinned=model.pinned,
                in_use=max(len(model.active), int(model.phase is Phase.LOADING)),
                ending=model.phase is Phase.ENDING,
                reload_s=model.reload_s or 1.0 + model.reservation.weights_bytes / LOAD_BYTES_PER_S,
                next_use=(model.uses + 1) / uses,
                last_used=model.last_used,
            )
            for model in there
        ]

    # What takes time: one task per worker.

    async def _live(self, model: PooledModel) -> None:
        """The life of one worker: load, serve until it dies or is ended, see its memory come back."""
        try:
            with model.scope:
                await self._bring_up(model)
                if model.phase is Phase.LOADING:
                    model.phase = Phase.READY
                    self._grant(model, None)  # whoever it was loaded for comes before any eviction
                self._step()
                assert model.worker is not None
                await model.worker.exited.wait()
                _log.warning("worker_died", model=model.model, pid=model.worker.pid)
        except RolecallError as error:
            self._fail(model, error)
        except Exception as error:
            _log.exception("worker_failed", model=model.model)
            self._fail(model, WorkerDied(f"Loading model {model.model!r} failed.", found=type(error).__name__))
        finally:
            model.phase = Phase.ENDING
            with anyio.CancelScope(shield=True):
                await self._take_down(model)
            model.worker, model.phase = None, Phase.ABSENT
            self._unloading.discard(model.model)
            model.gone.set()
            self._step()

    async def _bring_up(self, model: PooledModel) -> None:
        began = time.monotonic()
        for ticket in model.waiting:
            ticket.cold = True
            ticket.tell(Loading(model.model, 0, model.reservation.weights_bytes))
        manifest = await anyio.to_thread.run_sync(self._prepared, model, abandon_on_cancel=True)
        spec = model.worker_spec(self._cache_limit_bytes)
        if model.kind == "text" and self._spare and not self._spare.exited.is_set():
            model.worker, self._spare = self._spare, None
        else:
            model.worker = await self._start_worker(spec)

        def on_loading(done_bytes: int, total_bytes: int) -> None:
            for ticket in model.waiting:
                ticket.cold = True
                ticket.tell(Loading(model.model, done_bytes, total_bytes))

        loaded = await model.worker.load(spec, on_loading)
        model.reload_s, model.weights_sha256 = time.monotonic() - began, manifest.weights_sha256
        model.loads += 1
        planned = model.reservation
        per_token_bytes = loaded.kv_bytes_per_token * planned.kv_tokens + loaded.fixed_state_bytes * planned.slots
        kv_bytes = max(planned.kv_bytes, per_token_bytes)
        held_bytes = max(loaded.measured_bytes, planned.weights_bytes + planned.overhead_bytes)
        model.reserved_bytes = held_bytes + kv_bytes + planned.transient_bytes + planned.cache_bytes
        _log.info("model_loaded", model=model.model, seconds=round(model.reload_s, 2), reserved=model.reserved_bytes)

    async def _take_down(self, model: PooledModel) -> None:
        if (worker := model.worker) is None:
            return
        # of a process that ended by itself there is nothing left to see come back
        held_bytes = 0 if worker.exited.is_set() else worker.measured_bytes
        before = psutil.virtual_memory().available
        outcome = await worker.stop()
        with anyio.move_on_after(MEMORY_BACK_S) as waited:
            while psutil.virtual_memory().available < before + held_bytes // 2 and held_bytes:
                await anyio.sleep(0.02)
        _log.info("model_ended", model=model.model, outcome=outcome, memory_seen=not waited.cancelled_caught)

    # The spare

    def _tend_spare(self) -> None:
        if self._spare and self._spare.exited.is_set():
            self._spare = None
        free_bytes = self.budget_bytes - sum(model.reserved_bytes for model in self._in_memory())
        if self._spare and free_bytes < PROCESS_OVERHEAD_BYTES:
            self._tasks.start_soon(self._drop_spare)
        if self._spare or self._spare_starting or self._closing or free_bytes < PROCESS_OVERHEAD_BYTES:
            return
        phases = {model.phase for model in self.models.values()}
        settled = Phase.READY in phases and not phases & {Phase.LOADING, Phase.ENDING}
        if settled and self._wants_spare() and psutil.virtual_memory().available > 4 * PROCESS_OVERHEAD_BYTES:
            self._spare_starting = True
            self._tasks.start_soon(self._start_spare)

    async def _start_spare(self) -> None:
        try:
            spare = await self._start_worker(None)
            if self._closing:
                await spare.stop()
            else:
                self._spare = spare
        except Exception as error:  # a load that finds no spare starts a process of its own
            _log.warning("spare_failed", error=type(error).__name__)
        finally:
            self._spare_starting = False

    async def _drop_spare(self) -> None:
        if spare := self._spare:
            self._spare = None
            await spare.stop()


def _copy(error: RolecallError) -> RolecallError:
    """One exception object per caller: a traceback belongs to one of them."""
    return type(error)(error.message, found=error.found, allowed=error.allowed, advice=error.advice)


def _does_not_fit(model: PooledModel, verdict: Refuse, budget_bytes: int) -> DoesNotFit:
    size = model.reservation
    return DoesNotFit(
        f"Model {model.model!r} needs {verdict.need_bytes / 1e9:.1f} GB but at most "
        f"{verdict.possible_bytes / 1e9:.1f} GB of the {budget_bytes / 1e9:.1f} GB budget can be free for it.",
        found=f"weights {size.weights_bytes / 1e9:.2f} GB, KV cache {size.kv_bytes / 1e9:.2f} GB for {size.kv_tokens} "
        f"tokens, working memory {(verdict.need_bytes - size.weights_bytes - size.kv_bytes) / 1e9:.2f} GB",
        allowed=f"{verdict.possible_bytes / 1e9:.2f} GB",
        advice="Lower the role's context_length or concurrency, choose a smaller model, or raise memory.budget_gb.",
    )
