from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rolecall.roles.residency import Admit, Evict, Refuse, ResidentModel, Wait, admit


def model(key: str, reserved_bytes: int, **more: object) -> ResidentModel:
    return ResidentModel(key, reserved_bytes, **more)  # type: ignore[arg-type]


@st.composite
def residents(draw: st.DrawFn) -> list[ResidentModel]:
    count = draw(st.integers(0, 7))
    return [
        ResidentModel(
            key=f"m{i}",
            reserved_bytes=(reserved := draw(st.integers(1, 50))),
            grown_bytes=draw(st.integers(0, reserved)),
            pinned=draw(st.booleans()) and i == 0,
            in_use=draw(st.integers(0, 2)),
            ending=draw(st.booleans()) and draw(st.booleans()),
            reload_s=draw(st.floats(0.1, 60)),
            next_use=draw(st.floats(0, 1)),
            last_used=draw(st.floats(0, 1e6)),
        )
        for i in range(count)
    ]


@given(need=st.integers(0, 120), resident=residents(), budget=st.integers(1, 150))
def test_what_is_admitted_fits_and_victims_are_idle_needed_and_never_pinned(
    need: int, resident: list[ResidentModel], budget: int
) -> None:
    by_key = {m.key: m for m in resident}
    used = sum(m.reserved_bytes for m in resident)
    pinned = sum(m.reserved_bytes - m.grown_bytes for m in resident if m.pinned and not m.ending)
    verdict = admit(need, resident, budget)
    assert isinstance(verdict, Refuse) == (need > budget - pinned)
    match verdict:
        case Admit():
            assert used + need <= budget
        case Evict(victims):
            freed = [by_key[key].reserved_bytes for key in victims]
            ending = sum(m.reserved_bytes for m in resident if m.ending)
            assert all(not by_key[k].pinned and not by_key[k].in_use and not by_key[k].ending for k in victims)
            assert used - ending - sum(freed) + need <= budget
            assert all(used - ending - sum(freed) + size + need > budget for size in freed)
        case Wait(victims):
            freed = [m.reserved_bytes if m.ending else m.freed_bytes for m in map(by_key.__getitem__, victims)]
            assert used - sum(freed) + need <= budget
        case Refuse(possible_bytes):
            assert possible_bytes == budget - pinned


def test_the_least_valuable_byte_goes_first_and_ties_go_by_age() -> None:
    dear = model("dear", 10, reload_s=30.0, next_use=0.5, last_used=1)
    cheap = model("cheap", 10, reload_s=3.0, next_use=0.1, last_used=9)
    assert admit(10, [dear, cheap], 20) == Evict(("cheap",))
    old, young = model("old", 10, last_used=1), model("young", 10, last_used=2)
    assert admit(10, [young, old], 20) == Evict(("old",))


def test_nothing_is_evicted_that_the_load_does_not_need() -> None:
    small, large = model("small", 1, next_use=0.0), model("large", 20, next_use=0.9)
    assert admit(20, [small, large], 25) == Evict(("large",))


def test_memory_that_is_coming_back_is_waited_for_before_anything_else_is_evicted() -> None:
    assert admit(10, [model("going", 10, ending=True), model("idle", 10)], 20) == Wait(("going",))


def test_what_a_pinned_model_has_grown_by_is_waited_for_last_and_what_it_keeps_is_never_free() -> None:
    router = model("router", 30, pinned=True, in_use=1, grown_bytes=20)
    busy = model("busy", 10, in_use=1)
    assert admit(10, [router, busy], 40) == Wait(("busy",))
    assert admit(25, [router, busy], 40) == Wait(("busy", "router"))
    assert admit(31, [router, busy], 40) == Refuse(30)


def test_models_in_use_are_waited_for_and_only_what_can_never_fit_is_refused() -> None:
    router = model("router", 10, pinned=True)
    assert admit(10, [router, model("busy", 10, in_use=1)], 20) == Wait(("busy",))
    assert admit(11, [router], 20) == Refuse(10)
    assert admit(20, [model("busy", 20, in_use=1)], 20) == Wait(("busy",))
