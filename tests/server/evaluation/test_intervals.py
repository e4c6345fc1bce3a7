"""Intervals against published values and against what they promise: to cover, and to be the same at every run."""

from __future__ import annotations

import numpy as np
import pytest

from rolecall.server.errors import BadRequest
from rolecall.server.evaluation.intervals import difference, mean, wilson


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_values(hits: int, n: int, low: float, high: float) -> None:
    assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)


def test_of_nothing_nothing_is_known() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    for few in ([], [1.0]):
        with pytest.raises(BadRequest, match="at least two"):
            mean(few)


def test_a_bootstrap_is_the_same_at_every_run_and_close_to_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 400).tolist()
    low, high = mean(values)
    half = 1.96 * float(np.std(values)) / 20
    assert mean(values) == (low, high)
    assert (low, high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=0.03)


def test_the_interval_of_the_mean_covers_it_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = [low <= 0.5 <= high for low, high in (mean(rng.random(60).tolist()) for _ in range(100))]
    assert sum(covered) >= 88


def test_a_paired_difference_is_surer_than_its_sides() -> None:
    hard = np.random.default_rng(3).random(200)
    low, high = difference((hard + 0.1).tolist(), hard.tolist())
    assert (low, high) == pytest.approx((0.1, 0.1))
    assert mean(hard.tolist())[1] - mean(hard.tolist())[0] > 0.05
    with pytest.raises(ValueError, match="shorter"):
        difference([1.0, 2.0], [1.0])


def test_where_nothing_varies_the_interval_is_the_value() -> None:
    assert mean([2.0, 2.0, 2.0]) == (2.0, 2.0)
