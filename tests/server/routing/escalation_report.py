"""Chooses the confidence of each type below which the classifier abstains, and has the router model vote there.

A developer's tool, not shipped. Rows are JSON lines with `label`, `source` and `scores`:

    python -m tests.server.routing.escalation_report own MINILM_FOLDER --out OWN.jsonl
    python -m tests.server.routing.escalation_report rows ../shared/data/routing_dev.jsonl --out DEV.jsonl
    python -m tests.server.routing.escalation_report choose OWN.jsonl DEV.jsonl
    python -m tests.server.routing.escalation_report ask DEV.jsonl [--limit N]

`own` scores the project's own requests with classifiers that have not seen their register, `rows` others with the
router; `choose` writes thresholds.yaml, and `ask` has the starter vote where the classifier abstains. The rule: of each
type, as guessed, the least confidence of 0.5 or more from which on at least 20 rows are right with a Wilson lower end
of `GOAL`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import numpy as np

from rolecall.config.settings import load_settings
from rolecall.roles.manager import ModelManager
from rolecall.server.evaluation.intervals import difference, wilson
from rolecall.server.evaluation.suites.routing import _ece
from rolecall.server.routing.agents.claims import claim
from rolecall.server.routing.classify import _CAUTION, _SCALE, TYPES
from rolecall.server.routing.contract import TaskType
from rolecall.server.routing.escalate import load_thresholds, vote
from rolecall.server.routing.router import Router
from tests.bench.stage import percentile, quiet, starter_home

from . import fit_weights as fit

GOAL = 0.90
LEAST = 20
OUT = Path("config/routing/thresholds.yaml")

Row = dict[str, Any]
Scores = dict[TaskType, float]


class Guess(NamedTuple):
    """A best guess: whose row it is, how confident it is, and whether it is right."""

    source: str
    confidence: float
    right: bool


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("own", "rows", "choose", "ask"))
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--limit", type=int)
    given = parser.parse_args(arguments)
    quiet()
    if given.step == "own":
        write(own_rows(given.files[0]), given.out)
        return
    held = [[json.loads(line) for line in file.read_text("utf-8").splitlines()] for file in given.files]
    if given.step == "choose":
        choose_all(*held, given.out)
    elif given.step == "rows":
        write(anyio.run(read_all, held[0]), given.out)
    else:
        anyio.run(ask_all, held[0], given.limit)


def write(rows: list[Row], out: Path) -> None:
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def own_rows(minilm: Path) -> list[Row]:
    rows, parts, labels, offset = fit.prepared(minilm)
    logits = fit.held_out(parts, labels, offset, [row.register for row in rows])
    logits[:, TYPES.index(TaskType.TOOL)] -= _CAUTION
    odds = np.exp(_SCALE * (logits - logits.max(axis=1, keepdims=True)))
    shares = (odds / odds.sum(axis=1, keepdims=True)).round(4).tolist()
    return [
        {"label": row.kind, "source": row.register, "scores": dict(zip(TYPES, share, strict=True))}
        for row, share in zip(rows, shares, strict=True)
        if claim(row.text) is None
    ]


async def read_all(rows: list[Row]) -> list[Row]:
    with starter_home() as home:
        async with ModelManager(home, load_settings(home, profile="starter")) as models:
            router = Router(models, "starter")
            found = [(row, await router.features(row["text"])) for row in rows]
    # a claim is proven, not scored: such rows say nothing of the classifier
    return [row | {"scores": read.type_scores} for row, read in found if read.claim is None]


def best(scores: Scores) -> TaskType:
    return max(TaskType, key=lambda kind: scores.get(kind, 0.0))


def guessed(rows: Sequence[Row], kind: TaskType) -> list[Guess]:
    return [
        Guess(row["source"], max(row["scores"].values()), row["label"] == kind)
        for row in rows
        if best(row["scores"]) == kind
    ]


def figures(rows: Sequence[Guess], below: float) -> tuple[int, int]:
    """How many are right at or above a confidence, and of how many."""
    kept = [row.right for row in rows if row.confidence >= below]
    return sum(kept), len(kept)


def least(rows: Sequence[Guess]) -> float:
    """The rule; 1.0, which only certainty reaches, where it is never met."""
    return next((step / 100 for step in range(50, 100) if _good(*figures(rows, step / 100))), 1.0)


def _good(right: int, n: int) -> bool:
    return n >= LEAST and wilson(right, n)[0] >= GOAL


def choose_all(own: list[Row], dev: list[Row], out: Path) -> None:
    lines = [
        "# Below which confidence of its best guess the classifier abstains, by type: the least of 0.5 or more from",
        f"# which on accuracy's Wilson lower end is at least {GOAL}. By tests/server/routing/escalation_report.py from",
        "# the project's own requests, each scored by a classifier that had not seen its register. n, accuracy, 95%",
        "# interval there: `own`, the same rows; `left_out`, each register at the threshold that the others set;",
        "# `dev`, requests of other people's making, which chose nothing.",
        "types:",
    ]
    for kind in TaskType:
        mine, theirs = guessed(own, kind), guessed(dev, kind)
        below = least(mine)
        right = n = 0
        for source in sorted({row.source for row in mine}):
            chosen = least([row for row in mine if row.source != source])
            more = figures([row for row in mine if row.source == source], chosen)
            right, n = right + more[0], n + more[1]
        told = {"own": figures(mine, below), "left_out": (right, n), "dev": figures(theirs, below)}
        stated = ", ".join(f"{name}: {_stated(*each)}" for name, each in told.items())
        lines.append(f"  {kind}: {{below: {below}, {stated}}}")
        print(lines[-1], f"dev abstained: {len(theirs) - told['dev'][1]}")
    kept = out.read_text("utf-8")
    out.write_text("\n".join(lines) + "\n" + kept[kept.index("# Profiles") :], "utf-8")


def _stated(right: int, n: int) -> str:
    low, high = wilson(right, n)
    return f"[{n}, {right / n if n else 0.0:.3f}, {low:.3f}, {high:.3f}]"


async def ask_all(rows: list[Row], limit: int | None) -> None:
    below = load_thresholds().below
    unsure = [row for row in rows if row["scores"][best(row["scores"])] < below[best(row["scores"])]]
    random.Random(6).shuffle(unsure)
    asked = unsure[:limit]
    votes, seconds = [], []
    with starter_home() as home:
        async with ModelManager(home, load_settings(home, profile="starter")) as models:
            await vote(models, "warm up")
            for row in asked:
                began = time.perf_counter()
                votes.append(await vote(models, row["text"], 4 * 600.0))
                seconds.append(time.perf_counter() - began)
            again = [await vote(models, row["text"], 4 * 600.0) for row in asked[:5]]
    print(f"{len(rows)} read, {len(unsure)} abstained, {len(asked)} asked; five again alike: {again == votes[:5]}")
    said = [(row, found) for row, found in zip(asked, votes, strict=True) if isinstance(found, dict)]
    guesses = [row["scores"] for row, _ in said]
    labels = [TaskType(row["label"]) for row, _ in said]
    common = Counter(labels).most_common(1)[0][0]
    sides = {"best guess": guesses, "model": [found for _, found in said], "majority": [{common: 1.0}] * len(said)}
    right = {name: [float(best(each) is label) for each, label in zip(side, labels, strict=True)]
             for name, side in sides.items()}  # fmt: skip
    for name, hits in right.items():
        low, high = wilson(int(sum(hits)), len(hits))
        gain = difference(hits, right["best guess"])
        sure = zip(sides[name], hits, strict=True)
        ece = _ece([{"confidence": max(scores.values()), "right": hit} for scores, hit in sure])
        print(f"{name}: {sum(hits) / len(hits):.3f} [{low:.3f}, {high:.3f}], ECE {ece:.3f}, "
              f"less best guess [{gain[0]:+.3f}, {gain[1]:+.3f}]")  # fmt: skip
    print("the model says", dict(Counter(best(each).value for each in sides["model"])))
    print(f"seconds a request: p50 {percentile(seconds, 50):.2f}, p95 {percentile(seconds, 95):.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
