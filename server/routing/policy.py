"""The user's rules as a decision applies them: which fire, and what they ask for together.

Their written form and what is refused of it at start: `config.policy`. Rules have no order, so what they ask for is
ranked: deny, then force, then forbid, then prefer; tags are collected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rolecall.config.policy import RoutingRule
from rolecall.roles.contract import Role

from .contract import Agent, Features, PolicyRule, State, TaskType

_ALTERNATIVES = "\n"
"""Between the phrases of `contains`; a text's own white space counts as single spaces."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What the rules that fire ask for. `forbid` and `prefer` in the order of the roles; `reasons` name the rules."""

    fired: tuple[PolicyRule, ...] = ()
    denied: str = ""
    force: Role | None = None
    forbid: tuple[Role, ...] = ()
    prefer: tuple[Role, ...] = ()
    tags: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


def compiled(rules: Sequence[RoutingRule]) -> tuple[PolicyRule, ...]:
    """The rules in the order of their names, so that the order in the file is no part of the policy."""
    made = (
        PolicyRule.model_validate(
            rule.when.model_dump() | rule.then.model_dump()
            | {"name": rule.name, "contains": _ALTERNATIVES.join(map(_plain, rule.when.contains))}
        )
        for rule in rules
    )  # fmt: skip
    return tuple(sorted(made, key=lambda rule: rule.name))


def matched(rules: Sequence[PolicyRule], text: str) -> tuple[str, ...]:
    """The names of the rules whose `contains` is in the text; linear in its length."""
    if not any(rule.contains for rule in rules):
        return ()
    plain = _plain(text)
    given = {rule.name: rule.contains.split(_ALTERNATIVES) for rule in rules if rule.contains}
    return tuple(name for name, phrases in given.items() if any(phrase in plain for phrase in phrases))


def effect(
    rules: Sequence[PolicyRule], task_type: TaskType, agent: Agent | None, confidence: float, features: Features,
    state: State,
) -> Effect:  # fmt: skip
    """What the user's rules ask for a request that is of this type, and would be an agent's where one is named."""
    fired = tuple(rule for rule in rules if _fires(rule, task_type, agent, confidence, features, state))
    if not fired:
        return Effect()
    acting = [rule for rule in fired if agent is None or rule.agents]
    forced = next((rule.force for rule in acting if rule.force), None)
    asked = (
        ("denies it", "deny"),
        ("forces a role", "force"),
        ("forbids roles", "forbid"),
        ("prefers a role", "prefer"),
    )
    return Effect(
        fired=fired,
        denied="; ".join(dict.fromkeys(rule.deny for rule in fired if rule.deny)),
        force=forced,
        forbid=tuple(role for role in Role if any(role in rule.forbid for rule in acting)),
        prefer=tuple(role for role in Role if any(role is rule.prefer for rule in acting)),
        tags=tuple(sorted({rule.tag for rule in fired if rule.tag})),
        reasons=tuple(
            f"the rule {rule.name!r} {words}" for words, name in asked for rule in fired if getattr(rule, name)
        ),
    )


def _fires(
    rule: PolicyRule, task_type: TaskType, agent: Agent | None, confidence: float, features: Features, state: State
) -> bool:
    flags = set(features.flags)
    return (
        (not rule.task_types or task_type in rule.task_types)
        and (not rule.agents or agent in rule.agents)
        and (not rule.depths or state.depth in rule.depths)
        and flags.issuperset(rule.flags)
        and flags.isdisjoint(rule.without)
        and rule.with_paths in (None, features.has_paths)
        and (not rule.contains or rule.name in features.matched)
        and rule.min_tokens
        <= features.prompt_tokens
        <= (features.prompt_tokens if rule.max_tokens is None else rule.max_tokens)
        and rule.min_difficulty <= features.difficulty <= rule.max_difficulty
        and rule.min_confidence <= confidence <= rule.max_confidence
    )


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
