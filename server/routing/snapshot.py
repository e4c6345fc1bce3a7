"""What a decision was made under, part by part, each under its own hash: so that a difference can be named."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from rolecall.config.models import models_table
from rolecall.config.policy import RoutingSettings
from rolecall.roles.contract import RoleInfo

from ..protocol import VERSION
from .contract import RoleChoice, Snapshot, TaskType
from .decide import canonical_sha256


def snapshot_of(
    profile: str, roles: tuple[RoleChoice, ...], embedder: str | None, routing: RoutingSettings,
    thresholds: Mapping[TaskType, float],
) -> Snapshot:  # fmt: skip
    """The packaged parts, the profile's roles, the embedder's identity and the user's policy under one hash."""
    made = Snapshot(sha256="", profile=profile, roles=roles, thresholds=dict(thresholds), **dict(routing))
    parts = packaged_parts() | {"embedder": embedder or "none"} | held_parts(made)
    return made.model_copy(update={"parts": parts, "sha256": canonical_sha256({"profile": profile, **parts})})


def held_parts(snapshot: Snapshot) -> dict[str, str]:
    """The hashes of the parts that the snapshot itself holds: roles, policy, thresholds."""
    held = snapshot.model_dump(mode="json", include={"roles", "rules", "quality_weight", "thresholds"})
    policy = {"rules": held["rules"], "quality_weight": held["quality_weight"]}
    values = {"roles": held["roles"], "policy": policy, "thresholds": held["thresholds"]}
    return {name: canonical_sha256(value) for name, value in values.items()}


def altered(snapshot: Snapshot) -> tuple[str, ...]:
    """The parts of a kept snapshot that its hashes do not fit, `sha256` for the one over all; () where it is whole."""
    wrong = [name for name, sha256 in held_parts(snapshot).items() if snapshot.parts.get(name) != sha256]
    whole = canonical_sha256({"profile": snapshot.profile, **snapshot.parts}) == snapshot.sha256
    return (*wrong, *(() if whole else ("sha256",)))


def role_choice(info: RoleInfo) -> RoleChoice:
    """A role with the figures of its model, where the table of models has any. What is read from the disk stays out."""
    entry = models_table().get(info.model)
    known: dict[str, Any] = {}
    if entry is not None and (figures := entry.figures) is not None:
        known = {
            "quality": {kind: figures.scores.get(kind, figures.prior) for kind in TaskType},
            "prefill_tps": figures.prefill_tps,
            "decode_tps": figures.decode_tps,
            "size_gb": entry.published_gb,
        }
    return RoleChoice(
        role=info.role, model=info.model, context_length=info.context_length, max_tokens=info.max_tokens, **known
    )


@cache
def packaged_parts() -> dict[str, str]:
    """Hashes of what comes with this version: code, rules, weights, grammars with their vocabularies, prompts."""
    here, config = Path(__file__).parent, Path(str(files("rolecall.config")))
    words = _under(config / "routing", ".yaml") | _under(here, ".lark")
    return {
        "code": _sha256(_under(here, ".py"), VERSION),
        "rules": _sha256(_under(config / "routing", "rules.yaml")),
        "weights": _sha256(_under(here, "weights.npz")),
        "grammars": _sha256({name: words[name] for name in words if name not in ("rules.yaml", "thresholds.yaml")}),
        "prompts": _sha256(_under(config / "prompts", ".md")),
    }


def _under(folder: Path, ending: str) -> dict[str, bytes]:
    """The contents of the files below a folder whose names end so, by path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob(f"*{ending}")}


def _sha256(entries: dict[str, bytes], start: str = "") -> str:
    digest = hashlib.sha256(start.encode())
    for name, content in sorted(entries.items()):
        digest.update(f"\0{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
