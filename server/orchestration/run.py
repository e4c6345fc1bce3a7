"""The one way through Rolecall: every call is run, ends in one final state, and leaves a receipt."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import anyio
import structlog

from rolecall.config.errors import RolecallError

from ..errors import Cancelled, DeadlineExceeded
from ..telemetry.store import ReceiptStore
from .answer import code, reason, route, validate
from .contract import Call, OnProgress, OnText, Outcome
from .record import Run
from .retrieve import retrieve
from .staff import Staff
from .states import Event
from .summarize import summarize

RECEIPT_GRACE_S = 2.0
"""How long a cancelled request may still take to write its receipt."""

STEPS: dict[str, Callable[[Run, Staff, Any], Awaitable[Outcome]]] = {
    "route": route, "reason": reason, "code": code, "summarize": summarize, "retrieve": retrieve, "validate": validate,
}  # fmt: skip

log = structlog.get_logger()


@dataclass(slots=True)
class Orchestrator:
    """Runs calls, several at once, each with `staff`. Holds no state of its own between them."""

    staff: Staff
    store: ReceiptStore

    async def run(self, call: Call, on_progress: OnProgress, on_text: OnText = lambda piece: None) -> Outcome:
        """Run one call to its end. Cancelling the awaiting task stops it at once and leaves a receipt.

        Whatever fails is a RolecallError, as in the receipt. One that cannot be written is a warning, no lost answer.
        """
        run = Run(call, on_progress, self.staff.settings.telemetry, self.staff.models.count_tokens, on_text)
        try:
            outcome = await self._within_budget(run, call)
        except RolecallError as error:
            run.private.error(error)
            await self._fail(run, Event.FAIL, error)
            raise
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(RECEIPT_GRACE_S, shield=True):
                await self._fail(run, Event.CANCEL, Cancelled("The request was cancelled."))
            raise
        except Exception as error:
            log.exception("request_failed", tool=run.tool, receipt=run.id)
            typed = RolecallError(
                f"{run.tool} failed inside Rolecall ({type(error).__name__}).",
                advice=f"Try again; `rolecall logs` has the details under receipt {run.id}.",
            )
            await self._fail(run, Event.FAIL, typed)
            raise typed from error
        unkept = await self._keep(run, outcome.answer)
        return replace(outcome, warnings=(*outcome.warnings, unkept)) if unkept else outcome

    async def _within_budget(self, run: Run, call: Call) -> Outcome:
        run.advance(Event.ACCEPTED)
        with anyio.move_on_after(run.budget_s):
            outcome = await STEPS[run.tool](run, self.staff, call)
            self.staff.answered(run)
            return outcome
        raise DeadlineExceeded(
            "The call took longer than its budget.",
            found=f"{run.elapsed_s():.1f} s in state {run.machine.state}",
            allowed=f"{run.budget_s:g} s",
            advice="Raise budget_s, or ask for less.",
        )

    async def _fail(self, run: Run, event: Event, error: RolecallError) -> None:
        run.advance(event)
        await self._keep(run, "", error)

    async def _keep(self, run: Run, answer: str, error: RolecallError | None = None) -> str:
        """Write the receipt; where it cannot be written, why."""
        snapshot = self.staff.router.snapshot() if run.decision else None
        if snapshot and run.decision and snapshot.sha256 != run.decision.snapshot_sha256:
            snapshot = None  # the embedder came or went meanwhile: the receipt still names what it was decided under
        receipt = run.receipt(answer, error, snapshot)
        try:
            body = snapshot.model_dump_json() if snapshot else ""
            await self.store.add(receipt, run.telemetry.max_receipts, body)
        except RolecallError as unkept:
            log.warning("receipt_not_kept", code=unkept.code, receipt=receipt.id)
            return f"The receipt was not kept: {unkept.message}"
        return ""
