"""Other people's clients and checkers over stdio, with the starter's models behind the tools."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters

from rolecall.config.home import Home
from rolecall.server.host.control import ControlClient
from tests.bench.peers import FASTMCP_VERSION, fastmcp_python
from tests.live.conftest import Tell

from .conftest import HERE, Node

pytestmark = pytest.mark.conformance

SERVE = [str(Path(sys.executable).with_name("rolecall")), "serve"]
PROBE = str(Path(sys.executable).with_name("amagi-mcp-probe"))
INSPECTOR = "node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js"
TOOLS = {"route", "reason", "code", "summarize", "retrieve", "validate", "job"}
FACT = "The harbour crane lifts at most 43 tonnes. It was built in 1974. Two engineers inspect it every May."
CLIENT_S = 300

Calls = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def calls(staffed: Home, tmp_path: Path) -> Calls:
    """A call of each of the six tools, over an indexed folder; one that takes over 3 s goes on as a job."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "crane.md").write_text(f"# Harbour\n\n{FACT}\n")
    with staffed.settings_file.open("a") as settings:
        settings.write("host:\n  call_deadline_s: 3\n")

    async def index() -> None:
        async with ControlClient.open(staffed) as control:
            await control.call("index_add", {"folder": str(docs)})

    anyio.run(index)
    return [
        ("route", {"request": "17 * 23"}),
        ("reason", {"question": "Which colour is a ripe banana?", "depth": "quick"}),
        ("code", {"task": "Write a function that returns 7.", "language": "python"}),
        ("summarize", {"paths": [str(docs / "crane.md")], "max_words": 30}),
        ("retrieve", {"query": "harbour crane"}),
        ("validate", {"output": "2 + 2 = 4"}),
    ]


def typescript(calls: Calls, node: Node) -> Any:
    done = node.run("sdk_client.mjs", json.dumps(SERVE), json.dumps(calls), timeout_s=CLIENT_S)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def fastmcp(calls: Calls) -> Any:
    if (python := fastmcp_python()) is None:
        pytest.skip(f"fastmcp {FASTMCP_VERSION} cannot be installed: its client was not checked")
    command = [python, "-P", str(HERE / "fastmcp_client.py"), json.dumps(SERVE), json.dumps(calls)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=CLIENT_S, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def python_sdk(calls: Calls) -> Any:
    async def run() -> dict[str, Any]:
        results = []

        async def call(name: str, given: dict[str, Any]) -> dict[str, Any]:
            result = await client.call_tool(name, given)
            results.append({"name": name, "isError": result.is_error, "content": result.structured_content})
            return result.structured_content or {}

        async with Client(StdioServerParameters(command=SERVE[0], args=SERVE[1:], env=dict(os.environ))) as client:
            tools = [tool.name for tool in (await client.list_tools()).tools]
            for name, given in calls:
                if id := (await call(name, given)).get("job_id"):
                    while (await call("job", {"id": id, "action": "result"})).get("state") == "running":
                        pass
        return {"tools": tools, "results": results}

    return anyio.run(run)


@pytest.mark.parametrize("client", [typescript, fastmcp, python_sdk])
def test_a_client_calls_all_seven_tools_with_a_real_worker_behind(
    client: Callable[..., Any], request: pytest.FixtureRequest, calls: Calls, tell: Tell
) -> None:
    seen = client(calls, request.getfixturevalue("node")) if client is typescript else client(calls)
    assert set(seen["tools"]) == TOOLS
    answers = {}
    for result in seen["results"]:
        assert not result["isError"], result
        content = result["content"]
        if result["name"] == "job":
            if content["state"] != "running":
                assert content["state"] == "finished", content
                answers[content["tool"]] = content["result"]
        elif content["job_id"] is None:
            answers[result["name"]] = content
    assert set(answers) == TOOLS - {"job"}
    assert all(answer["answer"] for answer in answers.values())
    assert "391" in answers["route"]["answer"]
    assert FACT[:30] in answers["retrieve"]["passages"][0]["text"]
    assert answers["validate"]["verdict"] in ("supported", "abstain")
    jobs = sum(result["name"] == "job" for result in seen["results"])
    assert jobs, "no call outlasted its deadline: `job` was not called"
    tell(f"{client.__name__}: 6 tools answered, {jobs} calls of job")


def test_the_inspector_finds_nothing_in_the_list_and_calls_each_tool(staffed: Home, node: Node, calls: Calls) -> None:
    def inspect(*arguments: str) -> Any:
        # Like many clients, it hands its server no variable that it was not told to.
        settings = ("-e", f"ROLECALL_HOME={staffed.root}")
        done = node.run(INSPECTOR, "--cli", *SERVE, *arguments, *settings, timeout_s=CLIENT_S)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    # --strict is of the list alone, where it looks at each tool's schemas.
    assert {tool["name"] for tool in inspect("--method", "tools/list", "--strict")["tools"]} == TOOLS
    for name, given in calls:
        words = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in given.items()]
        result = inspect("--method", "tools/call", "--tool-name", name, "--tool-arg", *words)
        assert not result.get("isError") and result["structuredContent"]["status"] in ("ok", "degraded", "partial")
        if id := result["structuredContent"]["job_id"]:
            result = inspect("--method", "tools/call", "--tool-name", "job", "--tool-arg", f"id={id}", "action=status")
            assert result["structuredContent"]["tool"] == name


def test_a_smoke_test_of_every_tool_finds_neither_error_nor_warning(calls: Calls, tmp_path: Path) -> None:
    jobs = [result["content"]["id"] for result in python_sdk(calls[1:2])["results"] if result["name"] == "job"]
    given = tmp_path / "arguments.json"  # those that it makes up itself name no job and nothing to summarize
    given.write_text(json.dumps({**dict(calls), "job": {"id": jobs[0]}}))
    command = [PROBE, "--strict", "--args", str(given), "--", *SERVE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=CLIENT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 tools: 7 passed" in done.stdout
