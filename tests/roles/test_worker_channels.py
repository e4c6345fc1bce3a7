"""Tokens to text, with a tokenizer of single bytes: thinking apart, stop strings cut, characters whole."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from hypothesis import given
from hypothesis import strategies as st

from rolecall.roles.worker.channels import TextStream
from rolecall.roles.worker.steering import Steering, _closed


class ByteDetokenizer:
    def __init__(self) -> None:
        self.bytes, self.given = b"", 0

    def add_token(self, token: int) -> None:
        self.bytes += bytes([token])

    def finalize(self) -> None:
        pass

    @property
    def last_segment(self) -> str:
        text = self.bytes.decode("utf-8", "ignore")
        self.given, start = len(text), self.given
        return text[start:]


class ByteTokenizer:
    """As mlx-lm's wrapper, each byte being a token. `<think>` opens thinking unless `thinks` is off."""

    structural_markers: tuple[str, ...] = ()
    response_transitions: dict[str, Any] = {}  # noqa: RUF012
    response_initial_state = None
    eos_token_ids = frozenset({0})

    def __init__(self, thinks: bool = True, vocabulary: tuple[str, ...] = ()) -> None:
        self.has_thinking = thinks
        self.think_start, self.think_end = ("<think>", "</think>") if thinks else (None, None)
        self.think_start_tokens = tuple(b"<think>") if thinks else None
        self.think_end_tokens = tuple(b"</think>") if thinks else None
        self._vocabulary = dict.fromkeys(vocabulary, 0)

    @property
    def detokenizer(self) -> ByteDetokenizer:
        return ByteDetokenizer()

    def get_vocab(self) -> dict[str, int]:
        return self._vocabulary

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())


def run(stream: TextStream, text: str) -> str:
    """Feed all tokens; returns what was streamed of the answer."""
    pieces = []
    for token in text.encode():
        pieces += stream.add(token)
        if stream.stopped:
            break
    pieces += stream.finish()
    return "".join(piece for channel, piece in pieces if channel == "answer")


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=60))
def test_the_pieces_are_the_text_and_hold_only_whole_characters(text: str) -> None:
    stream = TextStream(ByteTokenizer(), thinking=False, stop=())
    assert run(stream, text) == text
    assert stream.tokens == len(text.encode())


def test_thinking_that_the_model_or_the_prompt_opened_is_no_part_of_the_answer() -> None:
    opened = TextStream(ByteTokenizer(), thinking=False, stop=())
    assert run(opened, "<think>\nhm\n</think>\n\nYes.") == "\n\nYes."
    assert (opened.text("thinking"), opened.text("answer"), opened.thinking_tokens) == ("hm", "Yes.", 12)
    prompted = TextStream(ByteTokenizer(), thinking=True, stop=())
    assert run(prompted, "hm</think>Yes.") == "Yes."


def test_a_stop_string_counts_in_the_answer_only_and_is_held_back_until_sure() -> None:
    stream = TextStream(ByteTokenizer(), thinking=True, stop=("END",))
    assert run(stream, "the END?</think>EN route, END of it") == "EN route, "
    assert stream.stopped
    assert stream.text("thinking") == "the END?"


def test_harmony_channels_are_split() -> None:
    tokenizer = ByteTokenizer(thinks=False, vocabulary=("<|channel|>", "<|message|>"))
    stream = TextStream(tokenizer, thinking=False, stop=())
    answer = run(stream, "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Yes.")
    assert (answer, stream.text("thinking")) == ("Yes.", "hm")


class Broken:
    """A matcher whose library fails."""

    def consume_token(self, token: int) -> bool:
        raise ValueError("broken")


def steering(**options: Any) -> Steering:
    defaults = {"thinking": False, "may_think": False, "budget": None, "matcher": None, "penalty": None}
    return Steering(ByteTokenizer(), **{**defaults, **options})


def chosen(processor: Steering, count: int, wish: int) -> list[int]:
    """The tokens that a model which always wishes for `wish` gets to say."""
    context = [1]
    for _ in range(count):
        logits = mx.zeros((1, 256)).at[0, wish].add(1.0)
        context.append(int(mx.argmax(processor(mx.array(context), logits)).item()))
    return context[1:]


def test_a_failing_processor_leaves_the_batch_alone_and_is_remembered() -> None:
    processor = steering(matcher=Broken())
    logits = mx.ones((1, 256))
    processor._called = True
    assert processor(mx.array([1, 65]), logits) is logits
    assert isinstance(processor.failure, ValueError)


def test_thinking_is_closed_after_its_budget_and_once_only() -> None:
    said = bytes(chosen(steering(thinking=True, may_think=True, budget=3), 20, wish=ord("a")))
    assert said == b"aaa\n</think>\n\n" + b"a" * 6


def test_a_model_that_would_end_while_it_thinks_goes_on_to_an_answer() -> None:
    said = chosen(steering(thinking=True, may_think=True, budget=2), 14, wish=0)
    assert 0 not in said[:-1] and said[-1] == 0


def test_a_budget_of_nothing_closes_thinking_at_once() -> None:
    assert bytes(chosen(steering(thinking=True, budget=0), 12, wish=ord("a"))) == b"\n</think>\n\na"


def test_objects_are_closed_where_no_other_part_of_the_schema_could_want_them_open() -> None:
    open_object = {"properties": {"a": {"type": "string"}}, "required": ["a"]}
    shut = {**open_object, "additionalProperties": False}
    assert _closed(open_object) == shut
    nested = {"$defs": {"x": open_object}, "items": open_object, "anyOf": [open_object, {"type": "null"}]}
    assert _closed(nested) == {"$defs": {"x": shut}, "items": shut, "anyOf": [shut, {"type": "null"}]}
    for kept in (
        {**open_object, "additionalProperties": {"type": "integer"}},
        {**open_object, "required": ["b"]},
        {**open_object, "allOf": [{"required": ["b"]}]},
        {**open_object, "anyOf": [open_object]},
        {"enum": [open_object]},
        {"type": "object"},
        {"properties": ["a"], "required": True},
        {**open_object, "required": [{}]},
        True,
    ):
        assert _closed(kept) == kept
