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
        data = {name: text.encode("utf-8", "replace") for name, text in texts.items()}
        kept = {name: each[:max_bytes].decode("utf-8", "ignore") for name, each in data.items()}
        return Content(**kept, cut=tuple(name for name, each in data.items() if len(each) > max_bytes))


class Transition(_Frozen):
    """One step of the state machine, `at_s` after the request began."""

    source: str
    event: str
    target: str
    at_s: float


class Receipt(_Frozen):
    """One request. `features`, `router_state` and `snapshot_sha256` let the decision be recomputed without the text.

    `started_at` is ISO 8601 in UTC. `role` and `model` are the last that answered; `calls` are all generations, each
    with the name of its prompt, whose hash is in `prompts`. `error` is the wire form of a `RolecallError`, with code
    `cancelled` where the client gave up. Where `telemetry.keep_content` is off, `content` is None, and what could
    quote it is empty: warnings, the checks' details and what an error found.
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
    calls: tuple[dict[str, Any], ...]
    tokens: dict[str, int]
    timings: dict[str, float]
    checks: tuple[dict[str, Any], ...]
    rounds: int
    warnings: tuple[str, ...]
    error: dict[str, Any] | None
    content: Content | None

    @property
    def who(self) -> str:
        """The role, agent or checks that answered, or who was to; "" where nobody was chosen."""
        decision = self.decision or {}
        return self.role or decision.get("agent") or decision.get("role") or ("checks" if self.checks else "")


def receipt_id() -> str:
    """26 characters that sort by time and cannot be guessed (80 random bits).

    Source: the ULID specification, https://github.com/ulid/spec.
    """
    number = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))
