"""Memory planned before anything is loaded: what each role takes, and which roles fit the budget together.

One worker process serves all roles on the same model, so what they share is reserved once. Roles with concurrency take
turns in that worker's KV cache: it is as large as its most demanding role asks for, and a pinned role has its own part.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rolecall.config.home import Home
from rolecall.config.profile import Profile, RoleSpec
from rolecall.config.settings import GB, load_profile, profile_names

from .footprint import Footprint, footprints, prefill_step_tokens, stepped
from .manifest import corrupt, weights_bytes
from .staff import Staff

KEPT_TOKENS = 8192  # of KV cache that a worker keeps for roles without a pin: one request of most, 0.8 to 1.6 GB
PROCESS_OVERHEAD_BYTES = 300_000_000  # Source: 254 MB RSS of a process that has imported mlx-lm, rounded up
ENCODER_OVERHEAD_BYTES = 700_000_000  # Source: RSS of a process that has imported torch and sentence-transformers
_MAC = sys.platform == "darwin"


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one worker may take, in bytes; `kv_tokens` and `slots` are what its KV cache is meant for.

    Of the tokens, `base_tokens` are reserved from the load on, the others when requests need them.
    """

    weights_bytes: int
    kv_bytes: int
    transient_bytes: int
    overhead_bytes: int
    cache_bytes: int
    kv_tokens: int
    slots: int
    kv_bytes_per_token: int = 0
    base_tokens: int = 0

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.transient_bytes + self.overhead_bytes + self.cache_bytes

    def bytes_at(self, kv_tokens: int) -> int:
        """The total while so many tokens of KV cache are reserved."""
        return self.total_bytes - (self.kv_tokens - kv_tokens) * self.kv_bytes_per_token

    def kv_bytes_at(self, kv_tokens: int) -> int:
        return self.kv_bytes - (self.kv_tokens - kv_tokens) * self.kv_bytes_per_token


@dataclass(frozen=True, slots=True)
class ProfilePlan:
    """The fields of `rolecall models plan --json`. `total_bytes` if every role were resident; `resident_together`: the
    sets that fit and cannot grow, each with every pinned role, since those are never evicted. `needed_bytes`: the
    pinned roles and the largest other one at the same time; `missing_bytes` of that exceed the budget.

    A role's `reserved_bytes` is what a worker for it alone would reserve, `bytes_per_8k` what 8,192 more tokens of
    context would add to its cache. `source` is there where figures are not computed from the architecture.
    """

    profile: str
    budget_bytes: int
    roles: list[dict[str, Any]]
    total_bytes: int
    resident_together: list[list[str]]
    needed_bytes: int
    missing_bytes: int


def plan_profile(
    profile: Profile,
    home: Home,
    budget_bytes: int | None = None,
    context_length: int | None = None,
    configs: Mapping[str, Any] | None = None,
) -> ProfilePlan:
    """Plan the roles of a profile that run here; no weights are needed. `budget_bytes` None takes the profile's own,
    whatever this machine has. `context_length` plans every role at that, or at its model's own where that is less.

    Blocking: seconds the first time, then at once. `configs` and raises: as `footprints`.
    """
    budget = budget_bytes if budget_bytes is not None else int(profile.budget_gb * GB)
    roles = {name: spec for name, spec in profile.roles.items() if "mlx" in spec.engines}
    sizes = footprints(home, [spec.model for spec in roles.values()], configs)
    if context_length:
        for name, spec in roles.items():
            length = min(context_length, sizes[spec.model].context_length or context_length)
            roles[name] = spec.model_copy(update={"context_length": length})
    mac, cache_bytes = _MAC or profile.name.startswith("mac-"), int(profile.cache_limit_gb * GB)
    staff = Staff(home, profile)

    def together_bytes(names: Iterable[str]) -> int:
        workers: dict[tuple[str, Path | None], list[RoleSpec]] = {}
        for spec in map(roles.__getitem__, names):
            workers.setdefault((spec.model, staff.adapter(spec.adapter or "")), []).append(spec)
        return sum(
            reserve(sizes[model], specs, cache_bytes, mac, adapter_bytes(adapter)).total_bytes
            for (model, adapter), specs in workers.items()
        )

    pinned = [name for name, spec in roles.items() if spec.pinned]
    needed_bytes = max((together_bytes({*pinned, name}) for name in roles), default=0)
    return ProfilePlan(
        profile=profile.name,
        budget_bytes=budget,
        roles=[_role(name, spec, sizes[spec.model], together_bytes([name])) for name, spec in roles.items()],
        total_bytes=together_bytes(roles),
        resident_together=_fitting_sets(roles, together_bytes, budget),
        needed_bytes=needed_bytes,
        missing_bytes=max(0, needed_bytes - budget),
    )


def plans_by_fit(home: Home, budget_bytes: int, context_length: int | None = None) -> list[ProfilePlan]:
    """Every packaged profile planned within a budget, the best first: those whose pinned roles fit together with their
    largest other role, most demanding first; then the others, those that miss least first. Blocking, as `plan_profile`.
    """
    plans = [plan_profile(load_profile(name), home, budget_bytes, context_length) for name in profile_names()]
    return sorted(plans, key=lambda plan: (plan.missing_bytes, -plan.needed_bytes))


def reserve(
    size: Footprint, roles: Sequence[RoleSpec], cache_bytes: int, mac: bool = _MAC, adapter_bytes: int = 0
) -> Reservation:
    """What a worker reserves to serve `roles`, which share its weights; at least one role.

    Requests of roles that are not pinned share the largest part that one of them asks for (context x concurrency, each
    context rounded up to 256 tokens); pinned ones have theirs beside it. `mac` says for which platform.
    """
    pinned = [spec for spec in roles if spec.pinned]
    shared = [spec for spec in roles if not spec.pinned]
    slots = sum(s.concurrency for s in pinned) + max((s.concurrency for s in shared), default=0)
    pinned_tokens = sum(context_tokens(s) * s.concurrency for s in pinned)
    kv_tokens = pinned_tokens + max((context_tokens(s) * s.concurrency for s in shared), default=0)
    kv_bytes = size.kv.reserved_bytes(kv_tokens, slots, prefill_step_tokens(mac))
    return Reservation(
        weights_bytes=size.weights_bytes + adapter_bytes,
        kv_bytes=kv_bytes,
        transient_bytes=max(size.transient_bytes(spec.context_length, kv_bytes, mac) for spec in roles),
        overhead_bytes=max(PROCESS_OVERHEAD_BYTES, size.overhead_bytes),
        cache_bytes=cache_bytes,
        kv_tokens=kv_tokens,
        slots=slots,
        kv_bytes_per_token=size.kv.per_token_bytes,
        base_tokens=pinned_tokens + max((min(KEPT_TOKENS, context_tokens(s)) for s in shared), default=0),
    )


def adapter_bytes(folder: Path | str | None) -> int:
    """What an adapter's weights take, 0 without one. Raises ModelCorrupt where the folder holds none."""
    found = weights_bytes(Path(folder)) if folder else 0
    if folder and not found:
        advice = "Check the role's `adapter` in the settings."
        raise corrupt(str(folder), f"no safetensors weights in {folder}", advice)
    return found


def context_tokens(spec: RoleSpec, need_tokens: int | None = None) -> int:
    """The role's context, or what of it a request needs, as mlx-lm allocates it, in steps of 256 tokens."""
    return stepped(spec.context_length if need_tokens is None else min(need_tokens, spec.context_length))


def working_set_bytes() -> int | None:
    """Metal's recommended working set on a Mac, else None. Blocking (a process of its own)."""
    if not _MAC:
        return None
    code = "import mlx.core as mx; print(int(mx.device_info()['max_recommended_working_set_size']))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return int(result.stdout) if result.returncode == 0 else None


def _role(name: str, spec: RoleSpec, size: Footprint, reserved_bytes: int) -> dict[str, Any]:
    told = {"source": size.source} if size.source in ("published", "measured") else {}
    return {
        "role": name,
        **spec.model_dump(include={"model", "quantization", "context_length", "concurrency"}),
        "weights_bytes": size.weights_bytes,
        "kv_bytes_per_token": size.kv_bytes_per_token,
        "reserved_bytes": reserved_bytes,
        "bytes_per_8k": 8192 * size.kv_bytes_per_token * spec.concurrency,
        **told,
    }


def _fitting_sets(
    roles: Mapping[str, RoleSpec], together_bytes: Callable[[Iterable[str]], int], budget_bytes: int
) -> list[list[str]]:
    """Every set of roles, all pinned ones in it, that fits the budget and that no other can join; largest first."""
    pinned = {name for name, spec in roles.items() if spec.pinned}
    found: list[list[str]] = []
    for count in range(len(roles), 0, -1):
        for names in itertools.combinations(roles, count):
            new = pinned <= set(names) and not any(set(names) <= set(larger) for larger in found)
            if new and together_bytes(names) <= budget_bytes:
                found.append(list(names))
    return found
