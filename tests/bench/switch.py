"""Switching to a second model where memory holds one: Rolecall against a server process per model, started cold.

Rolecall ends the first model, sees its memory come back, and loads the second into its spare process. The peer only
starts `mlx_lm.server` for the second model: ending the first one's server is not counted against it.
"""

from __future__ import annotations

import time
from typing import Any

import anyio
import anyio.to_thread

from rolecall.config.home import Home
from rolecall.roles.contract import Role
from rolecall.roles.manager import ModelManager
from rolecall.roles.starter import TEXT_4BIT, TEXT_FP32

from .stage import (
    PATIENCE_S,
    Clock,
    chat,
    mlx_server,
    models_folder,
    request,
    show,
    spread,
    starter_home,
    starter_settings,
    workers,
)

GB = 1e9
QUESTION = "Name a colour."


def main(rounds: int) -> None:
    with starter_home() as home:
        figures = anyio.run(_rounds, home, rounds)
    lines = [f"time to first token of a second model, {rounds} rounds; bound: at most half"]
    lines += [
        f"to {model}: Rolecall {row['rolecall_s']['median']:.2f} s, "
        f"server started cold {row['server_s']['median']:.2f} s, "
        f"ratio {row['ratio']['median']:.2f} ({row['ratio']['min']:.2f} to {row['ratio']['max']:.2f})"
        for model, row in figures["to"].items()
    ]
    show("switch", lines, figures)


async def _rounds(home: Home, rounds: int) -> dict[str, Any]:
    posts = {Role.REASONING: TEXT_FP32, Role.CODING: TEXT_4BIT}
    taken: dict[str, dict[str, list[float]]] = {model: {"rolecall_s": [], "server_s": []} for model in posts.values()}
    shape: dict[str, Any] = {"context_length": 1024, "concurrency": 1, "models": {"coding": TEXT_4BIT}}
    async with ModelManager(home, starter_settings(home, **shape)) as manager:
        sizes = [(await manager.load(role)).reserved_bytes for role in posts]
    budget_gb = (max(sizes) / GB + sum(sizes) / GB) / 2  # one, a spare process, and not two
    settings = starter_settings(home, budget_gb=budget_gb, spare=True, **shape)
    async with ModelManager(home, settings) as manager:
        await manager.load(Role.CODING)
        for _ in range(rounds):
            for role, model in posts.items():
                await _spare_ready()
                clock = Clock()
                await manager.generate(role, request(QUESTION, 2), clock.on_event)
                assert [line.model for line in manager.resident()] == [model]
                taken[model]["rolecall_s"].append(clock.first_token_s)
                taken[model]["server_s"].append(await anyio.to_thread.run_sync(_cold, model))
    return {
        "rounds": rounds,
        "budget_gb": round(budget_gb, 2),
        "to": {
            model: {
                **{name: spread(values) for name, values in row.items()},
                "ratio": spread([a / b for a, b in zip(row["rolecall_s"], row["server_s"], strict=True)]),
            }
            for model, row in taken.items()
        },
    }


def _cold(model: str) -> float:
    start = time.perf_counter()
    with mlx_server(models_folder() / model) as port:
        before_s = time.perf_counter() - start
        return before_s + chat(port, request(QUESTION, 2).messages, 2)[0]


async def _spare_ready() -> None:
    """Wait until the spare process idles: its imports are not part of a switch."""
    with anyio.fail_after(PATIENCE_S):
        while len(workers()) < 2:
            await anyio.sleep(0.05)
        while any(worker.cpu_percent(interval=None) or worker.cpu_percent(interval=0.3) for worker in workers()):
            await anyio.sleep(0.05)
