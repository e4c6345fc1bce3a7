"""KV cache is reserved by need: what a request asks for, and who gives back, waits or is refused for it.

One byte a token. The models weigh 1,000 bytes and keep 1,024 tokens of KV cache whether anybody works or not.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from rolecall.config.profile import RoleSpec
from rolecall.roles.contract import Message, Role
from rolecall.roles.errors import DoesNotFit, PromptTooLong
from rolecall.roles.manager import MESSAGE_TOKENS, TEMPLATE_TOKENS, ModelManager
from rolecall.roles.plan import Reservation
from rolecall.roles.pool import WorkerPool
from rolecall.roles.pooled import Phase, PooledModel, Ticket
from tests.roles.farm import Farm, ask, managing, pooling, staff, until, use
from tests.roles.tiny import ROUTER, home_with
from tests.simulate.clock import on_a_clock

CONTEXT, BASE = 16_384, 1024


def elastic(name: str, concurrency: int = 1, own_tokens: int = 0, kept: bool = False) -> PooledModel:
    """`own_tokens`: the context of a pinned role beside the one of the model's name."""
    fields = {"model": name, "quantization": "none", "timeout_s": 60.0}
    specs = [RoleSpec(**fields, context_length=CONTEXT, concurrency=concurrency)]
    specs += [RoleSpec(**fields, context_length=own_tokens, pinned=True)] if own_tokens else []
    tokens = CONTEXT * concurrency + own_tokens
    size = Reservation(1000, tokens, 0, 0, 0, tokens, concurrency + bool(own_tokens), 1, BASE + own_tokens)
    return PooledModel(name, Path(name), tuple(specs), size, kept=kept)


def reserved(pool: WorkerPool) -> dict[str, int]:
    return {name: model.reserved_bytes for name, model in pool.models.items() if model.phase is not Phase.ABSENT}


def allowed(farm: Farm, name: str) -> int:
    """The bytes of KV cache that the worker was told it may take."""
    [worker] = farm.alive(name)
    assert worker.spec is not None
    return worker.spec.kv_bytes


@on_a_clock
async def test_a_request_has_what_it_needs_reserved_and_leaves_it_as_prefix_cache_until_others_need_the_room() -> None:
    farm = Farm()
    async with pooling(farm, 12_000, elastic("a"), elastic("b"), elastic("c")) as pool:
        await use(pool, "a", tokens=100)
        assert reserved(pool) == {"a": 2024} and allowed(farm, "a") == BASE
        await use(pool, "a", tokens=8000)
        assert reserved(pool) == {"a": 9192} and allowed(farm, "a") == 8192
        await use(pool, "b", tokens=100)
        assert reserved(pool) == {"a": 9192, "b": 2024}, "there was room beside it"
        await use(pool, "c", tokens=3000)
        assert reserved(pool) == {"a": 5864, "b": 2024, "c": 4072}, "a gave no more than it took"
        assert allowed(farm, "a") == 4864 and len(farm.workers) == 3


@on_a_clock
async def test_a_load_reserves_what_its_first_caller_needs_and_an_unknown_need_is_the_whole_context() -> None:
    farm = Farm()
    async with pooling(farm, 40_000, elastic("a"), elastic("b")) as pool:
        await use(pool, "a", tokens=5000)
        await use(pool, "b")
        assert reserved(pool) == {"a": 1000 + 5120, "b": 1000 + CONTEXT}
        assert (allowed(farm, "a"), allowed(farm, "b")) == (5120, CONTEXT)


@on_a_clock
async def test_growth_gives_idle_surplus_back_first_then_ends_who_is_idle_and_waits_for_who_is_in_use() -> None:
    farm = Farm()
    async with pooling(farm, 12_000, elastic("a"), elastic("b"), elastic("c")) as pool:
        for name, tokens in (("a", 100), ("b", 4000), ("c", 100)):
            await use(pool, name, tokens=tokens)
        await use(pool, "a", tokens=6800)
        assert reserved(pool) == {"a": 7912, "b": 2024, "c": 2024}, "of b the surplus"
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: use(pool, "c", "wait", tokens=100))
            await until(lambda: "wait" in farm.order)
            await use(pool, "a", tokens=8500)
            assert reserved(pool) == {"a": 9704, "c": 2024}, "of b the rest"
            group.start_soon(lambda: use(pool, "a", "large", tokens=10_500))
            group.start_soon(lambda: use(pool, "c", "later", tokens=100))
            await anyio.wait_all_tasks_blocked()
            assert farm.order[-1] == "hello"
            farm.gate.set()
        assert farm.order[-2:] == ["large", "later"]


@on_a_clock
async def test_a_request_too_large_for_the_budget_is_refused_with_the_figures_and_smaller_ones_are_served() -> None:
    farm = Farm()
    async with pooling(farm, 10_000, elastic("router", own_tokens=512, kept=True), elastic("a")) as pool:
        await use(pool, "router", tokens=100)
        await use(pool, "router", tokens=4000)
        errors: list[DoesNotFit] = []

        async def refused() -> None:
            with pytest.raises(DoesNotFit) as caught:
                await use(pool, "a", "large", tokens=9000)
            errors.append(caught.value)

        async with anyio.create_task_group() as group:
            group.start_soon(refused)
            group.start_soon(lambda: use(pool, "a", "small", tokens=3000))
        await refused()
        assert farm.order[-1] == "small" and len(farm.workers) == 2
        [first, second] = errors
        assert str(first) == str(second) and "for 9216 tokens" in first.found and "Send less text" in first.advice
        await use(pool, "a", tokens=6000)  # what the router does not need now counts as free
        assert reserved(pool) == {"router": 2792, "a": 7144}


@on_a_clock
async def test_beside_requests_of_its_own_model_one_runs_with_free_memory_and_else_waits_for_them() -> None:
    farm = Farm()
    async with pooling(farm, 12_000, elastic("a", concurrency=2), elastic("b")) as pool:
        await use(pool, "b", tokens=100)
        async with anyio.create_task_group() as group:
            for text, tokens in (("wait 1", 2000), ("wait 2", 3000)):
                group.start_soon(lambda t=text, n=tokens: use(pool, "a", t, tokens=n))
            await until(lambda: len(farm.order) == 3)
            assert reserved(pool) == {"a": 1000 + 2 * 3072, "b": 2024}, "each is padded to the longest"
            farm.gate.set()
        farm.gate = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: use(pool, "a", "wait", tokens=2000))
            await until(lambda: "wait" in farm.order)
            group.start_soon(lambda: use(pool, "a", "beside", tokens=6000))
            await anyio.wait_all_tasks_blocked()
            assert farm.order[-1] == "wait" and "b" in reserved(pool), "b has ended for it"
            farm.gate.set()
        assert farm.order[-1] == "beside" and reserved(pool) == {"a": 7144, "b": 2024}


@on_a_clock
async def test_who_came_before_has_the_memory_first_be_it_for_a_load_or_for_growth() -> None:
    farm = Farm()
    async with pooling(farm, 10_000, elastic("a"), elastic("b"), elastic("c")) as pool:
        await use(pool, "a", tokens=100)
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: use(pool, "b", "wait", tokens=4000))
            await until(lambda: "wait" in farm.order)
            for name, text, tokens in (("a", "growth", 7000), ("c", "load", 7000)):
                group.start_soon(lambda n=name, t=text, k=tokens: use(pool, n, t, tokens=k))
                await anyio.wait_all_tasks_blocked()
            farm.gate.set()
        assert farm.order == ["hello", "wait", "growth", "load"]


@on_a_clock
async def test_a_load_that_needs_a_pinned_models_growth_waits_until_it_is_idle_and_its_own_role_is_not_held() -> None:
    farm = Farm()
    router = elastic("router", concurrency=2, own_tokens=512)
    async with pooling(farm, 12_000, router, elastic("a")) as pool:

        async def route(text: str) -> None:
            async with pool.place(router, Ticket("own", router.specs[1], tokens=100)) as worker:
                await worker.generate(ask(text))

        async with anyio.create_task_group() as group:
            group.start_soon(lambda: use(pool, "router", "wait", tokens=3000))
            await until(lambda: "wait" in farm.order)
            group.start_soon(lambda: use(pool, "a", "load", tokens=7000))
            await anyio.wait_all_tasks_blocked()
            group.start_soon(lambda: use(pool, "router", "later", tokens=3000))
            await anyio.wait_all_tasks_blocked()
            assert farm.order == ["wait"] and pool.models["a"].phase is Phase.ABSENT
            router.kv_tokens = 6144  # as an earlier pair of requests leaves it
            await route("own")
            assert farm.order == ["wait", "own"]
            farm.gate.set()
        assert set(farm.order) == {"wait", "own", "load", "later"} and len(farm.workers) == 2


@on_a_clock
async def test_a_preload_takes_its_base_and_nobodys_prefix_cache() -> None:
    farm = Farm()
    async with pooling(farm, 12_000, elastic("a"), elastic("b")) as pool:
        await use(pool, "a", tokens=10_000)
        pool.preload(pool.models["b"])
        assert reserved(pool) == {"a": 11_240}
        await pool.unload(pool.models["a"])
        pool.preload(pool.models["b"])
        assert reserved(pool) == {"b": 2024}


@on_a_clock
async def test_a_shrunken_budget_takes_surplus_before_it_ends_a_model() -> None:
    farm = Farm()
    async with pooling(farm, 12_000, elastic("a"), elastic("b")) as pool:
        await use(pool, "a", tokens=4000)
        await use(pool, "b", tokens=4000)
        pool.limit(7000)
        assert reserved(pool) == {"a": 2024, "b": 4840} and allowed(farm, "b") == 3840
        pool.limit(4000)
        await pool.models["a"].gone.wait()
        assert reserved(pool) == {"b": 2024}


@on_a_clock
async def test_a_model_that_keeps_no_cache_per_token_grows_for_nothing() -> None:
    farm, model = Farm(), elastic("a")
    model.reservation = replace(model.reservation, kv_bytes_per_token=0)
    async with pooling(farm, 20_000, model) as pool:
        await use(pool, "a", tokens=100)
        await use(pool, "a", tokens=9000)
        assert reserved(pool) == {"a": 1000 + CONTEXT}


@pytest.mark.anyio
async def test_the_manager_counts_long_requests_and_bounds_short_ones(tmp_path: Path) -> None:
    home = home_with(tmp_path, ROUTER)
    from tokenizers import Tokenizer, models, pre_tokenizers

    async def need(manager: ModelManager, words: int) -> int | None:
        model, spec = await manager._model(ROUTER), manager._staff.profile.roles["router"]
        return await manager._need_tokens(spec, model, (Message(role="user", content="word " * words),), 100)

    more = 100 + TEMPLATE_TOKENS + MESSAGE_TOKENS
    async with managing(home, staff(context_length=4096)) as (manager, _):
        assert await need(manager, 10) == 50 + more  # no more tokens than bytes
        assert await need(manager, 1000) is None  # there is no tokenizer
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(home.models / ROUTER / "tokenizer.json"))
    async with managing(home, staff(context_length=4096)) as (manager, farm):
        assert await need(manager, 1000) == 1000 + more
        with pytest.raises(PromptTooLong, match="4000 tokens of prompt and 100 for the answer"):
            await need(manager, 4000)
        assert farm.workers == [], "it is refused before a load"
        assert await manager.score_labels(Role.ROUTER, ask().messages, ["yes", "no"]) == (-3.0, -2.0)
