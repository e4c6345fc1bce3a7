"""Who may be in memory: admission and eviction as pure functions of what is resident and the budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ResidentModel:
    """What the decision may know of one model in memory.

    `reserved_bytes` counts from the start of its load until its memory was seen to come back, without what it would
    give back at once; a pinned one gives back `grown_bytes` of it when nobody uses it. A model that loads is in use if
    anyone waits for it. `next_use` is the probability that it is the next model used; `last_used` rises.
    """

    key: str
    reserved_bytes: int
    grown_bytes: int = 0
    pinned: bool = False
    in_use: int = 0
    ending: bool = False
    reload_s: float = 1.0
    next_use: float = 0.0
    last_used: float = 0.0

    @property
    def freed_bytes(self) -> int:
        """What comes free when nobody uses it."""
        return self.grown_bytes if self.pinned else self.reserved_bytes


@dataclass(frozen=True, slots=True)
class Admit:
    """It fits as things are."""


@dataclass(frozen=True, slots=True)
class Evict:
    """It fits once these have ended, all of them idle now."""

    victims: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """It will fit once these, some of them in use or ending, are gone or (pinned) idle: no new requests before."""

    victims: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refuse:
    """It cannot fit, whatever ends: `possible_bytes` is the budget less what idle pinned models keep."""

    possible_bytes: int


Verdict = Admit | Evict | Wait | Refuse


def worth(model: ResidentModel) -> tuple[float, float, str]:
    """What its memory is worth: seconds of reloading to be expected per byte, then how lately it was used."""
    return (model.reload_s * model.next_use / max(model.reserved_bytes, 1), model.last_used, model.key)


@dataclass(frozen=True, slots=True)
class Policy:
    """How memory is used. The defaults are the product's; the simulator compares them with others.

    `worth` orders the victims; `preloads` what is likely to come next; `idle_ttl_s`, where set, is every model's.
    """

    worth: Callable[[ResidentModel], tuple[float | str, ...]] = worth
    preloads: bool = True
    idle_ttl_s: float | None = None


def admit(need_bytes: int, resident: Sequence[ResidentModel], budget_bytes: int, policy: Policy = Policy()) -> Verdict:
    """Whether a model may come to `need_bytes` beside the `resident` others, and what has to end before.

    Pinned models never end, models in use are waited for, and nothing ends unless the need is met afterwards and not
    without it. First goes what the policy holds of least worth.
    """
    pinned = [model for model in resident if model.pinned and not model.ending]
    possible_bytes = budget_bytes - sum(model.reserved_bytes - model.grown_bytes for model in pinned)
    if need_bytes > possible_bytes:
        return Refuse(possible_bytes)
    missing = need_bytes + sum(model.reserved_bytes for model in resident) - budget_bytes
    if missing <= 0:
        return Admit()
    ending = [model for model in resident if model.ending]
    missing -= sum(model.reserved_bytes for model in ending)
    loose = sorted((model for model in resident if not model.pinned and not model.ending), key=policy.worth)
    idle = [model for model in loose if not model.in_use]
    if 0 < missing <= sum(model.reserved_bytes for model in idle):
        return Evict(_fewest(idle, missing))
    used = [model for model in loose if model.in_use]
    return Wait(tuple(model.key for model in ending) + _fewest(idle + used + pinned, missing))


def shed(resident: Sequence[ResidentModel], budget_bytes: int, policy: Policy = Policy()) -> tuple[Evict, Wait]:
    """What a budget that has become too small asks for: whom to end now, and whom once nobody uses them."""
    missing = sum(model.reserved_bytes for model in resident if not model.ending) - budget_bytes
    loose = sorted((model for model in resident if not model.pinned and not model.ending), key=policy.worth)
    idle = [model for model in loose if not model.in_use]
    now = _fewest(idle, missing)
    missing -= sum(model.reserved_bytes for model in idle if model.key in now)
    return Evict(now), Wait(_fewest([model for model in loose if model.in_use], missing))


def _fewest(candidates: Sequence[ResidentModel], missing_bytes: int) -> tuple[str, ...]:
    """The first candidates that free enough, less those that turn out not to be needed, the best of them first."""
    chosen: list[ResidentModel] = []
    for model in candidates:
        if sum(c.freed_bytes for c in chosen) >= missing_bytes:
            break
        chosen.append(model)
    for model in reversed(chosen[:]):
        if sum(c.freed_bytes for c in chosen) - model.freed_bytes >= missing_bytes:
            chosen.remove(model)
    return tuple(model.key for model in chosen)
