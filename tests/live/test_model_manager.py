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
from rolecall.roles.contract import Event, Generated, GenerationRequest, Message, ModelEvent, Role
from rolecall.roles.errors import WorkerDied
from rolecall.roles.manager import ModelManager
from rolecall.roles.starter import TEXT_4BIT, TEXT_FP32

pytestmark = [pytest.mark.live, pytest.mark.anyio]
PATIENCE_S = 240.0


def settings_for(home: Home, budget_gb: float, **roles: str) -> Settings:
    """The starter profile with one slot per role and none pinned; `roles` puts other models into some."""
    settings = load_settings(home, profile="starter")
    small = {"context_length": 1024, "concurrency": 1, "pinned": False}
    changed = {
        name: spec.model_copy(update={**small, "model": roles.get(name, spec.model)})
        for name, spec in settings.profile.roles.items()
    }
    memory = settings.memory.model_copy(update={"budget_gb": budget_gb})
    host = settings.host.model_copy(update={"spare_worker": False})
    profile = settings.profile.model_copy(update={"roles": changed})
    return settings.model_copy(update={"profile": profile, "memory": memory, "host": host})


def ask(text: str, max_tokens: int = 16) -> GenerationRequest:
    return GenerationRequest(messages=(Message(role="user", content=text),), max_tokens=max_tokens)


async def test_models_share_a_budget_and_a_process_that_dies_alone_and_is_replaced(starter_home: Home) -> None:
    """One manager through one life: every load of a model takes seconds here."""
    killed_at, events = 0.0, list[ModelEvent]()
    question = ask("What is the capital of France?")
    with anyio.fail_after(PATIENCE_S):
        settings = settings_for(starter_home, 1.6, coding=TEXT_4BIT)
        async with ModelManager(starter_home, settings, on_event=events.append) as manager:
            small = await manager.generate(Role.CODING, ask("Say yes.", 2))
            assert (small.model, small.cold_start, len(manager.resident())) == (TEXT_4BIT, True, 1)

            first = await manager.generate(Role.ROUTER, question)
            assert "Paris" in first.text and first.model == TEXT_FP32 and first.load_s > 0
            (text,) = manager.resident()  # the budget holds one of the two
            assert text.model == TEXT_FP32
            assert 0 < text.measured_bytes <= text.reserved_bytes <= manager.memory().budget_bytes
            again = await manager.generate(Role.VALIDATION, question)
            assert (again.text, again.cold_start) == (first.text, False)
            paris, london = await manager.score_labels(Role.ROUTER, question.messages, ["The capital", "No capital"])
            assert london < paris < 0.0
            digits = question.model_copy(update={"regex": "[0-9]{3}"})
            assert (await manager.generate(Role.ROUTER, digits)).text.isdigit()

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
                with pytest.raises(WorkerDied, match="signal 9"):
                    await manager.generate(Role.REASONING, ask("Count to five hundred.", 300), watch)
            assert time.monotonic() - killed_at < 2.0

            vectors = await manager.embed(["a cat", "a kitten", "a tax form"])
            assert vectors.shape == (3, 384) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
            (embedder,) = manager.resident()
            assert embedder.roles == ("embedder",) and 0 < embedder.measured_bytes <= embedder.reserved_bytes
            third = await manager.generate(Role.ROUTER, question)
            assert third.text == first.text and third.cold_start
            pids = [line.pid for line in manager.resident()]
        assert {event.kind for event in events} == {"loaded", "evicted", "died", "unloaded"}
        assert all(event.size_bytes > 0 for event in events if event.kind == "loaded")
        assert not any(psutil.pid_exists(pid) for pid in [text.pid, embedder.pid, *pids])


@pytest.mark.soak
async def test_two_long_requests_have_more_kv_reserved_which_another_models_load_takes_back(
    starter_home: Home,
) -> None:
    document = "The harbour was quiet and the ferry left at nine. " * 160  # about 1,900 tokens
    settings = settings_for(starter_home, 4.0, coding=TEXT_4BIT)
    roles = {
        name: spec.model_copy(update={"context_length": 4096, "concurrency": 2})
        for name, spec in settings.profile.roles.items()
    }
    settings = settings.model_copy(update={"profile": settings.profile.model_copy(update={"roles": roles})})
    with anyio.fail_after(PATIENCE_S):
        async with ModelManager(starter_home, settings) as manager:
            await manager.load("router")
            (alone,) = manager.resident()
            async with anyio.create_task_group() as group:
                for number in (1, 2):
                    group.start_soon(manager.generate, Role.ROUTER, ask(f"{document} Question {number}: when?"))
            (grown,) = manager.resident()
            more_bytes = grown.reserved_bytes - alone.reserved_bytes
            assert more_bytes > 0 and more_bytes % (256 * 45 * 1024) == 0
            assert grown.measured_bytes <= grown.reserved_bytes
            other = await manager._model(TEXT_4BIT)
            manager._pool.limit(grown.reserved_bytes + other.base_bytes - 1)
            again = await manager.generate(Role.ROUTER, ask(f"{document} Question 3: when?"))
            assert again.cached_tokens > 0.9 * again.prompt_tokens, "what was grown serves as prefix cache"
            await manager.generate(Role.CODING, ask("Say yes.", 2))
            first, second = manager.resident()
            assert first.reserved_bytes == grown.reserved_bytes - 256 * 45 * 1024 and first.pid == grown.pid
            assert first.reserved_bytes + second.reserved_bytes <= manager.memory().budget_bytes
