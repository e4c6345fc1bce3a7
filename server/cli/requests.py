"""What the host is asked beside models: `ask`, `route`, `validate`, `receipt`, `allow`, `index`, `search`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from rich.json import JSON
from rich.markdown import Markdown
from rich.text import Text

from rolecall.config.errors import RolecallError
from rolecall.retrieval.errors import IndexLarge

from ..errors import BadRequest
from .output import CONFIG_OPTION, EXIT_ATTENTION, JSON_OPTION, Bar, ask_each, ask_host, note, show, show_rows

receipt_app = typer.Typer(no_args_is_help=True, help="What was decided and done, request by request.")
index_app = typer.Typer(no_args_is_help=True, help="Index folders for retrieval.")


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
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Decide who would answer; nothing is executed."""
    if (batch is None) == (not text):
        raise typer.BadParameter("Give either TEXT or --batch FILE.")
    requests = list[dict[str, Any]]()
    for row in _read_jsonl(batch) if batch else [{"id": "1", "text": text}]:
        match row:
            case {"id": given, "text": str() as wanted}:
                requests.append({"id": given, "text": wanted})
            case _:
                failed, allowed = "A line of the batch has the wrong shape.", '{"id": ..., "text": "..."}'
                raise BadRequest(failed, found=str(row)[:200], allowed=allowed, advice="Correct the line.")

    def cells(line: dict[str, Any]) -> tuple[str, ...]:
        who, sure = line["agent"] or line["role"], f"{line['confidence']:.2f}"
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
    requests = [{"line": row} for row in _read_jsonl(batch)]

    def cells(line: dict[str, Any]) -> tuple[str, ...]:
        checks = "\n".join(
            f"{'!' if check['decisive'] else ' '} {check['name']}: {check['verdict']} ({check['detail']})"
            for check in line["checks"]
        )
        return str(line["id"]), line["verdict"], f"{line['confidence']:.2f}", checks

    with Bar("checking") as bar:
        lines = ask_each("validate", bar.over(requests), config)
    show_rows(lines, as_json, ("id", "verdict", "confidence", "checks"), cells, each=True)


@receipt_app.command("show")
def receipt_show(
    receipt_id: str = typer.Argument(help="The id that an answer carried."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """One receipt, whole."""
    receipt = ask_host("receipt", {"id": receipt_id}, config)
    show(receipt, as_json, JSON.from_data(receipt))


@receipt_app.command("list")
def receipt_list(
    count: int = typer.Option(20, "-n", min=1, max=1000, help="How many."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """The latest receipts."""
    columns = ("id", "tool", "who", "status", "seconds")
    receipts = ask_host("receipts", {"count": count}, config)
    show_rows(receipts, as_json, columns, lambda each: (*map(each.get, columns[:4]), f"{each['seconds']:.2f}"))


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


@index_app.command("add")
def index_add(
    folder: Path = typer.Argument(help="Folder with Markdown, text or source code."),
    collection: str = typer.Option("", "--collection", "-c", help="Name; by default the folder's."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask before a first index of over 50,000 files."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Index a folder (again: only what changed is read)."""
    params = {"folder": str(folder.expanduser().absolute()), "collection": collection or None, "confirmed": yes}
    try:
        with Bar("indexing") as bar:
            report = ask_host("index_add", params, config, bar.tell)
    except RolecallError as error:
        question = f"{folder} has {error.found} to index. Index them all?"
        if error.code != IndexLarge.code or not sys.stdin.isatty() or not typer.confirm(question, err=True):
            raise
        index_add(folder, collection, True, config, as_json)
        return
    counts = f"{report['indexed']} files indexed, {report['skipped']} skipped, {len(report['failed'])} failed"
    failures = (f"  ({failed['code']}) {failed['path']}: {failed['reason']}" for failed in report["failed"])
    show(report, as_json, f"{report['collection']}: {counts} in {report['seconds']:.1f} s", *failures)
    if report["failed"]:
        raise typer.Exit(EXIT_ATTENTION)


@index_app.command("list")
def index_list(config: Path | None = CONFIG_OPTION, as_json: bool = JSON_OPTION) -> None:
    """Collections, their size and freshness."""

    def row(item: dict[str, Any]) -> tuple[str, ...]:
        state = item["index"]
        counts = map(str, (item["files"], item["chunks"], state["pending"], state["failed"]))
        return item["collection"], *counts, _age(state["age_s"]), "\n".join(item["folders"])

    columns = ("collection", "files", "chunks", "pending", "failed", "age", "folders")
    empty = "Nothing is indexed. Start with: rolecall index add FOLDER"
    show_rows(ask_host("index_list", {}, config), as_json, columns, row, empty)


@index_app.command("remove")
def index_remove(
    collection: str = typer.Argument(help="Collection to drop."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Drop a collection (the files stay)."""
    removed = ask_host("index_remove", {"collection": collection}, config)
    show(removed, as_json, f"Dropped {collection}: {removed['files']} files.")


def search(
    query: str = typer.Argument(help="What to look for."),
    max_results: int = typer.Option(8, "-k", min=1, max=100, help="Most passages."),
    collection: str = typer.Option("", "--collection", "-c", help="Collection; all by default."),
    glob: str = typer.Option("", "--glob", help="Only files whose path matches."),
    kind: str = typer.Option("", "--kind", help="markdown, text or code."),
    language: str = typer.Option("", "--language", help="Language name, such as python."),
    since: str = typer.Option("", "--since", help="ISO date: only files modified since."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Search the index: passages with exact citations."""
    filters = {"glob": glob, "kind": kind, "language": language, "since": since}
    filters = {key: value for key, value in filters.items() if value}
    where = {"collection": collection or None, "filters": filters or None}
    found = ask_host("search", {"query": query, "max_results": max_results, **where}, config)
    state = found["index"]
    counts = ", ".join(f"{state[key]} {key}" for key in ("indexed", "pending", "skipped", "failed"))
    note(f"index: files {counts}; age {_age(state['age_s'])}")
    show(found["passages"], as_json, *map(_passage, found["passages"]))


def _passage(found: dict[str, Any]) -> Text:
    where = f":{found['start_line']}-{found['end_line']}  {found['score']:.3f}\n"
    return Text.assemble((found["path"], "bold"), where, found["text"].strip() + "\n")


def _age(age_s: float | None) -> str:
    if age_s is None:
        return "never synced"
    for unit, seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        if age_s >= seconds:
            return f"{age_s / seconds:.0f} {unit}"
    return f"{age_s:.0f} s"


def _read_jsonl(path: Path) -> Iterator[Any]:
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
