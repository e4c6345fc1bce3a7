"""Which model answers for a role now: the profile's, or a stand-in where that one is not on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from rolecall.config.home import Home
from rolecall.config.models import models_table
from rolecall.config.profile import Profile, RoleSpec
from rolecall.config.settings import load_profile

from .contract import EmbedderInfo, Role
from .errors import ModelCorrupt, ModelMissing
from .manifest import read_manifest

EMBEDDER_ROLE = "embedder"


@dataclass(frozen=True, slots=True)
class Post:
    """A role filled: `degraded` is empty, or says whose model is missing and the command that gets it."""

    role: str
    spec: RoleSpec
    degraded: str = ""


class Staff:
    """The profile's models as they lie on disk. Reads the disk at each question, so a pull counts at once."""

    def __init__(self, home: Home, profile: Profile) -> None:
        self._home = home
        self.profile = profile

    def present(self, model: str) -> bool:
        """Whether the model's folder is on disk and whole (folders appear by a rename)."""
        return (self._home.models / model / "config.json").is_file()

    def post(self, role: Role) -> Post:
        """Who answers for `role`: its own model, else the largest present one of the profile, else the starter.

        Raises:
            ModelMissing: none is on disk.
        """
        spec = self.profile.roles.get(role)
        if spec is not None and self.present(spec.model):
            return Post(role, spec)
        wanted = f"The model of role {role} ({spec.model})" if spec else f"This profile's model for role {role}"
        pull = f"rolecall models pull {spec.model}" if spec else "rolecall models pull router"
        for stand_in in (*self._largest_first(self.profile.roles), *self._starter.values()):
            if self.present(stand_in.model):
                degraded = f"{wanted} is not on disk; {stand_in.model} answered. Get it with: {pull}"
                return Post(role, stand_in, degraded)
        raise ModelMissing(
            f"{wanted} is not on disk, nor is any other that could answer.",
            found=f"no model folders under {self._home.models}",
            advice=f"Get it with: {pull} (or `rolecall setup` for the small starter model).",
        )

    def specs(self, model: str) -> tuple[RoleSpec, ...]:
        """What a worker of `model` has to be fit for: its roles in the profile, else the starter's, else one of 4,096
        tokens."""
        for roles in (self.profile.roles, self._starter):
            if found := tuple(spec for spec in roles.values() if spec.model == model):
                return found
        entry = models_table().get(model)
        context = min(4096, entry.context_length) if entry else 4096
        return (RoleSpec(model=model, quantization="as stored", context_length=context, timeout_s=120.0),)

    def roles_of(self, model: str) -> tuple[str, ...]:
        if model == self.profile.embedder.model:
            return (EMBEDDER_ROLE,)
        return tuple(name for name, spec in self.profile.roles.items() if spec.model == model)

    def embedder(self) -> EmbedderInfo | None:
        """The embedder on disk, or None. `identity` holds the hash of its weights."""
        spec = self.profile.embedder
        folder = self._home.models / spec.model
        if not self.present(spec.model):
            return None
        try:
            manifest = read_manifest(folder)
            dimensions = int(json.loads((folder / "config.json").read_bytes())["hidden_size"])
        except (ModelCorrupt, OSError, ValueError, KeyError):
            return None
        sha256 = manifest.weights_sha256 if manifest else "unhashed"
        return EmbedderInfo(
            model=spec.model, identity=f"{spec.model}:{sha256}", dimensions=dimensions, max_tokens=spec.max_tokens
        )

    def _largest_first(self, roles: Mapping[str, RoleSpec]) -> list[RoleSpec]:
        def published_gb(spec: RoleSpec) -> float:
            entry = models_table().get(spec.model)
            return entry.published_gb if entry else 0.0

        return sorted(roles.values(), key=published_gb, reverse=True)

    @cached_property
    def _starter(self) -> dict[str, RoleSpec]:
        return {name: spec.model_copy(update={"pinned": False}) for name, spec in load_profile("starter").roles.items()}
