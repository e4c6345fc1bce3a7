"""Folders and documents: `allow`, `index`, `search`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from .output import CONFIG_OPTION, EXIT_ATTENTION, JSON_OPTION, Bar, ask_host, console, emit, note, show, show_rows

index_app = typer.Typer(no_args_is_help=True, help="Index folders for retrieval.")


def register(app: typer.Typer) -> None:
    app.add_typer(index_app, name="index")
    app.command("allow", help="Allow tools to read a folder (indexing one does so too).")(allow)
    app.command("search", help="Search the index: passages with exact citations.")(search)


def allow(
    folder: str = typer.Argument("", help="Folder that tools may read."),
    list_: bool = typer.Option(False, "--list", help="Show the allowed folders."),
    remove: bool = typer.Option(False, "--remove", help="Take FOLDER off the list."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    if not folder and not list_:
        raise typer.BadParameter("Name a FOLDER, or use --list.")
    params = {"folder": str(Path(folder).expanduser().absolute()), "remove": remove} if folder else {}
    folders = ask_host("allow", params, config)["folders"]
    show({"folders": folders}, as_json, *(folders or ["No folder is allowed. Add one: rolecall allow FOLDER"]))


@index_app.command("add", help="Index a folder (again: only what changed is read).")
def index_add(
    folder: Path = typer.Argument(help="Folder with Markdown, text or source code."),
    collection: str = typer.Option("", "--collection", "-c", help="Name; by default the folder's."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    params = {"folder": str(folder.expanduser().absolute()), "collection": collection or None}
    with Bar("indexing") as bar:
        report = ask_host("index_add", params, config, bar.update)
    counts = f"{report['indexed']} files indexed, {report['skipped']} skipped, {len(report['failed'])} failed"
    failures = (f"  ({failed['code']}) {failed['path']}: {failed['reason']}" for failed in report["failed"])
    show(report, as_json, f"{report['collection']}: {counts} in {report['seconds']:.1f} s", *failures)
    if report["failed"]:
        raise typer.Exit(EXIT_ATTENTION)


@index_app.command("list", help="Collections, their size and freshness.")
def index_list(config: Path | None = CONFIG_OPTION, as_json: bool = JSON_OPTION) -> None:
    def row(item: dict[str, Any]) -> tuple[str, ...]:
        state = item["index"]
        counts = map(str, (item["files"], item["chunks"], state["pending"], state["failed"]))
        return item["collection"], *counts, _age(state["age_s"]), "\n".join(item["folders"])

    columns = ("collection", "files", "chunks", "pending", "failed", "age", "folders")
    empty = "Nothing is indexed. Start with: rolecall index add FOLDER"
    show_rows(ask_host("index_list", {}, config), as_json, columns, row, empty)


@index_app.command("remove", help="Drop a collection (the files stay).")
def index_remove(
    collection: str = typer.Argument(help="Collection to drop."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
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
    filters = {"glob": glob, "kind": kind, "language": language, "since": since}
    params: dict[str, Any] = {
        "query": query,
        "max_results": max_results,
        "collection": collection or None,
        "filters": {key: value for key, value in filters.items() if value} or None,
    }
    found = ask_host("search", params, config)
    state = found["index"]
    note(
        f"index: {state['indexed']} files, {state['pending']} pending, {state['skipped']} skipped, "
        f"{state['failed']} failed, age {_age(state['age_s'])}"
    )
    if as_json:
        emit(found["passages"])
        return
    for passage in found["passages"]:
        console().print(
            f"[bold]{passage['path']}[/]:{passage['start_line']}-{passage['end_line']}  [dim]{passage['score']:.3f}[/]"
        )
        console().print(passage["text"].strip() + "\n", markup=False)


def _age(age_s: float | None) -> str:
    if age_s is None:
        return "never synced"
    for unit, seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        if age_s >= seconds:
            return f"{age_s / seconds:.0f} {unit}"
    return f"{age_s:.0f} s"
