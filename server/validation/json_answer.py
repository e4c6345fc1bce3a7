"""JSON in a model's answer: found in prose or fences, and checked against a JSON Schema without any network."""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import Any

from rolecall.roles.schema import keeps_to

from .blocks import bound_depth, fenced, refuse_constant, strict_json
from .contract import Check, Verdict, said

MAX_JSON_CHARS = 1_000_000
MAX_STARTS = 100
"""How many opening brackets are tried as the start of a value before the answer counts as having none."""


def schema_check(output: str, schema: dict[str, Any]) -> Check:
    """The decisive check `schema`: the output's JSON value against the schema.

    The whole text is tried first, then its fenced blocks, then the first object or array that stands in prose. It
    abstains where the schema itself cannot be applied.
    """
    try:
        fits, detail = keeps_to(_find_json(output), schema)
    except ValueError as fault:
        fits, detail = False, str(fault)
    return said("schema", {True: Verdict.SUPPORTED, False: Verdict.UNSUPPORTED, None: Verdict.ABSTAIN}[fits], detail)


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
