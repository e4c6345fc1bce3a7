"""The user's own routing rules: their written form, and what is refused at start.

Rules have no order. One that can never do anything, and two that could ask opposite things of one request, are errors.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from itertools import combinations
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from .errors import ConfigError
from .models import packaged
from .profile import Strict

Kind = Literal["tool", "retrieval", "reasoning", "coding", "summarization", "validation", "general"]
Agent = Literal["calculator", "units", "datetime", "system", "files", "retrieval"]
Depth = Literal["quick", "normal", "deep"]
Words = Annotated[str, Field(pattern=r"\S")]
Share = Annotated[float, Field(ge=0, le=1)]

_T = TypeVar("_T")
Some = Annotated[
    tuple[_T, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value), Field(strict=False)
]
"""A list, or one entry alone."""


def folded(text: str) -> str:
    """Text as `contains` compares it, whatever its case and spacing."""
    return " ".join(text.casefold().split())


class When(Strict):
    """What a request must be for the rule to fire: all that is given must hold, and of a list one entry (of `flags`
    all, of `without` none). `contains` is looked for as it stands, whatever its case. No conditions: every request."""

    task_types: Some[Kind] = ()
    agents: Some[Agent] = ()
    flags: Some[str] = ()
    without: Some[str] = ()
    depths: Some[Depth] = ()
    with_paths: bool | None = None
    contains: Some[Annotated[Words, AfterValidator(folded)]] = ()
    min_tokens: int = Field(default=0, ge=0)
    max_tokens: int = Field(default=1 << 53, ge=0)  # no request has more
    min_difficulty: Share = 0.0
    max_difficulty: Share = 1.0
    min_confidence: Share = 0.0
    max_confidence: Share = 1.0


class Then(Strict):
    """What the rule does: only this role (`force`), not these (`forbid`), this one where it can (`prefer`), a word for
    the receipt (`tag`), or a refusal in these words (`deny`). `force` takes an agent's place only in a rule that names
    the agent."""

    force: str | None = None
    forbid: Some[str] = ()
    prefer: str | None = None
    tag: str = ""
    deny: str = ""

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(role for role in (self.force, *self.forbid, self.prefer) if role)


class RoutingRule(Strict):
    name: Words
    when: When = When()
    then: Then


class RoutingSettings(Strict):
    """`quality_weight` of quality against cost in choosing a model, 0 to 1. Rules are held in the order of their names:
    the order in the file is no part of the policy."""

    quality_weight: Share = 0.5
    rules: Annotated[
        tuple[RoutingRule, ...],
        Field(strict=False),
        AfterValidator(lambda rules: tuple(sorted(rules, key=lambda rule: rule.name))),
    ] = ()


def check_rules(routing: RoutingSettings, roles: Collection[str], source: str) -> None:
    """Every rule can do something in a profile with these roles, and no two contradict each other. Raises ConfigError:
    naming the rule or rules, and the file `source`."""
    for rule in routing.rules:
        place = f"the routing rule {rule.name!r} of {source}"
        for flag in (*rule.when.flags, *rule.when.without):
            if flag not in known_flags():
                raise ConfigError.unknown("flag", (flag,), known_flags(), place)
        for role in rule.then.roles:
            if role not in roles:
                raise ConfigError.unknown("role of the profile", (role,), roles, place)
        if why := _impossible(rule.when) or _opposed(rule, rule) or _idle(rule):
            raise ConfigError(f"Never of any effect: {place}.", found=why, advice="Mend or remove it.")
    for one, other in combinations(routing.rules, 2):
        if one.name == other.name:
            raise ConfigError(f"Two routing rules in {source} have the name {one.name!r}.", advice="Rename one.")
        if why := _opposed(one, other) or _opposed(other, one):
            raise ConfigError(
                f"The routing rules {one.name!r} and {other.name!r} in {source} contradict each other.",
                found=f"{why}, and a request may meet the conditions of both",
                advice="Remove one, or give them conditions that exclude each other (task_types, without, bounds).",
            )


@cache
def known_flags() -> tuple[str, ...]:
    """The traits that the router reads of a request, as `routing/rules.yaml` defines them."""
    return tuple(sorted(packaged("routing/rules.yaml")["flags"]))


def _impossible(*conditions: When) -> str:
    """Why no request meets all the conditions; "" where one may. Words that a text holds exclude nothing."""

    def common(name: str, every: tuple[str, ...]) -> set[str]:
        return set(every).intersection(*(given for when in conditions if (given := getattr(when, name))))

    for figure in ("tokens", "difficulty", "confidence"):
        least = max(getattr(when, f"min_{figure}") for when in conditions)
        if any(getattr(when, f"max_{figure}") < least for when in conditions):
            return f"min_{figure} is above max_{figure}"
    if {flag for when in conditions for flag in when.flags} & {flag for when in conditions for flag in when.without}:
        return "the same flag is needed and excluded"
    kinds, paths = common("task_types", get_args(Kind)), {when.with_paths for when in conditions} - {None}
    if not (kinds and common("depths", get_args(Depth)) and len(paths) < 2):
        return "they exclude each other"
    able = {"retrieval"} if "retrieval" in kinds and True not in paths else set[str]()
    if "tool" in kinds and all(when.max_confidence == 1 for when in conditions):
        able |= {*get_args(Agent)} - {"retrieval"}
    if any(when.agents for when in conditions) and not common("agents", get_args(Agent)) & able:
        return "none of its agents answers that: retrieval has no paths, the others have type tool and confidence 1"
    return ""


def _opposed(one: RoutingRule, other: RoutingRule) -> str:
    """What `one` asks for and `other` refuses of the same request; "" where they agree or never meet."""
    wanted, then = one.then.force or one.then.prefer, other.then
    if not wanted or _impossible(one.when, other.when) or (other.when.agents and not one.when.agents):
        return ""  # without an agent's name a rule leaves the agent its place, so that it chooses no role
    if one.then.force and then.deny:
        return f"{one.name!r} forces {wanted}, {other.name!r} denies"
    if one.when.agents and not other.when.agents:
        return ""
    if one.then.force and then.force and then.force != wanted:
        return f"{one.name!r} forces {wanted}, {other.name!r} forces {then.force}"
    return f"{one.name!r} asks for {wanted}, {other.name!r} forbids it" if wanted in then.forbid else ""


def _idle(rule: RoutingRule) -> str:
    if rule.then.force or rule.then.tag or rule.then.deny:
        return ""
    if not rule.then.roles:
        return "`then` is empty"
    return "an agent answers without a role: only force, tag or deny mean something" if rule.when.agents else ""
