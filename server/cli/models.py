"""Models: `rolecall models pull|list|ps|load|unload|pin|plan`."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
import typer

from rolecall.config.home import Home
from rolecall.config.settings import GB, load_settings

from ..errors import BadRequest
from .memory import bar, pressure, resident_table
from .output import CONFIG_OPTION, JSON_OPTION, Bar, ask_host, console, emit, gb, note, show, show_rows, table_of

NAME = typer.Argument(help="Role or model.")

models_app = typer.Typer(no_args_is_help=True, help="Get, plan, load and unload models.")


@models_app.command("pull", help="Get a model: a role, a repository, an LM Studio id, a folder, or `starter`.")
def pull(
    name: str = typer.Argument(help="What to get."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    from rolecall.roles import sources

    home = Home.find().create()
    settings = load_settings(home, config)
    with Bar(name) as bar:
        manifest = anyio.run(sources.pull, name, home, settings, bar.bytes)
    got = {"model": manifest.model, "source": manifest.source, "weights_sha256": manifest.weights_sha256}
    show(got, as_json, f"{manifest.model} is here ({manifest.weights_sha256[:12]}).")


@models_app.command("list", help="The profile's models and what else is on disk.")
def list_(config: Path | None = CONFIG_OPTION, as_json: bool = JSON_OPTION) -> None:
    from rolecall.roles.sources import list_models

    home = Home.find()
    found = [asdict(item) for item in list_models(home, load_settings(home, config))]

    def row(item: dict[str, Any]) -> tuple[str, ...]:
        here = item["source"].partition(" ")[0] or "yes" if item["present"] else "no"
        return item["model"], ", ".join(item["roles"]), gb(item["size_bytes"]), here

    show_rows(found, as_json, ("model", "roles", "size", "on disk"), row)


@models_app.command("ps", help="Models in memory, and who holds the machine's.")
def ps(config: Path | None = CONFIG_OPTION, as_json: bool = JSON_OPTION) -> None:
    resident = ask_host("models_ps", {}, config)
    if as_json:
        emit(resident)
        return
    memory, out = ask_host("memory", {}, config), console()
    show(resident, False, resident_table(resident), bar(memory, out), *filter(None, [pressure(memory)]))


@models_app.command("load", help="Load a role's model now.")
def load(name: str = NAME, config: Path | None = CONFIG_OPTION, as_json: bool = JSON_OPTION) -> None:
    loaded = ask_host("models_load", {"name": name}, config)
    show(loaded, as_json, f"{loaded['model']}: pid {loaded['pid']}, {gb(loaded['measured_bytes'])}")


@models_app.command("unload", help="Take a model out of memory.")
def unload(name: str = NAME, config: Path | None = CONFIG_OPTION, as_json: bool = JSON_OPTION) -> None:
    done = ask_host("models_unload", {"name": name}, config)
    show(done, as_json, "Unloaded." if done["unloaded"] else "It was not in memory.")


@models_app.command("pin", help="Keep a role's model in memory, loading it first, until the host ends.")
def pin(
    name: str = NAME,
    off: bool = typer.Option(False, "--off", help="Let it go again when room is needed."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    pinned = ask_host("models_pin", {"name": name, "pinned": not off}, config)
    words = "stays in memory" if pinned["pinned"] else "may be taken out of memory"
    show(pinned, as_json, f"{pinned['model']} {words} ({gb(pinned['reserved_bytes'])} reserved).")


@models_app.command("plan", help="What each role takes, which fit together, and the profile that fits a budget.")
def plan(
    names: list[str] = typer.Argument(None, help="Roles, models, folders, or config.json files.", show_default=False),
    profile: str = typer.Option("", "--profile", help="A profile instead of the one in use."),
    context: int | None = typer.Option(None, min=1, help="Tokens of context for every role.", show_default=False),
    fit: str = typer.Option("", "--fit", help="A budget such as 30GB: the best packaged profile for it."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    from rolecall.roles.plan import plan_profile, plans_by_fit
    from rolecall.roles.sources import to_plan

    home = Home.find()
    settings = load_settings(home, config, profile=profile or None)
    note("planning (the first time takes some seconds)")
    chosen, configs = anyio.run(to_plan, names, home, settings) if names else (settings.profile, {})
    budget_bytes = _bytes(fit) if fit else None if profile else settings.budget_bytes()
    plans = plans_by_fit(home, _bytes(fit), context) if fit and not (names or profile) else []
    shown = plans[0] if plans else plan_profile(chosen, home, budget_bytes, context, configs)
    keys = ("profile", "needed_bytes", "missing_bytes")
    fits: list[dict[str, Any]] = [{key: getattr(each, key) for key in keys} for each in plans]
    table = table_of("role", "model", "context", "weights", "KV/token", "8k more", "reserved")
    said = [f"{shown.profile}: with full contexts {gb(shown.total_bytes)} together, budget {gb(shown.budget_bytes)}"]
    said += ["fits together: " + ", ".join(group) for group in shown.resident_together]
    if fits:
        said.append("A profile fits where its pinned roles fit with its largest other role; the largest first.")
    for each in fits:
        missing = f"{gb(each['missing_bytes'])} too much" if each["missing_bytes"] else "fits"
        said.append(f"{each['profile']}: {gb(each['needed_bytes'])}, {missing}")
    for item in shown.roles:
        most = " (its most)" if context and item["context_length"] < context else ""
        table.add_row(
            item["role"],
            item["model"],
            f"{item['concurrency']} x {item['context_length']}{most}",
            ("~" if item.get("source") == "published" else "") + gb(item["weights_bytes"]),
            f"{item['kv_bytes_per_token'] / 1024:.0f} KiB",
            gb(item["bytes_per_8k"]),
            gb(item["reserved_bytes"]),
        )
    show(asdict(shown) | ({"fit": fits} if fits else {}), as_json, table, *said)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]{0,9}\.?[0-9]{1,9})\s*(GB|GiB|)", text.strip(), re.IGNORECASE)
    if match is None or not float(match[1]):
        failed, advice = "That is no size of memory.", "For example: --fit 30GB"
        raise BadRequest(failed, found=repr(text[:100]), allowed="a number of GB", advice=advice)
    return int(float(match[1]) * (1 << 30 if match[2].lower() == "gib" else GB))
