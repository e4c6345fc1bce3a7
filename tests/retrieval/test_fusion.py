"""Two legs, one ranking, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace

from rolecall.retrieval.chunks import Chunk, tokenizer_at
from rolecall.retrieval.contract import ANSWERABLE
from rolecall.retrieval.ranking import (
    DENSE_WEIGHT,
    LEAST_POOL,
    UNKNOWN_WEIGHT,
    Likeness,
    answerable,
    dense_weight,
    fuse,
    set_cosines,
)
from rolecall.retrieval.rows import Hit


def hit(name: str, bm25: float, cosine: float) -> Hit:
    return Hit(name, name, Chunk(0, 1, 1, 1, name, ""), bm25, cosine)


def test_the_text_leg_s_hits_get_their_cosines() -> None:
    hits = [hit("a", 1.0, 0), hit("b", 1.0, 0)]
    set_cosines(hits, np.array([[0, 1], [1, 0]], dtype=np.float32), np.array([1, 0], dtype=np.float32))
    assert [one.cosine for one in hits] == [0.0, 1.0]


def test_a_passage_good_in_both_legs_comes_before_the_best_of_one() -> None:
    ranked = fuse([hit("words", 9.0, 0.1), hit("both", 8.0, 0.8)], [hit("near", 0, 0.9)])
    assert [found.id for found, _ in ranked] == ["both", "words", "near"]


def test_without_vectors_the_text_leg_alone_ranks() -> None:
    ranked = fuse([hit("a", 2.0, 0), hit("b", 1.0, 0)], [], 0.0)
    assert [(found.id, score) for found, score in ranked] == [("a", 1.0), ("b", 0.5)]
    assert fuse([], []) == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 50), st.floats(-1, 1), st.booleans()), max_size=20))
def test_scores_lie_between_0_and_1_in_falling_order_each_hit_once(rows: list[tuple[float, float, bool]]) -> None:
    hits = [hit(str(i), score, cosine) for i, (score, cosine, _) in enumerate(rows)]
    text = [one for one, (_, _, in_text) in zip(hits, rows, strict=True) if in_text]
    ranked = fuse(text, hits)
    scores = [score for _, score in ranked]
    assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
    assert sorted(found.id for found, _ in ranked) == sorted(one.id for one in hits)


def test_the_dense_leg_counts_less_where_the_vocabulary_breaks_a_question_up(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    words = Tokenizer(
        WordPiece({"[UNK]": 0, "pressure": 1, "valve": 2, **{f"##{c}": 9 + i for i, c in enumerate("abc")}})
    )
    words.pre_tokenizer = Whitespace()
    words.save(str(file))
    tokenizer = tokenizer_at(file)
    assert dense_weight(tokenizer, "pressure valve") == DENSE_WEIGHT
    assert dense_weight(tokenizer, "valveabc") == pytest.approx(0.15 * 8 / 4)
    assert dense_weight(tokenizer, "Ventildruck") == pytest.approx(0.15)  # not known at all: a piece for each character
    assert dense_weight(tokenizer_at(tmp_path / "none.json"), "valve") == UNKNOWN_WEIGHT


def test_the_question_s_rarer_words_in_the_best_passage_make_an_answer_likely() -> None:
    best = replace(hit("best", 1, 0.6), chunk=Chunk(0, 1, 1, 1, "The valve opens at 42 bar."))
    other = replace(hit("other", 1, 0.3), chunk=Chunk(0, 1, 1, 1, "The pump opens in spring."))
    ranked = [(best, 1.0), *[(other, 0.5)] * LEAST_POOL]
    asked = [
        answerable(query, best, ranked) or 0.0 for query in ("valve bar", "the pump opens", "who paid the garden?")
    ]
    assert asked == sorted(asked, reverse=True)
    assert asked[0] > ANSWERABLE > asked[2]
    assert answerable("valve bar", best, ranked[:-2]) is None


def test_passages_are_alike_in_spite_of_markup_and_differ_in_a_number() -> None:
    text = "The service window of the northern pump is open from March to October, on work days only. " * 2
    assert Likeness.of(text).is_like(Likeness.of(f"**{text.upper()}**"))
    assert Likeness.of(text).is_like(Likeness.of(f"{text} See"))
    assert not Likeness.of(f"{text} 42").is_like(Likeness.of(f"{text} 43"))
    assert not Likeness.of("valve").is_like(Likeness.of("pump"))
    assert not Likeness.of("...").is_like(Likeness.of("!!!"))
