"""How good hits are: both legs as one order, which of them say the same, and whether they hold an answer."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .rows import Hit, Vectors
from .words import stems

Ranked = Sequence[tuple[Hit, float]]
"""Hits with their scores in [0, 1], the best first."""

DENSE_WEIGHT, WEIGHT_PER_BYTE = 0.6, 0.15
"""The dense leg counts for 0.15 of each byte per piece that the embedder's vocabulary makes of the question, 0.6 at
most: a language that goes to pieces has poor vectors. Source: measured with all-MiniLM-L6-v2, nDCG@10 of full text,
vectors, both: Cranfield 0.521, 0.504, 0.569; XQuAD English 0.969, 0.948, 0.979, German 0.938, 0.704, 0.946. With a
fixed 0.6 and other stem weights XQuAD German had 0.934. What the other sets choose for each was within 0.003
(`tests/retrieval/fusion_report.py`)."""
UNKNOWN_WEIGHT = 0.5
"""Where there is no vocabulary to ask."""

ALIKE = 0.9
"""Share of common runs of three words from which two passages count as one, if their numbers are the same too."""

COSINE, COVERAGE, OFFSET = 4.82, 10.99, -6.72
"""Logistic regression on the questions of XQuAD, English and German, with half of the paragraphs taken away."""
POOL, LEAST_POOL = 100, 20
"""Hits that tell a rare word from a common one, at most and at least."""

_WORDS = re.compile(r"\w+")
_UNKNOWN = ("[UNK]", "<unk>")


def dense_weight(tokenizer: Any, text: str) -> float:
    """The dense leg's share in the ranking for a question; `tokenizer` as of `chunks.tokenizer_at`."""
    if tokenizer is None:
        return UNKNOWN_WEIGHT
    return min(DENSE_WEIGHT, WEIGHT_PER_BYTE * bytes_per_piece(tokenizer, text))


def bytes_per_piece(tokenizer: Any, text: str) -> float:
    """UTF-8 bytes, white space left out; a word that is not known at all is a piece for each character."""
    encoded = tokenizer.encode(text, add_special_tokens=False)
    unknown = {tokenizer.token_to_id(token) for token in _UNKNOWN}
    spans = zip(encoded.ids, encoded.offsets, strict=True)
    pieces = sum(end - start if token in unknown else 1 for token, (start, end) in spans)
    return len("".join(text.split()).encode()) / max(1, pieces)


def set_cosines(hits: Sequence[Hit], vectors: Vectors, query: Vectors) -> None:
    """Of the text leg's hits; `vectors` have shape (hits, dimensions), `query` (dimensions,)."""
    for hit, cosine in zip(hits, (vectors @ query).tolist(), strict=True):
        hit.cosine = cosine


def fuse(text: Sequence[Hit], dense: Sequence[Hit], dense_weight: float = UNKNOWN_WEIGHT) -> list[tuple[Hit, float]]:
    """Hits of both legs with a score in [0, 1], the best first, ties by id.

    A hit's share of a leg is its BM25, or its cosine, over that leg's best. The text leg's hits have theirs too, so
    that a passage is not punished for missing the dense leg's cut.
    """
    hits = {hit.id: hit for hit in (*dense, *text)}
    best = max((hit.bm25 for hit in text), default=0.0) or 1.0
    nearest = max((hit.cosine for hit in hits.values()), default=0.0)

    def share(hit: Hit) -> float:
        near = max(0.0, hit.cosine) / nearest if nearest > 0 else 0.0
        return round(min(1.0, (1 - dense_weight) * hit.bm25 / best + dense_weight * near), 6)

    return sorted(((hit, share(hit)) for hit in hits.values()), key=lambda pair: (-pair[1], pair[0].id))


def answerable(query: str, best: Hit, ranked: Ranked) -> float | None:
    """How likely the best hit and those beside it hold an answer, in [0, 1]: by the best one's cosine, and by how much
    of the question's words it has, the rarer among all that was ranked the heavier. None where that is too little to
    tell."""
    if len(ranked) < LEAST_POOL:
        return None
    texts = [hit.chunk.text.casefold() for hit, _ in ranked[:POOL]]
    weights = {stem: math.log((len(texts) + 1) / (1 + sum(stem in text for text in texts))) for stem in stems(query)}
    whole, text = sum(weights.values()), best.chunk.text.casefold()
    covered = sum(weight for stem, weight in weights.items() if stem in text)
    logit = COSINE * best.cosine + COVERAGE * (covered / whole if whole else 1.0) + OFFSET
    return round(1 / (1 + math.exp(-logit)), 4)


@dataclass(frozen=True, slots=True)
class Likeness:
    """What tells two passages apart whatever their case, punctuation and markup: runs of three words, and numbers."""

    runs: frozenset[tuple[str, ...]]
    numbers: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Likeness:
        words = _WORDS.findall(text.casefold())
        runs = frozenset(zip(words, words[1:], words[2:], strict=False)) or frozenset([tuple(words) or (text,)])
        return cls(runs, tuple(sorted(word for word in words if not word.isalpha())))

    def is_like(self, other: Likeness) -> bool:
        small, large = sorted((len(self.runs), len(other.runs)))
        if self.numbers != other.numbers or small < ALIKE * large:
            return False
        return len(self.runs & other.runs) >= ALIKE * len(self.runs | other.runs)
