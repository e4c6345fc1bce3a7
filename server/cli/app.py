"""The command line: one more client of the host."""

from __future__ import annotations

import sys

import click
import typer

from rolecall.config.errors import RolecallError

from ..protocol import VERSION
from . import documents, machine, models, requests
from .output import EXIT_FAILED, fail

app = typer.Typer(
    name="rolecall",
    help="A staff of local models for your AI clients: routed deterministically, checked, within your memory.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
machine.register(app)
models.register(app)
documents.register(app)
requests.register(app)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Show the version.")) -> None:
    if version:
        typer.echo(f"rolecall {VERSION}")
        raise typer.Exit


@app.command("serve", help="Serve MCP over stdio (what a client's configuration runs).")
def _serve(
    standalone: bool = typer.Option(False, "--standalone", help="A host of its own, for containers and debugging."),
    config: str = typer.Option("", "--config", help="Settings file laid over the user's own."),
) -> None:
    # Reached only through --help: the entry point hands `serve` to the shim before this module is imported.
    raise typer.Exit(2)


def main(argv: list[str]) -> int:
    """Run one command; returns its exit code."""
    try:
        result = app(args=argv, standalone_mode=False)
    except RolecallError as error:
        fail(error, as_json="--json" in argv)
        return EXIT_FAILED
    except click.exceptions.Abort:
        return 130
    except KeyboardInterrupt:
        return 130
    except click.ClickException as error:
        error.show(sys.stderr)
        return error.exit_code
    return result if isinstance(result, int) else 0
