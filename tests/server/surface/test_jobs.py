"""Calls that outlast their client, as real clients of both eras see them, and results that outgrow a context."""

from __future__ import annotations

import hashlib
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import mcp_types as types
import pytest
from mcp import Client
from mcp.client._memory import InMemoryTransport

from rolecall.server.orchestration.contract import Call, Item, OnProgress, Outcome
from rolecall.server.orchestration.jobs import Jobs
from rolecall.server.surface import server as surface
from rolecall.server.surface.reply import BYTES_PER_TOKEN
from rolecall.server.surface.server import build_server, call_deadline_s
from rolecall.server.surface.tools import tool_list
from rolecall.server.telemetry.store import ReceiptStore
from tests.server import desk
from tests.server.desk import passage, served

pytestmark = pytest.mark.anyio

ERAS = pytest.mark.parametrize("era", ["legacy", "2026-07-28"])
SOON_S = 0.05
ASKED: dict[str, dict[str, Any]] = {
    "route": {"request": "wait"},
    "reason": {"question": "wait"},
    "code": {"task": "wait"},
    "summarize": {"text": "wait"},
    "retrieve": {"query": "wait"},
    "validate": {"output": "wait"},
}


class Slow:
    """Work that says that it began, and waits for its gate; `stopped` tells that it was cancelled."""

    def __init__(self) -> None:
        self.began, self.gate, self.stopped = anyio.Event(), anyio.Event(), anyio.Event()

    async def __call__(self, call: Call, tell: OnProgress) -> Outcome:
        tell("reasoning: writing, 7 tokens", 0.4)
        self.began.set()
        try:
            await self.gate.wait()
        except anyio.get_cancelled_exc_class():
            self.stopped.set()
            raise
        return Outcome(answer="It is done.", status="ok", receipt_id="R1")


async def at_once(call: Call, tell: OnProgress) -> Outcome:
    raise AssertionError("nothing is to be run")


def store_at(folder: Path) -> aclosing[ReceiptStore]:
    return aclosing(ReceiptStore(folder / "receipts.sqlite3"))


def client_of(
    jobs: Jobs, era: str, session: str = "s1", deadline_s: float | None = SOON_S, **options: Any
) -> AbstractAsyncContextManager[Client]:
    server = InMemoryTransport(build_server(jobs, deadline_s=deadline_s))
    return desk.client_of(server, session=session, mode=era, **options)


def text_of(result: types.CallToolResult) -> str:
    block = result.content[0]
    assert isinstance(block, types.TextContent)
    return block.text


def content_of(tool: str, result: types.CallToolResult) -> dict[str, Any]:
    """The structured content, which the tool's schema must admit."""
    assert not result.is_error, text_of(result)
    schema = next(each.output_schema for each in tool_list().tools if each.name == tool)
    jsonschema.validate(result.structured_content, schema or {})
    assert result.structured_content is not None
    return result.structured_content


async def as_job(client: Client, tool: str = "reason") -> str:
    """Make a call that outlasts its deadline; the job's id."""
    partial = await client.call_tool(tool, ASKED[tool])
    content = content_of(tool, partial)
    assert content["status"] == "partial" and content["job_id"] in text_of(partial)
    return str(content["job_id"])


async def ask(client: Client, id: str, action: str) -> dict[str, Any]:
    return content_of("job", await client.call_tool("job", {"id": id, "action": action}))


@ERAS
async def test_a_call_past_its_deadline_goes_on_and_its_result_is_there_after_a_new_host(
    tmp_path: Path, era: str
) -> None:
    slow = Slow()
    async with store_at(tmp_path) as store, served(slow, store) as jobs, client_of(jobs, era) as client:
        id = await as_job(client)
        assert len(bytes.fromhex(id)) == 16

        running = await ask(client, id, "status")
        assert (running["state"], running["words"], running["fraction"]) == (
            "running", "reasoning: writing, 7 tokens", 0.4,
        )  # fmt: skip
        assert (await ask(client, id, "result"))["state"] == "running" and jobs.busy
        slow.gate.set()
        finished = await client.call_tool("job", {"id": id, "action": "result"})
        assert text_of(finished) == "It is done."
        assert content_of("job", finished)["result"]["answer"] == "It is done." and not jobs.busy
    assert id.encode() not in (tmp_path / "receipts.sqlite3").read_bytes()

    async with store_at(tmp_path) as store, served(at_once, store) as jobs, client_of(jobs, era, "s2") as client:
        again = await ask(client, id, "result")
        assert (again["tool"], again["state"], again["result"]["answer"]) == ("reason", "finished", "It is done.")
        assert (await ask(client, id, "cancel"))["state"] == "finished"


@pytest.mark.parametrize("tool", ASKED)
async def test_what_each_tool_gives_back_past_its_deadline_is_admitted_by_its_schema(tmp_path: Path, tool: str) -> None:
    async with store_at(tmp_path) as store, served(Slow(), store) as jobs, client_of(jobs, "legacy") as client:
        await as_job(client, tool)


@ERAS
async def test_cancelling_a_job_stops_its_work_within_a_second_and_is_remembered(tmp_path: Path, era: str) -> None:
    slow = Slow()
    async with store_at(tmp_path) as store, served(slow, store) as jobs, client_of(jobs, era) as client:
        id = await as_job(client)
        with anyio.fail_after(1.0):
            cancelled = await ask(client, id, "cancel")
        assert slow.stopped.is_set() and cancelled["state"] == "cancelled"
        assert (await ask(client, id, "status"))["state"] == "cancelled"
        refused = await client.call_tool("job", {"id": id, "action": "result"})
    assert refused.is_error and text_of(refused).startswith("[cancelled]")


@ERAS
@pytest.mark.parametrize("action", ["status", "result", "cancel"])
async def test_a_guess_finds_no_job_and_learns_nothing_of_others(tmp_path: Path, era: str, action: str) -> None:
    slow = Slow()
    async with store_at(tmp_path) as store, served(slow, store) as jobs, client_of(jobs, era) as owner:
        id = await as_job(owner)
        stored = hashlib.sha256(id.encode()).hexdigest()
        said = set()
        async with client_of(jobs, era, "s2") as other:
            for guess in ("0" * 32, id[:-1], id.upper() if id.upper() != id else id + "0", id + " ", stored, "*", "%"):
                refused = await other.call_tool("job", {"id": guess, "action": action})
                assert refused.is_error and text_of(refused).startswith("[job_unknown]")
                said.add(text_of(refused).partition(" (request")[0])
        assert len(said) == 1 and not slow.stopped.is_set()


@ERAS
async def test_the_end_of_input_cancels_a_request_but_not_a_job(tmp_path: Path, era: str) -> None:
    request, job = Slow(), Slow()
    async with store_at(tmp_path) as store:
        async with served(request, store) as jobs, anyio.create_task_group() as calls:
            async with client_of(jobs, era, deadline_s=60.0) as client:
                calls.start_soon(refused_or_gone, client)
                await request.began.wait()
            with anyio.fail_after(5):
                await request.stopped.wait()
            calls.cancel_scope.cancel()
        async with served(job, store) as jobs:
            async with client_of(jobs, era) as client:
                id = await as_job(client)
            job.gate.set()
            async with client_of(jobs, era, "s2") as client:
                assert (await ask(client, id, "result"))["result"]["answer"] == "It is done."
    assert not job.stopped.is_set()


async def refused_or_gone(client: Client) -> None:
    with pytest.raises(Exception, match="closed"):
        await client.call_tool("reason", ASKED["reason"])


async def test_a_job_of_a_host_that_died_is_lost_and_one_of_a_host_that_ended_is_cancelled(tmp_path: Path) -> None:
    async with store_at(tmp_path) as store:
        async with served(Slow(), store) as dying:
            async with client_of(dying, "legacy") as client:
                id = await as_job(client)
            # Another host over the same file, while this one has not written the job's end: as after its death.
            async with served(at_once, store) as next_one, client_of(next_one, "legacy") as client:
                lost = await client.call_tool("job", {"id": id, "action": "result"})
                assert lost.is_error and text_of(lost).startswith("[job_lost]") and "again" in text_of(lost)
        async with served(at_once, store) as next_one, client_of(next_one, "legacy") as client:
            assert (await ask(client, id, "status"))["state"] == "cancelled"


@ERAS
async def test_silent_work_is_heard_of_in_growing_numbers_and_in_words(
    tmp_path: Path, era: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surface, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(surface, "PROGRESS_INTERVAL_S", 0.01)
    slow = Slow()
    seen: list[tuple[float, str]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, message or ""))
        if len(seen) == 5:
            slow.gate.set()

    async with store_at(tmp_path) as store, served(slow, store) as jobs, client_of(jobs, era) as client:
        id = await as_job(client)
        async with client_of(jobs, era, deadline_s=20.0) as patient:
            done = await patient.call_tool("job", {"id": id, "action": "result"}, progress_callback=on_progress)

    assert text_of(done) == "It is done."
    values = [value for value, _ in seen]
    assert len(seen) >= 5 and values == sorted(set(values)) and values[-1] < 100
    assert all(words.startswith("reasoning: writing, 7 tokens") for _, words in seen)


HUGE = {
    "retrieve": Outcome(
        answer="x" * 900_000, status="ok", receipt_id="R1",
        passages=tuple(passage("word " * 1000, f"/docs/{number}.md") for number in range(100)),
    ),
    "summarize": Outcome(
        answer="Short.", status="ok", receipt_id="R1",
        items=tuple(Item(f"/docs/{number}.md", "wört " * 500, "ok") for number in range(100)),
    ),
    "reason": Outcome(answer="Short.", status="ok", receipt_id="R1", data=["row"] * 100_000),
    "route": Outcome(answer="é" * 100_000, status="ok", receipt_id="R1"),
}  # fmt: skip


@pytest.mark.parametrize("tool", HUGE)
async def test_a_result_over_twenty_thousand_tokens_is_cut_and_linked_to_the_whole(tmp_path: Path, tool: str) -> None:
    async def run(call: Call, tell: OnProgress) -> Outcome:
        return HUGE[tool]

    async with (
        store_at(tmp_path) as store, served(run, store) as jobs, client_of(jobs, "legacy", deadline_s=60.0) as client,
    ):  # fmt: skip
        result = await client.call_tool(tool, ASKED[tool])
        content, link = content_of(tool, result), result.content[1]
        assert isinstance(link, types.ResourceLink)
        scheme, _, id = link.uri.rpartition("/")
        whole = (await jobs.result(id)).outcome

    assert len(result.model_dump_json(by_alias=True, exclude_none=True).encode()) <= 20_000 * BYTES_PER_TOKEN
    assert scheme == "rolecall://results" and whole == HUGE[tool]
    assert link.uri in content["warnings"][0] and "estimated" in content["warnings"][0]
    assert tool != "retrieve" or len(content["passages"]) > 0
    assert tool != "reason" or content["data"] is None


@pytest.mark.parametrize(
    ("client", "progress", "seconds"),
    [
        ("claude-code", True, 600.0),
        ("claude-code", False, 50.0),
        ("claude-ai", True, 50.0),
        ("codex-mcp-client", True, 50.0),
        ("Visual Studio Code", False, 240.0),
        ("", True, 50.0),
        ("something new", True, 50.0),
    ],
)
async def test_the_deadline_follows_the_client(client: str, progress: bool, seconds: float) -> None:
    assert call_deadline_s(client, progress) == seconds


@ERAS
@pytest.mark.parametrize(("name", "wants", "patient"), [("claude-code", True, True), ("another", True, False)])
async def test_a_client_that_names_itself_is_given_its_own_deadline(
    tmp_path: Path, era: str, name: str, wants: bool, patient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surface, "SHORT_S", SOON_S)
    slow = Slow()

    async def heard(progress: float, total: float | None, message: str | None) -> None:
        if patient:
            slow.gate.set()

    info = types.Implementation(name=name, version="1")
    async with (
        store_at(tmp_path) as store, served(slow, store) as jobs,
        client_of(jobs, era, deadline_s=None, client_info=info) as client,
    ):  # fmt: skip
        result = await client.call_tool("reason", ASKED["reason"], progress_callback=heard if wants else None)
    assert content_of("reason", result)["status"] == ("ok" if patient else "partial")
