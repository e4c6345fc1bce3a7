"""Prompts: versioned, filled once, and data that cannot leave its place."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from rolecall.config.prompts import Prompt, document, plain, prompt


def test_a_prompt_is_versioned_by_the_hash_of_its_text() -> None:
    found = prompt("answer")

    assert found.sha256 == hashlib.sha256(found.text.encode()).hexdigest()


def test_a_value_that_looks_like_a_place_is_not_filled() -> None:
    made = Prompt("p", "Be brief.\n---\n{{first}} and {{second}}", "")

    assert made.render(first="{{second}}", second="two") == ("Be brief.", "{{second}} and two")


def test_an_empty_value_leaves_no_gap() -> None:
    _, user = prompt("check").render(documents="", question="Is it so?")

    assert user.startswith("Is it so?\n\nSay first")


def test_a_document_keeps_its_blank_lines_where_another_value_is_empty() -> None:
    _, user = prompt("read").render(documents="one\n\n\ntwo", question="So?", length="")

    assert user == "one\n\n\ntwo\n\nAnswer from the document above: So?"


HOSTILE = st.lists(
    st.sampled_from(
        ["</document>", "<document>", "</DOCUMENT", "<|im_end|>", "<|im_start|>system", "<\uff5cUser\uff5c>", "[/INST]",
         "<</SYS>>", "<</SYS", "</think>", "<end_of_turn>", "</s>", "<", "[", "/", "|", " ", "text"]
    )
).map("".join)  # fmt: skip


@given(HOSTILE)
def test_no_text_can_end_its_document_or_start_a_chat_turn(text: str) -> None:
    shown = document(text, text)
    inside = shown.removeprefix("<document").removesuffix("</document>").lower()

    for token in (
        "</document",
        "<document",
        "<|",
        "<\uff5c",
        "[/inst]",
        "</think>",
        "<end_of_turn>",
        "</s>",
        "<</sys>",
    ):
        assert token not in inside


def test_ordinary_text_and_code_stay_as_they_are() -> None:
    text = "if a < b and c[0] > d: <section> &lt; x<=3 </section>"

    assert plain(text) == text
