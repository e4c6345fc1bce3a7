"""Models: `rolecall models pull|list|ps|load|unload|plan`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
import typer

from rolecall.config.home import Home
from rolecall.config.settings import load_settings

from .output import CONFIG_OPTION, JSON_OPTION, Bar, ask_host, console, emit, gb, note, table_of

models_app = typer.Typer(no_args_is_help=True, help="Get, plan, load and unload models.")


def register(app: typer.Typer) -> None:
    app.add_typer(models_app, name="models")


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
    if as_json:
        emit({"model": manifest.model, "source": manifest.source, "weights_sha256": manifest.weights_sha256})
    else:
        console().print(f"{manifest.model} is here ({manifest.weights_sha256[:12]}).", markup=False)


@models_app.command("list", help="The profile's models and what else is on disk.")
def list_(config: Path | None = CONFIG_OPTION, as_json: bool = JSON_OPTION) -> None:
    from rolecall.roles.sources import list_models

    home = Home.find()
    found = [asdict(item) for item in list_models(home, load_settings(home, config))]
    if as_json:
        emit(found)
        return
    table = table_of("model", "roles", "size", "on disk")
    for item in found:
        here = item["source"].partition(" ")[0] or "yes" if item["present"] else "no"
        table.add_row(item["model"], ", ".join(item["roles"]), gb(item["size_bytes"]), here)
    console().print(table)


@models_app.command("ps", help="Models in memory.")
def ps(config: Path | None = CONFIG_OPTION, as_json: bool = JSON_OPTION) -> None:
    resident = ask_host("models_ps", {}, config)
    if as_json:
        emit(resident)
        return
    table = table_of("model", "roles", "pid", "pinned", "in use", "reserved", "measured")
    for item in resident:
        table.add_row(
            item["model"],
            ", ".join(item["roles"]),
            str(item["pid"]),
            "yes" if item["pinned"] else "",
            str(item["in_use"]),
            gb(item["reserved_bytes"]),
            gb(item["measured_bytes"]),
        )
    console().print(table if resident else "No model is in memory.")


@models_app.command("load", help="Load a role's model now.")
def load(
    name: str = typer.Argument(help="Role or model."), config: Path | None = CONFIG_OPTION, as_json: bool = JSON_OPTION
) -> None:
    loaded = ask_host("models_load", {"name": name}, config)
    if as_json:
        emit(loaded)
    else:
        console().print(f"{loaded['model']}: pid {loaded['pid']}, {gb(loaded['measured_bytes'])}", markup=False)


@models_app.command("unload", help="Take a model out of memory.")
def unload(
    name: str = typer.Argument(help="Role or model."), config: Path | None = CONFIG_OPTION, as_json: bool = JSON_OPTION
) -> None:
    done = ask_host("models_unload", {"name": name}, config)
    if as_json:
        emit(done)
    else:
        console().print("Unloaded." if done["unloaded"] else "It was not in memory.")


@models_app.command("plan", help="What each role takes and which fit together; no weights needed.")
def plan(
    profile: str = typer.Option("", "--profile", help="A profile instead of the one in use."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    from rolecall.roles.plan import plan_profile

    home = Home.find()
    settings = load_settings(home, config, profile=profile or None)
    note("planning (the first time takes some seconds)")
    budget_bytes = None if profile else settings.budget_bytes()
    result: dict[str, Any] = plan_profile(settings.profile, home, budget_bytes).to_dict()
    if as_json:
        emit(result)
        return
    table = table_of("role", "model", "context", "at once", "weights", "KV/token", "reserved")
    for item in result["roles"]:
        table.add_row(
            item["role"],
            item["model"],
            str(item["context_length"]),
            str(item["concurrency"]),
            gb(item["weights_bytes"]),
            f"{item['kv_bytes_per_token'] / 1024:.0f} KiB",
            gb(item["reserved_bytes"]),
        )
    console().print(table)
    console().print(f"all together {gb(result['total_bytes'])}, budget {gb(result['budget_bytes'])}")
    for group in result["resident_together"]:
        console().print("fits together: " + ", ".join(group))
