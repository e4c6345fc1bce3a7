"""Three MCP clients over stdio, three roles, one host."""

from __future__ import annotations

import contextlib
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import psutil
import pytest
from mcp import Client

from rolecall.config.home import Home
from rolecall.server.connect import lock_holder
from rolecall.server.host.control import ControlClient
from tests.bench.stage import percentile

from .conftest import Tell, connected

pytestmark = [pytest.mark.live, pytest.mark.anyio]

COUNT = 60
SAMPLE_EVERY_S = 0.25
COLOURS = ("red", "green", "blue", "black", "white", "yellow", "brown", "grey", "orange", "purple")
FACTS = (
    "The north depot opens at 07:00 and closes at 19:00. Deliveries need a code. The code changes every Monday.",
    "The harbour crane lifts at most 43 tonnes. It was built in 1974. It is inspected every May by two engineers.",
    "The bakery sells forty loaves a day. Half of them are rye. The oven is heated with beech wood from the valley.",
)


def tool_call(client: int, number: int) -> tuple[str, dict[str, Any]]:
    """The client's n-th request. Every client asks all three roles, each starting with another."""
    subject = COLOURS[(client * 7 + number) % len(COLOURS)]
    match (client + number) % 3:
        case 0:
            return "reason", {"question": f"Name a thing that is {subject}, number {number}."}
        case 1:
            return "code", {"task": f"Write a function that returns '{subject}{number}'.", "language": "python"}
        case _:
            text = f"Note {number}, filed under {subject}. " + FACTS[number % len(FACTS)]
            return "summarize", {"text": text, "max_words": 30}


@pytest.mark.soak
async def test_three_clients_with_three_roles_are_all_answered_within_the_budget(
    staffed: Home, tmp_path: Path, tell: Tell
) -> None:
    staffed.settings_file.write_text("profile: starter\n")
    latency_s: list[float] = []
    roles: set[str] = set()
    samples: list[tuple[int, dict[str, Any]]] = []
    done = anyio.Event()

    async def one(client: int, ask: Client) -> None:
        for number in range(COUNT // 3):
            tool, arguments = tool_call(client, number)
            start = time.monotonic()
            result = await ask.call_tool(tool, arguments)
            latency_s.append(time.monotonic() - start)
            assert not result.is_error, result.content
            assert (result.structured_content or {})["answer"]
            roles.add((result.meta or {})["rolecall/cost"].get("role"))

    async with AsyncExitStack() as stack:
        asks = [await stack.enter_async_context(connected(tmp_path)) for _ in range(3)]
        control = await stack.enter_async_context(ControlClient.open(staffed))
        host = psutil.Process(lock_holder(staffed))

        async def sample() -> None:
            while not done.is_set():
                samples.append((await anyio.to_thread.run_sync(worker_bytes, host), await control.call("memory")))
                with anyio.move_on_after(SAMPLE_EVERY_S):
                    await done.wait()

        async with anyio.create_task_group() as group:
            group.start_soon(sample)
            async with anyio.create_task_group() as clients:
                for client, ask in enumerate(asks):
                    clients.start_soon(one, client, ask)
            done.set()

    assert len(latency_s) == COUNT and roles == {"reasoning", "coding", "summarization"}
    for held_bytes, memory in samples:
        assert memory["measured_bytes"] <= memory["reserved_bytes"] <= memory["budget_bytes"]
        assert held_bytes <= memory["budget_bytes"]
    tell(
        f"{COUNT} requests of 3 clients to 3 roles, all answered: p50 {percentile(latency_s, 50):.1f} s, "
        f"p95 {percentile(latency_s, 95):.1f} s; in {len(samples)} samples the workers held at most "
        f"{max(held for held, _ in samples) / 1e9:.2f} GB, reserved "
        f"{max(memory['reserved_bytes'] for _, memory in samples) / 1e9:.2f} GB, "
        f"of a budget of {samples[-1][1]['budget_bytes'] / 1e9:.2f} GB"
    )


def worker_bytes(host: psutil.Process) -> int:
    """What the host's worker processes hold now: each page counted once where the system can tell (PSS), else the
    resident size. Blocking."""
    total = 0
    for child in host.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if "rolecall.roles.worker" in child.cmdline():
                info = child.memory_full_info()
                total += getattr(info, "pss", 0) or info.rss
    return total
