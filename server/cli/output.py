"""What every command shares: where output goes, how errors look, how the host is reached.

Exit codes: 0 done, 1 the command failed (a typed error on stderr), 2 wrong usage, 3 done but something needs attention
(`doctor`, a file that failed in a batch), 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rolecall.config.errors import RolecallError
from rolecall.config.home import Home

from ..errors import BadRequest

JSON_OPTION = typer.Option(False, "--json", help="Machine-readable output.")
CONFIG_OPTION = typer.Option(None, "--config", help="Settings file laid over the user's own.", show_default=False)

EXIT_FAILED = 1
EXIT_ATTENTION = 3
EXIT_INTERRUPTED = 130

OnUpdate = Callable[[dict[str, Any]], None]


def console() -> Console:
    """Standard output; colours only on a terminal."""
    return Console(highlight=False, soft_wrap=True)


def errors() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def show(value: Any, as_json: bool, *readable: RenderableType) -> None:
    """A result: as JSON where that was asked for, else what a person reads, text as it stands."""
    if as_json:
        emit(value)
        return
    for part in readable:
        console().print(part, markup=False)


def show_rows(
    found: list[Any], as_json: bool, columns: Sequence[str], row: Callable[[Any], Sequence[str]], empty: str = ""
) -> None:
    """A list as JSON, else as a table; `empty` is said where nothing was found."""
    table = table_of(*columns)
    for item in () if as_json else found:
        table.add_row(*row(item))
    show(found, as_json, table if found or not empty else empty)


def table_of(*columns: str, title: str | None = None) -> Table:
    """A table that folds what is too wide: cut off, two models look alike and none can be copied."""
    made = Table(title=title, title_justify="left")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def emit(value: Any) -> None:
    """One JSON value on a line of standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


def note(text: str) -> None:
    """A remark for the person at the terminal, on standard error."""
    errors().print(text, markup=False, style="dim")


def fail(error: RolecallError, as_json: bool) -> None:
    if as_json:
        sys.stderr.write(json.dumps({"error": error.to_dict()}, ensure_ascii=False) + "\n")
    else:
        errors().print("error", style="bold red", end=" ")
        errors().print(f"({error.code}) {error}", markup=False)


def ask_host(
    op: str, params: dict[str, Any], config: Path | None = None, on_update: OnUpdate | None = None, start: bool = True
) -> Any:
    """One control request to the host (started where there is none); its result as JSON."""
    from ..host.control import ControlClient

    async def call() -> Any:
        async with ControlClient.open(Home.find(), config_path=config, start=start) as client:
            return await client.call(op, params, on_update)

    return anyio.run(call)


class Bar:
    """A progress bar on a terminal's standard error; silent elsewhere."""

    def __init__(self, label: str) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[words]}"),
            TimeRemainingColumn(),
            console=errors(),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        self._task = self._progress.add_task(label, total=None, words="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def update(self, update: dict[str, Any]) -> None:
        """`update` holds `done` and `total` where they are known, and `words`."""
        self._progress.update(
            self._task,
            completed=update.get("done"),
            total=update.get("total"),
            words=str(update.get("words", ""))[-60:],
        )

    def bytes(self, doing: str, done_bytes: int, total_bytes: int) -> None:
        """Progress of a download."""
        words = f"{doing}: {gb(done_bytes)} of {gb(total_bytes)}"
        self.update({"done": done_bytes, "total": total_bytes, "words": words})


def read_jsonl(path: Path) -> Iterator[Any]:
    """The values of a JSON-lines file (`-` is standard input); blank lines are left out.

    Raises:
        BadRequest: a line that is not JSON, with its number.
    """
    try:
        lines = sys.stdin.buffer.read().split(b"\n") if str(path) == "-" else path.read_bytes().split(b"\n")
    except OSError as error:
        raise BadRequest(
            "The batch file cannot be read.", found=f"{path}: {error.strerror}", advice="Check the path."
        ) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadRequest(
                f"Line {number} of {path} is not JSON.", found=str(error)[:200], advice="Write one JSON object a line."
            ) from None


def gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
