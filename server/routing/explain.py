"""Why a decision came out as it did, and what would have changed it: found by deciding again, never by guessing."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from .classify import Signals, classify, signals_of
from .contract import Decision, Features, Snapshot, State, TaskType
from .decide import decide, weigh
from .signals import Reading

_STEPS = 20
"""Of the grids that weight and difficulty are tried on."""


def explain(
    reading: Reading, vector: npt.NDArray[np.float32] | None, features: Features, snapshot: Snapshot
) -> dict[str, Any]:
    """JSON-ready: the decision, its signals, the candidates, the user's rules that fired, and `would_change`.

    `would_change.type`: the log odds that the runner-up lacks, and the rule without which another type wins (null:
    none). `would_change.role`: the nearest quality weight, difficulty and prompt length with another role.
    """
    decision, policy, candidates = weigh(features, snapshot, State())
    signals = ([], []) if features.claim else signals_of(reading)
    shown = {"flags", "difficulty", "prompt_tokens", "claim", "type_scores", "vote"}
    return {
        "decision": decision.model_dump(mode="json"),
        "instruction": reading.instruction,
        **features.model_dump(mode="json", include=shown),
        "rules": [{"name": rule.name, "weights": dict(rule.weights)} for rule in signals[0]],
        "candidates": [asdict(each) for each in candidates],
        "user_rules": [rule.model_dump(mode="json", exclude_defaults=True) for rule in policy.fired],
        "would_change": {
            "type": _type_change(reading, vector, features, signals) if features.claim is None else None,
            "role": _role_changes(features, snapshot, decision) if decision.role else [],
        },
    }


def _type_change(
    reading: Reading, vector: npt.NDArray[np.float32] | None, features: Features, signals: Signals
) -> dict[str, Any]:
    best, second = sorted(TaskType, key=lambda kind: -features.type_scores[kind])[:2]
    odds = [math.log(max(features.type_scores[kind], 1e-4)) for kind in (best, second)]
    found = {"runner_up": second.value, "lacks_log_odds": round(odds[0] - odds[1], 3), "rule": None, "then": None}
    rules, buckets = signals
    for rule in sorted(rules, key=lambda rule: -rule.weights.get(best, 0.0)):
        scores, _ = classify(reading, vector, ([each for each in rules if each is not rule], buckets))
        if (other := max(TaskType, key=lambda kind: scores[kind])) is not best:
            return found | {"rule": rule.name, "then": other.value}
    return found


def _role_changes(features: Features, snapshot: Snapshot, decision: Decision) -> list[dict[str, Any]]:
    """The nearest value of each figure at which another role answers; figures that change nothing are left out."""
    shares = [step / _STEPS for step in range(_STEPS + 1)]
    lengths = sorted({choice.context_length for choice in snapshot.roles} | {2**power for power in range(20)})
    tried: tuple[tuple[str, Snapshot | Features, list[Any]], ...] = (
        ("quality_weight", snapshot, shares),
        ("difficulty", features, shares),
        ("prompt_tokens", features, lengths),
    )
    changes = []
    for figure, held, grid in tried:
        now = getattr(held, figure)
        for value in sorted(grid, key=lambda value: abs(value - now)):
            new = held.model_copy(update={figure: value})
            other = decide(features, new, State()) if isinstance(new, Snapshot) else decide(new, snapshot, State())
            if other.role not in (None, decision.role):
                changes.append({"figure": figure, "now": now, "at": value, "role": str(other.role)})
                break
    return changes
