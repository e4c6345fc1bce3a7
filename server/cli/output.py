"""What every command shares: where output goes, how errors look, how the host is reached. Exit codes: docs/cli.md."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markdown import Markdown
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table

from rolecall.config.errors import RolecallError
from rolecall.config.home import Home

if TYPE_CHECKING:
    from ..telemetry.store import ReceiptStore

JSON_OPTION = typer.Option(False, "--json", help="Machine-readable output.")
CONFIG_OPTION = typer.Option(None, "--config", help="Settings file laid over the user's own.", show_default=False)

_CONTROL = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\n"), ord("\t")})

EXIT_FAILED = 1
EXIT_ATTENTION = 3
EXIT_INTERRUPTED = 130

T = TypeVar("T")
Tell = Callable[[dict[str, Any]], None]


class _Console(Console):
    """Prints what texts hold but their control characters: no file's or model's text steers the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(segment.text.translate(_CONTROL), segment.style)


def console(stderr: bool = False) -> Console:
    """Standard output, or error; colours only on a terminal, and text as it stands unless markup is asked for."""
    return _Console(stderr=stderr, markup=False, highlight=False, soft_wrap=True)


def show(value: Any, as_json: bool, *readable: RenderableType) -> None:
    """A result: as JSON where that was asked for, else what a person reads."""
    if as_json:
        emit(value)
    for part in () if as_json else readable:
        console().print(part)


def show_rows(
    found: list[Any], as_json: bool, columns: Sequence[str], row: Callable[[Any], Sequence[str]], empty: str = "",
    each: bool = False,
) -> None:  # fmt: skip
    """A list as JSON (`each`: as lines of it), else as a table; `empty` is said where nothing was found."""
    for value in (found if each else [found]) if as_json else ():
        emit(value)
    if not as_json:
        table = table_of(*columns)
        for item in found:
            table.add_row(*row(item))
        console().print(table if found or not empty else empty)


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
    console(stderr=True).print(text, style="dim")


def fail(error: RolecallError, as_json: bool) -> None:
    if as_json:
        sys.stderr.write(json.dumps({"error": error.to_dict()}, ensure_ascii=False) + "\n")
    else:
        console(stderr=True).print("error", style="bold red", end=" ")
        console(stderr=True).print(f"({error.code}) {error}")


def ask_host(
    op: str, params: dict[str, Any], config: Path | None = None, tell: Tell | None = None, start: bool = True
) -> Any:
    """One control request to the host (started where there is none); its result as JSON."""
    return ask_each(op, [params], config, tell, start)[0]


def ask_each(
    op: str, requests: Iterable[Any], config: Path | None, tell: Tell | None = None, start: bool = True
) -> list[Any]:
    """Requests as of `ask_host`, one after the other over one connection."""
    from ..host.control import ControlClient

    async def work() -> list[Any]:
        async with ControlClient.open(Home.find(), config, start) as client:
            return [await client.call(op, params, tell) for params in requests]

    return anyio.run(work)


def from_store(home: Home, ask: Callable[[ReceiptStore], Awaitable[T]]) -> T | None:
    """What the host's records say where no host runs; None where none ever ran."""
    from ..telemetry.store import ReceiptStore

    async def work() -> T:
        async with aclosing(ReceiptStore(home.receipts_db)) as store:
            return await ask(store)

    return anyio.run(work) if os.path.exists(home.receipts_db) else None  # noqa: PTH110  (no where Path.exists raises)


class Bar(Progress):
    """A progress bar on a terminal's standard error; silent elsewhere."""

    _text = ""

    def __init__(self, label: str) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn())
        words = (TextColumn("{task.fields[words]}", markup=False), TimeRemainingColumn())
        out, silent = console(stderr=True), not sys.stderr.isatty()
        super().__init__(*columns, *words, console=out, disable=silent, transient=True)
        self._only = self.add_task(label, total=None, words="")

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self._text:
            yield Markdown("\n".join(self._text.splitlines()[-max(1, self.console.height - 4) :]))

    def tell(self, update: dict[str, Any]) -> None:
        """`update` holds `done` and `total` where they are known, and `words`; or a piece of `text`, which is shown as
        Markdown while the bar is ("" where it begins anew)."""
        if (piece := update.get("text")) is not None:
            self._text = self._text + piece if piece else ""
            return
        words = str(update.get("words", ""))[-60:]
        self.update(self._only, completed=update.get("done"), total=update.get("total"), words=words)

    def over(self, items: Sequence[T]) -> Iterator[T]:
        """The items, counted as they are taken."""
        for number, item in enumerate(items):
            self.tell({"done": number, "total": len(items), "words": f"{number} of {len(items)}"})
            yield item

    def bytes(self, doing: str, done_bytes: int, total_bytes: int) -> None:
        """Progress of a download."""
        words = f"{doing}: {gb(done_bytes)} of {gb(total_bytes)}"
        self.tell({"done": done_bytes, "total": total_bytes, "words": words})


def gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
