"""The manager with real workers on the starter models."""

from __future__ import annotations

import os
import signal
import time

import anyio
import numpy as np
import psutil
import pytest

from rolecall.config.home import Home
from rolecall.config.settings import Settings, load_settings
from rolecall.roles.contract import Event, Generated, GenerationRequest, Message, Role
from rolecall.roles.errors import WorkerDied
from rolecall.roles.footprint import footprints
from rolecall.roles.manager import ModelManager
from rolecall.roles.starter import TEXT_4BIT, TEXT_FP32

pytestmark = [pytest.mark.live, pytest.mark.anyio]
PATIENCE_S = 240.0


def settings_for(home: Home, budget_gb: float | None = None, **roles: str) -> Settings:
    """The starter profile with one slot per role; `roles` puts other models into some."""
    settings = load_settings(home, profile="starter")
    changed = {
        name: spec.model_copy(update={"context_length": 1024, "concurrency": 1, "model": roles.get(name, spec.model)})
        for name, spec in settings.profile.roles.items()
    }
    memory = settings.memory.model_copy(update={"budget_gb": budget_gb})
    host = settings.host.model_copy(update={"spare_worker": False})
    profile = settings.profile.model_copy(update={"roles": changed})
    return settings.model_copy(update={"profile": profile, "memory": memory, "host": host})


def ask(text: str, max_tokens: int = 16) -> GenerationRequest:
    return GenerationRequest(messages=(Message(role="user", content=text),), max_tokens=max_tokens)


async def test_three_roles_share_one_process_that_dies_alone_and_is_replaced(starter_home: Home) -> None:
    killed_at = 0.0
    with anyio.fail_after(PATIENCE_S):
        async with ModelManager(starter_home, settings_for(starter_home)) as manager:
            first = await manager.generate(Role.ROUTER, ask("What is the capital of France?"))
            assert "Paris" in first.text and first.cold_start and first.load_s > 0
            again = await manager.generate(Role.CODING, ask("What is the capital of France?"))
            assert (again.text, again.cold_start) == (first.text, False)
            vectors = await manager.embed(["a cat", "a kitten", "a tax form"])
            assert vectors.shape == (3, 384) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
            text, embedder = sorted(manager.resident(), key=lambda line: line.roles != (
                "router", "reasoning", "coding", "coding_large_context", "summarization", "validation"
            ))  # fmt: skip
            assert embedder.roles == ("embedder",)
            assert 0 < text.measured_bytes <= text.reserved_bytes
            assert 0 < embedder.measured_bytes <= embedder.reserved_bytes

            decoding = anyio.Event()

            def watch(event: Event) -> None:
                if isinstance(event, Generated):
                    decoding.set()

            async def kill() -> None:
                nonlocal killed_at
                await decoding.wait()
                killed_at = time.monotonic()
                os.kill(text.pid, signal.SIGKILL)

            async with anyio.create_task_group() as group:
                group.start_soon(kill)
                with pytest.raises(WorkerDied, match=r"SIGKILL"):
                    await manager.generate(Role.REASONING, ask("Count to five hundred.", 300), watch)
            assert time.monotonic() - killed_at < 2.0
            assert psutil.pid_exists(embedder.pid)
            third = await manager.generate(Role.ROUTER, ask("What is the capital of France?"))
            assert third.text == first.text and third.cold_start
            pids = [line.pid for line in manager.resident()]
        assert not any(psutil.pid_exists(pid) for pid in [text.pid, *pids])


async def test_a_small_budget_holds_one_of_two_models_at_a_time(starter_home: Home) -> None:
    settings = settings_for(starter_home, 1.6, coding=TEXT_4BIT)
    unpinned = {name: spec.model_copy(update={"pinned": False}) for name, spec in settings.profile.roles.items()}
    settings = settings.model_copy(update={"profile": settings.profile.model_copy(update={"roles": unpinned})})
    with anyio.fail_after(PATIENCE_S):
        async with ModelManager(starter_home, settings) as manager:
            for role, model in ((Role.CODING, TEXT_4BIT), (Role.REASONING, TEXT_FP32)):
                assert (await manager.generate(role, ask("Say yes.", 2))).model == model
                (line,) = manager.resident()
                assert line.model == model and line.reserved_bytes <= manager.budget_bytes


async def test_predicted_bytes_are_the_measured_ones(starter_home: Home) -> None:
    sizes = footprints(starter_home, [TEXT_FP32, TEXT_4BIT])
    assert (sizes[TEXT_FP32].weights_bytes, sizes[TEXT_FP32].kv_bytes_per_token) == (538_060_032, 45 * 1024)
    assert sizes[TEXT_4BIT].source == "measured"
    assert sizes[TEXT_4BIT].kv_bytes_per_token == 45 * 1024  # its norms are float32, and so its cache is
