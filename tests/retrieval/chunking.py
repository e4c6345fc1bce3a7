"""Span recall of our chunks beside windows of fixed size, at equal retrieved tokens, with the same embedder.

    python -m tests.retrieval.chunking ../shared/data/chroma-chunking [TOKENS ...]

Every chunk of every document is ranked by cosine for each question; the best are read until so many tokens are used up,
the last of them in part, so that each chunker reads equally much. Recall is the share of the characters of the
question's spans that were read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from rolecall.config.home import Home
from rolecall.config.settings import load_settings
from rolecall.retrieval.chunks import CountTokens, cut, token_counter
from rolecall.server.evaluation import intervals

MODEL = Home.find().models / "starter" / "all-minilm-l6-v2"
BUDGETS = (400, 800, 1_600)  # tokens read per question

Embed = Callable[[Sequence[str]], Any]
"""Texts to unit vectors of shape (n, dimensions)."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Characters [start, end) of a document, and the text that stands for them in the embedding."""

    document: str
    start: int
    end: int
    embedded: str


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    document: str
    spans: tuple[tuple[int, int], ...]


def ours(documents: dict[str, str], limit: int, count: CountTokens) -> Iterator[Piece]:
    for name, text in documents.items():
        data, char, byte = text.encode(), 0, 0
        for chunk in cut(text, "text", "text", f"{name}.txt", limit, count):
            char += len(data[byte : chunk.start_byte].decode())
            byte = chunk.start_byte
            yield Piece(name, char, char + len(chunk.text), f"{chunk.header}\n{chunk.text}")


def fixed(documents: dict[str, str], limit: int, tokenizer: Any) -> Iterator[Piece]:
    """Windows of `limit` tokens that follow each other."""
    for name, text in documents.items():
        offsets = tokenizer.encode(text, add_special_tokens=False).offsets
        starts = [0, *(start for start, _ in offsets[limit::limit]), len(text)]
        yield from (Piece(name, start, end, text[start:end]) for start, end in pairwise(starts))


def recalls(
    pieces: Sequence[Piece], questions: Sequence[Question], documents: dict[str, str], embed: Embed, count: CountTokens
) -> dict[int, list[float]]:
    """By budget, of each question in order."""
    import numpy as np

    similarities = embed([question.text for question in questions]) @ embed([piece.embedded for piece in pieces]).T
    tokens = count([documents[piece.document][piece.start : piece.end] for piece in pieces])
    found: dict[int, list[float]] = {budget: [] for budget in BUDGETS}
    for question, row in zip(questions, similarities, strict=True):
        ranked = np.argsort(-row, kind="stable").tolist()
        for budget, listed in found.items():
            listed.append(_recall(question, _read(ranked, pieces, tokens, budget)))
    return found


def _read(ranked: Sequence[int], pieces: Sequence[Piece], tokens: Sequence[int], budget: int) -> list[Piece]:
    read: list[Piece] = []
    for i in ranked:
        piece, share = pieces[i], min(1.0, budget / max(1, tokens[i]))
        end = piece.start + round((piece.end - piece.start) * share)
        read.append(Piece(piece.document, piece.start, end, ""))
        budget -= tokens[i]
        if budget <= 0:
            break
    return read


def _recall(question: Question, read: Sequence[Piece]) -> float:
    covered = sum(
        max(0, min(end, piece.end) - max(start, piece.start))
        for piece in read
        if piece.document == question.document
        for start, end in question.spans
    )
    return covered / sum(end - start for start, end in question.spans)


def load(folder: Path) -> tuple[dict[str, str], list[Question]]:
    documents = {row["_id"]: row["text"] for row in _rows(folder / "corpus.jsonl")}
    questions = [
        Question(row["text"], row["corpus_id"], _merged(row["spans"])) for row in _rows(folder / "queries.jsonl")
    ]
    return documents, questions


def _rows(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _merged(spans: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Spans that overlap count once."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)


def table(rows: dict[str, dict[int, list[float]]], baseline: str) -> Iterator[str]:
    yield " | ".join(["chunker", *(f"recall@{budget} | {budget}: against {baseline}" for budget in BUDGETS)])
    for name, found in rows.items():
        cells = [name]
        for budget, listed in found.items():
            others = rows[baseline][budget]
            low, high = intervals.difference(listed, others)
            cells += [f"{fmean(listed):.3f}", f"{fmean(listed) - fmean(others):+.3f} [{low:+.3f}, {high:+.3f}]"]
        yield " | ".join(cells)


def embedder() -> Embed:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    model = SentenceTransformer(str(MODEL), device="cpu")
    return lambda texts: model.encode(list(texts), normalize_embeddings=True, batch_size=16)


def main(folder: Path, sizes: Sequence[int]) -> None:
    from tokenizers import Tokenizer

    documents, questions = load(folder)
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokenizer.no_truncation()
    count, embed = token_counter(MODEL / "tokenizer.json"), embedder()
    for size in sizes:
        chunkers = {"fixed": fixed(documents, size, tokenizer), "ours": ours(documents, size, count)}
        rows = {}
        for name, pieces in chunkers.items():
            made = list(pieces)
            rows[f"{name} ({len(made)})"] = recalls(made, questions, documents, embed, count)
        print(f"\n{size} tokens, {len(questions)} questions (chunks in brackets)")
        print("\n".join(table(rows, next(iter(rows)))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(size) for size in sys.argv[2:]] or [load_settings(Home.find()).retrieval.chunk_tokens])
