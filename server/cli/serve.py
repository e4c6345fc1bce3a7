"""`rolecall serve --http`: MCP over HTTP for as long as the command runs. Without `--http`, `main` starts the shim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from .output import CONFIG_OPTION, ask_host, note


def serve(
    http: int | None = typer.Option(
        None, metavar="PORT", min=0, max=65535, help="MCP over HTTP on 127.0.0.1; 0 picks a port.", show_default=False
    ),
    standalone: bool = typer.Option(False, "--standalone", help="A host of its own, for containers and debugging."),
    config: Path | None = CONFIG_OPTION,
) -> None:
    """Serve MCP over stdio (what a client's configuration runs), or over HTTP."""
    if http is None or standalone:
        raise typer.BadParameter("A standalone server speaks stdio alone: leave out --standalone or --http.")

    def tell(at: dict[str, Any]) -> None:
        note(f"MCP over HTTP: {at['url']}\nBearer token:  in {at['token_file']}\nCtrl-C ends it; the host goes on.")

    ask_host("http", {"port": http}, config, tell)
    note("The host was stopped, and HTTP with it.")
