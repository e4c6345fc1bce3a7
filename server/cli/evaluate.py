"""`rolecall eval`: measure what is shipped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import anyio
import typer

from rolecall.config.home import Home

from ..errors import BadRequest
from .output import Bar, Shell, command
from .requests import read_jsonl

if TYPE_CHECKING:
    from ..evaluation.score import Score
    from ..evaluation.suites.llmrouter import Array

T = TypeVar("T")
Suite = Literal["routing", "llmrouter", "retrieval", "abstention"]
Outcome = tuple["Score", list[dict[str, Any]]]
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
    plot: Path | None = typer.Option(None, "--plot", help="Write the suite's curve as SVG (llmrouter)."),
    escalate: bool = typer.Option(False, "--escalate", help="Let the router model decide where the router is unsure."),
) -> None:
    """Score one suite: figure, n, 95% interval, control and verdict."""
    if role or (plot and suite != "llmrouter") or (escalate and suite != "routing"):
        option = "--role" if role else "--plot" if plot else "--escalate"
        raise BadRequest(f"{option} does not go with suite {suite}.", advice="Leave it out.")
    with Bar("measuring") as bar:
        match suite:
            case "routing":
                score, items = _routing(data, limit, escalate, shell, bar)
            case "llmrouter":
                score, items = _llmrouter(data, limit, plot, shell, bar)
            case "retrieval" | "abstention":
                score, items = _searches(suite, data, limit, shell, bar)
    if out:
        out.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), "utf-8")
    shell.show(score.model_dump(mode="json"))


def _routing(data: Path, limit: int, escalate: bool, shell: Shell, bar: Bar) -> Outcome:
    from ..evaluation.suites import routing

    requests = _evenly(routing.labelled(read_jsonl(data)), limit)
    asked = [{"id": each.id, "text": each.text, "escalate": escalate or None} for each in requests]
    lines = shell.ask_each("route", bar.over(asked))
    items = [routing.item(request, line) for request, line in zip(requests, lines, strict=True)]
    return routing.score(items), items


def _llmrouter(data: Path, limit: int, plot: Path | None, shell: Shell, bar: Bar) -> Outcome:
    import numpy as np

    from ..evaluation.suites import llmrouter

    def embed(texts: list[str]) -> Array:
        batches = [{"texts": texts[start : start + 64], "alone": False} for start in range(0, len(texts), 64)]
        return np.concatenate(shell.ask_each("embed", bar.over(batches)))

    tables = llmrouter.load(data)
    score, items = llmrouter.evaluate(*tables, embed, limit, lambda words: bar.tell({"words": words}))
    if plot:
        llmrouter.plot(score.detail["curve"], plot)
    return score, items


def _searches(suite: Suite, data: Path, limit: int, shell: Shell, bar: Bar) -> Outcome:
    from ..evaluation.suites import abstention, retrieval

    evaluate = retrieval.evaluate if suite == "retrieval" else abstention.evaluate
    return anyio.run(evaluate, retrieval.load(data, limit), Home.find(), shell.settings(), bar.tell)


def _evenly(items: Sequence[T], limit: int) -> list[T]:
    count = min(limit or len(items), len(items))
    return [items[number * len(items) // count] for number in range(count)]
