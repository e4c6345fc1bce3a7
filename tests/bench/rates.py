"""This machine's rates on a starter model, in the form that the simulator reads (`--rates`)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import psutil

from rolecall.roles.contract import GenerationRequest
from rolecall.roles.worker.process import Worker, WorkerSpec

from .stage import Clock, filler, request, story

LENGTHS = (400, 3000)  # words, and about as many tokens: two prefills tell how the rate falls with the context
DECODE_TOKENS = 48
ROUNDS = 3
CACHE_BYTES = 250_000_000


async def measure(folder: Path, model: str) -> dict[str, Any]:
    """The whole object of one model's rates and of the machine's."""
    began = time.perf_counter()
    worker = await Worker.start()
    start_s = time.perf_counter() - began
    try:
        began = time.perf_counter()
        loaded = await worker.load(WorkerSpec("text", folder, model, 4096, 4, CACHE_BYTES))
        load_s = time.perf_counter() - began
        await _generate(worker, [request("Say yes.", 4)])
        prefill, half, overhead_s = await _prefill(worker)
        decode = {str(batch): await _decode(worker, batch) for batch in (1, 2, 4)}
        decode_half = await _decode_half(worker, decode["1"])
    finally:
        await worker.stop()
    return {
        "device": f"{psutil.cpu_count()} cores without a GPU" if loaded.blas != "metal" else "Metal",
        "machine_bytes": psutil.virtual_memory().total,
        "process_start_s": round(start_s, 3),
        "request_overhead_s": round(overhead_s, 4),
        "models": {
            model: {
                "prefill_tokens_per_s": round(prefill, 1),
                "prefill_half_context": half,
                "decode_tokens_per_s": {batch: round(rate, 2) for batch, rate in decode.items()},
                "decode_half_context": decode_half,
                "load_s": round(load_s, 3),
                "weights_bytes": loaded.weights_bytes,
                "kv_bytes_per_token": loaded.kv_bytes_per_token,
            }
        },
    }


async def _prefill(worker: Worker) -> tuple[float, float | None, float]:
    """Tokens per second at a short context, the context at which it is half of that, and what a request costs beside.

    The seconds of a prompt of n tokens are taken as a*n + b*n*n, through the medians at two lengths.
    """
    points, beside_s = [], []
    for words in LENGTHS:
        taken = []
        for number in range(ROUNDS):
            clock = Clock()
            text = filler(f"{number} of {words}", words)
            result = await worker.generate(request(text, 1), on_event=clock.on_event)
            beside_s.append(clock.prefilled_s - result.prefill_s)
            taken.append(result.prefill_s)
        points.append((result.prompt_tokens, statistics.median(taken)))
    (n, s), (m, t) = points
    b = (t / m - s / n) / (m - n)
    a = s / n - b * n
    if b <= 0 or a <= 0:  # no slowing to be seen
        return m / t, None, statistics.median(beside_s)
    return 1 / a, round(a / (2 * b)), statistics.median(beside_s)


async def _decode(worker: Worker, batch: int) -> float:
    """Tokens per second of so many requests together, while all of them decode."""
    rates = []
    for number in range(ROUNDS):
        asked = [request(story(number * batch + each), DECODE_TOKENS) for each in range(batch)]
        times = await _generate(worker, asked)
        first, last = max(each[0] for each in times), min(each[-1] for each in times)
        rates.append(sum(first < at <= last for each in times for at in each) / (last - first))
    return statistics.median(rates)


async def _decode_half(worker: Worker, short: float) -> float | None:
    """The context at which decoding runs at half of `short`, from one at the end of a long prompt."""
    words = LENGTHS[1]
    (times,) = await _generate(worker, [request(f"{filler('9', words)}\n\n{story(9)}", DECODE_TOKENS)])
    if len(times) < DECODE_TOKENS // 2:  # it had little to say: no figure
        return None
    slowing = short * (times[-1] - times[0]) / (len(times) - 1) - 1
    return round(words / slowing) if slowing > 0.01 else None


async def _generate(worker: Worker, asked: Sequence[GenerationRequest]) -> list[list[float]]:
    """When each request's tokens came, on one clock."""
    times: list[list[float]] = [[] for _ in asked]
    clocks = [Clock() for _ in asked]
    async with anyio.create_task_group() as group:
        for each, clock in zip(asked, clocks, strict=True):
            group.start_soon(lambda each=each, clock=clock: worker.generate(each, on_event=clock.on_event))
    for each, clock in zip(times, clocks, strict=True):
        for (at, tokens), (_, before) in zip(clock.tokens, [(0.0, 0), *clock.tokens], strict=False):
            each += [clock.start - clocks[0].start + at] * (tokens - before)
    return times
