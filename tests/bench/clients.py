"""Four clients through Rolecall, and four against `mlx_lm.server`: the same prompts, model and matrix library.

Two ways into Rolecall: the model manager, and the tool `reason` over stdio with a shim per client. Both servers run
throughout and are idle while the other works; each client asks its questions one after another.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.to_thread

from rolecall.config.home import Home
from rolecall.config.prompts import prompt
from rolecall.roles.contract import GenerationRequest, Message, Role
from rolecall.roles.manager import ModelManager
from rolecall.roles.starter import TEXT_FP32

from .stage import (
    chat,
    mlx_server,
    models_folder,
    percentile,
    question,
    request,
    rolecall_client,
    show,
    spread,
    starter_home,
    starter_settings,
    story,
)

CLIENTS = 4
QUESTIONS = 2  # of each client in a round
MAX_TOKENS = 48
TOOL_TOKENS = 128
CONFIG = f"""profile: starter
roles:
  reasoning: {{concurrency: {CLIENTS}, max_tokens: {TOOL_TOKENS}, context_length: 1024, repetition_penalty: 1.0,
    timeout_s: 600.0}}
"""


@dataclass
class Side:
    """One server's rounds: seconds of each question, tokens per second of each round."""

    latency_s: list[float] = field(default_factory=list)
    tokens_per_s: list[float] = field(default_factory=list)


Ask = Callable[[int, int], Awaitable[int]]
"""(client, number of the question) to the tokens made."""


def main(rounds: int) -> None:
    figures: dict[str, Any] = {"clients": CLIENTS, "rounds": rounds, "max_tokens": MAX_TOKENS}
    server = mlx_server(models_folder() / TEXT_FP32, "--decode-concurrency", str(CLIENTS))
    with server as port, starter_home(CONFIG) as home:
        figures["manager"] = anyio.run(_through_manager, home, port, rounds)
        figures["tool"] = anyio.run(_through_tools, home, port, rounds)
    lines = [f"{CLIENTS} clients at once, {rounds} rounds of {CLIENTS * QUESTIONS} answers"]
    for way, words in (("manager", "through the model manager"), ("tool", "through `reason` over stdio")):
        side = figures[way]
        each = "; ".join(
            f"{name} {side[key]['tokens_per_s']['median']:.1f} tokens/s, p50 {side[key]['p50_s']:.2f} s"
            for key, name in (("rolecall", "Rolecall"), ("mlx_lm_server", "mlx_lm.server"))
        )
        ratios = f"ratios: tokens/s {side['tokens_per_s_ratio']:.2f}, p50 {side['p50_ratio']:.2f}"
        lines.append(f"{words}: {each}; {ratios}")
    show("clients", lines, figures)


async def _through_manager(home: Home, port: int, rounds: int) -> dict[str, Any]:
    settings = starter_settings(home, concurrency=CLIENTS, context_length=1024)
    async with ModelManager(home, settings) as manager:

        async def ours(client: int, number: int) -> int:
            asked = _request(client, number)
            return (await manager.generate(Role.REASONING, asked)).completion_tokens

        async def theirs(client: int, number: int) -> int:
            messages = _request(client, number).messages
            return (await anyio.to_thread.run_sync(chat, port, messages, MAX_TOKENS))[2]

        return await _rounds(ours, theirs, rounds)


async def _through_tools(home: Home, port: int, rounds: int) -> dict[str, Any]:
    asked_again: list[int] = []
    async with AsyncExitStack() as stack:
        asks = [await stack.enter_async_context(rolecall_client(home)) for _ in range(CLIENTS)]

        async def ours(client: int, number: int) -> int:
            found = await asks[client].call_tool("reason", {"question": question(number * CLIENTS + client)})
            cost: dict[str, Any] = (found.meta or {})["rolecall/cost"]
            asked_again.append(cost["model_calls"] - 1)
            return int(cost["completion_tokens"])

        async def theirs(client: int, number: int) -> int:
            system, user = prompt("answer").render(question=question(number * CLIENTS + client))
            messages = (Message(role="system", content=system), Message(role="user", content=user))
            return (await anyio.to_thread.run_sync(chat, port, messages, TOOL_TOKENS))[2]

        return {**await _rounds(ours, theirs, rounds), "asked_again": sum(asked_again)}


async def _rounds(ours: Ask, theirs: Ask, rounds: int) -> dict[str, Any]:
    sides = {"rolecall": Side(), "mlx_lm_server": Side()}
    for ask in (ours, theirs):  # loads
        await ask(0, 0)
    for number in range(rounds):
        order = [("rolecall", ours), ("mlx_lm_server", theirs)]
        for name, ask in order if number % 2 else reversed(order):
            await _round(sides[name], ask, 1 + number * QUESTIONS)
    mine, other = sides["rolecall"], sides["mlx_lm_server"]
    figures: dict[str, Any] = {
        name: {"tokens_per_s": spread(side.tokens_per_s), "p50_s": round(percentile(side.latency_s, 50), 3)}
        for name, side in sides.items()
    }
    each = [a / b for a, b in zip(mine.tokens_per_s, other.tokens_per_s, strict=True)]
    p50 = [percentile(side.latency_s, 50) for side in (mine, other)]
    return figures | {"tokens_per_s_ratio": round(statistics.median(each), 3), "p50_ratio": round(p50[0] / p50[1], 3)}


async def _round(side: Side, ask: Ask, first: int) -> None:
    made = 0

    async def client(client: int) -> None:
        nonlocal made
        for number in range(first, first + QUESTIONS):
            start = time.perf_counter()
            tokens = await ask(client, number)
            made += tokens  # not in one statement: that would read it before the wait
            side.latency_s.append(time.perf_counter() - start)

    start = time.perf_counter()
    async with anyio.create_task_group() as group:
        for number in range(CLIENTS):
            group.start_soon(client, number)
    side.tokens_per_s.append(made / (time.perf_counter() - start))


def _request(client: int, number: int) -> GenerationRequest:
    return request(story(number * CLIENTS + client), MAX_TOKENS, client=f"client {client}")
