"""What copies a private text is withheld, however it is laid out, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.roles.errors import SchemaRefused
from rolecall.server.orchestration.contract import Item, Outcome
from rolecall.server.orchestration.privacy import RUN, WITHHELD, Private

SECRET = "The board of the harbour decided on Monday to sell the old crane to a yard in Gdansk for nine million."


def private(*texts: str) -> Private:
    made = Private()
    for text in texts:
        made.saw(text)
    return made


@pytest.mark.parametrize(
    "copy",
    [
        SECRET,
        SECRET.upper(),
        SECRET.replace(" ", "\n"),
        " ".join(SECRET),
        "\u200b".join(SECRET),
        SECRET.replace(" ", "** _"),
        SECRET.replace("a", "a\u0301"),
        "".join(chr(ord(sign) + 0xFEE0) if "!" <= sign <= "~" else sign for sign in SECRET),
    ],
)
def test_a_copy_is_withheld_whatever_its_case_spaces_and_signs(copy: str) -> None:
    cleared = private(SECRET).cleared(f"It says: {copy} Nothing else.")

    assert cleared.startswith(f"It says: {WITHHELD}") and cleared.endswith("Nothing else.")
    assert len(cleared) < 60


def test_an_answer_in_other_words_and_a_short_phrase_of_the_text_go_out() -> None:
    answer = "The old crane goes to a yard in Gdansk; nine million is the price, as the board decided."

    assert private(SECRET).cleared(answer) == answer


def test_a_short_text_is_withheld_as_a_whole_and_a_very_short_one_is_not_looked_for() -> None:
    made = private("The vault opens with 4711.", "Yes.")

    assert made.cleared("It says: the vault opens with 4711. Yes.") == f"It says: {WITHHELD}. Yes."
    assert made.cleared("The vault opens with a number.") == "The vault opens with a number."


def test_signs_of_scripts_without_spaces_count_as_words() -> None:
    text = "\u6e2f\u306e\u53e4\u3044\u30af\u30ec\u30fc\u30f3\u306f\u58f2\u5374\u3055\u308c\u308b\u3002"

    assert private(text).cleared(f"A: {text}") == f"A: {WITHHELD}\u3002"
    assert private(text).cleared("\u53e4\u3044\u30af\u30ec\u30fc\u30f3") != WITHHELD


def test_every_part_of_an_outcome_and_of_an_error_is_cleared() -> None:
    made = private(SECRET)
    outcome = Outcome(
        answer=SECRET, status="ok", receipt_id="R", warnings=(SECRET,), data={"a": [{SECRET: SECRET}]},
        items=(Item(path="/a", answer=SECRET, status="ok"),),
    )  # fmt: skip
    error = SchemaRefused(f"It does not validate: {SECRET}", found=SECRET, allowed=SECRET, advice="Try again.")

    made.error(error)

    assert "Gdansk" not in repr(made.outcome(outcome)) + str(error)
    assert error.advice == "Try again." and made.outcome(outcome).items[0].path == "/a"


@pytest.mark.parametrize("data", [SECRET.split(), [{"word": word} for word in SECRET.split()]])
def test_data_that_makes_up_a_copy_in_pieces_is_left_out(data: Any) -> None:
    outcome = Outcome(answer="", status="ok", receipt_id="R", data=data)

    assert private(SECRET).outcome(outcome).data is None
    assert private("Another text that is private, and long enough.").outcome(outcome) == outcome


TEXT = st.text(alphabet="abc \u00e9\u6e2f.\u200b", max_size=200) | st.text(max_size=200)


@given(st.lists(TEXT, min_size=1, max_size=3), TEXT, TEXT, st.data())
def test_no_run_of_a_private_text_is_left_and_what_holds_none_is_unchanged(
    texts: list[str], before: str, after: str, data: st.DataObject
) -> None:
    source = data.draw(st.sampled_from(texts))
    start = data.draw(st.integers(0, len(source)))
    said = before + source[start:] + after
    made = private(*texts)

    cleared = made.cleared(said)

    assert not any(made.copies(piece) for piece in cleared.split(WITHHELD))
    assert made.copies(said) == (cleared != said)
    if len([sign for sign in said if sign.isalnum()]) < RUN // 8:
        assert cleared == said
