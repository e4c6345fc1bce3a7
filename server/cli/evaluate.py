"""`rolecall eval`: measure what is shipped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

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
    from ..evaluation.suites.llmrouter import Array

T = TypeVar("T")
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
    plot: Path | None = typer.Option(None, "--plot", help="Write the suite's curve as SVG (llmrouter)."),
    escalate: bool = typer.Option(False, "--escalate", help="Let the router model decide where the router is unsure."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Score one suite: figure, n, 95% interval, control and verdict."""
    if role or (plot and suite is not Suite.LLMROUTER) or (escalate and suite is not Suite.ROUTING):
        option = "--role" if role else "--plot" if plot else "--escalate"
        raise BadRequest(f"{option} does not go with suite {suite}.", advice="Leave it out.")
    with Bar("measuring") as bar:
        match suite:
            case Suite.ROUTING:
                score, items = _routing(data, limit, escalate, config, bar)
            case Suite.LLMROUTER:
                score, items = _llmrouter(data, limit, plot, config, bar)
            case Suite.RETRIEVAL | Suite.ABSTENTION:
                score, items = _searches(suite, data, limit, config, bar)
    if out:
        out.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), "utf-8")
    show(score.model_dump(mode="json"), as_json, *_readable(score))


def _routing(
    data: Path, limit: int, escalate: bool, config: Path | None, bar: Bar
) -> tuple[Score, list[dict[str, Any]]]:
    from ..evaluation.suites import routing

    requests = _evenly(routing.labelled(read_jsonl(data)), limit)
    asked = [{"id": each.id, "text": each.text} | ({"escalate": True} if escalate else {}) for each in requests]
    lines = ask_each("route", bar.over(asked), config)
    items = [routing.item(request, line) for request, line in zip(requests, lines, strict=True)]
    return routing.score(items), items


def _llmrouter(
    data: Path, limit: int, plot: Path | None, config: Path | None, bar: Bar
) -> tuple[Score, list[dict[str, Any]]]:
    from ..evaluation.suites import llmrouter

    train, test, costs = llmrouter.load(data)

    def embed(texts: list[str]) -> Array:
        return _embedded(texts, config, bar)

    score, items = llmrouter.evaluate(train, test, costs, embed, limit, lambda words: bar.tell({"words": words}))
    if plot:
        llmrouter.plot(score.detail["curve"], plot)
    return score, items


def _searches(
    suite: Suite, data: Path, limit: int, config: Path | None, bar: Bar
) -> tuple[Score, list[dict[str, Any]]]:
    from ..evaluation.suites import abstention, retrieval

    home = Home.find()
    evaluate = retrieval.evaluate if suite is Suite.RETRIEVAL else abstention.evaluate
    return anyio.run(evaluate, retrieval.load(data, limit), home, load_settings(home, config), bar.tell)


def _embedded(texts: list[str], config: Path | None, bar: Bar) -> Array:
    """Unit vectors from the profile's embedder, here and on one thread: the same at every run."""
    import numpy as np
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    home = Home.find()
    folder = home.models / load_settings(home, config).profile.embedder.model
    if not folder.is_dir():
        raise BadRequest("The embedder is not there.", found=str(folder), advice="Run `rolecall setup`.")
    torch.set_num_threads(1)
    disable_progress_bar()  # of loading, which takes no time
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    batches = [texts[start : start + 64] for start in range(0, len(texts), 64)]
    encode = [model.encode(batch, normalize_embeddings=True, show_progress_bar=False) for batch in bar.over(batches)]
    return np.concatenate(encode).astype(np.float64)


def _evenly(items: Sequence[T], limit: int) -> list[T]:
    count = min(limit or len(items), len(items))
    return [items[number * len(items) // count] for number in range(count)]


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
