"""Stage 3: ask a role, check the answer, ask once more with the finding, then ask a heavier role, then say so."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread

from rolecall.config.prompts import plain, prompt
from rolecall.roles import contract as roles
from rolecall.roles.contract import (
    Generated,
    GenerationRequest,
    GenerationResult,
    Loading,
    Message,
    Prefilling,
    Queued,
    Role,
    RoleInfo,
    RoleModels,
)  # fmt: skip
from rolecall.roles.errors import PromptTooLong, RoleError, SchemaRefused, WorkerTimeout

from ..routing.contract import TaskType
from ..validation.answer import check_answer, failed
from ..validation.contract import Check, Verdict, fault
from .record import Run
from .states import Event

Checker = Callable[[str, str], tuple[Check, ...]]
"""(answer, finish) to the checks that apply to it."""

MARGIN_TOKENS = 64
"""Kept free for the chat template's own tokens and what a template adds around a thinking model's turn."""

SMALL_BYTES = 1_000_000_000
"""A model below this size is asked for two sentences and given short parts: it invents in the third, and loses a long
text's thread."""

HAND_BACK_S = 0.5
"""Time of a call's budget that is kept for checks and the receipt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What to ask whom. `values` fill the prompt `name`; all but `documents`, delimited already, are made plain.

    Attempts: the role, the role again with the finding, a heavier role. `mends` names the checks whose failure the
    caller mends itself, so that no heavier role is asked for them. `max_tokens` None takes the role's own.
    """

    role: Role
    name: str
    values: Mapping[str, str]
    check: Checker
    max_tokens: int | None = None
    thinking_budget: int | None = None
    schema: dict[str, Any] | None = None
    attempts: int = 3
    mends: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Said:
    """The last answer, its checks, and the decisive one that still fails (None: all is well)."""

    text: str
    checks: tuple[Check, ...]
    failing: Check | None


class Words:
    """What one generation by `role` is doing, in words for whoever waits."""

    def __init__(self, role: Role, clock: Callable[[], float] = time.monotonic) -> None:
        self._role, self._clock = role, clock
        self._first: tuple[int, float] | None = None

    def of(self, event: roles.Event) -> str:
        match event:
            case Queued(position):
                doing = f"waiting, position {position} in the queue"
            case Loading(model, done, total):
                doing = f"loading {model}, {done / 1e9:.2f} of {total / 1e9:.2f} GB"
            case Prefilling(done, total):
                doing = f"reading, {100 * done // max(total, 1)}% of {total} tokens"
            case Generated(_, channel, tokens):
                doing = f"{'thinking' if channel == 'thinking' else 'writing'}, {tokens} tokens"
                if self._first is None:
                    self._first = tokens, self._clock()
                else:
                    count, since = self._first
                    doing += f", {(tokens - count) / max(self._clock() - since, 0.001):.1f} tokens/s"
        return f"{self._role}: {doing}"


async def ask(run: Run, models: RoleModels, wanted: Ask) -> Said:
    """Ask until the checks pass or nobody is left to ask. Goes from MODEL_SELECTION to VALIDATION.

    Raises:
        PromptTooLong: with the figures of this request.
        SchemaRefused: no attempt kept to the form that was asked for.
        Other `RoleError`s of the first attempt; where a later one fails, or would outlast the call's budget, the
        earlier answer stands.
    """
    role, said, failing = wanted.role, None, None
    run.advance(Event.ROLE_SELECTED)
    for attempt in range(1, wanted.attempts + 1):
        left_s, refused, result = run.left_s(), None, None
        try:
            with anyio.fail_after(left_s - HAND_BACK_S if said and left_s else None):
                result = await _generate(run, models, wanted, role, failing)
        except SchemaRefused as error:  # another attempt, or a heavier model, may keep to the form
            refused = error
        except (RoleError, TimeoutError):
            if said is None:
                raise
            run.advance(Event.FELL_BACK)
            return said
        run.advance(Event.GENERATED)
        stopped = result is not None and result.finish == "timeout"
        if result is not None:
            run.tell("checking the answer", None)
            checks = await anyio.to_thread.run_sync(wanted.check, result.text, result.finish)
            failing = failed(checks)
            if stopped and failing is not None and failing.name == "finished":
                failing = None  # said already, as a partial answer
            said = Said(result.text.strip(), checks, failing)
        elif refused:
            failing = fault("schema", refused.found or refused.message)
        run.rounds = max(run.rounds, attempt)
        if failing is None or stopped or attempt == wanted.attempts:
            break
        heavier = role if attempt == 1 else _heavier(models, role, (result or info_of(models, role)).model)
        if heavier is None or (attempt > 1 and failing.name in wanted.mends):
            break
        run.tell(f"checking: {failing.name} failed, asking {heavier}", None)
        for event in (Event.RETRY,) if attempt == 1 else (Event.ESCALATE, Event.ROLE_SELECTED):
            run.advance(event)
        role = heavier
    if said is None:
        assert refused is not None
        raise refused
    return said


def settle(run: Run, said: Said) -> None:
    """Close VALIDATION: note the checks, and mark the answer unverified where a decisive one still fails."""
    run.checks.extend(said.checks)
    if said.failing is not None:
        run.unverified(said.failing)
    for check in said.checks if said.failing is None else ():
        if check.verdict is Verdict.UNSUPPORTED and not check.decisive:
            run.mark("ok", f"Look again: {check.detail}.")
    run.advance(Event.GAVE_UP if said.failing else Event.PASSED)


def checker(
    task_type: TaskType,
    question: str,
    *,
    evidence: tuple[str, ...] = (),
    structured: bool = False,
    language: str | None = None,
    max_words: int | None = None,
) -> Checker:
    def check(text: str, finish: str) -> tuple[Check, ...]:
        checks = check_answer(
            text, task_type=task_type, question=question, evidence=evidence, structured=structured,
            language=language, finish=finish, max_words=max_words,
        )  # fmt: skip
        if ("<document" in text or "</document" in text) and task_type is not TaskType.CODING:
            detail = "the answer repeats the document instead of answering"
            checks += (Check(name="echo", verdict=Verdict.UNSUPPORTED, decisive=True, detail=detail),)
        return checks

    return check


def info_of(models: RoleModels, role: Role) -> RoleInfo:
    return next(info for info in models.roles() if info.role is role)


def is_small(info: RoleInfo) -> bool:
    """Whether a role is answered by a small model, or may be; one on an endpoint (present, of no size here) is not."""
    return info.size_bytes < SMALL_BYTES and not (info.present and info.size_bytes == 0)


async def _generate(run: Run, models: RoleModels, wanted: Ask, role: Role, finding: Check | None) -> GenerationResult:
    info, used = info_of(models, role), prompt(wanted.name)
    values = {name: text if name == "documents" else plain(text) for name, text in wanted.values.items()}
    system, user = used.render(**values)
    if finding is not None:
        run.prompts["retry"] = prompt("retry").sha256
        _, user = prompt("retry").render(user=user, finding=plain(finding.detail.strip().rstrip(".")) + ".")
    max_tokens = min(wanted.max_tokens or info.max_tokens, info.context_length // 2)
    _must_fit(models, info, system + user, max_tokens)
    left_s = run.left_s()
    deadline_s = None if left_s is None else max(0.1, left_s - HAND_BACK_S)
    timeout_s = None if left_s is None or left_s >= info.timeout_s else deadline_s
    request = GenerationRequest(
        messages=(Message(role="system", content=system), Message(role="user", content=user)), max_tokens=max_tokens,
        json_schema=wanted.schema, thinking_budget=wanted.thinking_budget, timeout_s=timeout_s, deadline_s=deadline_s,
        client=run.call.session,
    )  # fmt: skip

    words = Words(role)

    def hear(event: roles.Event) -> None:
        run.tell(words.of(event), None)
        if isinstance(event, Generated) and event.channel == "answer":
            run.on_text(event.text)

    run.on_text("")
    result = await models.generate(role, request, hear)
    run.called(used, result)
    if result.finish == "timeout":
        limit_s = timeout_s or info.timeout_s
        # A complete first answer is worth more than the start of a second one.
        if finding is not None or not result.text.strip():
            raise WorkerTimeout(
                f"The model of {role.value!r} reached its time limit before it answered.",
                allowed=f"{limit_s:.3g} s",
                advice="Ask for less, raise the role's timeout_s, or choose a smaller model.",
            )
        run.mark("partial", f"The model reached its time limit ({limit_s:.3g} s); the answer may be cut off.")
    return result


def _must_fit(models: RoleModels, info: RoleInfo, text: str, max_tokens: int) -> None:
    room = info.context_length - max_tokens - MARGIN_TOKENS
    # Nothing is tokenised that cannot fit: no tokenizer of text averages over 16 characters a token.
    tokens = len(text) // 4 if len(text) > room * 16 else models.count_tokens(info.role, text)
    if tokens > room:
        raise PromptTooLong(
            f"The request with its documents is too long for the role {info.role.value!r}.",
            found=f"about {tokens:,} tokens",
            allowed=f"{room:,} tokens (context {info.context_length:,}, less {max_tokens:,} for the answer)",
            advice="Shorten it; summarize takes documents of any length, and retrieve searches an indexed folder.",
        )


def _heavier(models: RoleModels, role: Role, used_model: str) -> Role | None:
    """The next role up whose model is on disk, no smaller, and not the one that just failed."""
    coding = role in (Role.CODING, Role.CODING_LARGE_CONTEXT)
    order = (Role.CODING_LARGE_CONTEXT if coding else Role.REASONING, Role.REASONING_HEAVY)
    size = max((info.size_bytes for info in models.roles() if info.model == used_model), default=0)
    others = {info.role for info in models.roles() if info.present and (info.size_bytes or size) >= size}
    others -= {role, *(info.role for info in models.roles() if info.model == used_model)}
    return next((other for other in order if other in others), None)
