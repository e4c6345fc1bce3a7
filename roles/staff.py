"""Which model answers for a role now: the profile's, or a stand-in where that one is not on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rolecall.config.home import Home
from rolecall.config.models import models_table
from rolecall.config.profile import Profile, RoleSpec
from rolecall.config.settings import load_profile

from .contract import Role
from .errors import ModelCorrupt, ModelMissing
from .manifest import read_manifest
from .worker.wire import Kind


@dataclass(frozen=True, slots=True)
class Staff:
    """The profile's models as they lie on disk. Reads the disk at each question, so a pull counts at once.

    `resident` says whether a model is in memory: such a one can answer even if its folder has vanished.
    """

    home: Home
    profile: Profile
    resident: Callable[[str], bool] = lambda key: False

    def present(self, key: str) -> bool:
        """Whether the folders of a model and, after a +, of its adapter are on disk (they appear by a rename)."""
        if self.resident(key):
            return True
        model, _, name = key.partition("+")
        adapter = self.adapter(name)
        there = (self.home.models / model / "config.json").is_file()
        return there and (adapter is None or (adapter / "adapter_config.json").is_file())

    def kind(self, model: str) -> Kind:
        """What a worker of the model does: as the profile says, else a folder of sentence-transformers embeds."""
        named = next((name for name, spec in self.profile.encoders.items() if spec.model == model), None)
        return named or ("embedder" if (self.home.models / model / "modules.json").is_file() else "text")

    def adapter(self, name: str) -> Path | None:
        """The folder of an adapter: a path, or relative to the home's models; None without a name."""
        return self.home.models / Path(name).expanduser() if name else None

    def post(self, role: Role, stand_in: bool = True) -> tuple[RoleSpec, str]:
        """Who answers for `role`: its own model, else (with `stand_in`) the largest present one of the profile, else
        the starter.

        The text is empty, or says whose model is missing and the command that gets it. A stand-in has no precedence,
        and the time of whichever role has more. Raises ModelMissing where none is on disk.
        """
        spec = self.profile.roles.get(role)
        if spec is not None and self.present(key_of(spec)):
            return spec, ""
        wanted = f"The model of role {role} ({key_of(spec)})" if spec else f"This profile's model for role {role}"
        pull = f"rolecall models pull {spec.model if spec else 'router'}"
        by_size = sorted(self.profile.roles.values(), key=lambda s: _published_gb(s.model), reverse=True)
        for other in (*by_size, *_starter_roles().values()) if stand_in else ():
            if self.present(key_of(other)):
                timeout_s = max(other.timeout_s, spec.timeout_s if spec else 0.0)
                changes = {"pinned": False, "timeout_s": timeout_s}
                missing = f"{wanted} is not on disk; {other.model} answered. Get it with: {pull}"
                return other.model_copy(update=changes), missing
        raise ModelMissing(
            f"{wanted} is not on disk, nor is any other that could answer.",
            found=f"no model folders under {self.home.models}",
            advice=f"Get it with: {pull} (or `rolecall setup` for the small starter model).",
        )

    def specs(self, key: str) -> tuple[RoleSpec, ...]:
        """What a worker of the model has to be fit for: its roles in the profile, else the starter's, else one of 4,096
        tokens."""
        for roles in (self.profile.roles, _starter_roles()):
            if found := tuple(spec for spec in roles.values() if key_of(spec) == key):
                return found
        model, _, adapter = key.partition("+")
        entry = models_table().get(model)
        context = min(4096, entry.context_length) if entry else 4096
        spec = RoleSpec(model=model, quantization="as stored", context_length=context, timeout_s=120.0)
        return (spec.model_copy(update={"adapter": adapter or None}),)

    def roles_of(self, key: str) -> tuple[str, ...]:
        """The roles, or `embedder` or `reranker`, that the profile gives a model."""
        roles = [name for name, spec in self.profile.roles.items() if key_of(spec) == key]
        return (*roles, *(name for name, spec in self.profile.encoders.items() if spec.model == key))

    def embedder(self) -> str | None:
        """The identity of the embedder on disk, or None."""
        model = self.profile.embedder.model
        if not self.present(model):
            return None
        try:
            manifest = read_manifest(self.home.models / model)
        except ModelCorrupt:
            return None
        return f"{model}:{manifest.weights_sha256 if manifest else 'unhashed'}"


def key_of(spec: RoleSpec) -> str:
    """What one worker is for: the weights, whose id says their quantisation, and the adapter over them."""
    return f"{spec.model}+{spec.adapter}" if spec.adapter else spec.model


def _published_gb(model: str) -> float:
    entry = models_table().get(model)
    return entry.published_gb if entry else 0.0


@cache
def _starter_roles() -> dict[str, RoleSpec]:
    return {name: spec.model_copy(update={"pinned": False}) for name, spec in load_profile("starter").roles.items()}
