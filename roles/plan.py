"""Memory planned before anything is loaded: what each role takes, and which roles fit the budget together.

One worker process serves all roles on the same model, so what they share is reserved once. Roles with concurrency take
turns in that worker's KV cache: it is as large as its most demanding role asks for, and a pinned role has its own part.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rolecall.config.home import Home
from rolecall.config.profile import Profile, RoleSpec

from .footprint import GB, Footprint, footprints

PROCESS_OVERHEAD_BYTES = 300_000_000  # Source: 254 MB RSS of a process that has imported mlx-lm, rounded up
EMBEDDER_OVERHEAD_BYTES = 700_000_000  # Source: RSS of a process that has imported torch and sentence-transformers
_MAC = sys.platform == "darwin"


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one worker may take, in bytes; `kv_tokens` and `slots` are what its KV cache is meant for."""

    weights_bytes: int
    kv_bytes: int
    transient_bytes: int
    overhead_bytes: int
    cache_bytes: int
    kv_tokens: int
    slots: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.transient_bytes + self.overhead_bytes + self.cache_bytes


@dataclass(frozen=True, slots=True)
class RolePlan:
    """`reserved_bytes` is what a worker for this role alone would reserve."""

    role: str
    model: str
    quantization: str
    context_length: int
    concurrency: int
    weights_bytes: int
    kv_bytes_per_token: int
    reserved_bytes: int
    published: bool


@dataclass(frozen=True, slots=True)
class ProfilePlan:
    """`total_bytes` if every role were resident; `resident_together` the sets of roles that fit and cannot grow."""

    profile: str
    budget_bytes: int
    roles: tuple[RolePlan, ...]
    total_bytes: int
    resident_together: tuple[tuple[str, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """The form of `rolecall models plan --json`; `source` stands only where figures are published ones."""
        return {
            "profile": self.profile,
            "budget_bytes": self.budget_bytes,
            "roles": [_role_dict(role) for role in self.roles],
            "total_bytes": self.total_bytes,
            "resident_together": [list(roles) for roles in self.resident_together],
        }


def plan_profile(profile: Profile, home: Home, budget_bytes: int | None = None) -> ProfilePlan:
    """Plan a profile; no weights are needed. Blocking: seconds the first time, then at once.

    `budget_bytes` None takes the profile's own, whatever this machine has.

    Raises:
        ModelUnknown: a role's model is neither on disk nor in the table of models.
        ModelCorrupt: a model on disk cannot be read.
    """
    budget = budget_bytes if budget_bytes is not None else int(profile.budget_gb * GB)
    sizes = footprints(home, [spec.model for spec in profile.roles.values()])
    ground = _Ground(sizes, int(profile.cache_limit_gb * GB), mac=_MAC or profile.name.startswith("mac-"))
    return ProfilePlan(
        profile=profile.name,
        budget_bytes=budget,
        roles=tuple(ground.role_plan(name, spec) for name, spec in profile.roles.items()),
        total_bytes=ground.together_bytes(profile.roles),
        resident_together=_fitting_sets(profile.roles, ground, budget),
    )


def reserve(size: Footprint, roles: Sequence[RoleSpec], cache_bytes: int, mac: bool = _MAC) -> Reservation:
    """What a worker reserves to serve `roles`, which share its weights; at least one role.

    Requests of roles that are not pinned share the largest part that one of them asks for (context x concurrency, each
    context rounded up to 256 tokens); pinned ones have theirs beside it. `mac` says for which platform.
    """
    pinned = [_tokens(spec) * spec.concurrency for spec in roles if spec.pinned]
    shared = [_tokens(spec) * spec.concurrency for spec in roles if not spec.pinned]
    slots = sum(s.concurrency for s in roles if s.pinned) + max(
        (s.concurrency for s in roles if not s.pinned), default=0
    )
    kv_tokens = sum(pinned) + max(shared, default=0)
    return Reservation(
        weights_bytes=size.weights_bytes,
        kv_bytes=kv_tokens * size.kv_bytes_per_token + slots * size.fixed_bytes,
        transient_bytes=max(size.prefill_transient_bytes(spec.context_length, fused=mac) for spec in roles),
        overhead_bytes=PROCESS_OVERHEAD_BYTES,
        cache_bytes=cache_bytes,
        kv_tokens=kv_tokens,
        slots=slots,
    )


def working_set_bytes() -> int | None:
    """Metal's recommended working set on a Mac, else None. Blocking (a process of its own)."""
    if not _MAC:
        return None
    code = "import mlx.core as mx; print(int(mx.device_info()['max_recommended_working_set_size']))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return int(result.stdout) if result.returncode == 0 else None


def _tokens(spec: RoleSpec) -> int:
    return -(-spec.context_length // 256) * 256


@dataclass(frozen=True, slots=True)
class _Ground:
    """What a plan stands on."""

    sizes: Mapping[str, Footprint]
    cache_bytes: int
    mac: bool

    def role_plan(self, name: str, spec: RoleSpec) -> RolePlan:
        size = self.sizes[spec.model]
        return RolePlan(
            role=name,
            model=spec.model,
            quantization=spec.quantization,
            context_length=spec.context_length,
            concurrency=spec.concurrency,
            weights_bytes=size.weights_bytes,
            kv_bytes_per_token=size.kv_bytes_per_token,
            reserved_bytes=self.together_bytes({name: spec}),
            published=size.source == "published",
        )

    def together_bytes(self, roles: Mapping[str, RoleSpec]) -> int:
        by_model: dict[str, list[RoleSpec]] = {}
        for spec in roles.values():
            by_model.setdefault(spec.model, []).append(spec)
        workers = (reserve(self.sizes[model], specs, self.cache_bytes, self.mac) for model, specs in by_model.items())
        return sum(worker.total_bytes for worker in workers)


def _role_dict(role: RolePlan) -> dict[str, Any]:
    names = ("role", "model", "quantization", "context_length", "concurrency")
    figures = ("weights_bytes", "kv_bytes_per_token", "reserved_bytes")
    data = {name: getattr(role, name) for name in (*names, *figures)}
    return {**data, "source": "published"} if role.published else data


def _fitting_sets(roles: Mapping[str, RoleSpec], ground: _Ground, budget_bytes: int) -> tuple[tuple[str, ...], ...]:
    """Every set of roles within the budget that no other role can join, the largest first."""
    found: list[tuple[str, ...]] = []
    for count in range(len(roles), 0, -1):
        for names in itertools.combinations(roles, count):
            if any(set(names) <= set(larger) for larger in found):
                continue
            if ground.together_bytes({name: roles[name] for name in names}) <= budget_bytes:
                found.append(names)
    return tuple(found)
