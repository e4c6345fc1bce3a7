"""Receipts of real calls, replayed: nothing differs, and whatever was changed afterwards is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.retrieval.contract import Passage, Verdict
from rolecall.roles.contract import Role
from rolecall.server.orchestration.contract import (
    CodeCall,
    ReasonCall,
    RetrieveCall,
    RouteCall,
    SummarizeCall,
    ValidateCall,
)  # fmt: skip
from rolecall.server.orchestration.record import request_text
from rolecall.server.routing.replay import Replay, replay, routed_text
from rolecall.server.routing.router import Router, text_sha256
from rolecall.server.telemetry.store import Content, Kept
from tests.server.desk import Desk, MakeDesk, passage
from tests.server.scripted import ScriptedModels, infos

TEXTS = (
    "what is 17 * 23?",
    "Tell me a joke.",
    "",
    "Two\n\nparagraphs: and\n\nexecute: True",
    "def f(): pass  # fix it",
)


def replays(
    desk: Desk, router: Router | None = None, change: Callable[[Kept], Kept] = lambda kept: kept
) -> list[Replay]:
    """The latest receipts, oldest first, replayed by a router that has cached nothing."""

    async def work() -> list[Replay]:
        fresh = router or Router(ScriptedModels(["unasked"]), "starter")
        snapshots = await desk.store.snapshots()
        return [await replay(change(each), snapshots, fresh) for each in reversed(await desk.store.latest(99))]

    return anyio.run(work)


def named(found: Replay) -> list[str]:
    return [each.what for each in found.differences]


def altered(change: Callable[[dict[str, Any]], object]) -> Callable[[Kept], Kept]:
    """A receipt whose body is another, hash and all."""

    def made(kept: Kept) -> Kept:
        body = json.loads(kept.body)
        change(body)
        return Kept(kept.id, json.dumps(body).encode(), "")

    return made


def test_every_kind_of_call_comes_out_the_same(desk: MakeDesk) -> None:
    office = desk(["Paris."])
    (office.folder / "a.txt").write_text("The crane lifts 43 tonnes. " * 200)
    for text in TEXTS[:2] + TEXTS[3:]:
        office.run(RouteCall, request=text, execute=False)
    office.run(RouteCall, request="Which crane is it?", paths=("a.txt",), context="by the sea", budget_s=30.0)
    office.run(ReasonCall, question="What is the capital of France?", depth="deep")
    office.run(ReasonCall, question="what is 17 * 23?")
    office.run(CodeCall, task="Write add(a, b).")
    office.run(SummarizeCall, text="The crane lifts 43 tonnes.", focus="risks")
    office.run(ValidateCall, output="1 + 1 = 2")

    found = replays(office)

    assert [each.differences for each in found] == [()] * 10
    assert [each.note for each in found] == [""] * 9 + ["no_decision"]


def test_another_policy_is_named_part_by_part_and_so_is_a_decision_that_it_changes(desk: MakeDesk) -> None:
    office = desk()
    office.run(RouteCall, request="Write a SQL query that counts orders per day.", execute=False)
    office.run(RouteCall, request="Tell me a joke.", execute=False)
    others = tuple(info for info in infos() if info.role is not Role.CODING)

    coding, joke = replays(office, Router(ScriptedModels(["unasked"], others), "starter"))

    assert "roles" in named(joke) and not any("." in what for what in named(joke))
    assert {"decision.role", "decision.model"} <= set(named(coding)) and not coding.same


def test_a_policy_that_is_not_known_any_more_is_a_difference_without_parts(desk: MakeDesk) -> None:
    office = desk()
    office.run(RouteCall, request="Tell me a joke.", execute=False)
    anyio.run(office.store.run, ("DELETE FROM snapshots", ()))

    assert [each.same for each in replays(office)] == [True]  # its hash is that of now
    (found,) = replays(office, Router(ScriptedModels(["unasked"], infos(8192)), "starter"))

    assert named(found) == ["snapshot"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda body: body["features"]["type_scores"].update(coding=0.99), "features.type_scores"),
        (lambda body: body["features"].update(claim={"agent": "calculator", "expression": "1+1"}), "features.claim"),
        (lambda body: body["decision"].update(confidence=0.123), "decision.confidence"),
        (lambda body: body["decision"].update(sha256="0" * 64), "decision.sha256"),
        (lambda body: body["router_state"].update(depth="sideways"), "receipt"),
        (lambda body: body["features"].clear(), "receipt"),
        (lambda body: body.clear(), "receipt"),
    ],
)
def test_what_was_changed_in_a_receipt_is_named(
    change: Callable[[dict[str, Any]], object], expected: str, desk: MakeDesk
) -> None:
    office = desk()
    office.run(RouteCall, request="Tell me a joke.", execute=False)

    (found,) = replays(office, change=altered(change))

    assert expected in named(found) and not found.same


def test_a_flipped_byte_is_named_in_a_receipt_and_in_a_snapshot(desk: MakeDesk) -> None:
    office = desk()
    office.run(RouteCall, request="Tell me a joke.", execute=False)
    for table, what in (("receipts", "receipt"), ("snapshots", "snapshot")):
        anyio.run(office.store.run, (f"UPDATE {table} SET body = replace(body, 'starter', 'startes')", ()))
        anyio.run(office.store.run, (f"UPDATE {table} SET body = replace(body, 'joke', 'yoke')", ()))
        (found,) = replays(office)
        assert what in named(found)


def test_text_that_was_not_kept_or_was_cut_is_not_read_again_and_the_note_says_so(desk: MakeDesk) -> None:
    def set_up(settings: Any, **changes: Any) -> Any:
        return settings.model_copy(update={"telemetry": settings.telemetry.model_copy(update=changes)})

    bare = desk(change=lambda settings: set_up(settings, keep_content=False))
    bare.run(RouteCall, request="Tell me a joke.", execute=False)
    brief = desk(change=lambda settings: set_up(settings, max_content_bytes=20))
    brief.run(RouteCall, request="Tell me a joke that is long.", execute=False)

    assert [(each.same, each.note) for each in replays(brief)] == [(True, "content_not_kept"), (True, "content_cut")]


def test_a_wrong_hash_of_a_snapshot_breaks_nothing(desk: MakeDesk) -> None:
    office = desk()
    office.run(RouteCall, request="Tell me a joke.", execute=False)
    anyio.run(office.store.run, ("UPDATE snapshots SET body = '[]'", ()))

    (found,) = replays(office, Router(ScriptedModels(["unasked"], infos(8192)), "starter"))

    assert named(found) == ["snapshot"]


@given(st.text(min_size=1).filter(str.strip), st.text())
def test_the_routed_text_is_found_again_whatever_stands_beside_it(text: str, context: str) -> None:
    call = RouteCall(request=text, context=context, budget_s=1.0)
    content = Content.bounded(1 << 20, request=request_text(call))

    assert routed_text(content.request, text_sha256(text)) == text


def test_citations_that_are_not_the_same_any_more_are_named(desk: MakeDesk) -> None:
    passages = tuple(passage(f"Crane {number}.", f"/docs/{number}.md", sha256="a" * 64) for number in range(4))
    office = desk(passages=passages)
    office.run(RetrieveCall, query="crane")
    found: tuple[Verdict, ...] = ("same", "changed", "gone", "refused")

    async def check(cited: Sequence[Passage]) -> Sequence[Verdict]:
        assert list(cited) == [each.model_copy(update={"text": ""}) for each in passages]
        return found

    async def replayed() -> Replay:
        (kept,) = await office.store.latest(1)
        return await replay(kept, await office.store.snapshots(), Router(ScriptedModels(["unasked"]), "starter"), check)

    differences = anyio.run(replayed).differences
    assert [(each.what, each.now) for each in differences] == [
        (f"citation /docs/{number}.md:1-1", found[number]) for number in (1, 2, 3)
    ]
