"""Sums by day: of today, of seven days, and of receipts that were dropped since."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import anyio

from rolecall.server.telemetry.savings import usage
from rolecall.server.telemetry.store import ReceiptStore

from .test_receipt_store import receipt


def keep(store: ReceiptStore, days_ago: int = 0, **changes: Any) -> None:
    noon = datetime.now().astimezone().replace(hour=12) - timedelta(days=days_ago)
    made = receipt(**({"status": "ok", "started_at": noon.astimezone(UTC).isoformat()} | changes))
    anyio.run(store.add, made, 2)


def test_calls_are_summed_by_tool_role_and_end_also_where_the_receipts_were_dropped(store: ReceiptStore) -> None:
    spared = {"read_bytes": 4000, "written_bytes": 80, "read_tokens": 1000, "written_tokens": 20}
    for _ in range(3):
        keep(store, tool="summarize", role="summarization", spared=spared)
    keep(store, tool="validate")
    keep(store, tool="reason", role="reasoning", status=None, error={"code": "worker_died"})
    keep(store, tool="reason", status=None, error={"code": "cancelled"})
    assert len(anyio.run(store.recent, 9)) == 2

    today = anyio.run(usage, store)["today"]

    assert (today["calls"], today["by_tool"]) == (6, {"summarize": 3, "reason": 2, "validate": 1})
    assert today["by_role"] == {"summarization": 3, "reasoning": 1}
    assert today["by_status"] == {"ok": 4, "failed": 1, "cancelled": 1}
    assert today["without_model"] == 0.25
    assert today["spared"] == {name: 3 * value for name, value in spared.items()}


def test_a_week_is_seven_days_with_today(store: ReceiptStore) -> None:
    for days_ago in (0, 1, 6, 7, 30):
        keep(store, days_ago)

    found = anyio.run(usage, store)

    assert (found["today"]["calls"], found["week"]["calls"]) == (1, 3)


def test_without_calls_there_is_no_share_and_nothing_was_spared(store: ReceiptStore) -> None:
    today = anyio.run(usage, store)["today"]

    assert (today["calls"], today["without_model"], sum(today["spared"].values())) == (0, None, 0)
