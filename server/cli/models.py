"""Models: `rolecall models pull|list|ps|load|unload|pin|plan`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import anyio
import typer
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.text import Text

from rolecall.config.home import Home
from rolecall.config.settings import GB

from ..errors import BadRequest
from .output import Bar, Shell, command, console, gb, note, table

NAME = typer.Argument(help="Role or model.")
_PARTS = (
    ("models", "█", "#", "green"),
    ("reserved for them", "▒", "=", "yellow"),
    ("left of the budget", "░", "-", "cyan"),
    ("other programs", "x", "x", "red"),
    ("free beyond the budget", "·", ".", "dim"),
)
"""What, its sign, the sign where the terminal has ASCII only, its colour: told apart without colours too."""

models_app = typer.Typer(no_args_is_help=True, help="Get, plan, load and unload models.")


@command(models_app)
def models_pull(shell: Shell, name: str = typer.Argument(help="What to get.")) -> None:
    """Get a model: a role, a repository, an LM Studio id, a folder, or `starter`."""
    from rolecall.roles import sources

    home = Home.find().create()
    with Bar(name) as bar:
        manifest = anyio.run(sources.pull, name, home, shell.settings(), bar.bytes)
    shell.show({"model": manifest.model, "source": manifest.source, "weights_sha256": manifest.weights_sha256})


@command(models_app)
def models_list(shell: Shell) -> None:
    """The profile's models and what else is on disk."""
    from rolecall.roles.sources import list_models

    found = [asdict(item) for item in list_models(Home.find(), shell.settings())]
    shell.show(found, table(found, "model", "roles", "size_bytes", "present", "source"))


@command(models_app)
def models_ps(shell: Shell) -> None:
    """Models in memory, and who holds the machine's."""
    resident, memory, out = shell.ask("models_ps"), shell.ask("memory"), console()
    shell.show(resident, resident_table(resident), memory_bar(memory, out), *shrunken(memory))


@command(models_app)
def models_load(shell: Shell, name: str = NAME) -> None:
    """Load a role's model now."""
    shell.show(shell.ask("models_load", name=name))


@command(models_app)
def models_unload(shell: Shell, name: str = NAME) -> None:
    """Take a model out of memory."""
    shell.show(shell.ask("models_unload", name=name))


@command(models_app)
def models_pin(
    shell: Shell, name: str = NAME, off: bool = typer.Option(False, "--off", help="Let it go when room is needed.")
) -> None:
    """Keep a role's model in memory, loading it first, until the host ends."""
    shell.show(shell.ask("models_pin", name=name, pinned=not off))


@command(models_app)
def models_plan(
    shell: Shell,
    names: list[str] = typer.Argument(None, help="Roles, models, folders, or config.json files.", show_default=False),
    profile: str = typer.Option("", "--profile", help="A profile instead of the one in use."),
    context: int | None = typer.Option(None, min=1, help="Tokens of context for every role.", show_default=False),
    fit: str = typer.Option("", "--fit", help="A budget such as 30GB: the best packaged profile for it."),
) -> None:
    """What each role takes, which fit together, and the profile that fits a budget."""
    from rolecall.roles.plan import plan_profile, plans_by_fit
    from rolecall.roles.sources import to_plan

    home, settings = Home.find(), shell.settings(profile)
    note("planning (the first time takes some seconds)")
    chosen, configs = anyio.run(to_plan, names, home, settings) if names else (settings.profile, {})
    budget_bytes = size_bytes(fit) if fit else None if profile else settings.budget_bytes()
    plans = plans_by_fit(home, size_bytes(fit), context) if fit and not (names or profile) else []
    shown = plans[0] if plans else plan_profile(chosen, home, budget_bytes, context, configs)
    keys = ("profile", "needed_bytes", "missing_bytes")
    fits = [{key: getattr(each, key) for key in keys} for each in plans]
    rows = [{**item, "context": f"{item['concurrency']} x {item['context_length']}"} for item in shown.roles]
    columns = ["role", "model", "context", "weights_bytes", "kv_bytes_per_token", "bytes_per_8k", "reserved_bytes"]
    columns += ["source"] if any("source" in item for item in rows) else []
    planned = table(rows, *columns)
    planned.columns[1].min_width = 24
    said: list[RenderableType] = [planned]
    said += [f"{shown.profile}: with full contexts {gb(shown.total_bytes)} together, budget {gb(shown.budget_bytes)}"]
    said += ["fits together: " + ", ".join(group) for group in shown.resident_together]
    if fits:
        said += ["A profile fits where its pinned roles fit with its largest other role; the largest first."]
        said += [table(fits, *keys)]
    shell.show(asdict(shown) | ({"fit": fits} if fits else {}), *said)


def size_bytes(text: str) -> int:
    """The bytes of a size such as `30GB` or `1.5 GiB`; a bare number is of GB."""
    match = re.fullmatch(r"([0-9]{0,9}\.?[0-9]{1,9})\s*(GB|GiB|)", text.strip(), re.IGNORECASE)
    if match is None or not float(match[1]):
        failed, advice = "That is no size of memory.", "For example: --fit 30GB"
        raise BadRequest(failed, found=repr(text[:100]), allowed="a number of GB", advice=advice)
    return int(float(match[1]) * (1 << 30 if match[2].lower() == "gib" else GB))


def memory_shares(memory: dict[str, Any]) -> list[int]:
    """The machine's memory as `_PARTS` names it, in bytes; adds up to the whole.

    `available` counts as the system does: what other programs could be made to give back is not theirs.
    """
    models, available = memory["measured_bytes"], memory["available_bytes"]
    others = max(0, memory["machine_bytes"] - available - models)
    reserved = max(0, min(memory["reserved_bytes"] - models, available))
    left = max(0, min(memory["budget_bytes"] - models, available) - reserved)
    known = [models, reserved, left, others]
    return [*known, max(0, memory["machine_bytes"] - sum(known))]


def memory_bar(memory: dict[str, Any], out: Console) -> Group:
    """One bar of the machine's memory and one line of figures."""
    cells, drawn, done = max(10, min(out.width, 100) - 2), Text("["), 0
    sizes, legend = memory_shares(memory), list[Text]()
    for (what, sign, plain, style), size in zip(_PARTS, sizes, strict=True):
        shown = plain if out.options.ascii_only else sign
        upto = round(cells * (done + size) / sum(sizes))
        drawn.append(shown * (upto - round(cells * done / sum(sizes))), style)
        done += size
        legend.append(Text(f"{shown} ", style).append(f"{what} {gb(size)}", "none"))
    legend.append(Text(f"budget {gb(memory['budget_bytes'])} of {gb(memory['machine_bytes'])}"))
    return Group(drawn.append("]"), Columns(legend, padding=(0, 2)))


def shrunken(memory: dict[str, Any]) -> Iterator[str]:
    """Why the budget is smaller than it was set to; nothing where it is not."""
    if memory["budget_bytes"] < memory["configured_bytes"]:
        now, full, others = memory["budget_bytes"], memory["configured_bytes"], memory_shares(memory)[3]
        yield f"The budget is {gb(now)} instead of {gb(full)} while other programs hold {gb(others)}; it grows back."


def resident_table(resident: list[dict[str, Any]]) -> RenderableType:
    """Models in memory, one a row."""
    made = table((), "model\nroles", "pid\nstate", "reserved\nmeasured", "tokens/s")
    for item in resident:
        counts = [f"{item[key]} {words}" for key, words in (("in_use", "in use"), ("queued", "queued")) if item[key]]
        state = ", ".join(["pinned"] * item["pinned"] + counts) or "idle"
        rate = f"{item['tokens_per_s']:.1f}" if item["tokens_per_s"] else ""
        sizes = f"{gb(item['reserved_bytes'])}\n{gb(item['measured_bytes'])}"
        made.add_row(f"{item['model']}\n{', '.join(item['roles'])}", f"{item['pid']}\n{state}", sizes, rate)
    return made if resident else "No model is in memory."
