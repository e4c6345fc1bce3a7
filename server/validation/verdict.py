"""The verdict on an output: every check that applies, combined as the contract says."""

from __future__ import annotations

from typing import Any

from rolecall.server.errors import BadRequest

from .arithmetic import arithmetic_check
from .blocks import parse_check
from .contract import Check, Subject, Validation, Verdict
from .evidence import evidence_checks
from .form import form_checks
from .json_answer import schema_check

# Source: precision of each check where it decided, on the rows that evidence.py names (the lower of the two sets;
# `negation` was right in the 4 cases it met, too few to claim more) and on the worked solutions of GSM8K (at most 3
# false alarms in 3,365 equations). A parser, a schema and an empty text leave nothing to measure.
_PRECISION: dict[tuple[str, Verdict], float] = {
    ("schema", Verdict.SUPPORTED): 1.0,
    ("schema", Verdict.UNSUPPORTED): 1.0,
    ("parses", Verdict.SUPPORTED): 1.0,
    ("parses", Verdict.UNSUPPORTED): 1.0,
    ("form", Verdict.UNSUPPORTED): 1.0,
    ("arithmetic", Verdict.SUPPORTED): 1.0,
    ("arithmetic", Verdict.UNSUPPORTED): 0.99,
    ("grounding", Verdict.SUPPORTED): 0.91,
    ("grounding", Verdict.UNSUPPORTED): 0.81,
    ("numbers", Verdict.UNSUPPORTED): 0.8,
    ("negation", Verdict.UNSUPPORTED): 0.75,
    ("overlap", Verdict.SUPPORTED): 0.6,
}


def validate(subject: Subject) -> Validation:
    """Checks an output against its evidence, schema, language or own arithmetic, without a model and without executing.

    Pure and deterministic. Texts are read up to `text.MAX_CHARS`; what rests on an unread rest is an abstention. Odd
    content never raises.
    """
    checks: list[Check] = list(form_checks(subject.output, subject.question, coded=_is_code(subject)))
    if subject.schema_ is not None:
        checks.append(schema_check(subject.output, subject.schema_))
    if subject.language:
        checks.append(parse_check(subject.output, subject.language))
    if not _is_code(subject):
        checks.append(arithmetic_check(subject.output, subject.question))
    if any(piece.strip() for piece in subject.evidence):
        checks.extend(evidence_checks(subject.output, subject.evidence, subject.question))
    return combine(tuple(checks))


def combine(checks: tuple[Check, ...]) -> Validation:
    """The contract's rule, with the measured precision of the surest check that decides."""
    decided = {check.verdict for check in checks if check.decisive}
    for verdict in (Verdict.UNSUPPORTED, Verdict.SUPPORTED):
        if verdict in decided:
            sure = max(_PRECISION.get((c.name, c.verdict), 0.5) for c in checks if c.decisive and c.verdict is verdict)
            return Validation(verdict=verdict, confidence=sure, checks=checks)
    return Validation(verdict=Verdict.ABSTAIN, confidence=0.0, checks=checks)


def _is_code(subject: Subject) -> bool:
    return subject.schema_ is not None or bool(subject.language)


_KEYS: dict[str, tuple[tuple[type, ...], str]] = {
    "id": ((str, int), "a string or an integer"),
    "output": ((str,), "a string"),
    "evidence": ((str, list, type(None)), "a string or a list of strings"),
    "question": ((str, type(None)), "a string"),
    "schema": ((dict, type(None)), "a JSON Schema object"),
    "language": ((str, type(None)), "a language's name"),
}


def subject_from_line(line: Any) -> Subject:
    """The subject of one line `{"id","output","evidence"?,"question"?,"schema"?,"language"?}`.

    Raises:
        BadRequest: not an object, an unknown key, a missing `output`, or a value of the wrong type.
    """
    if not isinstance(line, dict):
        raise BadRequest(
            "A line of the batch is not a JSON object.", found=type(line).__name__, advice="Give one object a line."
        )
    for key, value in line.items():
        if key not in _KEYS:
            raise BadRequest(
                "A line of the batch has an unknown key.",
                found=str(key)[:100],
                allowed=", ".join(_KEYS),
                advice="Remove it.",
            )
        types, wanted = _KEYS[key]
        if not isinstance(value, types) or isinstance(value, bool):
            raise BadRequest(f"`{key}` has the wrong type.", found=type(value).__name__, allowed=wanted)
    if "output" not in line:
        raise BadRequest(
            "A line of the batch has no `output`.", found=", ".join(line) or "{}", allowed=", ".join(_KEYS)
        )
    evidence = line.get("evidence") or ()
    pieces = (evidence,) if isinstance(evidence, str) else tuple(evidence)
    for piece in pieces:
        if not isinstance(piece, str):
            raise BadRequest(
                "`evidence` has the wrong type.",
                found=f"a list with {type(piece).__name__}",
                allowed="a string or a list of strings",
            )
    return Subject(
        output=line["output"],
        evidence=pieces,
        question=line.get("question"),
        schema_=line.get("schema"),
        language=line.get("language"),
    )


def batch_line(id: str | int | None, validation: Validation) -> dict[str, Any]:
    """`{"id","verdict","confidence","checks":[{"name","verdict","decisive","detail"}]}`, ready for `json.dumps`."""
    return {"id": id, **validation.model_dump(mode="json")}
