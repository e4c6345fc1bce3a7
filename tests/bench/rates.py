"""This machine's rates on a starter model, in the form that the simulator reads (`--rates`)."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import numpy
import psutil

from rolecall.roles.contract import GenerationRequest
from rolecall.roles.footprint import prefill_step_tokens
from rolecall.roles.worker.process import Worker
from rolecall.roles.worker.wire import Loaded, WorkerSpec

from .stage import Clock, filler, request, story

LENGTHS = (400, 2000)  # words, and about as many tokens
TARGETS_S = (0.35, 0.7)  # of a chunk: chunks of different lengths tell what each costs beside its tokens
DECODE_TOKENS = 48
ROUNDS = 2
CACHE_BYTES = 250_000_000
METAL = sys.platform == "darwin"


async def measure(folder: Path, model: str) -> dict[str, Any]:
    """The whole object of one model's rates and of the machine's."""
    points: list[tuple[int, int, float]] = []
    beside_s: list[float] = []
    for target_s in TARGETS_S:
        async with _worker(folder, model, target_s) as (worker, loaded, start_s, load_s):
            for number, words in enumerate(LENGTHS * ROUNDS):
                beside_s.append(await _prefill(worker, f"{number} of {words} in {target_s} s", words, points))
    async with _worker(folder, model) as (worker, loaded, start_s, load_s):
        decode = {str(batch): await _decode(worker, batch) for batch in (1, 2, 4)}
        decode_half = await _decode_half(worker, decode["1"])
    return {
        "device": f"{psutil.cpu_count()} cores without a GPU" if not METAL else "Metal",
        "machine_bytes": psutil.virtual_memory().total,
        "process_start_s": round(start_s, 3),
        "request_overhead_s": round(statistics.median(beside_s), 4),
        "chunk_tokens": prefill_step_tokens(METAL),
        "models": {
            model: {
                **_prefill_rates(points),
                "decode_tokens_per_s": {batch: round(rate, 2) for batch, rate in decode.items()},
                "decode_half_context": decode_half,
                "load_s": round(load_s, 3),
                "weights_bytes": loaded.weights_bytes,
                "kv_bytes_per_token": loaded.kv_bytes_per_token,
            }
        },
    }


@asynccontextmanager
async def _worker(
    folder: Path, model: str, target_s: float = 0.5
) -> AsyncGenerator[tuple[Worker, Loaded, float, float]]:
    """A loaded worker, and the seconds that its process and its model took."""
    began = time.perf_counter()
    worker = await Worker.start()
    start_s = time.perf_counter() - began
    try:
        began = time.perf_counter()
        spec = WorkerSpec("text", folder, model, 4096, 4, CACHE_BYTES, prefill_target_s=target_s)
        loaded = await worker.load(spec)
        load_s = time.perf_counter() - began
        await _generate(worker, [request("Say yes.", 4)])
        yield worker, loaded, start_s, load_s
    finally:
        await worker.stop()


async def _prefill(worker: Worker, name: str, words: int, points: list[tuple[int, int, float]]) -> float:
    """Adds (tokens, tokens before them, seconds) of each chunk of a prompt; returns what the request cost beside."""
    clock = Clock()
    result = await worker.generate(request(filler(name, words), 1), on_event=clock.on_event)
    for (before_s, before), (at_s, done) in pairwise(clock.chunks):
        if done - before > 1:  # the last token comes with the first one of the answer
            points.append((done - before, before, at_s - before_s))
    return clock.prefilled_s - result.prefill_s


def _prefill_rates(points: list[tuple[int, int, float]]) -> dict[str, float | None]:
    """Seconds of a chunk of n tokens after m others as f + a*n + b*n*(m + n/2): least squares, f not below zero."""
    rows = numpy.array([(1.0, n, n * (m + n / 2)) for n, m, _ in points])
    seconds = numpy.array([s for _, _, s in points])
    f, a, b = numpy.linalg.lstsq(rows, seconds, rcond=None)[0]
    if f < 0:
        f, (a, b) = 0.0, numpy.linalg.lstsq(rows[:, 1:], seconds, rcond=None)[0]
    return {
        "prefill_tokens_per_s": round(1 / a, 1),
        "prefill_half_context": round(a / b) if b > 0 else None,
        "chunk_overhead_s": round(float(f), 4),
    }


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
    if len(times) < 8:  # it had little to say: no figure
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
