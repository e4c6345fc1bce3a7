"""What `rolecall doctor` finds out. It needs no host; where one runs, it is asked."""

from __future__ import annotations

import os
import platform
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from rolecall.config.errors import RolecallError
from rolecall.config.home import Home
from rolecall.config.settings import GB, Settings, load_settings

from ..connect import lock_holder
from ..errors import HostUnavailable
from ..protocol import VERSION
from .memory import pressure
from .output import ask_host, gb

STARTER_NOTE = (
    "The starter is a 135M model: it shows the path from request to checked answer and is no judge of answers. "
    "Get a real staff with `rolecall setup` on a Mac with 16 GB or more."
)
LOW_DISK_BYTES = 2_000_000_000


def diagnose(home: Home, config: Path | None, verify: bool) -> dict[str, Any]:
    """The report; `problems` holds `{"code", "what", "do"}`, empty where all is well.

    Raises:
        ConfigError: the settings themselves cannot be read.
    """
    settings = load_settings(home, config)
    problems: list[dict[str, str]] = []
    host = _host(home, problems, config)
    if host and host["settings_fingerprint"] != settings.fingerprint:
        what = f"the host (pid {host['pid']}) runs with settings from before the last change"
        problems.append(
            {"code": "settings_changed", "what": what, "do": "rolecall stop; the next call starts a new one."}
        )
    resident = {item["model"] for item in host["resident"]} if host else set()
    models = [{**item, "resident": item["model"] in resident} for item in staff_models(settings, home)]
    notes = [STARTER_NOTE] if settings.profile.name == "starter" else []
    memory = _ask("memory", config) if host else None
    notes += filter(None, [pressure(memory) if memory else ""])
    _check_models(settings, home, models, verify, problems, notes)
    _check_budget(settings, home, problems)
    _check_machine(home, problems)
    for model, reason in (host["downloads"]["failed"] if host else {}).items():
        problems.append(
            {"code": "download_failed", "what": f"{model}: {reason}", "do": f"rolecall models pull {model}"}
        )
    endpoints = _ask("endpoints", config) if host and settings.endpoints else []
    for item in endpoints:
        if error := item["error"]:
            what = f"endpoint {item['name']}: {error['message']} {error['found']}".rstrip()
            problems.append({"code": error["code"], "what": what, "do": error["advice"]})
    for folder in host["folders"] if host else ():
        if folder["problem"]:
            do = (
                "In System Settings, Privacy & Security, give the program that starts Rolecall access; or check rights."
            )
            problems.append({"code": "folder", "what": f"{folder['path']}: {folder['problem']}", "do": do})
    return {
        "version": VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "home": str(home.root),
        "profile": settings.profile.name,
        "budget_bytes": settings.budget_bytes(),
        "memory_bytes": psutil.virtual_memory().total,
        "memory": memory,
        "blas": _blas(problems),
        "models": models,
        "index": _ask("index_list", config) if host else None,
        "host": {key: host[key] for key in ("pid", "version", "sessions")} if host else None,
        "clients": host.get("clients", []) if host else [],
        "downloads": host["downloads"] if host else None,
        "endpoints": endpoints,
        "notes": notes,
        "problems": problems,
    }


def _host(home: Home, problems: list[dict[str, str]], config: Path | None) -> dict[str, Any] | None:
    try:
        return {**_ask("ping", config), **_ask("status", config)}
    except RolecallError as error:
        if isinstance(error, HostUnavailable) and lock_holder(home) is None:
            return None  # none runs, which is no problem
        problems.append({"code": error.code, "what": error.message, "do": error.advice})
        return None


def _ask(op: str, config: Path | None) -> Any:
    return ask_host(op, {}, config, start=False)


def staff_models(settings: Settings, home: Home) -> list[dict[str, Any]]:
    """The models that the profile needs on this disk, in order of use: `{"model", "roles", "present", ...}`."""
    from rolecall.roles.sources import list_models

    needed = {spec.model for spec in settings.profile.roles.values() if "mlx" in spec.engines}
    needed.add(settings.profile.embedder.model)
    found = [asdict(item) for item in list_models(home, settings) if item.model in needed]
    return sorted(found, key=lambda item: "embedder" in item["roles"])


def _check_models(
    settings: Settings,
    home: Home,
    models: list[dict[str, Any]],
    verify: bool,
    problems: list[dict[str, str]],
    notes: list[str],
) -> None:
    from rolecall.roles.manifest import verify as check

    for item in models:
        if not item["present"]:
            starter = str(item["model"]).startswith("starter/")
            do = "rolecall setup" if starter else f"rolecall models pull {item['model']}"
            what = f"{item['model']} ({', '.join(item['roles'])}) is not on disk"
            problems.append({"code": "model_missing", "what": what, "do": do})
            continue
        try:
            check(home.models / item["model"], verify)
        except RolecallError as error:
            problems.append({"code": error.code, "what": f"{error.message} {error.found}", "do": error.advice})
    if verify:
        notes.append("Every weights file present was hashed again.")


def _check_budget(settings: Settings, home: Home, problems: list[dict[str, str]]) -> None:
    from rolecall.roles.footprint import quick_footprint
    from rolecall.roles.plan import reserve

    specs = [spec for spec in settings.profile.roles.values() if "mlx" in spec.engines]
    budget_bytes, cache_bytes = settings.budget_bytes(), int(settings.profile.cache_limit_gb * GB)
    for model in dict.fromkeys(spec.model for spec in specs):
        with suppress(RolecallError):  # damaged: said above
            size, uses = quick_footprint(home, model), [spec for spec in specs if spec.model == model]
            if size and (needed := reserve(size, uses, cache_bytes).total_bytes) > budget_bytes:
                what = f"{model} needs {gb(needed)} of a budget of {gb(budget_bytes)}"
                do = "Raise memory.budget_gb, or lower its roles' context_length or concurrency."
                problems.append({"code": "does_not_fit", "what": what, "do": do})


def _check_machine(home: Home, problems: list[dict[str, str]]) -> None:
    place = next(folder for folder in (home.root, *home.root.parents) if os.path.exists(folder))  # noqa: PTH110  (says no where Path.exists raises)
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        do = f"Make {home.root} a writable folder, or set ROLECALL_HOME to another."
        problems.append({"code": "home_unusable", "what": f"{place} is no folder that can be written to", "do": do})
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < LOW_DISK_BYTES:
        what = f"only {gb(free_bytes)} are free on the disk of {place}"
        problems.append({"code": "disk_low", "what": what, "do": "Free some space."})


def _blas(problems: list[dict[str, str]]) -> str:
    from rolecall.roles.worker.blas import find_fast_blas

    name, _ = find_fast_blas()
    if name == "netlib":
        do = "Install torch (it comes with sentence-transformers) or Debian's libopenblas0-pthread."
        problems.append(
            {"code": "slow_blas", "what": "prefill runs about ten times slower without a fast BLAS", "do": do}
        )
    return name
