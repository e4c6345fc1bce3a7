"""The budget beside other programs, as figures and in a pool on a virtual clock."""

from __future__ import annotations

import anyio
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.roles.errors import DoesNotFit
from rolecall.roles.memory import BAND_SHARE, LOW_SHARE, Machine, budget_now
from rolecall.roles.pool import LOOK_S
from rolecall.roles.pooled import Phase
from tests.roles.farm import Farm, pooled, pooling, use
from tests.simulate.clock import on_a_clock

TOTAL = 1000
sizes = st.integers(0, 1000)


@given(configured=sizes, current=sizes, held=sizes, available=sizes)
def test_the_budget_is_within_what_is_configured_and_what_is_there(
    configured: int, current: int, held: int, available: int
) -> None:
    found = budget_now(configured, current, held, available, TOTAL)
    room = held + available - int(LOW_SHARE * TOTAL)
    assert 0 <= found <= configured and found <= max(0, room)
    assert found == budget_now(configured, found, held, available, TOTAL)  # nothing moves where nothing changed


@given(room=st.integers(200, 900), noise=st.lists(st.integers(0, int(BAND_SHARE * TOTAL)), min_size=2, max_size=20))
def test_noise_within_the_band_moves_the_budget_only_down_and_never_back(room: int, noise: list[int]) -> None:
    budgets = [1000]
    for more in noise:
        budgets.append(budget_now(1000, budgets[-1], 0, room + more, TOTAL))
    assert budgets == sorted(budgets, reverse=True)


def test_the_budget_comes_back_whole() -> None:
    shrunk = budget_now(900, 900, 300, 200, TOTAL)
    assert shrunk == 450
    assert budget_now(900, shrunk, 0, 1000, TOTAL) == 900


def test_this_machine_has_memory() -> None:
    machine = Machine()
    assert 0 < machine.available_bytes() <= machine.total_bytes == psutil.virtual_memory().total


def machine_of(total_bytes: int, others_bytes: int = 0, **measured: int) -> Farm:
    return Farm(total_bytes=total_bytes, others_bytes=others_bytes, measured=measured)


@on_a_clock
async def test_other_programs_take_memory_idle_models_go_and_the_pinned_stays_until_it_comes_back() -> None:
    farm = machine_of(1000, router=100, coding=300)
    router, coding = pooled("router", 100, pinned=True), pooled("coding", 300)
    async with pooling(farm, 800, router, coding) as pool:
        await use(pool, "router")
        await use(pool, "coding")
        farm.others_bytes = 600  # 100 + 300 are ours, 0 is left
        await coding.gone.wait()
        assert pool.budget_bytes == 350 and [event.kind for event in farm.events][-1:] == ["evicted"]
        with pytest.raises(DoesNotFit, match=r"Other programs hold") as caught:
            await use(pool, "coding")
        assert "Close other programs" in caught.value.advice
        await use(pool, "router")
        farm.others_bytes = 100
        await anyio.sleep(LOOK_S + 0.1)
        assert pool.budget_bytes == 800
        await use(pool, "coding")
        assert router.phase is coding.phase is Phase.READY


@on_a_clock
async def test_a_model_in_use_is_not_ended_by_pressure_before_it_has_answered() -> None:
    farm = machine_of(1000, coding=300)
    coding = pooled("coding", 300)
    async with pooling(farm, 800, coding) as pool, anyio.create_task_group() as group:
        group.start_soon(use, pool, "coding", "wait")
        await anyio.sleep(1)
        farm.others_bytes = 690
        await anyio.sleep(30)
        assert pool.budget_bytes < 300 and coding.phase is Phase.READY
        farm.gate.set()
        await coding.gone.wait()


@on_a_clock
async def test_pressure_stops_a_load_that_nobody_waits_for_and_only_that() -> None:
    farm = machine_of(1000)
    ahead, wanted = pooled("ahead", 100), pooled("wanted", 100)
    async with pooling(farm, 800, ahead, wanted) as pool, anyio.create_task_group() as group:
        farm.load_gate = anyio.Event()
        pool.preload(ahead)
        await anyio.sleep(0)
        assert ahead.phase is Phase.LOADING
        group.start_soon(use, pool, "wanted")
        await anyio.sleep(1)
        farm.others_bytes = 400
        await anyio.sleep(10)
        assert ahead.phase is Phase.LOADING  # there is room for both
        farm.others_bytes = 800
        await ahead.gone.wait()
        assert wanted.phase is Phase.LOADING
        farm.load_gate.set()


@on_a_clock
async def test_memory_that_comes_back_late_is_not_taken_for_another_programs() -> None:
    farm = machine_of(1000, one=600, two=600)
    one, two = pooled("one", 600), pooled("two", 600)
    async with pooling(farm, 900, one, two) as pool:
        await use(pool, "one")
        farm.late_bytes = 600  # what the process held is not seen to come back when it has ended
        await use(pool, "two")
        assert pool.budget_bytes == 900 and farm.alive("two")
        farm.late_bytes = 0
