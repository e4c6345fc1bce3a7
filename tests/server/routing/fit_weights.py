"""Fits the learned part of the router on the project's own requests and writes `weights.npz`.

A developer's tool, not shipped: `python -m tests.server.routing.fit_weights MINILM_FOLDER --out FILE`. The seed, the
templates and the embedder's folder fix the result. `--check` instead prints what templates and registers that were
held out score. Needs SciPy, which comes with sentence-transformers.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse  # type: ignore[import-untyped,unused-ignore]
from scipy.optimize import minimize  # type: ignore[import-untyped,unused-ignore]

from rolecall.server.routing.classify import BUCKETS, TYPES, Array, ngrams, written
from rolecall.server.routing.signals import Reading, ends, load_rules, met, read

from .requests import Example, examples

STRENGTH = {"lexical": 2.0, "dense": 2.0, "rules": 0.1}
"""Inverse of each block's regularisation: the best of a small grid on registers held out."""
ITERATIONS = 50
FOLDS = 3


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minilm", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    rows, vectored, labels, offset = prepared(given.minilm)
    blocks = {"full": vectored, "bare": {part: vectored[part] for part in ("lexical", "rules")}}
    stored: dict[str, Any] = {"names": np.asarray([rule.name for rule in load_rules()])}
    for name, parts in blocks.items():
        if given.check:
            _check(name, parts, labels, offset, rows)
        else:
            fitted = _fit(parts, labels, offset)
            stored |= {
                f"{name}_{part}": weights.astype(np.float64 if part == "bias" else np.float16)
                for part, weights in fitted.items()
            }
    if not given.check:
        np.savez_compressed(given.out, **stored)


def prepared(minilm: Path) -> tuple[list[Example], dict[str, Any], Array, Array]:
    """The project's requests, their features (rows, width) by block, their types, and the rules' own log odds."""
    rows, rules = list(examples()), load_rules()
    readings = [read(row.text) for row in rows]
    fired = np.asarray([[rule in found for rule in rules] for found in map(met, readings)], dtype=np.float64)
    parts = {"lexical": _bags(readings), "rules": fired, "dense": _vectors(readings, minilm)}
    labels = np.asarray([TYPES.index(row.kind) for row in rows])
    return rows, parts, labels, fired @ np.asarray([written(rule) for rule in rules])


def _bags(readings: list[Reading]) -> Any:
    found = [ngrams(reading) for reading in readings]
    columns = [bucket for buckets in found for bucket in buckets]
    values = [1 / np.sqrt(len(buckets)) for buckets in found for _ in buckets]
    starts = np.cumsum([0, *(len(buckets) for buckets in found)])
    return sparse.csr_matrix((values, columns, starts), shape=(len(readings), BUCKETS))


def _vectors(readings: list[Reading], folder: Path) -> Array:
    """One text per forward pass on one thread, as the router asks for them."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    model = SentenceTransformer(str(folder), device="cpu")
    rows = [model.encode(ends(reading.instruction), normalize_embeddings=True) for reading in readings]
    return np.asarray(rows, dtype=np.float64)


def _fit(parts: dict[str, Any], labels: Array, offset: Array) -> dict[str, Array]:
    """Softmax regression over all blocks at once, on top of the rules' own log odds.

    Returns (features, 7) by block and `bias` (7,).
    """
    features = sparse.hstack([sparse.csr_matrix(part) for part in parts.values()]).tocsr()
    penalty = np.concatenate([np.full(part.shape[1], 1 / STRENGTH[name]) for name, part in parts.items()])[:, None]
    rows, width, kinds = *features.shape, len(TYPES)
    truth = np.eye(kinds)[labels]
    turned = features.T.tocsr()

    def loss(flat: Array) -> tuple[float, Array]:
        weights, bias = flat[: width * kinds].reshape(width, kinds), flat[width * kinds :]
        logits = features @ weights + bias + offset
        logits -= logits.max(axis=1, keepdims=True)
        log = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        slope = (np.exp(log) - truth) / rows
        value = (0.5 * (penalty * weights**2).sum() - (truth * log).sum()) / rows
        return value, np.concatenate([(turned @ slope + penalty * weights / rows).ravel(), slope.sum(axis=0)])

    start = np.zeros((width + 1) * kinds)
    flat = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS}).x
    cuts = np.cumsum([part.shape[1] for part in parts.values()])
    pieces = np.split(flat[: width * kinds].reshape(width, kinds), cuts[:-1])
    return {**dict(zip(parts, pieces, strict=True)), "bias": flat[width * kinds :]}


def held_out(parts: dict[str, Any], labels: Array, offset: Array, groups: list[str]) -> Array:
    """Log odds (rows, 7) of each group's rows by a model that has not seen it."""
    folds = np.asarray([zlib.crc32(group.encode()) % FOLDS for group in groups])
    logits = offset.copy()
    for fold in range(FOLDS):
        kept, out = folds != fold, folds == fold
        fitted = _fit({part: values[kept] for part, values in parts.items()}, labels[kept], offset[kept])
        logits[out] += fitted.pop("bias")
        for part, weights in fitted.items():
            logits[out] += parts[part][out] @ weights
    return logits


def _check(name: str, parts: dict[str, Any], labels: Array, offset: Array, rows: list[Example]) -> None:
    for held in ("template", "register"):
        best = held_out(parts, labels, offset, [getattr(row, held) for row in rows]).argmax(axis=1)
        recall = [float((best[labels == kind] == kind).mean()) for kind in range(len(TYPES))]
        print(name, f"{held}s held out: mean recall {np.mean(recall):.3f}", [round(value, 3) for value in recall])


if __name__ == "__main__":
    main(sys.argv[1:])
