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

from .output import EXIT_ATTENTION, Bar, Shell, command, duration, note, readable, table

COLLECTION = typer.Argument("", help="Collection; all by default.", show_default=False)
EMPTY = "Nothing is indexed. Start with: rolecall index add FOLDER"
MOST_FILES = 20
"""Files by name for a person to read; --json has more."""

index_app = typer.Typer(no_args_is_help=True, help="Index folders for retrieval, and keep the index fresh.")


@command(index_app)
def index_add(
    shell: Shell,
    folder: Path = typer.Argument(help="Folder of text, source code and documents."),
    collection: str = typer.Option("", "--collection", "-c", help="Name; by default the folder's."),
    private: bool | None = typer.Option(
        None, "--private/--no-private", help="Keep the collection's passages from clients.", show_default=False
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would be indexed; change nothing."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask before a first index of over 50,000 files."),
) -> None:
    """Index a folder (again: only what changed is read)."""
    asked: dict[str, Any] = {"folder": str(folder.expanduser().absolute())}
    if dry_run:
        with Bar("looking"):
            preview = shell.ask("index_preview", **asked)
        shell.show(preview, *_previewed(preview))
        return
    asked |= {"collection": collection or None, "private": private}
    try:
        report = _followed(shell, "index_add", **asked, confirmed=yes)
    except RolecallError as error:
        question = f"{folder} has {error.found} to index. Index them all?"
        if error.code != IndexLarge.code or not sys.stdin.isatty() or not typer.confirm(question, err=True):
            raise
        report = _followed(shell, "index_add", **asked, confirmed=True)
    shell.show(report, *_reported(report))
    _attend([report])


@command(index_app)
def index_sync(shell: Shell, collection: str = COLLECTION) -> None:
    """Bring collections up to date with their folders."""
    reports = _followed(shell, "index_sync", collection=collection or None)
    shell.show(reports, *(line for report in reports for line in _reported(report)))
    _attend(reports)


@command(index_app)
def index_watch(shell: Shell, collection: str = COLLECTION) -> None:
    """Keep collections up to date until Ctrl-C, with a line for each sync."""

    def tell(update: dict[str, Any]) -> None:
        report = update["synced"]
        shell.show(report, *(f"{datetime.now():%H:%M:%S} {line}" for line in _reported(report)))

    note("Watching; Ctrl-C ends it.")
    shell.ask("index_watch", tell, collection=collection or None)
    note("The host was stopped, and the watch with it.")


@command(index_app)
def index_status(shell: Shell, collection: str = COLLECTION) -> None:
    """How fresh and how complete each collection is: pending and failed files, and why others are left out."""
    found = shell.ask("index_status", collection=collection or None)
    shell.show(found, *([part for item in found for part in _status(item)] or [EMPTY]))


@command(index_app)
def index_list(shell: Shell) -> None:
    """Collections, their size and freshness."""
    found = shell.ask("index_list")
    rows = ({**item, **item["index"], "collection": _name(item)} for item in found)
    columns = ("collection", "files", "chunks", "pending", "failed", "age_s", "folders")
    shell.show(found, table(rows, *columns) if found else EMPTY)


@command(index_app)
def index_remove(shell: Shell, collection: str = typer.Argument(help="Collection to drop.")) -> None:
    """Drop a collection (the files stay)."""
    shell.show(shell.ask("index_remove", collection=collection))


def search(
    shell: Shell,
    query: str = typer.Argument(help="What to look for."),
    max_results: int = typer.Option(8, "-k", min=1, max=100, help="Most passages."),
    collection: str = typer.Option("", "--collection", "-c", help="Collection; all by default."),
    glob: str = typer.Option("", "--glob", help="Only files whose path matches."),
    kind: str = typer.Option("", "--kind", help="markdown, text, code, notebook, table, json, html or document."),
    language: str = typer.Option("", "--language", help="Language name, such as python."),
    since: str = typer.Option("", "--since", help="ISO date: only files modified since."),
) -> None:
    """Search the index: passages with exact citations."""
    given = {"glob": glob, "kind": kind, "language": language, "since": since}
    filters = {key: value for key, value in given.items() if value} or None
    found = shell.ask("search", query=query, max_results=max_results, collection=collection or None, filters=filters)
    note(f"index: {_state(found['index'])}")
    shell.show(found["passages"], *map(_passage, found["passages"]))


def summary(item: dict[str, Any]) -> str:
    """How large, how complete and how fresh a collection is."""
    return f"{_name(item)}: {item['chunks']:,} chunks; {_state(item['index'])}"


def _followed(shell: Shell, op: str, **asked: Any) -> Any:
    with Bar("indexing") as bar:
        return shell.ask(op, bar.tell, **asked)


def _attend(reports: Iterable[dict[str, Any]]) -> None:
    if any(report["failed"] for report in reports):
        raise typer.Exit(EXIT_ATTENTION)


def _reported(report: dict[str, Any]) -> Iterator[str]:
    counts = f"{report['indexed']:,} files indexed, {report['skipped']:,} skipped, {len(report['failed']):,} failed"
    yield f"{report['collection']}: {counts} in {report['seconds']:.1f} s"
    yield from _failures(report["failed"])


def _previewed(preview: dict[str, Any]) -> Iterator[RenderableType]:
    yield from readable({**preview, "failed": []})
    yield "Leave out more with lines as of .gitignore in a file .rolecallignore."
    yield from _failures(preview["failed"])


def _status(item: dict[str, Any]) -> Iterator[str]:
    yield summary(item)
    yield from (f"  in {folder}" for folder in item["folders"])
    other = f"; being rebuilt for {item['rebuilding_for']}" if item["rebuilding_for"] else ""
    yield f"  embedder {item['embedder']}{other}"
    if reasons := item["index"]["reasons"]:
        yield f"  not indexed: {_counts(reasons)}"
    yield from _first("pending", item["pending_files"], item["index"]["pending"])
    yield from _failures(item["failed_files"], item["index"]["failed"])


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
