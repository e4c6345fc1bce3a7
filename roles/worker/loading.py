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
FIRST_PREFILL_STEP = 64
SLOW_DECODE_S = 0.1  # of a device where a token takes longer, 64 of a prompt may take seconds, which nothing can cancel
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


def first_rates(model: Any) -> tuple[int, float]:
    """A prefill chunk to begin with, and tokens per second of decode.

    A load measures no prefill, so as not to last: the chunk follows what real prompts take.
    """
    cache = make_prompt_cache(model)
    seconds = []
    for _ in range(3):  # the first pass compiles and touches pages
        began = time.monotonic()
        mx.eval(model(mx.ones((1, 1), dtype=mx.int32), cache=cache))
        seconds.append(time.monotonic() - began)
    decode_s = min(seconds)
    return MIN_PREFILL_STEP if decode_s > SLOW_DECODE_S else FIRST_PREFILL_STEP, 1 / decode_s
