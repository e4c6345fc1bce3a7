"""Fits the learned part of the router on the project's own utterances and writes `weights.npz`.

A developer's tool: `python -m rolecall.server.routing.train MINILM_FOLDER [--out FILE]`. The seed, the utterances and
the embedder's folder fix the result. Needs scikit-learn, which comes with sentence-transformers.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .classify import BUCKETS, TYPES, Array, log_softmax, ngrams, rule_logits
from .contract import TaskType
from .signals import Reading, met, read

SEED = 20260
PER_TEMPLATE = 6
FOLDS = 5
STRENGTH = 4.0
"""Inverse of the regularisation."""
_OPENINGS = ("", "", "", "please ", "hey, ", "can you tell me ", "quick question: ", "I was wondering, ", "ok so ")
_SLOT = re.compile(r"\{(\w+)\}")
_CLOSINGS = ("", "", "", "", " thanks", " please", "?")


def examples() -> list[tuple[str, TaskType, int]]:
    """Request, type and template number, expanded with the fixed seed."""
    data = yaml.safe_load(files("rolecall.config").joinpath("routing/utterances.yaml").read_text("utf-8"))
    slots: dict[str, list[str]] = data["slots"]
    draw = random.Random(SEED)
    templates = [(kind, template) for kind, held in data["types"].items() for template in held]
    found = []
    for number, (kind, template) in enumerate(templates, start=1):
        for _ in range(PER_TEMPLATE if _SLOT.search(template) else 2):
            text = _SLOT.sub(lambda slot: draw.choice(slots[slot[1]]) if slot[1] in slots else slot[0], template)
            if len(text) < 200 and "\n" not in text and text.isascii():
                text = draw.choice(_OPENINGS) + text + draw.choice(_CLOSINGS)
            found.append((draw.choice((text, text, text.lower())), TaskType(kind), number))
    return found


def _vectors(readings: list[Reading], folder: Path) -> Array:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    model = SentenceTransformer(str(folder), device="cpu")
    rows = [model.encode(reading.instruction, normalize_embeddings=True) for reading in readings]
    return np.asarray(rows, dtype=np.float64)


def _bags(readings: list[Reading]) -> Array:
    bags = np.zeros((len(readings), BUCKETS))
    for row, reading in enumerate(readings):
        buckets = ngrams(reading)
        bags[row, buckets] = 1 / np.sqrt(max(len(buckets), 1))
    return bags


def _fit(features: Array, labels: Array, strength: float) -> tuple[Array, Array]:
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped,unused-ignore]

    model: Any = LogisticRegression(C=strength, max_iter=2000)
    model.fit(features, labels)
    order = [list(model.classes_).index(position) for position in range(len(TYPES))]
    return model.coef_[order].T, model.intercept_[order]


def _held_out(features: Array, labels: Array, templates: Array, strength: float) -> Array:
    """Log probabilities of each row by a model that saw none of its template's rows."""
    scores = np.zeros((len(labels), len(TYPES)))
    for fold in range(FOLDS):
        seen = templates % FOLDS != fold
        coefficients, intercepts = _fit(features[seen], labels[seen], strength)
        scores[~seen] = [log_softmax(row) for row in features[~seen] @ coefficients + intercepts]
    return scores


def _factors(parts: list[Array], labels: Array) -> list[float]:
    """How much each part counts: log-linear pooling fitted on held-out scores, over a small grid."""

    def loss(factors: tuple[float, ...]) -> float:
        pooled = np.sum([factor * part for factor, part in zip(factors, parts, strict=True)], axis=0)
        return -float(np.mean([log_softmax(row)[label] for row, label in zip(pooled, labels, strict=True)]))

    return list(min(product((0.3, 0.5, 0.7, 0.9, 1.2), repeat=len(parts)), key=loss))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minilm", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("weights.npz"))
    given = parser.parse_args(arguments)
    rows = examples()
    readings = [read(text) for text, _, _ in rows]
    labels = np.asarray([TYPES.index(kind) for _, kind, _ in rows])
    templates = np.asarray([number for _, _, number in rows])
    rules = np.asarray([rule_logits(met(reading)) for reading in readings])
    bags, vectors = _bags(readings), _vectors(readings, given.minilm)
    lexical, dense = _held_out(bags, labels, templates, STRENGTH), _held_out(vectors, labels, templates, STRENGTH)
    with_vector, without = _factors([rules, lexical, dense], labels), _factors([rules, lexical], labels)
    for name, part in (("rules", rules), ("lexical", lexical), ("dense", dense)):
        sys.stderr.write(f"{name}: {np.mean(part.argmax(axis=1) == labels):.3f} on templates not seen\n")
    sys.stderr.write(f"{len(rows)} rows; factors {with_vector} with vectors, {without} without\n")
    words, sentences = _fit(bags, labels, STRENGTH), _fit(vectors, labels, STRENGTH)
    np.savez_compressed(
        given.out,
        lexical=words[0].astype(np.float16),
        lexical_bias=words[1],
        dense=sentences[0].astype(np.float16),
        dense_bias=sentences[1],
        factors=np.asarray([with_vector[0], without[0], with_vector[1], without[1], with_vector[2]]),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
