"""The router decides, the steps answer; retrieval quotes and cites."""

from __future__ import annotations

import pytest

from rolecall.retrieval.errors import IndexEmpty
from rolecall.roles.contract import Role
from rolecall.server.orchestration.contract import ReasonCall, RetrieveCall, RouteCall
from rolecall.server.orchestration.retrieve import attributed
from rolecall.server.routing.contract import Features, State
from rolecall.server.routing.decide import decide

from ..desk import MakeDesk, passage

PASSAGES = (
    passage("The harbour crane lifts 43 tonnes in calm weather."),
    passage("Bananas ripen slowly.", "/docs/b.md"),
)


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


def test_a_session_about_the_machine_preloads_reasoning(desk: MakeDesk) -> None:
    at = desk(["never asked"])

    at.run(RouteCall, request="How many CPU cores does this machine have?", channel="system_health")

    assert at.models.preloaded == [Role.REASONING]


def test_documents_are_quoted_by_route_without_a_model(desk: MakeDesk) -> None:
    at = desk(["never asked"], passages=PASSAGES)

    outcome = at.run(RouteCall, request="What do my documents say about the harbour crane?")

    assert "[1] /docs/a.md:1-1" in outcome.answer and "43 tonnes" in outcome.answer
    assert at.states() == ["ROUTING_DECISION", "RETRIEVAL_ONLY", "SYNTHESIS", "COMPLETED"]


def test_without_an_index_route_asks_a_model_and_says_that_nothing_supports_it(desk: MakeDesk) -> None:
    at = desk(["I do not know."])

    outcome = at.run(RouteCall, request="What do my documents say about the harbour crane?")

    assert outcome.status == "unverified" and "rolecall index add" in outcome.warnings[0]
    assert at.states()[1:3] == ["RETRIEVAL_ONLY", "MODEL_SELECTION"]


def test_a_decision_can_be_recomputed_from_its_receipt(desk: MakeDesk) -> None:
    at = desk(["An answer."])
    at.run(RouteCall, request="Write a poem about the sea")
    receipt = at.receipt()

    assert receipt.features is not None and receipt.router_state is not None and receipt.decision is not None
    again = decide(
        Features.model_validate(receipt.features),
        at.orchestrator._staff.router.snapshot(),
        State.model_validate(receipt.router_state),
    )

    assert again.model_dump(mode="json") == receipt.decision
    assert receipt.snapshot_sha256 == again.snapshot_sha256


def test_passages_come_back_with_the_state_of_the_index(desk: MakeDesk) -> None:
    at = desk(["never asked"], passages=PASSAGES, pending=2)

    outcome = at.run(RetrieveCall, query="crane", max_results=1)

    assert outcome.passages == PASSAGES[:1]
    assert outcome.index is not None and outcome.index.pending == 2
    assert outcome.status == "partial" and "2 files pending" in outcome.warnings[0]
    assert at.receipt().who == "retrieval"


def test_nothing_indexed_is_a_typed_error(desk: MakeDesk) -> None:
    with pytest.raises(IndexEmpty, match="rolecall index add"):
        desk().run(RetrieveCall, query="crane")


def test_a_cited_answer_is_checked_against_the_passages(desk: MakeDesk) -> None:
    at = desk(["The crane lifts 43 tonnes in calm weather [1]."], passages=PASSAGES)

    outcome = at.run(RetrieveCall, query="How much can the crane lift?", mode="answer")

    assert (outcome.answer, outcome.status) == ("The crane lifts 43 tonnes in calm weather [1].", "ok")
    assert '<document "[2]">\nBananas' in at.prompts()[0]
    assert at.states()[1:3] == ["RETRIEVAL_ONLY", "MODEL_SELECTION"]


@pytest.mark.parametrize(
    "answer", ["The crane lifts 43 tonnes [7].", "Elephants wander through deserts looking for water."]
)
def test_an_answer_that_no_passage_supports_is_unverified(desk: MakeDesk, answer: str) -> None:
    at = desk([answer], passages=PASSAGES)

    assert at.run(RetrieveCall, query="How much can the crane lift?", mode="answer").status == "unverified"


def test_an_answer_without_citations_gets_those_of_the_passages_it_rests_on() -> None:
    texts = [each.text for each in PASSAGES]

    assert (
        attributed("The crane lifts 43 tonnes. Elephants wander.", texts)
        == "The crane lifts 43 tonnes. [1] Elephants wander."
    )
    assert attributed("It lifts 43.5 tonnes of bananas [2].", texts) == "It lifts 43.5 tonnes of bananas [2]."


def test_the_state_of_the_machine_is_told_without_a_model(desk: MakeDesk) -> None:
    outcome = desk(["never asked"]).run(RouteCall, request="How many CPU cores does this machine have?")

    assert outcome.decision is not None and outcome.decision.agent == "system"
    assert "cores" in outcome.answer


def test_a_summary_through_route_is_of_the_files(desk: MakeDesk) -> None:
    at = desk(["It is about cranes."])
    (at.folder / "a.txt").write_text("Cranes lift things.")

    outcome = at.run(RouteCall, request="Summarize the document.", paths=("a.txt",))

    assert outcome.answer == "It is about cranes."
    assert at.models.requests[0][0] is Role.SUMMARIZATION and "Cranes lift" in at.prompts()[0]
