"""Who may prefill, on a virtual clock."""

from __future__ import annotations

from dataclasses import dataclass, field

import anyio
import pytest

from rolecall.roles.lease import GRACE_S, LEASE_S, PrefillLease
from tests.simulate.clock import on_a_clock


@dataclass(eq=False)
class Prefiller:
    name: str
    granted: list[str]
    at: list[float] = field(default_factory=list)

    def grant_prefill(self) -> None:
        self.granted.append(self.name)
        self.at.append(anyio.current_time())


@on_a_clock
async def test_holders_take_turns_chunk_by_chunk() -> None:
    lease, granted = PrefillLease(), list[str]()
    a, b = Prefiller("a", granted), Prefiller("b", granted)
    lease.want(a)
    lease.want(b)
    for holder in (a, b, a, b):
        assert granted[-1] == holder.name
        lease.done(holder)
        lease.want(holder)
    assert granted == ["a", "b", "a", "b", "a"]


@on_a_clock
async def test_the_router_is_next_however_many_wait() -> None:
    lease, granted = PrefillLease(), list[str]()
    a, b, router = Prefiller("a", granted), Prefiller("b", granted), Prefiller("router", granted)
    lease.want(a)
    lease.want(b)
    lease.want(router, first=True)
    assert granted == ["a"]  # its chunk is running
    lease.done(a)
    lease.done(router)
    lease.want(router, first=True)  # said at once after a chunk: nobody comes between
    lease.done(router)
    await anyio.sleep(GRACE_S)
    assert granted == ["a", "router", "router", "b"]


@on_a_clock
async def test_who_keeps_the_lease_too_long_loses_it_and_its_late_word_means_nothing() -> None:
    lease, granted = PrefillLease(), list[str]()
    stuck, b, c = Prefiller("stuck", granted), Prefiller("b", granted), Prefiller("c", granted)
    for holder in (stuck, b, c):
        lease.want(holder)
    await anyio.sleep(LEASE_S + 0.1)
    assert granted == ["stuck", "b"] and b.at == [LEASE_S]
    lease.done(stuck)
    assert granted == ["stuck", "b"]
    lease.done(b)
    assert granted == ["stuck", "b", "c"]


@on_a_clock
async def test_a_chunk_that_is_over_costs_the_next_holder_no_time() -> None:
    lease, granted = PrefillLease(), list[str]()
    a, b, c = Prefiller("a", granted), Prefiller("b", granted), Prefiller("c", granted)
    lease.want(a)
    lease.done(a)
    await anyio.sleep(LEASE_S - 1)
    lease.want(b)
    lease.want(c)
    await anyio.sleep(2)
    assert granted == ["a", "b"]  # the time of a's lease is not b's
    lease.done(b)


@pytest.mark.parametrize("while_it_holds", [True, False])
@on_a_clock
async def test_who_dies_lets_the_others_go_on_at_once(while_it_holds: bool) -> None:
    lease, granted = PrefillLease(), list[str]()
    a, b, c = Prefiller("a", granted), Prefiller("b", granted), Prefiller("c", granted)
    for holder in (a, b, c):
        lease.want(holder)
    lease.leave(a if while_it_holds else b)
    lease.leave(a if while_it_holds else b)
    if not while_it_holds:
        lease.done(a)
    assert granted == (["a", "b"] if while_it_holds else ["a", "c"])


@on_a_clock
async def test_beside_others_that_decode_a_long_prompt_takes_half_of_the_time_and_the_router_does_not_wait() -> None:
    granted = list[str]()
    long, decoder, router = Prefiller("long", granted), Prefiller("decoder", granted), Prefiller("router", granted)
    at_work: list[object] = [long, decoder]
    lease = PrefillLease(lambda prefilling: any(holder not in prefilling for holder in at_work))
    lease.want(long)
    for _ in range(3):
        await anyio.sleep(0.5)
        lease.done(long)
        lease.want(long)
        await anyio.sleep(0.5)
    assert long.at == [0.0, 1.0, 2.0, 3.0]
    lease.done(long)
    lease.want(router, first=True)
    assert granted[-1] == "router"
    lease.done(router)
    at_work.remove(decoder)
    lease.want(long)
    await anyio.sleep(GRACE_S)
    assert granted[-1] == "long"
    now = anyio.current_time()
    lease.done(long)
    lease.want(long)
    assert long.at[-1] == now  # nobody decodes now
