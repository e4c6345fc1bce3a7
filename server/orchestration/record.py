"""One request under way: its state, and everything its receipt and its outcome are made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from rolecall.config.errors import RolecallError
from rolecall.config.prompts import Prompt
from rolecall.config.settings import TelemetrySettings
from rolecall.retrieval.contract import Passage
from rolecall.roles.contract import GenerationResult, Role

from ..routing.contract import Decision, Features, Snapshot, State
from ..telemetry.store import SPARED, Content, Receipt, receipt_id
from ..validation.contract import Check
from .contract import Call, OnProgress, OnText, Outcome, RouteCall, Status
from .privacy import WARNING, Private
from .states import Event, Machine

_WORST: tuple[Status, ...] = ("ok", "degraded", "partial", "unverified")
_TOKENS = ("prompt_tokens", "completion_tokens", "thinking_tokens", "cached_tokens")
_SUMMED = (*_TOKENS, "queue_s", "load_s", "prefill_s", "decode_s")

_SAMPLE_CHARS = 16_000
"""Of the first text read or written: enough to know how many bytes a token has, tokenised in some milliseconds."""

_TOKEN_BYTES = 4
"""Where no model was asked, so that there is no tokenizer of its."""


@dataclass
class Run:
    """A request from acceptance to receipt. One task uses it; nothing else keeps it.

    What it tells and hands back is without the `private` texts that it has seen.
    """

    call: Call
    tell: OnProgress
    telemetry: TelemetrySettings
    count_tokens: Callable[[Role, str], int]
    on_text: OnText = lambda piece: None
    status: Status = "ok"
    warnings: list[str] = field(default_factory=list)
    decision: Decision | None = None
    features: Features | None = None
    router_state: State | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    calls: list[tuple[Prompt, GenerationResult]] = field(default_factory=list)
    answered: GenerationResult | None = None
    checks: list[Check] = field(default_factory=list)
    rounds: int = 0
    trail: list[dict[str, Any]] = field(default_factory=list)
    private: Private = field(default_factory=Private)
    citations: list[Passage] = field(default_factory=list)
    read_bytes: int = 0
    written_bytes: int = 0
    spared: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPARED, 0))

    def __post_init__(self) -> None:
        self._sample = ""
        tell, on_text = self.tell, self.on_text
        self.tell = lambda words, fraction: tell(self.private.cleared(words), fraction)
        self.on_text = lambda piece: None if self.private else on_text(piece)
        self.id = receipt_id()
        self.tool = self.call.tool
        self.budget_s = self.call.budget_s if isinstance(self.call, RouteCall) else None
        self.started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._start = time.monotonic()
        self.machine = Machine(self.elapsed_s)
        self.advance = self.machine.advance

    def elapsed_s(self) -> float:
        """Seconds since the request began, on a clock that stands still while the machine sleeps."""
        return time.monotonic() - self._start

    def left_s(self) -> float | None:
        """What is left of the call's own budget; None where it has none."""
        return None if self.budget_s is None else max(0.1, self.budget_s - self.elapsed_s())

    def mark(self, status: Status, warning: str) -> None:
        """Lower the status to `status` where it is better, and say why once."""
        self.status = max(self.status, status, key=_WORST.index)
        if warning not in ("", *self.warnings):
            self.warnings.append(warning)

    def decided(self, features: Features, state: State, decision: Decision) -> None:
        self.features, self.router_state, self.decision = features, state, decision

    def called(self, used: Prompt, result: GenerationResult) -> None:
        """Note one generation, and whether another role's model stood in."""
        self.prompts[used.name] = used.sha256
        self.calls.append((used, result))
        if result.degraded:
            self.mark("degraded", result.degraded)

    def handled(self, text: str, *, read_bytes: int = 0, written_bytes: int = 0) -> None:
        """Note a file that was read or written in the client's place."""
        self.read_bytes += read_bytes
        self.written_bytes += written_bytes
        self._sample = self._sample or text[:_SAMPLE_CHARS]

    def found(self, passages: Sequence[Passage]) -> None:
        """Note passages that the index gave, without their texts, for the receipt."""
        self.citations += [each.model_copy(update={"text": "", "heading": ""}) for each in passages]
        for each in passages:
            if each.private:
                self.private.saw(f"{each.heading}\n{each.text}")

    def unverified(self, failing: Check) -> None:
        """A decisive check still fails: name it, and advise the client to do the work itself."""
        found = failing.detail.rstrip(". ")
        self.mark("unverified", f"The check {failing.name!r} failed: {found}. Do this yourself, or check it.")

    def outcome(self, answer: str, **parts: Any) -> Outcome:
        """Finish: the machine goes to COMPLETED."""
        given = Outcome(
            answer=answer, status=self.status, receipt_id=self.id, warnings=tuple(self.warnings),
            checks=tuple(self.checks), decision=self.decision, **parts,
        )  # fmt: skip
        if (cleared := self.private.outcome(given)) != given:
            self.mark("partial", WARNING)
            cleared = replace(cleared, status=self.status, warnings=(*cleared.warnings, WARNING))
        self.spared = self._estimate()
        self.advance(Event.SYNTHESISED)
        return replace(cleared, meta=self.meta())

    def meta(self) -> dict[str, Any]:
        results = [result for _, result in self.calls]
        last = self.answered or (results[-1] if results else None)
        return {
            "total_s": round(self.elapsed_s(), 4), "model_calls": len(results), "rounds": self.rounds,
            **{name: sum(getattr(result, name) for result in results) for name in _SUMMED},
            "cold_start": any(result.cold_start for result in results), "model": last.model if last else None,
            "role": last.role.value if last else None, "spared": self.spared,
        }  # fmt: skip

    def _estimate(self) -> dict[str, int]:
        """Bytes of files that the client had neither to read nor to write, and tokens as the answering model's
        tokenizer counts them in a sample; nothing where the client is told to do the work itself."""
        read, written = (0, 0) if self.status == "unverified" else (self.read_bytes, self.written_bytes)
        rate = 1 / _TOKEN_BYTES
        if self.calls and self._sample and (read or written):
            with suppress(RolecallError):  # an estimate that fails must not cost the answer
                rate = self.count_tokens(self.calls[-1][1].role, self._sample) / len(self._sample.encode())
        return dict(zip(SPARED, (read, written, round(read * rate), round(written * rate)), strict=True))

    def receipt(self, answer: str, error: RolecallError | None, snapshot: Snapshot | None) -> Receipt:
        """The receipt as things stand; the machine must be in a final state. `snapshot` is the decision's, if known."""
        meta = self.meta()
        texts = {
            "request": request_text(self.call),
            "answer": answer,
            "thinking": "\n\n".join(result.thinking for _, result in self.calls if result.thinking),
        }
        size_gb = {choice.model: choice.size_gb for choice in snapshot.roles} if snapshot else {}
        ready_s = self.router_state.ready_s if self.router_state else {}
        receipt = Receipt(
            id=self.id, tool=self.tool, started_at=self.started_at, session=self.call.session,
            state=self.machine.state, status=None if error else self.status, transitions=self.machine.transitions,
            decision=_json(self.decision), features=_json(self.features), router_state=_json(self.router_state),
            snapshot_sha256=self.decision.snapshot_sha256 if self.decision else None, role=meta["role"],
            model=meta["model"], prompts=self.prompts,
            calls=tuple(
                {"prompt": used.name, **result.model_dump(mode="json", exclude={"text", "thinking"})}
                for used, result in self.calls
            ),
            tokens={name: meta[name] for name in _TOKENS},
            timings={name: round(value, 4) for name, value in meta.items() if name.endswith("_s")}, spared=self.spared,
            cost={
                "seconds": round(meta["total_s"], 4), "resident_gb": size_gb.get(meta["model"], 0.0),
                "reload_s": ready_s.get(meta["model"], 0.0),
            },
            checks=tuple(check.model_dump(mode="json") for check in self.checks), rounds=self.rounds,
            trail=tuple(self.trail), warnings=tuple(self.warnings), error=error.to_dict() if error else None,
            content=Content.bounded(self.telemetry.max_content_bytes, **texts), private=bool(self.private),
            citations=tuple(self.citations),
        )  # fmt: skip
        return receipt if self.telemetry.keep_content else receipt.without_content()


def request_text(call: Call) -> str:
    """The call as its receipt keeps it: every argument that was given, one to a paragraph."""
    given = {info.alias or name: getattr(call, name) for name, info in type(call).model_fields.items()}
    return "\n\n".join(f"{name}: {value}" for name, value in given.items() if value not in (None, [], ""))


def _json(model: Decision | Features | State | None) -> dict[str, Any] | None:
    return model.model_dump(mode="json") if model is not None else None
