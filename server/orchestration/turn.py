"""One turn of a role's model: the prompt filled, the time bounded, the progress told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import anyio

from rolecall.config.prompts import plain, prompt
from rolecall.roles import contract as roles
from rolecall.roles.contract import GenerationRequest, GenerationResult, Message, Role, RoleInfo, RoleModels
from rolecall.roles.errors import PromptTooLong, RoleError, WorkerTimeout

from ..validation.contract import Check
from .record import Run

MARGIN_TOKENS = 64
"""Kept free for the chat template's own tokens and what a template adds around a thinking model's turn."""

SMALL_BYTES = 1_000_000_000
"""A model below this size is asked for two sentences and given short parts: it invents in the third, and loses a long
text's thread. It plans nothing, judges nothing and is offered no tools."""

HAND_BACK_S = 0.5
"""Time of a call's budget that is kept for checks and the receipt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What to ask whom. `values` fill the prompt `name`; all but `documents`, delimited already, are made plain.

    `max_tokens` None takes the role's own.
    """

    role: Role
    name: str
    values: Mapping[str, str]
    max_tokens: int | None = None
    thinking_budget: int | None = None
    schema: dict[str, Any] | None = None


class Words:
    """What one generation by `role` is doing, in words for whoever waits."""

    def __init__(self, role: Role, clock: Callable[[], float] = time.monotonic) -> None:
        self._role, self._clock = role, clock
        self._first: tuple[int, float] | None = None

    def of(self, event: roles.Event) -> str:
        match event:
            case roles.Queued(position):
                doing = f"waiting, position {position} in the queue"
            case roles.Loading(model, done, total):
                doing = f"loading {model}, {done / 1e9:.2f} of {total / 1e9:.2f} GB"
            case roles.Prefilling(done, total):
                doing = f"reading, {100 * done // max(total, 1)}% of {total} tokens"
            case roles.Generated(_, channel, tokens):
                doing = f"{'thinking' if channel == 'thinking' else 'writing'}, {tokens} tokens"
                if self._first is None:
                    self._first = tokens, self._clock()
                else:
                    count, since = self._first
                    doing += f", {(tokens - count) / max(self._clock() - since, 0.001):.1f} tokens/s"
        return f"{self._role}: {doing}"


def info_of(models: RoleModels, role: Role) -> RoleInfo:
    return next(info for info in models.roles() if info.role is role)


def is_small(info: RoleInfo) -> bool:
    """Whether a role is answered by a small model, or may be; one on an endpoint (present, of no size here) is not."""
    return info.size_bytes < SMALL_BYTES and not (info.present and info.size_bytes == 0)


def second(infos: Sequence[RoleInfo], role: Role, model: str) -> RoleInfo | None:
    """The role, where another model than `model` that is there and not small can give a second opinion."""
    able = (info for info in infos if info.role is role and info.present and info.model != model)
    return next((info for info in able if not is_small(info)), None)


def note(run: Run, number: int, role: Role, why: str, detail: str = "") -> None:
    """Add a step of round `number` to the receipt's trail. `detail` may quote content, `why` may not."""
    kept = detail if run.telemetry.keep_content else ""
    run.trail.append({"round": number, "role": role.value, "why": why, "detail": kept})


def ended(run: Run, error: RoleError | TimeoutError) -> str:
    """Why a step came to nothing, in a word for the trail."""
    late = isinstance(error, TimeoutError) or (run.budget_s is not None and isinstance(error, WorkerTimeout))
    return "budget ended" if late else getattr(error, "code", "")


@contextmanager
def aside(run: Run, number: int, role: Role, without: str) -> Iterator[None]:
    """A step beside the answer, which goes on where the step is refused, fails or would take more than a third of what
    is left of the call's budget: the trail then has `without`, and why."""
    left_s = run.left_s()
    try:
        with anyio.fail_after(left_s and left_s / 3):
            yield
    except (RoleError, TimeoutError) as error:
        note(run, number, role, f"{without}: {ended(run, error)}")


def messages(turn: Turn) -> tuple[Message, Message]:
    """The turn's system and user message."""
    values = {name: text if name == "documents" else plain(text) for name, text in turn.values.items()}
    system, user = prompt(turn.name).render(**values)
    return Message(role="system", content=system), Message(role="user", content=user)


def with_documents(values: Mapping[str, str], *documents: str) -> dict[str, str]:
    """The values with more delimited documents after those that are there."""
    return {**values, "documents": "\n\n".join(filter(None, (values.get("documents", ""), *documents)))}


async def generate(
    run: Run, models: RoleModels, turn: Turn, finding: Check | None = None, *, aside: bool = False
) -> GenerationResult:
    """One generation, noted in the run. With `finding`, what was wrong with the answer before it.

    `aside` is a turn whose text is not the answer: nobody sees it being written, and half of it is worth nothing.

    Raises:
        PromptTooLong: with the figures of this request.
        WorkerTimeout: the time limit came before anything worth having.
        Other `RoleError`s as `RoleModels.generate`.
    """
    info, (system, user) = info_of(models, turn.role), messages(turn)
    if finding is not None:
        run.prompts["retry"] = prompt("retry").sha256
        found = plain(finding.detail.strip().rstrip(".")) + "."
        user = Message(role="user", content=prompt("retry").render(user=user.content, finding=found)[1])
    max_tokens = _room(models, turn, system.content + user.content)
    left_s = run.left_s()
    deadline_s = None if left_s is None else max(0.1, left_s - HAND_BACK_S)
    timeout_s = None if left_s is None or left_s >= info.timeout_s else deadline_s
    request = GenerationRequest(
        messages=(system, user), max_tokens=max_tokens, json_schema=turn.schema, thinking_budget=turn.thinking_budget,
        timeout_s=timeout_s, deadline_s=deadline_s, client=run.call.session,
    )  # fmt: skip

    words = Words(turn.role)

    def hear(event: roles.Event) -> None:
        run.tell(words.of(event), None)
        if isinstance(event, roles.Generated) and event.channel == "answer" and not aside:
            run.on_text(event.text)

    if not aside:
        run.on_text("")
    result = await models.generate(turn.role, request, hear)
    run.called(prompt(turn.name), result)
    if result.finish == "timeout":
        limit_s = timeout_s or info.timeout_s
        # A complete first answer is worth more than the start of a second one.
        if aside or finding is not None or not result.text.strip():
            raise WorkerTimeout(
                f"The model of {turn.role.value!r} reached its time limit before it answered.",
                allowed=f"{limit_s:.3g} s",
                advice="Ask for less, raise the role's timeout_s, or choose a smaller model.",
            )
        run.mark("partial", f"The model reached its time limit ({limit_s:.3g} s); the answer may be cut off.")
    return result


def fits(models: RoleModels, turn: Turn) -> bool:
    """Whether the role's context holds the turn and its answer."""
    try:
        _room(models, turn, "".join(message.content for message in messages(turn)))
    except PromptTooLong:
        return False
    return True


def _room(models: RoleModels, turn: Turn, text: str) -> int:
    """The most tokens of the answer. Raises PromptTooLong where the context does not hold them and the turn's text."""
    info = info_of(models, turn.role)
    max_tokens = min(turn.max_tokens or info.max_tokens, info.context_length // 2)
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
    return max_tokens
