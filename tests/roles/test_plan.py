from __future__ import annotations

from itertools import combinations

import pytest

from rolecall.config.home import Home
from rolecall.config.models import models_table
from rolecall.config.profile import RoleSpec
from rolecall.config.settings import load_profile, profile_names
from rolecall.roles.errors import ModelUnknown
from rolecall.roles.footprint import Footprint, footprints, quick_footprint
from rolecall.roles.plan import ProfilePlan, plan_profile, reserve

# (weights in 10^9 bytes, KV KiB per token at 16 bit): the published figures of each architecture
TRUTH = {
    "mlx-community/Qwen3-4B-Instruct-2507-8bit": (4.274, 144),
    "mlx-community/Qwen3-1.7B-8bit": (1.828, 112),
    "mlx-community/DeepSeek-R1-Distill-Qwen-14B-8bit": (15.694, 192),
    "mlx-community/DeepSeek-R1-Distill-Qwen-32B-4bit": (18.431, 256),
    "mlx-community/Qwen3-Coder-30B-A3B-Instruct-8bit": (32.441, 96),
    "mlx-community/Devstral-Small-2-24B-Instruct-2512-8bit": (25.046, 160),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    made = Home(tmp_path_factory.mktemp("plan") / "home").create()
    profiles = [load_profile(name) for name in profile_names()]
    footprints(made, [role.model for profile in profiles for role in profile.roles.values()])  # one process for all
    return made


@pytest.fixture(scope="module")
def plan(home: Home) -> ProfilePlan:
    return plan_profile(load_profile("mac-128"), home)


def spec(**more: object) -> RoleSpec:
    base = {"model": "m", "quantization": "8bit", "context_length": 1000, "timeout_s": 1.0}
    return RoleSpec.model_validate({**base, **more})


def test_weights_and_kv_are_exact_without_a_byte_of_weights(plan: ProfilePlan) -> None:
    assert len(plan.roles) == 7
    for role in plan.roles:
        weights, kv = TRUTH[role["model"]]
        assert round(role["weights_bytes"] / 1e9, 3) == weights
        assert role["kv_bytes_per_token"] == kv * 1024
        assert "source" not in role


def test_a_role_reserves_weights_full_kv_overhead_and_cache(plan: ProfilePlan) -> None:
    for role in plan.roles:
        kv = role["kv_bytes_per_token"] * role["context_length"] * role["concurrency"]
        known = role["weights_bytes"] + kv + 300_000_000 + 2_000_000_000
        assert known < role["reserved_bytes"] < known + 1_000_000_000


def test_shared_weights_are_counted_once(plan: ProfilePlan) -> None:
    router = next(role for role in plan.roles if role["role"] == "router")
    saved = sum(role["reserved_bytes"] for role in plan.roles) - plan.total_bytes
    assert router["weights_bytes"] < saved < router["reserved_bytes"]


def test_the_sets_fit_hold_the_pinned_router_and_none_can_grow(home: Home, plan: ProfilePlan) -> None:
    profile = load_profile("mac-128")
    assert ["router", "reasoning", "coding", "summarization", "validation"] in plan.resident_together
    for roles in plan.resident_together:
        assert "router" in roles
        part = profile.model_copy(update={"roles": {name: profile.roles[name] for name in roles}})
        assert plan_profile(part, home).total_bytes <= 96_000_000_000
        for other in set(profile.roles) - set(roles):
            more = profile.model_copy(update={"roles": {**part.roles, other: profile.roles[other]}})
            assert plan_profile(more, home).total_bytes > 96_000_000_000
    assert not any(set(a) <= set(b) for a, b in combinations(plan.resident_together, 2))


def test_the_json_has_the_promised_keys_and_marks_published_figures(home: Home) -> None:
    data = plan_profile(load_profile("mac-32"), home).to_dict()
    assert list(data) == ["profile", "budget_bytes", "roles", "total_bytes", "resident_together"]
    names = ["role", "model", "quantization", "context_length", "concurrency"]
    figures = ["weights_bytes", "kv_bytes_per_token", "reserved_bytes"]
    assert all(list(role) == [*names, *figures, "source"] for role in data["roles"])
    assert {role["source"] for role in data["roles"]} == {"published"}


def test_every_packaged_profile_can_be_planned(home: Home) -> None:
    for name in profile_names():
        together = plan_profile(load_profile(name), home).resident_together
        assert together and all("router" in roles for roles in together)


def test_roles_on_one_model_share_a_cache_as_large_as_the_most_demanding_and_a_pinned_one_has_its_own() -> None:
    size = Footprint(1000, 10, 7, {}, "computed")
    alone = reserve(size, [spec(concurrency=2)], 0)
    assert (alone.kv_tokens, alone.slots, alone.kv_bytes) == (2048, 2, 2048 * 10 + 2 * 7)
    shared = reserve(size, [spec(concurrency=2), spec(context_length=4096), spec(pinned=True)], 0)
    assert (shared.kv_tokens, shared.slots) == (4096 + 1024, 3)


def test_what_is_neither_on_disk_nor_in_the_table_is_unknown(home: Home) -> None:
    with pytest.raises(ModelUnknown, match=r"Did you mean mlx-community/Qwen3-1\.7B-8bit"):
        footprints(home, ["mlx-community/Qwen3-1.7B-8bits"])


def test_figures_of_the_table_agree_with_its_architectures(home: Home) -> None:
    for model, exact in footprints(home, list(TRUTH)).items():
        entry = models_table()[model]
        assert abs(exact.weights_bytes / 1e9 - entry.published_gb) < 0.1
        assert exact.kv_bytes_per_token == entry.kv_kib_per_token * 1024
        assert quick_footprint(home, model) == exact
