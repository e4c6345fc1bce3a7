"""How often the classifier is right at or above each confidence, by the class that it names.

`python -m tests.server.routing.confidence` prints the table for `../shared/data/routing_dev.jsonl`, without embedder;
thresholds for asking the router model are read from such tables of sources that nothing was fitted on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rolecall.server.evaluation.intervals import Interval, wilson
from rolecall.server.routing.classify import classify
from rolecall.server.routing.contract import TaskType
from rolecall.server.routing.signals import read

FLOORS = (0.0, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True, slots=True)
class Line:
    """Of the rows whose named class had at least `floor`: `n`, `hits`, their share's interval, the part of all rows."""

    floor: float
    n: int
    hits: int
    interval: Interval
    coverage: float


def by_confidence(
    rows: Iterable[tuple[TaskType, float, bool]], floors: Sequence[float] = FLOORS
) -> dict[TaskType, list[Line]]:
    """Lines by named class from (named class, its probability, whether it was right); Wilson intervals at 95%."""
    held = list(rows)
    table: dict[TaskType, list[Line]] = {}
    for kind in TaskType:
        named = [(confidence, right) for best, confidence, right in held if best is kind]
        for floor in floors:
            kept = [right for confidence, right in named if confidence >= floor]
            line = Line(floor, len(kept), sum(kept), wilson(sum(kept), len(kept)), len(kept) / max(len(named), 1))
            table.setdefault(kind, []).append(line)
    return table


def main(path: Path) -> None:
    rows = []
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        scores, _ = classify(read(row["text"]), None)
        best = max(scores, key=lambda kind: scores[kind])
        rows.append((best, scores[best], best == row["label"]))
    for kind, lines in by_confidence(rows).items():
        for at in lines:
            low, high = at.interval
            print(f"{kind:14} >= {at.floor:.2f}  n {at.n:4}  right {at.hits:4} [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data/routing_dev.jsonl"))
