"""Harm done to real workers at random points, and what is seen of it afterwards. Seeded; the caller counts."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio
import psutil

from rolecall.roles.contract import Event, Generated, GenerationRequest, Loading, Message, Prefilling, Role
from rolecall.roles.errors import RoleError
from rolecall.roles.manager import ModelManager
from tests.bench.stage import workers

PATIENCE_S = 120.0
TYPED_ERROR_S = 2.0
STOPPED_S = 1.0
_WINDOW_S = 0.1  # a process that takes no time in so long has nothing to do
_TICK_S = 0.02  # two ticks of the kernel's own count of it: less says nothing


@dataclass
class Harm:
    """What was done, by the point it was done at, and what it cost. Seconds."""

    points: Counter[str] = field(default_factory=Counter)
    error_s: list[float] = field(default_factory=list)
    returned_s: list[float] = field(default_factory=list)
    stopped_s: list[float] = field(default_factory=list)
    tokens_after: list[int] = field(default_factory=list)


def prompt_of(words: int, rng: random.Random) -> GenerationRequest:
    """A prompt of about so many tokens that is like no other from its first word on, answered at length."""
    start = f"{rng.random()} "
    text = start + "word " * words + "\nWrite a long story about a lighthouse, with many details."
    return GenerationRequest(messages=(Message(role="user", content=text),), max_tokens=400)


async def kill_workers(manager: ModelManager, count: int, seed: int, victim: Role, sibling: Role) -> Harm:
    """Kill the victim's process `count` times with SIGKILL: in a load, a prefill, a decode, an unload, in turn.

    Each time the sibling answers a request meanwhile, the victim's caller gets a typed error in time, the process is
    gone, what is reserved is what is resident, and the next call works.
    """
    rng, harm = random.Random(seed), Harm()
    short = GenerationRequest(messages=(Message(role="user", content="Name a colour."),), max_tokens=4)
    known = GenerationRequest(messages=(Message(role="user", content="What is the capital of France?"),), max_tokens=8)
    expected = (await manager.generate(sibling, short)).text
    points: tuple[Callable[[ModelManager, Role, random.Random], Awaitable[float | None]], ...] = (
        _in_load, _in_prefill, _in_decode, _in_unload,
    )  # fmt: skip
    for number in range(count):
        async with anyio.create_task_group() as group:
            group.start_soon(_expect, manager, sibling, short, expected)
            act = points[number % len(points)]
            error_s = await act(manager, victim, rng)
        harm.points[act.__name__.removeprefix("_in_")] += 1
        if error_s is not None:
            assert error_s < TYPED_ERROR_S
            harm.error_s.append(error_s)
        assert "Paris" in (await manager.generate(victim, known)).text
        resident = manager.resident()
        assert len(workers()) == len(resident) == 2
        assert manager.memory().reserved_bytes == sum(line.reserved_bytes for line in resident)
    return harm


async def _expect(manager: ModelManager, role: Role, request: GenerationRequest, text: str) -> None:
    assert (await manager.generate(role, request)).text == text


async def _in_load(manager: ModelManager, role: Role, rng: random.Random) -> float:
    assert await manager.unload(role)
    others = {process.pid for process in workers()}
    loading = anyio.Event()

    async def kill() -> float:
        await loading.wait()
        with anyio.fail_after(PATIENCE_S):
            while not (new := [process for process in workers() if process.pid not in others]):
                await anyio.sleep(0.01)
        await anyio.sleep(rng.uniform(0.0, 3.0))  # imports, weights, measuring: where in it is what is random
        return _kill(new[0].pid)

    return await _killed(manager, role, prompt_of(20, rng), kill, counter(loading, Loading, 1))


async def _in_prefill(manager: ModelManager, role: Role, rng: random.Random) -> float:
    return await _in_generation(manager, role, prompt_of(1500, rng), Prefilling, rng.randint(1, 8))


async def _in_decode(manager: ModelManager, role: Role, rng: random.Random) -> float:
    return await _in_generation(manager, role, prompt_of(20, rng), Generated, rng.randint(1, 30))


async def _in_generation(manager: ModelManager, role: Role, request: GenerationRequest, kind: type, nth: int) -> float:
    there = anyio.Event()
    pid = await _pid(manager, role)

    async def kill() -> float:
        await there.wait()
        return _kill(pid)

    return await _killed(manager, role, request, kill, counter(there, kind, nth))


async def _in_unload(manager: ModelManager, role: Role, rng: random.Random) -> None:
    pid = await _pid(manager, role)

    async def kill() -> None:
        await anyio.sleep(rng.uniform(0.0, 0.05))
        with contextlib.suppress(ProcessLookupError):  # it ended faster
            _kill(pid)

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as group:
            group.start_soon(kill)
            await manager.unload(role)
    assert not psutil.pid_exists(pid)


async def _killed(
    manager: ModelManager,
    role: Role,
    request: GenerationRequest,
    kill: Callable[[], Awaitable[float]],
    on_event: Callable[[Event], None],
) -> float:
    """Seconds from the kill to the caller's typed error."""
    killed_at = 0.0

    async def then() -> None:
        nonlocal killed_at
        killed_at = await kill()

    error: RoleError | None = None
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as group:
            group.start_soon(then)
            try:
                await manager.generate(role, request, on_event)
            except RoleError as caught:
                error, raised_at = caught, time.monotonic()
    assert error is not None and error.code == "worker_died", error
    return raised_at - killed_at


def _kill(pid: int) -> float:
    os.kill(pid, signal.SIGKILL)
    return time.monotonic()


async def _pid(manager: ModelManager, role: Role) -> int:
    return (await manager.load(role)).pid


def counter(there: anyio.Event, kind: type, nth: int) -> Callable[[Event], None]:
    """Sets `there` at the nth event of a kind, or at the last of a prefill that has fewer."""
    seen = 0

    def on_event(event: Event) -> None:
        nonlocal seen
        seen += isinstance(event, kind)
        last = isinstance(event, Prefilling) and kind is Prefilling and event.done_tokens == event.total_tokens
        if seen >= nth or last:
            there.set()

    return on_event


async def cancel_requests(manager: ModelManager, count: int, seed: int, role: Role, words: int) -> Harm:
    """Cancel `count` requests at a random chunk of a long prompt's prefill, or at a random token.

    Each time the call is back, and its process has nothing left to do, within a second.
    """
    rng, harm = random.Random(seed), Harm()
    process = psutil.Process((await manager.load(role)).pid)
    for number in range(count):
        kind = Prefilling if number % 5 < 3 else Generated
        nth = rng.randint(1, 12 if kind is Prefilling else 40)
        request = prompt_of(words if kind is Prefilling else 20, rng)
        cancelled_at, tokens_after = await _cancel(manager, role, request, kind, nth)
        returned_s = time.monotonic() - cancelled_at
        stopped_s = max(returned_s, await _idle_since(process) - cancelled_at)
        assert stopped_s < STOPPED_S, (kind, nth, returned_s, stopped_s)
        harm.points[kind.__name__] += 1
        harm.returned_s.append(returned_s)
        harm.stopped_s.append(stopped_s)
        harm.tokens_after.append(tokens_after)
    return harm


async def _cancel(
    manager: ModelManager, role: Role, request: GenerationRequest, kind: type, nth: int
) -> tuple[float, int]:
    """When it was cancelled, at the nth event of a kind, and how many tokens still came."""
    there, cancelled_at, after = anyio.Event(), 0.0, 0
    at_point = counter(there, kind, nth)

    def on_event(event: Event) -> None:
        nonlocal after
        at_point(event)
        after += bool(cancelled_at) and isinstance(event, Generated)

    async with anyio.create_task_group() as group:
        group.start_soon(manager.generate, role, request, on_event)
        with anyio.fail_after(PATIENCE_S):
            await there.wait()
        cancelled_at = time.monotonic()
        group.cancel_scope.cancel()
    return cancelled_at, after


async def _idle_since(process: psutil.Process) -> float:
    """When the process was first seen to take no processor time."""
    with anyio.fail_after(PATIENCE_S):
        while True:
            since, before = time.monotonic(), process.cpu_times()
            await anyio.sleep(_WINDOW_S)
            now = process.cpu_times()
            if now.user + now.system - before.user - before.system < _TICK_S:
                return since
