"""Bytes that enter a client's context for twenty tasks: through Rolecall, and where the client reads the files itself.

Through Rolecall: the call as the client writes it and the result as it reads it (text or structured content, whichever
is longer). By itself: the one file that holds what is asked, and not what the client would write afterwards. Control:
as many bytes from the start of that file as the task took through Rolecall.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio
import numpy
from mcp import Client
from scipy.stats import bootstrap

from rolecall.config.home import Home
from rolecall.server.evaluation.intervals import Interval, wilson

from .stage import command, rolecall_client, show, starter_home
from .tasks import Task, in_the_first, tasks

CONFIG = "profile: starter\nhost: {call_deadline_s: 600.0}\n"  # so that a slow machine gives no jobs


def main(most: int) -> None:
    """`most`: how many tasks, evenly out of the list."""
    with starter_home(CONFIG) as home, tempfile.TemporaryDirectory(prefix="rolecall-bench-") as temporary:
        folder = Path(temporary).resolve()
        work = tasks(folder)
        work = work[:: max(1, len(work) // most)]
        command(home, "allow", str(folder))
        command(home, "index", "add", str(folder / "library"))
        began = time.perf_counter()
        print(f"{'kind':9}{'task':34}{'alone':>8}{'through':>8}{'ratio':>7}  {'status':11}{'usable':8}{'control':9}s")
        rows, listed = anyio.run(_all, home, folder, work)
        seconds = time.perf_counter() - began
    figures = {"tasks": rows, "seconds": round(seconds, 1), **_totals(rows, listed)}
    show("savings", _words(figures), figures)


async def _all(home: Home, folder: Path, work: list[Task]) -> tuple[list[dict[str, Any]], int]:
    async with rolecall_client(home, folder) as client:
        shown = [
            {"name": tool.name, "description": tool.description, "input_schema": tool.input_schema}
            for tool in (await client.list_tools()).tools
        ]
        listed = len(_json(shown)) + len((client.instructions or "").encode())
        return [await _one(client, folder, task) for task in work], listed


async def _one(client: Client, folder: Path, task: Task) -> dict[str, Any]:
    began = time.perf_counter()
    found = await client.call_tool(task.tool, task.arguments)
    seconds = time.perf_counter() - began
    text = "".join(getattr(block, "text", "") for block in found.content)
    result = found.structured_content or {}
    call_bytes, text_bytes = len(_json({"name": task.tool, "arguments": task.arguments})), len(text.encode())
    structured_bytes = len(_json(result)) if result else 0
    through = call_bytes + max(text_bytes, structured_bytes)
    row: dict[str, Any] = {
        "kind": task.kind,
        "task": task.name,
        "reads": task.reads,
        "alone_bytes": (folder / task.reads).stat().st_size,
        "through_bytes": through,
        "call_bytes": call_bytes,
        "text_bytes": text_bytes,
        "structured_bytes": structured_bytes,
        "status": "error" if found.is_error else result["status"],
        "usable": not found.is_error and task.usable(result, folder),
        "control": in_the_first(through, task, folder),
        "seconds": round(seconds, 1),
    }
    usable, control = ("yes" if row[name] else "no" for name in ("usable", "control"))
    print(
        f"{task.kind:9}{task.name:34}{row['alone_bytes']:8,}{through:8,}{through / row['alone_bytes']:7.2f}  "
        f"{row['status']:11}{usable:8}{control:9}{seconds:.1f}",
        flush=True,
    )
    return row


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _totals(rows: list[dict[str, Any]], listed: int) -> dict[str, Any]:
    """Sums, shares, ratios. `after`: a client reads the file after all where the answer is of no use.
    `conversation`: all tasks in one, with the list of tools on one side, and each file read once on the other."""
    alone, through = (numpy.array([row[side] for row in rows]) for side in ("alone_bytes", "through_bytes"))
    usable = numpy.array([row["usable"] for row in rows])
    after = through + numpy.where(usable, 0, alone)
    conversation = sum({row["reads"]: row["alone_bytes"] for row in rows}.values())
    return {
        "tool_list_bytes": listed,
        "through": _ratio(through, alone),
        "after": _ratio(after, alone),
        "median_of_tasks": round(float(numpy.median(through / alone)), 3),
        "conversation": round(float(after.sum() + listed) / conversation, 3),
        "usable": _share(usable),
        "control": _share(numpy.array([row["control"] for row in rows])),
    }


def _ratio(a: Any, b: Any) -> dict[str, float]:
    """Of the sums, with a 95% interval by bootstrap over the tasks."""

    def ratio(x: Any, y: Any, axis: int = -1) -> Any:
        return x.sum(axis=axis) / y.sum(axis=axis)

    found = bootstrap((a, b), ratio, paired=True, method="percentile", rng=5).confidence_interval
    return {"bytes": int(a.sum()), "of": int(b.sum()), **_figures(ratio(a, b), (float(found.low), float(found.high)))}


def _share(found: Any) -> dict[str, float]:
    """Of n, with a 95% Wilson interval."""
    k, n = int(found.sum()), len(found)
    return {"k": k, "n": n, **_figures(found.mean(), wilson(k, n))}


def _figures(value: float, interval: Interval) -> dict[str, float]:
    named = {"value": value, "low": interval[0], "high": interval[1]}
    return {name: round(float(each), 3) for name, each in named.items()}


def _words(found: dict[str, Any]) -> list[str]:
    through, after, usable, control = (found[name] for name in ("through", "after", "usable", "control"))
    return [
        f"{through['of']:,} bytes alone, {through['bytes']:,} through Rolecall: {_shown(through)}, "
        f"median of the tasks {found['median_of_tasks']:.2f}",
        f"with the file read after all where the answer is of no use: {after['bytes']:,}, {_shown(after)}",
        f"the same in one conversation, each file read once by the client alone, with the list of tools "
        f"and the instructions ({found['tool_list_bytes']:,} bytes) on Rolecall's side: {found['conversation']:.2f}",
        f"usable: {usable['k']} of {usable['n']}, {_shown(usable)}; "
        f"control, as many first bytes of the file: {control['k']}, {_shown(control)}",
    ]


def _shown(figure: dict[str, float]) -> str:
    return f"{figure['value']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"
