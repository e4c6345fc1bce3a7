"""The cheap checks of a fresh model answer, with details that can go into a retry prompt as they are."""

from __future__ import annotations

from typing import Any

from .arithmetic import arithmetic_check
from .blocks import code_blocks, parse_check
from .contract import Check, Verdict
from .evidence import missing_numbers, read_source
from .form import cut_off, form_checks, refusal
from .json_answer import schema_check
from .text import words

_CITED = frozenset({"summarization", "retrieval"})


def check_answer(
    answer: str,
    *,
    task_type: str,
    question: str,
    evidence: tuple[str, ...],
    schema: dict[str, Any] | None,
    language: str | None,
    finish: str,
    max_words: int | None,
) -> tuple[Check, ...]:
    """Every deterministic check that applies; the first decisive `unsupported` one (`failed`) is worth a retry.

    `finish` is the engine's reason to stop ("length" means cut off). Numbers must stand in `evidence` for summaries
    and cited answers (`task_type` `summarization` or `retrieval`).
    """
    coding = task_type == "coding"
    checks = list(form_checks(answer, question or None, coded=coding or schema is not None))
    checks.append(_decisive("finished", _unfinished(answer, finish, prose=not coding and schema is None)))
    if task_type in ("summarization", "retrieval", "reasoning", "general") and schema is None:
        checks.append(_decisive("refusal", refusal(answer)))
    if schema is not None:
        checks.append(schema_check(answer, schema))
    if coding:
        checks.extend(_code(answer, language))
    elif schema is None:
        checks.append(arithmetic_check(answer))
    if max_words is not None:
        count = len(words(answer))
        fault = f"{count} words; at most {max_words} are allowed" if count > max_words else ""
        checks.append(_decisive("word_limit", fault))
    if task_type in _CITED and any(piece.strip() for piece in evidence):
        source = read_source(evidence)
        checks.extend([missing_numbers(answer, source, question)] if not source.cut else [])
    return tuple(checks)


def failed(checks: tuple[Check, ...]) -> Check | None:
    """The first check that decides against the answer, or None."""
    return next((check for check in checks if check.decisive and check.verdict is Verdict.UNSUPPORTED), None)


def _unfinished(answer: str, finish: str, *, prose: bool) -> str:
    if finish in ("length", "timeout"):
        return f"the answer was cut off ({finish}) and must be shorter"
    return cut_off(answer) if prose else ""


def _code(answer: str, language: str | None) -> list[Check]:
    """`parses` for the language that was asked for, or for each fenced block that names one."""
    if language:
        return [parse_check(answer, language)]
    blocks = code_blocks(answer)
    broken = next((block for block in blocks if block.parses is False), None)
    if broken is not None:
        return [parse_check(broken.code, broken.language)]
    return [_decisive("code", "" if blocks else "the answer holds no fenced code block")]


def _decisive(name: str, fault: str) -> Check:
    verdict = Verdict.UNSUPPORTED if fault else Verdict.ABSTAIN
    return Check(name=name, verdict=verdict, decisive=bool(fault), detail=fault or "nothing found")
