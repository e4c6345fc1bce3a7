"""The routing decision: a pure function of what was read, the policy and the state of the call."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from .choice import Candidate, Choice, choose
from .contract import Agent, Decision, Features, Snapshot, State, TaskType
from .policy import Effect, effect


def decide(features: Features, snapshot: Snapshot, state: State) -> Decision:
    """Who answers: an agent or a role, with confidence and reasons; or that one of the user's rules refuses.

    Same three inputs, same bytes: no clock, no randomness, no I/O. A model missing from disk changes nothing here; the
    model manager finds a stand-in and says so. `confidence` is the chosen type's probability, 1.0 for a claim or a
    type that the caller fixed.
    """
    return weigh(features, snapshot, state)[0]


def weigh(features: Features, snapshot: Snapshot, state: State) -> tuple[Decision, Effect, tuple[Candidate, ...]]:
    """The decision, what the user's rules asked for, and the roles that were weighed."""
    task_type, confidence, reasons = type_of(features, state)
    agent = features.claim.agent if features.claim and task_type is TaskType.TOOL else None
    if task_type is TaskType.RETRIEVAL and not features.has_paths:
        agent = Agent.RETRIEVAL
        reasons.append("the answer stands in indexed documents")
    policy = effect(snapshot.rules, task_type, agent, confidence, features, state)
    reasons += policy.reasons
    denied, choice = policy.denied, Choice(None, "")
    if policy.force is not None:
        agent = None
    if agent is None and not denied:
        choice = choose(task_type, features, snapshot, state, policy)
        reasons.append(choice.reason)
        if choice.role is None and policy.forbid:
            denied = "the rules forbid every role"
    role = choice.role
    made = Decision(
        task_type=task_type, agent=None if denied else agent, role=role.role if role else None,
        model=role.model if role else None, confidence=round(confidence, 6), escalated=escalated(features, state),
        reasons=tuple(reasons), tags=policy.tags, denied=denied, snapshot_sha256=snapshot.sha256, sha256="",
    )  # fmt: skip
    sha256 = canonical_sha256(made.model_dump(mode="json", exclude={"sha256"}))
    return made.model_copy(update={"sha256": sha256}), policy, choice.table


def type_of(features: Features, state: State) -> tuple[TaskType, float, list[str]]:
    """The task type, its probability, and why: the caller's word, a claim, the router model's vote, or the classifier's
    best guess. Of equals the earlier, as in "the first that fits"."""
    if state.fixed_task_type is not None:
        return state.fixed_task_type, 1.0, [f"task type given: {state.fixed_task_type}"]
    if features.claim is not None:
        return TaskType.TOOL, 1.0, list(features.reasons)
    given = features.vote if escalated(features, state) else features.type_scores
    scores = {kind: round(given.get(kind, 0.0), 6) for kind in TaskType}
    best = max(scores, key=lambda kind: scores[kind])
    reasons = list(features.reasons)
    if escalated(features, state):
        reasons.append(f"the classifier was unsure, and the router model says {best}")
    elif features.unasked:
        reasons.append(f"unsure, and not escalated: {features.unasked}")
    return best, scores[best], reasons


def escalated(features: Features, state: State) -> bool:
    """Whether the router model settled the type."""
    return bool(features.vote) and features.claim is None and state.fixed_task_type is None


def canonical_sha256(value: Any) -> str:
    """SHA-256 of `value` as JSON with sorted keys and no spaces; floats must be rounded before."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
