"""One run: the real pool, with its admission, eviction, queueing, lease and preloading, over simulated workers; and its
figures: percentiles, memory, and the mission's targets with what arithmetic alone forbids."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio

from rolecall.config.profile import Profile
from rolecall.config.settings import GB
from rolecall.roles.contract import ModelEvent
from rolecall.roles.errors import RoleError
from rolecall.roles.lease import PrefillLease
from rolecall.roles.manager import ENCODER_SLOTS, TEMPLATE_TOKENS
from rolecall.roles.plan import ENCODER_OVERHEAD_BYTES, Reservation, reserve
from rolecall.roles.pool import WorkerPool
from rolecall.roles.pooled import Phase, PooledModel, Ticket
from rolecall.roles.residency import Policy, ResidentModel
from rolecall.roles.worker.wire import WorkerSpec

from .clock import run_virtual
from .device import Device, SimulatedMachine
from .rates import DeviceRates, size_of
from .worker import Call, SimulatedWorker
from .workload import Session

PRELOADED = {"code": "coding", "system_health": "reasoning"}  # by channel, as the server does
KEEP_ALIVE_S = 300.0  # Source: Ollama's default keep_alive
PLOT_STEP_S = 60.0
AFTER_S = 86400.0  # the longest that the last request may take
TARGETS_S = {"p50": 3.0, "p95": 10.0, "p99": 20.0}
COLD_TARGET_S, MEAN_TARGET_GB, MODELS_TARGET = 30.0, 70.0, 3


def _age(model: ResidentModel) -> tuple[float | str, ...]:
    return (model.last_used,)


# A policy that does not preload goes without the pin, the lease and the channels' hints as well, and reserves the whole
# KV cache at the load.
POLICIES = {
    "ours": Policy(),
    "lru": Policy(worth=_age, preloads=False, idle_ttl_s=math.inf),
    # Source: ollama server/sched.go: an idle runner ends 5 minutes after its last use; for room the idle one with the
    # shortest keep-alive goes (here all are equal, so the least recently used)
    "keep-alive": Policy(worth=_age, preloads=False, idle_ttl_s=KEEP_ALIVE_S),
}


def others_bytes(now_s: float) -> float:
    """What other programs of the simulated Mac hold, assumed: 10 GB at night, 18 GB in the afternoon, and 45 GB more
    from 15:00 to 15:20 (a virtual machine, a large build)."""
    slow = 14e9 - 4e9 * math.cos(2 * math.pi * (now_s / 86400 - 3 / 24))
    return slow + (45e9 if 15 * 3600 <= now_s % 86400 < 15 * 3600 + 1200 else 0.0)


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
class Run:
    """What is run, and what was seen of it: bytes `reserved` by the pool and `measured` by the workers, as integrals
    over the `seconds` and peaks; `curve` is (time, reserved, measured, others, budget) once a minute."""

    profile: Profile
    rates: DeviceRates
    policy: Policy
    machine: SimulatedMachine
    outcomes: list[Outcome] = field(default_factory=list)
    events: list[ModelEvent] = field(default_factory=list)
    curve: list[tuple[float, ...]] = field(default_factory=list)
    byte_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    peak_bytes: Counter[str] = field(default_factory=Counter)
    most_models: int = 0
    seconds: float = 0.0
    _pool: WorkerPool | None = None
    _now_bytes: Counter[str] = field(default_factory=Counter)

    def model_of(self, role: str) -> str:
        return self.profile.roles[role].model if role in self.profile.roles else self.profile.embedder.model

    def alone_s(self, call: Call) -> float:
        """Seconds of a call that has the device to itself, its model loaded and its document's prefix cached."""
        model = self.rates.models[self.model_of(call.role)]
        cached = min(call.document_tokens, call.prompt_tokens - 1)
        prefill_s = model.prefill_s(call.prompt_tokens - cached, cached)
        decode_s = call.completion_tokens * model.step_s(1, call.prompt_tokens + call.completion_tokens / 2)
        return self.rates.request_overhead_s + prefill_s + decode_s

    def see(self, now_s: float) -> None:
        """Called between all turns of the loop, so nothing is missed."""
        if (pool := self._pool) is None:
            return
        before = self._now_bytes
        while now_s >= (at_s := len(self.curve) * PLOT_STEP_S):
            others = self.machine.others_bytes(at_s)
            self.curve.append((at_s, before["reserved"], before["measured"], others, pool.budget_bytes))
        for what, size in before.items():
            self.byte_s[what] += size * (now_s - self.seconds)
        self._now_bytes = Counter(reserved=pool.reserved_bytes, measured=sum(self.machine.held.values()))
        self.peak_bytes |= self._now_bytes
        self.seconds = now_s
        self.most_models = max(self.most_models, sum(m.phase is Phase.READY for m in pool.models.values()))

    async def play(self, sessions: Sequence[Session]) -> None:
        device, pids, profile = Device(self.rates), itertools.count(1), self.profile
        names = dict.fromkeys([profile.embedder.model, *(spec.model for spec in profile.roles.values())])
        models = {name: self._pooled(name) for name in names if name in self.rates.models}

        async def start_worker(spec: WorkerSpec | None) -> SimulatedWorker:
            await anyio.sleep(self.rates.process_start_s)
            return SimulatedWorker(device, self.machine, next(pids))

        async def prepared(model: PooledModel) -> str:
            return "simulated"

        async with anyio.create_task_group() as tasks:
            pool = self._pool = WorkerPool(
                tasks=tasks,
                machine=self.machine,
                configured_bytes=int(profile.budget_gb * GB),
                queue_limit=64,
                cache_limit_bytes=int(profile.cache_limit_gb * GB),
                start_worker=start_worker,  # type: ignore[arg-type]
                prepared=prepared,
                wants_spare=lambda: any(model.phase is Phase.ABSENT for model in models.values()),
                on_event=self.events.append,
                policy=self.policy,
                lease=PrefillLease() if self.policy.preloads else None,
                models=models,
            )
            tasks.start_soon(pool.tend)
            self._preload(pool, "router")
            async with anyio.create_task_group() as clients:
                for session in sessions:
                    clients.start_soon(self._attend, session, pool)
            await pool.aclose()
            tasks.cancel_scope.cancel()

    def _pooled(self, name: str) -> PooledModel:
        specs = [spec for spec in self.profile.roles.values() if spec.model == name]
        if specs:
            if not self.policy.preloads:
                specs = [spec.model_copy(update={"pinned": False}) for spec in specs]
            size = reserve(size_of(name), specs, int(self.profile.cache_limit_gb * GB), mac=True)
        else:
            weights_bytes = int(self.rates.models[name].weights_bytes)
            size = Reservation(weights_bytes, 0, 0, ENCODER_OVERHEAD_BYTES, 0, 0, ENCODER_SLOTS)
        if not self.policy.preloads:
            size = replace(size, base_tokens=size.kv_tokens)
        return PooledModel(name, Path(name), tuple(specs), size, kind="text" if specs else "embedder")

    def _preload(self, pool: WorkerPool, role: str) -> None:
        if role in self.profile.roles and (model := pool.models.get(self.model_of(role))):
            pool.preload(model)

    async def _attend(self, session: Session, pool: WorkerPool) -> None:
        await anyio.sleep_until(session.calls[0].at_s)
        if self.policy.preloads:
            self._preload(pool, PRELOADED.get(session.channel, ""))
        for call, pause_s in zip(session.calls, session.pauses_s, strict=True):
            self.outcomes.append(await self._ask(call, pool))
            await anyio.sleep(pause_s)

    async def _ask(self, call: Call, pool: WorkerPool) -> Outcome:
        """What `ModelManager.generate` does, with a call in place of a request."""
        began, first_s, spec = anyio.current_time(), math.nan, self.profile.roles.get(call.role)
        model, need_tokens = pool.models[self.model_of(call.role)], call.prompt_tokens + call.max_tokens

        def on_first_token() -> None:
            nonlocal first_s
            first_s = anyio.current_time() - began

        ticket = Ticket(call.role, spec, client=call.client, tokens=need_tokens + TEMPLATE_TOKENS)
        try:
            async with pool.place(model, ticket) as worker:
                timeout_s = spec.timeout_s if spec else math.inf
                made = await worker.serve(call, timeout_s, on_first_token)  # type: ignore[attr-defined]
        except RoleError as error:
            return Outcome(call, anyio.current_time() - began, first_s, False, error.code)
        return Outcome(call, anyio.current_time() - began, first_s, ticket.cold, "", made.finish)


def simulate(
    profile: Profile, rates: DeviceRates, sessions: Sequence[Session], policy: Policy, others: Callable[[float], float]
) -> Run:
    """Run the sessions to their end. Same arguments, same record."""
    run = Run(profile, rates, policy, SimulatedMachine(int(rates.machine_bytes), others))
    limit_s = max((session.calls[0].at_s for session in sessions), default=0.0) + AFTER_S
    run_virtual(run.play, sessions, on_turn=run.see, limit_s=limit_s)
    run.outcomes.sort(key=lambda outcome: (outcome.call.at_s, outcome.call.client, outcome.call.role))
    return run


def summarise(run: Run, without_model: int = 0) -> dict[str, Any]:
    """The figures of one run, ready for JSON. Seconds and decimal GB.

    `alone_s` is what the same calls take with the machine to themselves, their model loaded and their document's
    prefix cached: what no manager can better. A target is `met`, `missed`, or `impossible` where even that misses it.
    `with_agents_s` counts `without_model` more requests, at 0 s.
    """
    kinds = sorted({outcome.call.kind for outcome in run.outcomes})
    load_s = [event.seconds for event in run.events if event.kind == "loaded"]
    cold_s = max(load_s, default=0.0)
    answered_s = [outcome.latency_s for outcome in run.outcomes if not outcome.refused]
    mean_gb = {what: run.byte_s[what] / max(run.seconds, 1e-9) / 1e9 for what in ("reserved", "measured")}
    figures: dict[str, Any] = _rounded(
        {
            **_group(run, run.outcomes),
            "by_class": {kind: _group(run, [o for o in run.outcomes if o.call.kind == kind]) for kind in kinds},
            "with_agents_s": _percentiles(answered_s + [0.0] * without_model),
            "loads": len(load_s),
            "load_s": sum(load_s),
            "longest_load_s": cold_s,
            "ended": _counts([event.kind for event in run.events if event.kind != "loaded"]),
            "mean_gb": mean_gb,
            "peak_gb": {what: run.peak_bytes[what] / 1e9 for what in ("reserved", "measured")},
            "most_models": run.most_models,
            "met": {
                f"average under {MEAN_TARGET_GB:g} GB": mean_gb["reserved"] < MEAN_TARGET_GB,
                f"cold start under {COLD_TARGET_S:g} s": cold_s < COLD_TARGET_S,
                f"{MODELS_TARGET} models or more at once": run.most_models >= MODELS_TARGET,
            },
        }
    )
    return figures


def _group(run: Run, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    answered = [outcome for outcome in outcomes if not outcome.refused]
    latency = _percentiles([outcome.latency_s for outcome in answered])
    alone = _percentiles([run.alone_s(outcome.call) for outcome in outcomes])
    targets = {
        name: "met" if latency[name] < limit else "missed" if alone[name] < limit else "impossible"
        for name, limit in TARGETS_S.items()
    }
    return {
        "requests": len(outcomes),
        "refused": _counts([outcome.refused for outcome in outcomes if outcome.refused]),
        "cut_off": sum(outcome.finish == "timeout" for outcome in answered),
        "cold_starts": sum(outcome.cold for outcome in answered),
        "latency_s": latency,
        "ttft_s": _percentiles([o.first_token_s for o in answered if not math.isnan(o.first_token_s)]),
        "alone_s": alone,
        "targets": targets,
    }


def _counts(values: Sequence[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    """By rank: the smallest value that so many of a hundred do not exceed; nan of none."""
    ranked = sorted(values)
    return {f"p{q}": ranked[max(0, math.ceil(q / 100 * len(ranked)) - 1)] if ranked else math.nan for q in (50, 95, 99)}


def _rounded(value: Any) -> Any:  # JSON has no nan
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value
