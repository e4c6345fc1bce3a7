"""Whether an answer kept to the schema or regex of its request: checked without any network, and with an end."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from .contract import GenerationRequest
from .errors import SchemaRefused, WorkerTimeout

MAX_REFS = 20_000
"""References followed before a schema is given up on: one that refers to itself twice a level would never end."""
_REPEATED_GROUP = re.compile(r"\)(?:[*+]|\{(?!\d\}))")


def keep_to(request: GenerationRequest, text: str, finish: str, tokens: int) -> None:
    """Raise unless `text` is what the request's constraint asks for; blocking.

    A regex that Python's engine cannot apply safely is the word of the engine that enforced it, for whole answers.

    Raises:
        SchemaRefused: the answer was cut off, or does not keep to the constraint.
        WorkerTimeout: it was cut off by the time limit.
    """
    if request.json_schema is None and request.regex is None:
        return
    problem = _against_schema(text, request.json_schema) if request.json_schema is not None else ""
    if request.regex is not None:
        problem = _against_regex(text, request.regex, finish)
    if not problem:
        return
    if finish == "timeout":
        raise WorkerTimeout(
            "The time limit cut the answer off before it kept to the schema or regex.",
            found=f"{tokens} tokens",
            allowed=f"{request.timeout_s:.3g} s" if request.timeout_s else "the role's timeout_s",
            advice="Give it more time, ask for less, or choose a faster model.",
        )
    if finish == "length":
        problem = f"the answer was cut off after {tokens} tokens ({problem})"
    raise SchemaRefused(
        "The answer does not keep to the schema or regex.",
        found=problem,
        allowed=f"a whole answer within {request.max_tokens} tokens",
        advice="Allow more tokens (max_tokens), or bound its strings, numbers and lists.",
    )


def _against_schema(text: str, schema: dict[str, Any]) -> str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"it is not JSON: {error}"
    kept, why = keeps_to(value, schema)
    return "" if kept else why


def _against_regex(text: str, regex: str, finish: str) -> str:
    try:
        pattern = None if _REPEATED_GROUP.search(regex) else re.compile(regex)
    except re.error:
        pattern = None
    if pattern is None:
        return "" if finish == "stop" else "a regex that cannot be checked on a part"
    return "" if pattern.fullmatch(text) else f"it does not match {regex[:200]!r} as a whole"


def keeps_to(value: Any, schema: dict[str, Any]) -> tuple[bool | None, str]:
    """Whether `value` validates, and why in words that fit into a retry prompt.

    None where the schema itself cannot be applied: invalid, refers outside itself, or might never end.
    """
    import jsonschema
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
        if slow := next((pattern for pattern in _patterns(schema) if _REPEATED_GROUP.search(pattern)), None):
            return None, f"the schema's pattern {slow[:100]!r} repeats a group and may never end"
        # The empty registry has no retriever: a remote $ref is unresolvable, never fetched.
        error = next(_bounded(kind)(schema, registry=Registry()).iter_errors(value), None)
    except jsonschema.exceptions.SchemaError as fault:
        return None, f"the schema is not a valid JSON Schema: {fault.message[:300]}"
    except Unresolvable as fault:
        return None, f"the schema has a $ref that cannot be resolved here: {str(fault)[:300]}"
    except RecursionError:
        return None, "the schema or the value is too deep or too large to be checked"
    except Exception as fault:  # a schema is input: an odd one (a bad pattern, a huge multipleOf) is no crash
        return None, f"the schema cannot be applied: {type(fault).__name__}: {str(fault)[:200]}"
    if error is None:
        return True, "the output validates against the schema"
    return False, f"at {error.json_path[:200]}: {error.message[:300]}"


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
