"""JSON in a model's answer: found in prose or fences, and checked against a JSON Schema without any network."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from .blocks import code_blocks
from .contract import Check, Verdict
from .parses import bound_depth, refuse_constant, strict_json

MAX_JSON_CHARS = 2_000_000
MAX_SCHEMA_STEPS = 100_000
"""Keywords applied before a schema is given up on: one that refers to itself twice a level would never end."""
MAX_STARTS = 200
"""How many opening brackets are tried as the start of a value before the answer counts as having none."""


def parse_json(text: str, schema: dict[str, Any] | None = None) -> tuple[Any | None, str]:
    """The JSON value of an answer, or None and why there is none, in words that fit into a retry prompt.

    The whole text is tried first, then its fenced blocks, then the first object or array that stands in prose. With a
    `schema`, the value must validate against it. A `null` answer is the value None with an empty detail.
    """
    found, value, detail = find_json(text)
    if not found:
        return None, detail
    if schema is not None:
        verdict, detail = against_schema(value, schema)
        if verdict is not Verdict.SUPPORTED:
            return None, detail
    return value, ""


def find_json(text: str) -> tuple[bool, Any, str]:
    """Whether the text holds a JSON value, the value, and else the reason."""
    if len(text) > MAX_JSON_CHARS:
        return False, None, f"the answer has {len(text)} characters; at most {MAX_JSON_CHARS} are read as JSON"
    stripped = text.strip()
    try:
        return True, strict_json(stripped), ""
    except ValueError as error:
        whole = str(error)
    for block in code_blocks(text, check=False)[:MAX_STARTS]:
        try:
            return True, strict_json(block.code.strip()), ""
        except ValueError:
            continue
    return _in_prose(stripped, whole)


def _in_prose(text: str, whole: str) -> tuple[bool, Any, str]:
    decoder = json.JSONDecoder(parse_constant=refuse_constant)
    position, budget = 0, MAX_JSON_CHARS
    for _ in range(MAX_STARTS):
        starts = [at for at in (text.find("{", position), text.find("[", position)) if at >= 0]
        if not starts or budget <= 0:
            break
        start = min(starts)
        try:
            value, _end = decoder.raw_decode(text, start)
            if isinstance(value, dict) or (isinstance(value, list) and value):
                bound_depth(value)
                return True, value, ""
            position = start + 1
        except (ValueError, RecursionError) as error:
            # What was read before the fault is not read again more often than the budget allows.
            budget -= max(1, getattr(error, "pos", start) - start)
            position = start + 1
    return False, None, f"the answer is not JSON: {whole}"


def against_schema(value: Any, schema: dict[str, Any]) -> tuple[Verdict, str]:
    """Whether `value` validates: abstain where the schema itself is invalid or refers outside itself."""
    import jsonschema
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
        if slow := _slow_pattern(schema):
            return Verdict.ABSTAIN, f"the schema's pattern {slow[:100]!r} repeats a repetition and may never end"
        # The empty registry has no retriever: a remote $ref is unresolvable, never fetched.
        error = next(_bounded(kind)(schema, registry=Registry()).iter_errors(value), None)
    except jsonschema.exceptions.SchemaError as fault:
        return Verdict.ABSTAIN, f"the schema is not a valid JSON Schema: {fault.message[:300]}"
    except Unresolvable as fault:
        return Verdict.ABSTAIN, f"the schema has a $ref that cannot be resolved here: {str(fault)[:300]}"
    except (RecursionError, _TooManySteps):
        return Verdict.ABSTAIN, "the schema or the value is too deep or too large to be checked"
    except Exception as fault:  # a schema is input: an odd one (a bad pattern, a huge multipleOf) is no crash
        return Verdict.ABSTAIN, f"the schema cannot be applied: {type(fault).__name__}: {str(fault)[:200]}"
    if error is None:
        return Verdict.SUPPORTED, "the output validates against the schema"
    return Verdict.UNSUPPORTED, f"at {error.json_path[:200]}: {error.message[:300]}"


class _TooManySteps(Exception):
    pass


def _bounded(kind: Any) -> Any:
    """The validator class with every keyword counted, so that the work has a bound that is the same on each run."""
    import jsonschema

    left = MAX_SCHEMA_STEPS

    def counted(keyword: Callable[..., Any]) -> Callable[..., Iterator[Any]]:
        def apply(*args: Any) -> Iterator[Any]:
            nonlocal left
            left -= 1
            if left < 0:
                raise _TooManySteps
            yield from keyword(*args) or ()

        return apply

    return jsonschema.validators.extend(  # type: ignore[no-untyped-call]
        kind, {name: counted(function) for name, function in kind.VALIDATORS.items()}
    )


_NESTED_REPETITION = re.compile(r"[*+}][^()]{0,200}\)[*+{]")


def _slow_pattern(schema: Any) -> str | None:
    stack = [schema]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            patterns = [
                node.get("pattern"),
                *(node["patternProperties"] if isinstance(node.get("patternProperties"), dict) else ()),
            ]
            for pattern in patterns:
                if isinstance(pattern, str) and _NESTED_REPETITION.search(pattern):
                    return pattern
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)
    return None


def schema_check(output: str, schema: dict[str, Any]) -> Check:
    """The decisive check `schema`: the output's JSON value against the schema."""
    found, value, detail = find_json(output)
    verdict = Verdict.UNSUPPORTED
    if found:
        verdict, detail = against_schema(value, schema)
    return Check(name="schema", verdict=verdict, decisive=verdict is not Verdict.ABSTAIN, detail=detail)
