"""Random traces through the real pool, with simulated workers in virtual time; invariants at every turn of the loop."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest

from rolecall.config.profile import RoleSpec
from rolecall.roles.contract import ModelEvent
from rolecall.roles.errors import DoesNotFit, QueueFull, RoleError, WorkerDied, WorkerTimeout
from rolecall.roles.footprint import Footprint, Kv
from rolecall.roles.lease import PrefillLease
from rolecall.roles.plan import reserve
from rolecall.roles.pool import WorkerPool
from rolecall.roles.pooled import End, Phase, PooledModel, Ticket
from rolecall.roles.residency import Policy, Refuse
from rolecall.roles.worker.wire import WorkerSpec
from tests.simulate.clock import run_virtual
from tests.simulate.device import Device, SimulatedMachine
from tests.simulate.rates import DeviceRates, ModelRates
from tests.simulate.worker import Call, SimulatedWorker

GB = 1_000_000_000
KV_BYTES_PER_TOKEN = 500_000
TRACE_S = 120.0  # in which requests arrive and things go wrong
LIMIT_S = 7200.0  # within which all must be over


@dataclass
class World:
    """One trace: what was drawn, and what was seen. `calm`: no pressure, and workers measure what was planned."""

    chance: random.Random
    calm: bool = False
    pool: WatchedPool | None = None
    others_bytes: float = 0.0
    workers: list[SimulatedWorker] = field(default_factory=list)
    kills: list[tuple[float, str]] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    events: list[ModelEvent] = field(default_factory=list)

    def see(self, now_s: float) -> None:
        """Between all turns of the event loop."""
        if self.pool is not None and self.calm:
            assert self.pool.reserved_bytes <= self.pool.budget_bytes
        for worker in self.workers:
            if worker.spec and worker._running:
                padded = len(worker._running) * max(worker._running.values())
                assert padded * KV_BYTES_PER_TOKEN <= worker.spec.kv_bytes, f"{worker.spec.model} holds too much"


@dataclass(eq=False)
class WatchedPool(WorkerPool):
    """The pool, looked at whenever it starts, resizes or ends a worker. `evicted_for` holds the room there was for a
    model when something was evicted for it, and the tokens it wanted, until it gets them."""

    evicted_for: dict[str, tuple[int, int]] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    seen: Counter[str] = field(default_factory=Counter)
    added: bool = False

    def room_bytes(self, model: PooledModel) -> int:
        """The most it could be given now, whatever ended and whoever gave back."""
        others = [m for m in self.models.values() if m is not model and m.phase in (Phase.LOADING, Phase.READY)]
        return self.budget_bytes - sum(m.base_bytes for m in others if m.pinned)

    def _start(self, model: PooledModel, tokens: int) -> None:
        super()._start(model, tokens)
        self.seen["started"] += 1
        self.evicted_for.pop(model.model, None)
        self.added = True

    def _resize(self, model: PooledModel, tokens: int) -> None:
        assert model.phase is Phase.READY
        grows = tokens > model.kv_tokens
        super()._resize(model, tokens)
        self.seen["grown" if grows else "given back"] += 1
        assert model.needed_tokens <= tokens <= model.reservation.kv_tokens
        if grows:
            self.evicted_for.pop(model.model, None)
            self.added = True

    def _load_and_grow(self) -> bool:
        self.added = False
        decided = super()._load_and_grow()
        assert not self.added or self.reserved_bytes <= self.budget_bytes
        return decided

    def _does_not_fit(self, model: PooledModel, tokens: int, verdict: Refuse) -> DoesNotFit:
        room_bytes = self.room_bytes(model)
        assert model.reservation.bytes_at(tokens) > room_bytes
        then_bytes, then_tokens = self.evicted_for.get(model.model, (0, 0))
        if tokens <= then_tokens:
            assert room_bytes < then_bytes, f"something was evicted for {model.model}, then it was refused"
        self.refused.add(model.model)
        self.seen["refused a request"] += model.phase is Phase.READY
        return super()._does_not_fit(model, tokens, verdict)

    def _end(self, model: PooledModel, why: End) -> None:
        if why in ("evicted", "idle"):
            assert not model.active, f"{model.model} was {why} in use"
            assert not model.pinned or model.phase is Phase.LOADING, f"{model.model} is pinned and was {why}"
            assert not model.waiting or model.phase is Phase.READY, f"{model.model} was waited for and was {why}"
        overhang = sum(m.reserved_bytes for m in self._in_memory() if not m.ending)
        if why == "evicted" and model.phase is Phase.READY and overhang <= self.budget_bytes:
            wanted = []
            for _, other, tokens in self._wishes():
                room_bytes, need_bytes = self.room_bytes(other), other.reservation.bytes_at(tokens)
                beside_bytes = sum(m.reserved_bytes for m in self._in_memory(besides=other))
                alone = other.phase is Phase.ABSENT or not other.tokens_at_work()
                if alone and need_bytes <= room_bytes and need_bytes + beside_bytes > self.budget_bytes:
                    wanted.append((other.model, (room_bytes, tokens)))
            assert wanted, f"{model.model} was evicted for nobody that needs and fits its place"
            self.evicted_for.update(wanted)
        super()._end(model, why)


def _models(
    chance: random.Random, calm: bool
) -> tuple[dict[str, PooledModel], dict[str, RoleSpec], dict[str, ModelRates]]:
    models, roles, rates = {}, {}, {}
    for number in range(chance.randint(2, 5)):
        name, specs = f"m{number}", []
        for part in range(chance.choice([1, 1, 1, 2])):
            spec = RoleSpec(
                model=name,
                quantization="8bit",
                context_length=chance.choice([1024, 8192, 32768, 65536]),
                concurrency=chance.randint(1, 3),
                timeout_s=chance.choice([5.0, 30.0, 90.0]),
                pinned=number == 0 and part == 0 and chance.random() < 0.7,
                idle_ttl_s=chance.choice([0.0, 4.0, 40.0]),
            )
            roles[f"{name}.{part}"] = spec
            specs.append(spec)
        weights_bytes = chance.randint(1, 30) * GB
        planned = Footprint(weights_bytes=weights_bytes, kv=Kv(KV_BYTES_PER_TOKEN), source="computed")
        models[name] = PooledModel(name, Path(name), tuple(specs), reserve(planned, specs, GB // 2, mac=True))
        grown = 0 if calm else chance.choice([0, 0, 0, 3 * GB])  # a worker may measure more than was planned
        rates[name] = ModelRates(
            prefill_tokens_per_s=chance.choice([300.0, 2000.0]),
            decode_tokens_per_s={1: 30.0, 2: 45.0},
            load_s=chance.choice([0.1, 2.0, 20.0]),
            weights_bytes=weights_bytes + grown,
            kv_bytes_per_token=KV_BYTES_PER_TOKEN,
        )
    return models, roles, rates


async def _play(world: World) -> None:
    chance = world.chance
    models, roles, rates = _models(chance, world.calm)
    machine = SimulatedMachine(128 * GB, lambda _: world.others_bytes)
    device = Device(DeviceRates(models=rates, process_start_s=chance.choice([0.0, 2.0])))
    pids = itertools.count(1)

    async def start_worker(spec: WorkerSpec | None) -> SimulatedWorker:
        await anyio.sleep(device.rates.process_start_s)
        world.workers.append(SimulatedWorker(device, machine, next(pids)))
        return world.workers[-1]

    async def prepared(model: PooledModel) -> str:
        await anyio.lowlevel.checkpoint()
        return "sha"

    with_spare = chance.random() < 0.5
    async with anyio.create_task_group() as tasks:
        pool = world.pool = WatchedPool(
            tasks=tasks,
            machine=machine,
            configured_bytes=chance.choice([20, 40, 60, 90]) * GB,
            queue_limit=chance.choice([1, 3, 64]),
            cache_limit_bytes=GB // 2,
            start_worker=start_worker,  # type: ignore[arg-type]
            prepared=prepared,
            wants_spare=lambda: with_spare,
            on_event=world.events.append,
            policy=Policy(preloads=chance.random() < 0.7),
            lease=PrefillLease() if chance.random() < 0.7 else None,
            models=models,
        )
        tasks.start_soon(pool.tend)
        async with anyio.create_task_group() as group:
            for _ in range(chance.randint(5, 45)):
                role = chance.choice(sorted(roles))
                group.start_soon(_ask, world, role, roles[role], _arrival(chance))
            for _ in range(chance.randint(0, 12)):
                group.start_soon(_disturb, world, _arrival(chance), chance.choice(sorted(models)), chance.random())
        assert not any(model.waiting or model.active for model in models.values())
        await pool.aclose()
        tasks.cancel_scope.cancel()
    assert pool.seen["started"] >= sum(event.kind == "loaded" for event in world.events)
    assert pool.reserved_bytes == 0 and all(model.phase is Phase.ABSENT for model in models.values())
    assert all(worker.exited.is_set() for worker in world.workers) and not machine.held


def _arrival(chance: random.Random) -> float:
    return chance.choice([float(chance.randrange(4)) * 30, chance.uniform(0, TRACE_S)])  # together, or whenever


async def _ask(world: World, role: str, spec: RoleSpec, at_s: float) -> None:
    chance, pool = world.chance, world.pool
    assert pool is not None
    prompt_tokens = chance.randint(1, chance.choice([500, spec.context_length - 400]))
    completion_tokens, counted = chance.randint(1, 300), chance.random() < 0.8
    deadline_s, leaves_s = chance.choice([None, None, 3.0, 40.0]), chance.choice([None, None, None, 0.0, 8.0])
    await anyio.sleep(at_s)
    call = Call(at_s, chance.choice("abc"), role, prompt_tokens, completion_tokens, 400, chance.choice([None, "d"]), 99)
    model, began, granted = pool.models[spec.model], anyio.current_time(), False
    outcome = "left"
    try:
        with anyio.CancelScope(deadline=began + leaves_s if leaves_s is not None else float("inf")):
            need_tokens = prompt_tokens + call.max_tokens if counted else None
            ticket = Ticket(role, spec, client=call.client, deadline_s=deadline_s, tokens=need_tokens)
            async with pool.place(model, ticket) as worker:
                granted = True
                made = await worker.serve(call, spec.timeout_s, lambda: None)  # type: ignore[attr-defined]
                assert made.completion_tokens == completion_tokens or made.finish == "timeout"
                outcome = "answered"
    except RoleError as error:
        outcome = error.code
        _check_reason(world, error, model, anyio.current_time() - began, granted, deadline_s or spec.timeout_s)
    world.outcomes.append(outcome)


def _check_reason(
    world: World, error: RoleError, model: PooledModel, waited_s: float, granted: bool, patience_s: float
) -> None:
    """A refusal says what is the case."""
    pool, key = world.pool, model.model
    assert pool is not None
    now_s = anyio.current_time()
    match error:
        case DoesNotFit():
            assert key in pool.refused  # and looked at then
        case QueueFull():
            assert len(model.waiting) == pool.queue_limit and waited_s == 0
        case WorkerTimeout() if granted:
            assert waited_s > 0
        case WorkerTimeout():
            assert waited_s >= patience_s - 1e-6, (str(error), waited_s)
        case WorkerDied():
            assert any(at_s >= now_s - waited_s and who in (key, "") for at_s, who in world.kills), str(error)
        case _:
            raise AssertionError(f"not a reason: {error!r}")


async def _disturb(world: World, at_s: float, key: str, dice: float) -> None:
    chance, pool = world.chance, world.pool
    assert pool is not None
    await anyio.sleep(at_s)
    model = pool.models[key]
    if dice < 0.35:
        alive = [worker for worker in world.workers if not worker.exited.is_set()]
        if alive:
            worker = chance.choice(alive)
            world.kills.append((anyio.current_time(), worker.spec.model if worker.spec else ""))
            worker.die()
    elif dice < 0.55:
        world.others_bytes = 0 if world.calm else chance.choice([0, 0, 30, 60, 120]) * GB
    elif dice < 0.7:
        await pool.unload(model)
    elif dice < 0.8:
        pool.pin(model, chance.random() < 0.5)
    elif dice < 0.95:
        pool.preload(model)
    elif not world.calm:
        pool.limit(chance.choice([15, 30, 50]) * GB)


def _trace(seed: int) -> World:
    world = World(random.Random(seed), calm=seed % 2 == 0)
    try:
        run_virtual(_play, world, on_turn=world.see, limit_s=LIMIT_S)
    except BaseException as error:
        error.add_note(f"trace {seed}")
        raise
    return world


def _traces(seeds: range) -> None:
    worlds = [_trace(seed) for seed in seeds]
    found = {outcome for world in worlds for outcome in world.outcomes}
    assert found >= {"answered", "left", "does_not_fit", "queue_full", "worker_timeout", "worker_died"}
    assert {event.kind for world in worlds for event in world.events} >= {"loaded", "evicted", "idle", "died"}
    seen = {what for world in worlds if world.pool for what, count in world.pool.seen.items() if count}
    assert seen == {"started", "grown", "given back", "refused a request"}


def test_random_traces_stay_in_the_budget_end_and_answer_or_refuse_with_a_true_reason() -> None:
    _traces(range(150))


@pytest.mark.soak
def test_ten_thousand_random_traces_stay_in_the_budget_end_and_answer_or_refuse_with_a_true_reason() -> None:
    _traces(range(1000, 11000))


def test_a_trace_is_the_same_each_time() -> None:
    first, second = _trace(7), _trace(7)
    assert first.outcomes == second.outcomes and first.events == second.events
