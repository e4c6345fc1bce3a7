"""What an architecture takes, from its code and shapes alone. For where mlx may be imported: a worker, and the
short-lived process that this module is when `footprint` starts it (jobs on standard input, answers as the last line).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from .footprint import KV_STEP_TOKENS, Kv, figures_of


def kv_of(model: Any) -> Kv:
    """What an mlx-lm model's cache takes, from its shapes at 256 tokens and one more: nothing is computed."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    layers = [layer for entry in cache for layer in getattr(entry, "caches", (entry,))]
    sizes = []
    for tokens in (KV_STEP_TOKENS, 1):  # the one makes growing layers add their next step
        model(mx.zeros((1, tokens), dtype=mx.int32), cache=cache)
        sizes.append([layer.nbytes for layer in layers])
    per_token = fixed = 0
    windows: dict[int, int] = {}
    for layer, first, second in zip(layers, *sizes, strict=True):
        if window := getattr(layer, "max_size", getattr(layer, "chunk_size", None)):
            windows[window] = windows.get(window, 0) + first // KV_STEP_TOKENS
        else:
            growth = (second - first) // KV_STEP_TOKENS
            per_token, fixed = per_token + growth, fixed + first - growth * KV_STEP_TOKENS
    full = sum(window * width for window, width in windows.items())
    return Kv(per_token, fixed + full, tuple(sorted(windows.items())))


def _dry_run(job: dict[str, Any]) -> dict[str, Any]:
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model

    model = load_model(Path(job["folder"]), lazy=True)[0] if "folder" in job else _instantiate(job["config"])
    weights = sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    return {"weights_bytes": weights, "kv": kv_of(model)}


def _instantiate(config: dict[str, Any]) -> Any:
    """The architecture with random weights that are never computed, quantised as mlx-lm's converter would."""
    import mlx.core as mx
    from mlx import nn
    from mlx_lm.utils import _get_classes

    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    model.set_dtype(mx.float32 if figures_of(config).get("torch_dtype") == "float32" else mx.bfloat16)
    if form := config.get("quantization"):
        predicate = getattr(model, "quant_predicate", None)

        def quantise(path: str, module: Any) -> Any:
            for name, own in form.items():
                if path.endswith(name):  # a layer's full name, or the end of one in the table of models
                    return own
            if not hasattr(module, "to_quantized") or module.weight.shape[-1] % form["group_size"]:
                return False
            return predicate(path, module) if predicate else True

        size = {name: form[name] for name in ("group_size", "bits", "mode") if name in form}
        nn.quantize(model, **size, class_predicate=quantise)
    return model


def _main() -> None:
    sys.modules["torch"] = None  # type: ignore[assignment]  # as in a worker: transformers imports it where it can
    answers = []
    for job in json.load(sys.stdin):
        try:
            answers.append(_dry_run(job))
        except Exception as error:  # any failure of a foreign model's code is this job's answer
            answers.append({"error": f"{type(error).__name__}: {error}"})
    sys.stdout.write("\n" + json.dumps(answers) + "\n")


if __name__ == "__main__":
    _main()
