"""Documents cut into passages that are the text's own bytes, where a reader would cut (`outline`).

Sized in tokens of the embedder. A chunk's `header` (path, headings or symbol, a table's columns) is for embedding and
full text only; it is never part of `text`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from .outline import SECTION, Headings, Outline, outline

CountTokens = Callable[[Sequence[str]], Sequence[int]]
"""Texts to their numbers of tokens, in order."""

TOLERANCE = 1.1  # a passage a little over the limit stays whole, sooner than leave a stump
_SMALL = 4  # a neighbour under 1/4 of the limit is small
_AT_ONCE = 1_000  # texts tokenised at a time; an encoding takes some 100 bytes per token

_PIECES = re.compile(r"[A-Za-z]+|\d+|[^\sA-Za-z\d]")
_SENTENCE = re.compile("[.!?:;\u3002\uff01\uff1f][\"'\u201d\u2019)\\]]*\\s*$")
_WORDS = re.compile(r"\S+\s*|\s+")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage: bytes [start_byte, end_byte) of the UTF-8 text decode to `text`; lines are 1-based and inclusive.

    `heading` is the headings or the symbol where the passage begins, `place` its page, sheet, slide or cell.
    """

    start_byte: int
    end_byte: int
    start_line: int
    end_line: int
    text: str
    heading: str = ""
    place: str = ""
    header: str = ""


def estimate_each(texts: Sequence[str]) -> list[int]:
    """WordPiece tokens of texts without a tokenizer: 0.94 to 1.13 of all-MiniLM-L6-v2's count on English prose,
    Markdown and Python, 0.7 on German (measured)."""
    return [sum(1 + (len(piece) - 1) // 7 for piece in _PIECES.findall(text)) for text in texts]


def tokenizer_at(file: Path | None) -> Any:
    """The embedder's tokenizer from its `tokenizer.json`; None where there is none that can be read."""
    if file is None or not file.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        loaded = Tokenizer.from_file(str(file))
    except Exception:  # the library raises nothing narrower; the embedder itself tells of a damaged folder
        return None
    loaded.no_truncation()
    loaded.no_padding()
    return loaded


def token_counter(tokenizer: Path | None) -> CountTokens:
    """Counts tokens with the embedder's tokenizer, or by estimate."""
    if (loaded := tokenizer_at(tokenizer)) is None:
        return estimate_each

    def count(texts: Sequence[str]) -> list[int]:
        counts: list[int] = []
        for start in range(0, len(texts), _AT_ONCE):
            some = texts[start : start + _AT_ONCE]
            encoded = loaded.encode_batch_fast(list(some), add_special_tokens=False)
            # A word that the vocabulary does not know is one token however long, and must not make a passage endless.
            counts += [max(len(one), len(text.strip()) // 10) for one, text in zip(encoded, some, strict=True)]
        return counts

    return count


def cut(
    text: str, kind: str, language: str, title: str, limit_tokens: int, count: CountTokens = estimate_each,
    place: str = "", above: Headings | None = None,
) -> tuple[Chunk, ...]:  # fmt: skip
    """Chunks of about `limit_tokens`, 1.1 times that at most, in order, without overlap; blank text gives none.

    `kind` is one of `Kind`, `language` a language's name; `title` (a path's tail) starts every header. Of a document's
    page, `above` are the headings open where it begins; they become those where it ends.
    """
    outlined = outline(text, kind, language, title, above)
    if outlined.columns:
        title = f"{title} > {outlined.columns}"
        limit_tokens = max(limit_tokens // 2, limit_tokens - count([outlined.columns])[0])
    cutter = _Cutter(outlined, limit_tokens, count)
    chunks = []
    char = byte = line = 0
    for start, end, _ in cutter.spans(0, len(outlined.units)):
        start += start == 0 and text.startswith("\ufeff")
        kept = text[start:end].rstrip()
        if kept:
            blank = len(kept) - len(kept.lstrip())
            if start == 0 or text[start - 1] == "\n":
                blank = kept.rfind("\n", 0, blank) + 1  # the first line's indentation stays
            start, kept = start + blank, kept[blank:]
            byte += len(text[char:start].encode())
            line += text.count("\n", char, start)
            size, height = len(kept.encode()), kept.count("\n")
            heading = outlined.headings[cutter.unit_at(start)]
            header = f"{title} > {heading}" if heading else title
            chunks.append(Chunk(byte, byte + size, line + 1, line + 1 + height, kept, heading, place, header))
            char, byte, line = start + len(kept), byte + size, line + height
    return tuple(chunks)


Span = tuple[int, int, int]  # first character, end, tokens


class _Cutter:
    """Cuts at the strongest boundaries first, then joins small neighbours."""

    def __init__(self, outlined: Outline, limit: int, count: CountTokens) -> None:
        self._units, self._strengths, self._limit, self._count = outlined.units, outlined.strengths, limit, count
        self._chars = [0, *accumulate(map(len, outlined.units))]
        self._tokens = [0, *accumulate(count(outlined.units))]

    def unit_at(self, char: int) -> int:
        return bisect_right(self._chars, char) - 1

    def spans(self, low: int, high: int) -> list[Span]:
        """Of the units [low, high). Each level down has weaker boundaries, so the depth is bounded."""
        tokens = self._tokens[high] - self._tokens[low]
        strongest = max(self._strengths[low + 1 : high], default=-1)
        if tokens <= self._limit * TOLERANCE:
            return [(self._chars[low], self._chars[high], tokens)]
        if high - low == 1:
            return self._cut_unit(low)
        cuts = [low, *(i for i in range(low + 1, high) if self._strengths[i] == strongest), high]
        joined: list[Span] = []
        for start, end in pairwise(cuts):
            for span in self.spans(start, end):
                small = joined and min(joined[-1][2], span[2]) * _SMALL < self._limit
                fits = joined and joined[-1][2] + span[2] <= self._limit * (TOLERANCE if small else 1)
                if fits and (small or strongest < SECTION):
                    joined[-1] = (joined[-1][0], span[1], joined[-1][2] + span[2])
                else:
                    joined.append(span)
        return joined

    def _cut_unit(self, index: int) -> list[Span]:
        """A line over the limit: after sentences where one ends in the second half, else between words."""
        unit, offset = self._units[index], self._chars[index]
        longest = self._limit  # characters: no character costs more than a token
        bounds = [
            min(at + longest, word.end())
            for word in _WORDS.finditer(unit)
            for at in range(word.start(), word.end(), longest)
        ]
        costs = self._count([unit[at:end] for at, end in pairwise([0, *bounds])])
        out: list[Span] = []
        start, at, tokens, sentence = 0, 0, 0, (0, 0)
        for end, cost in zip(bounds, costs, strict=True):
            if tokens + cost > self._limit and at > start:
                stop, used = sentence if sentence[1] * 2 > self._limit else (at, tokens)
                out.append((offset + start, offset + stop, used))
                start, tokens, sentence = stop, tokens - used, (0, 0)
            tokens, at = tokens + cost, end
            if _SENTENCE.search(unit, max(start, end - 12), end):
                sentence = (end, tokens)
        return [*out, (offset + start, offset + len(unit), tokens)]
