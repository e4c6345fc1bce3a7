"""The manager, over workers that are objects of `farm`."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from rolecall.config.profile import EncoderSpec
from rolecall.roles.contract import Event, Loading, Queued, Role
from rolecall.roles.errors import DoesNotFit, ModelCorrupt, ModelMissing, PromptTooLong, RoleError, WorkerTimeout
from rolecall.roles.staff import Staff
from tests.roles.farm import EMBEDDER, STARTER, ask, managing, staff, until
from tests.roles.tiny import CODING, HEAVY, REASONING, ROUTER, home_with, write_model

pytestmark = pytest.mark.anyio


async def test_roles_on_one_model_share_one_worker_and_the_answer_names_the_model(tmp_path: Path) -> None:
    async with managing(home_with(tmp_path, ROUTER), staff()) as (manager, farm):
        events: list[Event] = []
        first = await manager.generate(Role.ROUTER, ask(), events.append)
        second = await manager.generate(Role.VALIDATION, ask())
        assert (first.model, first.cold_start, second.cold_start) == (ROUTER, True, False)
        assert len(first.model_sha256) == 64 and first.degraded == ""
        assert len(farm.workers) == 1
        assert Loading(ROUTER, 64, 64) in events
        (line,) = manager.resident()
        assert (line.roles, line.pinned, line.in_use) == (("router", "validation"), True, 0)


async def test_the_idle_model_goes_when_the_next_does_not_fit_and_the_router_stays(tmp_path: Path) -> None:
    async with managing(home_with(tmp_path, ROUTER, REASONING, CODING), staff(), budget_gb=0.95) as (manager, farm):
        for role in (Role.ROUTER, Role.REASONING, Role.CODING, Role.REASONING):
            await manager.generate(role, ask())
            farm.check_budget()
        assert {line.model for line in manager.resident()} == {ROUTER, REASONING}
        assert len(farm.workers) == 4


async def test_a_model_in_use_is_waited_for(tmp_path: Path) -> None:
    async with (
        managing(home_with(tmp_path, REASONING, CODING), staff(), budget_gb=0.5) as (manager, farm),
        anyio.create_task_group() as group,
    ):
        group.start_soon(manager.generate, Role.REASONING, ask("wait"))
        await until(lambda: farm.order)
        group.start_soon(manager.generate, Role.CODING, ask("coding"))
        group.start_soon(manager.generate, Role.REASONING, ask("late"))
        await anyio.wait_all_tasks_blocked()
        assert farm.order == ["wait"]
        farm.gate.set()
        await until(lambda: len(farm.order) == 3)
        assert farm.order == ["wait", "coding", "late"]


async def test_a_load_that_hangs_ends_as_a_typed_error_and_the_next_call_starts_another(tmp_path: Path) -> None:
    async with managing(home_with(tmp_path, ROUTER), staff(), patience_s=3600) as (manager, farm):
        farm.hangs = True
        with pytest.raises(WorkerTimeout, match=r"did not finish loading.*after 600 s.*Ask again"):
            await manager.generate(Role.ROUTER, ask())
        assert 590 < farm.load_limit_s <= 600
        assert (await manager.generate(Role.ROUTER, ask())).cold_start
        assert len(farm.workers) == 2 and farm.workers[0].exited.is_set()


async def test_a_role_takes_no_more_at_once_than_its_concurrency_and_tells_the_others_their_place(
    tmp_path: Path,
) -> None:
    async with managing(home_with(tmp_path, CODING), staff()) as (manager, farm), anyio.create_task_group() as group:
        events: list[Event] = []
        for number in range(4):
            group.start_soon(manager.generate, Role.CODING, ask(f"wait {number}"), events.append)
        await until(lambda: len(farm.order) == 2)
        await anyio.wait_all_tasks_blocked()
        assert farm.order == ["wait 0", "wait 1"]
        assert {Queued(1), Queued(2)} <= set(events)
        farm.gate.set()
        await until(lambda: len(farm.order) == 4)
        assert farm.order[2:] == ["wait 2", "wait 3"]
        assert farm.most_at_once == 2


async def test_a_caller_that_is_cancelled_leaves_no_trace(tmp_path: Path) -> None:
    async with managing(home_with(tmp_path, REASONING), staff(), loads=False) as (manager, farm):
        for text in ("while loading", "wait", "behind"):
            async with anyio.create_task_group() as group:
                group.start_soon(manager.generate, Role.REASONING, ask(text))
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()
            farm.load_gate.set()
        assert (await manager.generate(Role.REASONING, ask())).model == REASONING
        assert [line.in_use for line in manager.resident()] == [0]


async def test_a_missing_model_is_stood_in_for_by_the_largest_present_one_with_the_command_that_gets_it(
    tmp_path: Path,
) -> None:
    async with managing(home_with(tmp_path, ROUTER, CODING), staff()) as (manager, _):
        answer = await manager.generate(Role.REASONING, ask())
        assert answer.model == ROUTER and answer.role is Role.REASONING
        assert f"rolecall models pull {REASONING}" in answer.degraded
        assert {info.role: info.present for info in manager.roles()}[Role.REASONING] is False


def test_a_stand_in_has_the_time_of_the_role_and_not_the_precedence_of_its_own(tmp_path: Path) -> None:
    spec, _ = Staff(home_with(tmp_path, ROUTER), staff()).post(Role.REASONING)
    assert (spec.model, spec.timeout_s, spec.pinned) == (ROUTER, 60.0, False)


async def test_the_starter_stands_in_before_anything_else_was_fetched(tmp_path: Path) -> None:
    async with managing(home_with(tmp_path, STARTER), staff()) as (manager, _):
        answer = await manager.generate(Role.CODING, ask())
        assert answer.model == STARTER and "rolecall models pull" in answer.degraded


async def test_with_no_model_at_all_the_error_holds_the_command(tmp_path: Path) -> None:
    async with managing(home_with(tmp_path), staff()) as (manager, farm):
        with pytest.raises(ModelMissing, match=f"rolecall models pull {REASONING}"):
            await manager.generate(Role.REASONING, ask())
        with pytest.raises(ModelMissing, match=f"rolecall models pull {EMBEDDER}"):
            await manager.embed(["text"])
        assert manager.embedder() is None and manager.count_tokens(Role.ROUTER, "12345678") == 2
        assert farm.workers == []


async def test_what_can_never_fit_is_refused_at_once_with_the_figures(tmp_path: Path) -> None:
    async with managing(home_with(tmp_path, ROUTER, HEAVY), staff(), budget_gb=0.7) as (manager, farm):
        await manager.generate(Role.ROUTER, ask())
        with pytest.raises(DoesNotFit, match=r"needs 0\.\d GB but at most 0\.\d GB of the 0\.7 GB budget"):
            await manager.generate(Role.REASONING_HEAVY, ask())
        assert (await manager.generate(Role.ROUTER, ask())).cold_start is False
        assert len(farm.workers) == 1


async def test_damaged_weights_are_found_at_the_load_and_mended_ones_load(tmp_path: Path) -> None:
    home = home_with(tmp_path, CODING)
    async with managing(home, staff()) as (manager, farm):
        await manager.load(CODING)
        assert await manager.unload(CODING)
        write_model(home.models / CODING, data=b"x" * 64)
        with pytest.raises(ModelCorrupt, match="another SHA-256"):
            await manager.generate(Role.CODING, ask())
        write_model(home.models / CODING)
        assert (await manager.generate(Role.CODING, ask())).model == CODING
        assert len(farm.workers) == 2


async def test_a_damaged_model_does_not_hide_the_other_roles(tmp_path: Path) -> None:
    home = home_with(tmp_path, ROUTER, CODING)
    (home.models / CODING / "model.safetensors").write_bytes(b"cut")
    (home.models / ROUTER / "tokenizer.json").write_text("{")
    async with managing(home, staff()) as (manager, _):
        assert {info.role for info in manager.roles() if info.present} == {"router", "coding", "validation"}
        assert manager.count_tokens(Role.ROUTER, "12345678") == 2
        with pytest.raises(ModelCorrupt, match=f"rolecall models pull {CODING}"):
            await manager.generate(Role.CODING, ask())
        assert (await manager.generate(Role.ROUTER, ask())).model == ROUTER


async def test_unload_waits_for_its_users_and_says_whether_there_was_anything(tmp_path: Path) -> None:
    async with managing(home_with(tmp_path, CODING), staff()) as (manager, farm):
        assert await manager.unload("coding") is False
        done: list[bool] = []

        async def unload() -> None:
            done.append(await manager.unload("coding"))

        async with anyio.create_task_group() as group:
            group.start_soon(manager.generate, Role.CODING, ask("wait"))
            await until(lambda: farm.order)
            group.start_soon(unload)
            await anyio.wait_all_tasks_blocked()
            assert not done and farm.alive(CODING)
            farm.gate.set()
        assert done == [True] and manager.resident() == ()


async def test_the_embedder_is_a_worker_in_the_budget(tmp_path: Path) -> None:
    home = home_with(tmp_path, EMBEDDER)
    (home.models / EMBEDDER / "modules.json").write_text('[{"type": "sentence_transformers.models.Transformer"}]')
    async with managing(home, staff()) as (manager, _):
        assert (await manager.embed(["a", "b"], alone=True)).shape == (2, 4)
        (line,) = manager.resident()
        assert line.roles == ("embedder",) and line.reserved_bytes > 0
        info = manager.embedder()
        assert info is not None and info.identity.startswith(f"{EMBEDDER}:")


async def test_the_reranker_is_the_model_that_the_profile_names_for_it(tmp_path: Path) -> None:
    home, profile = home_with(tmp_path, EMBEDDER), staff()
    home.models.joinpath(EMBEDDER, "modules.json").write_text("[]")
    named = profile.model_copy(update={"reranker": EncoderSpec(model="tester/reranker", max_tokens=300)})
    async with managing(home, profile) as (manager, _):
        with pytest.raises(ModelMissing, match="profile 'mac-128' has no reranker"):
            await manager.rerank("q", ["a"])
    async with managing(home, named) as (manager, farm):
        with pytest.raises(ModelMissing, match="rolecall models pull tester/reranker"):
            await manager.rerank("q", ["a"])
        write_model(home.models / "tester/reranker")
        assert await manager.rerank("q", ["a", "bcd"]) == [1.0, 3.0]
        await manager.embed(["a"])
        assert {w.spec and (w.spec.kind, w.spec.context_length) for w in farm.workers} == {
            ("reranker", 300),
            ("embedder", 256),
        }
        assert {line.roles for line in manager.resident()} == {("reranker",), ("embedder",)}


async def test_a_role_keeps_its_own_context_on_a_worker_made_for_a_larger_one(tmp_path: Path) -> None:
    home = home_with(tmp_path, ROUTER)
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(home.models / ROUTER / "tokenizer.json"))
    profile = staff()
    wide = profile.roles["validation"].model_copy(update={"context_length": 1024})
    async with managing(home, profile.model_copy(update={"roles": {**profile.roles, "validation": wide}})) as (
        manager,
        _,
    ):
        assert manager.count_tokens(Role.ROUTER, "one two three") == 3
        assert (await manager.generate(Role.VALIDATION, ask("word " * 300))).model == ROUTER
        with pytest.raises(PromptTooLong, match=r"300 tokens of prompt and 8 for the answer.*256 tokens together"):
            await manager.generate(Role.ROUTER, ask("word " * 300))


async def test_a_worker_that_measures_more_than_planned_answers_and_then_makes_room(tmp_path: Path) -> None:
    async with managing(home_with(tmp_path, ROUTER, CODING), staff(), budget_gb=0.95) as (manager, farm):
        farm.measured[CODING] = 500_000_000
        await manager.generate(Role.ROUTER, ask())
        assert (await manager.generate(Role.CODING, ask())).model == CODING
        await until(lambda: len(manager.resident()) == 1)
        assert manager.resident()[0].model == ROUTER
        with pytest.raises(DoesNotFit):
            await manager.generate(Role.CODING, ask())


async def test_a_spare_process_is_kept_and_takes_the_next_load(tmp_path: Path) -> None:
    async with managing(home_with(tmp_path, ROUTER, CODING), staff(), spare=True) as (manager, farm):
        await manager.generate(Role.ROUTER, ask())
        await until(lambda: len(farm.workers) == 2)
        await anyio.wait_all_tasks_blocked()
        await manager.generate(Role.CODING, ask())
        await anyio.wait_all_tasks_blocked()
        assert [w.spec.model for w in farm.workers if w.spec] == [ROUTER, CODING]


async def test_ending_answers_everyone_who_waits(tmp_path: Path) -> None:
    failures: list[RoleError] = []
    async with anyio.create_task_group() as group:
        async with managing(home_with(tmp_path, REASONING), staff()) as (manager, farm):

            async def call(text: str) -> None:
                with pytest.raises(RoleError) as caught:
                    await manager.generate(Role.REASONING, ask(text))
                failures.append(caught.value)

            group.start_soon(call, "wait 1")
            await until(lambda: farm.order)
            group.start_soon(call, "wait 2")
            await anyio.wait_all_tasks_blocked()
        await until(lambda: len(failures) == 2)
        assert sorted(failure.code for failure in failures) == ["role_error", "worker_died"]
