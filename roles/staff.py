"""Which model answers for a role now: the profile's, or a stand-in where that one is not on disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from rolecall.config.home import Home
from rolecall.config.models import models_table
from rolecall.config.profile import Profile, RoleSpec
from rolecall.config.settings import load_profile

from .contract import EmbedderInfo, Role
from .errors import ModelCorrupt, ModelMissing
from .manifest import read_json, read_manifest

EMBEDDER_ROLE = "embedder"


@dataclass(frozen=True, slots=True)
class Staff:
    """The profile's models as they lie on disk. Reads the disk at each question, so a pull counts at once."""

    home: Home
    profile: Profile

    def present(self, model: str) -> bool:
        """Whether the model's folder is on disk and whole (folders appear by a rename)."""
        return (self.home.models / model / "config.json").is_file()

    def post(self, role: Role) -> tuple[RoleSpec, str]:
        """Who answers for `role`: its own model, else the largest present one of the profile, else the starter.

        The text is empty, or says whose model is missing and the command that gets it. A stand-in has no precedence,
        and the time of whichever role has more. Raises ModelMissing where none is on disk.
        """
        spec = self.profile.roles.get(role)
        if spec is not None and self.present(spec.model):
            return spec, ""
        wanted = f"The model of role {role} ({spec.model})" if spec else f"This profile's model for role {role}"
        pull = f"rolecall models pull {spec.model if spec else 'router'}"
        by_size = sorted(self.profile.roles.values(), key=lambda s: _published_gb(s.model), reverse=True)
        for stand_in in (*by_size, *_starter_roles().values()):
            if self.present(stand_in.model):
                timeout_s = max(stand_in.timeout_s, spec.timeout_s if spec else 0.0)
                changes = {"pinned": False, "timeout_s": timeout_s}
                missing = f"{wanted} is not on disk; {stand_in.model} answered. Get it with: {pull}"
                return stand_in.model_copy(update=changes), missing
        raise ModelMissing(
            f"{wanted} is not on disk, nor is any other that could answer.",
            found=f"no model folders under {self.home.models}",
            advice=f"Get it with: {pull} (or `rolecall setup` for the small starter model).",
        )

    def specs(self, model: str) -> tuple[RoleSpec, ...]:
        """What a worker of `model` has to be fit for: its roles in the profile, else the starter's, else one of 4,096
        tokens."""
        for roles in (self.profile.roles, _starter_roles()):
            if found := tuple(spec for spec in roles.values() if spec.model == model):
                return found
        entry = models_table().get(model)
        context = min(4096, entry.context_length) if entry else 4096
        return (RoleSpec(model=model, quantization="as stored", context_length=context, timeout_s=120.0),)

    def roles_of(self, model: str) -> tuple[str, ...]:
        """The roles, or `embedder`, that the profile gives a model."""
        roles = tuple(name for name, spec in self.profile.roles.items() if spec.model == model)
        return (*roles, EMBEDDER_ROLE) if model == self.profile.embedder.model else roles

    def embedder(self) -> EmbedderInfo | None:
        """The embedder on disk, or None. `identity` holds the hash of its weights."""
        spec = self.profile.embedder
        folder = self.home.models / spec.model
        if not self.present(spec.model):
            return None
        try:
            manifest = read_manifest(folder)
            dimensions = int(read_json(folder / "config.json", spec.model)["hidden_size"])
        except (ModelCorrupt, ValueError, KeyError):
            return None
        sha256 = manifest.weights_sha256 if manifest else "unhashed"
        return EmbedderInfo(
            model=spec.model, identity=f"{spec.model}:{sha256}", dimensions=dimensions, max_tokens=spec.max_tokens
        )


def _published_gb(model: str) -> float:
    entry = models_table().get(model)
    return entry.published_gb if entry else 0.0


@cache
def _starter_roles() -> dict[str, RoleSpec]:
    return {name: spec.model_copy(update={"pinned": False}) for name, spec in load_profile("starter").roles.items()}
