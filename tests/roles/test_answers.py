"""What comes back through the manager: constraints checked, labels scored, engines in order, adapters apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rolecall.config.profile import Profile
from rolecall.roles.contract import GenerationRequest, Message, Role
from rolecall.roles.errors import SchemaRefused, WorkerTimeout
from rolecall.roles.schema import keep_to
from tests.roles.farm import ask, managing, staff
from tests.roles.tiny import CODING, ROUTER, home_with, write_safetensors

SLUG = {"type": "string", "pattern": "^[a-z]+(-[a-z]+)*$"}
FOREVER = "^(a|a)*$"
DOUBLING = {
    "$defs": {f"l{i}": {"$dynamicAnchor": f"l{i}", "allOf": [{"$dynamicRef": f"#l{i + 1}"}] * 2} for i in range(40)}
    | {"l40": {"$dynamicAnchor": "l40"}},
    "$dynamicRef": "#l0",
}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def request(**constraint: Any) -> GenerationRequest:
    return GenerationRequest(messages=(Message(role="user", content="?"),), max_tokens=20, **constraint)


@pytest.mark.parametrize(
    ("constraint", "text", "finish"),
    [
        ({}, "anything", "length"),
        ({"json_schema": SCHEMA}, '{"n": 3}', "stop"),
        ({"json_schema": SCHEMA}, ' {"n": 3} ', "length"),
        ({"regex": r"[a-z]+\d"}, "abc1", "stop"),
        ({"json_schema": SLUG}, '"one-two"', "stop"),
        ({"regex": r"\p{Greek}+"}, "λόγος", "stop"),
        ({"regex": FOREVER}, "a" * 40 + "!", "stop"),  # cannot be checked here: the engine enforced it
    ],
)
def test_answers_that_keep_to_their_constraint_pass(constraint: dict[str, Any], text: str, finish: str) -> None:
    keep_to(request(**constraint), text, finish, 5)


@pytest.mark.parametrize(
    ("constraint", "text", "finish", "found"),
    [
        ({"json_schema": SCHEMA}, '{"n": "three"}', "stop", r"at \$\.n"),
        ({"json_schema": SCHEMA}, 'Sure: {"n": 3}', "stop", "not JSON"),
        ({"json_schema": SCHEMA}, '{"n": 3', "length", r"cut off after 20 tokens.*within 20 tokens.*max_tokens"),
        ({"json_schema": {"$ref": "http://elsewhere/x"}}, "{}", "stop", "cannot be applied: .*http://elsewhere/x"),
        ({"regex": r"[a-z]+\d"}, "abc", "stop", "does not match"),
        ({"regex": FOREVER}, "a" * 40 + "!", "length", "cut off .*cannot be checked"),
        ({"json_schema": SLUG}, '"one--two"', "stop", "does not match"),
        ({"json_schema": {"pattern": FOREVER}}, json.dumps("a" * 40 + "!"), "stop", "timed out"),
        ({"json_schema": {"patternProperties": {"(a+)+": {}}}}, "{}", "stop", "may never end"),
        ({"json_schema": DOUBLING}, "{}", "stop", "references followed"),
    ],
)
def test_answers_that_do_not_are_refused_with_the_reason(
    constraint: dict[str, Any], text: str, finish: str, found: str
) -> None:
    with pytest.raises(SchemaRefused, match=found):
        keep_to(request(**constraint), text, finish, 20)


def test_an_answer_that_the_time_limit_cut_off_says_so() -> None:
    with pytest.raises(WorkerTimeout, match=r"7 tokens.*Allowed: 3 s"):
        keep_to(request(json_schema=SCHEMA, timeout_s=3.0), '{"n"', "timeout", 7)


@pytest.mark.anyio
async def test_the_manager_checks_what_comes_whoever_made_it(tmp_path: Path) -> None:
    async with managing(home_with(tmp_path, CODING), staff()) as (manager, farm):
        farm.answer = ('{"n": 1}', "stop")
        answer = await manager.generate(Role.CODING, request(json_schema=SCHEMA))
        assert json.loads(answer.text) == {"n": 1} and answer.cached_tokens == 2
        farm.answer = ("prose", "stop")
        with pytest.raises(SchemaRefused, match="not JSON"):
            await manager.generate(Role.CODING, request(json_schema=SCHEMA))


@pytest.mark.anyio
async def test_labels_are_scored_by_the_roles_worker(tmp_path: Path) -> None:
    async with managing(home_with(tmp_path, ROUTER), staff()) as (manager, farm):
        assert await manager.score_labels(Role.ROUTER, ask().messages, ["a", "bb"]) == (-1.0, -2.0)
        assert len(farm.alive(ROUTER)) == 1
        with pytest.raises(ValueError, match="empty"):
            await manager.score_labels(Role.ROUTER, ask().messages, ["a", ""])


@pytest.mark.anyio
async def test_the_rate_shown_is_the_measured_one_until_requests_say_better(tmp_path: Path) -> None:
    async with managing(home_with(tmp_path, CODING), staff()) as (manager, _):
        assert (await manager.load(CODING)).tokens_per_s == pytest.approx(1.0)
        for _ in range(30):
            await manager.generate(Role.CODING, ask())
        assert manager.resident()[0].tokens_per_s == pytest.approx(20.0, rel=0.01)


def with_role(profile: Profile, name: str, **changes: Any) -> Profile:
    spec = profile.roles[name].model_copy(update=changes)
    return profile.model_copy(update={"roles": {**profile.roles, name: spec}})


@pytest.mark.anyio
async def test_two_adapters_over_the_same_weights_are_two_workers(tmp_path: Path) -> None:
    home = home_with(tmp_path, ROUTER)
    profile = with_role(staff(), "validation", adapter="lora/strict")
    async with managing(home, profile) as (manager, farm):
        missing = await manager.generate(Role.VALIDATION, ask())
        assert f"({ROUTER}+lora/strict) is not on disk" in missing.degraded
        folder = home.models / "lora/strict"
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
        write_safetensors(folder / "adapters.safetensors", bytes(1000))
        answer = await manager.generate(Role.VALIDATION, ask())
        await manager.generate(Role.ROUTER, ask())
        assert answer.model == f"{ROUTER}+lora/strict" and answer.degraded == ""
        assert [w.spec.adapter for w in farm.workers if w.spec] == [None, folder]
        (plain, adapted) = manager.resident()
        assert (plain.roles, adapted.roles) == (("router",), ("validation",))
        assert await manager.unload("validation") and len(manager.resident()) == 1
