"""The command line: one more client of the host."""

from __future__ import annotations

import io
import sys

import typer

from rolecall.config.errors import RolecallError

from ..errors import BadRequest
from ..protocol import VERSION
from .batch import batch
from .diagnosis import doctor
from .evaluate import eval_app
from .index import index_app, search
from .install import install, uninstall
from .machine import logs, serve, setup, stop
from .models import models_app
from .output import EXIT_FAILED, EXIT_INTERRUPTED, command, fail
from .receipts import receipt_app, status
from .requests import allow, ask, route, validate

app = typer.Typer(
    name="rolecall",
    help="A staff of local models for your AI clients: routed deterministically, checked, within your memory.",
    epilog="Exit codes: 0 done, 1 failed (a typed error on standard error), 2 wrong usage, 3 done but something needs "
    "attention, 130 interrupted. Every command takes --json.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for each in (
    setup, install, uninstall, doctor, status, logs, stop, serve, ask, route, validate, batch, allow, search
):  # fmt: skip
    command(app, config=each not in (uninstall, logs, stop))(each)
app.add_typer(models_app, name="models")
app.add_typer(index_app, name="index")
app.add_typer(receipt_app, name="receipt")
app.add_typer(eval_app, name="eval")


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Show the version.")) -> None:
    if version:
        typer.echo(f"rolecall {VERSION}")
        raise typer.Exit


def main(argv: list[str]) -> int:
    """Run one command; returns its exit code."""
    as_json = "--json" in argv
    for stream in (sys.stdout, sys.stderr):  # what cannot be encoded is escaped, in JSON as JSON does it
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        result = app(args=argv, prog_name="rolecall", standalone_mode=False)
    except RolecallError as error:
        fail(error, as_json)
        return EXIT_FAILED
    except typer.TyperException as error:  # wrong usage
        context = getattr(error, "ctx", None)
        advice = f"`{context.command_path if context else 'rolecall'} --help` shows what it takes."
        if said := error.format_message():  # without one the help has been shown instead
            said += "" if said.endswith((".", "?")) else "."
            fail(BadRequest(said, found=f"rolecall {' '.join(argv)}"[:200], advice=advice), as_json)
        return error.exit_code
    except OSError as error:
        advice = "Check that path and its disk; ROLECALL_HOME names another folder for Rolecall's own files."
        fail(RolecallError("A file or folder cannot be used.", found=str(error), advice=advice), as_json)
        return EXIT_FAILED
    except (typer.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return result if isinstance(result, int) else 0
