"""What a role model is asked and what it gives back: the one contract between Rolecall and every engine.

`RoleModels` is what the rest of the program sees. Its implementations: `roles.manager.ModelManager` (worker processes
within a memory budget) and the scripted one of the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:  # the host answers its first requests without numpy
    import numpy as np
    import numpy.typing as npt

T = TypeVar("T")
Finish = Literal["stop", "length", "timeout"]
Channel = Literal["thinking", "answer"]


class Role(StrEnum):
    """A job that a model is given; the profile says which model holds it."""

    ROUTER = "router"
    REASONING = "reasoning"
    REASONING_HEAVY = "reasoning_heavy"
    CODING = "coding"
    CODING_LARGE_CONTEXT = "coding_large_context"
    SUMMARIZATION = "summarization"
    VALIDATION = "validation"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Message(_Frozen):
    """One chat turn, before the model's own chat template."""

    role: Literal["system", "user", "assistant"]
    content: str


class GenerationRequest(_Frozen):
    """One generation.

    `temperature` 0 is greedy. `json_schema`, or `regex` (at most one of them), constrains the answer (never the
    thinking) and is checked again on what came; what cannot be enforced is refused. `thinking_budget` bounds thinking
    in tokens where the model thinks (None: the role's default, 0: none). `timeout_s` counts from the first prefill
    step, on a clock that stands still while the machine sleeps; None takes the role's own. `deadline_s` counts from the
    call: the nearest goes first in the queue, and a request still in it then is refused. None orders by the role's
    time, and waits ten minutes. `client` groups requests for fairness.
    """

    messages: tuple[Message, ...] = Field(min_length=1)
    max_tokens: int = Field(default=512, gt=0)
    temperature: float = Field(default=0.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    repetition_penalty: float | None = Field(default=None, gt=0.0)
    seed: int = 0
    stop: tuple[str, ...] = ()
    json_schema: dict[str, Any] | None = None
    regex: str | None = None
    thinking_budget: int | None = Field(default=None, ge=0)
    timeout_s: float | None = Field(default=None, gt=0.0)
    deadline_s: float | None = Field(default=None, gt=0.0)
    client: str = ""


@dataclass(frozen=True, slots=True)
class Queued:
    """The request waits; `position` 1 is next."""

    position: int


@dataclass(frozen=True, slots=True)
class Loading:
    """The model is being loaded; bytes are those of the weights, `done_bytes` 0 until known."""

    model: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Prefilling:
    done_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class Generated:
    """A piece of decoded text. `tokens` is the count made so far, thinking included."""

    text: str
    channel: Channel
    tokens: int


Event = Queued | Loading | Prefilling | Generated
OnEvent = Callable[[Event], None]


class EngineResult(_Frozen):
    """One finished generation as its engine tells it. Times in seconds on the awake clock.

    `finish` is `stop` (the model ended or a stop sequence was met), `length` (max_tokens), or `timeout` (what was made
    by then is in `text`). `cached_tokens` of the prompt were taken from the prefix cache instead of prefilled.
    """

    text: str
    thinking: str = ""
    finish: Finish
    prompt_tokens: int
    completion_tokens: int
    thinking_tokens: int = 0
    cached_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0


class GenerationResult(EngineResult):
    """`model_sha256` names the weights. `degraded` is empty, or says whose model did not answer, why, and the command
    that helps."""

    role: Role
    model: str
    model_sha256: str = ""
    queue_s: float = 0.0
    load_s: float = 0.0
    cold_start: bool = False
    degraded: str = ""


class RoleInfo(_Frozen):
    """What the router may know of a role without asking anyone: from the profile and the disk.

    `present` is whether the model's folder is on disk; `context_length` in tokens, prompt and answer together.
    """

    role: Role
    model: str
    present: bool
    resident: bool
    context_length: int
    concurrency: int
    timeout_s: float
    max_tokens: int
    thinks: bool
    size_bytes: int


class Resident(_Frozen):
    """A model in memory: one line of `rolecall models ps --json`.

    `reserved_bytes` follow its requests. `tokens_per_s` is its decode rate: of its requests lately, until then as
    measured at the load. `queued` requests wait for it.
    """

    model: str
    roles: tuple[str, ...]
    pid: int
    pinned: bool
    in_use: int
    reserved_bytes: int
    measured_bytes: int
    tokens_per_s: float = 0.0
    queued: int = 0


@dataclass(frozen=True, slots=True)
class ModelEvent:
    """What happened to a model in memory, for telemetry.

    `loaded` after `seconds`, with `size_bytes` measured, for a request or (`cold` False) ahead of one; `evicted`,
    `idle`, `unloaded`, `died` when it went.
    """

    kind: Literal["loaded", "evicted", "idle", "unloaded", "died"]
    model: str
    seconds: float = 0.0
    size_bytes: int = 0
    cold: bool = False


OnModelEvent = Callable[[ModelEvent], None]


def tell(listener: Callable[[T], None] | None, event: T) -> None:
    """What a listener raises is its own fault: it is logged, and the work goes on."""
    if listener is not None:
        try:
            listener(event)
        except Exception:
            structlog.get_logger(__name__).exception("event_callback_failed")


class MemoryState(_Frozen):
    """The budget and who holds the machine's memory, in bytes.

    `budget_bytes` is what holds now; `configured_bytes` what it is without pressure from other programs.
    """

    budget_bytes: int
    configured_bytes: int
    reserved_bytes: int
    measured_bytes: int
    machine_bytes: int
    available_bytes: int


Vectors: TypeAlias = "npt.NDArray[np.float32]"


class RoleModels(Protocol):
    """The staff of models. All methods are for one event loop; every failure is a `roles.errors.RoleError`."""

    async def generate(
        self, role: Role, request: GenerationRequest, on_event: OnEvent | None = None
    ) -> GenerationResult:
        """Answer with the role's model, loading it first where needed. Cancelling the awaiting task stops it. Raises
        ModelMissing: neither the role's model nor a stand-in is on disk; PromptTooLong: prompt and `max_tokens` exceed
        the role's context (figures included); WorkerDied, WorkerTimeout, DoesNotFit, QueueFull, SchemaRefused."""

    async def embed(self, texts: Sequence[str], *, alone: bool = False, query: bool = False) -> Vectors:
        """Unit-length vectors, shape (len(texts), dimensions), float32. What exceeds the profile's `max_tokens` of a
        text is not read.

        `alone` runs one text per forward pass, so that a text's bits do not depend on its neighbours. `query` embeds
        texts as what one searches by, with the model's own prompt for it; else they are what is found.
        """

    async def rerank(self, query: str, texts: Sequence[str]) -> list[float]:
        """The relevance of each text to the query, in order, higher is better; comparable for one query only. Raises
        ModelMissing where the profile has no reranker, or it is not on disk, and else as `generate`."""

    async def score_labels(self, role: Role, messages: Sequence[Message], labels: Sequence[str]) -> tuple[float, ...]:
        """Natural log-probability of each label as the answer to `messages`, in one forward pass over the shared
        prompt. Not normalised over the labels. Raises as `generate`, and ValueError for an empty label."""

    def embedder(self) -> str | None:
        """What changes whenever vectors would: the embedder's id and the SHA-256 of its weights; None where it is not
        on disk."""

    def roles(self) -> tuple[RoleInfo, ...]: ...

    def resident(self) -> tuple[Resident, ...]: ...

    def count_tokens(self, role: Role, text: str) -> int:
        """Tokens of `text` under the role's tokenizer, without special tokens; an estimate (bytes / 4) if absent."""

    def preload(self, role: Role) -> None:
        """Hint: load the role's model in the background if it fits free memory without evicting anything."""

    async def load(self, name: str) -> Resident:
        """Load a role's or model's worker now; `name` is a role or a model id."""

    async def unload(self, name: str) -> bool: ...

    async def pin(self, name: str, pinned: bool) -> Resident:
        """Keep a role's or model's worker in memory (loading it first) until it is unpinned or the host ends."""

    def memory(self) -> MemoryState: ...

    async def aclose(self) -> None:
        """End every worker; returns when none is left."""
