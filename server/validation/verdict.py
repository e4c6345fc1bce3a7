"""The verdict on an output: every check that applies, combined as the contract says."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from rolecall.config.profile import Strict
from rolecall.server.errors import BadRequest

from .arithmetic import arithmetic_check
from .blocks import broken_check, parse_check, parses, schema_check
from .contract import Check, Validation, Verdict
from .evidence import evidence_checks
from .form import form_checks

# Source: precision of each check where it decided, on the rows that evidence.py names (the lower of the two sets;
# `negation` was right in the 4 cases it met, too few to claim more) and on the worked solutions of GSM8K (at most 3
# false alarms in 3,335 equations). A parser, a schema and an empty text leave nothing to measure: 1.
_PRECISION: dict[tuple[str, Verdict], float] = {
    ("arithmetic", Verdict.UNSUPPORTED): 0.99,
    ("grounding", Verdict.SUPPORTED): 0.88,
    ("grounding", Verdict.UNSUPPORTED): 0.81,
    ("numbers", Verdict.UNSUPPORTED): 0.74,
    ("negation", Verdict.UNSUPPORTED): 0.75,
    ("overlap", Verdict.SUPPORTED): 0.6,
}


def validate(
    output: str,
    evidence: tuple[str, ...] = (),
    question: str | None = None,
    schema: dict[str, Any] | None = None,
    language: str | None = None,
) -> Validation:
    """Checks an output against its evidence, schema, language or own arithmetic, without a model and without executing.

    Pure and deterministic. Texts are read up to `text.MAX_CHARS`; what rests on an unread rest is an abstention. Odd
    content never raises.
    """
    coded = schema is not None or bool(language)
    data = not coded and _is_data(output)
    checks = list(form_checks(output, question, coded=coded or data))
    if schema is not None:
        checks.append(schema_check(output, schema))
    if language:
        checks.append(parse_check(output, language))
    elif broken := broken_check(output):
        checks.append(broken)
    if not coded:
        checks.append(arithmetic_check(output, question))
    if any(piece.strip() for piece in evidence):
        # The words of code and data (keys, names, labels) need not stand in the evidence: there they only inform. The
        # numbers of data must, where no schema decides.
        for check in evidence_checks(output, evidence, question):
            decides = check.decisive and not coded and (not data or check.name == "numbers")
            checks.append(check.model_copy(update={"decisive": decides}))
    return combine(tuple(checks))


def _is_data(text: str) -> bool:
    """Whether the whole text is a JSON object or list."""
    return text.lstrip()[:1] in ("{", "[") and parses(text, "json")[0] is True


def combine(checks: tuple[Check, ...]) -> Validation:
    """The contract's rule, with the measured precision of the surest check that decides."""
    for verdict in (Verdict.UNSUPPORTED, Verdict.SUPPORTED):
        sure = [_PRECISION.get((c.name, verdict), 1.0) for c in checks if c.decisive and c.verdict is verdict]
        if sure:
            return Validation(verdict=verdict, confidence=max(sure), checks=checks)
    return Validation(verdict=Verdict.ABSTAIN, confidence=0.0, checks=checks)


def _listed(given: Any) -> Any:
    return [given] if isinstance(given, str) else [] if given is None else given


class _Line(Strict):
    id: str | int | None = None
    output: str
    evidence: Annotated[tuple[str, ...], Field(strict=False), BeforeValidator(_listed)] = ()
    question: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    language: str | None = None


def verdict_line(line: Any) -> dict[str, Any]:
    """`{"id","verdict","confidence","checks":[{"name","verdict","decisive","detail"}]}` for a line of a batch. Raises
    BadRequest: not an object, an unknown key, a missing `output`, or a value of the wrong type."""
    try:
        given = _Line.model_validate(line)
    except ValidationError as fault:
        first = fault.errors(include_url=False)[0]
        why = f"`{str(first['loc'][0])[:100]}`: {first['msg']}" if first["loc"] else "it is not a JSON object"
        raise BadRequest(
            f"A line of the batch cannot be read: {why}.",
            found=f"id {line['id']!r}"[:100] if isinstance(line, dict) and "id" in line else type(line).__name__,
            allowed="an object with the keys id, output, evidence, question, schema, language",
            advice="`output` is required; `evidence` is a string or a list of strings, `schema` an object.",
        ) from None
    found = validate(given.output, given.evidence, given.question, given.schema_, given.language)
    return {"id": given.id, **found.model_dump(mode="json")}
