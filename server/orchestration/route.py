"""`route` and `validate`: let the router decide and answer by the other tools' steps; check without a model."""

from __future__ import annotations

from functools import partial

import anyio.to_thread

from rolecall.retrieval.errors import IndexEmpty
from rolecall.roles.contract import Role

from ..errors import BadRequest
from ..routing.contract import Agent, Decision, TaskType
from ..validation.contract import Subject
from ..validation.verdict import validate as check_subject
from .answer import answer, write
from .contract import Outcome, RetrieveCall, RouteCall, ValidateCall
from .record import Run
from .retrieve import in_words, search
from .staff import Staff, agent_answer, as_data, choose, estimated_tokens
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
    if decision.role is None:
        role = choose(run, staff, call.request, TaskType.REASONING, extra=extra)
    else:
        role = decision.role
        run.advance(Event.MODEL_CHOSEN)
    match decision.task_type:
        case TaskType.CODING:
            text, blocks = await write(run, staff, role, call.request, as_data(sources, call.context))
            return run.outcome(text, blocks=blocks)
        case TaskType.SUMMARIZATION:
            given = [(source.path.name, source.text) for source in sources]
            given += [("context", call.context)] if call.context else []
            work = Summarizer(run, staff, role, SUMMARY_WORDS, f", as asked: {call.request}" if given else "")
            return run.outcome(await work.whole(given or [("", call.request)]))
        case kind:
            return await answer(run, staff, role, call.request, sources, call.context, task_type=kind)


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
    """The tool: deterministic checks, no model, so that nothing is decided. Files are evidence where `output` is
    given, else the output."""
    texts = tuple(source.text for source in await staff.read(call.paths, call.cwd))
    output, evidence = call.output, (*call.evidence, *texts)
    if output is None:
        output, evidence = "\n\n".join(texts), call.evidence
    if not output.strip() and not texts:
        raise BadRequest("There is nothing to validate.", allowed="output or paths", advice="Give one of them.")
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
