"""Retrieval quotes, answers with citations that are checked, and says where the documents do not."""

from __future__ import annotations

from typing import Any

import pytest

from rolecall.retrieval.errors import IndexEmpty
from rolecall.roles.errors import ModelMissing
from rolecall.server.orchestration.contract import RetrieveCall, RouteCall

from ..desk import Desk, ListRetriever, MakeDesk, passage
from ..scripted import infos

PASSAGES = (
    passage("The harbour crane lifts 43 tonnes in calm weather.", sha256="a" * 64),
    passage("Bananas ripen slowly in the shed.", "/docs/b.md", place="page 3", sha256="b" * 64),
)
QUESTION = "How much can the crane lift?"


def asked(at: Desk, **more: Any) -> Any:
    return at.run(RetrieveCall, query=QUESTION, mode="answer", **more)


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


def test_a_cited_answer_lists_its_sources_and_comes_with_those_passages_alone(desk: MakeDesk) -> None:
    at = desk(["Bananas ripen slowly in the shed [2]. The crane lifts 43 tonnes [1]."], passages=PASSAGES)

    outcome = asked(at)

    assert outcome.answer == (
        "Bananas ripen slowly in the shed [1]. The crane lifts 43 tonnes [2].\n\n"
        "[1] /docs/b.md:1-1 (page 3)\n[2] /docs/a.md:1-1"
    )
    assert outcome.status == "ok" and outcome.passages == PASSAGES[::-1]
    assert '<document "[2]">\nBananas' in at.prompts()[0]
    assert at.states()[1:3] == ["RETRIEVAL_ONLY", "MODEL_SELECTION"]


def test_a_sentence_that_its_passage_does_not_bear_out_is_left_out_and_counted(desk: MakeDesk) -> None:
    at = desk(["The crane lifts 43 tonnes [1]. It was painted in 1988 by Italian sailors [1]."], passages=PASSAGES)

    outcome = asked(at)

    assert outcome.answer.startswith("The crane lifts 43 tonnes [1].\n") and "1988" not in outcome.answer
    assert outcome.status == "ok" and "1 of 2 sentences" in outcome.warnings[0]
    assert len(at.models.requests) == 1


@pytest.mark.parametrize(
    "answer", ["The crane lifts 99 tonnes [7].", "Elephants wander through deserts looking for water."]
)
def test_where_no_sentence_is_borne_out_the_passages_are_quoted_unverified(desk: MakeDesk, answer: str) -> None:
    outcome = asked(desk([answer], passages=PASSAGES))

    assert outcome.status == "unverified" and answer not in outcome.answer
    assert "[1] /docs/a.md:1-1\nThe harbour crane" in outcome.answer and outcome.passages == PASSAGES


def test_where_the_model_finds_no_answer_it_says_so(desk: MakeDesk) -> None:
    at = desk(["The sources do not say."], passages=PASSAGES)

    outcome, routed = asked(at), at.run(RouteCall, request="What do my documents say about the harbour crane?")

    assert (outcome.answer, outcome.status) == ("The sources do not say.", "ok")
    assert routed.answer.startswith("The sources do not say. The closest passages:\n\n[1] /docs/a.md:1-1\nThe harbour")


def test_where_the_passages_hardly_hold_an_answer_no_model_is_asked(desk: MakeDesk) -> None:
    at = desk(["never asked"], passages=PASSAGES * 3)
    index = at.orchestrator.staff.retriever
    assert isinstance(index, ListRetriever)
    index.answerable = 0.0

    outcome = asked(at)

    assert (outcome.answer, outcome.status) == ("The sources do not say.", "ok")
    assert at.models.requests == [] and len(outcome.passages) == 3
    index.answerable = 1.0
    assert asked(at).status == "unverified" and at.models.requests


def test_where_the_model_fails_the_passages_are_quoted(desk: MakeDesk) -> None:
    at = desk([ModelMissing("The model is not on disk.")], passages=PASSAGES)

    outcome = asked(at)

    assert outcome.status == "degraded" and "not on disk" in outcome.warnings[0]
    assert outcome.passages == PASSAGES and at.states()[-2:] == ["SYNTHESIS", "COMPLETED"]


def test_passages_that_do_not_fit_the_model_are_left_out_and_said(desk: MakeDesk) -> None:
    long = passage("The crane lifts 43 tonnes. " + "word " * 500)
    at = desk(["The crane lifts 43 tonnes [1]."], passages=(long, long, PASSAGES[0]), roles=infos(1200))

    outcome = asked(at)

    assert "best 1 of 3 passages" in outcome.warnings[0]


def test_route_answers_from_the_documents_and_keeps_its_decision(desk: MakeDesk) -> None:
    at = desk(["It lifts 43 tonnes [1]."], passages=PASSAGES)

    outcome = at.run(RouteCall, request="What do my documents say about the harbour crane?")

    assert outcome.answer == f"It lifts 43 tonnes [1].\n\n[1] /docs/a.md:1-1\n{PASSAGES[0].text}"
    assert outcome.decision is not None and outcome.decision.agent == "retrieval"
    assert outcome.index is not None and at.receipt().decision == outcome.decision.model_dump(mode="json")


def test_a_receipt_holds_where_the_passages_are_and_their_hashes_but_not_their_texts(desk: MakeDesk) -> None:
    at = desk(["never asked"], passages=PASSAGES)

    at.run(RetrieveCall, query="crane")

    assert at.receipt().citations == tuple(each.model_copy(update={"text": ""}) for each in PASSAGES)
    assert not at.receipt().private
