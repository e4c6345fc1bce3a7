"""What is used next: the pure forecast, and what a pool does with it on a virtual clock."""

from __future__ import annotations

import anyio
from hypothesis import given
from hypothesis import strategies as st

from rolecall.roles.forecast import Forecast
from rolecall.roles.pooled import Phase
from tests.roles.farm import Farm, pooled, pooling, use
from tests.simulate.clock import on_a_clock


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from("abcde")), min_size=1, max_size=80))
def test_chances_sum_to_one_and_the_same_requests_give_the_same_forecast(seen: list[tuple[str, str]]) -> None:
    one, other = Forecast(), Forecast()
    for client, model in seen:
        one.seen(client, model)
        other.seen(client, model)
    assert one.next_use() == other.next_use()
    for chances in (one.next_use(), one.after("x"), one.after("unknown")):
        assert abs(sum(chances.values()) - 1) < 1e-9 and all(0 < chance <= 1 for chance in chances.values())


def test_what_followed_before_is_expected_to_follow_again() -> None:
    forecast = Forecast()
    for _ in range(6):
        forecast.seen("a", "router")
        forecast.seen("a", "coding")
    forecast.seen("b", "summary")
    forecast.seen("a", "router")
    assert forecast.after("a")["coding"] > 0.6 > forecast.after("b")["coding"]


def test_before_anything_was_asked_nothing_is_expected() -> None:
    assert Forecast().next_use() == {} and Forecast().after("a") == {}


def test_the_tables_are_bounded_whatever_is_asked() -> None:
    forecast = Forecast()
    for n in range(3000):
        forecast.seen(f"client {n}", f"model {n}")
        forecast.seen("one", f"model {n}")
    assert len(forecast.next_use()) < 200
    assert len(forecast._last) <= 64 and len(forecast._after) < 200


@on_a_clock
async def test_what_is_likely_to_come_next_is_loaded_ahead_into_free_memory_only() -> None:
    farm = Farm()
    router, coding, other = pooled("router", 10, pinned=True), pooled("coding", 40), pooled("other", 60)
    async with pooling(farm, 100, router, coding, other) as pool:
        for _ in range(3):
            await use(pool, "router", client="a")
            await use(pool, "coding", client="a")
        await pool.unload(coding)
        await anyio.sleep(60)
        assert coding.phase is Phase.ABSENT  # nobody has asked since
        await use(pool, "router", client="a")
        await anyio.sleep(1)
        assert coding.phase is Phase.READY and farm.events[-1].kind == "loaded" and not farm.events[-1].cold
        await use(pool, "other", client="b")  # ends what was only loaded ahead
        assert coding.phase is Phase.ABSENT
        await use(pool, "router", client="a")
        await anyio.sleep(1)
        assert coding.phase is Phase.ABSENT and other.phase is Phase.READY  # never by eviction


@on_a_clock
async def test_a_call_ends_a_load_ahead_that_is_in_its_way() -> None:
    farm = Farm()
    ahead, wanted = pooled("ahead", 60), pooled("wanted", 60)
    async with pooling(farm, 100, ahead, wanted) as pool:
        farm.load_gate = anyio.Event()
        pool.preload(ahead)
        await anyio.sleep(1)
        assert ahead.phase is Phase.LOADING
        async with anyio.create_task_group() as group:
            group.start_soon(use, pool, "wanted")
            await ahead.gone.wait()
            farm.load_gate.set()
        assert wanted.phase is Phase.READY


@on_a_clock
async def test_the_model_that_is_dear_to_load_and_likely_to_come_stays() -> None:
    farm = Farm()
    often, seldom, large = pooled("often", 40), pooled("seldom", 40), pooled("large", 50)
    async with pooling(farm, 100, often, seldom, large) as pool:
        for name in ("often", "often", "often", "seldom"):
            await use(pool, name)
        await use(pool, "large")
        assert (often.phase, seldom.phase) == (Phase.READY, Phase.ABSENT)
