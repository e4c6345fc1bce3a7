"""Answers and code from one role model: what `reason`, `code` and `route` have in common."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rolecall.retrieval.contract import SourceText
from rolecall.roles.contract import Role
from rolecall.roles.errors import SchemaRefused

from ..errors import AnswerRefused
from ..routing.contract import TaskType
from ..validation.blocks import CodeBlock, code_blocks
from ..validation.contract import Verdict
from ..validation.json_answer import against_schema, parse_json
from .ask import SMALL_BYTES, Ask, ask, checker, info_of, settle
from .contract import CodeCall, Depth, Outcome, ReasonCall
from .record import Run
from .staff import Staff, agent_answer, as_data, choose, claimed, estimated_tokens


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
    role = choose(run, staff, call.question, TaskType.REASONING, call.depth, extra)
    return await answer(run, staff, role, call.question, sources, call.context, schema=call.schema, depth=call.depth)


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
    if schema is not None:
        name = "data"
    elif task_type is TaskType.VALIDATION:
        name = "check"
    else:
        name = "read" if evidence else "answer"
    wanted = Ask(
        role=role,
        name=name,
        values={
            "documents": as_data(sources, context),
            "length": ", in one or two sentences" if info_of(staff.models, role).size_bytes < SMALL_BYTES else "",
            "question": question,
            "schema": json.dumps(schema, ensure_ascii=False),
        },
        check=checker(task_type, question, evidence=evidence, schema=schema),
        max_tokens=max_tokens,
        thinking_budget=thinking_budget,
        schema=schema,
    )
    said = await ask(run, staff.models, wanted)
    settle(run, said)
    if schema is None:
        return run.outcome(said.text)
    value, problem = parse_json(said.text, schema)
    if problem:
        raise AnswerRefused(
            "No answer of the model validates against the schema.",
            found=problem,
            advice="Simplify the schema, give a fuller context, or answer this yourself.",
        )
    return run.outcome(json.dumps(value, ensure_ascii=False), data=value)


async def code(run: Run, staff: Staff, call: CodeCall) -> Outcome:
    """The tool: code in blocks, or in a new file, which only complete code that parses is written to."""
    target = await staff.target(call.save_to, call.cwd)
    sources = await staff.read(call.paths, call.cwd)
    role = choose(run, staff, call.task, TaskType.CODING, extra=estimated_tokens(sources, call.context))
    text, blocks = await write(run, staff, role, call.task, as_data(sources, call.context), call.language)
    main = _main_language(blocks)
    if target is None:
        return run.outcome(text, blocks=blocks)
    if run.status in ("partial", "unverified") or not main or any(block.parses is False for block in main):
        run.mark("unverified", f"Nothing was written to {target}, since no complete code came. The answer is here.")
        return run.outcome(text, blocks=blocks)
    source = "\n".join(block.code for block in main)
    saved = await staff.save(target, source, call.cwd)
    parses = "it parses" if all(block.parses for block in main) else "not parsed: no parser for this language here"
    return run.outcome(f"Wrote {len(source.splitlines())} lines of code to {saved} ({parses}).", saved_path=saved)


async def write(
    run: Run, staff: Staff, role: Role, task: str, documents: str, language: str | None = None
) -> tuple[str, tuple[CodeBlock, ...]]:
    """A model's checked answer to a coding task, and its blocks. Starts in MODEL_SELECTION, ends in SYNTHESIS."""
    values = {
        "documents": documents,
        "task": task,
        "language": f" {language}" if language else "",
        "fence": (language or "LANGUAGE").lower(),
    }
    check = checker(TaskType.CODING, task, language=language)
    said = await ask(run, staff.models, Ask(role=role, name="code", values=values, check=check))
    settle(run, said)
    return said.text, code_blocks(said.text, language)


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
    sizes = Counter[str]()
    for block in blocks:
        sizes[block.language] += len(block.code)
    main = max(sizes, key=sizes.__getitem__, default="")
    return [block for block in blocks if block.language == main]


def _must_be_schema(schema: dict[str, Any]) -> None:
    verdict, problem = against_schema(None, schema)
    if verdict is Verdict.ABSTAIN:
        raise SchemaRefused("The schema cannot be used.", found=problem, advice="Give a valid JSON Schema object.")
