"""Stage 3: ask a role, check the answer, ask once more with the finding, then ask a heavier role, then say so.

Each round is noted in the receipt's trail with its reason. A coding task is planned by the reasoning role before its
repair, and an answer from documents that no check decides on is judged by the validation role, where those are other
models than the answering one and not small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import anyio
import anyio.to_thread

from rolecall.config.prompts import document, prompt
from rolecall.roles.contract import GenerationResult, Role, RoleInfo
from rolecall.roles.errors import RoleError, SchemaRefused

from ..routing.policy import effect
from ..validation.answer import Checker, failed
from ..validation.contract import Check, Verdict, fault
from .record import Run
from .staff import Staff
from .states import Event, RunState
from .turn import HAND_BACK_S, Turn, aside, ended, fits, generate, info_of, messages, note, second, with_documents

CLEAR = math.log(9)
"""A judgement counts from odds of nine to one. A convention: models that may judge are not among the starter's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask(Turn):
    """A turn whose answer is checked. Attempts: the role, the role again with the finding, a heavier role.

    `mends` names the checks whose failure the caller mends itself, so that no heavier role is asked for them. `judged`
    has the validation role asked, once, where no check decides on an answer from documents.
    """

    check: Checker
    attempts: int = 3
    mends: tuple[str, ...] = ()
    judged: bool = False


@dataclass(frozen=True, slots=True)
class Said:
    """The last answer, its checks, and the decisive one that still fails (None: all is well)."""

    text: str
    checks: tuple[Check, ...]
    failing: Check | None


async def ask(run: Run, staff: Staff, wanted: Ask) -> Said:
    """Ask until the checks pass or nobody is left to ask. Goes from MODEL_SELECTION or LLM_CALL to VALIDATION.

    Raises as `generate` in its first attempt, and SchemaRefused where none kept to the form that was asked for; where a
    later one fails, or would outlast the call's budget, the earlier answer stands.
    """
    said, failing, refused, why = None, None, None, "first answer"
    if run.machine.state is RunState.MODEL_SELECTION:
        run.advance(Event.ROLE_SELECTED)
    for number in range(1, wanted.attempts + 1):
        if wanted.attempts > 1:  # the parts of a long summary have one attempt, and there may be hundreds of them
            note(run, number, wanted.role, why, failing.detail if failing else "")
        answer, left_s = None, run.left_s()
        try:
            with anyio.fail_after(left_s - HAND_BACK_S if said and left_s else None):  # time to hand `said` back
                answer = await generate(run, staff.models, wanted, failing)
        except SchemaRefused as error:  # another attempt, or a heavier model, may keep to the form
            refused, used = error, info_of(staff.models, wanted.role).model
            failing = fault("schema", error.found or error.message)
        except (RoleError, TimeoutError) as error:
            if said is None:
                raise
            note(run, number, wanted.role, f"no answer: {ended(run, error)}")
            run.advance(Event.FELL_BACK)
            return said
        run.advance(Event.GENERATED)
        run.rounds = max(run.rounds, number)
        if answer is not None:
            said, used = await _checked(run, staff, wanted, answer, number, said), answer.model
            failing = said.failing
            if answer.finish == "timeout":
                break
        if failing is None or (role := _next(run, staff, wanted, number, used, failing)) is None:
            break
        run.tell(f"checking: {failing.name} failed, asking {role}", None)
        for event in (Event.RETRY,) if number == 1 else (Event.ESCALATE, Event.ROLE_SELECTED):
            run.advance(event)
        wanted, why = replace(wanted, role=role), f"{'repair' if number == 1 else 'escalation'}: {failing.name}"
        if number == 1 and wanted.name == "code" and failing.name != "finished":  # no plan makes it shorter
            wanted = await _planned(run, staff, wanted, failing)
    if failing is not None and wanted.attempts > 1 and failing.name not in wanted.mends:
        note(run, run.rounds, wanted.role, f"gave up: {failing.name}", failing.detail)
    if said is None:
        assert refused is not None
        raise refused
    return said


def settle(run: Run, said: Said) -> None:
    """Close VALIDATION: note the checks, and mark the answer unverified where a decisive one still fails."""
    run.checks.extend(said.checks)
    if said.failing is not None:
        run.unverified(said.failing)
    for check in said.checks if said.failing is None else ():
        if check.verdict is Verdict.UNSUPPORTED and not check.decisive:
            run.mark("ok", f"Look again: {check.detail}.")
    run.advance(Event.GAVE_UP if said.failing else Event.PASSED)


async def _checked(
    run: Run, staff: Staff, wanted: Ask, answer: GenerationResult, number: int, before: Said | None
) -> Said:
    run.answered = answer
    run.tell("checking the answer", None)
    checks = await anyio.to_thread.run_sync(wanted.check, answer.text, answer.finish)
    failing = failed(checks)
    if before and any(check.name == "judge" for check in before.checks):
        detail = "the validation model rejected an earlier answer, and this one was not judged again"
        checks += (Check(name="judge", verdict=Verdict.UNSUPPORTED, decisive=False, detail=detail),)
    elif answer.finish == "timeout":
        if failing is not None and failing.name == "finished":
            failing = None  # said already, as a partial answer
    elif wanted.judged and not any(check.decisive for check in checks):
        checks += await _judged(run, staff, wanted, answer, number)
        failing = failed(checks)
    return Said(answer.text.strip(), checks, failing)


async def _planned(run: Run, staff: Staff, wanted: Ask, failing: Check) -> Ask:
    """The coding task with a plan by the reasoning role among its documents; as it was where nobody can plan it."""
    info = second(_open(run, staff), Role.REASONING, info_of(staff.models, wanted.role).model)
    if info is None:
        return wanted
    note(run, 2, info.role, f"plan: {failing.name}", failing.detail)
    run.tell(f"asking {info.role} for a plan", None)
    turn = Turn(role=info.role, name="plan", values={**wanted.values, "finding": failing.detail})
    with aside(run, 2, info.role, "no plan"):
        plan = (await generate(run, staff.models, turn, aside=True)).text
        run.advance(Event.PLANNED)
        planned = replace(wanted, values=with_documents(wanted.values, document(plan, "a plan for the task")))
        return planned if fits(staff.models, planned) else wanted
    return wanted


async def _judged(run: Run, staff: Staff, wanted: Ask, answer: GenerationResult, number: int) -> tuple[Check, ...]:
    """Whether the validation role finds the answer supported by the documents; nothing where nobody can judge it.

    Nothing is generated: only its "yes" and "no" are compared.
    """
    info = second(_open(run, staff), Role.VALIDATION, answer.model)
    if info is None:
        return ()
    values = with_documents(wanted.values, document(answer.text, "the answer"))
    turn = Turn(role=info.role, name="judge", values=values)
    run.tell(f"asking {info.role} whether the documents support the answer", None)
    with aside(run, number, info.role, "not judged"):
        yes, no = await staff.models.score_labels(info.role, messages(turn), ("yes", "no"))
        verdict, found = Verdict.ABSTAIN, "cannot tell"
        if yes - no >= CLEAR:
            verdict, found = Verdict.SUPPORTED, "finds it supported"
        elif no - yes >= CLEAR:
            verdict, found = Verdict.UNSUPPORTED, "finds no support for it in the documents"
        run.prompts["judge"] = prompt("judge").sha256
        note(run, number, info.role, f"judged: {verdict}")
        decides = verdict is Verdict.UNSUPPORTED
        return (Check(name="judge", verdict=verdict, decisive=decides, detail=f"the validation model {found}"),)
    return ()


def _open(run: Run, staff: Staff) -> tuple[RoleInfo, ...]:
    """The roles that a later round may ask: those that the user's rules leave open for this request."""
    infos, decision = staff.models.roles(), run.decision
    if decision is None or run.features is None or run.router_state is None:
        return infos
    rules = staff.router.snapshot().rules
    asked = effect(rules, decision.task_type, decision.agent, decision.confidence, run.features, run.router_state)
    return tuple(info for info in infos if info.role not in asked.forbid and asked.force in (None, info.role))


def _next(run: Run, staff: Staff, wanted: Ask, number: int, used_model: str, failing: Check) -> Role | None:
    """Who is asked after round `number`; None where nobody is left to ask, or the caller mends the fault itself."""
    if number == wanted.attempts or (number > 1 and failing.name in wanted.mends):
        return None
    return wanted.role if number == 1 else _heavier(run, staff, wanted.role, used_model)


def _heavier(run: Run, staff: Staff, role: Role, used_model: str) -> Role | None:
    """The next role up whose model is on disk, no smaller, and not the one that just failed."""
    coding = role in (Role.CODING, Role.CODING_LARGE_CONTEXT)
    order = (Role.CODING_LARGE_CONTEXT if coding else Role.REASONING, Role.REASONING_HEAVY)
    size = max((info.size_bytes for info in staff.models.roles() if info.model == used_model), default=0)
    able = (each for each in _open(run, staff) if each.present and each.model != used_model and each.role is not role)
    others = {each.role for each in able if (each.size_bytes or size) >= size}
    return next((other for other in order if other in others), None)
