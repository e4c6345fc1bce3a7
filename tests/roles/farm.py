"""Workers that are objects, and a manager over them: everything but the processes is real."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np

from rolecall.config.home import Home
from rolecall.config.profile import Profile, RoleSpec
from rolecall.config.settings import Settings, load_profile, load_settings
from rolecall.roles.contract import EngineResult, Finish, GenerationRequest, Message, ModelEvent, OnEvent
from rolecall.roles.errors import WorkerDied
from rolecall.roles.lease import PrefillLease
from rolecall.roles.manager import ModelManager
from rolecall.roles.plan import Reservation
from rolecall.roles.pool import WorkerPool
from rolecall.roles.pooled import PooledModel, Ticket
from rolecall.roles.worker.wire import Input, Loaded, WorkerSpec
from tests.roles.tiny import CODING

PATIENCE_S = 5.0
EMBEDDER = "starter/all-minilm-l6-v2"
STARTER = "starter/smollm2-135m-instruct-fp32"
PIDS = itertools.count(1_000_000)


@dataclass
class FakeWorker:
    """Answers at once, but for prompts that hold `wait`: those wait for `gate`."""

    farm: Farm
    measured_bytes: int = 0
    exited: anyio.Event = field(default_factory=anyio.Event)
    spec: WorkerSpec | None = None
    pid: int = field(default_factory=lambda: next(PIDS))
    running: int = 0
    lease: PrefillLease | None = None
    comes_first: bool = False

    def grant_prefill(self) -> None: ...

    def limit_kv(self, kv_bytes: int) -> None:
        assert self.spec is not None
        self.spec = replace(self.spec, kv_bytes=kv_bytes)

    async def load(self, spec: WorkerSpec, on_loading: Callable[[int, int], None] | None = None) -> Loaded:
        self.spec = spec
        self.farm.check_budget()
        if self.farm.hangs:
            self.farm.hangs = False
            self.farm.load_limit_s = anyio.current_effective_deadline() - anyio.current_time()
            raise TimeoutError  # what reaching that limit raises
        await self._unless_dead(self.farm.load_gate)
        if self.exited.is_set():
            raise WorkerDied("It died.")
        if on_loading:
            on_loading(64, 64)
        self.measured_bytes = self.farm.measured.get(spec.model, 0)
        return Loaded(64, self.measured_bytes, 0, 0, 1.0)

    async def generate(
        self,
        request: GenerationRequest,
        thinks: bool = False,
        thinking_budget: int | None = None,
        on_event: OnEvent | None = None,
    ) -> EngineResult:
        assert self.spec is not None
        self.running += 1
        self.farm.most_at_once = max(self.farm.most_at_once, self.running)
        self.farm.order.append(request.messages[0].content)
        try:
            if "wait" in request.messages[0].content:
                await self._unless_dead(self.farm.gate)
            await anyio.lowlevel.checkpoint()
            if self.exited.is_set():
                raise WorkerDied("It died.")
            text, finish = self.farm.answer or (self.spec.model, "stop")
            return EngineResult(
                text=text, finish=finish, prompt_tokens=3, completion_tokens=10, decode_s=0.5, cached_tokens=2
            )
        finally:
            self.running -= 1

    async def _unless_dead(self, gate: anyio.Event) -> None:
        async def watch(event: anyio.Event, scope: anyio.CancelScope) -> None:
            await event.wait()
            scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(watch, gate, group.cancel_scope)
            group.start_soon(watch, self.exited, group.cancel_scope)

    async def encode(self, inputs: Sequence[Input], alone: bool = False, query: bool = False) -> np.ndarray[Any, Any]:
        if self.spec and self.spec.kind == "reranker":
            return np.array([[len(text)] for _, text in inputs], np.float32)
        return np.ones((len(inputs), 4), np.float32)

    async def score(self, messages: Sequence[Message], labels: Sequence[str]) -> tuple[float, ...]:
        return tuple(-float(len(label)) for label in labels)

    async def stop(self) -> str:
        await anyio.lowlevel.checkpoint()
        self.exited.set()
        return "exited"


@dataclass
class Farm:
    """Starts workers, remembers them, and watches the budget."""

    gate: anyio.Event = field(default_factory=anyio.Event)
    load_gate: anyio.Event = field(default_factory=anyio.Event)
    workers: list[FakeWorker] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    most_at_once: int = 0
    measured: dict[str, int] = field(default_factory=dict)
    manager: ModelManager | None = None
    hangs: bool = False
    load_limit_s: float = 0.0
    events: list[ModelEvent] = field(default_factory=list)
    answer: tuple[str, Finish] | None = None
    total_bytes: int = 200_000_000_000
    others_bytes: int = 0
    late_bytes: int = 0

    def available_bytes(self) -> int:
        ours = sum(worker.measured_bytes for worker in self.workers if not worker.exited.is_set())
        return self.total_bytes - self.others_bytes - ours - (self.late_bytes if ours == 0 else 0)

    async def start(self, spec: WorkerSpec | None) -> FakeWorker:
        await anyio.lowlevel.checkpoint()
        self.workers.append(FakeWorker(self))
        return self.workers[-1]

    def check_budget(self) -> None:
        if self.manager is None:
            return
        assert sum(line.reserved_bytes for line in self.manager.resident()) <= self.manager.memory().budget_bytes

    def alive(self, model: str) -> list[FakeWorker]:
        return [w for w in self.workers if w.spec and w.spec.model == model and not w.exited.is_set()]


def staff(**changes: Any) -> Profile:
    """Four text models of about 0.36 GB each while they hold 256 tokens; router and validation share one."""
    profile = load_profile("mac-128")
    small = {"context_length": 256, "concurrency": 1, "idle_ttl_s": 0.0, **changes}
    roles = {name: spec.model_copy(update=small) for name, spec in profile.roles.items()}
    roles["coding"] = roles["coding"].model_copy(update={"model": CODING, "concurrency": 2})
    kept = {name: roles[name] for name in ("router", "reasoning", "reasoning_heavy", "coding", "validation")}
    return profile.model_copy(update={"roles": kept, "cache_limit_gb": 0.001})


def settings_for(
    home: Home, profile: Profile, budget_gb: float, spare: bool = False, queue_limit: int = 64
) -> Settings:
    base = load_settings(home, profile="starter")
    return base.model_copy(
        update={
            "profile": profile,
            "memory": base.memory.model_copy(update={"budget_gb": budget_gb}),
            "host": base.host.model_copy(update={"spare_worker": spare, "queue_limit": queue_limit}),
        }
    )


@asynccontextmanager
async def managing(
    home: Home,
    profile: Profile,
    budget_gb: float = 96.0,
    loads: bool = True,
    patience_s: float = PATIENCE_S,
    **more: Any,
) -> AsyncIterator[tuple[ModelManager, Farm]]:
    farm = Farm()
    if loads:
        farm.load_gate.set()
    settings = settings_for(home, profile, budget_gb, **more)
    with anyio.fail_after(patience_s):
        async with ModelManager(home, settings, farm.start, machine=farm, on_event=farm.events.append) as manager:
            farm.manager = manager
            yield manager, farm
    assert all(worker.exited.is_set() for worker in farm.workers)


def ask(text: str = "hello", **more: Any) -> GenerationRequest:
    return GenerationRequest(messages=(Message(role="user", content=text),), max_tokens=8, **more)


def pooled(name: str, size_bytes: int = 10, **spec: Any) -> PooledModel:
    """A model of the pool that is on no disk, with one role of its own name."""
    fields = {"context_length": 256, "timeout_s": 60.0, **spec}
    role = RoleSpec(model=name, quantization="none", **fields)
    size = Reservation(size_bytes, 0, 0, 0, 0, 256 * role.concurrency, role.concurrency)
    return PooledModel(name, Path(name), (role,), size)


@asynccontextmanager
async def pooling(farm: Farm, budget_bytes: int, *models: PooledModel, **more: Any) -> AsyncIterator[WorkerPool]:
    """A pool with no disk and no threads, for a loop with a virtual clock too."""

    async def prepared(model: PooledModel) -> str:
        return "sha256"

    farm.load_gate.set()
    fields = {"queue_limit": 64, "cache_limit_bytes": 0, "wants_spare": lambda: False, **more}
    async with anyio.create_task_group() as tasks:
        pool = WorkerPool(
            tasks, farm, budget_bytes, start_worker=farm.start, prepared=prepared, on_event=farm.events.append, **fields
        )
        pool.models.update({model.model: model for model in models})
        tasks.start_soon(pool.tend)
        try:
            yield pool
        finally:
            await pool.aclose()
            tasks.cancel_scope.cancel()
    assert all(worker.exited.is_set() for worker in farm.workers)
    assert pool.reserved_bytes == 0


async def use(pool: WorkerPool, name: str, text: str = "hello", **more: Any) -> None:
    """One request to the model, as the manager makes it."""
    model = pool.models[name]
    async with pool.place(model, Ticket(name, model.specs[0], **more)) as worker:
        await worker.generate(ask(text))


async def until(holds: Callable[[], Any]) -> None:
    while not holds():
        await anyio.lowlevel.checkpoint()
