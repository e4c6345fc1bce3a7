"""Whose turn it is: the pure order, and the waiting at a pool on a virtual clock."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.roles.errors import QueueFull, RoleError, WorkerTimeout
from rolecall.roles.pool import PATIENCE_S
from rolecall.roles.pooled import Turns
from tests.roles.farm import Farm, pooled, pooling, until, use
from tests.simulate.clock import on_a_clock


def served(arrivals: list[str]) -> list[str]:
    """The clients in the order in which they are served, all waiting at once."""
    turns = Turns()
    waiting = [(turns.take(client), n, client) for n, client in enumerate(arrivals)]
    return [client for _, _, client in sorted(waiting)]


def test_clients_take_turns() -> None:
    assert served(["a", "a", "a", "b", "b", "c"]) == ["a", "b", "c", "a", "b", "a"]


def test_who_runs_already_counts_and_who_comes_anew_starts_where_the_others_are() -> None:
    turns = Turns()
    for turn in [turns.take("busy") for _ in range(5)]:
        turns.serve(turn)
    assert turns.take("new") == 4 and turns.take("busy") == 5


def test_requests_that_left_the_queue_cost_their_client_nothing() -> None:
    turns = Turns()
    for _ in range(60):
        turns.take("gone")
        turns.give_back("gone")
    assert turns.take("gone") == turns.take("other") == 0


@given(st.lists(st.sampled_from("abcd"), max_size=60))
def test_no_client_is_more_than_one_request_ahead_of_another_that_waits(arrivals: list[str]) -> None:
    had: dict[str, int] = {}
    left = {client: arrivals.count(client) for client in arrivals}
    for client in served(arrivals):
        had[client] = had.get(client, 0) + 1
        left[client] -= 1
        assert all(had[client] - had.get(other, 0) <= 1 for other, count in left.items() if count)


@on_a_clock
async def test_a_burst_of_one_client_does_not_keep_another_waiting() -> None:
    farm = Farm()
    async with pooling(farm, 100, pooled("m")) as pool, anyio.create_task_group() as group:
        for n in range(6):
            group.start_soon(lambda n=n: use(pool, "m", f"wait burst {n}", client="burst"))
        await anyio.sleep(1)
        group.start_soon(lambda: use(pool, "m", "wait single", client="single"))
        await anyio.sleep(1)
        farm.gate.set()
        await until(lambda: len(farm.order) == 7)
        assert farm.order[:2] == ["wait burst 0", "wait single"]


@on_a_clock
async def test_the_nearest_deadline_goes_first_and_one_that_passes_is_refused_with_the_figures() -> None:
    farm = Farm()
    async with pooling(farm, 100, pooled("m")) as pool, anyio.create_task_group() as group:
        group.start_soon(use, pool, "m", "wait running")
        await anyio.sleep(1)
        for seconds in (50.0, 20.0, 40.0):
            group.start_soon(lambda s=seconds: use(pool, "m", f"within {s}", client=f"c{s}", deadline_s=s))
        with pytest.raises(WorkerTimeout, match=r"5 s waited, at position 1 of 4\. Allowed: 5 s"):
            await use(pool, "m", "late", client="late", deadline_s=5.0)
        farm.gate.set()
        await until(lambda: len(farm.order) == 4)
        assert farm.order[1:] == ["within 20.0", "within 40.0", "within 50.0"]


@on_a_clock
async def test_without_a_deadline_a_request_has_patience_but_not_for_ever() -> None:
    farm = Farm()
    async with pooling(farm, 100, pooled("m", timeout_s=10.0)) as pool, anyio.create_task_group() as group:
        group.start_soon(use, pool, "m", "wait running")
        await anyio.sleep(1)
        began = anyio.current_time()
        with pytest.raises(WorkerTimeout, match=r"600 s waited.*Allowed: 600 s"):
            await use(pool, "m", "second")
        assert anyio.current_time() - began == pytest.approx(PATIENCE_S)
        farm.gate.set()


@on_a_clock
async def test_of_a_hundred_at_once_the_queue_takes_its_bound_and_all_it_took_are_answered() -> None:
    farm, refused = Farm(), list[RoleError]()
    async with pooling(farm, 100, pooled("m", concurrency=2)) as pool:

        async def call(n: int) -> None:
            try:
                await use(pool, "m", f"{n}", client=f"client {n % 3}")
            except RoleError as error:
                refused.append(error)

        await use(pool, "m", "warm")
        async with anyio.create_task_group() as group:
            for n in range(100):
                group.start_soon(call, n)
        assert len(farm.order) == 1 + 66 and len(refused) == 34
        assert all(isinstance(error, QueueFull) and "Try again in about" in error.advice for error in refused)
        assert refused[0].allowed == "64 (host.queue_limit)"
