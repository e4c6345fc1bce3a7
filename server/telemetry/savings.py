"""What Rolecall did and spared its clients, by day: sums that outlive the receipts they were counted from."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .store import SPARED, ReceiptStore

_WEEK = """
SELECT *, day = date('now', 'localtime') AS today FROM usage_days WHERE day > date('now', 'localtime', '-7 days')
"""


async def usage(store: ReceiptStore) -> dict[str, dict[str, Any]]:
    """Of `today` and of the `week` (seven local days, with today): `calls`, `by_tool`, `by_role`, `by_status`,
    `without_model` (the share of the answers, None where there are none) and `spared`, whose tokens are estimates.
    Raises as the receipts' store."""
    rows = await store.run((_WEEK, ()))
    return {"today": _summed([row for row in rows if row["today"]]), "week": _summed(rows)}


def _summed(rows: Sequence[sqlite3.Row]) -> dict[str, Any]:
    sums: dict[str, Counter[str]] = {"by_tool": Counter(), "by_role": Counter(), "by_status": Counter()}
    answers = Counter[bool]()
    for row in rows:
        for name, counter in sums.items():
            counter[row[name.removeprefix("by_")]] += row["calls"]
        answers[row["role"] == ""] += row["calls"] * (row["status"] not in ("failed", "cancelled"))
    del sums["by_role"][""]
    return {
        "calls": sums["by_tool"].total(),
        **{name: dict(counter.most_common()) for name, counter in sums.items()},
        "without_model": round(answers[True] / answers.total(), 3) if answers.total() else None,
        "spared": {name: sum(row[name] for row in rows) for name in SPARED},
    }
