"""`rolecall doctor`: what is in use and what is wrong; `--fix` puts right what it can, and deletes no data of a user.

It needs no host; where one runs, it is asked.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import typer
from rich.text import Text

from rolecall.config.errors import RolecallError
from rolecall.config.home import Home
from rolecall.config.settings import GB, Settings

from ..connect import lock_holder
from ..protocol import VERSION
from .clients import ENTRY, Client, known_clients, servers_of
from .install import addition
from .output import EXIT_ATTENTION, Bar, Shell, from_store, gb, readable

if TYPE_CHECKING:
    from rolecall.roles.footprint import Footprint

STARTER_NOTE = (
    "The starter is a 135M model: it shows the path from request to checked answer and is no judge of answers. "
    "Get a real staff with `rolecall setup` on a Mac with 16 GB or more."
)
LOW_DISK_BYTES = 2_000_000_000

Found = Callable[[str, str, str], None]
"""Takes a problem's code, what it is, and what to do."""


def doctor(
    shell: Shell,
    fix: bool = typer.Option(False, "--fix", help="Put right what is safe to; nothing of yours is deleted."),
    verify: bool = typer.Option(False, "--verify", help="Hash every weights file again."),
) -> None:
    """What is in use on this machine, and what to do about each problem."""
    report = diagnose(shell, verify)
    if fix:
        fixed = list(_repair(Home.find(), report["problems"]))
        report = {**diagnose(shell, verify), "fixed": fixed}
    shell.show(report, *readable(report), *([] if report["problems"] else [Text("no problems found", "green")]))
    if report["problems"]:
        raise typer.Exit(EXIT_ATTENTION)


def diagnose(shell: Shell, verify: bool) -> dict[str, Any]:
    """The report; `problems` holds `{"code", "what", "do"}`, empty where all is well. Raises ConfigError: the settings
    themselves cannot be read."""
    from ..telemetry.savings import usage

    home, settings, problems = Home.find(), shell.settings(), list[dict[str, str]]()

    def found(code: str, what: str, do: str) -> None:
        problems.append({"code": code, "what": what, "do": do})

    def tried(get: Callable[[], Any]) -> Any:
        """What it gets; None where it fails, which is a problem then."""
        try:
            return get()
        except RolecallError as error:
            found(error.code, f"{error.message} {error.found}".strip(), error.advice)

    def ask(op: str) -> Any:
        return tried(lambda: shell.ask(op, start=False))

    running = lock_holder(home) is not None
    host = ask("ping") if running else None
    status = (ask("status") if host else None) or {"resident": [], "folders": [], "downloads": {}}
    downloads = status["downloads"]
    endpoints = (ask("endpoints") if host and settings.endpoints else None) or []
    index = ask("index_list") if host else None
    resident = {item["model"] for item in status["resident"]}
    models = [{**item, "resident": item["model"] in resident} for item in staff_models(settings, home)]
    notes = [STARTER_NOTE] if settings.profile.name == "starter" else []
    notes += ["Every weights file present was hashed again."] if verify else []
    if not running:
        notes.append("No host is running; the next call starts one.")
        tried(lambda: from_store(usage))  # whether the records can be read
    if host and host["settings_fingerprint"] != settings.fingerprint:
        what = f"the host (pid {host['pid']}) runs with settings from before the last change"
        found("settings_changed", what, "rolecall stop; the next call starts a new one.")
    sizes = {item["model"]: tried(partial(_checked, home, item, verify)) for item in models}
    _check_models(settings, models, sizes, found)
    _check_home(home, found)
    for name, (client, command) in _moved().items():
        what = f"{client.title} starts {command}, which is no program (any more)"
        found("client_command_gone", what, f"rolecall install {name}")
    for item in index or ():
        if count := item["index"]["reasons"].get("needs_documents_extra"):
            what = f"{count} documents of collection {item['collection']} are not indexed"
            found("needs_documents_extra", what, "pip install 'rolecall[documents]', then: rolecall index sync")
    for model, reason in downloads.get("failed", {}).items():
        found("download_failed", f"{model}: {reason}", f"rolecall models pull {model}")
    for item in endpoints:
        if error := item["error"]:
            what = f"endpoint {item['name']}: {error['message']} {error['found']}".rstrip()
            found(error["code"], what, error["advice"])
    for folder in status["folders"]:
        if folder["problem"]:
            do = "In System Settings, Privacy & Security, give what starts Rolecall access; or check its rights."
            found("folder", f"{folder['path']}: {folder['problem']}", do)
    return {
        "version": VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "home": str(home.root),
        "profile": settings.profile.name,
        "budget_bytes": settings.budget_bytes(),
        "memory_bytes": psutil.virtual_memory().total,
        "blas": _blas(found),
        "models": models,
        "index": index,
        "host": {key: host[key] for key in ("pid", "version", "sessions")} if host else None,
        "clients": host["clients"] if host else [],
        "downloads": downloads if any(downloads.values()) else None,
        "endpoints": endpoints,
        "notes": notes,
        "problems": problems,
    }


def staff_models(settings: Settings, home: Home) -> list[dict[str, Any]]:
    """The models that the profile needs on this disk, in order of use: `{"model", "roles", "present", ...}`."""
    from rolecall.roles.sources import list_models

    needed = {spec.model for spec in settings.profile.roles.values() if "mlx" in spec.engines}
    needed |= {spec.model for spec in settings.profile.encoders.values()}
    models = [asdict(item) for item in list_models(home, settings) if item.model in needed]
    return sorted(models, key=lambda item: not set(item["roles"]) & settings.profile.roles.keys())


def _checked(home: Home, item: dict[str, Any], verify: bool) -> Footprint | None:
    """What a model takes, where that is known at once. Raises ModelCorrupt for one that is not whole."""
    from rolecall.roles.footprint import quick_footprint
    from rolecall.roles.manifest import verify as check

    if item["present"]:
        check(home.models / item["model"], verify)
    return quick_footprint(home, item["model"])


def _check_models(
    settings: Settings, models: list[dict[str, Any]], sizes: dict[str, Footprint | None], found: Found
) -> None:
    from rolecall.roles.plan import ENCODER_OVERHEAD_BYTES, reserve

    budget_bytes, cache_bytes = settings.budget_bytes(), int(settings.profile.cache_limit_gb * GB)
    needs = dict[str, int]()
    specs = [spec for spec in settings.profile.roles.values() if "mlx" in spec.engines]
    for item in models:
        model = item["model"]
        if not item["present"]:
            do = "rolecall setup" if model.startswith("starter/") else f"rolecall models pull {model}"
            found("model_missing", f"{model} ({', '.join(item['roles'])}) is not on disk", do)
        if size := sizes[model]:
            uses = [spec for spec in specs if spec.model == model]
            alone_bytes = size.weights_bytes + ENCODER_OVERHEAD_BYTES
            needs[model] = reserve(size, uses, cache_bytes).total_bytes if uses else alone_bytes
    pinned = {spec.model for spec in specs if spec.pinned} & needs.keys()
    for model, own_bytes in needs.items():
        if (whole_bytes := sum(needs[each] for each in pinned | {model})) > budget_bytes:
            what = f"{model} needs {gb(own_bytes)}, with the pinned models {gb(whole_bytes)}"
            do = "Raise memory.budget_gb, or lower its roles' context_length or concurrency."
            found("does_not_fit", f"{what}, of a budget of {gb(budget_bytes)}", do)


def _check_home(home: Home, found: Found) -> None:
    place = next(folder for folder in (home.root, *home.root.parents) if os.path.exists(folder))  # noqa: PTH110  (says no where Path.exists raises)
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        do = f"Make {home.root} a writable folder, or set ROLECALL_HOME to another."
        found("home_unusable", f"{place} is no folder that can be written to", do)
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < LOW_DISK_BYTES:
        found("disk_low", f"only {gb(free_bytes)} are free on the disk of {place}", "Free some space.")
    for path in _loose(home):
        found("loose_permissions", f"other users may open {path}", f"chmod go= {path}")


def _blas(found: Found) -> str:
    from rolecall.roles.worker.blas import find_fast_blas

    name, _ = find_fast_blas()
    if name == "netlib":
        do = "Install torch again (it comes with sentence-transformers)."
        found("slow_blas", "prefill runs about ten times slower without a fast BLAS", do)
    return name


def _loose(home: Home) -> list[Path]:
    private = (home.root, home.env_file, home.receipts_db, home.http_token_file)
    return [path for path in private if os.path.exists(path) and path.stat().st_mode & 0o077]  # noqa: PTH110


def _moved() -> dict[str, tuple[Client, str]]:
    """Clients that start a command which is not there any more."""
    moved = dict[str, tuple[Client, str]]()
    for name, client in known_clients().items():
        with suppress(RolecallError, OSError, ValueError):  # a file that cannot be read is for the client to say
            entry = servers_of(client, client.file.read_text("utf-8")).get(ENTRY)
            command = str(entry["command"]) if isinstance(entry, dict) and "command" in entry else ""
            if Path(command).is_absolute() and not os.access(command, os.X_OK):
                moved[name] = client, command
    return moved


def _repair(home: Home, problems: Iterable[dict[str, str]]) -> Iterator[str]:
    """Put right what is safe to; what was done, and what could not be, in words."""
    steps: list[Callable[[], str]] = [partial(_close, path) for path in _loose(home)]
    steps += [partial(_renew, client) for client, _ in _moved().values()]
    lacking = [each["what"] for each in problems if each["code"] in ("model_missing", "model_corrupt")]
    steps += [partial(_fetch_starter, home)] if any("starter/" in what for what in lacking) else []
    for step in steps:
        try:
            yield step()
        except (RolecallError, OSError) as error:
            yield f"not mended: {error}"


def _close(path: Path) -> str:
    path.chmod(path.stat().st_mode & 0o700)
    return f"{path} is yours alone now"


def _renew(client: Client) -> str:
    for change in addition(client, skill=False):
        change.apply()
    return f"{client.title} starts this Rolecall now; restart it"


def _fetch_starter(home: Home) -> str:
    from rolecall.roles.starter import fetch_starter

    with Bar("starter") as bar:
        fetch_starter(home.models, bar.bytes)
    return f"the starter models are in {home.models}"
