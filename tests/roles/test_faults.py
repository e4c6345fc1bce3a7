"""What goes wrong with workers, folders and clocks: typed errors, nothing leaked, and the next call works."""

from __future__ import annotations

import shutil
from pathlib import Path

import anyio
import pytest

from rolecall.roles.contract import Role
from rolecall.roles.errors import ModelMissing, RoleError, WorkerDied
from rolecall.roles.pooled import Phase
from tests.roles.farm import Farm, ask, managing, pooled, pooling, staff, until, use
from tests.roles.tiny import CODING, ROUTER, home_with
from tests.simulate.clock import on_a_clock


@pytest.mark.anyio
async def test_a_folder_that_vanishes_matters_only_to_the_next_load(tmp_path: Path) -> None:
    home = home_with(tmp_path, CODING)
    async with managing(home, staff()) as (manager, _):
        await manager.load(CODING)
        shutil.rmtree(home.models / CODING)
        async with anyio.create_task_group() as group:
            group.start_soon(manager.generate, Role.CODING, ask())  # no longer on disk, and still there
        assert await manager.unload(CODING)
        with pytest.raises(ModelMissing, match=f"rolecall models pull {CODING}"):
            await manager.load(CODING)


@pytest.mark.parametrize("moment", ["load", "work", "unload"])
@on_a_clock
async def test_a_worker_killed_at_any_moment_is_a_typed_error_and_leaks_nothing(moment: str) -> None:
    farm, errors = Farm(), list[RoleError]()
    one, sibling = pooled("one"), pooled("sibling")
    async with pooling(farm, 100, one, sibling) as pool, anyio.create_task_group() as group:
        await use(pool, "sibling")

        async def call() -> None:
            try:
                await use(pool, "one", "wait")
            except RoleError as error:
                errors.append(error)

        if moment == "load":
            farm.load_gate = anyio.Event()
        group.start_soon(call)
        await until(lambda: farm.alive("one"))
        if moment == "unload":
            farm.gate.set()
            await until(lambda: farm.order[1:] and not one.active)
            group.start_soon(pool.unload, one)
            await until(lambda: one.phase is Phase.ENDING)
        else:
            await until(lambda: moment == "load" or farm.order[1:])
        farm.alive("one")[0].exited.set()
        await one.gone.wait()
        await until(lambda: errors or moment == "unload")
        farm.load_gate.set()
        assert (one.phase, sibling.phase, pool.reserved_bytes) == (Phase.ABSENT, Phase.READY, 10)
        assert [type(error) for error in errors] == ([] if moment == "unload" else [WorkerDied])
        farm.gate.set()
        await use(pool, "one")
        assert farm.alive("sibling") and len(farm.alive("one")) == 1


@on_a_clock
async def test_an_hour_that_passes_at_once_ends_what_is_idle_and_nothing_else() -> None:
    farm = Farm()
    names = {"kept": 0.0, "idle": 600.0, "busy": 600.0}
    models = [pooled(name, idle_ttl_s=ttl, timeout_s=7200.0) for name, ttl in names.items()]
    models.append(pooled("router", pinned=True, idle_ttl_s=600.0))
    async with pooling(farm, 100, *models) as pool, anyio.create_task_group() as group:
        for name in ("router", "kept", "idle"):
            await use(pool, name)
        group.start_soon(use, pool, "busy", "wait")
        await anyio.sleep(3600)
        phases = {name: model.phase.value for name, model in pool.models.items()}
        assert phases == {"router": "ready", "kept": "ready", "idle": "absent", "busy": "ready"}
        assert [event.model for event in farm.events if event.kind == "idle"] == ["idle"]
        farm.gate.set()


@pytest.mark.anyio
async def test_events_say_what_was_loaded_for_whom_and_how_it_went(tmp_path: Path) -> None:
    async with managing(home_with(tmp_path, ROUTER, CODING), staff(), budget_gb=0.95) as (manager, farm):
        manager.preload(Role.ROUTER)
        await until(lambda: farm.events)
        await manager.generate(Role.CODING, ask())
        await manager.unload(CODING)
        await manager.load(CODING)
        farm.alive(CODING)[0].exited.set()
        await until(lambda: len(farm.events) == 5)
        seen = [(event.kind, event.model, event.cold) for event in farm.events]
        assert seen == [
            ("loaded", ROUTER, False),
            ("loaded", CODING, True),
            ("unloaded", CODING, False),
            ("loaded", CODING, True),
            ("died", CODING, False),
        ]


@pytest.mark.parametrize("limit", [1, 2])
@on_a_clock
async def test_a_load_whose_callers_left_is_nobodys_and_gives_way(limit: int) -> None:
    farm = Farm()
    one, two = pooled("one", 60), pooled("two", 60)
    async with pooling(farm, 100, one, two) as pool:
        farm.load_gate = anyio.Event()
        with anyio.move_on_after(limit):
            await use(pool, "one")
        assert one.phase is Phase.LOADING
        async with anyio.create_task_group() as group:
            group.start_soon(use, pool, "two")
            await one.gone.wait()
            farm.load_gate.set()
        assert two.phase is Phase.READY


@on_a_clock
async def test_what_is_loaded_ahead_an_hour_after_its_last_use_is_not_idle_at_once() -> None:
    farm, model = Farm(), pooled("m", idle_ttl_s=600.0)
    async with pooling(farm, 100, model) as pool:
        await use(pool, "m")
        await anyio.sleep(3600)
        assert model.phase is Phase.ABSENT
        pool.preload(model)
        await anyio.sleep(60)
        assert model.phase is Phase.READY
