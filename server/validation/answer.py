"""The cheap checks of a fresh model answer, with details that can go into a retry prompt as they are."""

from __future__ import annotations

from .arithmetic import arithmetic_check
from .blocks import can_parse, code_blocks, parse_check
from .contract import Check, Verdict, fault
from .evidence import missing_numbers, read_source
from .form import cut_off, form_checks, refusal
from .text import words


def check_answer(
    answer: str,
    *,
    task_type: str,
    question: str,
    evidence: tuple[str, ...],
    structured: bool,
    language: str | None,
    finish: str,
    max_words: int | None,
) -> tuple[Check, ...]:
    """Every deterministic check that applies; the first decisive `unsupported` one (`failed`) is worth a retry.

    `finish` is the engine's reason to stop ("length" means cut off); a `structured` answer's form was checked by then.
    Numbers must stand in `evidence` for summaries and cited answers (`task_type` `summarization` or `retrieval`);
    others may compute them, so there the check informs.
    """
    coding = task_type == "coding"
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
        numbered = missing_numbers(answer, read_source(evidence), question)
        copies = task_type in ("summarization", "retrieval")
        checks.append(numbered.model_copy(update={"decisive": numbered.decisive and copies}))
    return tuple(checks)


def failed(checks: tuple[Check, ...]) -> Check | None:
    """The first check that decides against the answer, or None."""
    return next((check for check in checks if check.decisive and check.verdict is Verdict.UNSUPPORTED), None)


def _code(answer: str, language: str | None) -> Check:
    """`parses` for the language that was asked for, or for the first fenced block that does not parse."""
    if language and can_parse(language, answer):
        return parse_check(answer, language)
    blocks = code_blocks(answer)
    broken = next((block for block in blocks if block.parses is False), None)
    if broken is not None:
        return parse_check(broken.code, broken.language)
    if not blocks:
        return fault("code", "the answer holds no fenced code block")
    # It informs: what is asked for under a name without a parser here may be written in one that has (ansible, yaml).
    other = bool(language) and all(block.parses for block in blocks)
    return fault("language", f"no code block is in {language}" if other else "", decisive=False)
