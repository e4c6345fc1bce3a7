"""From signals to probabilities of the seven task types: rules, what wording and vector add to them, one softmax.

The learned part was fitted on the project's own requests (tests/server/routing/fit_weights.py) on top of the rules'
log odds: hashed n-grams of words and of letters of the instruction, corrections to the rules and, where there is an
embedder, its vector. There is one model with the vector and one without.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from io import BytesIO
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from .contract import TaskType
from .signals import Reading, Rule, load_rules, met

Array = npt.NDArray[np.float64]
Signals = tuple[list[Rule], list[int]]

WORD_BUCKETS = 4096
LETTER_BUCKETS = 8192
BUCKETS = WORD_BUCKETS + LETTER_BUCKETS
"""Hashed n-gram features: words first, then letters."""
TYPES: tuple[TaskType, ...] = tuple(TaskType)
_WORD = re.compile(r"[a-zà-ÿа-я']+|\d+|[\u3040-\u9fff]|[^\w\s]", re.IGNORECASE)
_MAX_WORDS = 80
_LETTERS = (3, 4, 5)
_SCALE = 1.1
"""Inverse temperature: what the likelihood of templates held out asks for."""
_CAUTION = 1.2
"""Log odds that `tool` must bring besides. Most of what is `tool` a grammar claims; of the rest a wrong one costs more
than a miss. On `setaside.jsonl`, held out in folds, it lifts precision from 0.965 to 0.98 and costs 0.008 of accuracy.
"""
_DIGITS = 4
"""Coarser than the last bits that an embedder's number of threads moves (about 1e-7)."""
FITTED_WITH = "starter/all-minilm-l6-v2"
"""The embedder whose vectors the learned part knows; another's say nothing to it."""
_NAMED = 3
"""How many rules a decision's reasons name."""


@dataclass(frozen=True, slots=True)
class Model:
    """Log odds per type. `lexical` (BUCKETS, 7), `rules` by name (7,), `bias` (7,), `dense` (dimensions, 7) or none."""

    lexical: Array
    rules: Mapping[str, Array]
    bias: Array
    dense: Array | None


@cache
def load_weights() -> dict[str, Model]:
    """The packaged weights. A rule that they do not know yet counts as it is written."""
    raw = files("rolecall.server.routing").joinpath("weights.npz").read_bytes()
    with np.load(BytesIO(raw), allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    names = [str(name) for name in arrays.pop("names")]
    learned = {name: np.asarray(values, dtype=np.float64) for name, values in arrays.items()}
    models = {}
    for kind in ("full", "bare"):
        corrections = dict(zip(names, learned[f"{kind}_rules"], strict=True))
        rules = {rule.name: written(rule) + corrections.get(rule.name, 0.0) for rule in load_rules()}
        bias = learned[f"{kind}_bias"] - _CAUTION * np.asarray([one is TaskType.TOOL for one in TYPES])
        models[kind] = Model(learned[f"{kind}_lexical"], rules, bias, learned.get(f"{kind}_dense"))
    return models


def classify(
    reading: Reading, vector: npt.NDArray[np.float32] | None, signals: Signals | None = None
) -> tuple[dict[TaskType, float], tuple[str, ...]]:
    """Probabilities of the types, rounded to 4 digits, and the reasons in words.

    `vector` is the instruction's embedding, unit length; None where there is no embedder, which is then said. `signals`
    of the reading, where they are had already.
    """
    model = load_weights()["bare" if vector is None else "full"]
    rules, buckets = signals or signals_of(reading)
    logits = model.bias + model.lexical[buckets].sum(axis=0) / np.sqrt(max(len(buckets), 1))
    for rule in rules:
        logits = logits + model.rules[rule.name]
    if vector is not None and model.dense is not None:
        logits = logits + np.asarray(vector, dtype=np.float64) @ model.dense
    odds = np.exp(_SCALE * (logits - logits.max()))
    scores = {kind: round(float(value), _DIGITS) for kind, value in zip(TYPES, odds / odds.sum(), strict=True)}
    return scores, _reasons(model, rules, scores)


def signals_of(reading: Reading) -> Signals:
    """All that the vector is not needed for: the rules met, and the buckets of its n-grams."""
    return met(reading), ngrams(reading)


def ngrams(reading: Reading) -> list[int]:
    """Sorted distinct buckets of the instruction: flags, opening words, n-grams of words and, within words, letters.

    Numbers count alike; of long instructions the first and the last words count.
    """
    words = ["#" if word.isdigit() else word.lower() for word in _WORD.findall(reading.instruction)]
    if len(words) > _MAX_WORDS:
        words = words[: _MAX_WORDS // 2] + words[-_MAX_WORDS // 2 :]
    grams = set(words) | {f"{a} {b}" for a, b in pairwise(words)}
    grams |= {f"^{word}" for word in words[:2]} | {f"={flag}" for flag in reading.flags}
    buckets = {zlib.crc32(gram.encode()) % WORD_BUCKETS for gram in grams}
    return sorted(buckets.union(*(_letters(word) for word in set(words))))


@lru_cache(maxsize=8192)
def _letters(word: str) -> frozenset[int]:
    framed = f"<{word}>"
    grams = {framed[at : at + size] for size in _LETTERS for at in range(len(framed) - size + 1)}
    return frozenset(WORD_BUCKETS + zlib.crc32(f"~{gram}".encode()) % LETTER_BUCKETS for gram in grams)


def written(rule: Rule) -> Array:
    """A rule's written log odds per type."""
    return np.asarray([rule.weights.get(kind, 0.0) for kind in TYPES])


def _reasons(model: Model, rules: list[Rule], scores: dict[TaskType, float]) -> tuple[str, ...]:
    best, second = sorted(TYPES, key=lambda kind: -scores[kind])[:2]
    said = [(float(model.rules[rule.name][TYPES.index(best)]), rule.name) for rule in rules]
    named = sorted((-weight, name) for weight, name in said if weight > 0)[:_NAMED]
    reasons = [f"{best}: {name}" for _, name in named] or [f"{best}: wording like the project's examples of it"]
    reasons.append(f"next likeliest: {second}")
    if model.dense is None:
        reasons.append("decided without an embedding, by rules and wording")
    return tuple(reasons)
