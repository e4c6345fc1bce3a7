"""Whether search knows when the documents do not say: half of them are taken away, and all is asked.

Data as of the suite `retrieval`. A question is gone where all its relevant documents are, left where one is there. What
is left of the same subject makes many a gone question look answered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from rolecall.config.home import Home
from rolecall.config.settings import Settings
from rolecall.retrieval.contract import ANSWERABLE

from ...errors import BadRequest
from ..intervals import mean, wilson
from ..score import Control, Score, rounded, verdict
from .retrieval import ADVICE, Judged, OnStep, Text, indexed, mean_of


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
        for number, (query, left) in enumerate(asked):
            say({"done": number, "total": len(asked), "words": "asking"})
            found = await index.default(query.text)
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
        failed = "Too few questions are left, or too few gone."
        raise BadRequest(
            failed, found=f"{len(right[True])} and {len(right[False])}", allowed="2 at least", advice=ADVICE
        )
    weight = {left: len(items) / len(each) / 2 for left, each in right.items()}
    balanced = [weight[left] * each for left, values in right.items() for each in values]
    errors = {left: len(values) - sum(values) for left, values in right.items()}
    detail = {
        "threshold": threshold,
        "gone": {"n": len(right[False]), "answered": 1 - mean_of(right[False]),
                 "interval": wilson(int(errors[False]), len(right[False]))},
        "left": {"n": len(right[True]), "abstained": 1 - mean_of(right[True]),
                 "interval": wilson(int(errors[True]), len(right[True]))},
    }  # fmt: skip
    interval = mean(balanced)
    return Score(
        suite="abstention", n=len(items), score=rounded(mean_of(balanced)), interval=rounded(interval),
        control=Control(name="always answer", score=0.5),
        verdict=verdict(mean_of(balanced), interval, 0.5), detail=rounded(detail),
    )  # fmt: skip
