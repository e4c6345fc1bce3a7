"""What the host is asked beside models and the index: `ask`, `route`, `validate`, `allow`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from rich.markdown import Markdown

from rolecall.config.settings import load_routing

from ..errors import BadRequest
from .output import Bar, Shell, note, table


def ask(
    shell: Shell,
    request: str = typer.Argument(help="The request in plain words."),
    paths: list[str] = typer.Option([], "--path", "-p", help="File or glob in an allowed folder; repeatable."),
    budget_s: float = typer.Option(0.0, "--budget", help="Most seconds the call may take."),
) -> None:
    """Route a request and answer it here."""
    arguments = {"request": request, "paths": paths} | ({"budget_s": budget_s} if budget_s else {})
    with Bar("asking") as bar:
        result = shell.ask("tool", bar.tell, name="route", arguments=arguments, stream=not bar.disable)
    shell.show(result, Markdown(result["answer"]))
    if not shell.as_json:
        for warning in result["warnings"]:
            note(f"warning: {warning}")
        who = result["decision"]["agent"] or result["decision"]["role"]
        note(f"{who} · {result['status']} · receipt {result['receipt_id']}")


def route(
    shell: Shell,
    text: str = typer.Argument("", help="The request to decide on."),
    batch: Path | None = typer.Option(None, "--batch", help='JSON lines {"id","text"}; - is standard input.'),
    explain: bool = typer.Option(False, "--explain", help="Show the signals, and what would change the outcome."),
    policy: Path | None = typer.Option(None, "--policy", help="YAML as of the settings' `routing`, instead of it."),
    escalate: bool = typer.Option(False, "--escalate", help="Let the router model vote where the type is unsure."),
) -> None:
    """Decide who would answer; nothing is executed."""
    if (batch is None) == (not text):
        raise typer.BadParameter("Give either TEXT or --batch FILE.")
    if explain and (batch or escalate):
        raise typer.BadParameter("--explain takes one TEXT, and shows the decision without --escalate.")
    how: dict[str, Any] = {"escalate": True} if escalate else {}
    if policy:
        how["policy"] = load_routing(policy, shell.settings().profile).model_dump(mode="json")
    if explain:
        shell.show(shell.ask("explain", text=text, **how))
        return
    requests = list[dict[str, Any]]()
    for row in read_jsonl(batch) if batch else [{"id": "1", "text": text}]:
        match row:
            case {"id": given, "text": str() as wanted}:
                requests.append({"id": given, "text": wanted, **how})
            case _:
                failed, allowed = "A line of the batch has the wrong shape.", '{"id": ..., "text": "..."}'
                raise BadRequest(failed, found=str(row)[:200], allowed=allowed, advice="Correct the line.")
    with Bar("routing") as bar:
        found = shell.ask_each("route", bar.over(requests))
    shell.lines(found, table(found, "id", "task_type", "agent", "role", "confidence", "reasons"))


def validate(
    shell: Shell, batch: Path = typer.Option(..., "--batch", help='JSON lines {"id","output","evidence"?,...}.')
) -> None:
    """Check texts against evidence, schemas and grammars."""

    def said(check: dict[str, Any]) -> str:
        return f"{'!' if check['decisive'] else ' '} {check['name']}: {check['verdict']} ({check['detail']})"

    requests = [{"line": row} for row in read_jsonl(batch)]
    with Bar("checking") as bar:
        found = shell.ask_each("validate", bar.over(requests))
    shown = ({**line, "checks": "\n".join(map(said, line["checks"]))} for line in found)
    shell.lines(found, table(shown, "id", "verdict", "confidence", "checks"))


def allow(
    shell: Shell,
    folder: str = typer.Argument("", help="Folder that tools may read."),
    list_: bool = typer.Option(False, "--list", help="Show the allowed folders."),
    remove: bool = typer.Option(False, "--remove", help="Take FOLDER off the list."),
) -> None:
    """Allow tools to read a folder (indexing one does so too)."""
    if not folder and not list_:
        raise typer.BadParameter("Name a FOLDER, or use --list.")
    params: dict[str, Any] = {"folder": str(Path(folder).expanduser().absolute()), "remove": remove} if folder else {}
    allowed = shell.ask("allow", **params)
    shell.show(allowed, *(allowed["folders"] or ["No folder is allowed. Add one: rolecall allow FOLDER"]))


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
