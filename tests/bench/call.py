"""A role call through Rolecall over mlx-lm called directly: what it adds to a token, and before the prefill.

Same prompt, greedy sampling, same matrix library; the engines take turns in every round. `stream` is mlx-lm's
`stream_generate`, `batch` its `BatchGenerator`, which Rolecall's workers use too.
"""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

import anyio

from rolecall.config.home import Home
from rolecall.roles.contract import Role
from rolecall.roles.manager import ModelManager
from rolecall.roles.starter import TEXT_FP32

from .stage import (
    Clock,
    models_folder,
    peer_process,
    question,
    request,
    rolecall_client,
    show,
    spread,
    starter_home,
    starter_settings,
    story,
)

MAX_TOKENS = 96


def main(rounds: int) -> None:
    pipe = subprocess.PIPE
    arguments = ["-m", "tests.bench.direct", str(models_folder() / TEXT_FP32)]
    with starter_home() as home, peer_process(arguments, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as peer:
        figures = anyio.run(_rounds, home, peer, rounds)
    with starter_home() as home:
        figures |= anyio.run(_tool_path, home, rounds)
    over = {engine: figures["decode_over"][engine]["median"] for engine in ("stream", "batch")}
    lines = [
        f"a role call, {rounds} rounds of {MAX_TOKENS} tokens; bound: under 5% of decode time and "
        "under 30 ms before prefill",
        f"decode, ms per token: Rolecall {figures['ms_per_token']['rolecall']['median']:.2f}, "
        f"stream_generate {figures['ms_per_token']['stream']['median']:.2f}, "
        f"BatchGenerator {figures['ms_per_token']['batch']['median']:.2f}",
        f"over stream_generate {over['stream'] - 1:+.1%}, over BatchGenerator {over['batch'] - 1:+.1%} "
        f"(medians of the rounds' ratios); same text in {figures['same_text']} of {rounds}",
        f"before prefill: {figures['before_prefill_ms']['median']:.1f} ms",
        f"the tool `reason` over stdio: {figures['tool_beside_model_ms']['median']:.0f} ms beside queue, prefill and "
        "decode (routing, prompt, checks and the receipt; client, shim and host)",
    ]
    show("call", lines, figures)


async def _rounds(home: Home, peer: Any, rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"rolecall": [], "stream": [], "batch": []}
    before_s: list[float] = []
    same = 0
    async with ModelManager(home, starter_settings(home)) as manager:
        await manager.generate(Role.REASONING, request("Say yes.", 4))
        for engine in ("stream", "batch"):
            _direct(peer, engine, "Say yes.", 8)
        for number in range(rounds):
            prompt = story(number)
            texts = []
            for engine in _turned(["rolecall", "stream", "batch"], number):
                if engine == "rolecall":
                    clock = Clock()
                    result = await manager.generate(Role.REASONING, request(prompt, MAX_TOKENS), clock.on_event)
                    before_s.append(clock.prefilled_s - result.prefill_s)
                    seconds[engine].append(clock.per_token_s)
                    texts.append(result.text)
                else:
                    answer = _direct(peer, engine, prompt, MAX_TOKENS)
                    seconds[engine].append(answer["per_token_s"])
                    texts.append(answer["text"])
            same += len({text.strip() for text in texts}) == 1
    return {
        "rounds": rounds,
        "ms_per_token": {name: spread([value * 1e3 for value in values]) for name, values in seconds.items()},
        "decode_over": {
            engine: spread([ours / theirs for ours, theirs in zip(seconds["rolecall"], seconds[engine], strict=True)])
            for engine in ("stream", "batch")
        },
        "before_prefill_ms": spread([value * 1e3 for value in before_s]),
        "same_text": same,
    }


def _direct(peer: Any, engine: str, text: str, max_tokens: int) -> dict[str, Any]:
    asked = {"engine": engine, "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens}
    peer.stdin.write(json.dumps(asked).encode() + b"\n")
    peer.stdin.flush()
    answer: dict[str, Any] = json.loads(peer.stdout.readline())
    return answer


def _turned(names: list[str], by: int) -> list[str]:
    by %= len(names)
    return names[by:] + names[:by]


async def _tool_path(home: Home, rounds: int) -> dict[str, Any]:
    beside_s = []
    async with rolecall_client(home) as ask:
        for number in range(rounds + 1):
            start = time.perf_counter()
            found = await ask.call_tool("reason", {"question": question(number)})
            taken_s = time.perf_counter() - start
            cost: dict[str, Any] = (found.meta or {})["rolecall/cost"]
            if number:  # the first one loads the model
                beside_s.append(taken_s - sum(cost[part] for part in ("queue_s", "load_s", "prefill_s", "decode_s")))
    return {"tool_beside_model_ms": spread([value * 1e3 for value in beside_s], 1)}
