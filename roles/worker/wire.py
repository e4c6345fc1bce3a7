"""What a worker process and its parent say to each other, and how it is put on a pipe.

A frame is two big-endian uint32 lengths, then that many bytes of JSON (one message) and of raw data (vectors).
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic_core import PydanticSerializationError

from rolecall.roles.contract import GenerationRequest
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
    kv_bytes_per_token: int
    fixed_state_bytes: int
    prefill_step: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    load_s: float
    blas: str
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


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Load(_Message):
    op: Literal["load"] = "load"
    id: int
    spec: WorkerSpec


class Generate(_Message):
    op: Literal["generate"] = "generate"
    id: int
    request: GenerationRequest
    thinks: bool
    thinking_budget: int | None


class Embed(_Message):
    op: Literal["embed"] = "embed"
    id: int
    texts: tuple[str, ...]
    alone: bool


class Cancel(_Message):
    op: Literal["cancel"] = "cancel"
    id: int


class Stop(_Message):
    op: Literal["stop"] = "stop"


class Ready(_Message):
    """The worker's imports are done."""

    op: Literal["ready"] = "ready"


class LoadProgress(_Message):
    op: Literal["load_progress"] = "load_progress"
    id: int
    done_bytes: int
    total_bytes: int


class LoadDone(_Message):
    op: Literal["load_done"] = "load_done"
    id: int
    loaded: Loaded


class PrefillProgress(_Message):
    op: Literal["prefill_progress"] = "prefill_progress"
    id: int
    done_tokens: int
    total_tokens: int


class Text(_Message):
    op: Literal["text"] = "text"
    id: int
    text: str
    channel: Channel
    tokens: int


class GenerateDone(_Message):
    op: Literal["generate_done"] = "generate_done"
    id: int
    result: WorkerResult


class EmbedDone(_Message):
    """The frame's raw data is float32, row-major, shape (rows, dimensions)."""

    op: Literal["embed_done"] = "embed_done"
    id: int
    rows: int
    dimensions: int


class Failed(_Message):
    """`error` is a `RolecallError.to_dict()`; its code names the class in `roles.errors`."""

    op: Literal["failed"] = "failed"
    id: int
    error: dict[str, Any]


class Cancelled(_Message):
    """The worker no longer works on this request."""

    op: Literal["cancelled"] = "cancelled"
    id: int


class Memory(_Message):
    op: Literal["memory"] = "memory"
    measured_bytes: int


ToWorker = Load | Generate | Embed | Cancel | Stop
FromWorker = (
    Ready | LoadProgress | LoadDone | PrefillProgress | Text | GenerateDone | EmbedDone | Failed | Cancelled | Memory
)
to_worker: TypeAdapter[ToWorker] = TypeAdapter(Annotated[ToWorker, Field(discriminator="op")])
from_worker: TypeAdapter[FromWorker] = TypeAdapter(Annotated[FromWorker, Field(discriminator="op")])

_HEAD = struct.Struct(">II")


def encode(message: ToWorker | FromWorker, data: bytes = b"") -> bytes:
    """One frame.

    Raises:
        RoleError: a text holds half of a surrogate pair.
    """
    try:
        body = message.model_dump_json().encode()
    except (PydanticSerializationError, UnicodeEncodeError):
        raise RoleError(
            "The request holds text that is not Unicode.", found="a lone surrogate", advice="Send it without."
        ) from None
    return _HEAD.pack(len(body), len(data)) + body + data


async def receive(read_exactly: Callable[[int], Awaitable[bytes]]) -> tuple[bytes, bytes]:
    """The next frame's JSON and raw data; whatever `read_exactly` raises at the end of the pipe passes through."""
    body_bytes, data_bytes = _HEAD.unpack(await read_exactly(_HEAD.size))
    return await read_exactly(body_bytes), await read_exactly(data_bytes)


def receive_blocking(read: Callable[[int], bytes]) -> bytes | None:
    """The next frame's JSON from a buffered blocking `read(n)`; None where the pipe has ended."""
    head = read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    body_bytes, data_bytes = _HEAD.unpack(head)
    body = read(body_bytes + data_bytes)
    return body[:body_bytes] if len(body) == body_bytes + data_bytes else None
