"""The calls that touch the device beyond plain arrays, in one place: memory limits and mlx-lm's batch generator."""

from __future__ import annotations

import importlib
from typing import Any

import mlx.core as mx
import psutil

_generate: Any = importlib.import_module("mlx_lm.generate")  # `mlx_lm.generate` itself is a function of that name


def limit_cache(cache_limit_bytes: int) -> None:
    """Bound what MLX keeps of freed buffers; unbounded by default."""
    mx.set_cache_limit(cache_limit_bytes)


def batch_generator(model: Any, eos_token_ids: set[int], concurrency: int, prefill_step: int) -> Any:
    """A `BatchGenerator` that prefills one prompt at a time, and leaves the wired limit alone.

    Its constructor raises the limit of wired memory to the device's recommendation, which was traced to macOS kernel
    panics (Source: mlx issue 3186). There is no option against it, so the function it calls is another one while it
    runs: it is looked up in that module only, and this process has one thread that uses MLX.
    """
    kept = _generate.maybe_set_recommended_wired_limit
    _generate.maybe_set_recommended_wired_limit = lambda: None
    try:
        return _generate.BatchGenerator(
            model,
            stop_tokens=[(token,) for token in eos_token_ids],
            completion_batch_size=concurrency,
            prefill_batch_size=1,  # a chunk is then never longer than one prompt's, and its time stays bounded
            prefill_step_size=prefill_step,
        )
    finally:
        _generate.maybe_set_recommended_wired_limit = kept


def measured_bytes(before_load_bytes: int) -> int:
    """What this process holds. Metal's buffers need not show in the resident size, so the larger view counts."""
    resident = psutil.Process().memory_info().rss
    return max(int(resident), before_load_bytes + int(mx.get_active_memory() + mx.get_cache_memory()))


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def release() -> None:
    """Finish what the device is doing and give cached buffers back."""
    mx.synchronize()
    mx.clear_cache()
