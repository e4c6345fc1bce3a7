"""Pins at run time, and what the manager says of memory."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from rolecall.roles.contract import Role
from rolecall.roles.errors import RoleError
from tests.roles.farm import ask, managing, staff, until
from tests.roles.tiny import CODING, HEAVY, REASONING, ROUTER, home_with

pytestmark = pytest.mark.anyio


async def test_a_pinned_model_is_loaded_and_kept_until_it_is_unpinned(tmp_path: Path) -> None:
    async with managing(home_with(tmp_path, REASONING, CODING, HEAVY), staff(), budget_gb=0.95) as (manager, farm):
        assert (await manager.pin("coding", True)).pinned
        await manager.generate(Role.REASONING, ask())
        await manager.generate(Role.REASONING_HEAVY, ask())
        await manager.generate(Role.REASONING, ask())
        assert {line.model for line in manager.resident()} == {CODING, REASONING}
        assert not (await manager.pin("coding", False)).pinned
        await manager.generate(Role.REASONING_HEAVY, ask())
        assert len(farm.alive(CODING)) == 0
        assert (await manager.pin(CODING, False)).pid == 0  # nothing is loaded for it


async def test_a_model_that_is_alone_on_disk_may_be_pinned_and_the_profiles_pin_stays(tmp_path: Path) -> None:
    async with managing(home_with(tmp_path, ROUTER), staff(), budget_gb=0.5) as (manager, _):
        assert (await manager.pin("router", True)).pinned
        with pytest.raises(RoleError, match=r"pinned by the profile.*`pinned: false`"):
            await manager.pin("validation", False)


async def test_a_user_may_unload_what_is_pinned(tmp_path: Path) -> None:
    async with managing(home_with(tmp_path, CODING), staff()) as (manager, _):
        await manager.pin("coding", True)
        assert await manager.unload("coding") and manager.resident() == ()


async def test_memory_counts_what_is_reserved_measured_and_left_by_others(tmp_path: Path) -> None:
    async with managing(home_with(tmp_path, CODING), staff()) as (manager, farm):
        farm.measured[CODING], farm.others_bytes = 350_000_000, 50_000_000_000
        await manager.load("coding")
        seen = manager.memory()
        assert seen.measured_bytes == 350_000_000 and seen.reserved_bytes == manager.resident()[0].reserved_bytes
        assert (seen.budget_bytes, seen.configured_bytes) == (96_000_000_000, 96_000_000_000)
        assert (seen.machine_bytes, seen.available_bytes) == (200_000_000_000, 149_650_000_000)


async def test_resident_says_how_many_wait(tmp_path: Path) -> None:
    async with managing(home_with(tmp_path, REASONING), staff()) as (manager, farm), anyio.create_task_group() as group:
        for n in range(3):
            group.start_soon(manager.generate, Role.REASONING, ask(f"wait {n}"))
        await until(lambda: farm.order)
        await anyio.wait_all_tasks_blocked()
        assert [(line.in_use, line.queued) for line in manager.resident()] == [(1, 2)]
        farm.gate.set()
