"""How fast a device is: what was reported for the M4 Max, or what was measured on some machine (`--rates`).

The file of `--rates` is the JSON of `DeviceRates`. What is left out of it, save `models`, is the M4 Max's:

    {"device": "two cores", "machine_bytes": 16e9, "process_start_s": 2.6, "chunk_s": 0.5,
     "chunk_tokens": 128, "request_overhead_s": 0.01, "decode_share_beside_prefill": 0.5, "models": {"starter/...": {
        "prefill_tokens_per_s": 480, "decode_tokens_per_s": {"1": 31, "2": 35}, "load_s": 2.0, "weights_bytes": 538e6,
        "kv_bytes_per_token": 46080, "chunk_overhead_s": 0.05, "prefill_half_context": 4096,
        "decode_half_context": null}}}
"""

from __future__ import annotations

import math
from bisect import bisect_left
from pathlib import Path

from pydantic import BaseModel, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from rolecall.config.home import Home
from rolecall.config.models import models_table
from rolecall.config.profile import Profile
from rolecall.roles.footprint import Footprint, prefill_step_tokens, quick_footprint

NO_HOME = Home(Path("/nonexistent"))  # nothing depends on what is on this disk
PREFILL_FLOPS = 2 * 4.02e9 * 1607  # Source: Qwen3-4B 8-bit, 4.02e9 parameters, 1,607 tokens/s (mlx-lm BENCHMARKS.md)
DECODE_BYTES_PER_S = 15.7e9 * 30  # Source: a 14B at 8 bit, 15.7 GB, 30 tokens/s (NexVeridian/llm-inference-benchmarks)
BANDWIDTH_BYTES_PER_S = 546e9  # Source: Apple's figure for the M4 Max; what bounds any decode
LOAD_BYTES_PER_S = 3.75e9  # Source: 96.5 GB cold in 25.7 s on a 128 GB M4 Max; always cold here (warm: 21 GB/s)
REPORTED_CONTEXT = 2048  # tokens of prompt that the rates below were reported at
# Each further request of a batch lengthens a step by this part. Source: vllm-mlx, 98 tokens/s for one request and 233
# for five (Qwen3-30B-A3B 4-bit), the one report there is; taken for every model.
BATCH_COST = (5 * 98 / 233 - 1) / 4
# (prefill, decode) in tokens/s; a None is derived below, as for a dense model.
REPORTED: dict[str, tuple[float | None, float | None]] = {
    "mlx-community/Qwen3-4B-Instruct-2507-8bit": (1607, 87),  # Source: mlx-lm BENCHMARKS.md
    "mlx-community/Qwen3-Coder-30B-A3B-Instruct-8bit": (1719, 83),  # Source: the same, Qwen3-30B-A3B-2507 8-bit
    "mlx-community/DeepSeek-R1-Distill-Qwen-14B-8bit": (None, 30),  # Source: NexVeridian, Qwen2.5 of the same shape
    "mlx-community/DeepSeek-R1-Distill-Qwen-32B-4bit": (None, 23),  # Source: the same
    # A small model's step has a fixed part: the 1.7B at 4 bit makes 293 tokens/s (Source: panbanda/higgs README), at
    # 8 bit 0.9 GB more are read per token.
    "mlx-community/Qwen3-1.7B-8bit": (None, 1 / (1 / 293 + 0.9e9 / DECODE_BYTES_PER_S)),
    # Source: claude-code-local issue 31 at 4 bit, decode times 83/113 as the 30B-A3B's at 8 bit
    "mlx-community/Qwen3.6-35B-A3B-8bit": (1518, 101 * 83 / 113),
    "mlx-community/Qwen3.8-27B-8bit": (None, 16.3),  # Source: llmfit, sustained
    # No report: taken as the 35B-A3B's, which has as many active parameters
    "mlx-community/Qwen3-Coder-Next-6bit": (1518, 101 * 83 / 113),
}


class ModelRates(BaseModel, frozen=True, extra="forbid"):
    """One model on one device. Decode counts all requests of a batch together, by their number.

    At `..._half_context` tokens of context a rate is half of what it is at none. A prefill chunk takes
    `chunk_overhead_s` whatever its length.
    """

    prefill_tokens_per_s: PositiveFloat
    decode_tokens_per_s: dict[PositiveInt, PositiveFloat] = Field(min_length=1)
    load_s: NonNegativeFloat
    weights_bytes: NonNegativeFloat
    kv_bytes_per_token: NonNegativeFloat
    chunk_overhead_s: NonNegativeFloat = 0.0
    prefill_half_context: PositiveFloat | None = None
    decode_half_context: PositiveFloat | None = None

    def prefill_s(self, tokens: float, context_tokens: float) -> float:
        """Seconds of so many tokens after so many others, the overhead of chunks left out."""
        slowing = 1 + (context_tokens + tokens / 2) / (self.prefill_half_context or math.inf)
        return tokens / self.prefill_tokens_per_s * slowing

    def step_s(self, batch: int, context_tokens: float) -> float:
        """Seconds of one decode step with `batch` requests: on the line through the two given batches next to it."""
        given = sorted((n, n / rate) for n, rate in self.decode_tokens_per_s.items())
        at = min(max(1, bisect_left(given, (batch,))), len(given) - 1)
        (low, low_s), (high, high_s) = given[at - 1], given[at]
        seconds = low_s + (batch - low) * ((high_s - low_s) / (high - low) if high > low else low_s / low)
        return seconds * (1 + context_tokens / (self.decode_half_context or math.inf))


class DeviceRates(BaseModel, frozen=True, extra="forbid"):
    """A device and its models. The defaults are an M4 Max with 128 GB.

    `decode_share_beside_prefill` is what all decoding together keeps of the device while another process prefills.
    """

    device: str = "M4 Max, 128 GB, from reported rates"
    machine_bytes: PositiveFloat = 128 * 1024**3
    process_start_s: NonNegativeFloat = 2.6  # Source: import of mlx_lm on a 2-core Linux machine; a Mac's is not known
    chunk_s: PositiveFloat = 0.5  # as the worker's own target
    chunk_tokens: PositiveInt = prefill_step_tokens(mac=True)
    request_overhead_s: NonNegativeFloat = 0.01  # pipe, chat template and tokenising, on the same Linux machine
    # Source: reported steps/s beside a heavy prefill and alone
    decode_share_beside_prefill: float = Field(default=9.1 / 81.6, gt=0, lt=1)
    models: dict[str, ModelRates] = {}


# Source: 14.7 texts of 256 tokens per second with torch on two cores, which a Mac exceeds.
EMBEDDER_RATES = ModelRates(
    prefill_tokens_per_s=14.7 * 256, decode_tokens_per_s={1: 1e9}, load_s=3.0, weights_bytes=91e6, kv_bytes_per_token=0
)


def m4_max(profile: Profile) -> DeviceRates:
    """The M4 Max's rates for a profile's models."""
    models = {spec.model: _derived(spec.model) for spec in profile.roles.values()}
    return DeviceRates(models={**models, profile.embedder.model: EMBEDDER_RATES})


def size_of(model: str) -> Footprint:
    """What the table publishes of a model; nothing has to be on disk."""
    size = quick_footprint(NO_HOME, model)
    assert size, f"{model} is not in the table of models"
    return size


def _derived(model: str) -> ModelRates:
    """Prefill is bound by arithmetic and slows with the context as attention's part of it grows; decode is bound by
    bytes read per token, of which the KV cache's part grows with the context."""
    size = size_of(model)
    prefill, decode = REPORTED.get(model, (None, None))
    parameters = size.weights_bytes * 8 / (models_table()[model].bits + 0.5)  # half a bit for the scales of each group
    decode = decode or DECODE_BYTES_PER_S / size.weights_bytes
    prefill = prefill or PREFILL_FLOPS / (2 * parameters)
    heads = size.figures.get("num_attention_heads", 32)
    head_dim = size.figures.get("head_dim") or size.figures.get("hidden_size", 4096) // heads
    layers = size.figures.get("num_hidden_layers", 40) // size.figures.get("full_attention_interval", 1)
    # Two products of a query with the keys and the values of what came before it, in every layer with attention
    prefill_half = PREFILL_FLOPS / prefill / (4 * layers * heads * head_dim)
    decode_half = BANDWIDTH_BYTES_PER_S / decode / size.kv_bytes_per_token
    # What was reported at 2,048 tokens of context is a little less than the rate without any
    prefill *= 1 + REPORTED_CONTEXT / 2 / prefill_half
    decode *= 1 + REPORTED_CONTEXT / decode_half
    return ModelRates(
        prefill_tokens_per_s=prefill,
        decode_tokens_per_s={1: decode, 5: 5 * decode / (1 + 4 * BATCH_COST)},
        load_s=size.weights_bytes / LOAD_BYTES_PER_S,
        weights_bytes=size.weights_bytes,
        kv_bytes_per_token=size.kv_bytes_per_token,
        prefill_half_context=prefill_half,
        decode_half_context=decode_half,
    )
