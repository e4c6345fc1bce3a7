"""What every command shares: its options, where output goes, how errors look, how the host is asked. Exit codes:
docs/cli.md."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markdown import Markdown
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from rolecall.config.errors import RolecallError
from rolecall.config.home import Home
from rolecall.config.models import load_yaml
from rolecall.config.settings import Settings, load_settings

from ..errors import BadRequest

if TYPE_CHECKING:
    from ..telemetry.store import ReceiptStore

_NOTHING: tuple[Any, ...] = (None, "", [], (), {})
_CONTROL = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\n"), ord("\t")})

EXIT_FAILED = 1
EXIT_ATTENTION = 3
EXIT_INTERRUPTED = 130

EXAMPLES: dict[str, list[str]] = load_yaml(Path(__file__).with_name("examples.yaml").read_text("utf-8"))

T = TypeVar("T")
Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Shell:
    """What every command is run from: by a person or, with `as_json`, by a program; `config` is laid over the user's
    own settings file."""

    config: Path | None
    as_json: bool

    def settings(self, profile: str = "") -> Settings:
        """The settings here, with `profile` in place of theirs."""
        return load_settings(Home.find(), self.config, profile or None)

    def ask(self, op: str, tell: Tell | None = None, start: bool = True, **params: Any) -> Any:
        """One control request to the host (started where there is none); its result as JSON."""
        return self.ask_each(op, [params], tell, start)[0]

    def ask_each(self, op: str, requests: Iterable[Any], tell: Tell | None = None, start: bool = True) -> list[Any]:
        """Requests as of `ask`, one after the other over one connection."""
        from ..host.control import ControlClient

        async def work() -> list[Any]:
            async with ControlClient.open(Home.find(), self.config, start) as client:
                return [await client.call(op, params, tell) for params in requests]

        return anyio.run(work)

    def show(self, value: Any, *said: RenderableType) -> None:
        """A result: as a line of JSON where that was asked for, else what a person reads, by default all of it."""
        if self.as_json:
            sys.stdout.write(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")
            sys.stdout.flush()  # whoever reads a pipe wants each line when it is true
            return
        for part in said or (readable(value) if isinstance(value, dict) else ()):
            console().print(part)

    def lines(self, found: Iterable[Any], said: RenderableType) -> None:
        """A result of many: as a line of JSON for each."""
        for value in found if self.as_json else ():
            self.show(value)
        if not self.as_json:
            self.show(None, said)


def command(app: typer.Typer, config: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command of `app` under its name's last word (`index_add` is `rolecall index add`). Its first
    parameter, the `Shell`, comes from `--json` and, with `config`, from `--config`."""
    kind = inspect.Parameter.KEYWORD_ONLY
    laid = typer.Option(None, "--config", help="Settings file laid over the user's own.", show_default=False)
    machine = typer.Option(False, "--json", help="Machine-readable output.")
    shared = [inspect.Parameter("config", kind, default=laid, annotation=Path | None)] if config else []
    shared += [inspect.Parameter("as_json", kind, default=machine, annotation=bool)]

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def run(as_json: bool, config: Path | None = None, **given: Any) -> None:
            function(Shell(config, as_json), **given)

        own = inspect.signature(function, eval_str=True)
        _, *given = own.parameters.values()
        run.__signature__ = own.replace(parameters=[*given, *shared])  # type: ignore[attr-defined]
        name = function.__name__.replace("_", " ")
        shown = (f"  [cyan]{example}[/cyan]" for example in EXAMPLES.get(name, ()))
        app.command(name.split()[-1], epilog="\n".join(["[bold]Examples[/bold]", *shown]))(run)
        return function

    return register


class _Console(Console):
    """Prints what texts hold but their control characters: no file's or model's text steers the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(segment.text.translate(_CONTROL), segment.style)


def console(stderr: bool = False) -> Console:
    """Standard output, or error; colours only on a terminal, and text as it stands unless markup is asked for."""
    return _Console(stderr=stderr, markup=False, highlight=False, soft_wrap=True)


def readable(found: Mapping[str, Any], within: str = "") -> Iterator[RenderableType]:
    """What there is under each name, without hashes: lists and groups of like things as tables, the rest in words."""
    for name, value in found.items():
        title = f"{within}{_title(name)}"
        if value in _NOTHING or name.endswith("sha256"):
            continue
        if isinstance(value, dict) and _alike(list(value.values())):
            value = [{"": key, **each} for key, each in value.items()]
        if isinstance(value, list) and isinstance(value[0], dict):
            yield table(value, *dict.fromkeys(key for row in value for key in row), title=title)
        elif isinstance(value, dict) and any(isinstance(each, dict | list) for each in value.values()):
            yield from readable(value, f"{title}: ")
        else:
            yield Text.assemble((f"{title}: ", "bold"), words(value, name))


def _alike(values: list[Any]) -> bool:
    return all(isinstance(each, dict) and each.keys() == values[0].keys() for each in values)


def table(rows: Iterable[Mapping[str, Any]], *columns: str, title: str | None = None) -> Table:
    """What rows hold under these names; too wide, it is folded: cut off, two models look alike and none can be
    copied."""
    made = Table(title=title, title_justify="left")
    for name in columns:
        made.add_column(_title(name), overflow="fold")
    for row in rows:
        made.add_row(*(words(row.get(name), name) for name in columns))
    return made


def words(value: Any, name: str = "") -> str:
    """A value in words; its name tells the unit."""
    match value:
        case bool():
            return "yes" if value else "no"
        case int() if "bytes" in name.split("_"):
            return gb(value) if value >= 1e8 else f"{value / 1e6:.1f} MB" if value >= 1e6 else f"{value / 1e3:.1f} kB"
        case int() | float() if name.endswith(("_s", "seconds")) and "_per_" not in name:
            return duration(value)
        case float():
            return f"{value:.4g}"
        case dict() if value:
            return ", ".join(f"{_title(key)} {words(each, key)}" for key, each in value.items())
        case str() if name == "source":
            return value.partition(" sha256:")[0] or "-"
        case [int() | float(), *_]:
            return f"[{', '.join(map(words, value))}]"
        case [_, *_]:
            return "; ".join(map(words, value))
        case _:
            return "-" if value in _NOTHING else str(value)


def _title(name: str) -> str:
    if not name.isidentifier():  # a path, a label
        return name
    return name.removesuffix("_bytes").removesuffix("" if "_per_" in name else "_s").replace("_", " ")


def duration(seconds: float | None) -> str:
    """A time span in words, to the largest unit; None is a folder that was never wholly indexed."""
    if seconds is None:
        return "never synced"
    for unit, unit_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.3g} s"


def gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.2f} GB"


def note(text: str) -> None:
    """A remark for the person at the terminal, on standard error."""
    console(stderr=True).print(text, style="dim")


def answered(question: str, default: str) -> str:
    """What a person says to it, asked on standard error so that `--json` stays JSON. Raises BadRequest: no terminal
    answers."""
    if not sys.stdin.isatty():
        advice = "Add --yes to agree, or for `setup` --starter-only for the packaged models alone."
        raise BadRequest("The command asks before it goes on, and no terminal answers here.", advice=advice)
    return str(typer.prompt(question, default, err=True)).strip().lower()


def fail(error: RolecallError, as_json: bool) -> None:
    if as_json:
        sys.stderr.write(json.dumps({"error": error.to_dict()}, ensure_ascii=False) + "\n")
    else:
        console(stderr=True).print(Text.assemble(("error ", "bold red"), f"({error.code}) {error}"))


def from_store(ask: Callable[[ReceiptStore], Awaitable[T]]) -> T | None:
    """What the host's records say where no host runs; None where none ever ran."""
    from ..telemetry.store import ReceiptStore

    records = Home.find().receipts_db

    async def work() -> T:
        async with aclosing(ReceiptStore(records)) as store:
            return await ask(store)

    return anyio.run(work) if os.path.exists(records) else None  # noqa: PTH110  (says no where Path.exists raises)


class Bar(Progress):
    """A progress bar on a terminal's standard error; silent elsewhere."""

    _text = ""

    def __init__(self, label: str) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn())
        said = (TextColumn("{task.fields[words]}", markup=False), TimeRemainingColumn())
        out, silent = console(stderr=True), not sys.stderr.isatty()
        super().__init__(*columns, *said, console=out, disable=silent, transient=True)
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
        said = str(update.get("words", ""))[-60:]
        self.update(self._only, completed=update.get("done"), total=update.get("total"), words=said)

    def over(self, items: Sequence[T]) -> Iterator[T]:
        """The items, counted as they are taken."""
        for number, item in enumerate(items):
            self.tell({"done": number, "total": len(items), "words": f"{number} of {len(items)}"})
            yield item

    def bytes(self, doing: str, done_bytes: int, total_bytes: int) -> None:
        """Progress of a download."""
        said = f"{doing}: {gb(done_bytes)} of {gb(total_bytes)}"
        self.tell({"done": done_bytes, "total": total_bytes, "words": said})
