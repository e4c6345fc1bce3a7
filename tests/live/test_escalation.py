"""The starter votes on a task type: exactly, twice alike, with what the seven prompts share prefilled once."""

from __future__ import annotations

import time

import anyio
import pytest

from rolecall.config.home import Home
from rolecall.config.settings import load_settings
from rolecall.roles.manager import ModelManager
from rolecall.server.routing.contract import TaskType
from rolecall.server.routing.escalate import vote

from .conftest import Tell

pytestmark = [pytest.mark.live, pytest.mark.anyio]
PATIENCE_S = 240.0


@pytest.mark.soak
async def test_a_vote_is_the_same_whatever_is_in_the_prefix_cache(starter_home: Home, tell: Tell) -> None:
    texts = ("the table again but true", "find what is wrong with it, and why", "the table again but true")
    with anyio.fail_after(PATIENCE_S):
        async with ModelManager(starter_home, load_settings(starter_home, profile="starter")) as models:
            await models.load("router")
            votes, seconds = [], []
            for text in texts:
                began = time.perf_counter()
                votes.append(await vote(models, text))
                seconds.append(f"{time.perf_counter() - began:.1f} s")
    tell(f"a vote of the starter: {', '.join(seconds)}")
    assert votes[0] == votes[2]
    assert all(isinstance(each, dict) and set(each) == set(TaskType) for each in votes)
    assert votes[0] != votes[1]
