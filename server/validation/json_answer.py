"""JSON in a model's answer: found in prose or fences, and checked against a JSON Schema without any network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from .blocks import bound_depth, fenced, refuse_constant, strict_json
from .contract import Check, Verdict
from .said import said

MAX_JSON_CHARS = 1_000_000
MAX_REFS = 20_000
"""References followed before a schema is given up on: one that refers to itself twice a level would never end."""
MAX_STARTS = 100
"""How many opening brackets are tried as the start of a value before the answer counts as having none."""
_REPEATED_GROUP = re.compile(r"\)(?:[*+]|\{(?!\d\}))")


def parse_json(text: str, schema: dict[str, Any] | None = None) -> tuple[Any | None, str]:
    """The JSON value of an answer, or None and why there is none, in words that fit into a retry prompt.

    The whole text is tried first, then its fenced blocks, then the first object or array that stands in prose. With a
    `schema`, the value must validate against it. A `null` answer is the value None with an empty detail.
    """
    try:
        value = _find_json(text)
    except ValueError as fault:
        return None, str(fault)
    if schema is not None:
        verdict, detail = against_schema(value, schema)
        if verdict is not Verdict.SUPPORTED:
            return None, detail
    return value, ""


def schema_check(output: str, schema: dict[str, Any]) -> Check:
    """The decisive check `schema`: the output's JSON value against the schema."""
    try:
        return said("schema", *against_schema(_find_json(output), schema))
    except ValueError as fault:
        return said("schema", Verdict.UNSUPPORTED, str(fault))


def against_schema(value: Any, schema: dict[str, Any]) -> tuple[Verdict, str]:
    """Whether `value` validates: abstain where the schema itself is invalid or refers outside itself."""
    import jsonschema
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
        if slow := next((pattern for pattern in _patterns(schema) if _REPEATED_GROUP.search(pattern)), None):
            return Verdict.ABSTAIN, f"the schema's pattern {slow[:100]!r} repeats a group and may never end"
        # The empty registry has no retriever: a remote $ref is unresolvable, never fetched.
        error = next(_bounded(kind)(schema, registry=Registry()).iter_errors(value), None)
    except jsonschema.exceptions.SchemaError as fault:
        return Verdict.ABSTAIN, f"the schema is not a valid JSON Schema: {fault.message[:300]}"
    except Unresolvable as fault:
        return Verdict.ABSTAIN, f"the schema has a $ref that cannot be resolved here: {str(fault)[:300]}"
    except RecursionError:
        return Verdict.ABSTAIN, "the schema or the value is too deep or too large to be checked"
    except Exception as fault:  # a schema is input: an odd one (a bad pattern, a huge multipleOf) is no crash
        return Verdict.ABSTAIN, f"the schema cannot be applied: {type(fault).__name__}: {str(fault)[:200]}"
    if error is None:
        return Verdict.SUPPORTED, "the output validates against the schema"
    return Verdict.UNSUPPORTED, f"at {error.json_path[:200]}: {error.message[:300]}"


def _bounded(kind: Any) -> Any:
    """The validator class with references counted; past the bound a RecursionError."""
    import jsonschema

    left = iter(range(MAX_REFS))

    def ref(*args: Any) -> Iterator[Any]:
        if next(left, None) is None:
            raise RecursionError
        yield from kind.VALIDATORS["$ref"](*args) or ()

    return jsonschema.validators.extend(kind, {"$ref": ref})  # type: ignore[no-untyped-call]


def _patterns(schema: Any) -> Iterator[str]:
    """Every regular expression of a schema."""
    for key, child in schema.items() if isinstance(schema, dict) else ():
        if key == "pattern" and isinstance(child, str):
            yield child
        elif key == "patternProperties" and isinstance(child, dict):
            yield from child
    for child in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _patterns(child)


def _find_json(text: str) -> Any:
    """The first JSON value of the text; a ValueError says why there is none."""
    if len(text) > MAX_JSON_CHARS:
        raise ValueError(f"the answer has {len(text)} characters; at most {MAX_JSON_CHARS} are read as JSON")
    try:
        return strict_json(text.strip())
    except ValueError as error:
        whole = str(error)
    for _, code in fenced(text)[:MAX_STARTS]:
        try:
            return strict_json(code)
        except ValueError:
            continue
    decoder = json.JSONDecoder(parse_constant=refuse_constant)
    for start in islice(re.finditer(r"\{|\[", text), MAX_STARTS):
        try:
            value, _end = decoder.raw_decode(text, start.start())
            bound_depth(value)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) or value:
            return value
    raise ValueError(f"the answer is not JSON: {whole}")
