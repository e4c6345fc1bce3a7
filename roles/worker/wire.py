"""What a worker process and its parent say to each other: one line of JSON per message.

A worker ends when its input does, whether its parent closed the pipe or died.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter

from rolecall.config.errors import RolecallError
from rolecall.roles.contract import EngineResult, Generated, GenerationRequest, Loading, Prefilling
from rolecall.roles.errors import RoleError

Kind = Literal["text", "embedder", "reranker"]
Input = str | tuple[str, str]  # a text to embed, or a query and a text to score


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What one worker holds. `context_length` in tokens, prompt and answer together, of an encoder what it reads of one
    input; `concurrency` requests at once.

    `prefill_target_s` is how long one prefill chunk may take: nothing can be cancelled within a chunk. Running KV
    caches and the prefix cache take at most `kv_bytes` together (0: none is kept). `leased`: each chunk waits for a
    grant.
    """

    kind: Kind
    folder: Path
    model: str
    context_length: int
    concurrency: int
    cache_limit_bytes: int
    prefill_target_s: float = 0.5
    kv_bytes: int = 0
    adapter: Path | None = None
    leased: bool = False


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a model measured once it was in memory. Figures that do not apply (encoders) are 0.

    KV(tokens) = `kv_bytes_per_token` x tokens rounded up to 256, plus `fixed_state_bytes`, for each request.
    """

    weights_bytes: int
    measured_bytes: int
    kv_bytes_per_token: int = 0
    fixed_state_bytes: int = 0
    decode_tokens_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Scored:
    """Natural log-probability of each label, in order."""

    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Vectors or scores, shape (rows, columns), float32, row-major, in base64."""

    rows: int
    columns: int
    base64: str


@dataclass(frozen=True, slots=True)
class Generate:
    """With `labels` nothing is generated: these are scored as the answer."""

    request: GenerationRequest
    thinks: bool
    thinking_budget: int | None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Encode:
    inputs: tuple[Input, ...]
    alone: bool = False
    query: bool = False


@dataclass(frozen=True, slots=True)
class Limit:
    """From now on this takes the place of the spec's `kv_bytes`."""

    kv_bytes: int


@dataclass(frozen=True, slots=True)
class Failure:
    """`error` is a `RolecallError.to_dict()`; its code names the class in `roles.errors`."""

    error: dict[str, str]


Request = WorkerSpec | Generate | Encode
Result = Loaded | EngineResult | Scored | Encoded
Body = Loading | Prefilling | Generated | Result | Failure | int | Literal["want", "done"]
"""What a worker says: how far it is, the result or failure that ends a request, or (to request 0) its bytes of memory:
once a second while it gets on, and first of all when its imports are done; that it wants to prefill a chunk, and that
it no longer does."""


_LATER = ConfigDict(defer_build=True)  # validators are made at the first message, not while the host starts


@dataclass(frozen=True, slots=True)
class ToWorker:
    """A model to load, a request, a limit, the grant of one prefill chunk, or None: let go of request `id`, which is
    answered with a failure."""

    __pydantic_config__ = _LATER
    id: int
    body: Request | Limit | Literal["grant"] | None


@dataclass(frozen=True, slots=True)
class FromWorker:
    __pydantic_config__ = _LATER
    id: int
    body: Body


to_worker = TypeAdapter(ToWorker)
from_worker = TypeAdapter(FromWorker)


def failure(error: Exception) -> Failure:
    """The error as the parent gets it; of an unforeseen one type and place only: its text may hold a document's."""
    if not isinstance(error, RolecallError):
        frames = traceback.extract_tb(error.__traceback__)[-1:]
        place = "".join(f" at {Path(frame.filename).name}:{frame.lineno}" for frame in frames)
        error = RoleError(
            "The model process failed on this request.",
            found=f"{type(error).__name__}{place}",
            advice="Ask again; if it happens again, report it with the output of `rolecall doctor --json`.",
        )
    return Failure(error.to_dict())
