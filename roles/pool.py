"""The worker processes and who may use them: the one owner of residency.

Every change of state is made by a method without an `await` in it, which ends in `_step`: that grants, loads and ends
as things are now. Slow work (starting, loading and ending a process) runs in one task per worker and comes back with
another `_step`, so nothing is ever decided on stale knowledge. All times are the event loop's.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
import anyio.abc
import structlog

from rolecall.config.errors import RolecallError

from .contract import ModelEvent, OnModelEvent, tell
from .errors import DoesNotFit, RoleError, WorkerDied, WorkerTimeout
from .footprint import KV_STEP_TOKENS
from .forecast import Forecast
from .lease import PrefillLease
from .life import MEMORY_BACK_S, Spare, StartWorker, bring_up, take_down
from .memory import Machine, budget_now
from .plan import PROCESS_OVERHEAD_BYTES, context_tokens
from .pooled import End, Phase, PooledModel, Ticket
from .residency import Admit, Evict, Policy, Refuse, ResidentModel, Verdict, Wait, admit, shed
from .worker.wire import Loaded, WorkerSpec

if TYPE_CHECKING:
    from .worker.process import Worker

RETURNING_S = 5.0  # for so long what an ended process held and was not seen to come back still counts as ours
LOOK_S = 3.0  # between two looks at the machine's memory and at what is idle, while anything is resident
PATIENCE_S = 600.0  # the longest that a request without a deadline waits for its place
PRELOAD_AT = 0.15  # so likely to be its client's next, a model is loaded ahead; the best of 0.1 to 0.25 in simulation

_log = structlog.get_logger(__name__)


@dataclass(eq=False)
class WorkerPool:
    """Keeps reservations within `budget_bytes`: `configured_bytes`, or less while other programs need the memory.

    A model reserves a base of its KV cache; a request that needs more waits until that fits, as a load does. What it
    leaves serves as prefix cache until something else needs the room: no model ends, nor is waited for, before that.

    At most `queue_limit` callers wait for one model. `prepared` checks a model's files and gives the SHA-256 of its
    weights; `learned` hears what a load measured; `wants_spare` says whether a process with its imports done should be
    kept for the next load. `lease` None lets workers prefill as they like. Everything runs in `tasks`, where `tend` is
    to run as well.
    """

    tasks: anyio.abc.TaskGroup
    machine: Machine
    configured_bytes: int
    queue_limit: int
    cache_limit_bytes: int
    start_worker: StartWorker
    prepared: Callable[[PooledModel], Awaitable[str]]
    wants_spare: Callable[[], bool]
    learned: Callable[[PooledModel, Loaded], Awaitable[None]] | None = None
    on_event: OnModelEvent | None = None
    policy: Policy = field(default_factory=Policy)
    lease: PrefillLease | None = field(default_factory=PrefillLease)
    forecast: Forecast = field(default_factory=Forecast)
    models: dict[str, PooledModel] = field(default_factory=dict)
    budget_bytes: int = field(init=False)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _held: dict[str, int] = field(default_factory=dict)
    _unloading: set[str] = field(default_factory=set)
    _foreseen: list[PooledModel] = field(default_factory=list)
    _returning: tuple[int, float] = (0, 0.0)  # bytes of an ended process not seen to come back, and until when
    _occupied: anyio.Event = field(default_factory=anyio.Event)
    _closing: bool = False

    def __post_init__(self) -> None:
        self.budget_bytes = self.configured_bytes
        self._spare = Spare(self.tasks, self.start_worker)
        if self.lease is not None:
            self.lease.decoding = self._decoding

    @property
    def reserved_bytes(self) -> int:
        return sum(model.reserved_bytes for model in self._there())

    @property
    def held_bytes(self) -> int:
        """What the processes are known to hold, the spare's included."""
        spare = self._spare.held
        return sum(model.held_bytes for model in self._there()) + (spare.measured_bytes if spare else 0)

    @contextlib.asynccontextmanager
    async def place(self, model: PooledModel, ticket: Ticket) -> AsyncIterator[Worker]:
        """Wait for a place at the model's worker, loading it where needed; the place is free again on leaving.

        The wait, a load included, ends after the deadline, or else after PATIENCE_S or the role's time if that is more.
        Raises QueueFull, DoesNotFit, WorkerDied, WorkerTimeout (loading or waiting), ModelCorrupt, ModelRefused.
        """
        patience_s = ticket.deadline_s or max(PATIENCE_S, ticket.time_s)
        self._enqueue(model, ticket)
        try:
            with anyio.move_on_after(patience_s):
                await ticket.settled.wait()
            if not ticket.settled.is_set():
                raise _waited_too_long(model, ticket, patience_s)
            if ticket.worker is None:
                raise ticket.error or _ending()
            granted_at = anyio.current_time()
            yield ticket.worker
            model.service_s += 0.2 * (anyio.current_time() - granted_at - model.service_s)
        finally:
            model.leave(ticket)
            self._step()

    def limit(self, configured_bytes: int) -> None:
        """Lower the budget; what no longer fits is ended once it is idle."""
        self.configured_bytes = min(self.configured_bytes, configured_bytes)
        self.budget_bytes = min(self.budget_bytes, self.configured_bytes)
        self._step()

    def preload(self, model: PooledModel) -> None:
        """Load it now if it fits without ending anything and nobody waits for a load."""
        if self.policy.preloads and not self._closing:
            self.heed_memory()
            self._load_ahead(model)

    def pin(self, model: PooledModel, pinned: bool) -> None:
        """Keep its worker from being ended, or no longer."""
        model.kept = pinned
        if model.worker:
            model.worker.comes_first = model.pinned
        self._step()

    async def unload(self, model: PooledModel) -> bool:
        """End its worker once nobody uses it; True when its memory is free."""
        if model.phase is Phase.ABSENT:
            return False
        gone = model.gone
        self._unloading.add(model.model)
        if model.phase is Phase.LOADING:
            self._end(model, "unloaded")
        self._step()
        await gone.wait()
        return True

    async def tend(self) -> None:
        """All that happens by the clock: ends what is idle, and heeds what other programs leave of the memory."""
        while True:
            if not self._there():
                self._occupied = anyio.Event()
                await self._occupied.wait()
            await anyio.sleep(LOOK_S)
            for model in self._there():
                if model.idle_for(self.policy.idle_ttl_s):
                    self._end(model, "idle")
            self.heed_memory()
            self._step()

    def heed_memory(self) -> None:
        """Fit the budget to what other programs leave. While a process ends, its memory is neither here nor there."""
        there = self._there()
        if any(model.phase is Phase.ENDING for model in there):
            return
        late_bytes, until = self._returning
        held_bytes = self.held_bytes + (late_bytes if anyio.current_time() < until else 0)
        before, available_bytes = self.budget_bytes, self.machine.available_bytes()
        self.budget_bytes = budget_now(
            self.configured_bytes, before, held_bytes, available_bytes, self.machine.total_bytes
        )
        if self.budget_bytes < before:
            _log.warning("budget_shrunk", budget=self.budget_bytes, held=held_bytes, available=available_bytes)

    async def aclose(self) -> None:
        """End every process; callers that wait get an error."""
        self._closing = True
        with anyio.CancelScope(shield=True):
            there = self._there()
            for model in there:
                self._end(model, "unloaded")
            for model in self.models.values():
                model.fail(_ending())
            for model in there:
                await model.gone.wait()
            await self._spare.aclose()

    # What changes state: no await from here to `_step`.

    def _enqueue(self, model: PooledModel, ticket: Ticket) -> None:
        if self._closing:
            raise _ending()
        ticket.number = next(self._numbers)
        if ticket.spec:
            ticket.need_tokens = min(context_tokens(ticket.spec, ticket.tokens), model.reservation.kv_tokens)
        model.enqueue(ticket, self.queue_limit)
        if ticket.role:
            self.forecast.seen(ticket.client, model.model)
            likely = sorted(self.forecast.after(ticket.client).items(), key=lambda item: (-item[1], item[0]))
            self._foreseen = [self.models[key] for key, chance in likely if chance >= PRELOAD_AT]
        if model.phase is Phase.ABSENT or ticket.need_tokens > model.kv_tokens:
            self.heed_memory()
        self._step()

    def _step(self) -> None:
        """Do all that can be done as things are."""
        for model in self.models.values():
            if model.phase is Phase.READY and model.worker and model.worker.exited.is_set():
                model.phase = Phase.ENDING  # its task is about to notice
        if not self._closing:
            self._grant()  # by what was held before: who came before a load goes before its eviction
            self._give_back()
            while self._load_and_grow() or self._grant():
                pass
            if self.policy.preloads:
                for model in self._foreseen:
                    self._load_ahead(model)
        for model in self.models.values():
            if model.model in self._unloading and model.phase is Phase.READY and not model.active:
                self._end(model, "unloaded")
        self._tend_spare()

    def _load_and_grow(self) -> bool:
        """Load, or reserve more, for who waits, the first before others, until one has to wait on. Whether anything was
        decided that may free the way for others."""
        self._held = dict.fromkeys(self._unloading, 0)
        # a worker that measured more than was planned, or a smaller budget, may ask for an end without a load
        if self.reserved_bytes > self.budget_bytes:
            for too_much in shed(self._in_memory(), self.budget_bytes, self.policy):
                self._obey(too_much, 0)
        decided = False
        for number, model, tokens in self._wishes():
            need_bytes = model.reservation.bytes_at(tokens)
            verdict = admit(need_bytes, self._in_memory(besides=model), self.budget_bytes, self.policy)
            if isinstance(verdict, Admit):
                if model.phase is Phase.ABSENT:
                    self._start(model, tokens)
                else:
                    self._resize(model, tokens)
                    model.grant(number + 1)
                self._give_back()
            elif model.phase is Phase.READY and model.tokens_at_work():
                continue  # nothing ends so that it can run beside them: when they are done it needs less
            elif isinstance(verdict, Refuse):
                more = tokens > model.reservation.base_tokens
                model.fail(self._does_not_fit(model, tokens, verdict), tokens if more else 0)
            else:
                self._obey(verdict, number)
                break  # memory that comes free is for this one
            decided = True
        return decided

    def _wishes(self) -> list[tuple[int, PooledModel, int]]:
        """Who wants memory, in order: since which ticket (0: before all), the model, and its KV tokens then."""
        found: list[tuple[int, PooledModel, int]] = []
        for model in self.models.values():
            if model.phase is Phase.ABSENT and model.waiting:
                tokens = max(model.reservation.base_tokens, model.waiting[0].need_tokens)
                found.append((0 if model.pinned else model.oldest, model, tokens))
            elif self._held.get(model.model) != 0 and (ticket := model.short_of_memory()):
                found.append((ticket.number, model, model.tokens_at_work(ticket)))
        return sorted(found, key=lambda wish: (wish[0] > 0, wish[1].kind == "text", wish[0]))

    def _give_back(self) -> None:
        """Take KV cache that no request needs while there is more reserved than the budget, where it was used least
        lately first."""
        for model in sorted(self._there(), key=lambda model: model.last_used):
            over_bytes = self.reserved_bytes - self.budget_bytes
            step_bytes = KV_STEP_TOKENS * model.reservation.kv_bytes_per_token  # 0 where only a fixed state is kept
            if over_bytes > 0 and step_bytes and model.needed_tokens < model.kv_tokens:
                enough = model.kv_tokens + over_bytes // -step_bytes * KV_STEP_TOKENS
                self._resize(model, max(model.needed_tokens, enough))

    def _resize(self, model: PooledModel, tokens: int) -> None:
        model.kv_tokens = tokens
        if model.worker:
            model.worker.limit_kv(model.reservation.kv_bytes_at(tokens))

    def _load_ahead(self, model: PooledModel) -> None:
        loads = any(m.waiting and m.phase in (Phase.ABSENT, Phase.LOADING) for m in self.models.values())
        if model.phase is not Phase.ABSENT or loads or any(m.short_of_memory() for m in self.models.values()):
            return
        if self.reserved_bytes + model.base_bytes <= self.budget_bytes:
            self._start(model, model.reservation.base_tokens)

    def _start(self, model: PooledModel, tokens: int) -> None:
        model.phase, model.kv_tokens = Phase.LOADING, tokens
        model.scope, model.gone, model.ended_as = anyio.CancelScope(), anyio.Event(), "died"
        self._occupied.set()
        self.tasks.start_soon(self._live, model)

    def _obey(self, verdict: Verdict, number: int) -> None:
        """End the victims, or keep requests later than `number` from them until they are idle. A load that is waited
        for answers first where nobody's number says when."""
        if isinstance(verdict, Evict):
            for key in verdict.victims:
                _log.info("model_evicted", model=key)
                self._end(self.models[key], "evicted")
        elif isinstance(verdict, Wait):
            for key in verdict.victims:
                if number or self.models[key].phase is not Phase.LOADING:
                    self._held.setdefault(key, number)

    def _grant(self) -> bool:
        """Give places to who may have one; of a model that is held, only to who came before. Whether anyone got one."""
        ready = [model for model in self.models.values() if model.phase is Phase.READY]
        return sum(model.grant(self._held.get(model.model)) for model in ready) > 0

    def _end(self, model: PooledModel, why: End) -> None:
        model.phase, model.ended_as = Phase.ENDING, why
        model.scope.cancel()

    def _there(self) -> list[PooledModel]:
        return [model for model in self.models.values() if model.phase is not Phase.ABSENT]

    def _in_memory(self, besides: PooledModel | None = None) -> list[ResidentModel]:
        chances = self.forecast.next_use()
        return [model.resident(chances.get(model.model, 0.0)) for model in self._there() if model is not besides]

    def _decoding(self, prefilling: Collection[Worker]) -> bool:
        text = (model for model in self._there() if model.kind == "text")
        return any(model.worker not in prefilling for model in text if any(ticket.role for ticket in model.active))

    def _tend_spare(self) -> None:
        phases = {model.phase for model in self.models.values()}
        settled = Phase.READY in phases and not phases & {Phase.LOADING, Phase.ENDING}
        if self.budget_bytes - self.reserved_bytes >= PROCESS_OVERHEAD_BYTES:
            self._spare.tend(lambda: settled and not self._closing and self.wants_spare())
        elif self._spare.held:
            self.tasks.start_soon(self._spare.stop)

    # What takes time: one task per worker.

    async def _live(self, model: PooledModel) -> None:
        """The life of one worker: load, serve until it dies or is ended, see its memory come back."""
        try:
            with model.scope:
                loaded = await self._load_worker(model)
                if model.phase is Phase.LOADING:
                    model.phase, model.last_used = Phase.READY, anyio.current_time()
                    tell(
                        self.on_event,
                        ModelEvent("loaded", model.model, model.reload_s, model.held_bytes, bool(model.waiting)),
                    )
                self._step()
                if self.learned:
                    await self.learned(model, loaded)
                if model.worker:
                    await model.worker.exited.wait()
                _log.warning("worker_died", model=model.model)
        except RolecallError as error:
            model.fail(error)
        except Exception as error:
            _log.exception("worker_failed", model=model.model)
            model.fail(WorkerDied(f"Loading model {model.model!r} failed.", found=type(error).__name__))
        finally:
            with anyio.CancelScope(shield=True):
                await self._bury(model)

    async def _load_worker(self, model: PooledModel) -> Loaded:
        model.weights_sha256 = await self.prepared(model)
        planned = model.reservation
        spec = WorkerSpec(
            kind=model.kind,
            folder=model.folder,
            model=model.model,
            context_length=max((each.context_length for each in model.specs), default=model.input_tokens),
            concurrency=planned.slots,
            cache_limit_bytes=self.cache_limit_bytes,
            kv_bytes=planned.kv_bytes_at(model.kv_tokens),
            adapter=model.adapter,
            leased=self.lease is not None and model.kind == "text",
        )
        return await bring_up(model, spec, self._spare, self.lease)

    async def _bury(self, model: PooledModel) -> None:
        model.phase, worker = Phase.ENDING, model.worker
        if worker is not None:
            size_bytes = model.held_bytes
            wait_s = 0.0 if self._closing else MEMORY_BACK_S
            missing_bytes = await take_down(worker, model, self.machine, wait_s)
            self._returning = missing_bytes, anyio.current_time() + RETURNING_S
            if self.lease is not None:
                self.lease.leave(worker)
            tell(self.on_event, ModelEvent(model.ended_as, model.model, size_bytes=size_bytes))
        model.worker, model.phase, model.loaded_bytes = None, Phase.ABSENT, 0
        self._unloading.discard(model.model)
        self._foreseen.clear()  # what has just gone is not loaded again on an old guess
        model.gone.set()
        self._step()

    def _does_not_fit(self, model: PooledModel, tokens: int, verdict: Refuse) -> DoesNotFit:
        size, possible_bytes = model.reservation, max(0, verdict.possible_bytes)
        need_bytes, reason = size.bytes_at(tokens), ""
        advice = "Choose a smaller model, unpin another, or raise memory.budget_gb."
        if model.base_bytes <= verdict.possible_bytes:
            advice = "Send less text, ask for a shorter answer, or raise memory.budget_gb."
        if need_bytes <= verdict.possible_bytes + self.configured_bytes - self.budget_bytes:
            total_bytes = self.machine.total_bytes
            others = _gb(max(0, total_bytes - self.machine.available_bytes() - self.held_bytes))
            reason = f" Other programs hold {others} of the machine's {_gb(total_bytes)}; the budget without them: "
            reason += f"{_gb(self.configured_bytes)}."
            advice = "Close other programs, or ask again later. `rolecall models ps` shows who holds what."
        return DoesNotFit(
            f"Model {model.model!r} needs {_gb(need_bytes)} but at most {_gb(possible_bytes)} of the "
            f"{_gb(self.budget_bytes)} budget can be free for it.{reason}",
            found=f"weights {_gb(size.weights_bytes)}, KV cache {_gb(size.kv_bytes_at(tokens))} for {tokens} tokens, "
            "the rest working memory",
            allowed=_gb(possible_bytes),
            advice=advice,
        )


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"


def _ending() -> RoleError:
    return RoleError("The host is ending.", advice="Ask again: a new one starts by itself.")


def _waited_too_long(model: PooledModel, ticket: Ticket, patience_s: float) -> WorkerTimeout:
    waited_s = anyio.current_time() - ticket.queued_at
    return WorkerTimeout(
        f"No place at model {model.model!r} came free in time.",
        found=f"{waited_s:.3g} s waited, at position {max(1, ticket.position)} of {max(1, len(model.waiting))}",
        allowed=f"{patience_s:.3g} s",
        advice="Ask again later or with more time, send fewer requests at once, or raise the role's concurrency.",
    )
