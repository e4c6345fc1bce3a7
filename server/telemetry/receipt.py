"""The receipt: what one request was, what was decided, who answered, what it cost and how it ended."""

from __future__ import annotations

import secrets
import time
from typing import Any

from pydantic import BaseModel, ConfigDict

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Content(_Frozen):
    """The texts of a request, each cut at the settings' bound; `cut` names the fields that were."""

    request: str = ""
    answer: str = ""
    thinking: str = ""
    cut: tuple[str, ...] = ()

    @staticmethod
    def bounded(max_bytes: int, **texts: str) -> Content:
        """Cut each text to `max_bytes` of UTF-8, at a character."""
        kept: dict[str, str] = {}
        cut = []
        for name, text in texts.items():
            data = text.encode("utf-8", "replace")
            kept[name] = data[:max_bytes].decode("utf-8", "ignore")
            if len(data) > max_bytes:
                cut.append(name)
        return Content(**kept, cut=tuple(cut))


class Transition(_Frozen):
    """One step of the state machine, `at_s` after the request began."""

    source: str
    event: str
    target: str
    at_s: float


class ModelCall(_Frozen):
    """One generation. Times in seconds; `prompt` names the template, its hash is in `Receipt.prompts`."""

    role: str
    model: str
    model_sha256: str
    prompt: str
    prompt_tokens: int
    completion_tokens: int
    thinking_tokens: int
    queue_s: float
    load_s: float
    prefill_s: float
    decode_s: float
    cold_start: bool
    finish: str


class Receipt(_Frozen):
    """One request. `features`, `router_state` and `snapshot_sha256` let the decision be recomputed without the text.

    `started_at` is ISO 8601 in UTC. `role` and `model` are the last that
    answered. `content` is None where `telemetry.keep_content` is off. `error` is the wire form
    of a `RolecallError`, with code `cancelled` where the client gave up.
    """

    id: str
    tool: str
    started_at: str
    session: str
    state: str
    status: str | None
    transitions: tuple[Transition, ...]
    decision: dict[str, Any] | None
    features: dict[str, Any] | None
    router_state: dict[str, Any] | None
    snapshot_sha256: str | None
    role: str | None
    model: str | None
    prompts: dict[str, str]
    calls: tuple[ModelCall, ...]
    tokens: dict[str, int]
    timings: dict[str, float]
    checks: tuple[dict[str, Any], ...]
    rounds: int
    warnings: tuple[str, ...]
    error: dict[str, Any] | None
    content: Content | None

    @property
    def who(self) -> str:
        """The agent or the role that answered, "" where neither did."""
        decision = self.decision or {}
        return self.role or str(decision.get("agent") or decision.get("role") or "")


def receipt_id() -> str:
    """26 characters that sort by time and cannot be guessed (80 random bits).

    Source: the ULID specification, https://github.com/ulid/spec.
    """
    number = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))
