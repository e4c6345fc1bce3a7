"""Whether an answer kept to the schema or regex of its request: checked without any network, and with an end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from .contract import GenerationRequest
from .errors import SchemaRefused, WorkerTimeout

MAX_REFS = 20_000
"""References followed before a schema is given up on: one that refers to itself twice a level would never end."""
MATCH_TIMEOUT_S = 1.0
_REPEATED_GROUP = re.compile(r"\)(?:[*+]|\{(?!\d\}))")


def keep_to(request: GenerationRequest, text: str, finish: str, tokens: int) -> None:
    """Raise unless `text` is what the request's constraint asks for; blocking.

    A regex that cannot be applied here is the word of the engine that enforced it, for whole answers. Raises
    SchemaRefused: the answer was cut off, or does not keep to the constraint; WorkerTimeout: it was cut off by the time
    limit."""
    problem = ""
    if request.json_schema is not None:
        try:
            kept, why = keeps_to(json.loads(text), request.json_schema)
        except (ValueError, RecursionError) as error:
            kept, why = False, f"it is not JSON: {error}"
        problem = "" if kept else why
    elif request.regex is not None:
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


def _against_regex(text: str, pattern: str, finish: str) -> str:
    import regex

    try:
        whole = regex.fullmatch(pattern, text, timeout=MATCH_TIMEOUT_S, concurrent=True)
    except (regex.error, TimeoutError):
        return "" if finish == "stop" else "a regex that cannot be checked on a part"
    return "" if whole else f"it does not match {pattern[:200]!r} as a whole"


def keeps_to(value: Any, schema: dict[str, Any]) -> tuple[bool | None, str]:
    """Whether `value` validates, and why in words that fit into a retry prompt.

    None where the schema itself cannot be applied: invalid, refers outside itself, or might never end.
    """
    import jsonschema
    from referencing import Registry

    try:
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
        written = json.dumps(schema)
        if '"patternProperties"' in written and _REPEATED_GROUP.search(written):
            return None, "the schema has patternProperties and a pattern that repeats a group: it may never end"
        # The empty registry has no retriever: a remote $ref is unresolvable, never fetched.
        error = next(_bounded(kind)(schema, registry=Registry()).iter_errors(value), None)
    except Exception as fault:  # a schema is input: no error that it causes is one of ours
        return None, f"the schema cannot be applied: {type(fault).__name__}: {getattr(fault, 'message', fault)}"[:300]
    if error is None:
        return True, "the output validates against the schema"
    return False, f"at {error.json_path[:200]}: {error.message[:300]}"


def _bounded(kind: Any) -> Any:
    """The validator class with references counted, past the bound a RecursionError, and patterns timed."""
    import jsonschema
    import regex

    left = iter(range(MAX_REFS))

    def counted(follow: Callable[..., Any]) -> Callable[..., Iterator[Any]]:
        def ref(*args: Any) -> Iterator[Any]:
            if next(left, None) is None:
                raise RecursionError(f"more than {MAX_REFS} references followed")
            yield from follow(*args) or ()

        return ref

    def pattern(validator: Any, wanted: str, text: Any, _: Any) -> Iterator[Any]:
        if isinstance(text, str) and not regex.search(wanted, text, timeout=MATCH_TIMEOUT_S, concurrent=True):
            yield jsonschema.ValidationError(f"{text!r} does not match {wanted!r}")

    refs = {key: counted(follow) for key, follow in kind.VALIDATORS.items() if key.lower().endswith("ref")}
    return jsonschema.validators.extend(kind, {**refs, "pattern": pattern})  # type: ignore[no-untyped-call]
