"""`rolecall eval`: measure what is shipped."""

from __future__ import annotations

import json
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import typer
from rich.console import RenderableType

from rolecall.config.home import Home
from rolecall.config.settings import load_settings

from ..errors import BadRequest
from .output import CONFIG_OPTION, JSON_OPTION, Bar, ask_each, show, table_of
from .requests import read_jsonl

if TYPE_CHECKING:
    from ..evaluation.score import Score

eval_app = typer.Typer(no_args_is_help=True, help="Measure what is shipped.")


class Suite(StrEnum):
    ROUTING = "routing"
    LLMROUTER = "llmrouter"
    RETRIEVAL = "retrieval"
    ABSTENTION = "abstention"


@eval_app.callback()
def _group() -> None:
    """A group of one command would otherwise be that command."""


@eval_app.command("run")
def eval_run(
    suite: Suite = typer.Argument(help="What to measure."),
    data: Path = typer.Option(..., "--data", help="Its data: a file of JSON lines, or a folder."),
    role: str = typer.Option("", "--role", help="The role to measure, where a suite is about one."),
    limit: int = typer.Option(0, "--limit", min=0, help="Most items, evenly out of all.", show_default=False),
    out: Path | None = typer.Option(None, "--out", help="Write a JSON line for each item."),
    escalate: bool = typer.Option(False, "--escalate", help="Let the router model decide where the router is unsure."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Score one suite: figure, n, 95% interval, control and verdict."""
    if role or (escalate and suite is not Suite.ROUTING):
        option = "--role" if role else "--escalate"
        raise BadRequest(f"{option} does not go with suite {suite}.", advice="Leave it out.")
    with Bar("measuring") as bar:
        if suite is Suite.ROUTING:
            score, items = _routing(data, limit, escalate, config, bar)
        else:
            home, kind = Home.find(), import_module(f"..evaluation.suites.{suite}", __package__)
            score, items = anyio.run(kind.evaluate, kind.load(data, limit), home, load_settings(home, config), bar.tell)
    if out:
        out.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), "utf-8")
    show(score.model_dump(mode="json"), as_json, *_readable(score))


def _routing(
    data: Path, limit: int, escalate: bool, config: Path | None, bar: Bar
) -> tuple[Score, list[dict[str, Any]]]:
    from ..evaluation.suites import routing

    requests = routing.labelled(read_jsonl(data), limit)
    asked = [{"id": each.id, "text": each.text} | ({"escalate": True} if escalate else {}) for each in requests]
    lines = ask_each("route", bar.over(asked), config)
    items = [routing.item(request, line) for request, line in zip(requests, lines, strict=True)]
    return routing.score(items), items


def _readable(score: Score) -> list[RenderableType]:
    low, high = score.interval
    head = f"{score.suite}: {score.score:.3f} [{low:.3f}, {high:.3f}], n = {score.n:,}: {score.verdict}"
    control = f"control, {score.control.name}: {score.control.score:.3f}"
    return [head, control, *(part for name, value in score.detail.items() for part in _part(name, value))]


def _part(name: str, value: Any) -> list[RenderableType]:
    """Figures on a line; one table for figures by name, with a row for each where they have names of their own."""
    if not isinstance(value, dict):
        return [f"{name}: {_cell(value)}"]
    if not all(isinstance(each, dict) for each in value.values()):
        nested = [
            part for key, each in value.items() if isinstance(each, dict) for part in _part(f"{name}.{key}", each)
        ]
        flat = {key: each for key, each in value.items() if not isinstance(each, dict)}
        return [f"{name}: {', '.join(f'{key} {_cell(each)}' for key, each in flat.items())}", *nested]
    made = table_of("", *next(iter(value.values()), {}), title=name)
    for key, row in value.items():
        made.add_row(key, *map(_cell, row.values()))
    return [made]


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_cell, value))}]"
    return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)
