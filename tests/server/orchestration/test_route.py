"""The router decides, the steps answer."""

from __future__ import annotations

import pytest

from rolecall.roles.contract import Role
from rolecall.server.orchestration.contract import ReasonCall, RouteCall

from ..desk import MakeDesk


@pytest.mark.parametrize("kind", [RouteCall, ReasonCall])
def test_arithmetic_is_computed_and_no_model_is_asked(desk: MakeDesk, kind: type) -> None:
    at = desk(["never asked"])

    outcome = at.run(kind, **{"request" if kind is RouteCall else "question": "What is 17 * 23?"})

    assert "391" in outcome.answer
    assert outcome.decision is not None and outcome.decision.agent == "calculator"
    assert at.models.requests == []
    assert at.states() == ["ROUTING_DECISION", "TOOL_ONLY_EXECUTION", "SYNTHESIS", "COMPLETED"]
    receipt = at.receipt()
    assert (receipt.who, receipt.role, receipt.model, receipt.status) == ("calculator", None, None, "ok")
    assert receipt.decision is not None and receipt.decision["agent"] == "calculator"
    assert receipt.features is not None and receipt.features["claim"]["agent"] == "calculator"
    assert receipt.router_state is not None and receipt.snapshot_sha256
    assert receipt.content is not None and receipt.content.answer == outcome.answer


@pytest.mark.parametrize("kind", [RouteCall, ReasonCall])
def test_where_the_agent_finds_no_value_a_model_answers(desk: MakeDesk, kind: type) -> None:
    at = desk(["I cannot see it."])
    text = "How many Python files are under /nonexistent?"

    outcome = at.run(kind, **{"request" if kind is RouteCall else "question": text})

    assert outcome.answer == "I cannot see it."
    assert at.states()[1:4] == ["TOOL_ONLY_EXECUTION", "MODEL_SELECTION", "LLM_CALL"]
    assert outcome.decision is not None and outcome.decision.role == "reasoning"


def test_route_can_only_decide(desk: MakeDesk) -> None:
    at = desk(["never asked"])

    outcome = at.run(RouteCall, request="Write a Python function that reverses a string.", execute=False)

    assert outcome.decision is not None and outcome.decision.role == "coding"
    assert outcome.decision.model == "scripted/coding" and "coding" in outcome.answer
    assert at.models.requests == [] and at.models.preloaded == []
    assert at.states() == ["ROUTING_DECISION", "SYNTHESIS", "COMPLETED"]


def test_code_through_route_comes_with_its_blocks_and_the_channel_preloads(desk: MakeDesk) -> None:
    at = desk(["```python\nx = 1\n```"])

    outcome = at.run(RouteCall, request="Write a Python function that reverses a string.", channel="code")

    assert outcome.blocks[0].code == "x = 1\n"
    assert at.models.preloaded == [Role.CODING] and at.models.requests[0][0] is Role.CODING


def test_the_state_of_the_machine_is_told_without_a_model_and_its_channel_preloads_reasoning(desk: MakeDesk) -> None:
    at = desk(["never asked"])

    outcome = at.run(RouteCall, request="How many CPU cores does this machine have?", channel="system_health")

    assert at.models.preloaded == [Role.REASONING] and at.models.requests == []
    assert outcome.decision is not None and outcome.decision.agent == "system" and "cores" in outcome.answer


def test_without_an_index_route_asks_a_model_and_says_that_nothing_supports_it(desk: MakeDesk) -> None:
    at = desk(["I do not know."])

    outcome = at.run(RouteCall, request="What do my documents say about the harbour crane?")

    assert outcome.status == "unverified" and "rolecall index add" in outcome.warnings[0]
    assert at.states()[1:3] == ["RETRIEVAL_ONLY", "MODEL_SELECTION"]


def test_a_summary_through_route_is_of_the_files(desk: MakeDesk) -> None:
    at = desk(["It is about cranes."])
    (at.folder / "a.txt").write_text("Cranes lift things.")

    outcome = at.run(RouteCall, request="Summarize the document.", paths=("a.txt",))

    assert outcome.answer == "It is about cranes."
    assert at.models.requests[0][0] is Role.SUMMARIZATION and "Cranes lift" in at.prompts()[0]
