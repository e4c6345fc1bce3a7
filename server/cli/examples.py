"""Puts the examples of `examples.yaml` below each command's help."""

from __future__ import annotations

from pathlib import Path

import typer

from rolecall.config.models import load_yaml

EXAMPLES: dict[str, list[str]] = load_yaml(Path(__file__).with_suffix(".yaml").read_text("utf-8"))


def add_examples(app: typer.Typer, group: str = "") -> None:
    """For the commands of `app`, which is named `group` where it is one."""
    for command in app.registered_commands:
        shown = EXAMPLES.get(f"{group} {command.name or getattr(command.callback, '__name__', '')}".strip(), [])
        command.epilog = "\n".join(["[bold]Examples[/bold]", *(f"  [cyan]{each}[/cyan]" for each in shown)])
    for below in app.registered_groups:
        if below.typer_instance is not None:
            add_examples(below.typer_instance, str(below.name))
