"""Tokens to text, as it is made: whole characters only, thinking apart from the answer, stop strings cut off."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import cache
from typing import Any

from mlx_lm.generate import TextStateMachine

from rolecall.roles.contract import Channel

_THINKING = "reasoning"  # mlx-lm's names for the two states
_ANSWER = "normal"


class TextStream:
    """The text of one generation. `stopped` is true once a stop string was met; nothing after it is given out.

    `thinking` is whether the prompt ends inside of an open thinking section.
    """

    def __init__(self, tokenizer: Any, *, thinking: bool, stop: Sequence[str]) -> None:
        machine = TextStateMachine(_transitions(tokenizer, stop))
        self._state = machine.make_state(_THINKING if thinking else tokenizer.response_initial_state or _ANSWER)
        self._detokenizer = tokenizer.detokenizer
        self._pieces: dict[Channel, list[str]] = {"thinking": [], "answer": []}
        self.tokens = 0
        self.thinking_tokens = 0
        self.stopped = False

    def add(self, token: int) -> list[tuple[Channel, str]]:
        """The pieces of text that are certain now; text that may yet become a marker or a character is held back."""
        self.tokens += 1
        self.thinking_tokens += self._state[0] == _THINKING
        self._detokenizer.add_token(token)
        return self._split(self._detokenizer.last_segment)

    def finish(self) -> list[tuple[Channel, str]]:
        """What was held back, once no token follows; the bytes of a character that was cut short are left out."""
        if self.stopped:
            return []
        with contextlib.suppress(KeyError):  # mlx-lm's byte table lacks letters of added tokens
            self._detokenizer.finalize()
        pieces = self._split(self._detokenizer.last_segment.rstrip("\ufffd"))
        state, _, _, held = self._state
        return pieces if self.stopped else [*pieces, *self._keep(state, held)]

    def text(self, channel: Channel) -> str:
        return "".join(self._pieces[channel]).strip("\n" if channel == "answer" else None).rstrip()

    def _split(self, text: str) -> list[tuple[Channel, str]]:
        if self.stopped or not text:
            return []
        self._state, segments = TextStateMachine.split(self._state, text)
        self.stopped = self._state[0] is None
        return [kept for state, piece in segments for kept in self._keep(state, piece)]

    def _keep(self, state: str | None, piece: str) -> list[tuple[Channel, str]]:
        if state is None or not piece:
            return []
        channel: Channel = "thinking" if state == _THINKING else "answer"
        self._pieces[channel].append(piece)
        return [(channel, piece)]


@cache  # the vocabulary is built anew at each look: 20 ms for 49,000 tokens
def _speaks_harmony(tokenizer: Any) -> bool:
    return bool({"<|channel|>", "<|message|>"} <= tokenizer.get_vocab().keys())


def _transitions(tokenizer: Any, stop: Sequence[str]) -> dict[str, list[tuple[str, str | None]]]:
    """State -> [(marker, next state)]; None ends the answer. Tool-call markers stay text: no model here has tools."""
    edges: dict[str, list[tuple[str, str | None]]] = {_ANSWER: [], _THINKING: []}
    if tokenizer.has_thinking:
        edges[_ANSWER].append((tokenizer.think_start, _THINKING))
        edges[_THINKING].append((tokenizer.think_end, _ANSWER))
    elif _speaks_harmony(tokenizer):
        # Source: OpenAI's harmony format, which mlx-lm does not split
        edges[_ANSWER] += [("<|channel|>analysis<|message|>", _THINKING), ("<|channel|>final<|message|>", _ANSWER)]
        edges[_THINKING] += [("<|start|>assistant<|channel|>final<|message|>", _ANSWER), ("<|end|>", _THINKING)]
    edges[_ANSWER] += [(marker, _ANSWER) for marker in tokenizer.structural_markers]
    for state, more in tokenizer.response_transitions.items():
        edges.setdefault(state, []).extend(more)
    edges[_ANSWER] += [(text, None) for text in stop if text]
    return edges
