"""Whether search knows when the documents do not say: half of them are taken away, and all is asked.

Data as of the suite `retrieval`. A question is gone where all its relevant documents are, left where one is there. What
is left of the same subject makes many a gone question look answered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from rolecall.config.home import Home
from rolecall.config.settings import Settings
from rolecall.retrieval.contract import ANSWERABLE

from ...errors import BadRequest
from ..intervals import mean, wilson
from ..score import Control, OnStep, Score, rounded, verdict
from .retrieval import ADVICE, Judged, Text, indexed
from .retrieval import load as load  # for the command line: the same data


def halved(data: Judged) -> tuple[list[Text], list[tuple[Text, bool]]]:
    """The half of the documents that stays, by a hash of the ids, and the questions with whether an answer is left.
    Questions with documents in both halves count as left."""
    by_hash = sorted(data.documents, key=lambda each: hashlib.sha256(each.id.encode()).digest())
    left = by_hash[len(by_hash) // 2 :]
    ids = {each.id for each in left}
    return left, [(query, bool(data.gains[query.id].keys() & ids)) for query in data.queries]


async def evaluate(
    data: Judged, home: Home, settings: Settings, say: OnStep = lambda _: None
) -> tuple[Score, list[dict[str, Any]]]:
    """Balanced accuracy of `Found.answerable` at the shipped threshold; both error rates stand in `detail`."""
    documents, asked = halved(data)
    items = list[dict[str, Any]]()
    async with indexed(documents, home, settings, say) as index:
        default = [*index.legs.values()][-1]
        for number, (query, left) in enumerate(asked):
            say({"done": number, "total": len(asked), "words": "asking"})
            found = await default(query.text)
            if found.answerable is None:
                raise BadRequest("Search has no vectors, and so no threshold.", advice="Run `rolecall setup`.")
            items.append({"id": query.id, "left": left, "answerable": rounded(found.answerable)})
    return score(items), items


def score(items: Sequence[dict[str, Any]], threshold: float = ANSWERABLE) -> Score:
    """`items` say of each question whether its answer is `left` and how `answerable` search held it to be."""
    right = {
        left: [float((item["answerable"] >= threshold) is left) for item in items if item["left"] is left]
        for left in (True, False)
    }
    if min(map(len, right.values())) < 2:
        failed, found = "Too few questions are left, or too few gone.", f"{len(right[True])} and {len(right[False])}"
        raise BadRequest(failed, found=found, allowed="2 at least", advice=ADVICE)
    balanced = [len(items) / len(values) / 2 * each for values in right.values() for each in values]
    detail: dict[str, Any] = {"threshold": threshold}
    for name, error, left in (("gone", "answered", False), ("left", "abstained", True)):
        n, wrong = len(right[left]), right[left].count(0.0)
        detail[name] = {"n": n, error: wrong / n, "interval": wilson(wrong, n)}
    interval = mean(balanced)
    return Score(
        suite="abstention", n=len(items), score=fmean(balanced), interval=interval,
        control=Control(name="always answer", score=0.5),
        verdict=verdict(fmean(balanced), interval, 0.5), detail=detail,
    )  # fmt: skip
