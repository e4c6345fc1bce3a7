"""What one model takes in memory: weights, KV cache per token, fixed state and the transient of a prefill step.

Weights come from safetensors headers, or from the architecture instantiated without weights; the KV cache comes from a
dry run of the model's own code that computes shapes and never values, so that sliding windows, hybrids and MLA are
right where formulas are not. Both run in a short-lived process of their own: the caller never imports mlx.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rolecall.config.home import Home
from rolecall.config.models import ModelEntry, models_table

from .errors import ModelCorrupt, ModelUnknown
from .manifest import weights_bytes

KIB, MIB, GB = 1 << 10, 1 << 20, 1_000_000_000
DRY_RUN_TIMEOUT_S = 300.0
PREFILL_STEP_TOKENS = 512  # the longest chunk a worker prefills at once
FUSED_HEAD_DIMS = (64, 80, 128)  # Source: mlx's Metal kernel of scaled_dot_product_attention
UNKNOWN_TRANSIENT_BYTES = 250_000_000
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes. `fixed_bytes` is per sequence (recurrent state, windows).

    `source`: `measured` from the files on disk, `computed` from architecture figures, `published` from the table.
    """

    weights_bytes: int
    kv_bytes_per_token: int
    fixed_bytes: int
    figures: dict[str, Any]
    source: Literal["measured", "computed", "published"]

    def kv_bytes(self, context_tokens: int, sequences: int) -> int:
        """KV cache of `sequences` full contexts; mlx-lm allocates in steps of 256 tokens."""
        rounded = -(-context_tokens // 256) * 256
        return sequences * (rounded * self.kv_bytes_per_token + self.fixed_bytes)

    def prefill_transient_bytes(self, context_tokens: int, fused: bool = sys.platform == "darwin") -> int:
        """An upper estimate of what one prefill step takes beside weights and cache: two layers' activations, logits,
        and the attention scores where no fused kernel avoids them."""
        figures = self.figures
        if not (hidden := int(figures.get("hidden_size", 0))):
            return UNKNOWN_TRANSIENT_BYTES
        step = min(PREFILL_STEP_TOKENS if fused else 64, context_tokens)
        width = 4 if figures.get("torch_dtype") == "float32" else 2
        experts = int(figures.get("num_experts_per_tok") or 1)
        inner = int(figures.get("moe_intermediate_size") or figures.get("intermediate_size") or 4 * hidden)
        heads = int(figures.get("num_attention_heads") or 1)
        head_dim = int(figures.get("head_dim") or hidden // heads)
        activations = 2 * step * width * (8 * hidden + 3 * inner * experts + 4 * heads * head_dim)
        scores = 0 if fused and head_dim in FUSED_HEAD_DIMS else 2 * heads * step * context_tokens * 4
        return activations + scores + 3 * 4 * int(figures.get("vocab_size", 0))


def quick_footprint(home: Home, model: str) -> Footprint | None:
    """What is known without starting a process: the exact figures where they were kept, else headers and the table.

    None where only a dry run can tell.
    """
    folder = home.models / model
    if kept := _kept(home).get(_key(home, model)):
        return _from_dict(kept)
    entry = models_table().get(model)
    if not (folder / "config.json").is_file():
        return _published(entry) if entry else None
    figures = _figures(folder)
    if (folder / "modules.json").is_file():
        return Footprint(weights_bytes(folder), 0, 0, {}, "measured")
    if entry is None:
        return None
    fixed, per_token = int(entry.fixed_mib * MIB), int(entry.kv_kib_per_token * KIB)
    return Footprint(weights_bytes(folder), per_token, fixed, figures, "measured")


def footprints(home: Home, models: Sequence[str]) -> dict[str, Footprint]:
    """Exact footprints of models; those not kept yet are worked out in one process (seconds) and kept. Blocking.

    Raises:
        ModelUnknown: a model that is neither on disk nor in the table.
        ModelCorrupt: its folder cannot be read by mlx-lm.
    """
    kept = _kept(home)
    found: dict[str, Footprint] = {}
    jobs: dict[str, dict[str, Any]] = {}
    for model in dict.fromkeys(models):
        if old := kept.get(_key(home, model)):
            found[model] = _from_dict(old)
        elif job := _job(home, model):
            jobs[model] = job
        elif quick := quick_footprint(home, model):
            found[model] = quick
        else:
            raise unknown_model(model)
    if jobs:
        for model, answer in zip(jobs, _dry_runs(list(jobs.values())), strict=True):
            found[model] = _answered(home, model, jobs[model], answer)
            kept[_key(home, model)] = asdict(found[model])
        _keep(home, kept)
    return found


def unknown_model(name: str) -> ModelUnknown:
    """The error for a name that means no model: it names the nearest that does."""
    import difflib

    near = difflib.get_close_matches(name, models_table(), n=1, cutoff=0.5)
    return ModelUnknown(
        "No such model.",
        found=repr(name),
        allowed="a role, a repository id such as org/name, a known other name, or a folder",
        advice=f"Did you mean {near[0]}?" if near else "See `rolecall models list`.",
    )


def _job(home: Home, model: str) -> dict[str, Any] | None:
    folder = home.models / model
    if (folder / "config.json").is_file():
        return None if (folder / "modules.json").is_file() else {"folder": str(folder)}
    entry = models_table().get(model)
    if entry is None or entry.architecture is None:
        return None
    return {"architecture": entry.architecture, "bits": entry.bits, "group_size": entry.group_size}


def _answered(home: Home, model: str, job: dict[str, Any], answer: dict[str, Any]) -> Footprint:
    if "error" in answer:
        raise ModelCorrupt(
            f"mlx-lm cannot read model {model!r}.",
            found=str(answer["error"])[:300],
            allowed="a folder in the form of mlx-lm with a known architecture",
            advice=f"Fetch it again (rolecall models pull {model}) or choose another model.",
        )
    per_token, fixed = int(answer["kv_bytes_per_token"]), int(answer["fixed_bytes"])
    if "folder" in job:
        folder = home.models / model
        return Footprint(weights_bytes(folder), per_token, fixed, _figures(folder), "measured")
    return Footprint(int(answer["weights_bytes"]), per_token, fixed, _small(job["architecture"]), "computed")


def _published(entry: ModelEntry) -> Footprint:
    per_token, fixed = int(entry.kv_kib_per_token * KIB), int(entry.fixed_mib * MIB)
    return Footprint(int(entry.published_gb * GB), per_token, fixed, _small(entry.architecture or {}), "published")


def _figures(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ModelCorrupt(
            f"The configuration of model {folder.name!r} cannot be read.",
            found=str(error)[:200],
            advice="Fetch the model again: rolecall models pull",
        ) from None
    return _small({**config, **config.get("text_config", {})})


def _small(config: dict[str, Any]) -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "moe_intermediate_size", "num_experts_per_tok", "num_attention_heads")
    return {n: config[n] for n in (*names, "head_dim", "vocab_size", "torch_dtype") if config.get(n)}


def _key(home: Home, model: str) -> str:
    """Changes with the files, the figures or the version of the reader, so that nothing stale is used."""
    folder = home.models / model
    parts: list[Any] = [_FORMAT, model]
    if (folder / "config.json").is_file():
        for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
            status = file.stat()
            parts.append([file.name, status.st_size, status.st_mtime_ns])
    elif entry := models_table().get(model):
        parts.append(entry.model_dump(mode="json"))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _kept(home: Home) -> dict[str, Any]:
    try:
        return dict(json.loads((home.root / "footprints.json").read_bytes()))
    except (OSError, ValueError):
        return {}


def _keep(home: Home, kept: dict[str, Any]) -> None:
    home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = home.root / f".footprints.{os.getpid()}"
    temporary.write_text(json.dumps(kept))
    temporary.replace(home.root / "footprints.json")


def _from_dict(data: dict[str, Any]) -> Footprint:
    return Footprint(**data)


def _dry_runs(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    command = [sys.executable, "-P", "-m", "rolecall.roles.footprint"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    try:
        result = subprocess.run(
            command, input=json.dumps(jobs), capture_output=True, text=True, env=env, timeout=DRY_RUN_TIMEOUT_S
        )
        return list(json.loads(result.stdout.splitlines()[-1]))
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        found = type(error).__name__
        return [{"error": f"the dry run gave no answer ({found})"} for _ in jobs]


# What follows runs in that process only.


def _dry_run(job: dict[str, Any]) -> dict[str, Any]:
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model

    if "folder" in job:
        model, _ = load_model(Path(job["folder"]), lazy=True)
    else:
        model = _instantiate(job)
    weights = sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    per_token, fixed = _kv(model)
    return {"weights_bytes": weights, "kv_bytes_per_token": per_token, "fixed_bytes": fixed}


def _instantiate(job: dict[str, Any]) -> Any:
    """The architecture with random weights that are never computed, quantised as mlx-lm's converter would."""
    import mlx.core as mx
    from mlx import nn
    from mlx_lm.utils import _get_classes

    model_class, args_class = _get_classes(job["architecture"])
    model = model_class(args_class.from_dict(job["architecture"]))
    bits, group_size = job["bits"], job["group_size"]
    model.set_dtype(mx.float32 if bits == 32 else mx.bfloat16)
    if bits < 16:
        predicate = getattr(model, "quant_predicate", None)

        def quantise(path: str, module: Any) -> Any:
            if not hasattr(module, "to_quantized") or module.weight.shape[-1] % group_size:
                return False
            return predicate(path, module) if predicate else True

        nn.quantize(model, group_size, bits, class_predicate=quantise)
    return model


def _kv(model: Any) -> tuple[int, int]:
    """(bytes per token, fixed bytes) of one sequence, from the cache's shapes after 4,096 and 8,192 tokens."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    sizes = {}
    for done in range(512, 8192 + 1, 512):
        model(mx.zeros((1, 512), dtype=mx.int32), cache=cache)
        sizes[done] = sum(layer.nbytes for layer in cache)
    per_token = (sizes[8192] - sizes[4096]) // 4096
    return per_token, sizes[8192] - 8192 * per_token


def _main() -> None:
    answers = []
    for job in json.load(sys.stdin):
        try:
            answers.append(_dry_run(job))
        except Exception as error:  # any failure of a foreign model's code is this job's answer
            answers.append({"error": f"{type(error).__name__}: {error}"})
    sys.stdout.write("\n" + json.dumps(answers) + "\n")


if __name__ == "__main__":
    _main()
