"""The user's rules as a decision applies them: which fire, and what they ask for together.

Their written form and what is refused of it at start: `config.policy`. Rules have no order, so what they ask for is
ranked: deny, then force, then forbid, then prefer; tags are collected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rolecall.config.policy import RoutingRule, folded
from rolecall.roles.contract import Role

from .contract import Agent, Features, State, TaskType


@dataclass(frozen=True, slots=True)
class Effect:
    """What the rules that fire ask for. `forbid` and `prefer` in the order of the roles; `reasons` name the rules."""

    fired: tuple[RoutingRule, ...] = ()
    denied: str = ""
    force: Role | None = None
    forbid: tuple[Role, ...] = ()
    prefer: tuple[Role, ...] = ()
    tags: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


_ASKED = {"deny": "denies it", "force": "forces a role", "forbid": "forbids roles", "prefer": "prefers a role"}


def matched(rules: Sequence[RoutingRule], text: str) -> tuple[str, ...]:
    """The names of the rules whose `contains` is in the text; linear in its length."""
    given = {rule.name: rule.when.contains for rule in rules if rule.when.contains}
    text = folded(text) if given else ""
    return tuple(name for name, phrases in given.items() if any(phrase in text for phrase in phrases))


def effect(
    rules: Sequence[RoutingRule], task_type: TaskType, agent: Agent | None, confidence: float, features: Features,
    state: State,
) -> Effect:  # fmt: skip
    """What the user's rules ask for a request that is of this type, and would be an agent's where one is named."""
    fired = tuple(rule for rule in rules if _fires(rule, task_type, agent, confidence, features, state))
    acting = [rule.then for rule in fired if agent is None or rule.when.agents]
    return Effect(
        fired=fired,
        denied="; ".join(dict.fromkeys(rule.then.deny for rule in fired if rule.then.deny)),
        force=next((Role(then.force) for then in acting if then.force), None),
        forbid=tuple(role for role in Role if any(role in then.forbid for then in acting)),
        prefer=tuple(role for role in Role if any(role == then.prefer for then in acting)),
        tags=tuple(sorted({rule.then.tag for rule in fired if rule.then.tag})),
        reasons=tuple(
            f"the rule {rule.name!r} {words}" for name, words in _ASKED.items() for rule in fired
            if getattr(rule.then, name)
        ),
    )  # fmt: skip


def _fires(
    rule: RoutingRule, task_type: TaskType, agent: Agent | None, confidence: float, features: Features, state: State
) -> bool:
    when, flags = rule.when, set(features.flags)
    return (
        (not when.task_types or task_type.value in when.task_types)
        and (not when.agents or (agent is not None and agent.value in when.agents))
        and (not when.depths or state.depth in when.depths)
        and flags.issuperset(when.flags)
        and flags.isdisjoint(when.without)
        and when.with_paths in (None, features.has_paths)
        and (not when.contains or rule.name in features.matched)
        and when.min_tokens <= features.prompt_tokens <= when.max_tokens
        and when.min_difficulty <= features.difficulty <= when.max_difficulty
        and when.min_confidence <= confidence <= when.max_confidence
    )
