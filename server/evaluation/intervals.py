"""Every interval that Rolecall states: two-sided, 95%, the same figures at every run.

Source: Wilson, "Probable inference", JASA 22 (1927), for shares; Efron's percentile bootstrap (1979) for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import BadRequest

Interval = tuple[float, float]

_SEED = 5
_AT_ONCE = 200
"""Resamples held at a time: 9,999 of some thousand values would fill half a gigabyte."""


def wilson(hits: int, n: int) -> Interval:
    """Of the share `hits` of `n`; of none at all nothing is known: (0, 1)."""
    from scipy.stats import binomtest

    if not n:
        return 0.0, 1.0
    found = binomtest(hits, n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def mean(values: Sequence[float]) -> Interval:
    """Of the mean. Raises BadRequest for fewer than two values, as `difference` does."""
    import numpy as np
    from scipy.stats import bootstrap

    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        raise BadRequest("An interval needs at least two items.", found=str(len(array)), advice="Give more items.")
    if (array == array[0]).all():  # scipy warns where nothing varies
        return float(array[0]), float(array[0])
    drawn = bootstrap((array,), np.mean, method="percentile", batch=_AT_ONCE, rng=_SEED)
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def difference(a: Sequence[float], b: Sequence[float]) -> Interval:
    """Of mean(a) - mean(b), which belong to the same items in the same order (paired)."""
    return mean([x - y for x, y in zip(a, b, strict=True)])
