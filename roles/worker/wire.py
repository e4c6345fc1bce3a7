"""What a worker process and its parent say to each other: one line of JSON per message."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from rolecall.config.errors import RolecallError
from rolecall.roles.contract import Generated, GenerationRequest, Loading, Prefilling
from rolecall.roles.errors import RoleError

Finish = Literal["stop", "length", "timeout"]
Channel = Literal["thinking", "answer"]


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What one worker holds. `context_length` in tokens, prompt and answer together; `concurrency` requests at once.

    `prefill_target_s` is how long one prefill chunk may take: nothing can be cancelled within a chunk.
    """

    kind: Literal["text", "embedder"]
    folder: Path
    model: str
    context_length: int
    concurrency: int
    cache_limit_bytes: int
    prefill_target_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a model measured once it was in memory. Figures that do not apply (embedder) are 0.

    KV(tokens) = `kv_bytes_per_token` x tokens rounded up to 256, plus `fixed_state_bytes`, for each request.
    `blas` says which matrix library the CPU uses: `torch`, `openblas`, `netlib` (slow), `metal`.
    """

    weights_bytes: int
    measured_bytes: int
    kv_bytes_per_token: int = 0
    fixed_state_bytes: int = 0
    prefill_step: int = 0
    prefill_tokens_per_s: float = 0.0
    decode_tokens_per_s: float = 0.0
    load_s: float = 0.0
    blas: str = ""
    dimensions: int = 0


@dataclass(frozen=True, slots=True)
class WorkerResult:
    """One finished generation, as `roles.contract.GenerationResult` describes its fields."""

    text: str
    thinking: str
    finish: Finish
    prompt_tokens: int
    completion_tokens: int
    thinking_tokens: int
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors, shape (rows, dimensions), float32, row-major, in base64."""

    rows: int
    dimensions: int
    base64: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    op: Literal["load"] = "load"
    id: int
    spec: WorkerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Generate:
    op: Literal["generate"] = "generate"
    id: int
    request: GenerationRequest
    thinks: bool
    thinking_budget: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed:
    op: Literal["embed"] = "embed"
    id: int
    texts: tuple[str, ...]
    alone: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Answered with `Failed` once the worker has let go of the request."""

    op: Literal["cancel"] = "cancel"
    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    op: Literal["stop"] = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Said once a second while there is work, and first of all when the imports are done."""

    op: Literal["memory"] = "memory"
    measured_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    op: Literal["news"] = "news"
    id: int
    event: Loading | Prefilling | Generated


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    op: Literal["done"] = "done"
    id: int
    result: Loaded | WorkerResult | Embedded


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """`error` is a `RolecallError.to_dict()`; its code names the class in `roles.errors`."""

    op: Literal["failed"] = "failed"
    id: int
    error: dict[str, str]


ToWorker = Load | Generate | Embed | Cancel | Stop
FromWorker = Memory | News | Done | Failed

_LATER = ConfigDict(defer_build=True)  # at the first message, not while the host starts
to_worker: TypeAdapter[ToWorker] = TypeAdapter(Annotated[ToWorker, Field(discriminator="op")], config=_LATER)
from_worker: TypeAdapter[FromWorker] = TypeAdapter(Annotated[FromWorker, Field(discriminator="op")], config=_LATER)


def request_line(message: ToWorker) -> bytes:
    """What is written to a worker.

    Raises:
        RoleError: a text holds half of a surrogate pair.
    """
    try:
        return to_worker.dump_json(message) + b"\n"
    except ValueError:
        raise RoleError(
            "The request holds text that is not Unicode.", found="a lone surrogate", advice="Send it without."
        ) from None


def failed(id: int, error: Exception) -> Failed:
    """The error as the parent gets it; of an unforeseen one type and place only: its text may hold a document's."""
    if not isinstance(error, RolecallError):
        places = [
            f" at {Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)
        ]
        error = RoleError(
            "The model process failed on this request.",
            found=type(error).__name__ + "".join(places[-1:]),
            advice="Ask again; if it happens again, report it with the output of `rolecall doctor --json`.",
        )
    return Failed(id=id, error=error.to_dict())
