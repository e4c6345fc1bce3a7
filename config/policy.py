"""The user's own routing rules: their written form, and what is refused at start.

Rules have no order. One that can never do anything, and two that could ask opposite things of one request, are errors.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from functools import cache
from itertools import combinations
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from .errors import ConfigError
from .models import packaged
from .profile import Strict

Kind = Literal["tool", "retrieval", "reasoning", "coding", "summarization", "validation", "general"]
Agent = Literal["calculator", "units", "datetime", "system", "files", "retrieval"]
Depth = Literal["quick", "normal", "deep"]
Words = Annotated[str, Field(min_length=1, pattern=r"\S")]
Share = Annotated[float, Field(ge=0, le=1)]

_one_or_more = BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)


class When(Strict):
    """What a request must be for the rule to fire: all that is given must hold, and of a list one entry (of `flags`
    all, of `without` none). `contains` is looked for as it stands, whatever its case. No conditions: every request."""

    task_types: Annotated[tuple[Kind, ...], _one_or_more, Field(strict=False)] = ()
    agents: Annotated[tuple[Agent, ...], _one_or_more, Field(strict=False)] = ()
    flags: Annotated[tuple[str, ...], _one_or_more, Field(strict=False)] = ()
    without: Annotated[tuple[str, ...], _one_or_more, Field(strict=False)] = ()
    depths: Annotated[tuple[Depth, ...], _one_or_more, Field(strict=False)] = ()
    with_paths: bool | None = None
    contains: Annotated[tuple[Words, ...], _one_or_more, Field(strict=False)] = ()
    min_tokens: int = Field(default=0, ge=0)
    max_tokens: int | None = Field(default=None, ge=0)
    min_difficulty: Share = 0.0
    max_difficulty: Share = 1.0
    min_confidence: Share = 0.0
    max_confidence: Share = 1.0


class Then(Strict):
    """What the rule does: only this role (`force`), not these (`forbid`), this one where it can (`prefer`), a word for
    the receipt (`tag`), or a refusal in these words (`deny`). `force` takes an agent's place only in a rule that names
    the agent."""

    force: str | None = None
    forbid: Annotated[tuple[str, ...], _one_or_more, Field(strict=False)] = ()
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
    """`quality_weight` of quality against cost in choosing a model, 0 to 1."""

    quality_weight: Share = 0.5
    rules: Annotated[tuple[RoutingRule, ...], Field(strict=False)] = ()


def routing_of(data: Any, roles: Collection[str], source: str) -> RoutingSettings:
    """The `routing:` section of a file of settings, checked against the profile's roles.

    Raises:
        ConfigError: naming the rule or rules and `source`.
    """
    try:
        routing = RoutingSettings.model_validate(data or {})
    except ValidationError as error:
        raise _malformed(error, data, source) from None
    return checked(routing, roles, source)


def checked(routing: RoutingSettings, roles: Collection[str], source: str) -> RoutingSettings:
    """The same, once its form is right: every rule can do something, and no two contradict. Raises as `routing_of`."""
    names = [rule.name for rule in routing.rules]
    for rule in routing.rules:
        for flag in (*rule.when.flags, *rule.when.without):
            if flag not in known_flags():
                raise _unknown(f"flag in rule {rule.name!r}", flag, known_flags(), source)
        for role in rule.then.roles:
            if role not in roles:
                raise _unknown(f"role of the profile in rule {rule.name!r}", role, roles, source)
        if names.count(rule.name) > 1:
            raise ConfigError(f"Two routing rules in {source} have the name {rule.name!r}.", advice="Rename one.")
        if why := _useless(rule.when, rule.then):
            raise ConfigError(
                f"The routing rule {rule.name!r} in {source} can never do anything.",
                found=why,
                advice="Mend or remove it.",
            )
    for one, other in combinations(routing.rules, 2):
        if why := _opposed(one, other) or _opposed(other, one):
            raise ConfigError(
                f"The routing rules {one.name!r} and {other.name!r} in {source} contradict each other.",
                found=f"{why}, and a request may meet the conditions of both",
                advice="Remove one, or give them conditions that exclude each other (task_types, without, bounds).",
            )
    return routing


@cache
def known_flags() -> tuple[str, ...]:
    """The traits that the router reads of a request, as `routing/rules.yaml` defines them."""
    return tuple(sorted(packaged("routing/rules.yaml")["flags"]))


def _useless(when: When, then: Then) -> str:
    """Why the rule can never fire, or has no effect where it does; "" where it may."""
    bounds = {
        "tokens": (when.min_tokens, when.max_tokens if when.max_tokens is not None else when.min_tokens),
        "difficulty": (when.min_difficulty, when.max_difficulty),
        "confidence": (when.min_confidence, when.max_confidence),
    }
    kinds = _kinds(when)
    reasons = {
        **{f"min_{name} is above max_{name}": low > high for name, (low, high) in bounds.items()},
        "the same flag is needed and excluded": bool({*when.flags} & {*when.without}),
        f"none of its agents answers {', '.join(when.task_types)}": not kinds,
        "retrieval is the agent only of requests without paths": when.agents == ("retrieval",)
        and bool(when.with_paths),
        "a computed answer has confidence 1": when.agents not in ((), ("retrieval",))
        and "retrieval" not in when.agents
        and when.max_confidence < 1,
        "`then` is empty": not (then.roles or then.tag or then.deny),
        "an agent answers without a role: only force, tag or deny mean something": bool(when.agents)
        and not (then.force or then.tag or then.deny),
        "it denies and names a role": bool(then.deny and then.roles),
        "it forbids the role that it forces or prefers": bool({then.force, then.prefer} & {*then.forbid}),
        "it forces one role and prefers another": bool(then.force and then.prefer),
    }
    return next((why for why, holds in reasons.items() if holds), "")


def _opposed(one: RoutingRule, other: RoutingRule) -> str:
    """What `one` asks for and `other` refuses of the same request; "" where they agree or never meet."""
    wanted, then = one.then.force or one.then.prefer, other.then
    if not wanted or not _meet(one.when, other.when) or (other.when.agents and not one.when.agents):
        return ""  # without an agent's name a rule leaves the agent its place, so that it chooses no role
    if one.then.force and then.deny:
        return f"{one.name!r} forces {wanted}, {other.name!r} denies"
    if one.when.agents and not other.when.agents:
        return ""
    if one.then.force and then.force and then.force != wanted:
        return f"{one.name!r} forces {wanted}, {other.name!r} forces {then.force}"
    return f"{one.name!r} asks for {wanted}, {other.name!r} forbids it" if wanted in then.forbid else ""


def _kinds(when: When) -> set[str]:
    """The task types of requests that may meet the conditions."""
    kinds = set(when.task_types or Kind.__args__)  # type: ignore[attr-defined]
    return kinds & {"retrieval" if agent == "retrieval" else "tool" for agent in when.agents} if when.agents else kinds


def _meet(one: When, other: When) -> bool:
    """Whether a request can meet both conditions; words that a text holds exclude nothing."""
    apart = (
        not _kinds(one) & _kinds(other),
        bool(one.agents and other.agents) and not {*one.agents} & {*other.agents},
        bool(one.depths and other.depths) and not {*one.depths} & {*other.depths},
        bool({*one.flags} & {*other.without} or {*other.flags} & {*one.without}),
        None not in (one.with_paths, other.with_paths) and one.with_paths != other.with_paths,
        any(a.max_tokens is not None and a.max_tokens < b.min_tokens for a, b in ((one, other), (other, one))),
        max(one.min_difficulty, other.min_difficulty) > min(one.max_difficulty, other.max_difficulty),
        max(one.min_confidence, other.min_confidence) > min(one.max_confidence, other.max_confidence),
    )
    return not any(apart)


def _malformed(error: ValidationError, data: Any, source: str) -> ConfigError:
    """The first thing wrong with the written form, unknown keys before all."""
    first = min(error.errors(), key=lambda wrong: wrong["type"] != "extra_forbidden")
    loc, what = list(first["loc"]), "the section `routing`"
    form: type[Strict] = RoutingSettings
    if loc[0] == "rules" and len(loc) > 1:
        number, entry = loc[1], data["rules"][loc[1]]
        name = entry.get("name") if isinstance(entry, dict) else None
        what = f"the routing rule {name!r}" if name else f"routing rule number {int(number) + 1}"
        loc = loc[2:]
        parts: dict[Any, type[Strict]] = {"when": When, "then": Then} if len(loc) > 1 else {}
        form = parts.get(loc[0] if loc else "", RoutingRule)
    if first["type"] == "extra_forbidden":
        return _unknown(f"signal or key in {what}", str(loc[-1]), form.model_fields, source)
    return ConfigError(
        f"Invalid {'.'.join(map(str, loc)) or 'form'} of {what} in {source}.",
        found=repr(first.get("input"))[:100],
        allowed=first["msg"].removeprefix("Input should be "),
        advice="Correct the value.",
    )


def _unknown(what: str, name: str, names: Iterable[str], source: str) -> ConfigError:
    names = list(names)
    near = difflib.get_close_matches(name, names, n=1)
    advice = f"Did you mean {near[0]!r}?" if near else "Name one of these, or remove it."
    return ConfigError(f"Unknown {what} in {source}.", found=name, allowed=", ".join(names), advice=advice)
