"""`rolecall doctor`: what is in use and what is wrong. It needs no host; where one runs, it is asked."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import typer

from rolecall.config.errors import RolecallError
from rolecall.config.home import Home
from rolecall.config.settings import GB, Settings, load_settings

from ..connect import lock_holder
from ..protocol import VERSION
from .index import duration
from .memory import bar, day_in_words, pressure
from .output import CONFIG_OPTION, EXIT_ATTENTION, JSON_OPTION, ask_host, console, emit, from_store, gb, table_of
from .repairs import Found, check_files, repair

STARTER_NOTE = (
    "The starter is a 135M model: it shows the path from request to checked answer and is no judge of answers. "
    "Get a real staff with `rolecall setup` on a Mac with 16 GB or more."
)
LOW_DISK_BYTES = 2_000_000_000


def doctor(
    fix: bool = typer.Option(False, "--fix", help="Put right what is safe to; nothing of yours is deleted."),
    verify: bool = typer.Option(False, "--verify", help="Hash every weights file again."),
    config: Path | None = CONFIG_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """What is in use on this machine, and what to do about each problem."""
    home = Home.find()
    report = diagnose(home, config, verify)
    if fix:
        fixed = repair(home, report["problems"])
        report = {**diagnose(home, config, verify), "fixed": fixed}
    if as_json:
        emit(report)
    else:
        _show_report(report)
    if report["problems"]:
        raise typer.Exit(EXIT_ATTENTION)


def diagnose(home: Home, config: Path | None, verify: bool) -> dict[str, Any]:
    """The report; `problems` holds `{"code", "what", "do"}`, empty where all is well.

    Raises:
        ConfigError: the settings themselves cannot be read.
    """
    settings = load_settings(home, config)
    problems = list[dict[str, str]]()

    def found(code: str, what: str, do: str) -> None:
        problems.append({"code": code, "what": what, "do": do})

    def tried(get: Callable[[], Any]) -> Any:
        """What it gets; None where it fails, which is a problem then."""
        try:
            return get()
        except RolecallError as error:
            found(error.code, f"{error.message} {error.found}".strip(), error.advice)

    def ask(op: str) -> Any:
        return tried(lambda: ask_host(op, {}, config, start=False))

    running = lock_holder(home) is not None
    host = ask("ping") if running else None
    status = (ask("status") if host else None) or {"resident": [], "folders": [], "downloads": None}
    memory = ask("memory") if host else None if running else tried(lambda: _memory(home, settings))
    endpoints = (ask("endpoints") if host and settings.endpoints else None) or []
    resident = {item["model"] for item in status["resident"]}
    models = [{**item, "resident": item["model"] in resident} for item in staff_models(settings, home)]
    notes = [STARTER_NOTE] if settings.profile.name == "starter" else []
    notes += filter(None, [pressure(memory) if memory else ""])
    notes += ["Every weights file present was hashed again."] if verify else []
    if host and host["settings_fingerprint"] != settings.fingerprint:
        what = f"the host (pid {host['pid']}) runs with settings from before the last change"
        found("settings_changed", what, "rolecall stop; the next call starts a new one.")
    _check_models(settings, home, models, verify, found)
    _check_machine(home, found)
    check_files(home, found)
    index = ask("index_list") if host else None
    for item in index or ():
        if count := item["index"]["reasons"].get("needs_documents_extra"):
            what = f"{count} documents of collection {item['collection']} are not indexed"
            found("needs_documents_extra", what, "pip install 'rolecall[documents]', then: rolecall index sync")
    for model, reason in (status["downloads"] or {"failed": {}})["failed"].items():
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
        "memory": memory,
        "blas": _blas(found),
        "models": models,
        "index": index,
        "host": {key: host[key] for key in ("pid", "version", "sessions")} if host else None,
        "clients": host["clients"] if host else [],
        "downloads": status["downloads"],
        "endpoints": endpoints,
        "notes": notes,
        "problems": problems,
    }


def _memory(home: Home, settings: Settings) -> dict[str, Any] | None:
    """What the next host would say of memory; None where none ever ran."""
    from rolecall.roles.manager import ModelManager

    from ..telemetry.history import ModelHistory
    from ..telemetry.store import ReceiptStore

    async def memory(store: ReceiptStore) -> dict[str, Any]:
        return {**ModelManager(home, settings).memory().model_dump(), **await ModelHistory(store).last_day()}

    return from_store(home, memory)


def staff_models(settings: Settings, home: Home) -> list[dict[str, Any]]:
    """The models that the profile needs on this disk, in order of use: `{"model", "roles", "present", ...}`."""
    from rolecall.roles.sources import list_models

    needed = {spec.model for spec in settings.profile.roles.values() if "mlx" in spec.engines}
    needed |= {spec.model for spec in settings.profile.encoders.values()}
    models = [asdict(item) for item in list_models(home, settings) if item.model in needed]
    return sorted(models, key=lambda item: not set(item["roles"]) & settings.profile.roles.keys())


def _check_models(settings: Settings, home: Home, models: list[dict[str, Any]], verify: bool, found: Found) -> None:
    from rolecall.roles.footprint import quick_footprint
    from rolecall.roles.manifest import verify as check
    from rolecall.roles.plan import ENCODER_OVERHEAD_BYTES, reserve

    budget_bytes, cache_bytes = settings.budget_bytes(), int(settings.profile.cache_limit_gb * GB)
    needs = list[tuple[str, int, bool]]()
    for item in models:
        model = item["model"]
        if not item["present"]:
            do = "rolecall setup" if model.startswith("starter/") else f"rolecall models pull {model}"
            found("model_missing", f"{model} ({', '.join(item['roles'])}) is not on disk", do)
        try:
            if item["present"]:
                check(home.models / model, verify)
            size = quick_footprint(home, model)
        except RolecallError as error:
            found(error.code, f"{error.message} {error.found}", error.advice)
            continue
        uses = [spec for spec in settings.profile.roles.values() if spec.model == model and "mlx" in spec.engines]
        if size and uses:
            pinned = any(spec.pinned for spec in uses)
            needs.append((model, reserve(size, uses, cache_bytes).total_bytes, pinned))
        elif size:
            needs.append((model, size.weights_bytes + ENCODER_OVERHEAD_BYTES, False))
    pinned_bytes = sum(own_bytes for _, own_bytes, pinned in needs if pinned)
    for model, own_bytes, pinned in needs:
        if (whole_bytes := pinned_bytes + (0 if pinned else own_bytes)) > budget_bytes:
            what = f"{model} needs {gb(own_bytes)}, with the pinned models {gb(whole_bytes)}"
            do = "Raise memory.budget_gb, or lower its roles' context_length or concurrency."
            found("does_not_fit", f"{what}, of a budget of {gb(budget_bytes)}", do)


def _check_machine(home: Home, found: Found) -> None:
    place = next(folder for folder in (home.root, *home.root.parents) if os.path.exists(folder))  # noqa: PTH110  (says no where Path.exists raises)
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        do = f"Make {home.root} a writable folder, or set ROLECALL_HOME to another."
        found("home_unusable", f"{place} is no folder that can be written to", do)
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < LOW_DISK_BYTES:
        found("disk_low", f"only {gb(free_bytes)} are free on the disk of {place}", "Free some space.")


def _blas(found: Found) -> str:
    from rolecall.roles.worker.blas import find_fast_blas

    name, _ = find_fast_blas()
    if name == "netlib":
        do = "Install torch again (it comes with sentence-transformers)."
        found("slow_blas", "prefill runs about ten times slower without a fast BLAS", do)
    return name


def _show_report(report: dict[str, Any]) -> None:
    out = console()
    host = report["host"]
    out.print(f"rolecall {report['version']} · profile {report['profile']}", style="bold", end="")
    out.print(f" · home {report['home']}")
    out.print(f"budget {gb(report['budget_bytes'])} of {gb(report['memory_bytes'])} · BLAS: {report['blas']}")
    clients = ", ".join(name or "one that gave no name" for name in report["clients"]) or "none"
    out.print(f"host: pid {host['pid']}, clients: {clients}" if host else "host: not running")
    table = table_of("model", "roles", "on disk", "resident")
    for item in report["models"]:
        here, resident = "yes" if item["present"] else "no", "yes" if item["resident"] else ""
        table.add_row(item["model"], ", ".join(item["roles"]), here, resident)
    out.print(table)
    if report["memory"]:
        out.print(bar(report["memory"], out))
        out.print(day_in_words(report["memory"]) or "nothing was loaded in the last 24 h")
    for item in report["endpoints"]:
        can = item["capabilities"] or {}
        has = ", ".join(name for name, value in can.items() if value is True) or "nothing beyond chat"
        context = f", context {can['context_length']}" if can.get("context_length") else ""
        state = f"{has}{context}" if can else "not reachable"
        out.print(f"endpoint {item['name']} ({item['host']}, {item['model']}): {state}")
    for item in report["index"] or ():
        out.print(f"index {item['collection']}: {item['files']} files, {item['chunks']} chunks", end="")
        state = item["index"]
        out.print(f"; {state['pending']} pending, {state['failed']} failed; age {duration(state['age_s'])}")
    if report["index"] == []:
        out.print("index: nothing yet (`rolecall index add FOLDER`)")
    if (downloads := report["downloads"]) and (current := downloads["current"]):
        done = f"{gb(downloads['done_bytes'])} of {gb(downloads['total_bytes'])}"
        out.print(f"downloading {current}: {done}, {len(downloads['waiting'])} more waiting")
    said = [("note", "yellow", text) for text in report["notes"]]
    said += [("fix", "green", text) for text in report.get("fixed", ())]
    said += [("problem", "red", f"{each['what']} → {each['do']}") for each in report["problems"]]
    for label, style, text in said:
        out.print(label, style=style, end=" ")
        out.print(text)
    if not report["problems"]:
        out.print("no problems found", style="green")
