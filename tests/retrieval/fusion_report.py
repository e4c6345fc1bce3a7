"""How the fusion's parameters were chosen: by leave-one-set-out over folders in BEIR's form.

`python -m tests.retrieval.fusion_report FOLDER FOLDER ... [--limit N]` prints, for each folder, nDCG@10 of each leg and
of fusion with the parameters that are best on the other folders alone, with the 95% interval of its gain over the
better leg; and last the parameters that are best on all.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path

import anyio
import numpy as np
import numpy.typing as npt

from rolecall.config.home import Home
from rolecall.config.settings import load_settings
from rolecall.retrieval.chunks import tokenizer_at
from rolecall.retrieval.ranking import bytes_per_piece, fuse, set_cosines
from rolecall.retrieval.search import OVERFETCH
from rolecall.retrieval.store import Database, where_clause
from rolecall.roles.manager import ModelManager
from rolecall.server.evaluation.intervals import difference
from rolecall.server.evaluation.suites import retrieval

GRID = list(product((0.4, 0.5, 0.6, 0.7, 0.8), (0.11, 0.13, 0.15, 0.17, 0.2, 9.0)))
"""The most that the dense leg may count, and what it counts for each byte per piece; the last slope is no slope."""

Figures = npt.NDArray[np.float64]


async def measured(folder: Path, limit: int) -> tuple[Figures, Figures, Figures]:
    """nDCG@10 by query of full text, of vectors, and of each pair of the grid, shape (pairs, queries)."""
    home = Home.find()
    settings, data = load_settings(home), retrieval.load(folder, limit)
    tokenizer = tokenizer_at(home.models / settings.profile.embedder.model / "tokenizer.json")
    rows = []
    async with (
        retrieval.indexed(data.documents, home, settings, lambda _: None) as index,
        ModelManager(home, settings) as models,
    ):
        (store,) = await Database(index.home.index).stores()
        for query in data.queries:
            (vector,) = await models.embed([query.text], query=True)
            text, vectors = await store.matching(query.text, where_clause(None, None), OVERFETCH)
            set_cosines(text, vectors, vector)
            dense = await store.nearest(vector, where_clause(None, None), OVERFETCH)
            weights = [0.0, 1.0, *(min(most, slope * bytes_per_piece(tokenizer, query.text)) for most, slope in GRID)]
            rows.append([])
            for weight in weights:
                ranked = fuse(text if weight < 1 else (), dense if weight else (), weight)
                ids = dict.fromkeys(index.ids[store.files[hit.doc].path] for hit, _ in ranked)
                rows[-1].append(retrieval.ndcg(list(ids), data.gains[query.id], 10))
    figures = np.array(rows).T
    return figures[0], figures[1], figures[2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--limit", type=int, default=0)
    given = parser.parse_args()
    found = {folder.name: anyio.run(measured, folder, given.limit) for folder in given.folders}
    for name, (text, dense, fused) in found.items():
        others = [each[2].mean(axis=1) for other, each in found.items() if other != name]
        pick = int(np.mean(others, axis=0).argmax()) if others else 0
        better = max((text, dense), key=np.mean)
        low, high = difference(fused[pick].tolist(), better.tolist())
        gain = fused[pick].mean() - better.mean()
        sys.stdout.write(
            f"{name}: n {len(text)}, text {text.mean():.4f}, dense {dense.mean():.4f}, fused {fused[pick].mean():.4f} "
            f"with {GRID[pick]}, over the better leg {gain:+.4f} [{low:+.4f}, {high:+.4f}]\n"
        )
    means = np.mean([each[2].mean(axis=1) for each in found.values()], axis=0)
    sys.stdout.write(f"best on all: {GRID[int(means.argmax())]}, mean {means.max():.4f}\n")


if __name__ == "__main__":
    main()
