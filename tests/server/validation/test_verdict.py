from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolecall.server.errors import BadRequest
from rolecall.server.validation.contract import Check, Validation, Verdict
from rolecall.server.validation.verdict import combine, validate, verdict_line

RIVER = (
    "The Orle is 412 km long. It rises in the Tamm hills and was not dammed before 1931, when Ada Brink built a weir."
)


def verdict(output: str, **rest: Any) -> Verdict:
    return validate(output, **rest).verdict


def named(validation: Validation, name: str) -> Check:
    return next(check for check in validation.checks if check.name == name)


def test_a_sentence_copied_from_the_evidence_is_supported() -> None:
    assert verdict("The Orle rises in the Tamm hills.", evidence=(RIVER,)) is Verdict.SUPPORTED


def test_a_sentence_about_something_else_is_unsupported() -> None:
    assert verdict("Penguins breed on southern islands every winter.", evidence=(RIVER,)) is Verdict.UNSUPPORTED


def test_one_foreign_sentence_spoils_an_output() -> None:
    mixed = "The Orle rises in the Tamm hills. Penguins breed on southern islands."
    assert verdict(mixed, evidence=(RIVER,)) is Verdict.UNSUPPORTED


def test_a_number_that_the_evidence_lacks_is_unsupported_and_named() -> None:
    found = validate("The Orle is 421 km long.", evidence=(RIVER,))
    assert found.verdict is Verdict.UNSUPPORTED
    assert "421" in named(found, "numbers").detail


def test_a_number_with_another_unit_is_unsupported() -> None:
    assert verdict("The Orle is 412 miles long.", evidence=(RIVER,)) is Verdict.UNSUPPORTED


@pytest.mark.parametrize(
    ("output", "evidence"),
    [
        ("About 400 people came, 12 of them twice.", "412 people came, twelve twice."),
        ("It cost about 2.5 million crowns.", "It cost 2.47 million crowns."),
        ("It cost $5 million and is 5 metres high.", "It cost $5m and is 5 m high."),
        ("The Orle is 412 kilometres long.", RIVER),
        ("1. It is 412 km long.\n2. It was dammed in 1931 [7].", RIVER),
        ("It lost 5 per cent.", "It lost 5%."),
    ],
)
def test_a_number_in_words_in_another_spelling_or_rounded_aloud_is_no_missing_number(
    output: str, evidence: str
) -> None:
    assert named(validate(output, evidence=(evidence,)), "numbers").verdict is Verdict.ABSTAIN


def test_the_figures_of_a_number_in_another_spelling_are_no_foreign_words() -> None:
    assert verdict("It has 1.5 thousand members.", evidence=("It has 1,500 members.",)) is Verdict.ABSTAIN


@pytest.mark.parametrize("before", ["1. ", "- ", "# Source\n\n", "In short:\n", "Yes. ", "It is. "])
def test_what_only_frames_a_claim_does_not_change_its_verdict(before: str) -> None:
    assert verdict(before + "The Orle rises in the Tamm hills.", evidence=(RIVER,)) is Verdict.SUPPORTED


def test_the_words_of_code_and_data_are_not_held_against_the_evidence() -> None:
    assert verdict('{"length_km": 412, "label": "river"}', schema={}, evidence=(RIVER,)) is Verdict.SUPPORTED
    assert verdict("def flow():\n    return 1", language="python", evidence=(RIVER,)) is Verdict.SUPPORTED


@pytest.mark.parametrize(
    ("claim", "evidence"),
    [
        ("The council did not approve the bridge.", "The council did approve the bridge."),
        ("The council approved the new bridge.", "The council never approved the new bridge."),
        ("Sales of the company rose in spring.", "Sales of the company fell in spring."),
    ],
)
def test_a_reversed_sentence_is_unsupported(claim: str, evidence: str) -> None:
    found = validate(claim, evidence=(evidence,))
    assert found.verdict is Verdict.UNSUPPORTED
    assert named(found, "negation").decisive


def test_a_short_answer_is_judged_by_what_it_adds_to_the_question() -> None:
    asked = "Who built a weir on the Orle?"
    assert verdict("Ada Brink", evidence=(RIVER,), question=asked) is Verdict.SUPPORTED
    assert verdict("Otto Lund", evidence=(RIVER,), question=asked) is Verdict.UNSUPPORTED
    assert verdict("the Orle", evidence=(RIVER,), question=asked) is Verdict.ABSTAIN


def test_names_and_quotations_that_the_evidence_lacks_are_told_but_do_not_decide() -> None:
    found = validate('In it, Maud Fenn said "the water is cold".', evidence=(RIVER,))
    assert "'Fenn'" in named(found, "names").detail
    assert not named(found, "names").decisive
    assert "the water is cold" in named(found, "quotes").detail


def test_what_rests_on_an_unread_rest_is_an_abstention() -> None:
    many = " ".join(f"Gate {at} opens towards meadow {at + 7}." for at in range(150))
    assert verdict(many[:400].rpartition(" Gate")[0], evidence=(many,)) is Verdict.SUPPORTED
    assert verdict(many, evidence=(many,)) is Verdict.ABSTAIN
    assert verdict("Ada Brink owned 77 boats.", evidence=(many * 50,)) is Verdict.ABSTAIN


def test_several_pieces_of_evidence_count_together() -> None:
    assert verdict("Ada Brink built a weir.", evidence=("Nothing here.", RIVER)) is Verdict.SUPPORTED


def test_without_evidence_schema_or_equation_there_is_an_abstention_of_confidence_zero() -> None:
    found = validate("Rivers are pleasant.")
    assert (found.verdict, found.confidence) == (Verdict.ABSTAIN, 0.0)


def test_an_empty_output_is_unsupported() -> None:
    assert verdict(" \n", evidence=(RIVER,)) is Verdict.UNSUPPORTED


def test_a_schema_and_a_language_decide_both_ways() -> None:
    schema = {"type": "object", "required": ["a"]}
    assert verdict('{"a": 1}', schema=schema) is Verdict.SUPPORTED
    assert verdict("[]", schema={"type": "array"}) is Verdict.SUPPORTED
    assert verdict('{"b": 1}', schema=schema) is Verdict.UNSUPPORTED
    assert verdict("x = 1", language="python") is Verdict.SUPPORTED
    assert verdict("x = = 1", language="python") is Verdict.UNSUPPORTED
    assert verdict("let x = 1;", language="rust") is Verdict.ABSTAIN


def check(verdict: Verdict, decisive: bool) -> Check:
    return Check(name="numbers", verdict=verdict, decisive=decisive, detail="")


@given(st.lists(st.tuples(st.sampled_from(list(Verdict)), st.booleans()), max_size=6))
def test_only_decisive_checks_move_the_verdict_and_unsupported_wins(pairs: list[tuple[Verdict, bool]]) -> None:
    decisive = {verdict for verdict, moves in pairs if moves}
    expected = next((v for v in (Verdict.UNSUPPORTED, Verdict.SUPPORTED) if v in decisive), Verdict.ABSTAIN)
    found = combine(tuple(check(*pair) for pair in pairs))
    assert found.verdict is expected
    assert (found.confidence > 0) == (expected is not Verdict.ABSTAIN)


@settings(max_examples=60, deadline=None)
@given(
    st.text(max_size=300),
    st.text(max_size=300),
    st.text(max_size=80),
    st.sampled_from([None, "python", "yaml", "html"]),
)
def test_odd_content_never_raises_and_the_same_input_gives_the_same_answer(
    output: str, evidence: str, question: str, language: str | None
) -> None:
    given: dict[str, Any] = {"evidence": (evidence,), "question": question, "language": language}
    assert validate(output, **given) == validate(output, **given)


@pytest.mark.parametrize("unit", ["a", "1+1=2 ", '"aaaaaaaa', "He won 3. ", "9", "\u6f22\u5b57", "not a. ", "1,", "[{"])
def test_a_megabyte_of_awkward_text_is_judged_within_a_bound(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    start = time.process_time()
    validate(text, evidence=(text,), question=text)
    assert time.process_time() - start < 30  # a pattern that is not linear takes hours


def test_a_line_of_a_batch_gets_its_verdict_as_a_line() -> None:
    line = verdict_line({"id": "7", "output": "3 + 4 = 8", "evidence": ["a", "b"], "question": None})
    assert list(line) == ["id", "verdict", "confidence", "checks"]
    assert (line["id"], line["verdict"]) == ("7", "unsupported")
    assert verdict_line({"output": "a river runs", "evidence": "a river runs"})["verdict"] == "supported"
    assert all(list(item) == ["name", "verdict", "decisive", "detail"] for item in line["checks"])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ([], "not a JSON object"),
        ("text", "not a JSON object"),
        ({"output": "a", "evidnce": "b"}, "evidnce"),
        ({"id": 1}, "`output`: Field required"),
        ({"output": 3}, "`output`"),
        ({"output": "a", "evidence": ["b", 3]}, "`evidence`"),
        ({"output": "a", "schema": "{}"}, "`schema`"),
        ({"id": True, "output": "a"}, "`id`"),
    ],
)
def test_a_wrong_line_is_a_typed_error_that_names_the_fault(line: Any, says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        verdict_line(line)
    assert says in str(caught.value)


def test_data_without_a_schema_is_held_to_the_numbers_of_the_evidence_not_to_its_words() -> None:
    assert verdict('{"length": 412}', evidence=(RIVER,)) is Verdict.ABSTAIN
    assert verdict('{"length": 421}', evidence=(RIVER,)) is Verdict.UNSUPPORTED


def test_a_fenced_block_that_does_not_parse_is_found_without_being_told_its_language() -> None:
    assert verdict("So:\n```python\ndef f(:\n```\n") is Verdict.UNSUPPORTED
    assert verdict("So:\n```python\nx = 1\n```\n") is Verdict.ABSTAIN
