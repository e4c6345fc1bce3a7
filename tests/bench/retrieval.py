"""Indexing and search beside what they stand on: sentence-transformers and LanceDB, called directly.

Indexing: the same passages of real files, through the model manager, the embedder's worker and the retriever, and by
`encode(batch_size=32)` and `table.add` in a process of their own, in turn. The peer gets its passages ready cut.
Search: both legs with the same limits on the same table, in turn; vectors are random, so that no embedder counts.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import anyio

from rolecall.config.home import Home
from rolecall.config.settings import Settings, load_settings
from rolecall.retrieval.retriever import LanceRetriever
from rolecall.retrieval.search import OVERFETCH
from rolecall.roles.manager import ModelManager

from .corpus import RandomVectors, Vectors, copy_real, excerpts, passages, queries, real_files, retrieving
from .stage import peer_process, percentile, show, spread, starter_home, starter_settings

FILES_A_ROUND = 60
UNCHANGED_FILES = 5_000
UNCHANGED_CHARS = 300
SIZES = (10_000, 100_000)
QUERIES = 200
INDEX_WAIT_S = 300.0
_PEER = """
import json, sys, time
import lancedb
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1])
model.max_seq_length = int(sys.argv[2])
database, table = lancedb.connect(sys.argv[3]), None
model.encode(["warm up"])
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    texts = json.loads(line)
    began = time.perf_counter()
    vectors = model.encode(texts, batch_size=32, normalize_embeddings=True, show_progress_bar=False)
    rows = [{"text": text, "vector": vector} for text, vector in zip(texts, vectors)]
    if table is None:
        table = database.create_table("passages", rows)
    else:
        table.add(rows)
    print(json.dumps(time.perf_counter() - began), flush=True)
"""


def main(rounds: int) -> None:
    with starter_home() as home:
        figures = anyio.run(_indexing, home, rounds)
    figures["search"] = {f"{count} passages": anyio.run(_searching, count) for count in SIZES}
    show("retrieval", [*_indexing_lines(figures), *map(_search_line, figures["search"].items())], figures)


async def _indexing(home: Home, rounds: int) -> dict[str, Any]:
    settings = starter_settings(home)
    root = home.root.parent
    files = real_files(1_000, 8_000)
    parts = [root / f"part-{number}" for number in range(rounds + 2)]  # one to warm up, one for the searches
    for number, part in enumerate(parts):
        copy_real(part, files[number * FILES_A_ROUND : (number + 1) * FILES_A_ROUND])
    excerpts(root / "unchanged", UNCHANGED_FILES, UNCHANGED_CHARS)
    texts = [await _cut(home, settings, part) for part in parts]
    embedder = settings.profile.embedder
    peer_words = ["-c", _PEER, str(home.models / embedder.model), str(embedder.max_tokens), str(root / "peer")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    seconds: dict[str, list[float]] = {"rolecall": [], "peer": []}
    async with ModelManager(home, settings) as models:
        tokenizer = home.models / embedder.model / "tokenizer.json"
        identity = models.embedder() or ""
        async with retrieving(home, settings.retrieval, models.embed, identity, tokenizer) as retriever:
            await retriever.add(parts[0])
            with peer_process(peer_words, **pipes) as peer:
                await anyio.to_thread.run_sync(_answered, peer)  # it is ready
                await anyio.to_thread.run_sync(_theirs, peer, texts[0][:32])
                for number in range(1, rounds + 1):
                    sides: list[tuple[str, Callable[[], Awaitable[float]]]] = [
                        ("rolecall", lambda part=parts[number]: _timed(retriever.add(part))),
                        ("peer", lambda told=texts[number]: anyio.to_thread.run_sync(_theirs, peer, told)),
                    ]
                    for name, side in sides if number % 2 else sides[::-1]:
                        seconds[name].append(await side())
            searches = await _while_indexing(retriever, parts[-1])
            first_s = await _timed(retriever.add(root / "unchanged"))
            again_s = [await _timed(retriever.add(root / "unchanged")) for _ in range(3)]
    passages_done = sum(map(len, texts[1 : rounds + 1]))
    return {
        "rounds": rounds,
        "passages": passages_done,
        "passages_per_s": {side: round(passages_done / sum(taken), 1) for side, taken in seconds.items()},
        "over_bare": spread([bare / ours for bare, ours in zip(seconds["peer"], seconds["rolecall"], strict=True)]),
        "unchanged": {
            "files": UNCHANGED_FILES,
            "first_s": round(first_s, 1),
            "again_s": spread(again_s),
            "share": spread([taken / first_s for taken in again_s], 4),
        },
        "search_while_indexing": searches,
    }


async def _cut(home: Home, settings: Settings, folder: Path) -> list[str]:
    """A folder's passages as the retriever has them embedded."""
    made, recorded = RandomVectors(), list[str]()

    async def embed(texts: Sequence[str]) -> Vectors:
        recorded.extend(texts)
        return await made(texts)

    tokenizer = home.models / settings.profile.embedder.model / "tokenizer.json"
    with tempfile.TemporaryDirectory(prefix="rolecall-bench-") as other:
        async with retrieving(Home(Path(other)), settings.retrieval, embed, made.identity, tokenizer) as cutter:
            await cutter.add(folder)
    return [text for text in recorded if text != "probe"]  # which only asks for the number of dimensions


def _theirs(peer: subprocess.Popen[bytes], texts: Sequence[str]) -> float:
    assert peer.stdin
    peer.stdin.write(json.dumps(texts).encode() + b"\n")
    peer.stdin.flush()
    return float(_answered(peer))


def _answered(peer: subprocess.Popen[bytes]) -> Any:
    assert peer.stdout
    return json.loads(peer.stdout.readline())


async def _timed(work: Awaitable[object]) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def _while_indexing(retriever: LanceRetriever, folder: Path) -> dict[str, Any]:
    """Searches one after another beside the indexing of a folder, and as many afterwards; query embedding counts."""
    busy, asked = list[float](), queries(QUERIES)
    async with anyio.create_task_group() as group:
        done = anyio.Event()

        async def index() -> None:
            await retriever.add(folder)
            done.set()

        group.start_soon(index)
        for query in asked:
            if done.is_set():
                break
            busy.append(await _timed(retriever.search(query)))
    idle = [await _timed(retriever.search(query)) for query in asked[: len(busy)]]
    return {"n": len(busy), "busy": _milliseconds(busy), "idle": _milliseconds(idle)}


async def _searching(count: int) -> dict[str, Any]:
    """Queries against a table of so many passages that the retriever made, through it and directly, in turn."""
    embed = RandomVectors()
    settings = load_settings(Home(Path("/nonexistent")), profile="starter").retrieval
    ours, direct = list[float](), list[float]()
    with tempfile.TemporaryDirectory(prefix="rolecall-bench-") as folder:
        home = Home(Path(folder) / "home")
        passages(Path(folder) / "docs", count)
        async with retrieving(home, settings, embed, embed.identity) as retriever:
            build_s = await _timed(retriever.add(Path(folder) / "docs"))
            table = await indexed_table(home, count)
            asked = queries(QUERIES + 10)
            for number, query in enumerate(asked):
                (vector,) = await embed([query])
                pair = [
                    (ours, lambda query=query: retriever.search(query)),
                    (direct, lambda query=query, vector=vector: both_legs(table, query, vector)),
                ]
                for taken, search in pair if number % 2 else pair[::-1]:
                    taken.append(await _timed(search()))
            (info,) = await retriever.collections()
    ours, direct = ours[10:], direct[10:]  # the first ones fill caches
    over = {f"p{share}_ms": round((percentile(ours, share) - percentile(direct, share)) * 1e3, 2) for share in (50, 95)}
    return {
        "passages": info.chunks,
        "files": info.files,
        "build_s": round(build_s, 1),
        "n": len(ours),
        "rolecall": _milliseconds(ours),
        "direct": _milliseconds(direct),
        "overhead": over,
    }


async def indexed_table(home: Home, count: int) -> Any:
    """The retriever's table as LanceDB opens it, once it has the index of vectors that so many passages get."""
    import lancedb

    from rolecall.retrieval.store import FLAT_CHUNKS

    connection = await lancedb.connect_async(str(home.index))
    (name,) = (await connection.list_tables()).tables
    with anyio.fail_after(INDEX_WAIT_S):
        while True:
            table = await connection.open_table(name)
            columns = [column for index in await table.list_indices() for column in index.columns]
            if count <= FLAT_CHUNKS or "vector" in columns:
                return table
            await anyio.sleep(0.2)


async def both_legs(table: Any, query: str, vector: Vectors) -> None:
    """The retriever's own two queries, and no more columns than a passage has."""
    from rolecall.retrieval.store import text_query, vector_query

    columns = ["id", "text", "start_byte", "end_byte"]
    matching = table.query().nearest_to_text(text_query(query))
    for leg, score in ((vector_query(table, vector), "_distance"), (matching, "_score")):
        await leg.select([*columns, score]).limit(OVERFETCH).to_arrow()


def _milliseconds(taken: Sequence[float]) -> dict[str, float]:
    return {f"p{share}_ms": round(percentile(taken, share) * 1e3, 1) for share in (50, 95)}


def _indexing_lines(found: dict[str, Any]) -> list[str]:
    per_s, unchanged, searches = found["passages_per_s"], found["unchanged"], found["search_while_indexing"]
    return [
        f"first index, {found['rounds']} rounds of {FILES_A_ROUND} real files, {found['passages']} passages: "
        f"{per_s['rolecall']:.1f}/s, bare sentence-transformers and LanceDB {per_s['peer']:.1f}/s, "
        f"ratio {found['over_bare']['median']:.2f}; bound at least 0.9",
        f"{unchanged['files']} unchanged files of one passage (so the share is at its highest): first "
        f"{unchanged['first_s']:.0f} s, again {unchanged['again_s']['median']:.2f} s, "
        f"{unchanged['share']['median']:.2%}; bound under 2%",
        f"search while indexing, n {searches['n']}: p50 {searches['busy']['p50_ms']:.0f} ms, "
        f"p95 {searches['busy']['p95_ms']:.0f} ms; idle {searches['idle']['p50_ms']:.0f} and "
        f"{searches['idle']['p95_ms']:.0f} ms",
    ]


def _search_line(item: tuple[str, dict[str, Any]]) -> str:
    name, found = item
    ours, direct, over = found["rolecall"], found["direct"], found["overhead"]
    return (
        f"search in {name} of {found['files']} files, n {found['n']}: p50 {ours['p50_ms']:.1f} ms, "
        f"p95 {ours['p95_ms']:.1f} ms; LanceDB directly {direct['p50_ms']:.1f} and {direct['p95_ms']:.1f} ms; over it "
        f"{over['p50_ms']:.1f} and {over['p95_ms']:.1f} ms, bound 10 ms (built in {found['build_s']:.0f} s)"
    )
