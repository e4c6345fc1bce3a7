"""The cheap checks of a fresh model answer, with details that can go into a retry prompt as they are."""

from __future__ import annotations

from collections.abc import Callable

from .arithmetic import arithmetic_check
from .blocks import broken_check, code_blocks, parse_check
from .contract import Check, Verdict, fault
from .evidence import missing_numbers
from .form import cut_off, form_checks, refusal
from .text import words

Checker = Callable[[str, str], tuple[Check, ...]]
"""An answer, and the engine's reason to stop, to the checks that apply to it."""


def checker(
    task_type: str,
    question: str,
    *,
    evidence: tuple[str, ...] = (),
    structured: bool = False,
    language: str | None = None,
    max_words: int | None = None,
) -> Checker:
    """Every deterministic check that applies; the first decisive `unsupported` one (`failed`) is worth a retry.

    A `structured` answer's form was checked by then. Numbers must stand in `evidence` for summaries and cited answers
    (`task_type` `summarization` or `retrieval`); others may compute them, so there the check informs.
    """
    coding = task_type == "coding"

    def check(answer: str, finish: str) -> tuple[Check, ...]:
        prose = not coding and not structured
        unfinished = cut_off(answer) if prose else ""
        if finish in ("length", "timeout"):
            unfinished = f"the answer was cut off ({finish}) and must be shorter"
        checks = [*form_checks(answer, question, coded=not prose), fault("finished", unfinished)]
        if coding:
            checks.append(_code(answer, language))
        elif not structured:
            checks.extend([fault("refusal", refusal(answer)), arithmetic_check(answer)])
        if max_words is not None and (count := len(words(answer))) > max_words:
            checks.append(fault("word_limit", f"{count} words; at most {max_words} are allowed"))
        if not coding and any(piece.strip() for piece in evidence):
            numbered = missing_numbers(answer, evidence, question)
            copies = task_type in ("summarization", "retrieval")
            checks.append(numbered.model_copy(update={"decisive": numbered.decisive and copies}))
        if not coding and ("<document" in answer or "</document" in answer):
            checks.append(fault("echo", "the answer repeats the document instead of answering"))
        return tuple(checks)

    return check


def failed(checks: tuple[Check, ...]) -> Check | None:
    """The first check that decides against the answer, or None."""
    return next((check for check in checks if check.decisive and check.verdict is Verdict.UNSUPPORTED), None)


def _code(answer: str, language: str | None) -> Check:
    """`parses` for the language that was asked for, or for the first fenced block that does not parse."""
    if language and (check := parse_check(answer, language)).decisive:
        return check
    if broken := broken_check(answer):
        return broken
    if not (blocks := code_blocks(answer)):
        return fault("code", "the answer holds no fenced code block")
    # It informs: what is asked for under a name without a parser here may be written in one that has (ansible, yaml).
    other = bool(language) and all(block.parses for block in blocks)
    return fault("language", f"no code block is in {language}" if other else "", decisive=False)
