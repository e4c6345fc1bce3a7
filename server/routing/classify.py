"""From signals to probabilities of the seven task types: rules, a small learned model, and the two together.

The learned model was fitted on the project's own utterances (tests/server/routing/fit_weights.py). It reads word
n-grams of the instruction and, where there is an embedder, its vector.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from io import BytesIO
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from .contract import TaskType
from .signals import Reading, Rule, met, policy

Array = npt.NDArray[np.float64]

BUCKETS = 4096
"""Hashed n-gram features."""
TYPES: tuple[TaskType, ...] = tuple(TaskType)
_WORD = re.compile(r"[a-zà-ÿа-я']+|\d+|[\u3040-\u9fff]|[^\w\s]", re.IGNORECASE)
_MAX_WORDS = 80
_FACTORS = ((1.2, 0.5, 0.7), (1.2, 0.9, 0.0))
"""How much rules, n-grams and vector count, with a vector and without: the best of a grid on templates held out."""
_DIGITS = 4
"""Coarser than the last bits that an embedder's number of threads moves (about 1e-7)."""
_NAMED = 3
"""How many rules a decision's reasons name."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The learned model: log odds per type. `lexical` (BUCKETS, 7), `dense` (dimensions, 7), biases (7,)."""

    lexical: Array
    lexical_bias: Array
    dense: Array
    dense_bias: Array
    sha256: str


@cache
def load_weights() -> Weights:
    """The packaged weights; `sha256` covers them and the rules."""
    raw = files("rolecall.server.routing").joinpath("weights.npz").read_bytes()
    with np.load(BytesIO(raw), allow_pickle=False) as stored:
        arrays = {name: np.asarray(stored[name], dtype=np.float64) for name in stored.files}
    return Weights(**arrays, sha256=hashlib.sha256(raw + f"{_FACTORS}{policy()}".encode()).hexdigest())


def classify(reading: Reading, vector: npt.NDArray[np.float32] | None) -> tuple[dict[TaskType, float], tuple[str, ...]]:
    """Probabilities of the types, rounded to 4 digits, and the reasons in words.

    `vector` is the instruction's embedding, unit length; None where there is no embedder, which is then said.
    """
    weights = load_weights()
    rules = met(reading)
    factors = _FACTORS[int(vector is None)]
    buckets = ngrams(reading)
    lexical = weights.lexical[buckets].sum(axis=0) / np.sqrt(max(len(buckets), 1)) + weights.lexical_bias
    ruled = np.zeros(len(TYPES))
    for kind, weight in (pair for rule in rules for pair in rule.weights.items()):
        ruled[TYPES.index(kind)] += weight
    logits = factors[0] * ruled + factors[1] * log_softmax(lexical)
    if vector is not None:
        dense = np.asarray(vector, dtype=np.float64) @ weights.dense + weights.dense_bias
        logits += factors[2] * log_softmax(dense)
    probabilities = np.exp(log_softmax(logits))
    scores = {kind: round(float(value), _DIGITS) for kind, value in zip(TYPES, probabilities, strict=True)}
    return scores, _reasons(rules, scores, vector is not None)


def ngrams(reading: Reading) -> list[int]:
    """Sorted distinct buckets of the instruction's word 1- to 2-grams (numbers alike), its opening words and flags."""
    words = ["#" if word.isdigit() else word.lower() for word in _WORD.findall(reading.instruction)]
    if len(words) > _MAX_WORDS:
        words = words[: _MAX_WORDS // 2] + words[-_MAX_WORDS // 2 :]
    grams = set(words) | {f"{a} {b}" for a, b in pairwise(words)}
    grams |= {f"^{word}" for word in words[:2]} | {f"={flag}" for flag in reading.flags}
    return sorted({zlib.crc32(gram.encode()) % BUCKETS for gram in grams})


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max()
    normal: Array = shifted - np.log(np.exp(shifted).sum())
    return normal


def _reasons(rules: list[Rule], scores: dict[TaskType, float], embedded: bool) -> tuple[str, ...]:
    best, second = sorted(TYPES, key=lambda kind: -scores[kind])[:2]
    named = sorted((-rule.weights[best], rule.name) for rule in rules if rule.weights.get(best, 0.0) > 0)[:_NAMED]
    reasons = [f"{best}: {name}" for _, name in named] or [f"{best}: wording like the project's examples of it"]
    reasons.append(f"next likeliest: {second}")
    if not embedded:
        reasons.append("decided without an embedding, by rules and wording")
    return tuple(reasons)
