"""Stage 2: who gets what on which Mac, for how much; and that nothing unlike numbers can break it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rolecall.config.models import models_table
from rolecall.config.settings import load_profile, profile_names
from rolecall.roles.contract import Role, RoleInfo
from rolecall.server.orchestration.contract import RouteCall
from rolecall.server.orchestration.staff import displaced_bytes
from rolecall.server.routing.choice import DEEP, choose, difficulty
from rolecall.server.routing.contract import Features, RoleChoice, Snapshot, State, TaskType
from rolecall.server.routing.decide import decide
from rolecall.server.routing.signals import read
from rolecall.server.routing.snapshot import role_choice

from ..desk import MakeDesk
from ..scripted import infos

EASY, HARD = DEEP / 2, DEEP


def snapshot(profile: str, weight: float = 0.5) -> Snapshot:
    roles = tuple(
        role_choice(
            RoleInfo(
                role=Role(name), model=spec.model, present=True, resident=False, context_length=spec.context_length,
                concurrency=1, timeout_s=1.0, max_tokens=spec.max_tokens, thinks=spec.thinks, size_bytes=1,
            )
        )
        for name, spec in load_profile(profile).roles.items()
    )  # fmt: skip
    return Snapshot(sha256="s", profile=profile, roles=roles, quality_weight=weight)


def features(kind: TaskType, difficulty: float = EASY, prompt_tokens: int = 300) -> Features:
    return Features(
        text_sha256="0", claim=None, type_scores={kind: 1.0}, reasons=(), prompt_tokens=prompt_tokens, has_paths=True,
        difficulty=difficulty,
    )  # fmt: skip


def role(held: Snapshot, kind: TaskType, state: State | None = None, **of: Any) -> Role | None:
    return decide(features(kind, **of), held, state or State()).role


def model(held: Snapshot, of: Role) -> str:
    return next(choice.model for choice in held.roles if choice.role is of)


def test_on_the_starter_every_type_goes_to_the_role_named_for_it() -> None:
    held = snapshot("starter")
    named = {
        TaskType.TOOL: Role.REASONING, TaskType.RETRIEVAL: Role.ROUTER, TaskType.REASONING: Role.REASONING,
        TaskType.CODING: Role.CODING, TaskType.SUMMARIZATION: Role.SUMMARIZATION,
        TaskType.VALIDATION: Role.VALIDATION, TaskType.GENERAL: Role.ROUTER,
    }  # fmt: skip
    for difficulty_of in (EASY, HARD):
        assert {kind: role(held, kind, difficulty=difficulty_of) for kind in TaskType} == named


@pytest.mark.parametrize("profile", [name for name in profile_names() if name.startswith("mac-")])
def test_difficult_reasoning_and_code_go_to_their_roles_and_heavy_only_where_depth_asks(profile: str) -> None:
    held = snapshot(profile)
    everything = State(resident=tuple(choice.model for choice in held.roles))
    for state in (State(), everything):
        assert role(held, TaskType.REASONING, state, difficulty=HARD) is Role.REASONING
        assert role(held, TaskType.CODING, state, difficulty=HARD) is Role.CODING
        assert role(held, TaskType.GENERAL, state) is Role.ROUTER
    has_heavy = any(choice.role is Role.REASONING_HEAVY for choice in held.roles)
    deep = role(held, TaskType.REASONING, State(depth="deep"))
    assert deep is (Role.REASONING_HEAVY if has_heavy else Role.REASONING)
    assert role(held, TaskType.REASONING, State(depth="quick")) is Role.ROUTER


def test_easy_reasoning_waits_for_no_swap_but_takes_the_better_model_that_is_there() -> None:
    held = snapshot("mac-128")
    router, reasoning = model(held, Role.ROUTER), model(held, Role.REASONING)
    cold = State(resident=(router,), ready_s={reasoning: 5.2})
    assert role(held, TaskType.REASONING, cold) is Role.ROUTER
    assert role(held, TaskType.REASONING, State(resident=(router, reasoning))) is Role.REASONING


def test_the_sessions_model_has_inertia() -> None:
    held = snapshot("mac-64")
    router, reasoning = model(held, Role.ROUTER), model(held, Role.REASONING)
    cold = State(resident=(router,), ready_s={reasoning: 12.6})
    assert role(held, TaskType.REASONING, cold) is Role.ROUTER
    assert role(held, TaskType.REASONING, cold.model_copy(update={"session_model": reasoning})) is Role.REASONING


def test_the_budget_rules_out_what_takes_longer_and_says_so() -> None:
    held = snapshot("mac-128")
    short = decide(features(TaskType.REASONING, HARD), held, State(budget_s=10))
    assert short.role is Role.ROUTER and "of a budget of 10 s, so router" in short.reasons[-1]
    hopeless = decide(features(TaskType.REASONING, HARD), held, State(budget_s=0.1))
    assert "every role would exceed the budget of 0.1 s" in hopeless.reasons[-1]


def test_a_context_too_long_for_all_is_said_with_the_widest_ones_figure() -> None:
    held = snapshot("mac-128")
    assert role(held, TaskType.CODING, prompt_tokens=40_000) is Role.CODING_LARGE_CONTEXT
    over = decide(features(TaskType.GENERAL, prompt_tokens=500_000), held, State())
    assert over.role is Role.CODING_LARGE_CONTEXT and "131072" in over.reasons[-1]


def test_a_dominated_candidate_is_dropped_by_name_and_the_weight_moves_the_choice() -> None:
    good, bad = dict.fromkeys(TaskType, 0.8), dict.fromkeys(TaskType, 0.4)

    def held(router_quality: dict[TaskType, float], weight: float = 0.5) -> Snapshot:
        roles = (
            RoleChoice(role=Role.ROUTER, model="a", context_length=9999, quality=router_quality, size_gb=1),
            RoleChoice(role=Role.REASONING, model="b", context_length=9999, quality=bad, size_gb=9, decode_tps=9),
        )
        return Snapshot(sha256="s", profile="p", roles=roles, quality_weight=weight)

    dropped = choose(TaskType.REASONING, features(TaskType.REASONING), held(good), State())
    assert dropped.role is not None and dropped.role.role is Role.ROUTER
    assert "reasoning no better than router in quality, seconds or GB" in dropped.reason
    worse = dict.fromkeys(TaskType, 0.1)
    assert role(held(worse, weight=0.1), TaskType.REASONING) is Role.ROUTER
    assert role(held(worse, weight=0.9), TaskType.REASONING) is Role.REASONING


def test_a_model_of_which_nothing_is_known_keeps_its_role() -> None:
    held = snapshot("mac-128")
    own = tuple(
        RoleChoice(role=choice.role, model="own", context_length=9999) if choice.role is Role.REASONING else choice
        for choice in held.roles
    )
    assert role(held.model_copy(update={"roles": own}), TaskType.REASONING) is Role.REASONING


@pytest.mark.parametrize("figure", ["quality", "prefill_tps", "decode_tps", "size_gb"])
def test_not_a_number_is_refused_in_a_table(figure: str) -> None:
    nan = float("nan")
    value = {TaskType.CODING: nan} if figure == "quality" else nan
    with pytest.raises(ValidationError):
        RoleChoice.model_validate({"role": "router", "model": "m", "context_length": 1, figure: value})
    with pytest.raises(ValidationError):
        State(ready_s={"m": nan})


def test_every_model_of_a_profile_has_figures() -> None:
    used = {spec.model for name in profile_names() for spec in load_profile(name).roles.values()}
    assert all(models_table()[each].figures for each in used)


@pytest.mark.parametrize(
    ("easier", "harder"),
    [
        ("What is the capital of Peru?", "Why did the capital of Peru move?"),
        ("Why is the sky blue?", "Prove that there are infinitely many primes."),
        ("Name three rivers.", "If each of 3 rivers carries 20 tons, and at most 7 are dredged, how many are left?"),
        ("", "Compare two designs."),
    ],
)
def test_difficulty_orders_requests(easier: str, harder: str) -> None:
    assert difficulty(read(easier)) < difficulty(read(harder))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=400))
def test_difficulty_is_a_share_for_any_text(text: str) -> None:
    assert 0 <= difficulty(read(text)) <= 1


figures = st.floats(0, 1)
odd_snapshots = st.builds(
    Snapshot,
    sha256=st.just("s"),
    profile=st.just("p"),
    quality_weight=figures,
    roles=st.lists(
        st.builds(
            RoleChoice,
            role=st.sampled_from(Role),
            model=st.sampled_from("abc"),
            context_length=st.integers(-1, 10**7),
            max_tokens=st.integers(0, 10**7),
            quality=st.dictionaries(st.sampled_from(TaskType), st.floats(allow_nan=False, allow_infinity=False)),
            prefill_tps=st.floats(min_value=5e-324, max_value=1e300),
            decode_tps=st.floats(min_value=5e-324, max_value=1e300),
            size_gb=st.floats(0, 1e6),
        ),
        max_size=7,
        unique_by=lambda choice: choice.role,
    ).map(tuple),
)
odd_states = st.builds(
    State,
    resident=st.lists(st.sampled_from("abc")).map(tuple),
    fixed_task_type=st.none() | st.sampled_from(TaskType),
    depth=st.sampled_from(["quick", "normal", "deep"]),
    budget_s=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    ready_s=st.dictionaries(st.sampled_from("abc"), st.floats(allow_nan=False, allow_infinity=False)),
    session_model=st.none() | st.sampled_from("abc"),
)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(TaskType),
    figures,
    st.integers(0, 2**52),
    odd_snapshots,
    odd_states,
    st.randoms(use_true_random=False),
)
def test_any_figures_are_decided_on_and_the_order_of_sets_counts_for_nothing(
    kind: TaskType, hard: float, tokens: int, held: Snapshot, state: State, rng: Any
) -> None:
    asked = features(kind, hard, tokens)
    first = decide(asked, held, state)
    assert (first.role is None) == (not held.roles)

    def shuffled(given: dict[Any, Any]) -> dict[Any, Any]:
        return dict(rng.sample(list(given.items()), len(given)))

    roles = tuple(choice.model_copy(update={"quality": shuffled(choice.quality)}) for choice in held.roles)
    resident = tuple(rng.sample(state.resident, len(state.resident)))
    other = state.model_copy(update={"resident": resident, "ready_s": shuffled(state.ready_s)})
    assert decide(asked, held.model_copy(update={"roles": roles}), other) == first


@pytest.mark.parametrize(("wanted", "displaced"), [(0, 0), (-5, 0), (3, 4), (5, 6), (7, 10), (99, 10)])
def test_the_least_that_has_to_go_is_displaced(wanted: int, displaced: int) -> None:
    assert displaced_bytes(wanted, (4, 6)) == displaced


def test_a_state_prices_what_is_not_in_memory_and_remembers_who_answered(desk: MakeDesk) -> None:
    roles = infos(size_bytes=6_000_000_000)
    at = desk(["An answer."], roles=roles)
    staff = at.orchestrator.staff
    cold = staff.state("s1")
    assert (cold.resident, cold.session_model) == ((), None)
    assert cold.ready_s == {f"scripted/{each}": 2.0 for each in Role}  # 6 GB at 3 GB/s
    at.run(RouteCall, request="Write a poem about the sea")
    warm = staff.state("s1")
    # The budget of 100 bytes holds one at a time, so that its reload is on each other one's account.
    assert warm.resident == ("scripted/router",) and warm.ready_s["scripted/coding"] == 4.0
    assert "scripted/router" not in warm.ready_s
    assert State.model_validate(at.receipt().router_state) == cold.model_copy(update={"budget_s": None})
