"""`rolecall status`: what was done today and this week, what that spared the clients, and what runs now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rolecall.config.home import Home

from ..errors import HostUnavailable
from .index import duration
from .output import CONFIG_OPTION, JSON_OPTION, ask_host, from_store, show, table_of


def status(config: Path | None = CONFIG_OPTION, as_json: bool = JSON_OPTION) -> None:
    """Today's and this week's calls, the tokens they spared your clients, and what is running."""
    asked: dict[str, Any] = {"host": "ping", "usage": "usage", "resident": "models_ps", "index": "index_list"}
    try:
        report = {name: ask_host(op, {}, config, start=False) for name, op in asked.items()}
    except HostUnavailable:  # none runs, or a standalone one, which answers its client only
        from ..telemetry.savings import usage

        report = {"host": None, "usage": from_store(Home.find(), usage), "resident": [], "index": []}
    host, said = report["host"], list[str]()
    for item in report["resident"]:
        said.append(f"in memory: {item['model']} ({', '.join(item['roles'])})")
    for item in report["index"]:
        state = item["index"]
        counts = f"{item['files']} files, {state['pending']} pending, {state['failed']} failed"
        said.append(f"index {item['collection']}: {counts}; age {duration(state['age_s'])}")
    said.append(f"host: pid {host['pid']}, {host['sessions']} sessions" if host else "host: not running")
    show(report, as_json, _table(report["usage"]) if report["usage"] else "No call was made yet.", *said)


def _table(usage: dict[str, Any]) -> Any:
    spans, table = [usage["today"], usage["week"]], table_of("", "today", "7 days")
    table.add_row("calls", *(f"{span['calls']:,}" for span in spans))
    for column in ("by_tool", "by_role", "by_status"):
        for name in spans[1][column]:  # the week's hold today's
            title = f"  {column.removeprefix('by_')} {name}"
            table.add_row(title, *(f"{span[column].get(name, 0):,}" for span in spans))
    shares = (span["without_model"] for span in spans)
    table.add_row("answered without a model", *("" if share is None else f"{share:.0%}" for share in shares))
    for what in ("read", "written"):
        spared = [(span["spared"][f"{what}_tokens"], span["spared"][f"{what}_bytes"] / 1000) for span in spans]
        cells = (f"~{tokens:,} ({size_kb:,.0f} kB)" for tokens, size_kb in spared)
        table.add_row(f"tokens not {what} by clients (estimate)", *cells)
    return table
