"""Memory planned before anything is loaded: what each role takes, and which roles fit the budget together.

One worker process serves all roles on the same model, so what they share is reserved once. Roles with concurrency take
turns in that worker's KV cache: it is as large as its most demanding role asks for, and a pinned role has its own part.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rolecall.config.home import Home
from rolecall.config.profile import Profile, RoleSpec
from rolecall.config.settings import GB

from .footprint import Footprint, footprints

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
class ProfilePlan:
    """The fields of `rolecall models plan --json`. `total_bytes` if every role were resident; `resident_together`: the
    sets that fit and cannot grow, each with every pinned role, since those are never evicted.

    A role's `reserved_bytes` is what a worker for it alone would reserve; it has `"source": "published"` where its
    figures are not computed.
    """

    profile: str
    budget_bytes: int
    roles: list[dict[str, Any]]
    total_bytes: int
    resident_together: list[list[str]]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan_profile(profile: Profile, home: Home, budget_bytes: int | None = None) -> ProfilePlan:
    """Plan a profile; no weights are needed. `budget_bytes` None takes the profile's own, whatever this machine has.

    Blocking: seconds the first time, then at once. Raises: as `footprints`.
    """
    budget = budget_bytes if budget_bytes is not None else int(profile.budget_gb * GB)
    sizes = footprints(home, [spec.model for spec in profile.roles.values()])
    mac, cache_bytes = _MAC or profile.name.startswith("mac-"), int(profile.cache_limit_gb * GB)

    def together_bytes(names: Iterable[str]) -> int:
        by_model: dict[str, list[RoleSpec]] = {}
        for name in names:
            by_model.setdefault(profile.roles[name].model, []).append(profile.roles[name])
        return sum(reserve(sizes[model], specs, cache_bytes, mac).total_bytes for model, specs in by_model.items())

    roles = []
    for name, spec in profile.roles.items():
        size = sizes[spec.model]
        role = {
            "role": name,
            **spec.model_dump(include={"model", "quantization", "context_length", "concurrency"}),
            "weights_bytes": size.weights_bytes,
            "kv_bytes_per_token": size.kv_bytes_per_token,
            "reserved_bytes": together_bytes([name]),
        }
        roles.append(role | ({"source": "published"} if size.source == "published" else {}))
    return ProfilePlan(
        profile=profile.name,
        budget_bytes=budget,
        roles=roles,
        total_bytes=together_bytes(profile.roles),
        resident_together=_fitting_sets(profile.roles, together_bytes, budget),
    )


def reserve(size: Footprint, roles: Sequence[RoleSpec], cache_bytes: int, mac: bool = _MAC) -> Reservation:
    """What a worker reserves to serve `roles`, which share its weights; at least one role.

    Requests of roles that are not pinned share the largest part that one of them asks for (context x concurrency, each
    context rounded up to 256 tokens); pinned ones have theirs beside it. `mac` says for which platform.
    """
    pinned = [spec for spec in roles if spec.pinned]
    shared = [spec for spec in roles if not spec.pinned]
    slots = sum(s.concurrency for s in pinned) + max((s.concurrency for s in shared), default=0)
    kv_tokens = sum(context_tokens(s) * s.concurrency for s in pinned)
    kv_tokens += max((context_tokens(s) * s.concurrency for s in shared), default=0)
    return Reservation(
        weights_bytes=size.weights_bytes,
        kv_bytes=kv_tokens * size.kv_bytes_per_token + slots * size.fixed_bytes,
        transient_bytes=max(size.prefill_transient_bytes(spec.context_length, fused=mac) for spec in roles),
        overhead_bytes=PROCESS_OVERHEAD_BYTES,
        cache_bytes=cache_bytes,
        kv_tokens=kv_tokens,
        slots=slots,
    )


def context_tokens(spec: RoleSpec) -> int:
    """The role's context as mlx-lm allocates it, in steps of 256 tokens."""
    return -(-spec.context_length // 256) * 256


def working_set_bytes() -> int | None:
    """Metal's recommended working set on a Mac, else None. Blocking (a process of its own)."""
    if not _MAC:
        return None
    code = "import mlx.core as mx; print(int(mx.device_info()['max_recommended_working_set_size']))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return int(result.stdout) if result.returncode == 0 else None


def _fitting_sets(
    roles: Mapping[str, RoleSpec], together_bytes: Callable[[Iterable[str]], int], budget_bytes: int
) -> list[list[str]]:
    """Every set of roles, all pinned ones in it, that fits the budget and that no other can join; largest first."""
    pinned = {name for name, spec in roles.items() if spec.pinned}
    found: list[list[str]] = []
    for count in range(len(roles), 0, -1):
        for names in itertools.combinations(roles, count):
            if not pinned <= set(names) or any(set(names) <= set(larger) for larger in found):
                continue
            if together_bytes(names) <= budget_bytes:
                found.append(list(names))
    return found
