"""One request under way: its state, and everything its receipt and its outcome are made of."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from rolecall.config.errors import RolecallError
from rolecall.config.prompts import Prompt
from rolecall.config.settings import TelemetrySettings
from rolecall.roles.contract import GenerationResult

from ..routing.contract import Decision, Features, State
from ..telemetry.receipt import Content, ModelCall, Receipt, receipt_id
from ..validation.contract import Check
from .contract import Call, Meta, OnProgress, Outcome, Status
from .states import Event, Machine

_WORST: tuple[Status, ...] = ("ok", "degraded", "partial", "unverified")


@dataclass
class Run:
    """A request from acceptance to receipt. One task uses it; nothing else keeps it."""

    tool: str
    call: Call
    tell: OnProgress
    telemetry: TelemetrySettings
    budget_s: float | None = None
    id: str = field(default_factory=receipt_id)
    started_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))
    status: Status = "ok"
    warnings: list[str] = field(default_factory=list)
    decision: Decision | None = None
    features: Features | None = None
    router_state: State | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    calls: list[ModelCall] = field(default_factory=list)
    thinking: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    rounds: int = 0

    def __post_init__(self) -> None:
        self._start = time.monotonic()
        self.machine = Machine(self.elapsed_s)

    def elapsed_s(self) -> float:
        """Seconds since the request began, on a clock that stands still while the machine sleeps."""
        return time.monotonic() - self._start

    def left_s(self) -> float | None:
        """What is left of the call's own budget; None where it has none."""
        return None if self.budget_s is None else max(0.1, self.budget_s - self.elapsed_s())

    def advance(self, event: Event) -> None:
        self.machine.advance(event)

    def mark(self, status: Status, warning: str) -> None:
        """Lower the status to `status` where it is better, and say why once."""
        self.status = max(self.status, status, key=_WORST.index)
        if warning and warning not in self.warnings:
            self.warnings.append(warning)

    def decided(self, features: Features, state: State, decision: Decision) -> None:
        self.features, self.router_state, self.decision = features, state, decision

    def called(self, used: Prompt, result: GenerationResult) -> None:
        """Note one generation: its cost, its thinking, and whether another role's model stood in."""
        self.prompts[used.name] = used.sha256
        self.calls.append(
            ModelCall(prompt=used.name, role=result.role.value, **result.model_dump(include=_CALL_FIELDS))
        )
        if result.thinking:
            self.thinking.append(result.thinking)
        if result.degraded:
            self.mark("degraded", result.degraded)

    def unverified(self, failing: Check) -> None:
        """A decisive check still fails: name it, and advise the client to do the work itself."""
        self.mark("unverified", f"The check {failing.name!r} failed: {failing.detail} Do this yourself, or check it.")

    def outcome(self, answer: str, **parts: Any) -> Outcome:
        """Finish: the machine goes to COMPLETED."""
        self.advance(Event.SYNTHESISED)
        checks = tuple(parts.pop("checks", self.checks))
        return Outcome(
            answer=answer, status=self.status, receipt_id=self.id, warnings=tuple(self.warnings), checks=checks,
            decision=self.decision, meta=self.meta(), **parts,
        )  # fmt: skip

    def meta(self) -> Meta:
        last = self.calls[-1] if self.calls else None
        sums: dict[str, Any] = {name: sum(getattr(call, name) for call in self.calls) for name in _SUMMED}
        return Meta(
            total_s=round(self.elapsed_s(), 4), model_calls=len(self.calls), rounds=self.rounds, **sums,
            cold_start=any(call.cold_start for call in self.calls), model=last.model if last else None,
            role=last.role if last else None,
        )  # fmt: skip

    def receipt(self, answer: str, error: RolecallError | None) -> Receipt:
        """The receipt as things stand; the machine must be in a final state."""
        meta = asdict(self.meta())
        content = None
        if self.telemetry.keep_content:
            thinking = "\n\n".join(self.thinking)
            content = Content.bounded(
                self.telemetry.max_content_bytes, request=request_text(self.call), answer=answer, thinking=thinking
            )
        return Receipt(
            id=self.id, tool=self.tool, started_at=self.started_at, session=self.call.session,
            state=self.machine.state, status=None if error else self.status, transitions=self.machine.transitions,
            decision=_json(self.decision), features=_json(self.features), router_state=_json(self.router_state),
            snapshot_sha256=self.decision.snapshot_sha256 if self.decision else None, role=meta["role"],
            model=meta["model"], prompts=self.prompts, calls=tuple(self.calls),
            tokens={name: meta[name] for name in _SUMMED if name.endswith("_tokens")},
            timings={name: round(value, 4) for name, value in meta.items() if name.endswith("_s")},
            checks=tuple(check.model_dump(mode="json") for check in self.checks), rounds=self.rounds,
            warnings=tuple(self.warnings), error=error.to_dict() if error else None, content=content,
        )  # fmt: skip


_SUMMED = ("prompt_tokens", "completion_tokens", "thinking_tokens", "queue_s", "load_s", "prefill_s", "decode_s")
_CALL_FIELDS = {*_SUMMED, "model", "model_sha256", "cold_start", "finish"}


def request_text(call: Call) -> str:
    """The call as its receipt keeps it: every argument that was given, one to a paragraph."""
    given: Iterable[tuple[str, Any]] = ((name, getattr(call, name)) for name in call.__dataclass_fields__)
    hidden = ("cwd", "session")
    return "\n\n".join(
        f"{name}: {value}" for name, value in given if value not in (None, (), "") and name not in hidden
    )


def _json(model: Decision | Features | State | None) -> dict[str, Any] | None:
    return model.model_dump(mode="json") if model is not None else None
