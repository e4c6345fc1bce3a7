"""The routing decision: a pure function of what was read, the policy and the state of the call."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from rolecall.roles.contract import Role

from .contract import Agent, Decision, Features, RoleChoice, Snapshot, State, TaskType

_PREFERRED: dict[TaskType, tuple[Role, ...]] = {
    TaskType.REASONING: (Role.REASONING, Role.REASONING_HEAVY, Role.ROUTER),
    TaskType.CODING: (Role.CODING, Role.CODING_LARGE_CONTEXT, Role.REASONING),
    TaskType.SUMMARIZATION: (Role.SUMMARIZATION, Role.REASONING, Role.CODING_LARGE_CONTEXT),
    TaskType.VALIDATION: (Role.VALIDATION, Role.REASONING, Role.REASONING_HEAVY),
    TaskType.GENERAL: (Role.ROUTER, Role.REASONING, Role.CODING_LARGE_CONTEXT),
    # Over files that were given there is no index to search: the router's model reads them.
    TaskType.RETRIEVAL: (Role.ROUTER, Role.REASONING, Role.CODING_LARGE_CONTEXT),
    # A value that no grammar here can parse still needs exact steps, which is the reasoning role's work.
    TaskType.TOOL: (Role.REASONING, Role.ROUTER),
}


def decide(features: Features, snapshot: Snapshot, state: State) -> Decision:
    """Who answers: an agent or a role, with confidence and reasons.

    Same three inputs, same bytes: no clock, no randomness, no I/O. A model missing from disk changes nothing here; the
    model manager finds a stand-in and says so. `confidence` is the chosen type's probability, 1.0 for a claim or a
    type that the caller fixed.
    """
    claim = features.claim
    reasons = list(features.reasons)
    if state.fixed_task_type is not None:
        task_type, confidence = state.fixed_task_type, 1.0
        reasons = [f"task type given: {task_type}"]
        claim = claim if task_type is TaskType.TOOL else None
    elif claim is not None:
        task_type, confidence = TaskType.TOOL, 1.0
    else:
        scores = {kind: round(features.type_scores.get(kind, 0.0), 6) for kind in TaskType}
        task_type = max(scores, key=lambda kind: scores[kind])  # of equals the earlier, as in "the first that fits"
        confidence = scores[task_type]
    agent, choice = claim.agent if claim is not None else None, None
    if task_type is TaskType.RETRIEVAL and not features.has_paths:
        agent = Agent.RETRIEVAL
        reasons.append("the answer stands in indexed documents")
    if agent is None:
        choice, why = _role(task_type, features.prompt_tokens, snapshot, state)
        reasons.append(why)
    content: dict[str, Any] = {
        "task_type": task_type.value,
        "agent": agent.value if agent else None,
        "role": choice.role.value if choice else None,
        "model": choice.model if choice else None,
        "confidence": round(confidence, 6),
        "escalated": False,
        "reasons": tuple(reasons),
        "snapshot_sha256": snapshot.sha256,
    }
    return Decision.model_validate({**content, "sha256": canonical_sha256(content)})


def _role(task_type: TaskType, prompt_tokens: int, snapshot: Snapshot, state: State) -> tuple[RoleChoice | None, str]:
    by_role = {choice.role: choice for choice in snapshot.roles}
    wanted = list(_PREFERRED[task_type])
    if state.depth == "deep" and task_type in (TaskType.REASONING, TaskType.TOOL):
        wanted.insert(0, Role.REASONING_HEAVY)
    if state.depth == "quick" and task_type is TaskType.REASONING:
        wanted.insert(0, Role.ROUTER)
    candidates = [by_role[role] for role in wanted if role in by_role]
    for choice in candidates:
        if prompt_tokens < choice.context_length:
            if choice is candidates[0]:
                return choice, f"{task_type} goes to {choice.role}"
            return choice, f"about {prompt_tokens} tokens exceed {candidates[0].role}, so {choice.role}"
    widest = max(candidates or list(snapshot.roles), key=lambda choice: choice.context_length, default=None)
    if widest is None:
        return None, "the profile has no role for this"
    return widest, f"about {prompt_tokens} tokens exceed every context; {widest.role} is the widest"


def canonical_sha256(value: Any) -> str:
    """SHA-256 of `value` as JSON with sorted keys and no spaces; floats must be rounded before."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
