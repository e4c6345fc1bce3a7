"""Fits the learned part of the router on the project's own utterances and writes `weights.npz`.

A developer's tool, not shipped: `python tests/server/routing/fit_weights.py MINILM_FOLDER --out FILE`. The seed, the
utterances and the embedder's folder fix the result. Needs scikit-learn, which comes with sentence-transformers.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rolecall.server.routing.classify import BUCKETS, TYPES, Array, ngrams
from rolecall.server.routing.contract import TaskType
from rolecall.server.routing.signals import Reading, read

SEED = 20260
PER_TEMPLATE = 6
STRENGTH = 4.0
"""Inverse of the regularisation."""
_OPENINGS = ("", "", "", "please ", "hey, ", "can you tell me ", "quick question: ", "I was wondering, ", "ok so ")
_SLOT = re.compile(r"\{(\w+)\}")
_CLOSINGS = ("", "", "", "", " thanks", " please", "?")


def examples() -> list[tuple[str, TaskType]]:
    """Requests and their types, expanded with the fixed seed."""
    data = yaml.safe_load(files("rolecall.config").joinpath("routing/utterances.yaml").read_text("utf-8"))
    slots: dict[str, list[str]] = data["slots"]
    found = []
    for kind, template in ((kind, template) for kind, held in data["types"].items() for template in held):
        draw = random.Random(f"{SEED} {template}")  # so that a new template moves no other's examples
        for _ in range(PER_TEMPLATE if _SLOT.search(template) else 2):
            text = _SLOT.sub(partial(_filled, slots, draw), template)
            if len(text) < 200 and "\n" not in text and text.isascii():
                text = draw.choice(_OPENINGS) + text + draw.choice(_CLOSINGS)
            found.append((draw.choice((text, text, text.lower())), TaskType(kind)))
    return found


def _filled(slots: dict[str, list[str]], draw: random.Random, slot: re.Match[str]) -> str:
    return draw.choice(slots[slot[1]]) if slot[1] in slots else slot[0]


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


def _fit(features: Array, labels: Array) -> tuple[Array, Array]:
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped,unused-ignore]

    model: Any = LogisticRegression(C=STRENGTH, max_iter=2000)
    model.fit(features, labels)
    order = [list(model.classes_).index(position) for position in range(len(TYPES))]
    return model.coef_[order].T, model.intercept_[order]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minilm", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    rows = examples()
    readings = [read(text) for text, _ in rows]
    labels = np.asarray([TYPES.index(kind) for _, kind in rows])
    words, sentences = _fit(_bags(readings), labels), _fit(_vectors(readings, given.minilm), labels)
    np.savez_compressed(
        given.out,
        lexical=words[0].astype(np.float16),
        lexical_bias=words[1],
        dense=sentences[0].astype(np.float16),
        dense_bias=sentences[1],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
