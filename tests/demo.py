"""`make demo`: the whole of Rolecall on real input, through a real MCP client over stdio.

It uses a home of its own (the models are the user's), so it disturbs no running host. The questions carry a number
drawn at run time that exact, retrieved and validated results must contain; model answers are shown as they come.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
from mcp import Client, StdioServerParameters
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rolecall.config.home import Home

ROLECALL = str(Path(sys.executable).with_name("rolecall"))
PROJECT = Path(__file__).resolve().parent.parent
SMALL_BUDGET = """\
profile: starter
memory: {budget_gb: 2.2}
host: {spare_worker: false}
roles:
  router: {pinned: false}
  summarization: {model: starter/smollm2-135m-instruct-4bit, max_tokens: 40}
"""
DEMO_SETTINGS = "profile: starter\n"
SUBJECTS = ("request", "question", "task", "query", "output", "paths")

Ask = Callable[..., Awaitable[dict[str, Any]]]


class Demo:
    """The trace so far, and the table at the end."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.rows: list[tuple[str, str, str, str, str]] = []
        self.last = ("", "")
        self.failures: list[str] = []

    def step(self, title: str) -> None:
        self.console.rule(f"[bold cyan]{title}", align="left")

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False)

    def check(self, what: str, holds: bool) -> None:
        self.console.print(f"  {'[green]✓' if holds else '[red]✗'}[/] {what}", highlight=False)
        if not holds:
            self.failures.append(what)

    def row(self, tool: str, asked: str, answer: str) -> None:
        """A line of the last table, for the call shown last."""
        self.rows.append((tool, asked, *self.last, answer))

    def show(
        self, asked: str, result: types.CallToolResult, seconds: float, resident: list[dict[str, Any]]
    ) -> dict[str, Any]:
        data: dict[str, Any] = result.structured_content or {}
        meta = dict(result.meta or {}).get("rolecall/cost", {})
        body = Text(str(data.get("answer") or result.content[0].text).strip()[:700])  # type: ignore[union-attr]
        facts = []
        if decision := data.get("decision"):
            who = f"agent {decision['agent']}" if decision["agent"] else f"role {decision['role']}"
            facts.append(f"{decision['task_type']} → {who} ({decision['confidence']:.2f})")
            facts.append("why: " + "; ".join(decision["reasons"])[:150])
        if meta.get("model_calls"):
            facts.append(
                f"{meta['model']} · {meta['prompt_tokens']} tokens in, {meta['completion_tokens']} out · load "
                f"{meta['load_s']:.1f} s, prefill {meta['prefill_s']:.1f} s, decode {meta['decode_s']:.1f} s"
            )
        memory_bytes = sum(item["measured_bytes"] for item in resident)
        facts.append(f"in memory: {len(resident)} models, {memory_bytes / 1e9:.2f} GB")
        who = meta.get("model") or ("exact agent" if data.get("decision") else "index" if "index" in data else "checks")
        self.last = (str(who).removeprefix("starter/"), f"{seconds:.1f} s")
        facts.append(f"{data.get('status', 'error')} · {seconds:.2f} s · receipt {data.get('receipt_id', '-')}")
        for warning in data.get("warnings", []):
            facts.append(f"warning: {warning}"[:200])
        self.console.print(Panel(body, title=asked, title_align="left", border_style="blue"))
        self.console.print("\n".join(f"  {fact}" for fact in facts), style="dim", highlight=False, markup=False)
        return data


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--svg", type=Path, help="also draw the end of the trace to this file")
    options = parser.parse_args()
    console = Console(record=options.svg is not None, width=110 if options.svg else None)
    started = time.monotonic()
    models = Home.find().models
    with tempfile.TemporaryDirectory(prefix="rolecall-demo-") as folder:
        demo = Demo(console)
        homes = [_home(Path(folder) / name, text, models) for name, text in (("a", DEMO_SETTINGS), ("b", SMALL_BUDGET))]
        try:
            anyio.run(_run, demo, Path(folder), *homes)
        finally:
            for home in homes:
                _cli(home, "stop")
    if options.svg:
        console.export_text()  # the picture is the table alone: this clears what was recorded before it
    _table(demo, time.monotonic() - started)
    if options.svg:
        drawn = console.export_svg(title="make demo")
        # A page that shows the picture fetches nothing: the reader's own monospaced font will do.
        options.svg.write_text(re.sub(r"(?s)@font-face \{.*?\n    \}\n|<!--.*?-->\n?", "", drawn), "utf-8")
    return 1 if demo.failures else 0


async def _run(demo: Demo, folder: Path, home: Path, small: Path) -> None:
    number = random.randrange(1000, 10_000)
    notes = _notes(folder, number)
    demo.step("Index real documents")
    for path in (notes, PROJECT / "docs", _package("huggingface_hub") / "templates", _package("lark")):
        report = await anyio.to_thread.run_sync(_cli, home, "index", "add", str(path))
        demo.say(f"  {report['collection']}: {report['indexed']} files, {report['seconds']:.1f} s")
    async with _client(demo, home) as ask:
        await _tools(demo, ask, number, notes)
        await _second_client(demo, ask, home)
    await _eviction(demo, small, notes)


async def _tools(demo: Demo, ask: Ask, number: int, notes: Path) -> None:
    demo.step("route: exact agents answer without a model")
    data = await ask("route", request=f"what is 15% of {number}?")
    demo.row("route", f"what is 15% of {number}?", data["answer"].splitlines()[0])
    demo.check(f"15% of {number} is {number * 15 / 100:g}", f"{number * 15 / 100:g}" in data["answer"].replace(",", ""))
    data = await ask("route", request=f"convert {number} km to m")
    demo.check(f"{number} km are {number * 1000} m", str(number * 1000) in data["answer"].replace(",", ""))
    data = await ask("route", request="how much memory does this machine have?")
    demo.check("the machine's memory comes from its own agent", data["decision"]["agent"] == "system")

    demo.step("retrieve: passages cited to the byte")
    data = await ask("retrieve", query="reference code of the north depot", max_results=3)
    demo.row("retrieve", "reference code of the north depot", _line_with(number, data["passages"][0]["text"]))
    demo.check("the first passage holds the number drawn", str(number) in data["passages"][0]["text"])
    first = data["passages"][0]
    quoted = Path(first["path"]).read_bytes()[first["start_byte"] : first["end_byte"]]
    demo.check("the file's bytes at the citation are the passage", quoted.decode() == first["text"])
    asked = "What do our notes say about the reference code of the north depot?"
    data = await ask("route", request=asked, execute=False)  # its answer takes the starter on a CPU most of a minute
    demo.check("route sends it to retrieval", data["decision"]["agent"] == "retrieval")

    demo.step("validate: against evidence")
    evidence = f"The north depot holds {number} crates and closes at 18:00."
    data = await ask("validate", output=f"The north depot holds {number + 1} crates.", evidence=evidence)
    demo.check("a wrong number is unsupported", data["verdict"] == "unsupported")
    data = await ask("validate", output=f"The north depot holds {number} crates.", evidence=evidence)
    demo.check("the right one is supported", data["verdict"] == "supported")
    demo.row("validate", f"… holds {number} crates", data["verdict"])

    demo.step("Role models: reason, summarize, code, route")
    data = await ask("reason", question="What is the capital of France?", depth="quick")
    demo.row("reason", "What is the capital of France?", data["answer"])
    data = await ask("summarize", paths=[str(notes / "depot.md")], max_words=60)
    demo.row("summarize", "depot.md", data["answer"])
    data = await ask("code", task="Write a function reverse_string(s) that returns s reversed.", language="python")
    code = data["blocks"][0]["code"] if data["blocks"] else data["answer"]
    demo.row("code", "reverse_string", code)

    demo.step("The same jobs through route: the router picks the role")
    routed = {
        "coding": {"request": "Write a Python function that adds two numbers."},
        "summarization": {"request": "Summarize this file in one sentence.", "paths": [str(notes / "depot.md")]},
        "general": {"request": "Tell me something nice about the sea."},
        "validation": {"request": 'Check whether this statement is true: "Paris lies in France."'},
    }
    for task_type, arguments in routed.items():
        data = await ask("route", **arguments)
        decision = data["decision"]
        demo.check(
            f"{task_type} goes to a role model ({decision['role']})",
            task_type == decision["task_type"] and decision["role"],
        )


async def _second_client(demo: Demo, ask: Ask, home: Path) -> None:
    demo.step("A second client shares the host and its models")
    before = _resident(home)
    async with _client(demo, home) as other, anyio.create_task_group() as group:
        group.start_soon(partial(other, "reason", question="Name a colour.", depth="quick"))
        group.start_soon(partial(ask, "reason", question="Name an animal.", depth="quick"))
    after = _resident(home)
    _show_resident(demo, after)
    same = {item["model"]: item["pid"] for item in before} == {item["model"]: item["pid"] for item in after}
    demo.check("both were answered by one copy of each model", same)


async def _eviction(demo: Demo, home: Path, notes: Path) -> None:
    demo.step("A small budget: loading one model evicts another")
    await anyio.to_thread.run_sync(_cli, home, "allow", str(notes))
    async with _client(demo, home) as ask:
        await ask("reason", question="Name a colour.", depth="quick")
        before = _resident(home)
        _show_resident(demo, before)
        await ask("summarize", paths=[str(notes / "depot.md")], max_words=40)
        after = _resident(home)
        _show_resident(demo, after)
    budget = _cli(home, "doctor")["budget_bytes"]
    # Whatever answered in the end (a failed check goes to the heavier role), the first process had to make room.
    gone = not {item["pid"] for item in before} & {item["pid"] for item in after}
    demo.check("the float32 starter was evicted for the 4-bit one", gone)
    reserved = sum(item["reserved_bytes"] for item in after)
    demo.check(f"reserved {reserved / 1e9:.2f} GB of a budget of {budget / 1e9:.2f} GB", reserved <= budget)


@asynccontextmanager
async def _client(demo: Demo, home: Path) -> AsyncIterator[Ask]:
    """A client over stdio, as a desktop program would start it; yields a function that calls a tool and shows it."""
    server = StdioServerParameters(command=ROLECALL, args=["serve"], env=_environment(home), cwd=str(PROJECT))
    async with Client(server) as client:

        async def ask(tool: str, **arguments: Any) -> dict[str, Any]:
            started = time.monotonic()
            result = await client.call_tool(tool, arguments)
            asked = next(str(arguments[key]) for key in SUBJECTS if key in arguments)
            seconds = time.monotonic() - started
            resident = await anyio.to_thread.run_sync(_resident, home)
            data: dict[str, Any] = demo.show(f"{tool}: {asked}"[:100], result, seconds, resident)
            return data

        yield ask


def _home(root: Path, settings: str, models: Path) -> Path:
    """A home of its own with the user's models."""
    root.mkdir(mode=0o700)
    (root / "config.yaml").write_text(settings)
    (root / "models").symlink_to(models)
    return root


def _notes(folder: Path, number: int) -> Path:
    """A folder of notes with a number that no model can know."""
    notes = folder / "notes"
    notes.mkdir()
    (notes / "depot.md").write_text(
        "# Depots\n\n## North depot\n\n"
        f"The reference code of the north depot is {number}. It opens at 07:00 and closes at 18:00 on weekdays.\n\n"
        "## South depot\n\nThe south depot moved to the harbour in spring. Deliveries go to gate 3.\n"
    )
    return notes


def _line_with(number: int, text: str) -> str:
    return next((line for line in text.splitlines() if str(number) in line), text)


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    assert found is not None and found.origin is not None
    return Path(found.origin).parent


def _environment(home: Path) -> dict[str, str]:
    return {**os.environ, "ROLECALL_HOME": str(home)}


def _cli(home: Path, *arguments: str) -> Any:
    """One command of the command line, as JSON. Exit code 3 is done, with something to attend to."""
    command = [ROLECALL, *arguments, "--json"]
    done = subprocess.run(command, env=_environment(home), capture_output=True, text=True, cwd=PROJECT, check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(command)} failed ({done.returncode}): {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def _resident(home: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _cli(home, "models", "ps")
    return found


def _show_resident(demo: Demo, resident: list[dict[str, Any]]) -> None:
    for item in resident:
        demo.say(
            f"  in memory: {item['model']} (pid {item['pid']}, {', '.join(item['roles'])}) reserved "
            f"{item['reserved_bytes'] / 1e9:.2f} GB, measured {item['measured_bytes'] / 1e9:.2f} GB"
        )


def _table(demo: Demo, seconds: float) -> None:
    table = Table("tool", "asked", "answered by", "time", "answer", title="The six tools")
    for tool, asked, who, took, answer in sorted(demo.rows):
        table.add_row(tool, asked, who, took, Text(answer.strip()[:300]))
    demo.console.print(table)
    verdict = "[green]all checks hold" if not demo.failures else f"[red]{len(demo.failures)} checks failed"
    demo.console.print(f"{verdict}[/] · {seconds:.0f} s · everything ran on this machine")


if __name__ == "__main__":
    sys.exit(main())
