"""One run: the real pool, with its admission, eviction, queueing, lease and preloading, over simulated workers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
import anyio.abc

from rolecall.config.profile import Profile, RoleSpec
from rolecall.config.settings import GB
from rolecall.roles.contract import ModelEvent
from rolecall.roles.errors import RoleError
from rolecall.roles.lease import PrefillLease
from rolecall.roles.manager import TEMPLATE_TOKENS
from rolecall.roles.plan import EMBEDDER_OVERHEAD_BYTES, Reservation, reserve
from rolecall.roles.pool import WorkerPool
from rolecall.roles.pooled import Phase, PooledModel
from rolecall.roles.residency import Policy, ResidentModel
from rolecall.roles.worker.wire import WorkerResult, WorkerSpec

from .clock import run_virtual
from .device import Device, SimulatedMachine
from .rates import DeviceRates, size_of
from .worker import Call, SimulatedWorker
from .workload import Session

PRELOADED = {"code": "coding", "system_health": "reasoning"}  # by channel, as the server does
KEEP_ALIVE_S = 300.0  # Source: Ollama's default keep_alive
PLOT_STEP_S = 60.0
AFTER_S = 86400.0  # the longest that the last request may take


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy to compare. `whole` false takes the pin, the lease and the channels' hints away, and reserves the whole
    KV cache at the load."""

    policy: Policy
    whole: bool = True


def _age(model: ResidentModel) -> tuple[float | str, ...]:
    return (model.last_used,)


POLICIES = {
    "ours": Contender(Policy()),
    "lru": Contender(Policy(worth=_age, preloads=False, idle_ttl_s=math.inf), whole=False),
    # Source: ollama server/sched.go: an idle runner ends 5 minutes after its last use; for room the idle one with the
    # shortest keep-alive goes (here all are equal, so the least recently used)
    "keep-alive": Contender(Policy(worth=_age, preloads=False, idle_ttl_s=KEEP_ALIVE_S), whole=False),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a call, in seconds from it (nan: no token came); `refused` is the error's code, or empty."""

    call: Call
    latency_s: float
    first_token_s: float
    cold: bool
    refused: str
    finish: str = ""


@dataclass(eq=False)
class Record:
    """What a run saw. Means are over time; `curve` is (time, reserved, measured, others, budget) once a minute."""

    outcomes: list[Outcome] = field(default_factory=list)
    events: list[ModelEvent] = field(default_factory=list)
    curve: list[tuple[float, ...]] = field(default_factory=list)
    reserved_byte_s: float = 0.0
    measured_byte_s: float = 0.0
    peak_reserved_bytes: int = 0
    peak_measured_bytes: int = 0
    most_models: int = 0
    seconds: float = 0.0
    pool: WorkerPool | None = None
    _reserved: int = 0
    _measured: int = 0

    def see(self, now_s: float) -> None:
        """Called between all turns of the loop, so nothing is missed."""
        if (pool := self.pool) is None:
            return
        machine = pool.machine
        assert isinstance(machine, SimulatedMachine)
        while now_s >= len(self.curve) * PLOT_STEP_S:
            at_s = len(self.curve) * PLOT_STEP_S
            self.curve.append((at_s, self._reserved, self._measured, machine.others_bytes(at_s), pool.budget_bytes))
        self.reserved_byte_s += self._reserved * (now_s - self.seconds)
        self.measured_byte_s += self._measured * (now_s - self.seconds)
        self.seconds, self._reserved, self._measured = now_s, pool.reserved_bytes, sum(machine.held.values())
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self._reserved)
        self.peak_measured_bytes = max(self.peak_measured_bytes, self._measured)
        self.most_models = max(self.most_models, sum(m.phase is Phase.READY for m in pool.models.values()))


def others_bytes(now_s: float) -> float:
    """What other programs of the simulated Mac hold, assumed: 10 GB at night, 18 GB in the afternoon, and 45 GB more
    from 15:00 to 15:20 (a virtual machine, a large build)."""
    slow = 14e9 - 4e9 * math.cos(2 * math.pi * (now_s / 86400 - 3 / 24))
    return slow + (45e9 if 15 * 3600 <= now_s % 86400 < 15 * 3600 + 1200 else 0.0)


def simulate(
    profile: Profile,
    rates: DeviceRates,
    sessions: Sequence[Session],
    contender: Contender,
    others: Callable[[float], float] = others_bytes,
) -> Record:
    """Run the sessions to their end. Same arguments, same record."""
    record = Record()
    limit_s = max((session.calls[0].at_s for session in sessions), default=0.0) + AFTER_S
    run_virtual(_run, profile, rates, sessions, contender, others, record, on_turn=record.see, limit_s=limit_s)
    record.outcomes.sort(key=lambda outcome: (outcome.call.at_s, outcome.call.client, outcome.call.role))
    return record


def _pooled(profile: Profile, rates: DeviceRates, whole: bool) -> dict[str, PooledModel]:
    """The pool's entry of each model that there are rates for."""
    by_model: dict[str, list[RoleSpec]] = {profile.embedder.model: []}
    for spec in profile.roles.values():
        by_model.setdefault(spec.model, []).append(spec if whole else spec.model_copy(update={"pinned": False}))
    models = {}
    for name, specs in by_model.items():
        if name not in rates.models:
            continue
        weights_bytes = int(rates.models[name].weights_bytes)
        size = Reservation(weights_bytes, 0, 0, EMBEDDER_OVERHEAD_BYTES, 0, 0, 8)
        if specs:
            size = reserve(size_of(name), specs, int(profile.cache_limit_gb * GB), mac=True)
        if not whole:
            size = replace(size, base_tokens=size.kv_tokens)
        models[name] = PooledModel(name, Path(name), tuple(specs), size)
    return models


async def _run(
    profile: Profile,
    rates: DeviceRates,
    sessions: Sequence[Session],
    contender: Contender,
    others: Callable[[float], float],
    record: Record,
) -> None:
    machine = SimulatedMachine(int(rates.machine_bytes), others)
    device, pids = Device(rates), itertools.count(1)

    async def start_worker(spec: WorkerSpec | None) -> SimulatedWorker:
        await anyio.sleep(rates.process_start_s)
        return SimulatedWorker(device, machine, next(pids))

    async def prepared(model: PooledModel) -> str:
        return "simulated"

    async with anyio.create_task_group() as tasks:
        pool = record.pool = WorkerPool(
            tasks=tasks,
            machine=machine,
            configured_bytes=int(rates.budget_bytes or profile.budget_gb * GB),
            queue_limit=64,
            cache_limit_bytes=int(profile.cache_limit_gb * GB),
            start_worker=start_worker,  # type: ignore[arg-type]
            prepared=prepared,
            wants_spare=lambda: any(model.phase is Phase.ABSENT for model in pool.models.values()),
            on_event=record.events.append,
            policy=contender.policy,
            lease=PrefillLease() if contender.whole else None,
            models=_pooled(profile, rates, contender.whole),
        )
        tasks.start_soon(pool.tend)
        if "router" in profile.roles:
            pool.preload(pool.models[profile.roles["router"].model])
        async with anyio.create_task_group() as clients:
            for session in sessions:
                clients.start_soon(_attend, session, profile, pool, contender, record)
        await pool.aclose()
        tasks.cancel_scope.cancel()


async def _attend(session: Session, profile: Profile, pool: WorkerPool, contender: Contender, record: Record) -> None:
    await anyio.sleep_until(session.calls[0].at_s)
    if contender.whole and (role := PRELOADED.get(session.channel)) in profile.roles:
        pool.preload(pool.models[profile.roles[role].model])
    for call, pause_s in zip(session.calls, session.pauses_s, strict=True):
        record.outcomes.append(await _ask(call, profile, pool))
        await anyio.sleep(pause_s)


async def _ask(call: Call, profile: Profile, pool: WorkerPool) -> Outcome:
    """What `ModelManager.generate` does, with a call in place of a request."""
    began, first_s, spec = anyio.current_time(), math.nan, profile.roles.get(call.role)
    name = spec.model if spec else profile.embedder.model

    def on_first_token() -> None:
        nonlocal first_s
        first_s = anyio.current_time() - began

    try:
        need_tokens = call.prompt_tokens + call.max_tokens + TEMPLATE_TOKENS
        place = pool.place(pool.models[name], call.role, spec, client=call.client, need_tokens=need_tokens)
        async with place as (ticket, worker):
            timeout_s = spec.timeout_s if spec else math.inf
            made: WorkerResult = await worker.serve(call, timeout_s, on_first_token)  # type: ignore[attr-defined]
    except RoleError as error:
        return Outcome(call, anyio.current_time() - began, first_s, False, error.code)
    return Outcome(call, anyio.current_time() - began, first_s, ticket.cold, "", made.finish)
