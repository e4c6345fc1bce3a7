"""Where models come from: what a name means, what is on disk, and getting a model there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio.streams.text import TextReceiveStream

from rolecall.config.home import Home
from rolecall.config.models import known_repository, models_table
from rolecall.config.profile import Profile, RoleSpec
from rolecall.config.settings import GB, Settings

from .errors import DownloadFailed, ModelUnknown, RoleError, from_dict
from .footprint import footprints, unknown_model
from .manifest import Manifest, read_config, read_manifest, weights_bytes
from .staff import Staff
from .starter import STARTER_MODELS, OnProgress

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


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

    A role of the profile, `embedder` or `reranker`, a repository id, an id in LM Studio's form, or a short name from
    the table. Raises ModelUnknown, which names the nearest, for anything else.
    """
    name = name.strip()
    if profile is not None:
        held = {role: spec.model for role, spec in profile.roles.items()}
        held |= {name: spec.model for name, spec in profile.encoders.items()}
        if name in held:
            return held[name]
    if known := known_repository(name):
        return known
    if _REPOSITORY.fullmatch(name) and ".." not in name:
        return name
    raise unknown_model(name)


def list_models(home: Home, settings: Settings) -> tuple[ModelListing, ...]:
    """The profile's models first, then whatever else is on disk."""
    staff = Staff(home, settings.profile)
    models = [spec.model for spec in settings.profile.encoders.values()]
    models += [spec.model for spec in settings.profile.roles.values()]
    folders = sorted(config.parent.relative_to(home.models) for config in home.models.glob("[!.]*/[!.]*/config.json"))
    models += [folder.as_posix() for folder in folders]
    listings = []
    for model in dict.fromkeys(models):
        folder, entry, present = home.models / model, models_table().get(model), staff.present(model)
        size_bytes, source = int(entry.published_gb * GB) if entry else 0, ""
        if present:
            with contextlib.suppress(RoleError):  # `doctor --verify` tells what is wrong with it
                size_bytes = weights_bytes(folder)
                manifest = read_manifest(folder)
                source = manifest.source if manifest else ""
        listings.append(ModelListing(model, staff.roles_of(model), present, size_bytes, source))
    return tuple(listings)


async def pull(name: str, home: Home, settings: Settings, on_progress: OnProgress = lambda *_: None) -> Manifest:
    """Get a model onto the disk: a name as for `resolve`, a local folder's path, or `starter`.

    Resumable: what was fetched is kept. Runs in a process of its own, so that cancelling the awaiting task ends it
    within a second. A folder's model id is `local/<its name>`. Environment: HF_TOKEN, HF_ENDPOINT and the proxies.
    Raises ModelUnknown, DownloadFailed, ModelCorrupt, ModelRefused."""
    job = {"models": str(home.models)}
    if file := _config_file(name):
        local = re.sub(r"[^\w.-]+", "-", file.parent.name, flags=re.ASCII).strip("-.")
        job |= {"kind": "folder", "model": f"local/{local or 'model'}", "folder": str(file.parent)}
    else:
        model = STARTER_MODELS[0] if name == "starter" else resolve(name, settings.profile)
        job |= {"kind": "starter" if model in STARTER_MODELS else "hub", "model": model}
    manifest: Manifest = await _fetch(job, on_progress)
    if Staff(home, settings.profile).kind(manifest.model) == "text":
        await anyio.to_thread.run_sync(footprints, home, [manifest.model])
    return manifest


async def to_plan(names: Sequence[str], home: Home, settings: Settings) -> tuple[Profile, dict[str, Any]]:
    """The profile cut down to what `names` mean, and the `config.json` of those of which only that is there.

    A name as for `resolve`, a folder, or the path of a `config.json`. Of a repository neither on disk nor in the table
    that file alone is fetched. A model without a role here is planned as the worker of a call to it would be. Raises
    ModelUnknown, ModelRefused, ModelCorrupt, DownloadFailed."""
    staff, roles, configs = Staff(home, settings.profile), dict[str, RoleSpec](), dict[str, Any]()
    held = settings.profile.roles
    for name in names:
        if name in held:
            roles[name] = held[name]
            continue
        if file := _config_file(name):
            model = str(file if name.endswith(".json") else file.parent)
            configs[model] = read_config(file, model)
        else:
            model = resolve(name, settings.profile)
            if not (staff.present(model) or model in models_table() or model in STARTER_MODELS):
                configs[model] = await _fetch({"kind": "config", "model": model})
        roles |= {role: held[role] for role in staff.roles_of(model) if role in held} or {model: staff.specs(model)[0]}
    return settings.profile.model_copy(update={"roles": roles}), configs


async def _fetch(job: dict[str, str], on_progress: OnProgress = lambda *_: None) -> Any:
    """What the process for one job of `fetch` answers."""
    command, null = [sys.executable, "-P", "-m", "rolecall.roles.fetch", json.dumps(job)], subprocess.DEVNULL
    process = await anyio.open_process(command, stdin=null, stderr=null, start_new_session=True)
    assert process.stdout is not None
    pending = ""
    try:
        async for text in TextReceiveStream(process.stdout):
            *lines, pending = (pending + text).split("\n")
            for message in map(json.loads, lines):
                match message:
                    case {"progress": [what, done, total]}:
                        on_progress(what, done, total)
                    case {"manifest": manifest}:
                        return Manifest.model_validate(manifest)
                    case {"config": config}:
                        return config
                    case {"error": error}:
                        raise from_dict(error, DownloadFailed)
        raise DownloadFailed(
            f"Fetching {job['model']} ended without a result.",
            found=f"its process ended with status {await process.wait()}",
            advice="Run the same command again: what was fetched is kept.",
        )
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the second: how a Mac says that all have ended
            os.killpg(process.pid, signal.SIGKILL)  # with whatever it started; nothing half-made is ever in place
        with anyio.CancelScope(shield=True):
            await process.wait()
            await process.aclose()


def _config_file(name: str) -> Path | None:
    """The `config.json` that a path means, None for a name of another kind."""
    if not (name.startswith(("/", "./", "../", "~")) or name.endswith(".json") or name in (".", "..")):
        return None
    path = Path(name).expanduser().resolve()
    file = path if path.suffix == ".json" else path / "config.json"
    if file.is_file():
        return file
    raise ModelUnknown(
        "That folder holds no model.",
        found=str(path),
        allowed="a folder with config.json and safetensors weights",
        advice="Check the path.",
    )
