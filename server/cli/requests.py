"""What the host is asked beside models and the index: `ask`, `route`, `validate`, `allow`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from rich.console import RenderableType
from rich.markdown import Markdown
from rich.text import Text

from rolecall.config.home import Home
from rolecall.config.settings import load_routing, load_settings

from ..errors import BadRequest
from .output import CONFIG_OPTION, JSON_OPTION, Bar, ask_each, ask_host, note, show, show_rows, table_of


def ask(
    request: str = typer.Argument(help="The request in plain words."),
    paths: list[str] = typer.Option([], "--path", "-p", help="File or glob in an allowed folder; repeatable."),
    budget_s: float = typer.Option(0.0, "--budget", help="Most seconds the call may take."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Route a request and answer it here."""
    arguments = {"request": request, "paths": paths} | ({"budget_s": budget_s} if budget_s else {})
    with Bar("asking") as bar:
        asked = {"name": "route", "arguments": arguments, "stream": not bar.disable}
        result = ask_host("tool", asked, config, bar.tell)
    show(result, as_json, Markdown(result["answer"]))
    if not as_json:
        for warning in result["warnings"]:
            note(f"warning: {warning}")
        who = result["decision"]["agent"] or result["decision"]["role"]
        note(f"{who} · {result['status']} · receipt {result['receipt_id']}")


def route(
    text: str = typer.Argument("", help="The request to decide on."),
    batch: Path | None = typer.Option(None, "--batch", help='JSON lines {"id","text"}; - is standard input.'),
    explain: bool = typer.Option(False, "--explain", help="Show the signals, and what would change the outcome."),
    policy: Path | None = typer.Option(None, "--policy", help="YAML as of the settings' `routing`, instead of it."),
    escalate: bool = typer.Option(False, "--escalate", help="Let the router model vote where the type is unsure."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Decide who would answer; nothing is executed."""
    if (batch is None) == (not text):
        raise typer.BadParameter("Give either TEXT or --batch FILE.")
    if explain and (batch or escalate):
        raise typer.BadParameter("--explain takes one TEXT, and shows the decision without --escalate.")
    how: dict[str, Any] = {"escalate": True} if escalate else {}
    if policy:
        profile = load_settings(Home.find(), config).profile
        how["policy"] = load_routing(policy, profile).model_dump(mode="json")
    if explain:
        why = ask_host("explain", {"text": text, **how}, config)
        show(why, as_json, *_explained(why))
        return
    requests = list[dict[str, Any]]()
    for row in read_jsonl(batch) if batch else [{"id": "1", "text": text}]:
        match row:
            case {"id": given, "text": str() as wanted}:
                requests.append({"id": given, "text": wanted, **how})
            case _:
                failed, allowed = "A line of the batch has the wrong shape.", '{"id": ..., "text": "..."}'
                raise BadRequest(failed, found=str(row)[:200], allowed=allowed, advice="Correct the line.")

    def cells(line: dict[str, Any]) -> tuple[str, ...]:
        who, sure = line["agent"] or line["role"] or "denied", f"{line['confidence']:.2f}"
        return str(line["id"]), line["task_type"], who, sure, "; ".join(line["reasons"])

    with Bar("routing") as bar:
        lines = ask_each("route", bar.over(requests), config)
    show_rows(lines, as_json, ("id", "task type", "who", "confidence", "why"), cells, each=True)


def validate(
    batch: Path = typer.Option(..., "--batch", help='JSON lines {"id","output","evidence"?,...}.'),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Check texts against evidence, schemas and grammars."""
    requests = [{"line": row} for row in read_jsonl(batch)]

    def cells(line: dict[str, Any]) -> tuple[str, ...]:
        checks = "\n".join(
            f"{'!' if check['decisive'] else ' '} {check['name']}: {check['verdict']} ({check['detail']})"
            for check in line["checks"]
        )
        return str(line["id"]), line["verdict"], f"{line['confidence']:.2f}", checks

    with Bar("checking") as bar:
        lines = ask_each("validate", bar.over(requests), config)
    show_rows(lines, as_json, ("id", "verdict", "confidence", "checks"), cells, each=True)


def allow(
    folder: str = typer.Argument("", help="Folder that tools may read."),
    list_: bool = typer.Option(False, "--list", help="Show the allowed folders."),
    remove: bool = typer.Option(False, "--remove", help="Take FOLDER off the list."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Allow tools to read a folder (indexing one does so too)."""
    if not folder and not list_:
        raise typer.BadParameter("Name a FOLDER, or use --list.")
    params = {"folder": str(Path(folder).expanduser().absolute()), "remove": remove} if folder else {}
    folders = ask_host("allow", params, config)["folders"]
    show({"folders": folders}, as_json, *(folders or ["No folder is allowed. Add one: rolecall allow FOLDER"]))


def _explained(found: dict[str, Any], within: str = "") -> Iterator[RenderableType]:
    """What there is under each name, without hashes: lists of like things as tables, the rest in words."""
    for name, value in found.items():
        title = f"{within}{name.replace('_', ' ')}"
        if value in (None, "", [], {}) or name.endswith("sha256"):
            continue
        if isinstance(value, list) and isinstance(value[0], dict):
            columns = dict.fromkeys(key for row in value for key in row)
            table = table_of(*columns, title=title)
            for row in value:
                table.add_row(*(_words(row.get(key)) for key in columns))
            yield table
        elif isinstance(value, dict) and any(isinstance(each, dict | list) for each in value.values()):
            yield from _explained(value, f"{title}: ")
        else:
            yield Text.assemble((f"{title}: ", "bold"), _words(value))


def _words(value: Any) -> str:
    match value:
        case dict() if value:
            return ", ".join(f"{key.replace('_', ' ')} {_words(each)}" for key, each in value.items())
        case list() if value:
            return "; ".join(map(_words, value))
        case float():
            return f"{value:.4g}"
        case _:
            return "-" if value in (None, "", [], {}) else str(value)


def read_jsonl(path: Path) -> Iterator[Any]:
    """The values of a JSON-lines file (`-` is standard input); blank lines are left out."""
    try:
        text = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        found = f"{path}: {error.strerror}"
        raise BadRequest("The batch file cannot be read.", found=found, advice="Check the path.") from None
    for number, line in enumerate(text.split(b"\n"), 1):
        try:
            if line.strip():
                yield json.loads(line)
        except (ValueError, RecursionError) as error:
            failed, advice = f"Line {number} of {path} is not JSON.", "Write one JSON object a line."
            raise BadRequest(failed, found=str(error)[:200], advice=advice) from None
