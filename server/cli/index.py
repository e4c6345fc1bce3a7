"""The index: `rolecall index add|sync|watch|status|list|remove`, and `search` in it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import RenderableType
from rich.text import Text

from rolecall.config.errors import RolecallError
from rolecall.retrieval.errors import IndexLarge

from .output import CONFIG_OPTION, EXIT_ATTENTION, JSON_OPTION, Bar, ask_host, note, show, show_rows, table_of

COLLECTION = typer.Argument("", help="Collection; all by default.", show_default=False)
EMPTY = "Nothing is indexed. Start with: rolecall index add FOLDER"
MOST_FILES = 20
"""Files by name for a person to read; --json has more."""

index_app = typer.Typer(no_args_is_help=True, help="Index folders for retrieval, and keep the index fresh.")


@index_app.command("add")
def index_add(
    folder: Path = typer.Argument(help="Folder of text, source code and documents."),
    collection: str = typer.Option("", "--collection", "-c", help="Name; by default the folder's."),
    private: bool | None = typer.Option(
        None, "--private/--no-private", help="Keep the collection's passages from clients.", show_default=False
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would be indexed; change nothing."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask before a first index of over 50,000 files."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Index a folder (again: only what changed is read)."""
    asked: dict[str, Any] = {"folder": str(folder.expanduser().absolute())}
    if dry_run:
        with Bar("looking"):
            preview = ask_host("index_preview", asked, config)
        show(preview, as_json, *_previewed(preview))
        return
    asked |= {"collection": collection or None, "private": private}
    try:
        report = _followed("index_add", {**asked, "confirmed": yes}, config)
    except RolecallError as error:
        question = f"{folder} has {error.found} to index. Index them all?"
        if error.code != IndexLarge.code or not sys.stdin.isatty() or not typer.confirm(question, err=True):
            raise
        report = _followed("index_add", {**asked, "confirmed": True}, config)
    show(report, as_json, *_reported(report))
    _attend([report])


@index_app.command("sync")
def index_sync(collection: str = COLLECTION, config: Path | None = CONFIG_OPTION, as_json: bool = JSON_OPTION) -> None:
    """Bring collections up to date with their folders."""
    reports = _followed("index_sync", {"collection": collection or None}, config)
    show(reports, as_json, *(line for report in reports for line in _reported(report)))
    _attend(reports)


@index_app.command("watch")
def index_watch(collection: str = COLLECTION, config: Path | None = CONFIG_OPTION, as_json: bool = JSON_OPTION) -> None:
    """Keep collections up to date until Ctrl-C, with a line for each sync."""

    def tell(update: dict[str, Any]) -> None:
        report = update["synced"]
        show(report, as_json, *(f"{datetime.now():%H:%M:%S} {line}" for line in _reported(report)))
        sys.stdout.flush()  # whoever reads a pipe wants each line when it is true

    note("Watching; Ctrl-C ends it.")
    ask_host("index_watch", {"collection": collection or None}, config, tell)
    note("The host was stopped, and the watch with it.")


@index_app.command("status")
def index_status(
    collection: str = COLLECTION, config: Path | None = CONFIG_OPTION, as_json: bool = JSON_OPTION
) -> None:
    """How fresh and how complete each collection is: pending and failed files, and why others are left out."""
    found = ask_host("index_status", {"collection": collection or None}, config)
    show(found, as_json, *([part for item in found for part in _status(item)] or [EMPTY]))


@index_app.command("list")
def index_list(config: Path | None = CONFIG_OPTION, as_json: bool = JSON_OPTION) -> None:
    """Collections, their size and freshness."""

    def row(item: dict[str, Any]) -> tuple[str, ...]:
        state = item["index"]
        counts = (f"{count:,}" for count in (item["files"], item["chunks"], state["pending"], state["failed"]))
        return _name(item), *counts, duration(state["age_s"]), "\n".join(item["folders"])

    columns = ("collection", "files", "chunks", "pending", "failed", "age", "folders")
    show_rows(ask_host("index_list", {}, config), as_json, columns, row, EMPTY)


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
    kind: str = typer.Option("", "--kind", help="markdown, text, code, notebook, table, json, html or document."),
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
    note(f"index: {_state(found['index'])}")
    show(found["passages"], as_json, *map(_passage, found["passages"]))


def duration(seconds: float | None) -> str:
    """A time span in words, to the largest unit; None is a folder that was never wholly indexed."""
    if seconds is None:
        return "never synced"
    for unit, unit_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _followed(op: str, asked: dict[str, Any], config: Path | None) -> Any:
    """What the host says at the end, with a bar of files, chunks and the time left until then."""
    with Bar("indexing") as bar:

        def tell(update: dict[str, Any]) -> None:
            words = f"{update['done']:,} of {update['total']:,} files, {update['chunks']:,} chunks"
            bar.tell({**update, "words": words})

        return ask_host(op, asked, config, tell)


def _attend(reports: Iterable[dict[str, Any]]) -> None:
    if any(report["failed"] for report in reports):
        raise typer.Exit(EXIT_ATTENTION)


def _reported(report: dict[str, Any]) -> Iterator[str]:
    counts = f"{report['indexed']:,} files indexed, {report['skipped']:,} skipped, {len(report['failed']):,} failed"
    yield f"{report['collection']}: {counts} in {report['seconds']:.1f} s"
    yield from _failures(report["failed"])


def _previewed(preview: dict[str, Any]) -> Iterator[RenderableType]:
    size, seconds = f"{preview['size_bytes'] / 1e6:,.1f} MB", preview["seconds"]
    takes = "how long is known once something was indexed" if seconds is None else f"about {duration(seconds)}"
    yield f"{preview['folder']}: {preview['files']:,} files to index, {size}, {takes}"
    for title, counts in (("kinds", preview["kinds"]), ("left out", preview["skipped"])):
        if counts:
            yield f"{title}: {_counts(counts)}"
    if preview["folders"]:
        table = table_of("folders with the most", "files")
        for folder, files in preview["folders"].items():
            table.add_row(folder, f"{files:,}")
        yield table
        yield "Leave out more with lines as of .gitignore in a file .rolecallignore."
    yield from _failures(preview["failed"])


def _status(item: dict[str, Any]) -> Iterator[str]:
    state = item["index"]
    yield f"{_name(item)}: {item['chunks']:,} chunks; {_state(state)}"
    yield from (f"  in {folder}" for folder in item["folders"])
    other = f"; being rebuilt for {item['rebuilding_for']}" if item["rebuilding_for"] else ""
    yield f"  embedder {item['embedder']}{other}"
    if state["reasons"]:
        yield f"  not indexed: {_counts(state['reasons'])}"
    yield from _first("pending", item["pending_files"], state["pending"])
    yield from _failures(item["failed_files"], state["failed"])


def _failures(failed: list[dict[str, Any]], count: int = 0) -> Iterator[str]:
    said = [f"({each['code']}) {each['path']}: {each['reason']}" for each in failed]
    return _first("failed", said, max(count, len(said)))


def _first(what: str, said: list[str], count: int) -> Iterator[str]:
    yield from (f"  {what}: {each}" for each in said[:MOST_FILES])
    if (more := count - MOST_FILES) > 0:
        yield f"  {what}: {more:,} more, with --json"


def _name(item: dict[str, Any]) -> str:
    return f"{item['collection']}{' (private)' if item['private'] else ''}"


def _state(state: dict[str, Any]) -> str:
    counts = ", ".join(f"{state[key]:,} {key}" for key in ("indexed", "pending", "skipped", "failed"))
    return f"files {counts}; age {duration(state['age_s'])}"


def _counts(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in ordered)


def _passage(found: dict[str, Any]) -> Text:
    place = "".join(f"  {found[key]}" for key in ("place", "heading") if found[key])
    where = f":{found['start_line']}-{found['end_line']}{place}  {found['score']:.3f}\n"
    return Text.assemble((found["path"], "bold"), where, found["text"].strip() + "\n")
