"""Which model is used next, learnt from what each client used after what.

Pure: no clock and no chance, so that the same requests give the same forecast. It decides what is evicted first and
what is loaded ahead.
"""

from __future__ import annotations

from collections.abc import Mapping

DECAY = 0.97  # of a count at each later one: about the last hundred requests matter
GONE = 0.01  # a count that has decayed so far is forgotten, which bounds the tables
PRIOR = 2.0  # how many transitions weigh as much as the overall frequencies
CLIENTS = 64  # whose last model is remembered
RECENT = 0.7  # weight of each client against the one that asked after it


class Forecast:
    """Decayed frequencies of models, and first-order transitions within each client's requests."""

    def __init__(self) -> None:
        self._counts: dict[str, float] = {}
        self._after: dict[str, dict[str, float]] = {}
        self._last: dict[str, str] = {}  # by client, the latest at the end

    def seen(self, client: str, model: str) -> None:
        """`client` asked for `model`."""
        before = self._last.pop(client, None)
        self._last[client] = model
        if len(self._last) > CLIENTS:
            del self._last[next(iter(self._last))]
        _count(self._counts, model)
        if before is not None:
            _count(self._after.setdefault(before, {}), model)
        for forgotten in self._after.keys() - self._counts.keys():
            del self._after[forgotten]

    def after(self, client: str) -> Mapping[str, float]:
        """The probability of each model to be the next that `client` asks for."""
        total = sum(self._counts.values())
        seen = self._after.get(self._last.get(client, ""), {})
        weight = sum(seen.values()) + PRIOR
        return {m: (seen.get(m, 0.0) + PRIOR * n / total) / weight for m, n in self._counts.items()}

    def next_use(self) -> Mapping[str, float]:
        """The probability of each model to be the next that anyone asks for: clients weigh by how lately they asked."""
        found: dict[str, float] = {}
        weight, weights = 1.0, 0.0
        for client in reversed(self._last):
            for model, chance in self.after(client).items():
                found[model] = found.get(model, 0.0) + weight * chance
            weights += weight
            weight *= RECENT
        return {model: chance / weights for model, chance in found.items()}


def _count(counts: dict[str, float], model: str) -> None:
    for other in tuple(counts):
        counts[other] *= DECAY
        if counts[other] < GONE:
            del counts[other]
    counts[model] = counts.get(model, 0.0) + 1.0
