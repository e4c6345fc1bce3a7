"""Answers and code from one role model: what `reason`, `code` and `route` have in common."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import anyio.to_thread

from rolecall.config.prompts import plain
from rolecall.retrieval.contract import SourceText
from rolecall.roles.contract import Role
from rolecall.roles.errors import SchemaRefused

from ..errors import AnswerRefused
from ..routing.contract import TaskType
from ..validation.answer import check_answer
from ..validation.blocks import CodeBlock, code_blocks
from ..validation.contract import Check, Verdict
from ..validation.json_answer import against_schema, parse_json
from .ask import SMALL_BYTES, Ask, Checker, Said, ask, info_of
from .contract import CodeCall, Depth, Outcome, ReasonCall
from .record import Run
from .staff import Staff, agent_answer, as_data, claimed, estimated_tokens, fix, must
from .states import Event


async def reason(run: Run, staff: Staff, call: ReasonCall) -> Outcome:
    """The tool: a deterministic agent where one can parse the whole question, else a model.

    With a schema no agent is asked, since its value has no form.
    """
    sources = await staff.read(call.paths, call.cwd)
    extra = estimated_tokens(sources, call.context)
    if call.schema is not None:
        _must_be_schema(call.schema)
    elif (parsed := await claimed(run, staff, call.question)) and (value := await agent_answer(run, staff, parsed)):
        return run.outcome(value)
    role = fix(run, staff, call.question, TaskType.REASONING, call.depth, extra_tokens=extra)
    select(run)
    return await answer(
        run, staff, must(role), call.question, sources, call.context, schema=call.schema, depth=call.depth
    )


async def answer(
    run: Run,
    staff: Staff,
    role: Role,
    question: str,
    sources: Sequence[SourceText],
    context: str | None,
    *,
    task_type: TaskType = TaskType.REASONING,
    schema: dict[str, Any] | None = None,
    depth: Depth = "normal",
) -> Outcome:
    """A model's checked answer over files and context. Starts in MODEL_SELECTION.

    Raises:
        AnswerRefused: with a schema, no answer validates against it.
    """
    evidence = (*(source.text for source in sources), *([context] if context else []))
    max_tokens, thinking_budget = _effort(staff, role, depth)
    documents = as_data(sources, context)
    said = await ask(
        run,
        staff.models,
        Ask(
            role=role,
            name=_prompt_name(task_type, schema is not None, bool(documents)),
            values={
                "documents": documents,
                "length": ", in one or two sentences" if info_of(staff.models, role).size_bytes < SMALL_BYTES else "",
                "question": plain(question),
                "schema": json.dumps(schema, ensure_ascii=False),
            },
            check=checker(task_type, question, evidence=evidence, schema=schema),
            max_tokens=max_tokens,
            thinking_budget=thinking_budget,
            schema=schema,
        ),
    )
    if schema is None:
        settle(run, said)
        return run.outcome(said.text)
    value, problem = parse_json(said.text, schema)
    if problem:
        raise AnswerRefused(
            "No answer of the model validates against the schema.",
            found=problem,
            advice="Simplify the schema, give a fuller context, or answer this yourself.",
        )
    settle(run, said)
    return run.outcome(json.dumps(value, ensure_ascii=False), data=value)


async def code(run: Run, staff: Staff, call: CodeCall, role: Role | None = None) -> Outcome:
    """The tool: code in blocks, or in a new file. `role` is given where the router chose it already."""
    target = None
    if call.save_to is not None:
        target = await anyio.to_thread.run_sync(staff.access.writable, call.save_to, call.cwd)
    sources = await staff.read(call.paths, call.cwd)
    if role is None:
        extra = estimated_tokens(sources, call.context)
        role = fix(run, staff, call.task, TaskType.CODING, extra_tokens=extra)
        select(run)
    said = await ask(
        run,
        staff.models,
        Ask(
            role=must(role),
            name="code",
            values={
                "documents": as_data(sources, call.context),
                "task": plain(call.task),
                "language": f" {plain(call.language)}" if call.language else "",
                "fence": plain(call.language or "LANGUAGE").lower(),
            },
            check=checker(TaskType.CODING, call.task, language=call.language),
        ),
    )
    blocks = code_blocks(said.text, call.language)
    settle(run, said)
    if target is None or not blocks or any(block.parses is False for block in blocks):
        if target is not None:
            why = "the code does not parse" if blocks else "the answer holds no code"
            run.mark("unverified", f"Nothing was written to {target}: {why}. The answer is here instead.")
        return run.outcome(said.text, blocks=blocks)
    text = "\n".join(block.code for block in _main_language(blocks))
    saved = await anyio.to_thread.run_sync(staff.access.write_new, target, text, call.cwd)
    parses = "it parses" if all(block.parses for block in blocks) else "not parsed: no parser for this language here"
    return run.outcome(f"Wrote {len(text.splitlines())} lines of code to {saved} ({parses}).", saved_path=str(saved))


def checker(
    task_type: TaskType,
    question: str,
    *,
    evidence: tuple[str, ...] = (),
    schema: dict[str, Any] | None = None,
    language: str | None = None,
) -> Checker:
    """The deterministic checks of an answer of this kind."""

    def check(text: str, finish: str) -> tuple[Check, ...]:
        return check_answer(
            text, task_type=task_type, question=question, evidence=evidence, schema=schema, language=language,
            finish=finish, max_words=None,
        )  # fmt: skip

    return check


def select(run: Run) -> None:
    """To MODEL_SELECTION, unless an agent that found nothing led there already."""
    if run.machine.state == "ROUTING_DECISION":
        run.advance(Event.MODEL_CHOSEN)


def settle(run: Run, said: Said) -> None:
    """Close VALIDATION: note the checks, and mark the answer unverified where a decisive one still fails."""
    run.checks.extend(said.checks)
    if said.failing is not None:
        run.unverified(said.failing)
    run.advance(Event.GAVE_UP if said.failing else Event.PASSED)


def _prompt_name(task_type: TaskType, with_schema: bool, with_documents: bool) -> str:
    if with_schema:
        return "data"
    if task_type is TaskType.VALIDATION:
        return "check"
    return "read" if with_documents else "answer"


def _effort(staff: Staff, role: Role, depth: Depth) -> tuple[int | None, int | None]:
    """(max_tokens, thinking_budget) of a depth: quick thinks not at all, deep twice as long as the role's default."""
    spec = staff.settings.profile.roles.get(role.value)
    if depth == "quick":
        return None, 0
    if depth == "deep" and spec is not None and spec.thinks and spec.thinking_budget:
        return spec.max_tokens + spec.thinking_budget, 2 * spec.thinking_budget
    return None, None


def _main_language(blocks: Sequence[CodeBlock]) -> list[CodeBlock]:
    """The blocks in the language that most of the code is in: the others show usage or output."""
    sizes: dict[str, int] = {}
    for block in blocks:
        sizes[block.language] = sizes.get(block.language, 0) + len(block.code)
    main = max(sizes, key=lambda language: sizes[language])
    return [block for block in blocks if block.language == main]


def _must_be_schema(schema: dict[str, Any]) -> None:
    verdict, problem = against_schema(None, schema)
    if verdict is Verdict.ABSTAIN:
        raise SchemaRefused("The schema cannot be used.", found=problem, advice="Give a valid JSON Schema object.")
