"""Two legs, one ranking."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rolecall.retrieval.chunks import Chunk
from rolecall.retrieval.store import Hit, fuse

QUERY = np.array([1.0, 0.0], dtype=np.float32)


def hit(name: str, score: float, cosine: float) -> Hit:
    vector = np.array([cosine, (1 - cosine**2) ** 0.5], dtype=np.float32)
    return Hit(name, name, Chunk(0, 1, 1, 1, name, ""), score, vector)


def test_a_passage_good_in_both_legs_comes_before_the_best_of_one() -> None:
    ranked = fuse([hit("words", 9.0, 0.1), hit("both", 8.0, 0.8)], [hit("near", 0.9, 0.9)], QUERY)
    assert [found.id for found, _ in ranked] == ["both", "words", "near"]


def test_without_vectors_the_text_leg_alone_ranks() -> None:
    assert [(found.id, score) for found, score in fuse([hit("a", 2.0, 0), hit("b", 1.0, 1)], [], None)] == [
        ("a", 1.0),
        ("b", 0.5),
    ]
    assert fuse([], [], QUERY) == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 50), st.floats(-1, 1), st.booleans()), max_size=20))
def test_scores_lie_between_0_and_1_in_falling_order_each_hit_once(rows: list[tuple[float, float, bool]]) -> None:
    hits = [hit(str(i), score, cosine) for i, (score, cosine, _) in enumerate(rows)]
    text = [one for one, (_, _, in_text) in zip(hits, rows, strict=True) if in_text]
    ranked = fuse(text, hits, QUERY)
    scores = [score for _, score in ranked]
    assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
    assert sorted(found.id for found, _ in ranked) == sorted(one.id for one in hits)
