"""The protocol's own conformance tool against the server object, over the host's HTTP listener."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import anyio.to_thread
import pytest
import yaml

from rolecall.config.home import Home
from rolecall.server.connect import connect, hello
from tests.live.conftest import Tell
from tests.server.listening import listening

from .conftest import HERE, Node

pytestmark = [pytest.mark.conformance, pytest.mark.anyio]

HOST = (sys.executable, "-m", "tests.conformance.host")
PACKAGE = "node_modules/@modelcontextprotocol/conformance"
REVISIONS = pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])


async def run_tool(home: Home, node: Node, revision: str, *options: str) -> tuple[int, int]:
    """Run what a revision has; fails the test unless the tool exits with 0.

    Returns how many of the scenarios that it requires passed, and how many there are.
    """
    connect(home, hello("control", None), command=HOST)[0].close()
    async with listening(home) as at:
        env = {**os.environ, "ROLECALL_TOKEN": at.token}
        words = (f"{PACKAGE}/dist/index.js", "server", "--url", at.url, "--requirements", revision, *options)
        done = await anyio.to_thread.run_sync(lambda: node.run(*words, preload="bearer.mjs", env=env))
    summary = done.stdout.partition("=== SUMMARY ===")[2]
    assert done.returncode == 0, summary + done.stderr[-2000:]
    marks = {name: mark for mark, name in re.findall(r"([✓✗]) (\S+): \d", summary)}
    required = yaml.safe_load((node.folder / PACKAGE / "requirements" / f"{revision}.yaml").read_text())["server"]
    return sum(marks[name] == "✓" for name in required), len(required)


@REVISIONS
async def test_with_the_fixtures_the_server_object_passes_all_that_a_revision_requires(
    home: Home, node: Node, revision: str, monkeypatch: pytest.MonkeyPatch, tell: Tell
) -> None:
    monkeypatch.setenv("CONFORMANCE_FIXTURES", "1")
    monkeypatch.chdir(Path(__file__).parents[2])
    passed, required = await run_tool(home, node, revision)
    tell(f"conformance {revision}, with fixtures: {passed} of {required} required scenarios")
    assert passed == required > 25


@REVISIONS
async def test_as_shipped_only_what_lacks_a_fixture_fails(
    home: Home, node: Node, revision: str, monkeypatch: pytest.MonkeyPatch, tell: Tell
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    expected = HERE / f"without_fixtures.{revision}.yaml"
    passed, required = await run_tool(home, node, revision, "--expected-failures", str(expected))
    tell(f"conformance {revision}, as shipped: {passed} of {required}; {expected.name} says why not the others")
