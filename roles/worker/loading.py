"""From a folder on disk to a model in memory, and what it can do there."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_adapters, load_model, load_tokenizer

from rolecall.roles.footprint import prefill_step_tokens

from .wire import WorkerSpec

MAX_PREFILL_STEP = prefill_step_tokens(sys.platform == "darwin")
MIN_PREFILL_STEP = 8
FIRST_PREFILL_STEP = 64  # a load measures no more, so as not to last; the step grows further with real prompts
_LOAD_SLICE_BYTES = 256 << 20


def read_model(spec: WorkerSpec, on_loading: Callable[[int, int], None]) -> tuple[Any, Any, int]:
    """The model with its adapter, its tokenizer, and the bytes of the weights."""
    model, config = load_model(spec.folder, lazy=True, trust_remote_code=False)
    if spec.adapter:
        load_adapters(model, str(spec.adapter)).eval()
    with ThreadPoolExecutor(1) as beside:
        tokenizer = beside.submit(
            load_tokenizer, spec.folder, {"trust_remote_code": False}, eos_token_ids=config.get("eos_token_id")
        )
        weights_bytes = _read_weights(model, on_loading)
        return model, tokenizer.result(), weights_bytes


def _read_weights(model: Any, on_loading: Callable[[int, int], None]) -> int:
    """Bring the lazy weights into memory in slices; returns their bytes."""
    arrays = [array for _, array in tree_flatten(model.parameters())]
    total = sum(array.nbytes for array in arrays)
    done = told = 0
    waiting: list[Any] = []
    on_loading(0, total)
    for array in arrays:
        waiting.append(array)
        done += array.nbytes
        if done - told >= _LOAD_SLICE_BYTES or done == total:
            mx.eval(waiting)
            waiting.clear()
            on_loading(done, total)
            told = done
    return int(total)


def rates(model: Any, spec: WorkerSpec) -> tuple[int, float, float]:
    """A prefill chunk to begin with, and tokens per second of prefill in such and of decode, alone."""

    def seconds(tokens: int, cache: Any) -> float:
        began = time.monotonic()
        logits = model(mx.ones((1, tokens), dtype=mx.int32), cache=cache)
        mx.eval(logits if tokens == 1 else [layer.state for layer in cache])
        return time.monotonic() - began

    cache = make_prompt_cache(model)
    seconds(MIN_PREFILL_STEP, cache)  # the first pass compiles and touches pages
    decode_s = min(seconds(1, cache) for _ in range(2))
    step, step_s = MIN_PREFILL_STEP, seconds(MIN_PREFILL_STEP, make_prompt_cache(model))
    if step_s < spec.prefill_target_s / 5:  # a slow device is spared: it may take as much longer as there are tokens
        step = min(FIRST_PREFILL_STEP, spec.context_length)
        step_s = seconds(step, make_prompt_cache(model))
    return step, step / step_s, 1 / decode_s
