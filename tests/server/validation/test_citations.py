"""Each sentence of an answer against the passages that it cites."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.server.validation.citations import citations_check, cited_sentences

TEXTS = ("The harbour crane of Dr. A. Smith lifts 43 tonnes in calm weather.", "Bananas ripen slowly in the shed.")
QUESTION = "How much can the crane lift?"


def shown(answer: str) -> str:
    """The answer as it is handed out, its passages as they are numbered."""
    kept = [each for each in cited_sentences(answer, TEXTS, QUESTION) if each.verdict != "unsupported"]
    return " ".join(each.shown((1, 2)) for each in kept)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The crane lifts 43 tonnes [1].", "The crane lifts 43 tonnes [1]."),
        ("The crane lifts 43 tonnes. [1] Bananas ripen slowly. [2]",
         "The crane lifts 43 tonnes [1]. Bananas ripen slowly [2]."),
        ("- The crane lifts 43 tonnes [1]\n- Bananas ripen slowly [2]",
         "- The crane lifts 43 tonnes [1] - Bananas ripen slowly [2]"),
        ("The crane lifts 43 tonnes.\n[1]", "The crane lifts 43 tonnes [1]."),
        ("Yes. It lifts 43 tonnes [1].", "Yes. It lifts 43 tonnes [1]."),
        ("It lifts 43 tonnes [1, 2].", "It lifts 43 tonnes [1][2]."),
        ("The crane of Dr. A. Smith lifts 43 tonnes [1].", "The crane of Dr. A. Smith lifts 43 tonnes [1]."),
        ("A strong crane lifts loads of 43 tonnes when there is calm weather [1].",
         "A strong crane lifts loads of 43 tonnes when there is calm weather [1] (unconfirmed)."),
        ("The crane lifts 43 tonnes. Elephants wander.", "The crane lifts 43 tonnes [1]."),
        ("The crane lifts 43 tonnes [2].", "The crane lifts 43 tonnes [1]."),
        ("The crane lifts 43 tonnes [7].", "The crane lifts 43 tonnes [1]."),
        ("The crane lifts 99 tonnes [1].", ""),
        ("The crane does not lift 43 tonnes [1].", ""),
        ("[1]", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_a_sentence_keeps_its_citation_gets_the_right_one_or_goes(answer: str, expected: str) -> None:
    assert shown(answer) == expected


def test_the_check_decides_for_one_sentence_that_is_borne_out_and_against_none() -> None:
    def verdict(answer: str) -> tuple[str, bool]:
        check = citations_check(cited_sentences(answer, TEXTS, QUESTION), len(TEXTS))
        return check.verdict, check.decisive

    assert verdict("It lifts 43 tonnes [1]. Elephants wander [1].") == ("supported", True)
    assert verdict("Elephants wander [1].") == verdict("") == ("unsupported", True)


@given(st.text(alphabet="ab .!?\n[]12,\u3002") | st.text())
def test_any_answer_is_read_and_cites_only_what_there_is(answer: str) -> None:
    for each in cited_sentences(answer, TEXTS, QUESTION):
        assert each.verdict == "unsupported" or (each.numbers and set(each.numbers) <= {1, 2})
