"""The worker processes and who may use them: the one owner of residency.

Every change of state is made by a method without an `await` in it, which ends in `_step`: that grants, loads and ends
as things are now. Slow work (starting, loading and ending a process) runs in one task per worker and comes back with
another `_step`, so nothing is ever decided on stale knowledge.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import anyio
import anyio.abc
import anyio.to_thread
import psutil
import structlog

from rolecall.config.errors import RolecallError
from rolecall.config.profile import RoleSpec

from .contract import Loading, OnEvent, Queued
from .errors import DoesNotFit, QueueFull, RoleError, WorkerDied, WorkerTimeout
from .manifest import Manifest
from .plan import PROCESS_OVERHEAD_BYTES, Reservation, context_tokens
from .residency import Admit, Evict, Refuse, ResidentModel, Verdict, Wait, admit
from .worker.wire import WorkerSpec

if TYPE_CHECKING:
    from .worker.process import Worker  # imported where one is started

MEMORY_BACK_S = 2.0  # the longest a load waits to see an ended process's memory free again
LOAD_BYTES_PER_S = 3_000_000_000  # Source: cold loads on Apple silicon, 3.0 to 3.75 GB/s; until one was measured
LOAD_TIMEOUT_S = 600.0  # and where that is longer, what a slow disk takes
SLOW_DISK_BYTES_PER_S = 50_000_000
USE_DECAY = 0.9  # how much each later use of another model takes from the probability of a model's next use

_log = structlog.get_logger(__name__)

StartWorker = Callable[[WorkerSpec | None], Awaitable["Worker"]]


class Phase(Enum):
    ABSENT = "absent"
    LOADING = "loading"
    READY = "ready"
    ENDING = "ending"


@dataclass(eq=False, slots=True)
class Ticket:
    """One caller's place. `role` "" only wants the model in memory. Granted once `settled` with a `worker`."""

    number: int
    role: str
    spec: RoleSpec | None
    on_event: OnEvent | None
    position: int = 0
    cold: bool = False
    queued_at: float = field(default_factory=time.monotonic)
    settled: anyio.Event = field(default_factory=anyio.Event)
    worker: Worker | None = None
    error: RolecallError | None = None

    def tell(self, event: Queued | Loading) -> None:
        if self.on_event is not None:
            try:
                self.on_event(event)
            except Exception:
                _log.exception("event_callback_failed")


@dataclass(eq=False, slots=True)
class PooledModel:
    """One model and what goes on with it; the embedder has no `specs`. `reserved_bytes` counts while not absent."""

    model: str
    folder: Path
    specs: tuple[RoleSpec, ...]
    reservation: Reservation
    reserved_bytes: int
    phase: Phase = Phase.ABSENT
    worker: Worker | None = None
    weights_sha256: str = ""
    reload_s: float = 0.0
    uses: float = 0.0
    service_s: float = 1.0
    last_used: float = field(default_factory=time.monotonic)
    waiting: list[Ticket] = field(default_factory=list)
    active: list[Ticket] = field(default_factory=list)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    gone: anyio.Event = field(default_factory=anyio.Event)

    @property
    def kind(self) -> Literal["text", "embedder"]:
        return "text" if self.specs else "embedder"

    @property
    def pinned(self) -> bool:
        return any(spec.pinned for spec in self.specs)

    @property
    def oldest(self) -> int:
        return min(ticket.number for ticket in self.waiting)

    def has_room_for(self, ticket: Ticket) -> bool:
        """Whether slots and the KV cache, which pads every request to the longest, allow one more."""
        at_work = [other for other in (ticket, *self.active) if other.role]
        if not ticket.role or len(at_work) == 1:
            return True
        longest = max(context_tokens(other.spec) if other.spec else 0 for other in at_work)
        return len(at_work) <= self.reservation.slots and len(at_work) * longest <= self.reservation.kv_tokens


@dataclass(eq=False)
class WorkerPool:
    """Keeps reservations within `budget_bytes`; at most `queue_limit` callers wait for one model.

    `prepared` checks a model's files (blocking). `wants_spare` says whether a process with its imports done should be
    kept for the next load. Everything runs in `tasks`.
    """

    tasks: anyio.abc.TaskGroup
    budget_bytes: int
    queue_limit: int
    cache_limit_bytes: int
    start_worker: StartWorker
    prepared: Callable[[PooledModel], Manifest]
    wants_spare: Callable[[], bool]
    models: dict[str, PooledModel] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _held: dict[str, int] = field(default_factory=dict)
    _unloading: set[str] = field(default_factory=set)
    _spare: Worker | None = None
    _spare_starting: bool = False
    _closing: bool = False

    @contextlib.asynccontextmanager
    async def place(
        self, model: PooledModel, role: str, spec: RoleSpec | None, on_event: OnEvent | None = None
    ) -> AsyncIterator[tuple[Ticket, Worker]]:
        """Wait for a place at the model's worker, loading it where needed; the place is free again on leaving.

        Raises: QueueFull, DoesNotFit, WorkerDied, WorkerTimeout (loading), ModelCorrupt, ModelRefused.
        """
        ticket = Ticket(next(self._numbers), role, spec, on_event)
        self._enqueue(model, ticket)
        try:
            await ticket.settled.wait()
            if ticket.worker is None:
                raise ticket.error or _ending()
            granted_at = time.monotonic()
            yield ticket, ticket.worker
            model.service_s += 0.2 * (time.monotonic() - granted_at - model.service_s)
        finally:
            self._leave(model, ticket)

    def limit(self, budget_bytes: int) -> None:
        """Lower the budget; what no longer fits is ended once it is idle."""
        self.budget_bytes = min(self.budget_bytes, budget_bytes)
        self._step()

    def preload(self, model: PooledModel) -> None:
        """Load it now if it fits without ending anything and nobody waits for memory."""
        waited_for = any(other.waiting and other.phase is Phase.ABSENT for other in self.models.values())
        if model.phase is Phase.ABSENT and not waited_for and not self._closing:
            self._load([model], may_evict=False)

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
        for model in self.models.values():
            limits = [spec.idle_ttl_s for spec in model.specs] or [0.0]  # 0 keeps it: one such role is enough
            idle = model.phase is Phase.READY and not (model.active or model.waiting or model.pinned)
            if idle and min(limits) > 0 and time.monotonic() - model.last_used > max(limits):
                self._end(model)

    async def aclose(self) -> None:
        """End every process; callers that wait get an error."""
        self._closing = True
        with anyio.CancelScope(shield=True):
            there = [model for model in self.models.values() if model.phase is not Phase.ABSENT]
            for model in there:
                self._end(model)
            for model in self.models.values():
                self._fail(model, _ending())
            for model in there:
                await model.gone.wait()
            await self._drop_spare()

    # What changes state: no await from here to `_step`.

    def _enqueue(self, model: PooledModel, ticket: Ticket) -> None:
        if self._closing:
            raise _ending()
        if len(model.waiting) >= self.queue_limit:
            retry_s = max(1.0, model.service_s * len(model.waiting) / max(1, model.reservation.slots))
            raise QueueFull(
                f"Too many requests wait for model {model.model!r}.",
                found=f"{len(model.waiting)} waiting",
                allowed=f"{self.queue_limit} (host.queue_limit)",
                advice=f"Try again in about {retry_s:.0f} s.",
            )
        model.waiting.append(ticket)
        model.waiting.sort(key=lambda t: (not (t.spec and t.spec.pinned), t.number))
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
        if not self._closing:
            self._grant()  # by what was held before: who came before a load goes before its eviction
            self._held = dict.fromkeys(self._unloading, 0)
            # a worker that measured more than was planned, or a smaller budget, may ask for an end without a load
            self._obey(admit(0, self._in_memory(), self.budget_bytes), 0)
            wanted = [model for model in self.models.values() if model.waiting and model.phase is Phase.ABSENT]
            self._load(sorted(wanted, key=lambda m: (not m.pinned, m.kind != "embedder", m.oldest)))
            self._grant()
        for model in self.models.values():
            if model.model in self._unloading and model.phase is Phase.READY and not model.active:
                self._end(model)
        self._tend_spare()

    def _load(self, wanted: Sequence[PooledModel], may_evict: bool = True) -> None:
        for model in wanted:
            verdict = admit(model.reserved_bytes, self._in_memory(), self.budget_bytes)
            if isinstance(verdict, Admit):
                model.phase = Phase.LOADING
                model.scope, model.gone = anyio.CancelScope(), anyio.Event()
                self.tasks.start_soon(self._live, model)
            elif isinstance(verdict, Refuse):
                self._fail(model, _does_not_fit(model, verdict, self.budget_bytes))
            elif may_evict:
                self._obey(verdict, 0 if model.pinned else model.oldest)
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

    def _grant(self) -> None:
        """Give places to who may have one; of a model that is held, only to who came before."""
        for model in self.models.values():
            if model.phase is not Phase.READY:
                continue
            for ticket in model.waiting[:]:
                concurrency = ticket.spec.concurrency if ticket.spec else model.reservation.slots
                busy = ticket.role and sum(other.role == ticket.role for other in model.active) >= concurrency
                if busy or ticket.number >= self._held.get(model.model, ticket.number + 1):
                    continue
                if not model.has_room_for(ticket):
                    break  # nobody later overtakes it, or a long context would wait for ever
                model.waiting.remove(ticket)
                model.active.append(ticket)
                ticket.worker = model.worker
                ticket.settled.set()
            for position, ticket in enumerate(model.waiting, 1):
                if position != ticket.position:
                    ticket.position = position
                    ticket.tell(Queued(position))

    def _end(self, model: PooledModel) -> None:
        model.phase = Phase.ENDING
        model.scope.cancel()

    def _fail(self, model: PooledModel, error: RolecallError) -> None:
        for ticket in model.waiting:
            ticket.error = copy.copy(error)  # one exception object per caller: a traceback belongs to one of them
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
                worker = await self._bring_up(model)
                if model.phase is Phase.LOADING:
                    model.phase = Phase.READY
                self._step()
                await worker.exited.wait()
                _log.warning("worker_died", model=model.model, pid=worker.pid)
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

    async def _bring_up(self, model: PooledModel) -> Worker:
        began, planned = time.monotonic(), model.reservation

        def on_loading(done_bytes: int, total_bytes: int) -> None:
            for ticket in model.waiting:
                ticket.cold = True
                ticket.tell(Loading(model.model, done_bytes, total_bytes))

        on_loading(0, planned.weights_bytes)
        manifest = await anyio.to_thread.run_sync(self.prepared, model, abandon_on_cancel=True)
        context, cache_bytes = max((spec.context_length for spec in model.specs), default=0), self.cache_limit_bytes
        spec = WorkerSpec(model.kind, model.folder, model.model, context, planned.slots, cache_bytes)
        if model.kind == "text" and self._spare and not self._spare.exited.is_set():
            worker, self._spare = self._spare, None
        else:
            worker = await self.start_worker(spec)
        model.worker = worker
        timeout_s = max(LOAD_TIMEOUT_S, planned.weights_bytes / SLOW_DISK_BYTES_PER_S)
        try:
            with anyio.fail_after(timeout_s):
                loaded = await worker.load(spec, on_loading)
        except TimeoutError:
            raise WorkerTimeout(
                f"Model {model.model!r} did not finish loading.",
                found=f"nothing after {timeout_s:.0f} s",
                advice="Ask again: another process starts. If it happens again, see `rolecall doctor` and the disk.",
            ) from None
        model.reload_s, model.weights_sha256 = time.monotonic() - began, manifest.weights_sha256
        per_token_bytes = loaded.kv_bytes_per_token * planned.kv_tokens + loaded.fixed_state_bytes * planned.slots
        held_bytes = max(loaded.measured_bytes, planned.weights_bytes + planned.overhead_bytes)
        kv_bytes = max(planned.kv_bytes, per_token_bytes)
        model.reserved_bytes = held_bytes + kv_bytes + planned.transient_bytes + planned.cache_bytes
        _log.info("model_loaded", model=model.model, seconds=round(model.reload_s, 2), reserved=model.reserved_bytes)
        return worker

    async def _take_down(self, model: PooledModel) -> None:
        if (worker := model.worker) is None:
            return
        # of a process that ended by itself there is nothing left to see come back
        held_bytes = 0 if worker.exited.is_set() else worker.measured_bytes
        before = psutil.virtual_memory().available
        outcome = await worker.stop()
        with anyio.move_on_after(MEMORY_BACK_S) as waited:
            while held_bytes and psutil.virtual_memory().available < before + held_bytes // 2:
                await anyio.sleep(0.02)
        _log.info("model_ended", model=model.model, outcome=outcome, memory_seen=not waited.cancelled_caught)

    # The spare

    def _tend_spare(self) -> None:
        if self._spare and self._spare.exited.is_set():
            self._spare = None
        free_bytes = self.budget_bytes - sum(model.reserved_bytes for model in self._in_memory())
        phases = {model.phase for model in self.models.values()}
        settled = Phase.READY in phases and not phases & {Phase.LOADING, Phase.ENDING}
        if free_bytes < PROCESS_OVERHEAD_BYTES:
            if self._spare:
                self.tasks.start_soon(self._drop_spare)
        elif not settled or self._spare or self._spare_starting or self._closing:
            return
        elif self.wants_spare() and psutil.virtual_memory().available > 4 * PROCESS_OVERHEAD_BYTES:
            self._spare_starting = True
            self.tasks.start_soon(self._start_spare)

    async def _start_spare(self) -> None:
        try:
            self._spare = await self.start_worker(None)
            if self._closing:
                await self._drop_spare()
        except Exception as error:  # a load that finds no spare starts a process of its own
            _log.warning("spare_failed", error=type(error).__name__)
        finally:
            self._spare_starting = False

    async def _drop_spare(self) -> None:
        if spare := self._spare:
            self._spare = None
            await spare.stop()


def _ending() -> RoleError:
    return RoleError("The host is ending.", advice="Ask again: a new one starts by itself.")


def _does_not_fit(model: PooledModel, verdict: Refuse, budget_bytes: int) -> DoesNotFit:
    size = model.reservation
    weights, kv, need, possible, budget = (
        f"{figure / 1e9:.1f} GB"
        for figure in (size.weights_bytes, size.kv_bytes, model.reserved_bytes, verdict.possible_bytes, budget_bytes)
    )
    return DoesNotFit(
        f"Model {model.model!r} needs {need} but at most {possible} of the {budget} budget can be free for it.",
        found=f"weights {weights}, KV cache {kv} for {size.kv_tokens} tokens, the rest working memory",
        allowed=possible,
        advice="Lower the role's context_length or concurrency, choose a smaller model, or raise memory.budget_gb.",
    )
