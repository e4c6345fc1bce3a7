"""Workers that are objects, and a manager over them: everything but the processes is real."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import numpy as np

from rolecall.config.home import Home
from rolecall.config.profile import Profile
from rolecall.config.settings import Settings, load_profile, load_settings
from rolecall.roles.contract import GenerationRequest, Message, OnEvent
from rolecall.roles.errors import (
    WorkerDied,
)
from rolecall.roles.manager import ModelManager
from rolecall.roles.worker.wire import Loaded, WorkerResult, WorkerSpec
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

    async def load(self, spec: WorkerSpec, on_loading: Callable[[int, int], None] | None = None) -> Loaded:
        self.spec = spec
        self.farm.check_budget()
        if self.farm.hangs:
            self.farm.hangs = False
            self.farm.load_limit_s = anyio.current_effective_deadline() - anyio.current_time()
            raise TimeoutError  # what reaching that limit raises
        await self.farm.load_gate.wait()
        if on_loading:
            on_loading(64, 64)
        return Loaded(64, self.farm.measured.get(spec.model, 0), 0, 0, 64, 1.0, 1.0, 0.0, "none")

    async def generate(
        self,
        request: GenerationRequest,
        thinks: bool = False,
        thinking_budget: int | None = None,
        on_event: OnEvent | None = None,
    ) -> WorkerResult:
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
            return WorkerResult(self.spec.model, "", "stop", 3, 1, 0, 0.0, 0.0)
        finally:
            self.running -= 1

    async def _unless_dead(self, gate: anyio.Event) -> None:
        async def watch(event: anyio.Event, scope: anyio.CancelScope) -> None:
            await event.wait()
            scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(watch, gate, group.cancel_scope)
            group.start_soon(watch, self.exited, group.cancel_scope)

    async def embed(self, texts: Sequence[str], alone: bool = False) -> np.ndarray[Any, Any]:
        return np.ones((len(texts), 4), np.float32)

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

    async def start(self, spec: WorkerSpec | None) -> FakeWorker:
        await anyio.lowlevel.checkpoint()
        self.workers.append(FakeWorker(self))
        return self.workers[-1]

    def check_budget(self) -> None:
        assert self.manager is not None
        assert sum(line.reserved_bytes for line in self.manager.resident()) <= self.manager.budget_bytes

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
        async with ModelManager(home, settings, start_worker=farm.start, machine_bytes=200_000_000_000) as manager:
            farm.manager = manager
            yield manager, farm
    assert all(worker.exited.is_set() for worker in farm.workers)


def ask(text: str = "hello") -> GenerationRequest:
    return GenerationRequest(messages=(Message(role="user", content=text),), max_tokens=8)


async def until(holds: Callable[[], Any]) -> None:
    while not holds():
        await anyio.lowlevel.checkpoint()
