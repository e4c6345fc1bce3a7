"""Log-probabilities of labels as the continuation of one prompt, whose KV cache is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx


def label_tokens(tokenizer: Any, prompt: Sequence[int], text: str, labels: Sequence[str]) -> list[list[int]]:
    """The tokens of each label after the prompt of that text: those it adds to the prompt's, where it leaves these as
    they are; else (it would merge with the prompt's end, or thinking was closed after it) its own."""
    found = []
    for label in labels:
        whole = list(tokenizer.encode(text + label, add_special_tokens=False))
        kept = whole[: len(prompt)] == list(prompt) and len(whole) > len(prompt)
        found.append(whole[len(prompt) :] if kept else list(tokenizer.encode(label, add_special_tokens=False)))
    return found


def score(
    model: Any, layers: list[Any], last: int, labels: Sequence[Sequence[int]], rows_at_once: int
) -> tuple[float, ...]:
    """Natural log-probability of each label after what `layers` hold and the token `last`; `layers` stay as they are.

    Labels that begin alike share a row, so that labels of one token are one row of one token. Each row takes a copy of
    the cache: at most `rows_at_once` are computed together.
    """
    rows: list[tuple[int, ...]] = []
    for inputs in sorted({tuple(label[:-1]) for label in labels}, key=len, reverse=True):
        if not any(row[: len(inputs)] == inputs for row in rows):
            rows.append(inputs)
    scores: dict[tuple[int, ...], float] = {}
    for start in range(0, len(rows), rows_at_once):
        group = rows[start : start + rows_at_once]
        longest = max(map(len, group))
        # what follows a row's own tokens changes nothing before it
        tokens = mx.array([[last, *row, *[0] * (longest - len(row))] for row in group])
        cache = [layer.merge([layer] * len(group)) for layer in layers]
        logits = model(tokens, cache=cache).astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        for label in map(tuple, labels):
            at = next((i for i, row in enumerate(group) if row[: len(label) - 1] == label[:-1]), None)
            if at is not None and label not in scores:
                picked = logprobs[at, mx.arange(len(label)), mx.array(label)]
                scores[label] = float(picked.sum().item())
    return tuple(scores[tuple(label)] for label in labels)
