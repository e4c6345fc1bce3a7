"""Workers killed and requests cancelled at random points, fifty times; in `make test` two cancels."""

from __future__ import annotations

import pytest

from rolecall.config.home import Home
from rolecall.roles.contract import GenerationRequest, Message, Role
from rolecall.roles.manager import ModelManager
from rolecall.roles.starter import TEXT_4BIT
from tests.bench.stage import starter_settings, workers

from .conftest import Tell
from .faults import cancel_requests, kill_workers

pytestmark = [pytest.mark.live, pytest.mark.anyio]

COUNT = 50


@pytest.mark.soak
async def test_a_worker_killed_anywhere_costs_its_caller_one_typed_error_and_nobody_else_anything(
    starter_home: Home, tell: Tell
) -> None:
    settings = starter_settings(starter_home, models={"coding": TEXT_4BIT}, context_length=2048, concurrency=1)
    async with ModelManager(starter_home, settings) as manager:
        await manager.load(Role.REASONING)
        harm = await kill_workers(manager, COUNT, seed=4, victim=Role.REASONING, sibling=Role.CODING)
        for role in (Role.REASONING, Role.CODING):
            await manager.unload(role)
        assert manager.memory().reserved_bytes == 0 and manager.resident() == ()
    assert workers() == []
    tell(f"{COUNT} kills at {dict(harm.points)}: typed error after at most {max(harm.error_s):.2f} s")


@pytest.mark.parametrize("count", [2, pytest.param(COUNT, marks=pytest.mark.soak)])
async def test_a_request_cancelled_anywhere_stops_within_a_second(starter_home: Home, count: int, tell: Tell) -> None:
    settings = starter_settings(starter_home, concurrency=1)
    known = GenerationRequest(messages=(Message(role="user", content="What is the capital of France?"),), max_tokens=8)
    async with ModelManager(starter_home, settings) as manager:
        harm = await cancel_requests(manager, count, seed=5, role=Role.REASONING, words=3000)
        assert "Paris" in (await manager.generate(Role.REASONING, known)).text
        (line,) = manager.resident()
        assert line.in_use == 0
    assert workers() == []
    tell(
        f"{count} cancels at {dict(harm.points)}: back after at most {max(harm.returned_s):.2f} s, idle after at most "
        f"{max(harm.stopped_s):.2f} s, {sum(harm.tokens_after)} tokens made after the cancel "
        f"(at most {max(harm.tokens_after)} by one)"
    )
