"""Text of private folders: local models read it, and nothing that copies it leaves the host."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel

from rolecall.config.errors import RolecallError
from rolecall.retrieval.contract import Passage

from .contract import Outcome

RUN = 40
"""Letters and digits in a row, some seven words, from which a text copies another. A shorter text counts as a whole.

Source: on XQuAD (English, German) 94% and 91% of sentences are longer; 7.9% and 10.5% of the 1,190 answers that people
marked are, and 3.4% and 4.2% of the questions that they wrote repeat as much; 2 and 4 of 240 paragraphs share as much
with another. At 24 letters it is a fifth of answers and questions, at 64 a sixth of the sentences may go out whole.
"""

SEED = RUN // 2
"""A text with fewer letters is not looked for: its words may stand anywhere. A copy holds one seed of its source."""

WITHHELD = "[withheld: private]"
WARNING = "Words copied from a private folder were withheld: ask for them in a local client, or open the file."

_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_LETTERS_PER_SIGN = 4  # of scripts that write no spaces, whose words have one to three signs

Value = TypeVar("Value")


class Private:
    """The private texts that one request has read; false where there are none.

    Compared by letters and digits alone, whatever their case, accents, spaces and punctuation, so that neither layout
    nor invisible signs hide a copy. What is translated, paraphrased, encoded or told in small pieces is no copy.
    """

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._seeds: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._texts)

    def saw(self, text: str) -> None:
        letters = "".join(map(_letters, text))
        self._texts.append(letters)
        self._seeds.update(letters[at : at + SEED] for at in range(0, len(letters) - SEED + 1, SEED))

    def copies(self, text: str) -> bool:
        return bool(self._texts) and next(self._copied("".join(map(_letters, text))), None) is not None

    def cleared(self, value: Value) -> Value:
        """The value, strings, containers, models and dataclasses alike, with every copied run withheld; itself where
        there is none."""
        if not self._texts:
            return value
        cleared: Any = value
        match value:
            case str():
                cleared = self._cut(value)
            case dict():
                cleared = {self.cleared(key): self.cleared(each) for key, each in value.items()}
            case list() | tuple():
                cleared = type(value)(map(self.cleared, value))
            case BaseModel():
                cleared = value.model_copy(update={name: self.cleared(each) for name, each in value})
            case _ if is_dataclass(value) and not isinstance(value, type):
                held = {each.name: getattr(value, each.name) for each in fields(value)}
                cleared = replace(value, **{name: self.cleared(each) for name, each in held.items()})
        return value if cleared == value else cleared

    def outcome(self, outcome: Outcome) -> Outcome:
        """As `cleared`; data whose strings make up a copy together is left out as a whole."""
        pieced = self.copies(" ".join(_strings(outcome.data)))
        return self.cleared(replace(outcome, data=None) if pieced else outcome)

    def error(self, error: RolecallError) -> None:
        """Clear what an error says, in place: its type and code are what its callers know it by."""
        for name in ("message", "found", "allowed", "advice"):
            setattr(error, name, self.cleared(getattr(error, name)))

    def _cut(self, text: str) -> str:
        pairs = [(letter, at) for at, sign in enumerate(text) for letter in _letters(sign)]
        spans = [(pairs[start][1], pairs[end - 1][1] + 1) for start, end in self._copied("".join(p[0] for p in pairs))]
        for start, end in reversed(spans):
            text = text[:start] + WITHHELD + text[end:]
        return text

    def _copied(self, letters: str) -> Iterator[tuple[int, int]]:
        """Spans of letters that stand in a private text too, in order, none overlapping."""
        at = done = 0
        while at + SEED <= len(letters):
            end = 0
            if letters[at : at + SEED] in self._seeds:
                start, end = max((self._around(letters, at, text) for text in self._texts), key=lambda span: span[1])
            if end:
                yield max(start, done), end
                at = done = end
            else:
                at += 1

    @staticmethod
    def _around(letters: str, at: int, text: str) -> tuple[int, int]:
        """The copy of `text` that holds the seed at `at`, or (0, 0)."""
        need = min(RUN, len(text))
        for start in range(max(0, at - need + SEED), at + 1):
            if start + need <= len(letters) and (found := text.find(letters[start : start + need])) >= 0:
                end, more = start + need, found + need
                while end < len(letters) and more < len(text) and letters[end] == text[more]:
                    end, more = end + 1, more + 1
                return start, end
        return 0, 0


def for_client(passage: Passage) -> Passage:
    """A passage as a client may have it: of a private one where it is and how well it fits."""
    return passage.model_copy(update={"text": "", "heading": ""}) if passage.private else passage


@cache
def _letters(sign: str) -> str:
    """What a sign counts as in a comparison; "" for all that is neither letter nor digit."""
    plain = "".join(filter(str.isalnum, unicodedata.normalize("NFKD", sign).casefold()))
    return plain * _LETTERS_PER_SIGN if _UNSPACED.match(sign) else plain


def _strings(data: Any) -> Iterator[str]:
    match data:
        case str():
            yield data
        case dict() | list():
            for each in data.values() if isinstance(data, dict) else data:
                yield from _strings(each)
