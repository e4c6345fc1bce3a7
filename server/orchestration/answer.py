"""The tools that give one answer: `route`, `reason`, `code`, and `validate`, which asks no model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import anyio.to_thread

from rolecall.retrieval.contract import SourceText
from rolecall.retrieval.errors import IndexEmpty
from rolecall.roles.contract import Role
from rolecall.roles.errors import SchemaRefused
from rolecall.roles.schema import keeps_to

from ..errors import BadRequest
from ..routing.contract import Agent, TaskType
from ..validation.answer import checker
from ..validation.blocks import CodeBlock, code_blocks
from ..validation.verdict import validate as checked
from .ask import Ask, ask, settle
from .contract import CodeCall, Outcome, ReasonCall, RouteCall, ValidateCall
from .record import Run
from .retrieve import answered, search
from .staff import Staff, agent_answer, allow, as_data, choose, claimed, estimated_tokens
from .states import Event
from .summarize import Summarizer
from .tools import consult
from .turn import info_of, is_small

SUMMARY_WORDS = 200
"""The bound of a summary that comes through `route`: `summarize`'s own default."""

_PRELOADED = {"system_health": Role.REASONING, "code": Role.CODING}


async def route(run: Run, staff: Staff, call: RouteCall) -> Outcome:
    """The tool: the decision and, unless `execute` is off, the answer."""
    if call.channel in _PRELOADED and call.execute:
        staff.models.preload(_PRELOADED[call.channel])
    sources = await staff.read(run, call.paths, call.cwd)
    extra, state = estimated_tokens(sources, call.context), staff.state(call.session, budget_s=call.budget_s)
    features, _, decision = await staff.router.decide(
        call.request, state, extra_tokens=extra, has_paths=bool(sources or call.context)
    )
    run.decided(features, state, decision)
    if not call.execute:
        run.advance(Event.DECISION_WANTED)
        who = (
            f"{decision.role} ({decision.model})" if decision.role else decision.agent or f"denied ({decision.denied})"
        )
        why = "; ".join(decision.reasons)
        return run.outcome(f"{decision.task_type}: {who}, confidence {decision.confidence:.2f}. {why}.")
    allow(decision)
    if decision.agent is Agent.RETRIEVAL and (found := await _from_index(run, staff, call)):
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
            coding = CodeCall(task=call.request, context=call.context)
            text, blocks = await _write(run, staff, role, coding, sources)
            return run.outcome(text, blocks=blocks)
        case TaskType.SUMMARIZATION:
            given = [(str(source.path), source.text) for source in sources]
            given += [("context", call.context)] if call.context else []
            work = Summarizer(run, staff, role, SUMMARY_WORDS, f", as asked: {call.request}" if given else "")
            summary = await work.condense(given or [("", call.request)])
            run.advance(Event.GAVE_UP if run.status == "unverified" else Event.PASSED)
            return run.outcome(summary)
        case kind:
            asked = ReasonCall(question=call.request, context=call.context)
            return await _answer(run, staff, role, asked, sources, kind)


async def reason(run: Run, staff: Staff, call: ReasonCall) -> Outcome:
    """The tool: a deterministic agent where one can parse the whole question, else a model.

    With a schema no agent is asked, since its value has no form.
    """
    sources = await staff.read(run, call.paths, call.cwd)
    if call.schema_ is not None:
        usable, problem = await anyio.to_thread.run_sync(keeps_to, None, call.schema_)
        if usable is None:
            raise SchemaRefused("The schema cannot be used.", found=problem, advice="Give a valid JSON Schema object.")
    elif (parsed := await claimed(run, staff, call.question)) and (value := await agent_answer(run, staff, parsed)):
        return run.outcome(value)
    extra = estimated_tokens(sources, call.context)
    role = choose(run, staff, call.question, TaskType.REASONING, call.depth, extra)
    return await _answer(run, staff, role, call, sources, TaskType.REASONING)


async def code(run: Run, staff: Staff, call: CodeCall) -> Outcome:
    """The tool: code in blocks, or in a new file, which only complete code that parses is written to."""
    target = await staff.target(call.save_to, call.cwd)
    sources = await staff.read(run, call.paths, call.cwd)
    role = choose(run, staff, call.task, TaskType.CODING, extra=estimated_tokens(sources, call.context))
    text, blocks = await _write(run, staff, role, call, sources)
    main = _main_language(blocks)
    if target is None:
        return run.outcome(text, blocks=blocks)
    cut = run.calls[-1][1].finish == "timeout"
    if cut or run.status == "unverified" or not main or any(block.parses is False for block in main):
        run.mark("unverified", f"Nothing was written to {target}, since no complete code came. The answer is here.")
        return run.outcome(text, blocks=blocks)
    source = "\n".join(block.code for block in main)
    saved = await staff.save(run, target, source, call.cwd)
    parses = "it parses" if all(block.parses for block in main) else "not parsed: no parser for this language here"
    return run.outcome(f"Wrote {len(source.splitlines())} lines of code to {saved} ({parses}).", saved_path=saved)


async def validate(run: Run, staff: Staff, call: ValidateCall) -> Outcome:
    """The tool: deterministic checks, no model. Files are evidence where `output` is given, else the output."""
    texts = tuple(source.text for source in await staff.read(run, call.paths, call.cwd))
    output, evidence = call.output, (*call.evidence, *texts)
    if output is None:
        output, evidence = "\n\n".join(texts), tuple(call.evidence)
    if call.output is None and not texts:
        raise BadRequest("There is nothing to validate.", allowed="output or paths", advice="Give one of them.")
    run.advance(Event.CHECKS_CHOSEN)
    run.tell("checking", None)
    how = (evidence, call.question, call.schema_, call.language)
    found = await anyio.to_thread.run_sync(checked, output, *how, abandon_on_cancel=True)
    run.checks.extend(found.checks)
    run.advance(Event.PASSED)
    deciding = [f"{check.name}: {check.detail}" for check in found.checks if check.decisive]
    words = f"{found.verdict.value} (confidence {found.confidence:.2f})"
    return run.outcome("\n".join([words, *deciding]), verdict=found.verdict)


async def _answer(
    run: Run, staff: Staff, role: Role, call: ReasonCall, sources: Sequence[SourceText], kind: TaskType
) -> Outcome:
    """A model's checked answer over files and context. Starts in MODEL_SELECTION."""
    evidence = (*(source.text for source in sources), *([call.context] if call.context else []))
    name = "check" if kind is TaskType.VALIDATION else "read" if evidence else "answer"
    values = {
        "documents": as_data(sources, call.context),
        "length": ", in one or two sentences" if is_small(info_of(staff.models, role)) else "",
        "question": call.question,
        "schema": json.dumps(call.schema_, ensure_ascii=False),
    }
    max_tokens, thinking_budget = None, 0 if call.depth == "quick" else None
    spec = staff.settings.profile.roles.get(role.value)
    if call.depth == "deep" and spec is not None and spec.thinks and spec.thinking_budget:
        max_tokens, thinking_budget = spec.max_tokens + spec.thinking_budget, 2 * spec.thinking_budget
    wanted = Ask(
        role=role, name=name if call.schema_ is None else "data", values=values, schema=call.schema_,
        check=checker(kind, call.question, evidence=evidence, structured=call.schema_ is not None),
        max_tokens=max_tokens, thinking_budget=thinking_budget, judged=name == "read" and call.depth != "quick",
    )  # fmt: skip
    if kind in (TaskType.REASONING, TaskType.TOOL) and call.schema_ is None and call.depth != "quick":
        wanted, found = await consult(run, staff, wanted, call.question)
        wanted = replace(wanted, check=checker(kind, call.question, evidence=(*evidence, *found)))
    said = await ask(run, staff, wanted)
    settle(run, said)
    return run.outcome(said.text, data=None if call.schema_ is None else json.loads(said.text))


async def _from_index(run: Run, staff: Staff, call: RouteCall) -> Outcome | None:
    """A short answer from what the index holds; None (and MODEL_SELECTION) where it holds nothing."""
    run.advance(Event.RETRIEVAL_CHOSEN)
    try:
        found = await search(run, staff, call.request)
    except IndexEmpty:
        found = None
    if found is None or not found.passages:
        run.advance(Event.NOTHING_FOUND)
        advice = "`rolecall index add FOLDER` indexes a folder."
        run.mark("unverified", f"The index holds nothing on this, so a model answers from its own memory. {advice}")
        return None
    return await answered(run, staff, call.request, found, routed=True)


async def _write(
    run: Run, staff: Staff, role: Role, call: CodeCall, sources: Sequence[SourceText]
) -> tuple[str, tuple[CodeBlock, ...]]:
    """A model's checked answer to a coding task, and its blocks. Starts in MODEL_SELECTION."""
    named = {"language": f" {call.language}" if call.language else "", "fence": (call.language or "LANGUAGE").lower()}
    values = {"documents": as_data(sources, call.context), "task": call.task, **named}
    check = checker(TaskType.CODING, call.task, language=call.language)
    said = await ask(run, staff, Ask(role=role, name="code", values=values, check=check))
    settle(run, said)
    return said.text, code_blocks(said.text, call.language)


def _main_language(blocks: Sequence[CodeBlock]) -> list[CodeBlock]:
    """The blocks in the language that most of the code is in: the others show usage or output."""
    by_language = [[block for block in blocks if block.language == each.language] for each in blocks]
    return max(by_language, key=lambda same: sum(len(block.code) for block in same), default=[])
