"""A role's engines are asked in order: the next answers where one is not there or cannot, and the result says so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from rolecall.config.settings import EndpointSettings
from rolecall.roles.contract import Message, Role
from rolecall.roles.errors import EndpointUnavailable, SchemaRefused, WorkerDied
from rolecall.roles.manager import ModelManager
from tests.roles.farm import PATIENCE_S, Farm, ask, settings_for, staff
from tests.roles.openai_server import STREAM, Server, event, respond, says, serving
from tests.roles.tiny import REASONING, home_with

pytestmark = pytest.mark.anyio
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Paris"]}}, "required": ["city"]}


@asynccontextmanager
async def engines(path: Path, server: Server, *names: str) -> AsyncIterator[tuple[ModelManager, Farm]]:
    """A manager whose role `reasoning` has these engines; `big` is the server."""
    profile = staff()
    spec = profile.roles["reasoning"].model_copy(update={"engines": names, "repetition_penalty": 1.1})
    profile = profile.model_copy(update={"roles": {**profile.roles, "reasoning": spec}})
    home = home_with(path, REASONING)
    big = EndpointSettings(url=server.url, model="tiny")
    farm = Farm()
    farm.load_gate.set()
    settings = settings_for(home, profile, 96.0).model_copy(update={"endpoints": {"big": big}})
    with anyio.fail_after(6 * PATIENCE_S):
        async with ModelManager(home, settings, farm.start, machine=farm) as manager:
            farm.manager = manager
            yield manager, farm


async def test_the_first_engine_answers_with_the_roles_own_settings(tmp_path: Path) -> None:
    async with serving() as server, engines(tmp_path, server, "big", "mlx") as (manager, farm):
        result = await manager.generate(Role.REASONING, ask())
        assert farm.workers == []

    assert (result.text, result.model, result.role, result.degraded) == ("Paris.", "tiny", Role.REASONING, "")
    assert server.streamed[0]["repetition_penalty"] == 1.1


async def test_the_worker_answers_where_the_server_is_gone(tmp_path: Path) -> None:
    async with serving() as server:
        pass
    async with engines(tmp_path, server, "big", "mlx") as (manager, _):
        result = await manager.generate(Role.REASONING, ask())

    assert result.model == REASONING
    assert "'big' is not there" in result.degraded


async def test_the_server_answers_where_the_model_is_not_on_disk(tmp_path: Path) -> None:
    async with serving() as server, engines(tmp_path, server, "mlx", "big") as (manager, _):
        (tmp_path / "home" / "models" / REASONING / "config.json").unlink()
        result = await manager.generate(Role.REASONING, ask())
        assert {info.role: info.present for info in manager.roles()}[Role.REASONING]

    assert result.model == "tiny" and REASONING in result.degraded


async def test_a_schema_and_labels_go_to_the_engine_that_does_them(tmp_path: Path) -> None:
    async with serving(enforces=False) as server, engines(tmp_path, server, "big", "mlx") as (manager, farm):
        farm.answer = ('{"city": "Paris"}', "stop")
        result = await manager.generate(Role.REASONING, ask(json_schema=SCHEMA))
        scores = await manager.score_labels(Role.REASONING, [Message(role="user", content="?")], ["Paris", "Rome"])

    assert (result.text, result.model) == ('{"city": "Paris"}', REASONING)
    assert "not enforced" in result.degraded
    assert scores == (-0.1, -3.0)


async def test_without_another_engine_the_servers_refusal_or_absence_is_the_error(tmp_path: Path) -> None:
    async with serving(enforces=False) as server, engines(tmp_path, server, "big") as (manager, _):
        with pytest.raises(SchemaRefused, match="not enforced"):
            await manager.generate(Role.REASONING, ask(json_schema=SCHEMA))
        server.faults = [says(respond(404, b"{}"))]
        with pytest.raises(EndpointUnavailable, match="status 404"):
            await manager.generate(Role.REASONING, ask())


async def test_an_answer_that_breaks_off_is_not_begun_again_by_another_engine(tmp_path: Path) -> None:
    cut = says(STREAM + event(content="It is"))
    async with serving(faults=[cut]) as server, engines(tmp_path, server, "big", "mlx") as (manager, farm):
        with pytest.raises(WorkerDied, match="broke off"):
            await manager.generate(Role.REASONING, ask())
        assert farm.workers == []
