"""`rolecall eval`: measure what is shipped."""

from __future__ import annotations

import json
import logging
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anyio
import typer

from rolecall.config.home import Home

from ..errors import BadRequest
from .output import Bar, Shell, command
from .requests import read_jsonl

if TYPE_CHECKING:
    from ..evaluation.score import Score

Suite = Literal["routing", "llmrouter", "retrieval", "abstention"]
eval_app = typer.Typer(no_args_is_help=True, help="Measure what is shipped.")


@eval_app.callback()
def _group() -> None:
    """A group of one command would otherwise be that command."""


@command(eval_app)
def eval_run(
    shell: Shell,
    suite: Suite = typer.Argument(help="What to measure."),
    data: Path = typer.Option(..., "--data", help="Its data: a file of JSON lines, or a folder."),
    role: str = typer.Option("", "--role", help="The role to measure, where a suite is about one."),
    limit: int = typer.Option(0, "--limit", min=0, help="Most items, evenly out of all.", show_default=False),
    out: Path | None = typer.Option(None, "--out", help="Write a JSON line for each item."),
    escalate: bool = typer.Option(False, "--escalate", help="Let the router model decide where the router is unsure."),
) -> None:
    """Score one suite: figure, n, 95% interval, control and verdict."""
    if role or (escalate and suite != "routing"):
        option = "--role" if role else "--escalate"
        raise BadRequest(f"{option} does not go with suite {suite}.", advice="Leave it out.")
    with Bar("measuring") as bar:
        if suite == "routing":
            score, items = _routing(data, limit, escalate, shell, bar)
        else:
            from ..host.log import configure_logging

            configure_logging(logging.WARNING)  # of the suite's own models and index, which else print to the output
            kind = import_module(f"..evaluation.suites.{suite}", __package__)
            score, items = anyio.run(kind.evaluate, kind.load(data, limit), Home.find(), shell.settings(), bar.tell)
    if out:
        out.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), "utf-8")
    shell.show(score.model_dump(mode="json"))


def _routing(data: Path, limit: int, escalate: bool, shell: Shell, bar: Bar) -> tuple[Score, list[dict[str, Any]]]:
    from ..evaluation.suites import routing

    requests = routing.labelled(read_jsonl(data), limit)
    asked = [{"id": each.id, "text": each.text, "escalate": escalate or None} for each in requests]
    lines = shell.ask_each("route", bar.over(asked))
    items = [routing.item(request, line) for request, line in zip(requests, lines, strict=True)]
    return routing.score(items), items
