"""`route` and `validate`: let the router decide and answer by the other tools' steps; check without a model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import anyio.to_thread

from rolecall.retrieval.contract import SourceText
from rolecall.retrieval.errors import IndexEmpty
from rolecall.roles.contract import Role

from ..errors import BadRequest
from ..routing.contract import Agent, Decision, TaskType
from ..validation.contract import Subject
from ..validation.verdict import validate as check_subject
from .answer import answer, code, select
from .contract import CodeCall, Outcome, RetrieveCall, RouteCall, ValidateCall
from .record import Run
from .retrieve import in_words, search
from .staff import Staff, agent_answer, estimated_tokens, fix, must
from .states import Event
from .summarize import Summarizer

_PRELOADED = {"system_health": Role.REASONING, "code": Role.CODING}

SUMMARY_WORDS = 200
"""The bound of a summary that comes through `route`: `summarize`'s own default."""


async def route(run: Run, staff: Staff, call: RouteCall) -> Outcome:
    """The tool: the decision and, unless `execute` is off, the answer."""
    if call.channel in _PRELOADED and call.execute:
        staff.models.preload(_PRELOADED[call.channel])
    sources = await staff.read(call.paths, call.cwd)
    extra, state = estimated_tokens(sources, call.context), staff.state(budget_s=call.budget_s)
    features, _, decision = await staff.router.decide(
        call.request, state, extra_tokens=extra, has_paths=bool(sources or call.context)
    )
    run.decided(features, state, decision)
    if not call.execute:
        run.advance(Event.DECISION_WANTED)
        return run.outcome(_in_words(decision))
    if decision.agent is Agent.RETRIEVAL and (found := await _passages(run, staff, call)):
        return found
    if decision.agent and features.claim and (value := await agent_answer(run, staff, features.claim)):
        return run.outcome(value)
    role = decision.role or fix(run, staff, call.request, TaskType.REASONING, extra_tokens=extra)
    select(run)
    return await _by_model(run, staff, call, decision.task_type, must(role), sources)


async def _by_model(
    run: Run, staff: Staff, call: RouteCall, task_type: TaskType, role: Role, sources: Sequence[SourceText]
) -> Outcome:
    match task_type:
        case TaskType.CODING:
            coding = CodeCall(
                task=call.request, paths=call.paths, context=call.context, cwd=call.cwd, session=call.session
            )
            return await code(run, staff, coding, role)
        case TaskType.SUMMARIZATION:
            given = [(str(source.path), source.text) for source in sources]
            if call.context:
                given.append(("context", call.context))
            work = Summarizer(run, staff, role, SUMMARY_WORDS, f", as asked: {call.request}" if given else "")
            summary = await work.condense(given or [("", call.request)])
            run.advance(Event.GAVE_UP if run.status == "unverified" else Event.PASSED)
            return run.outcome(summary)
        case _:
            return await answer(run, staff, role, call.request, sources, call.context, task_type=task_type)


async def _passages(run: Run, staff: Staff, call: RouteCall) -> Outcome | None:
    """What the index holds, quoted; None (and MODEL_SELECTION) where it holds nothing."""
    run.advance(Event.RETRIEVAL_CHOSEN)
    try:
        found = await search(run, staff, RetrieveCall(query=call.request, cwd=call.cwd, session=call.session))
    except IndexEmpty:
        found = None
    if found is None or not found.passages:
        run.advance(Event.NOTHING_FOUND)
        advice = "`rolecall index add FOLDER` indexes a folder."
        run.mark("unverified", f"The index holds nothing on this, so a model answers from its own memory. {advice}")
        return None
    run.advance(Event.PASSAGES_FOUND)
    return run.outcome(in_words(found.passages), passages=found.passages, index=found.index)


def _in_words(decision: Decision) -> str:
    who = decision.agent or decision.role or "nobody"
    model = f" ({decision.model})" if decision.model else ""
    return f"{decision.task_type}: {who}{model}, confidence {decision.confidence:.2f}. {'; '.join(decision.reasons)}."


async def validate(run: Run, staff: Staff, call: ValidateCall) -> Outcome:
    """The tool: deterministic checks, no model. Files are evidence where `output` is given, else the output."""
    sources = await staff.read(call.paths, call.cwd)
    texts = tuple(source.text for source in sources)
    output, evidence = call.output, call.evidence
    if output is None:
        output = "\n\n".join(texts)
    else:
        evidence = (*evidence, *texts)
    if not output.strip() and not texts:
        raise BadRequest("There is nothing to validate.", allowed="output or paths", advice="Give one of them.")
    fix(run, staff, output, TaskType.VALIDATION)
    run.advance(Event.CHECKS_CHOSEN)
    run.tell("checking", None)
    subject = Subject(
        output=output, evidence=evidence, question=call.question, schema_=call.schema, language=call.language
    )
    found = await anyio.to_thread.run_sync(partial(check_subject, subject), abandon_on_cancel=True)
    run.checks.extend(found.checks)
    run.advance(Event.PASSED)
    deciding = [f"{check.name}: {check.detail}" for check in found.checks if check.decisive]
    words = f"{found.verdict.value} (confidence {found.confidence:.2f})"
    return run.outcome("\n".join([words, *deciding]), verdict=found.verdict)
