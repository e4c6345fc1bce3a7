"""What is planned from shapes alone, against what mlx-lm's own caches hold after a real prefill, as a worker does it.

Tiny models with random weights, one of each architecture in the profiles, in four forms; and both starter models.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rolecall.config.home import Home
from rolecall.roles.footprint import Footprint, Kv, footprints
from rolecall.roles.starter import TEXT_4BIT, TEXT_FP32
from rolecall.roles.worker.blas import load_fast_blas
from tests.roles.tiny import kv_bytes

pytestmark = pytest.mark.live

CHUNK, GROUP = 64, 32
FORMS = {"float32": 32, "bfloat16": 16, "8bit": 8, "4bit": 4}
_PLAIN: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 128,
    "vocab_size": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "moe_intermediate_size": 64,
}
_SHARED = {"shared_expert_intermediate_size": 64}
_LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
    "partial_rotary_factor": 0.25,
    "attention_bias": False,
}
_MROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4, "partial_rotary_factor": 0.25}
_YARN = {
    "rope_theta": 1e6,
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 2048,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_MAMBA = {
    "attention_bias": False,
    "mamba_num_heads": 4,
    "mamba_head_dim": 32,
    "mamba_proj_bias": False,
    "ssm_state_size": 32,
    "conv_kernel": 4,
    "n_groups": 2,
    "mlp_bias": False,
    "layer_norm_epsilon": 1e-5,
    "use_bias": False,
    "use_conv_bias": True,
    "hybrid_override_pattern": "ME*M",
    "moe_intermediate_size": 64,
    "moe_shared_expert_intermediate_size": 64,
    "n_group": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
}
_WINDOWED = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 128}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen3": _PLAIN,
    "qwen3_moe": _PLAIN | _EXPERTS,
    "qwen2": _PLAIN,
    "llama": _PLAIN,
    "ministral3": _PLAIN | {"rope_parameters": _YARN},
    "mistral3": {"text_config": _PLAIN | {"model_type": "ministral3", "rope_parameters": _YARN}},
    "qwen3_next": _PLAIN | _EXPERTS | _LINEAR | _SHARED,
    "qwen3_5": {"text_config": _PLAIN | _LINEAR | {"model_type": "qwen3_5_text", "rope_parameters": _MROPE}},
    "qwen3_5_moe": {
        "text_config": _PLAIN
        | _EXPERTS
        | _LINEAR
        | _SHARED
        | {"model_type": "qwen3_5_moe_text", "rope_parameters": _MROPE}
    },
    "gpt_oss": _PLAIN | _WINDOWED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma3_text": _PLAIN | {"query_pre_attn_scalar": 32, "sliding_window": 512, "sliding_window_pattern": 4},
    "nemotron_h": _PLAIN | _MAMBA,
}


# mlx's CPU backend multiplies by chosen experts in float32 or quantised only
CASES = [
    (name, form)
    for name, figures in ARCHITECTURES.items()
    for form in FORMS
    if form != "bfloat16" or "num_experts_per_tok" not in figures | figures.get("text_config", {})
]


@pytest.fixture(scope="module")
def mlx() -> Iterator[Any]:
    """`mlx_lm.generate`, whose batch generator leaves the limit of wired memory alone, as in a worker."""
    load_fast_blas()
    module: Any = importlib.import_module("mlx_lm.generate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "maybe_set_recommended_wired_limit", lambda: None)
        yield module


@pytest.fixture(scope="module")
def home(mlx: Any, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """All models in all forms, written as mlx-lm's converter writes them."""
    import mlx.core as mx
    from mlx_lm.utils import _get_classes, quantize_model, save_config, save_model

    made = Home(tmp_path_factory.mktemp("truth") / "home").create()
    for name, form in CASES:
        config, bits = {"model_type": name, **ARCHITECTURES[name]}, FORMS[form]
        if bits == 32:
            config["torch_dtype"] = "float32"
        model_class, args_class = _get_classes(config)
        model = model_class(args_class.from_dict(config))
        model.set_dtype(mx.float32 if bits == 32 else mx.bfloat16)
        if bits < 16:
            model, config = quantize_model(model, config, GROUP, bits)
        folder = made.models / name / form
        folder.mkdir(parents=True)
        save_model(folder, model)
        save_config(config, folder / "config.json")
    return made


@pytest.fixture(scope="module")
def planned(home: Home) -> dict[str, Footprint]:
    """Every one planned from its files, in one process."""
    return footprints(home, [f"{name}/{form}" for name, form in CASES])


@pytest.fixture(scope="module")
def planned_from_config(home: Home, planned: dict[str, Footprint]) -> dict[str, Footprint]:
    """The same from their `config.json` alone."""
    return footprints(
        home, list(planned), {m: json.loads((home.models / m / "config.json").read_text()) for m in planned}
    )


class Truth:
    """A model in memory and what its caches hold while one prompt is prefilled and another joins it."""

    def __init__(self, mlx: Any, folder: Path) -> None:
        import mlx.core as mx
        from mlx.utils import tree_flatten
        from mlx_lm.utils import load_model

        mx.clear_cache()
        before = mx.get_active_memory()
        self.model, _ = load_model(folder, lazy=False)
        mx.synchronize()
        self.weights_bytes = sum(array.nbytes for _, array in tree_flatten(self.model.parameters()))
        self.allocated_bytes = mx.get_active_memory() - before
        self._generator = mlx.BatchGenerator(
            self.model, completion_batch_size=2, prefill_batch_size=1, prefill_step_size=CHUNK
        )

    def prefill(self, tokens: int) -> int:
        """Bytes of the cache of one prompt after its last chunk."""
        self._generator.insert([[1] * (tokens + 1)], max_tokens=[50])
        while not any(response.progress[0] == tokens for response in self._generator.next()[0]):
            pass
        return sum(layer.nbytes for layer in self._generator._prompt_batch.prompt_cache)

    def joined(self) -> int:
        """Bytes of the caches of all prompts once the last one decodes as well."""
        for _ in range(2):
            self._generator.next()
        return sum(layer.nbytes for layer in self._generator._generation_batch.prompt_cache)


def near(predicted: float, measured: float) -> bool:
    return abs(predicted / measured - 1) < 0.01


@pytest.mark.parametrize(("name", "form"), CASES)
def test_weights_and_kv_are_within_a_percent_of_what_is_held(
    name: str,
    form: str,
    mlx: Any,
    home: Home,
    planned: dict[str, Footprint],
    planned_from_config: dict[str, Footprint],
) -> None:
    size, truth = planned[f"{name}/{form}"], Truth(mlx, home.models / name / form)
    assert near(size.weights_bytes, truth.weights_bytes) and near(size.weights_bytes, truth.allocated_bytes)
    assert near(planned_from_config[f"{name}/{form}"].weights_bytes, truth.weights_bytes)
    assert planned_from_config[f"{name}/{form}"].kv == size.kv
    assert size.figures["hidden_size"] == 64
    assert near(kv_bytes(size.kv, 700, CHUNK), truth.prefill(700))
    truth.joined()
    assert near(kv_bytes(size.kv, 300, CHUNK), truth.prefill(300))
    held = truth.joined()  # padded to the longest; window layers keep their window once they decode
    assert near(2 * kv_bytes(size.kv, 701, 1), held)
    assert held <= size.kv.reserved_bytes(2 * 768, 2, CHUNK)


@pytest.mark.parametrize("tokens", [64, 200, 512, 540, 1000])
@pytest.mark.parametrize("name", ["gemma3_text", "gpt_oss"])
def test_layers_with_a_window_grow_first_and_stop_at_it(
    name: str, tokens: int, mlx: Any, home: Home, planned: dict[str, Footprint]
) -> None:
    kv, measured = planned[f"{name}/float32"].kv, Truth(mlx, home.models / name / "float32").prefill(tokens)
    ((window, width),) = kv.windows
    assert near(kv_bytes(kv, tokens, CHUNK), measured)
    assert measured <= kv.reserved_bytes(tokens, 1, CHUNK)
    assert kv.fixed_bytes == window * width


@pytest.mark.soak
@pytest.mark.parametrize(("model", "tokens"), [(TEXT_FP32, 130), (TEXT_4BIT, 130)])
def test_the_starter_models_take_what_was_planned(model: str, tokens: int, mlx: Any, starter_home: Home) -> None:
    size, truth = footprints(starter_home, [model])[model], Truth(mlx, starter_home.models / model)
    assert near(size.weights_bytes, truth.weights_bytes) and near(size.weights_bytes, truth.allocated_bytes)
    assert near(kv_bytes(size.kv, tokens, CHUNK), truth.prefill(tokens))
    assert size.kv == Kv(45 * 1024)


WIDE = {"hidden_size": 512, "num_attention_heads": 8, "head_dim": 64, "intermediate_size": 1536, "vocab_size": 8192}
WIDE_PARTS = {
    "moe_intermediate_size": 256,
    "linear_num_value_heads": 8,
    "linear_num_key_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "mamba_num_heads": 16,
    "mamba_head_dim": 64,
    "ssm_state_size": 64,
}


@pytest.mark.parametrize(
    "name", ["qwen3", *(pytest.param(n, marks=pytest.mark.soak) for n in ("gemma3_text", "qwen3_next", "nemotron_h"))]
)
def test_the_working_memory_of_steps_stays_under_what_is_planned_and_within_reach_of_it(
    name: str, mlx: Any, tmp_path: Path
) -> None:
    import mlx.core as mx
    from mlx_lm.utils import _get_classes, save_config, save_model

    figures = ARCHITECTURES[name]
    config = {**figures, **WIDE, **{part: size for part, size in WIDE_PARTS.items() if part in figures}}
    config |= {"model_type": name, "torch_dtype": "float32"}
    model_class, args_class = _get_classes(config)
    home, folder = Home(tmp_path).create(), tmp_path / "models" / "org" / name
    folder.mkdir(parents=True)
    save_model(folder, model_class(args_class.from_dict(config)))
    save_config(config, folder / "config.json")
    size, truth = footprints(home, [f"org/{name}"])[f"org/{name}"], Truth(mlx, folder)
    before, most = mx.get_active_memory(), 0
    mx.reset_peak_memory()
    for tokens in (512, 384):  # the second joins the first
        truth.prefill(tokens)
        held = truth.joined()
        most = max(most, mx.get_peak_memory() - before - held)
    planned = size.transient_bytes(512, size.kv.reserved_bytes(2 * 768, 2, CHUNK), mac=False)
    print(f"{name}: {most / 1e6:.1f} MB measured, {planned / 1e6:.1f} MB planned")
    assert most < planned < 12 * most  # for a chunk twice as long as this one
