"""JSON-Schema requests of the kinds that users send: records to extract, labels, lists, settings, tool arguments.

Seeded. About one in twelve asks for what a grammar cannot promise (unique items, conditions, arithmetic on lengths),
since users do that too: those may be refused. Bounds are stated where users state them: not everywhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]
TEXTS = (
    "Maria Lopez, 34, joined the Lisbon office in 2019. She speaks Portuguese and English and manages nine people.",
    "The harbour crane lifts at most 43 tonnes. It was built in 1974, repainted in 2011, and is inspected every May.",
    "Order 7731: two lamps at 18 euros each and one desk at 240 euros, to be delivered to Turin by Friday. Paid.",
    "I waited forty minutes for cold soup, but the waiter was kind and the view over the river was wonderful.",
    "The build failed on main after commit 4f2a9c: test_login timed out twice. Restarting the runner did not help.",
    "Flight LH 1178 leaves Munich at 09:15 and lands in Madrid at 11:50; gate K12, seat 23A, one checked bag.",
)


@dataclass(frozen=True)
class SchemaRequest:
    """`kind` names the shape; `hard` marks what a grammar cannot promise."""

    kind: str
    schema: Schema
    text: str
    hard: bool

    @property
    def prompt(self) -> str:
        return f"{self.text}\n\nGive the facts of this text as JSON."


def schema_requests(count: int, seed: int) -> list[SchemaRequest]:
    rng = random.Random(seed)
    found = []
    for number in range(count):
        hard = number % 12 == 11
        make = rng.choice(HARD if hard else KINDS)
        found.append(SchemaRequest(make.__name__, make(rng), rng.choice(TEXTS), hard))
    return found


def _record(properties: dict[str, Schema], rng: random.Random, closed: bool | None = None) -> Schema:
    names = list(properties)
    required = [name for name in names if rng.random() < 0.8] or names[:1]
    schema: Schema = {"type": "object", "properties": properties, "required": required}
    if closed if closed is not None else rng.random() < 0.8:
        schema["additionalProperties"] = False
    return schema


def _words(rng: random.Random, count: int) -> list[str]:
    return rng.sample(["low", "high", "open", "closed", "food", "travel", "work", "urgent", "late", "sold"], count)


def _name(rng: random.Random) -> Schema:
    return {"type": "string", "minLength": 1, "maxLength": rng.choice((20, 30, 40))}


def label(rng: random.Random) -> Schema:
    return _record({"label": {"enum": _words(rng, rng.randint(2, 5))}}, rng, closed=True)


def bare_label(rng: random.Random) -> Schema:
    return {"enum": _words(rng, 4)}


def person(rng: random.Random) -> Schema:
    fields = {
        "name": _name(rng),
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "city": {"type": ["string", "null"], "maxLength": 30},
        "manager": {"type": "boolean"},
    }
    return _record(fields, rng, closed=True)


def order(rng: random.Random) -> Schema:
    line = _record({"item": _name(rng), "count": {"type": "integer", "minimum": 1, "maximum": 99}}, rng, closed=True)
    fields = {
        "order_id": {"type": "integer", "minimum": 1, "maximum": 99999},
        "lines": {"type": "array", "items": line, "minItems": 1, "maxItems": rng.randint(2, 3)},
        "paid": {"type": "boolean"},
    }
    return _record(fields, rng, closed=True)


def tags(rng: random.Random) -> Schema:
    return {"type": "array", "items": {"enum": _words(rng, 6)}, "minItems": 1, "maxItems": rng.randint(2, 5)}


def names(rng: random.Random) -> Schema:
    return _record({"names": {"type": "array", "items": _name(rng), "maxItems": 4}}, rng, closed=True)


def choice(rng: random.Random) -> Schema:
    kinds = [
        {"type": "object", "properties": {"kind": {"const": kind}, "size": {"type": "integer", "minimum": 0,
         "maximum": 100}}, "required": ["kind", "size"], "additionalProperties": False}
        for kind in _words(rng, 3)
    ]  # fmt: skip
    return {rng.choice(("anyOf", "oneOf")): kinds}


def referring(rng: random.Random) -> Schema:
    point = _record({axis: {"type": "integer", "minimum": 0, "maximum": 999} for axis in ("x", "y")}, rng, closed=True)
    ends = {"start": {"$ref": "#/$defs/point"}, "end": {"$ref": "#/$defs/point"}}
    return {"$defs": {"point": point}, **_record(ends, rng, closed=True)}


def dated(rng: random.Random) -> Schema:
    date: Schema = rng.choice(
        ({"type": "string", "format": "date"}, {"type": "string", "pattern": r"^\d{4}-\d\d-\d\d$"})
    )
    return _record({"day": date, "done": {"type": "boolean"}}, rng, closed=True)


def coded(rng: random.Random) -> Schema:
    pattern = rng.choice((r"^[A-Z]{2} ?\d{3,4}$", r"^[a-f0-9]{6}$", r"^(gate|seat) [A-Z]?\d{1,2}$"))
    return _record({"code": {"type": "string", "pattern": pattern}}, rng, closed=True)


def tool_arguments(rng: random.Random) -> Schema:
    given = _record(
        {"query": _name(rng), "limit": {"type": "integer", "minimum": 1, "maximum": 50}}, rng, closed=True
    )  # fmt: skip
    fields = {"tool": {"enum": ["search", "read", "stop"]}, "arguments": given}
    return _record(fields, rng, closed=True) | {"required": ["tool", "arguments"]}


def scored(rng: random.Random) -> Schema:
    properties = {name: {"type": "integer", "minimum": 1, "maximum": 5} for name in _words(rng, 3)}
    return _record(properties | {"reason": {"type": "string", "maxLength": 60}}, rng, closed=True)


def described(rng: random.Random) -> Schema:
    """As pydantic writes it: titles, descriptions, defaults and null alternatives."""
    title = {"title": "Title", "type": "string", "maxLength": 40, "description": "A short title."}
    year = {"anyOf": [{"type": "integer", "minimum": 1900, "maximum": 2100}, {"type": "null"}], "default": None}
    return {**_record({"title": title, "year": year}, rng, closed=True), "title": "Note"}


def free_text(rng: random.Random) -> Schema:
    """No length is stated: only the token limit bounds it."""
    return _record({"summary": {"type": "string"}}, rng, closed=True)


def priced(rng: random.Random) -> Schema:
    return _record(
        {"price": {"type": "number", "minimum": 0, "maximum": 1000}, "currency": {"enum": ["EUR", "USD"]}}, rng
    )


def open_record(rng: random.Random) -> Schema:
    """Extra properties are left allowed, as by default."""
    return _record({"topic": {"enum": _words(rng, 4)}, "short": {"type": "boolean"}}, rng, closed=False)


def unique_items(rng: random.Random) -> Schema:
    return {"type": "array", "items": {"enum": _words(rng, 5)}, "uniqueItems": True, "maxItems": 4}


def conditional(rng: random.Random) -> Schema:
    fields = {"kind": {"enum": ["a", "b"]}, "size": {"type": "integer", "minimum": 0, "maximum": 9}}
    when = {"if": {"properties": {"kind": {"const": "a"}}}, "then": {"required": ["size"]}}
    return {**_record(fields, rng, closed=True), **when}


def keyed(rng: random.Random) -> Schema:
    values = {"type": "integer", "minimum": 0, "maximum": 9}
    return {"type": "object", "propertyNames": {"maxLength": 8}, "additionalProperties": values, "maxProperties": 3}


def negated(rng: random.Random) -> Schema:
    return _record({"word": {"type": "string", "maxLength": 12, "not": {"enum": _words(rng, 2)}}}, rng, closed=True)


KINDS: tuple[Callable[[random.Random], Schema], ...] = (
    label, bare_label, person, order, tags, names, choice, referring, dated, coded, tool_arguments, scored, described,
    free_text, priced, open_record,
)  # fmt: skip
HARD: tuple[Callable[[random.Random], Schema], ...] = (unique_items, conditional, keyed, negated)
