"""Malformed frames, bad arguments and floods, through the real shim and host."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from mcp.types import jsonrpc_message_adapter

from rolecall.config.home import Home
from rolecall.server.connect import lock_holder
from tests.conftest import ROLECALL, StartClient, Stdio

from .listening import listening
from .malformed import Frame, bad_arguments, frames

GROWTH_BYTES = 50_000_000
ANSWERED_S = 1.0
FLOOD = 10_000


@pytest.fixture
def client(home: Home, tmp_path: Path) -> Iterator[Stdio]:
    """A client of the product, whose host has answered every tool once; it has no models."""
    started = Stdio([ROLECALL, "serve"], tmp_path, dict(os.environ))
    started.initialize()
    for tool in started.request("tools/list")["result"]["tools"]:
        started.request("tools/call", {"name": tool["name"], "arguments": {}})
    assert "4" in started.tool("route", request="what is 2 + 2?")
    assert typed(started.request("tools/call", {"name": "route", "arguments": {"request": "for a model"}}))
    yield started
    if started.process.poll() is None:
        started.process.kill()
        started.process.communicate()


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_every_malformed_frame_is_answered_with_its_id_and_nothing_else_is_said(
    home: Home, client: Stdio, count: int
) -> None:
    host = psutil.Process(lock_holder(home))
    before = host.memory_info().rss
    made = frames(seed=5, count=count)
    while batch := list(islice(made, 50)):
        exchange(client, batch)
    assert "result" in client.request("tools/list")
    grown = host.memory_info().rss - before
    assert grown < GROWTH_BYTES, f"the host grew by {grown / 1e6:.0f} MB"
    assert lock_holder(home) == host.pid
    assert client.close() == (0, [], "")


@pytest.mark.anyio
@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("era", ["legacy", "2026-07-28"])
async def test_every_malformed_frame_over_http_is_answered_with_its_id(
    home: Home, client: Stdio, era: str, count: int
) -> None:
    host = lock_holder(home)
    async with listening(home) as at, httpx2.AsyncClient(headers=at.headers, timeout=30.0) as http:
        if era == "legacy":
            opened = await http.post(at.url, content=_INITIALIZE)
            http.headers |= {"Mcp-Session-Id": opened.headers["mcp-session-id"], "Mcp-Protocol-Version": "2025-11-25"}
        else:
            http.headers["Mcp-Protocol-Version"] = era
        for frame in frames(seed=7, count=count):
            if frame.kind in ("over_lines", "flipped"):  # over HTTP one whole message, or perhaps one
                continue
            response = await http.post(at.url, content=frame.data)
            if frame.kind == "oversized":
                assert response.status_code == 413
                continue
            assert response.text, (frame.kind, frame.data[:200], response.status_code, response.headers)
            answer = _body(response)
            jsonrpc_message_adapter.validate_python(answer, by_name=False)
            (found, codes), code = frame.answers[0], answer["error"]["code"]
            assert answer["id"] == found, (frame.kind, frame.data[:200], answer)
            assert code in codes or (era != "legacy" and frame.kind in _ENVELOPED), (frame.kind, answer)
    assert "result" in client.request("tools/list")
    assert lock_holder(home) == host


_INITIALIZE = (
    b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},'
    b'"clientInfo":{"name":"test","version":"1"}}}'
)
_ENVELOPED = ("no_such_method", "spec_params")
"""Frames that are sound JSON-RPC: without the envelope of the stateless era they are refused for that."""


def _body(response: httpx2.Response) -> dict[str, Any]:
    """The message of a response, which may be the last of an event stream."""
    if response.headers["content-type"].startswith("text/event-stream"):
        messages = [line.removeprefix("data: ") for line in response.text.split("\n") if line.startswith("data: {")]
        return dict(json.loads(messages[-1]))
    return dict(response.json())


def exchange(client: Stdio, batch: Sequence[Frame]) -> None:
    """Send frames and a ping; every line that comes back is a message, and an answer that a frame is to have."""
    for frame in batch:
        client.write(frame.data)
    ping = client.send("ping")
    wanted = [(frame, *answer) for frame in batch for answer in frame.answers]
    pinged = False
    while wanted or not pinged:
        answer = client.receive(ANSWERED_S if pinged else 30.0)
        jsonrpc_message_adapter.validate_python(answer, by_name=False)
        found, code = answer["id"], answer.get("error", {}).get("code")
        pinged = pinged or found == ping
        if found == ping:
            continue
        fits = [each for each in wanted if each[1] == found and (code in each[2] or not each[2])]
        fits = fits or [each for each in wanted if each[1:] == (None, ())]
        assert fits, (answer, [(frame.kind, frame.data[:200]) for frame, *_ in wanted])
        wanted.remove(fits[0])


@pytest.mark.parametrize("count", [100, pytest.param(1_000, marks=pytest.mark.soak)])
def test_bad_arguments_have_one_typed_reply_each_and_cost_no_memory(home: Home, client: Stdio, count: int) -> None:
    host = psutil.Process(lock_holder(home))
    tools = client.request("tools/list")["result"]["tools"]
    before = host.memory_info().rss
    for tool in tools:
        for given in bad_arguments(seed=6, count=count, schema=tool["inputSchema"]):
            asked = client.send("tools/call", {"name": tool["name"], "arguments": given})
            answer = client.receive(ANSWERED_S)
            assert answer["id"] == asked
            assert typed(answer), answer
        client.request("ping")  # nothing came a second time
    grown = host.memory_info().rss - before
    assert grown < GROWTH_BYTES, f"the host grew by {grown / 1e6:.0f} MB"
    assert lock_holder(home) == host.pid
    assert client.close() == (0, [], "")


def typed(answer: dict[str, Any]) -> bool:
    """Whether an answer is a result or says by a code what is wrong, and is no longer than a client can read."""
    if "error" in answer:
        return bool(answer["error"]["data"]["code"]) and len(json.dumps(answer)) < 10_000
    result = answer["result"]
    text = result["content"][0]["text"]
    return not result.get("isError") or (text.startswith("[") and "]" in text and len(text) < 10_000)


def test_one_clients_unread_flood_keeps_nobody_waiting_and_costs_little_memory(
    shared_client: StartClient, shared_home: Home
) -> None:
    deaf, other = shared_client(), shared_client()
    deaf.initialize()
    other.initialize()
    host = psutil.Process(lock_holder(shared_home))
    before = host.memory_info().rss
    flood = threading.Thread(target=_flood, args=(deaf,), daemon=True)
    flood.start()
    for _ in range(200):
        assert other.send("tools/list") == other.receive(ANSWERED_S)["id"]
    assert host.memory_info().rss - before < GROWTH_BYTES
    assert psutil.Process(deaf.process.pid).memory_info().rss < GROWTH_BYTES
    deaf.process.kill()
    flood.join()
    assert "result" in other.request("tools/list")


def _flood(client: Stdio) -> None:
    try:
        for _ in range(FLOOD):
            client.send("tools/list")
    except OSError:  # its process was ended
        pass


def test_a_flood_that_is_read_is_answered_request_by_request(shared_client: StartClient) -> None:
    client, other = shared_client(), shared_client()
    client.initialize()
    other.initialize()
    flood = threading.Thread(target=_flood, args=(client,), daemon=True)
    flood.start()
    answers = list[dict[str, Any]]()
    for number in range(FLOOD):
        answers.append(client.receive())
        if number % 500 == 0:
            assert other.send("tools/list") == other.receive(ANSWERED_S)["id"]
    flood.join()
    assert {answer["id"] for answer in answers} == set(range(2, FLOOD + 2))
    refused = [answer["error"] for answer in answers if "error" in answer]
    assert {error["data"]["code"] for error in refused} <= {"too_many_requests"}
    assert "result" in client.request("tools/list")


def test_more_requests_than_may_be_open_are_refused_and_cancelled_ones_do_not_count(
    shared_client: StartClient, tmp_path: Path
) -> None:
    client = shared_client()
    client.initialize()
    for _ in range(3):
        asked = [
            client.send("tools/call", {"name": "wait", "arguments": {"mark": str(tmp_path / str(number))}})
            for number in range(130)
        ]
        refused = [client.receive() for _ in range(2)]
        assert [error["id"] for error in refused] == asked[128:]
        assert refused[0]["error"]["data"]["code"] == "too_many_requests"
        for number in asked:
            client.write(b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%d}}' % number)
        assert "result" in client.request("ping")
