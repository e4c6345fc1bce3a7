"""`python -m tests.bench.slopes`: what an index costs by its number of chunks, and on paper at a million.

Each size is built by the retriever in a process of its own (random vectors of 384 dimensions, passages of 60 real
words, 20 a file), its indexes are built anew by LanceDB with the retriever's own settings, and another process opens it
and searches. A straight line through the sizes, by least squares, is read off at 1,000,000.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import psutil

from rolecall.config.home import Home
from rolecall.config.settings import load_settings

from .corpus import RandomVectors, passages, queries, retrieving
from .retrieval import both_legs, indexed_table
from .stage import percentile, quiet, show

SIZES = (10_000, 30_000, 100_000)
PAPER = 1_000_000
QUERIES = 60
ROWS = {
    "disk_mb": "disk, MB (documents' own bytes not counted)",
    "index_s": "first index without the embedder, s",
    "text_index_s": "full-text index built anew, s",
    "vector_index_s": "IVF_SQ index built anew, s",
    "open_s": "open in a new process to the first answer, s",
    "rss_mb": "memory of the process after 60 searches, MB (before it opened the index: {bare_mb:.0f})",
    "build_rss_mb": "memory of the process that indexed, at its end, MB",
    "search_ms": "search p50, ms",
    "legs_ms": "both legs alone p50, ms",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--search", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet()
    if options.build:
        print(json.dumps(anyio.run(_build, options.build, options.sizes[0])))
    elif options.search:
        print(json.dumps(anyio.run(_search, options.search)))
    else:
        _report(options.sizes)


def _report(sizes: list[int]) -> None:
    found = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="rolecall-bench-") as folder:
            passages(Path(folder) / "docs", size)
            found.append({**_in_process("--build", folder, size), **_in_process("--search", folder, size)})
    chunks = [each["chunks"] for each in found]
    paper = {row: _line_at(PAPER, chunks, [each[row] for each in found]) for row in ROWS}
    lines = [
        f"| | {' | '.join(f'{size:,}' for size in chunks)} | {PAPER:,} on paper |",
        "|---" * (len(found) + 2) + "|",
    ]
    for row, words in ROWS.items():
        cells = [f"{each[row]:,.1f}" for each in found]
        lines.append(f"| {words.format(**found[0])} | {' | '.join(cells)} | {paper[row]:,.0f} |")
    show("slopes", lines, {"sizes": found, "paper": {row: round(value, 1) for row, value in paper.items()}})


def _in_process(step: str, folder: str, size: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.slopes", step, folder, "--sizes", str(size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    seen: dict[str, float] = json.loads(done.stdout)
    return seen


def _line_at(where: int, x: list[float], y: list[float]) -> float:
    if len(x) == 1:
        return y[0] * where / x[0]
    slope, start = np.polyfit(x, y, 1)
    return float(slope * where + start)


async def _build(folder: Path, size: int) -> dict[str, float]:
    from lancedb.index import FTS, IvfSq

    home, embed = Home(folder / "home"), RandomVectors()
    settings = load_settings(home, profile="starter").retrieval
    began = time.perf_counter()
    async with retrieving(home, settings, embed, embed.identity) as retriever:
        report = await retriever.add(folder / "docs")
        (info,) = await retriever.collections()
    index_s = time.perf_counter() - began
    build_rss_mb = psutil.Process().memory_info().rss / 1e6
    table = await indexed_table(home, info.chunks)
    disk = sum(path.stat().st_size for path in home.index.rglob("*") if path.is_file())
    text = FTS(base_tokenizer="icu/split")
    text_index_s = await _built(table, "search_text", text)
    vector = IvfSq(distance_type="dot", num_partitions=round(info.chunks**0.5))
    vector_index_s = await _built(table, "vector", vector)
    assert report.indexed == info.files
    return {
        "chunks": info.chunks,
        "disk_mb": disk / 1e6,
        "index_s": index_s,
        "build_rss_mb": build_rss_mb,
        "text_index_s": text_index_s,
        "vector_index_s": vector_index_s,
    }


async def _built(table: Any, column: str, config: Any) -> float:
    began = time.perf_counter()
    await table.create_index(column, config=config, replace=True, name=f"{column}_again")
    return time.perf_counter() - began


async def _search(folder: Path) -> dict[str, float]:
    import lancedb  # noqa: F401  (what it takes by itself is not the index)

    home, embed, process = Home(folder / "home"), RandomVectors(), psutil.Process()
    settings = load_settings(home, profile="starter").retrieval
    whole, legs, asked = list[float](), list[float](), queries(QUERIES)
    bare_mb = process.memory_info().rss / 1e6
    began = time.perf_counter()
    async with retrieving(home, settings, embed, embed.identity) as retriever:
        await retriever.search(asked[0])
        open_s = time.perf_counter() - began
        for query in asked:
            began = time.perf_counter()
            await retriever.search(query)
            whole.append(time.perf_counter() - began)
        rss_mb = process.memory_info().rss / 1e6
    table = await indexed_table(home, 0)
    for query in asked:
        (vector,) = await embed([query])
        began = time.perf_counter()
        await both_legs(table, query, vector)
        legs.append(time.perf_counter() - began)
    p50 = {"search_ms": percentile(whole, 50) * 1e3, "legs_ms": percentile(legs, 50) * 1e3}
    return {"open_s": open_s, "rss_mb": rss_mb, "bare_mb": bare_mb, **p50}


if __name__ == "__main__":
    main()
