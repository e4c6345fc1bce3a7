"""Requests without a client: `ask`, `route`, `validate`, `receipt`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import typer
from rich.json import JSON
from rich.markdown import Markdown

from ..errors import BadRequest
from .output import CONFIG_OPTION, JSON_OPTION, Bar, ask_host, console, emit, note, read_jsonl, show, show_rows

BATCH_LINES = 64
"""Lines per control request: few enough for progress, many enough that the round trip costs nothing."""
BATCH_BYTES = 4_000_000
"""Characters per control request, well below the longest line the host reads."""

receipt_app = typer.Typer(no_args_is_help=True, help="What was decided and done, request by request.")


def register(app: typer.Typer) -> None:
    app.command("ask", help="Route a request and answer it here.")(ask)
    app.command("route", help="Decide who would answer; nothing is executed.")(route)
    app.command("validate", help="Check texts against evidence, schemas and grammars.")(validate)
    app.add_typer(receipt_app, name="receipt")


def ask(
    request: str = typer.Argument(help="The request in plain words."),
    paths: list[str] = typer.Option([], "--path", "-p", help="File or glob in an allowed folder; repeatable."),
    budget_s: float = typer.Option(0.0, "--budget", help="Most seconds the call may take."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    arguments: dict[str, Any] = {"request": request, "paths": paths}
    if budget_s:
        arguments["budget_s"] = budget_s
    with Bar("asking") as bar:
        result = ask_host("tool", {"name": "route", "arguments": arguments}, config, bar.update)
    if as_json:
        emit(result)
        return
    decision = result["decision"]
    console().print(Markdown(result["answer"]))
    for warning in result["warnings"]:
        note(f"warning: {warning}")
    note(f"{decision['agent'] or decision['role']} · {result['status']} · receipt {result['receipt_id']}")


def route(
    text: str = typer.Argument("", help="The request to decide on."),
    batch: Path | None = typer.Option(None, "--batch", help='JSON lines {"id","text"}; - is standard input.'),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    if (batch is None) == (not text):
        raise typer.BadParameter("Give either TEXT or --batch FILE.")
    rows = list(read_jsonl(batch)) if batch else [{"id": "1", "text": text}]
    for row in rows:
        if not (isinstance(row, dict) and set(row) >= {"id", "text"} and isinstance(row["text"], str)):
            raise BadRequest(
                "A line of the batch has the wrong shape.",
                found=str(row)[:200],
                allowed='{"id": ..., "text": "..."}',
                advice="Correct the line.",
            )
    lines = _in_chunks("route_batch", [{"id": row["id"], "text": row["text"]} for row in rows], config)

    def cells(line: dict[str, Any]) -> tuple[str, ...]:
        who, sure = line["agent"] or line["role"], f"{line['confidence']:.2f}"
        return str(line["id"]), line["task_type"], who, sure, "; ".join(line["reasons"])

    _show_lines(lines, as_json, ("id", "task type", "who", "confidence", "why"), cells)


def validate(
    batch: Path | None = typer.Option(None, "--batch", help='JSON lines {"id","output","evidence"?,...}.'),
    output: Path | None = typer.Option(None, "--output", help="File with the text to check."),
    evidence: list[Path] = typer.Option([], "--evidence", help="File with evidence; repeatable."),
    question: str = typer.Option("", "--question", help="The question that the output answers."),
    language: str = typer.Option("", "--language", help="Language the output must parse as."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    if (batch is None) == (output is None):
        raise typer.BadParameter("Give either --batch FILE or --output FILE.")
    if batch is not None:
        rows = list(read_jsonl(batch))
    else:
        given: dict[str, Any] = {"id": "1", "output": _text(output)}
        if evidence:
            given["evidence"] = [_text(path) for path in evidence]
        given |= {key: value for key, value in (("question", question), ("language", language)) if value}
        rows = [given]
    lines = _in_chunks("validate_batch", rows, config)

    def cells(line: dict[str, Any]) -> tuple[str, ...]:
        checks = "\n".join(
            f"{'!' if check['decisive'] else ' '} {check['name']}: {check['verdict']} ({check['detail']})"
            for check in line["checks"]
        )
        return str(line["id"]), line["verdict"], f"{line['confidence']:.2f}", checks

    _show_lines(lines, as_json, ("id", "verdict", "confidence", "checks"), cells)


@receipt_app.command("show", help="One receipt, whole.")
def receipt_show(
    receipt_id: str = typer.Argument(help="The id that an answer carried."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    receipt = ask_host("receipt", {"id": receipt_id}, config)
    show(receipt, as_json, JSON.from_data(receipt))


@receipt_app.command("list", help="The latest receipts.")
def receipt_list(
    count: int = typer.Option(20, "-n", min=1, max=1000, help="How many."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    columns = ("id", "tool", "who", "status", "seconds")
    receipts = ask_host("receipts", {"count": count}, config)
    show_rows(receipts, as_json, columns, lambda each: (*map(each.get, columns[:4]), f"{each['seconds']:.2f}"))


def _show_lines(lines: list[Any], as_json: bool, columns: Sequence[str], row: Callable[[Any], Sequence[str]]) -> None:
    """A batch's results: JSON lines, else a table."""
    for line in lines if as_json else ():
        emit(line)
    if not as_json:
        show_rows(lines, False, columns, row)


def _in_chunks(op: str, rows: list[Any], config: Path | None) -> list[Any]:
    from rolecall.config.home import Home

    from ..host.control import ControlClient

    async def work() -> list[Any]:
        lines: list[Any] = []
        async with ControlClient.open(Home.find(), config_path=config) as client:
            for chunk in _chunks(rows):
                lines += await client.call(op, {"items": chunk})
                bar.update({"done": len(lines), "total": len(rows), "words": f"{len(lines)} of {len(rows)}"})
        return lines

    with Bar(op.removesuffix("_batch")) as bar:
        return anyio.run(work)


def _chunks(rows: list[Any]) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    size = 0
    for row in rows:
        length = len(json.dumps(row))
        if chunk and (len(chunk) == BATCH_LINES or size + length > BATCH_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += length
    if chunk:
        yield chunk


def _text(path: Path | None) -> str:
    assert path is not None
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest("The file cannot be read as UTF-8 text.", found=f"{path}: {error}"[:300]) from None
