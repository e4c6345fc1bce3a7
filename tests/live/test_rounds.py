"""Rounds on real models: requests that the checks look at, the trails, and the form for tools."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest

from rolecall.config.home import Home
from rolecall.config.prompts import prompt
from rolecall.retrieval.access import AllowedFolders
from rolecall.roles.contract import GenerationRequest, Message, Role
from rolecall.roles.errors import SchemaRefused
from rolecall.roles.manager import ModelManager
from rolecall.server.orchestration.contract import CodeCall, ReasonCall, RetrieveCall, SummarizeCall
from rolecall.server.orchestration.run import Orchestrator
from rolecall.server.orchestration.staff import Staff
from rolecall.server.orchestration.tools import SCHEMA
from rolecall.server.routing.router import Router
from rolecall.server.session import SessionInfo, current_session
from rolecall.server.telemetry.store import ReceiptStore

from ..server.desk import ListRetriever, passage
from .conftest import Tell
from .test_model_manager import settings_for

pytestmark = [pytest.mark.live, pytest.mark.anyio]

CRANE = "The harbour crane lifts at most 43 tonnes. It was built in 1974 and painted red in 1988."
THIRTY = {"type": "array", "items": {"type": "string"}, "minItems": 30, "maxItems": 30}
REQUESTS: list[tuple[type[Any], dict[str, Any]]] = [
    (CodeCall, {"task": "Write a function that parses a date.", "language": "python"}),
    (CodeCall, {"task": "Write the number 7.", "language": "json"}),
    (CodeCall, {"task": "Say yes."}),
    (ReasonCall, {"question": "Complete and write only the equation: 17 + 25 =", "depth": "quick"}),
    (ReasonCall, {"question": "Write one line of a poem.", "depth": "quick"}),
    (ReasonCall, {"question": "Repeat the document.", "context": CRANE, "depth": "quick"}),
    (ReasonCall, {"question": "Name thirty fruits.", "schema": THIRTY, "depth": "quick"}),
    (SummarizeCall, {"text": CRANE, "focus": "how many tonnes seven such cranes lift", "max_words": 5}),
    (RetrieveCall, {"query": "How much can the crane lift?", "mode": "answer"}),
    (RetrieveCall, {"query": "Who wrote Hamlet?", "mode": "answer"}),
]


@pytest.mark.soak
async def test_requests_end_within_three_rounds_and_say_why_each_was(starter_home: Home, tell: Tell) -> None:
    settings = settings_for(starter_home, 1.6)
    spec = {name: role.model_copy(update={"max_tokens": 24}) for name, role in settings.profile.roles.items()}
    settings = settings.model_copy(update={"profile": settings.profile.model_copy(update={"roles": spec})})
    store, retriever = ReceiptStore(starter_home.receipts_db), ListRetriever((passage(CRANE),))
    failed = 0
    async with ModelManager(starter_home, settings) as models:
        access = AllowedFolders(starter_home)
        orchestrator = Orchestrator(Staff(models, retriever, Router(models, "starter"), access, settings), store)
        current_session.set(SessionInfo("s", starter_home.root))
        for kind, arguments in REQUESTS:
            with suppress(SchemaRefused):
                await orchestrator.run(kind(**arguments), lambda *_: None)
            (receipt,) = await store.recent(1)
            steps = [f"{step['round']} {step['role']} {step['why']}" for step in receipt.trail]
            tell(f"{receipt.status or receipt.state:10} {receipt.timings['total_s']:5.1f} s  {'; '.join(steps)}")
            failed += len(steps) > 1
            assert steps[0].endswith("first answer") and 1 <= receipt.rounds <= 3 and len(steps) <= 4
            assert len(receipt.calls) <= receipt.rounds
            assert ("gave up" in steps[-1]) == (receipt.status in (None, "unverified"))
        tell(f"{failed} of {len(REQUESTS)} first answers failed a check")

        values = {"documents": "", "question": "A crate of 12 eggs costs 7.80. What is one egg?"}
        system, user = prompt("tool").render(**values)
        messages = Message(role="system", content=system), Message(role="user", content=user)
        request = GenerationRequest(messages=messages, max_tokens=128, json_schema=SCHEMA)
        asked = json.loads((await models.generate(Role.REASONING, request)).text)
        assert set(asked) == {"tool", "request"} and asked["tool"] in SCHEMA["properties"]["tool"]["enum"]
    await store.aclose()
    assert failed >= 0.75 * len(REQUESTS)
