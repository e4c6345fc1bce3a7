"""TOOL_EXECUTION: before it answers, a role's model may have something computed or looked up, three times at most.

It asks in the one form that the engine enforces, in a turn that is opened for nothing else and shows the question and
what was computed, no document. So neither a document nor an answer's own text can ask, whatever stands in it, and what
comes back is data like any document.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime

import anyio.to_thread

from rolecall.config.prompts import document
from rolecall.retrieval.errors import RetrievalError
from rolecall.roles.contract import Role

from ..routing.agents.claims import claim, compute
from ..routing.agents.contract import AgentContext
from ..routing.contract import Agent, TaskType
from ..routing.signals import met, read
from .ask import Ask
from .record import Run
from .retrieve import in_words, search
from .staff import Staff, local_zone
from .states import Event
from .turn import Turn, aside, fits, generate, info_of, is_small, note, with_documents

MAX_TOOLS = 3
MAX_PASSAGES = 3

QUOTED = "It was found, and is quoted where the question is answered."
"""What the next turn hears of a search, whose passages are documents."""

TOOLS = (Agent.CALCULATOR, Agent.UNITS, Agent.DATETIME, Agent.RETRIEVAL)
"""What a model may ask: read-only, and without a look at the machine or its files but those that are indexed."""

SCHEMA = {
    "type": "object",
    "properties": {"tool": {"enum": [*TOOLS, "none"]}, "request": {"type": "string", "maxLength": 200}},
    "required": ["tool", "request"],
    "additionalProperties": False,
}


async def consult(run: Run, staff: Staff, wanted: Ask, question: str) -> tuple[Ask, tuple[str, ...]]:
    """The turn with what its model asked for among its documents, and those texts. From MODEL_SELECTION to LLM_CALL,
    or nowhere where the model is small, or the question neither holds figures nor speaks of documents.

    Where the turn is refused, fails or would take more than a third of the call's budget, the answer does without.
    """
    if is_small(info_of(staff.models, wanted.role)) or not _may_need(question):
        return wanted, ()
    texts, heard = dict[str, str](), list[str]()
    run.advance(Event.ROLE_SELECTED)
    with aside(run, 1, wanted.role, "no more tools"):
        while len(texts) < MAX_TOOLS:
            tool, request = await _asked(run, staff, wanted.role, question, "\n\n".join(heard))
            title = f"{tool}: {request}"
            if tool == "none" or title in texts:
                break
            note(run, 1, wanted.role, f"tool: {tool}", request)
            text, quotes = await _served(run, staff, Agent(tool), request)
            more = replace(wanted, name="found", values=with_documents(wanted.values, document(text, title)))
            if not fits(staff.models, more):
                break
            wanted, texts[title] = more, text
            heard.append(document(QUOTED if quotes else text, title))
    return wanted, tuple(texts.values())


async def _asked(run: Run, staff: Staff, role: Role, question: str, heard: str) -> tuple[str, str]:
    """The tool that the model wants next, with its request, or "none"."""
    values = {"documents": heard, "question": question}
    turn = Turn(role=role, name="tool", values=values, max_tokens=128, thinking_budget=0, schema=SCHEMA)
    asked = json.loads((await generate(run, staff.models, turn, aside=True)).text)
    return asked["tool"], asked["request"]


def _may_need(question: str) -> bool:
    """Whether it holds figures, or meets one of the router's rules that speak for the user's documents."""
    reading = read(question)
    return "numbers" in reading.flags or any(rule.weights.get(TaskType.RETRIEVAL, 0.0) > 0 for rule in met(reading))


async def _served(run: Run, staff: Staff, tool: Agent, request: str) -> tuple[str, bool]:
    """What the agent finds, or that it finds nothing, as text, and whether it quotes documents."""
    run.advance(Event.TOOL_ASKED)
    run.tell(f"{tool}: {request}", None)
    try:
        if tool is Agent.RETRIEVAL:
            passages = (await search(run, staff, request, max_results=MAX_PASSAGES)).passages
            return in_words(passages), bool(passages)
        return await anyio.to_thread.run_sync(_computed, request), False
    except RetrievalError as error:
        return error.message, False
    finally:
        run.advance(Event.TOOL_ANSWERED)


def _computed(request: str) -> str:
    """The value of a request that one of the exact agents accounts for as a whole, with its working."""
    parsed = claim(request)
    found = None
    if parsed is not None and parsed.agent in TOOLS:
        found = compute(parsed, AgentContext(now=datetime.now(local_zone())))
    if found is None:
        return "This cannot be computed here."
    return found.text if found.working in ("", found.text) else f"{found.text}\n\n{found.working}"
