from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path

import anyio
import pytest

from rolecall.config.home import Home
from rolecall.config.models import models_table
from rolecall.config.profile import RoleSpec
from rolecall.config.settings import load_profile, load_settings, profile_names
from rolecall.roles.errors import ModelCorrupt, ModelRefused, ModelUnknown
from rolecall.roles.footprint import Footprint, Kv, figures_of, footprints, quick_footprint, remember
from rolecall.roles.plan import ProfilePlan, adapter_bytes, plan_profile, plans_by_fit, reserve
from rolecall.roles.sources import to_plan
from rolecall.roles.worker.wire import Loaded
from tests.roles.tiny import kv_bytes, write_safetensors

# (weights in 10^9 bytes, KV KiB per token at 16 bit): the published figures of each architecture
TRUTH = {
    "mlx-community/Qwen3-4B-Instruct-2507-8bit": (4.274, 144),
    "mlx-community/Qwen3-1.7B-8bit": (1.828, 112),
    "mlx-community/DeepSeek-R1-Distill-Qwen-14B-8bit": (15.694, 192),
    "mlx-community/DeepSeek-R1-Distill-Qwen-32B-4bit": (18.431, 256),
    "mlx-community/Qwen3-Coder-30B-A3B-Instruct-8bit": (32.441, 96),
    "mlx-community/Devstral-Small-2-24B-Instruct-2512-8bit": (25.046, 160),
}


LLAMA = {
    "model_type": "llama",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "vocab_size": 1024,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "quantization": {"group_size": 64, "bits": 4},
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
    data = asdict(plan_profile(load_profile("mac-32"), home))
    promised = ["profile", "budget_bytes", "roles", "total_bytes", "resident_together"]
    assert list(data) == [*promised, "needed_bytes", "missing_bytes"]
    names = ["role", "model", "quantization", "context_length", "concurrency"]
    figures = ["weights_bytes", "kv_bytes_per_token", "reserved_bytes"]
    more = ["bytes_per_8k"]
    assert all(list(role)[:9] == [*names, *figures, *more] for role in data["roles"])
    published = {role["model"] for role in data["roles"] if role.get("source") == "published"}
    assert published == {m for m in models_table() if models_table()[m].architecture is None} & {
        role["model"] for role in data["roles"]
    }


def test_every_packaged_profile_can_be_planned(home: Home) -> None:
    for name in profile_names():
        together = plan_profile(load_profile(name), home).resident_together
        assert together and all("router" in roles for roles in together)


def test_roles_on_one_model_share_a_cache_as_large_as_the_most_demanding_and_a_pinned_one_has_its_own() -> None:
    size = Footprint(weights_bytes=1000, kv=Kv(10, 7), source="computed")
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


def test_eight_thousand_more_tokens_cost_their_kv_for_every_request_at_once(plan: ProfilePlan) -> None:
    coding = next(role for role in plan.roles if role["role"] == "coding")
    assert coding["bytes_per_8k"] == 8192 * 96 * 1024 * 2


def test_a_context_is_planned_for_every_role_and_never_beyond_its_models_own(home: Home) -> None:
    profile = load_profile("mac-128")
    contexts = {role["role"]: role["context_length"] for role in plan_profile(profile, home, None, 100_000).roles}
    assert contexts["coding"] == 100_000 and contexts["summarization"] == 40_960
    longer = plan_profile(profile, home, None, 65_536 + 8192).roles
    shorter = plan_profile(profile, home, None, 65_536).roles
    for more, less in zip(longer, shorter, strict=True):
        if more["context_length"] == 65_536 + 8192:
            assert more["reserved_bytes"] - less["reserved_bytes"] >= more["bytes_per_8k"]


def test_the_best_profile_is_the_most_demanding_whose_router_fits_with_its_largest_other_role(home: Home) -> None:
    plans = plans_by_fit(home, 30_000_000_000)
    assert {plan.profile for plan in plans} == set(profile_names())
    best, fitting = plans[0], [plan for plan in plans if not plan.missing_bytes]
    assert best.profile == "mac-32" and best.needed_bytes == max(plan.needed_bytes for plan in fitting)
    for plan in plans:
        assert plan.missing_bytes == max(0, plan.needed_bytes - 30_000_000_000)
        together = [len(group) for group in plan.resident_together]
        assert bool(plan.missing_bytes) or max(together) > 1
    assert all(plan.missing_bytes for plan in plans_by_fit(home, 1_000_000_000))


def test_a_role_that_another_server_answers_takes_no_memory_here(home: Home) -> None:
    profile = load_profile("mac-128")
    remote = profile.roles["coding"].model_copy(update={"engines": ("lan",), "model": "nobody/knows-it"})
    plan = plan_profile(profile.model_copy(update={"roles": {**profile.roles, "coding": remote}}), home)
    assert "coding" not in [role["role"] for role in plan.roles]


def test_what_a_worker_measured_replaces_what_was_planned_and_the_plan_says_so(home: Home) -> None:
    model, profile = "mlx-community/Qwen3.5-2B-MLX-8bit", load_profile("mac-32")
    loaded = Loaded(2_000_000_000, 2_500_000_000, kv_bytes_per_token=13_000, fixed_state_bytes=5)
    remember(home, model, loaded)
    remember(home, model, replace(loaded, measured_bytes=2_400_000_000))
    size = quick_footprint(home, model)
    assert size and size == footprints(home, [model])[model]
    assert (size.source, size.weights_bytes, size.kv) == ("measured", 2_000_000_000, Kv(13_000, 5))
    assert size.overhead_bytes == 500_000_000
    (role,) = [role for role in plan_profile(profile, home).roles if role["model"] == model]
    assert role["source"] == "measured"
    assert reserve(size, [spec()], 0).overhead_bytes == 500_000_000
    remember(home, "nobody/knows-it", loaded)


def test_an_adapters_weights_are_reserved_with_the_models_and_a_folder_without_any_is_an_error(
    home: Home, tmp_path: Path
) -> None:
    write_safetensors(tmp_path / "adapters.safetensors", bytes(640))
    size = Footprint(weights_bytes=1000, kv=Kv(10), source="computed")
    assert reserve(size, [spec()], 0, adapter_bytes=adapter_bytes(str(tmp_path))).weights_bytes == 1640
    assert adapter_bytes(None) == 0
    with pytest.raises(ModelCorrupt, match=r"no safetensors.*adapter"):
        adapter_bytes(str(tmp_path / "absent"))
    profile, shared = load_profile("mac-128"), plan_profile(load_profile("mac-128"), home)
    (home.models / "tuned").symlink_to(tmp_path)
    for adapter in (str(tmp_path), "tuned"):  # a relative one lies under the models, as for a worker
        tuned = profile.roles["validation"].model_copy(update={"adapter": adapter})
        apart = plan_profile(profile.model_copy(update={"roles": {**profile.roles, "validation": tuned}}), home)
        assert apart.total_bytes - shared.total_bytes > 4_000_000_000 + 640


def test_figures_that_differ_by_layer_do_not_break_the_estimate_of_a_step(home: Home) -> None:
    kinds = {"intermediate_size": 512, "by layer": [512, 1024]}
    sizes = [
        Footprint(weights_bytes=1, kv=Kv(1), source="files", figures=figures_of(LLAMA | {"intermediate_size": value}))
        for value in kinds.values()
    ]
    assert sizes[0].transient_bytes(1000, 0, True) == sizes[1].transient_bytes(
        1000, 0, True
    )  # four times the hidden size


def test_windows_grow_with_the_first_tokens_and_then_hold_the_last_chunk_and_what_it_sees() -> None:
    kv = Kv(10, 7 + 512 * 4, ((512, 4),))
    assert kv_bytes(kv, 64, 64) == 256 * 10 + 7 + 64 * 4
    assert kv_bytes(kv, 1000, 64) == 1024 * 10 + 7 + (511 + 40) * 4
    assert kv_bytes(kv, 1024, 64) == 1024 * 10 + 7 + (511 + 64) * 4
    assert kv.reserved_bytes(1000, 2, 64) == 1024 * 10 + 2 * kv.fixed_bytes + 63 * 4


def test_a_configuration_alone_is_planned_and_an_unknown_architecture_is_refused(home: Home) -> None:
    figures = {name: value for name, value in LLAMA.items() if name != "quantization"}
    sizes = footprints(home, ["full", "small"], {"full": figures, "small": LLAMA})
    assert sizes["full"].kv == Kv(2 * 2 * 16 * 4 * 2)
    assert 3.4 < sizes["full"].weights_bytes / sizes["small"].weights_bytes < 3.6  # 4.5 bits for 16
    assert sizes["small"].context_length == 4096
    twice = footprints(home, ["float"], {"float": figures | {"dtype": "float32"}})["float"]
    assert twice.weights_bytes == 2 * sizes["full"].weights_bytes and twice.kv == Kv(2 * sizes["full"].kv[0])
    with pytest.raises(ModelRefused, match=r"does not know the architecture.*nonsense not supported"):
        footprints(home, ["odd"], {"odd": {"model_type": "nonsense"}})


def test_names_may_be_roles_models_or_paths_and_roles_of_a_named_model_come_with_it(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(home, profile="mac-128")
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))

    def named(*names: str) -> list[str]:
        profile, configs = anyio.run(to_plan, names, home, settings)
        return [role["role"] for role in plan_profile(profile, home, None, None, configs).roles]

    assert named("coding") == ["coding"]
    assert named("qwen/qwen3-4b-2507") == ["router", "validation"]
    assert named("qwen/qwen3-next-80b") == ["mlx-community/Qwen3-Next-80B-A3B-Instruct-4bit"]
    assert named(str(tmp_path)) == [str(tmp_path)]
    assert named(str(tmp_path / "config.json")) == [str(tmp_path / "config.json")]
    monkeypatch.chdir(tmp_path)
    assert named("config.json", ".") == [str(tmp_path / "config.json"), str(tmp_path)]
    with pytest.raises(ModelUnknown, match="rolecall models pull starter/all-minilm"):
        named("embedder")  # which no hub is asked for
    with pytest.raises(ModelUnknown, match="holds no model"):
        named(str(tmp_path / "absent"))
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"auto_map": {"AutoModel": "modeling.Foreign"}}))
    with pytest.raises(ModelRefused, match="auto_map"):
        named(str(tmp_path))
