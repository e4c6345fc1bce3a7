"""Summaries of any length, within their bound."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.retrieval.errors import FileUnreadable
from rolecall.roles.contract import GenerationRequest, Role
from rolecall.roles.errors import WorkerDied
from rolecall.server.orchestration.contract import SummarizeCall
from rolecall.server.orchestration.summarize import pieces, trim

from ..desk import MakeDesk
from ..scripted import infos


def first_words(role: Role, request: GenerationRequest) -> str:
    """The first words of every document in the prompt: a summary that shows what was read."""
    found = re.findall(r"<document[^>]*>\n(\w+ \w+)", request.messages[-1].content)
    return " ".join(found).strip() + "."


def test_a_short_text_takes_one_call_and_its_bound_and_focus_are_in_the_prompt(desk: MakeDesk) -> None:
    at = desk(first_words)

    outcome = at.run(SummarizeCall, text="Alpha beta gamma delta.", focus="the letters", max_words=30)

    assert outcome.answer == "Alpha beta."
    assert len(at.models.requests) == 1
    assert "at most 30 words, with attention to: the letters." in at.prompts()[0]


def test_a_long_text_is_read_to_its_end_in_parts_that_fit(desk: MakeDesk) -> None:
    at = desk(first_words, roles=infos(context_length=1500))
    text = "\n\n".join(f"Section s{number} " + "filler " * 90 for number in range(60))

    outcome = at.run(SummarizeCall, text=text, max_words=60)

    read = " ".join(at.prompts())
    assert all(f"s{number} " in read for number in range(60))
    assert at.states()[-1] == "COMPLETED" and outcome.meta["model_calls"] == len(at.models.requests) > 5
    assert set(at.receipt().prompts) == {"summarize"}
    assert any("part 2 of" in words for words in at.said)


def test_a_model_that_repeats_its_input_still_ends_in_a_bounded_summary(desk: MakeDesk) -> None:
    at = desk(lambda role, request: request.messages[-1].content, roles=infos(context_length=700))

    outcome = at.run(SummarizeCall, text="word " * 5000, max_words=20)

    assert len(outcome.answer.split()) <= 20


def test_too_long_a_summary_is_asked_again_then_cut_at_a_sentences_end(desk: MakeDesk) -> None:
    at = desk(["One two three four. Five six seven eight. Nine ten eleven."])

    outcome = at.run(SummarizeCall, text="One two three four five six seven eight nine ten eleven.", max_words=9)

    assert outcome.answer == "One two three four. Five six seven eight."
    assert len(at.models.requests) > 1 and "rejected" in at.prompts()[1]
    assert outcome.status == "ok" and "9 words" in outcome.warnings[0]


def test_a_number_that_the_text_lacks_is_named_also_where_the_summary_was_cut(desk: MakeDesk) -> None:
    at = desk(["It was 731 metres long. And it went on and on and on."])

    outcome = at.run(SummarizeCall, text="The bridge was long and went on.", max_words=8)

    assert outcome.answer == "It was 731 metres long." and outcome.status == "unverified"
    assert any("731" in warning for warning in outcome.warnings)


def test_each_gives_an_item_per_file_and_one_bad_file_costs_only_itself(desk: MakeDesk) -> None:
    at = desk(first_words)
    (at.folder / "a.txt").write_text("Apples are here.")
    (at.folder / "b.txt").write_bytes(b"\xff\xfe\xff")
    (at.folder / "c.txt").write_text("Cherries grow there.")

    outcome = at.run(SummarizeCall, paths=("*.txt",), each=True)

    assert [(item.path[-5:], item.status) for item in outcome.items] == [
        ("a.txt", "ok"), ("b.txt", "partial"), ("c.txt", "ok"),
    ]  # fmt: skip
    assert outcome.items[0].answer == "Apples are." and outcome.items[2].answer == "Cherries grow."
    assert outcome.status == "partial"


def test_a_model_that_fails_on_one_file_costs_only_that_file(desk: MakeDesk) -> None:
    at = desk(["Apples are here.", WorkerDied("The worker died."), "Cherries grow."])
    for name, text in (("a", "Apples are here."), ("b", "Bananas ripen."), ("c", "Cherries grow there.")):
        (at.folder / f"{name}.txt").write_text(text)

    outcome = at.run(SummarizeCall, paths=("*.txt",), each=True)

    assert [item.status for item in outcome.items] == ["ok", "partial", "ok"]
    assert "died" in outcome.items[1].answer and "b.txt" in outcome.warnings[0]


def test_where_no_file_can_be_read_its_error_is_the_answer(desk: MakeDesk) -> None:
    at = desk(first_words)
    (at.folder / "b.txt").write_bytes(b"\xff\xfe\xff")

    with pytest.raises(FileUnreadable):
        at.run(SummarizeCall, paths=("b.txt",))


def test_a_summary_can_go_to_a_file(desk: MakeDesk) -> None:
    at = desk(first_words)

    outcome = at.run(SummarizeCall, text="Alpha beta gamma.", save_to="short.md")

    assert (at.folder / "short.md").read_text() == "Alpha beta.\n"
    assert outcome.saved_path == str(at.folder / "short.md") and "Alpha" not in outcome.answer


@given(st.text(alphabet=st.sampled_from("ab .\n\u3002\u6587"), max_size=400), st.integers(2, 50))
def test_pieces_lose_nothing_but_blanks_and_keep_their_size(text: str, size: int) -> None:
    found = pieces(text, size)

    assert all(len(piece) <= size for piece in found)
    assert "".join("".join(found).split()) == "".join(text.split())


@given(st.text(alphabet=st.sampled_from("ab .!\n\u3002\u6587"), max_size=300), st.integers(1, 40))
def test_a_trimmed_text_is_within_its_words_and_a_start_of_the_text(text: str, bound: int) -> None:
    kept = trim(text, bound)

    assert text.strip().startswith(kept.removesuffix("\u2026"))
    assert len(kept.split()) <= bound
    assert len(re.findall(r"[\u3040-\u9fff]|[^\s\u3040-\u9fff\u2026]+", kept)) <= bound
