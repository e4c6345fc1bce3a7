"""Search as it is shipped, on a folder in BEIR's form: each leg alone, both, and reranked where there is a reranker.

Each document becomes a Markdown file of a folder that a temporary home indexes; a document's rank is that of its best
passage.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ConfigDict, Field

from rolecall.config.home import Home
from rolecall.config.profile import Frozen
from rolecall.config.settings import Settings
from rolecall.retrieval.access import AllowedFolders
from rolecall.retrieval.contract import Found, Leg, Rerank
from rolecall.retrieval.retriever import LanceRetriever
from rolecall.roles.manager import ModelManager

from ...errors import BadRequest
from ..intervals import difference, mean
from ..score import Control, Score, items_of, rounded, verdict

OnStep = Callable[[dict[str, Any]], None]

ADVICE = (
    'Use a folder with corpus.jsonl ({"_id", "title", "text"}), queries.jsonl ({"_id", "text"}) and qrels.tsv '
    "(query-id, corpus-id, score; with a header)."
)
NDCG = "ndcg@10"
MARGIN = 0.01
"""How far the default search may be under the better leg in nDCG@10."""
PASSAGES = 100
"""Passages a query, as many as a search gives."""
RESULTS = 100
LEGS: tuple[Leg, ...] = ("text", "dense", "fused")
_FILES = 1_000
"""In one folder."""


class Text(Frozen):
    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)

    id: str = Field(alias="_id")
    title: str = ""
    text: str


@dataclass(frozen=True, slots=True)
class Judged:
    """`gains` are the relevant documents of each query, with what each is worth, over 0."""

    documents: Sequence[Text]
    queries: Sequence[Text]
    gains: Mapping[str, Mapping[str, int]]


def load(folder: Path, limit: int = 0) -> Judged:
    """A folder's documents and its queries that have a relevant one (`limit` of them, evenly taken; 0: all). Raises
    BadRequest for what is not in BEIR's form."""
    gains = _gains(folder / "qrels.tsv")
    documents = items_of(Text, _rows(folder / "corpus.jsonl"), ADVICE)
    queries = [each for each in items_of(Text, _rows(folder / "queries.jsonl"), ADVICE) if each.id in gains]
    if len(queries) < 2:
        raise BadRequest("Fewer than two queries have relevant documents.", found=str(len(queries)), advice=ADVICE)
    count = min(max(limit, 2), len(queries)) if limit else len(queries)
    return Judged(documents, [queries[number * len(queries) // count] for number in range(count)], gains)


def _rows(file: Path) -> list[Any]:
    try:
        return [json.loads(line) for line in file.read_bytes().split(b"\n") if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise BadRequest(f"{file.name} cannot be read.", found=f"{file}: {error}"[:300], advice=ADVICE) from None


def _gains(file: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    try:
        for line in file.read_text("utf-8").splitlines()[1:]:
            query, document, score = line.split("\t")
            if int(score) > 0:
                found.setdefault(query, {})[document] = int(score)
    except (OSError, ValueError) as error:
        raise BadRequest(f"{file.name} cannot be read.", found=f"{file}: {error}"[:300], advice=ADVICE) from None
    return found


@dataclass(frozen=True, slots=True)
class Index:
    """An index of documents. `legs` are its ways to search, the default one last; `ids` the documents by path; `home`
    the index's."""

    legs: Mapping[str, Callable[[str], Awaitable[Found]]]
    ids: Mapping[str, str]
    home: Home

    @property
    def default(self) -> Callable[[str], Awaitable[Found]]:
        return list(self.legs.values())[-1]

    def ranking(self, found: Found) -> list[str]:
        """The documents of the passages, best first."""
        return list(dict.fromkeys(self.ids[passage.path] for passage in found.passages))[:RESULTS]


@asynccontextmanager
async def indexed(documents: Sequence[Text], home: Home, settings: Settings, say: OnStep) -> AsyncIterator[Index]:
    """The product's index of these documents, by the models of a home; it goes with the context."""
    local = settings.retrieval.model_copy(update={"uri": None})
    profile = settings.profile
    has_reranker = profile.reranker is not None and (home.models / profile.reranker.model).is_dir()
    with TemporaryDirectory(prefix="rolecall-eval-") as scratch:
        own, folder = Home(Path(scratch).resolve() / "home").create(), Path(scratch).resolve() / "documents"
        ids = _written(documents, folder)
        async with ModelManager(home, settings) as models:

            def retriever(rerank: Rerank | None) -> LanceRetriever:
                tokenizer = home.models / profile.embedder.model / "tokenizer.json"
                return LanceRetriever(
                    own, local, models.embed, models.embedder, AllowedFolders(own), tokenizer,
                    embed_query=partial(models.embed, query=True), rerank=rerank,
                )  # fmt: skip

            async with aclosing(retriever(None)) as plain, aclosing(retriever(models.rerank)) as reranking:
                await plain.add(
                    folder, None, lambda n, total, *_: say({"done": n, "total": total, "words": "indexing"})
                )
                legs: dict[str, Callable[[str], Awaitable[Found]]] = {
                    leg: partial(plain.search, max_results=PASSAGES, leg=leg) for leg in LEGS
                }
                if has_reranker:
                    legs["reranked"] = partial(reranking.search, max_results=PASSAGES)
                yield Index(legs, ids, own)


def _written(documents: Sequence[Text], folder: Path) -> dict[str, str]:
    """The documents as files, by path. An id may be no file name: files are numbered."""
    ids = {}
    for number, each in enumerate(documents):
        file = folder / f"{number // _FILES}" / f"{number}.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        title = " ".join(each.title.split())
        file.write_text(f"# {title}\n\n{each.text}\n" if title else f"{each.text}\n", "utf-8", newline="")
        ids[str(file)] = each.id
    return ids


async def evaluate(
    data: Judged, home: Home, settings: Settings, say: OnStep = lambda _: None
) -> tuple[Score, list[dict[str, Any]]]:
    """nDCG@10 of the default search, and its first hundred documents for each query.

    The verdict is on whether it is worse than the better of the two legs alone, by a paired bootstrap.
    """
    async with indexed(data.documents, home, settings, say) as index:
        rankings: dict[str, list[list[str]]] = {name: [] for name in index.legs}
        for number, query in enumerate(data.queries):
            say({"done": number, "total": len(data.queries), "words": "searching"})
            for name, search in index.legs.items():
                rankings[name].append(index.ranking(await search(query.text)))
    gains = [data.gains[query.id] for query in data.queries]
    measured = {name: _measured(each, gains) for name, each in rankings.items()}
    default = [*measured][-1]
    ours, better = measured[default][NDCG], max(("text", "dense"), key=lambda leg: sum(measured[leg][NDCG]))
    gain, interval = mean_of(ours) - mean_of(measured[better][NDCG]), difference(ours, measured[better][NDCG])
    detail = {
        "default": default,
        "documents": len(data.documents),
        "over_better_leg": {"gain": gain, "interval": interval, "margin": MARGIN},
        "legs": {
            name: {key: value for measure, each in figures.items() for key, value in _shown(measure, each)}
            for name, figures in measured.items()
        },
    }
    score = Score(
        suite="retrieval", n=len(ours), score=rounded(mean_of(ours)), interval=rounded(mean(ours)),
        control=Control(name=f"{better} leg alone", score=rounded(mean_of(measured[better][NDCG]))),
        verdict=verdict(gain, interval, -MARGIN), detail=rounded(detail),
    )  # fmt: skip
    runs = zip(data.queries, rankings[default], strict=True)
    return score, [{"query_id": query.id, "results": results} for query, results in runs]


def _measured(rankings: Sequence[Sequence[str]], gains: Sequence[Mapping[str, int]]) -> dict[str, list[float]]:
    pairs = list(zip(rankings, gains, strict=True))
    return {
        NDCG: [ndcg(results, gain, 10) for results, gain in pairs],
        "recall@10": [recall(results, gain, 10) for results, gain in pairs],
        "recall@100": [recall(results, gain, 100) for results, gain in pairs],
        "mrr@10": [reciprocal_rank(results, gain, 10) for results, gain in pairs],
    }


def _shown(measure: str, values: Sequence[float]) -> list[tuple[str, Any]]:
    return [(measure, mean_of(values)), (f"{measure} 95%", mean(values))]


def mean_of(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def ndcg(results: Sequence[str], gains: Mapping[str, int], k: int) -> float:
    """Normalised discounted cumulative gain with the gains as they are.

    Source: Järvelin & Kekäläinen (2002), as trec_eval's `ndcg_cut` counts it.
    """
    got = sum(gains.get(each, 0) / math.log2(rank + 2) for rank, each in enumerate(results[:k]))
    ideal = sorted(gains.values(), reverse=True)[:k]
    return got / sum(gain / math.log2(rank + 2) for rank, gain in enumerate(ideal))


def recall(results: Sequence[str], gains: Mapping[str, int], k: int) -> float:
    return len(gains.keys() & set(results[:k])) / len(gains)


def reciprocal_rank(results: Sequence[str], gains: Mapping[str, int], k: int) -> float:
    return next((1 / rank for rank, each in enumerate(results[:k], 1) if each in gains), 0.0)
