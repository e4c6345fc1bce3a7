"""What one model takes in memory: weights, KV cache per token, fixed state and the transient of a prefill step.

Weights come from safetensors headers, or from the architecture instantiated without weights; the KV cache comes from a
dry run of the model's own code that computes shapes and never values, so that sliding windows, hybrids and MLA are
right where formulas are not. Both run in a short-lived process of their own: the caller never imports mlx.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rolecall.config.home import Home
from rolecall.config.models import models_table
from rolecall.config.settings import GB

from .errors import ModelUnknown
from .manifest import corrupt, read_json, weights_bytes, write_whole

KIB, MIB = 1 << 10, 1 << 20
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

    def prefill_transient_bytes(self, context_tokens: int, fused: bool) -> int:
        """An upper estimate of what one prefill step takes beside weights and cache: two layers' activations, logits,
        and the attention scores where no fused kernel (Metal's) avoids them."""
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
    """What is known without a dry run: figures that were kept, else headers and the table; None where it needs one."""
    if kept := _kept(home).get(_key(home, model)):
        return Footprint(**kept)
    folder, entry = home.models / model, models_table().get(model)
    present = (folder / "config.json").is_file()
    if present and (folder / "modules.json").is_file():
        return Footprint(weights_bytes(folder), 0, 0, {}, "measured")
    if entry is None:
        return None
    weights, kv, fixed = entry.published_gb * GB, entry.kv_kib_per_token * KIB, entry.fixed_mib * MIB
    size = Footprint(int(weights), int(kv), int(fixed), _figures(entry.architecture or {}), "published")
    return replace(size, **_measured(folder)) if present else size


def footprints(home: Home, models: Sequence[str]) -> dict[str, Footprint]:
    """Exact footprints of models; those not kept yet are worked out in one process (seconds) and kept. Blocking.

    Raises ModelUnknown for one neither on disk nor in the table, ModelCorrupt for one that mlx-lm cannot read.
    """
    kept = _kept(home)
    found: dict[str, Footprint] = {}
    jobs: dict[str, dict[str, Any]] = {}
    for model in dict.fromkeys(models):
        if old := kept.get(_key(home, model)):
            found[model] = Footprint(**old)
        elif job := _job(home, model):
            jobs[model] = job
        elif quick := quick_footprint(home, model):
            found[model] = quick
        else:
            raise unknown_model(model, f"Its size is known once it is here: rolecall models pull {model}")
    for model, answer in zip(jobs, _dry_runs(list(jobs.values())), strict=True):
        if "error" in answer:
            raise corrupt(model, f"mlx-lm cannot read it: {answer['error']}")
        computed = {"figures": _figures(jobs[model].get("architecture", {})), "source": "computed"}
        more = _measured(home.models / model) if "folder" in jobs[model] else computed
        found[model] = Footprint(**{**answer, **more})
        kept[_key(home, model)] = asdict(found[model])
    if jobs:
        with contextlib.suppress(OSError):  # on a full disk it is only worked out again
            home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(home.root / "footprints.json", json.dumps(kept))
    return found


def unknown_model(name: str, advice: str = "See `rolecall models list`.") -> ModelUnknown:
    """The error for a name that means no model: it names the nearest that does, else gives `advice`."""
    near = difflib.get_close_matches(name, models_table(), n=1, cutoff=0.5)
    return ModelUnknown(
        "No such model is on disk or in the table.",
        found=repr(name),
        allowed="a role, a repository id such as org/name, a known other name, or a folder",
        advice=f"Did you mean {near[0]}?" if near else advice,
    )


def _job(home: Home, model: str) -> dict[str, Any] | None:
    folder, entry = home.models / model, models_table().get(model)
    if (folder / "config.json").is_file():
        return None if (folder / "modules.json").is_file() else {"folder": str(folder)}
    if entry is None or entry.architecture is None:
        return None
    return {"architecture": entry.architecture, "bits": entry.bits, "group_size": entry.group_size}


def _measured(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json", "/".join(folder.parts[-2:]))
    figures = _figures({**config, **config.get("text_config", {})})
    return {"weights_bytes": weights_bytes(folder), "figures": figures, "source": "measured"}


def _figures(config: dict[str, Any]) -> dict[str, Any]:
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


def _dry_runs(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not jobs:
        return []
    command = [sys.executable, "-P", "-m", "rolecall.roles.footprint"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    found = ""
    try:
        result = subprocess.run(
            command, input=json.dumps(jobs), capture_output=True, text=True, env=env, timeout=DRY_RUN_TIMEOUT_S
        )
        found = result.stderr.strip().rpartition("\n")[2]
        return list(json.loads(result.stdout.splitlines()[-1]))
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        return [{"error": f"the dry run gave no answer ({found or type(error).__name__})"} for _ in jobs]


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
