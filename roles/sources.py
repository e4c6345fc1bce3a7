"""Where models come from: what a name means, what is on disk, and getting a model there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
from anyio.streams.text import TextReceiveStream

from rolecall.config.home import Home
from rolecall.config.models import models_table
from rolecall.config.profile import Profile
from rolecall.config.settings import GB, Settings

from . import errors
from .errors import DownloadFailed, ModelUnknown, RoleError
from .footprint import footprints, unknown_model
from .manifest import Manifest, read_manifest, weights_bytes
from .starter import STARTER_MODELS

STARTER = "starter"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

OnProgress = Callable[[str, int, int], None]
"""Progress of a pull: (what is being done, bytes done, bytes in all); the first call tells the size."""


@dataclass(frozen=True, slots=True)
class ModelListing:
    """One line of `rolecall models list`. `size_bytes` of the weights: on disk, else as published, else 0."""

    model: str
    roles: tuple[str, ...]
    present: bool
    size_bytes: int
    source: str


def resolve(name: str, profile: Profile | None = None) -> str:
    """The repository id (also the model id) a name stands for.

    A role of the profile or `embedder`, a repository id, an id in LM Studio's form, or a short name from the table.

    Raises:
        ModelUnknown: none of these; it names the nearest.
    """
    name = name.strip()
    if profile is not None:
        if name == "embedder":
            return profile.embedder.model
        if name in profile.roles:
            return profile.roles[name].model
    table = models_table()
    if name in table:
        return name
    for repository, entry in table.items():
        if name.lower() in (repository.lower(), *(alias.lower() for alias in entry.aliases)):
            return repository
    if _REPOSITORY.fullmatch(name) and ".." not in name:
        return name
    raise unknown_model(name)


def list_models(home: Home, settings: Settings) -> tuple[ModelListing, ...]:
    """The profile's models first, then whatever else is on disk."""
    profile = settings.profile
    wanted = [profile.embedder.model, *(spec.model for spec in profile.roles.values())]
    on_disk = sorted(
        f"{config.parent.parent.name}/{config.parent.name}"
        for config in home.models.glob("*/*/config.json")
        if not config.parent.name.startswith(".") and not config.parent.parent.name.startswith(".")
    )
    return tuple(_listing(home, profile, model) for model in dict.fromkeys([*wanted, *on_disk]))


def _listing(home: Home, profile: Profile, model: str) -> ModelListing:
    folder = home.models / model
    entry = models_table().get(model)
    present = (folder / "config.json").is_file()
    size_bytes, source = int(entry.published_gb * GB) if entry else 0, ""
    if present:
        with contextlib.suppress(RoleError):  # `doctor --verify` tells what is wrong with it
            size_bytes = weights_bytes(folder)
            manifest = read_manifest(folder)
            source = manifest.source if manifest else ""
    roles = [name for name, spec in profile.roles.items() if spec.model == model]
    if model == profile.embedder.model:
        roles.append("embedder")
    return ModelListing(model, tuple(roles), present, size_bytes, source)


async def pull(name: str, home: Home, settings: Settings, on_progress: OnProgress | None = None) -> Manifest:
    """Get a model onto the disk: a name as for `resolve`, a local folder's path, or `starter`.

    Resumable: what was fetched is kept. Runs in a process of its own, so that cancelling the awaiting task ends it
    within a second. A folder's model id is `local/<its name>`. Environment: HF_TOKEN, HF_ENDPOINT and the proxies.

    Raises:
        ModelUnknown, DownloadFailed, ModelCorrupt, ModelRefused.
    """
    job = _job(name, home, settings)
    home.models.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "rolecall.roles.fetch"]
    process = await anyio.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        manifest = await _converse(process, job, on_progress or (lambda *_: None))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with whatever it started; nothing half-made is ever in place
        with anyio.CancelScope(shield=True):
            await process.wait()
            await process.aclose()
    if not (home.models / manifest.model / "modules.json").is_file():
        await anyio.to_thread.run_sync(footprints, home, [manifest.model])
    return manifest


def _job(name: str, home: Home, settings: Settings) -> dict[str, str]:
    models = str(home.models)
    path = Path(name).expanduser()
    if name.startswith(("/", "./", "../", "~")):
        if not (path / "config.json").is_file():
            raise ModelUnknown(
                "That folder holds no model.",
                found=str(path),
                allowed="a folder with config.json and safetensors weights",
                advice="Check the path.",
            )
        return {
            "kind": "folder",
            "model": f"local/{path.resolve().name}",
            "folder": str(path.resolve()),
            "models": models,
        }
    model = resolve(name, settings.profile) if name != STARTER else STARTER_MODELS[0]
    return {"kind": "starter" if model in STARTER_MODELS else "hub", "model": model, "models": models}


async def _converse(process: anyio.abc.Process, job: dict[str, str], on_progress: OnProgress) -> Manifest:
    assert process.stdin is not None and process.stdout is not None
    await process.stdin.send(json.dumps(job).encode())
    await process.stdin.aclose()
    pending = ""
    async for text in TextReceiveStream(process.stdout):
        *lines, pending = (pending + text).split("\n")
        for line in lines:
            message: dict[str, Any] = json.loads(line)
            match message:
                case {"progress": [what, done, total]}:
                    on_progress(what, done, total)
                case {"manifest": manifest}:
                    return Manifest.model_validate(manifest)
                case {"error": error}:
                    raise _error(error)
    raise DownloadFailed(
        f"Fetching {job['model']} ended without a result.",
        found="its process ended" + (f" with status {process.returncode}" if process.returncode is not None else ""),
        advice="Run the same command again: what was fetched is kept.",
    )


def _error(data: dict[str, Any]) -> RoleError:
    kinds = {k.code: k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, RoleError)}
    kind = kinds.get(str(data.get("code")), DownloadFailed)
    return kind(str(data["message"]), found=data["found"], allowed=data["allowed"], advice=data["advice"])
