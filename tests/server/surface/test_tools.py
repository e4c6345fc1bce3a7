"""The tools as a real client sees them, over scripted models."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import mcp_types as types
import pytest
from mcp import Client

from rolecall.retrieval.contract import IndexState
from rolecall.server.orchestration.contract import Call, OnProgress, Outcome
from rolecall.server.surface.reply import freshness
from rolecall.server.surface.server import build_server
from rolecall.server.surface.tools import tool_list
from rolecall.server.telemetry.store import ReceiptStore
from tests.server.desk import MakeDesk, client_of, passage, served

pytestmark = pytest.mark.anyio

Run = Callable[[Call, OnProgress], Awaitable[Outcome]]


@asynccontextmanager
async def connected(run: Run, cwd: Path = Path("/")) -> AsyncIterator[Client]:
    async with (
        aclosing(ReceiptStore(cwd / "results.sqlite3")) as store, served(run, store) as jobs,
        client_of(build_server(jobs), cwd) as client,
    ):  # fmt: skip
        yield client


async def unasked(call: Call, tell: OnProgress) -> Outcome:
    raise AssertionError("the orchestrator must not be asked")


def text_of(result: types.CallToolResult) -> str:
    block = result.content[0]
    assert isinstance(block, types.TextContent)
    return block.text


async def test_seven_tools_are_listed_with_titles_annotations_and_described_arguments() -> None:
    async with connected(unasked) as client:
        tools = (await client.list_tools()).tools
        instructions = client.instructions or ""

    assert [tool.name for tool in tools] == ["route", "reason", "code", "summarize", "retrieve", "validate", "job"]
    for tool in tools:
        assert tool.title and tool.annotations is not None and tool.output_schema is not None
        description = tool.description or ""
        assert len(description.split()) <= 60
        assert re.search(r"\bUse\b|^Follow", description) and "Not for" in description, tool.name
        assert all("description" in schema for schema in described(tool.input_schema)), tool.name
        assert tool.meta == {"anthropic/alwaysLoad": True}
    assert len(instructions.splitlines()) <= 8 and all(tool.name in instructions for tool in tools)


def described(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas of all parameters, nested ones too."""
    inner = list(schema.get("properties", {}).values())
    return inner + [deeper for each in inner for deeper in described(each)]


async def test_the_tool_list_stays_short_enough_for_every_conversation() -> None:
    tools = tool_list().model_dump(mode="json", by_alias=True, exclude_none=True)["tools"]
    whole = len(json.dumps(tools))
    bare = len(json.dumps([{k: v for k, v in tool.items() if k != "outputSchema"} for tool in tools]))

    assert (whole <= 13_000, bare <= 6_500) == (True, True), (whole, bare)


@pytest.mark.parametrize(
    ("tool", "arguments", "named"),
    [
        ("route", {"request": "hi", "colour": "red"}, "colour"),
        ("route", {}, "request"),
        ("route", {"request": " \n"}, "empty"),
        ("route", {"request": "\ud800"}, "unicode"),
        ("summarize", {"text": "a" * 10_000_000}, "10000000"),
        ("retrieve", {"query": "x", "filters": {"size": 3}}, "filters.size"),
        ("reason", {"question": "x", "depth": "bottomless"}, "depth"),
        ("poetry", {}, "poetry"),
    ],
)
async def test_a_bad_argument_is_a_typed_error_that_names_it_and_the_next_request_works(
    desk: MakeDesk, tool: str, arguments: dict[str, Any], named: str
) -> None:
    here = desk()
    async with connected(here.orchestrator.run, here.folder) as client:
        refused = await client.call_tool(tool, arguments)
        answered = await client.call_tool("route", {"request": "what is 2 + 2?"})

    assert refused.is_error
    assert text_of(refused).startswith("[bad_request]") and named in text_of(refused)
    assert len(text_of(refused)) < 2000
    assert "4" in text_of(answered)


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("route", {"request": "what is 17 * 23?"}),
        ("reason", {"question": "Why is the sky blue?"}),
        ("code", {"task": "reverse a string", "language": "python"}),
        ("summarize", {"text": "The meeting is on Monday. Everyone comes. " * 30}),
        ("retrieve", {"query": "north depot"}),
        ("validate", {"output": "There are 3 crates.", "evidence": "There are 3 crates in the depot."}),
    ],
)
async def test_each_tool_answers_in_text_and_in_content_that_its_schema_admits(
    desk: MakeDesk, tool: str, arguments: dict[str, Any]
) -> None:
    answer = "```python\ndef f(s):\n    return s[::-1]\n```" if tool == "code" else "The meeting is on Monday."
    here = desk(lambda role, request: answer, passages=(passage("The north depot has 3 crates."),))
    async with connected(here.orchestrator.run, here.folder) as client:
        result = await client.call_tool(tool, arguments)

    assert not result.is_error, text_of(result)
    content = result.structured_content
    schema = next(spec.output_schema for spec in tool_list().tools if spec.name == tool)
    assert schema is not None
    jsonschema.validate(content, schema)
    assert content is not None
    held = {"retrieve": ("passages", "text"), "code": ("blocks", "code")}.get(tool)
    shown = content[held[0]][0][held[1]] if held else content["answer"]
    assert shown in text_of(result) and (held is None or shown not in content["answer"])
    assert await here.store.get(content["receipt_id"]) is not None


async def test_a_request_that_is_routed_to_the_index_is_answered_with_the_passages(desk: MakeDesk) -> None:
    here = desk(passages=(passage("The north depot has 3 crates."),))
    async with connected(here.orchestrator.run, here.folder) as client:
        result = await client.call_tool("route", {"request": "What do our notes say about the north depot?"})
    content = result.structured_content or {}
    assert not result.is_error and content["decision"]["agent"] == "retrieval"
    assert "3 crates" in content["answer"] and "3 crates" in text_of(result)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"indexed": 1200, "age_s": 30.0}, "index: 1,200 files, 0 pending, 0 skipped, 0 failed; synced 30 s ago"),
        (
            {"indexed": 3, "pending": 2, "skipped": 5, "failed": 1, "age_s": 7_300.0,
             "reasons": {"binary": 1, "too_large": 2, "ignored": 3}},
            "index: 3 files, 2 pending, 5 skipped, 1 failed (3 ignored, 2 too large, 1 binary); synced 2 h ago",
        ),
        ({"age_s": None}, "index: 0 files, 0 pending, 0 skipped, 0 failed; never synced whole"),
    ],
)  # fmt: skip
def test_an_index_tells_in_a_line_how_complete_and_how_old_it_is(state: dict[str, Any], words: str) -> None:
    assert freshness(IndexState(**{"indexed": 0, "pending": 0, "skipped": 0, "failed": 0} | state)) == words


@pytest.mark.parametrize("tool", ["retrieve", "route"])
@pytest.mark.parametrize("long", [1, 3_000])
async def test_every_answer_from_the_index_says_how_fresh_it_is(desk: MakeDesk, tool: str, long: int) -> None:
    here = desk(passages=(passage("The north depot has 3 crates. " * long),), pending=2)
    query = {"query" if tool == "retrieve" else "request": "What do our notes say about the north depot?"}
    async with connected(here.orchestrator.run, here.folder) as client:
        result = await client.call_tool(tool, query)

    line = "[index: 1 files, 2 pending, 0 skipped, 0 failed; synced 1 s ago]"
    assert text_of(result).count(line) == 1
    content = result.structured_content or {}
    assert content["index"]["pending"] == 2 if tool == "retrieve" else content["answer"].count(line) == (long == 1)


async def test_an_unexpected_failure_is_typed_and_tells_nothing_of_its_inside() -> None:
    async def broken(call: Call, tell: OnProgress) -> Outcome:
        raise RuntimeError("secret inside")

    async with connected(broken) as client:
        result = await client.call_tool("route", {"request": "hello"})

    assert result.is_error
    assert text_of(result).startswith("[internal]")
    assert "secret" not in text_of(result)


async def test_progress_grows_and_carries_the_words(desk: MakeDesk) -> None:
    told = anyio.Event()
    seen: list[tuple[float, str | None]] = []
    here = desk()

    async def slow(call: Call, tell: OnProgress) -> Outcome:
        tell("loading", 0.3)
        await told.wait()
        return await here.orchestrator.run(call, tell)

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, message))
        told.set()

    async with connected(slow, here.folder) as client:
        await client.call_tool("route", {"request": "what is 2 + 2?"}, progress_callback=on_progress)

    assert "loading" in [message for _, message in seen]
    values = [value for value, _ in seen]
    assert values == sorted(set(values))


async def test_a_cancelled_call_stops_its_work() -> None:
    started, stopped = anyio.Event(), anyio.Event()

    async def endless(call: Call, tell: OnProgress) -> Outcome:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()
        raise AssertionError("unreachable")

    async with connected(endless) as client, anyio.create_task_group() as group:
        group.start_soon(client.call_tool, "route", {"request": "wait"})
        await started.wait()
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True), anyio.fail_after(5):
            await stopped.wait()

    assert stopped.is_set()
