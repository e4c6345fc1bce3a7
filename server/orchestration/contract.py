"""What the orchestrator is asked, one frozen call per tool, and what every tool gives back.

`paths` are the user's own strings (files or globs); relative ones count from `cwd`, the folder the client runs in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rolecall.retrieval.contract import Filters, IndexState, Passage

from ..routing.contract import Decision
from ..validation.blocks import CodeBlock
from ..validation.contract import Check, Verdict

Status = Literal["ok", "degraded", "partial", "unverified"]
Depth = Literal["quick", "normal", "deep"]

OnProgress = Callable[[str, float | None], None]
"""Progress in words, with the fraction done in [0, 1], or None where it is not known. Must not block."""

OnText = Callable[[str], None]
"""A piece of an answer as it is written, before any check; "" where the answer begins anew. Must not block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """`session` is the id of the client's session, for fairness between clients and for the receipt."""

    cwd: Path
    session: str

    @property
    def tool(self) -> str:
        return type(self).__name__.removesuffix("Call").lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteCall(_Call):
    """Decide who answers `request` and, unless `execute` is False, answer. `budget_s` bounds the whole call."""

    request: str
    paths: tuple[str, ...] = ()
    context: str | None = None
    channel: Literal["chat", "code", "system_health"] | None = None
    budget_s: float | None = None
    execute: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonCall(_Call):
    """Answer a question; with `schema` (a JSON Schema object) the answer is `Outcome.data`, valid against it."""

    question: str
    paths: tuple[str, ...] = ()
    context: str | None = None
    schema: dict[str, Any] | None = None
    depth: Depth = "normal"


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeCall(_Call):
    """Write code. With `save_to` (inside an allowed folder, never overwriting) it goes to that file instead."""

    task: str
    paths: tuple[str, ...] = ()
    context: str | None = None
    language: str | None = None
    save_to: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SummarizeCall(_Call):
    """Condense `text`, or the files in `paths`, of any length. `each` gives one item per file."""

    text: str | None = None
    paths: tuple[str, ...] = ()
    focus: str | None = None
    max_words: int = 200
    each: bool = False
    save_to: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieveCall(_Call):
    """Search the index; `answer` mode writes a short answer that cites the passages as [1], [2]."""

    query: str
    collection: str | None = None
    max_results: int = 8
    filters: Filters | None = None
    mode: Literal["passages", "answer"] = "passages"


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateCall(_Call):
    """Check an output. The files in `paths` are evidence beside `evidence`, or the output where none is given."""

    output: str | None = None
    paths: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    question: str | None = None
    schema: dict[str, Any] | None = None
    language: str | None = None


Call = RouteCall | ReasonCall | CodeCall | SummarizeCall | RetrieveCall | ValidateCall


@dataclass(frozen=True, slots=True)
class Item:
    """One file's summary. With status `partial`, `answer` says why there is none."""

    path: str
    answer: str
    status: Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """What the answer cost, summed over model calls. Times on a clock that stands still while the machine sleeps.

    `spared` is what it saved the client, as in the receipt.
    """

    total_s: float = 0.0
    model_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    thinking_tokens: int = 0
    cached_tokens: int = 0
    queue_s: float = 0.0
    load_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    cold_start: bool = False
    model: str | None = None
    role: str | None = None
    rounds: int = 0
    spared: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A finished call. `answer` is always the readable result; the rest is set where the tool has it.

    `status`: `ok`; `degraded`, another role's model answered (a warning has the command that gets the right one), or
    none did and passages are quoted;
    `partial`, some input was not used or time ran out; `unverified`, a decisive check failed and a warning names it.
    With `job_id` the call goes on as that job, and this is not its answer yet.
    """

    answer: str
    status: Status
    receipt_id: str
    warnings: tuple[str, ...] = ()
    decision: Decision | None = None
    data: Any = None
    blocks: tuple[CodeBlock, ...] = ()
    saved_path: str | None = None
    items: tuple[Item, ...] = ()
    passages: tuple[Passage, ...] = ()
    index: IndexState | None = None
    verdict: Verdict | None = None
    checks: tuple[Check, ...] = ()
    meta: Meta = field(default_factory=Meta)
    job_id: str | None = None
