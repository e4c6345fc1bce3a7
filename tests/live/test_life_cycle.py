"""The ends of a client in mid-generation, twenty of each; in `make test` one of each with a host."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from rolecall.config.home import Home
from rolecall.server.connect import lock_holder
from rolecall.server.host.control import ControlClient
from tests.conftest import ROLECALL, Stdio, eventually

from .conftest import Tell

pytestmark = [pytest.mark.live, pytest.mark.anyio]

GONE_S = 1.0
PATIENCE_S = 5.0  # where other tests run beside: the second itself is asserted by the full count, alone
LONG_ANSWER = "Write a long story about a lighthouse keeper, with many details."
COUNT = 20
# What a client is to its server: its parent. The pipes are the test's too, so that they outlive it.
_PARENT = """
import subprocess, sys
child = subprocess.Popen(sys.argv[1:])
sys.stderr.write(f"{child.pid}\\n")
sys.stderr.flush()
child.wait()
"""


@contextmanager
def _served(cwd: Path, *options: str) -> Iterator[tuple[Stdio, psutil.Process]]:
    """A client that is a process of its own, and the server that it started, which is in mid-generation."""
    command = [sys.executable, "-c", _PARENT, ROLECALL, "serve", *options]
    client = Stdio(command, cwd, dict(os.environ))
    try:
        assert client.process.stderr is not None
        shim = psutil.Process(int(client.process.stderr.readline()))
        client.initialize()
        client.send(
            "tools/call",
            {"name": "reason", "arguments": {"question": LONG_ANSWER}, "_meta": {"progressToken": "told"}},
        )
        while "token" not in _said(client.receive()):
            pass
        yield client, shim
    finally:
        if client.process.poll() is None:
            client.process.kill()
        client.process.communicate()


def _said(line: dict[str, Any]) -> str:
    assert line.get("method") == "notifications/progress", line
    return str(line["params"].get("message"))


def _end_of_input(client: Stdio, shim: psutil.Process) -> None:
    assert client.process.stdin is not None
    client.process.stdin.close()
    client.process.stdin = None


def _sigterm(client: Stdio, shim: psutil.Process) -> None:
    shim.terminate()


def _parent_killed(client: Stdio, shim: psutil.Process) -> None:
    client.process.send_signal(signal.SIGKILL)


ENDS = (_end_of_input, _sigterm, _parent_killed)


def _gone(processes: list[psutil.Process], patience_s: float) -> float:
    """Seconds until all have ended; fails after `patience_s`."""
    started = time.monotonic()
    eventually(lambda: not any(map(_alive, processes)), f"all of {processes} are gone", patience_s)
    return time.monotonic() - started


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("count", [1, pytest.param(COUNT, marks=pytest.mark.soak)])
async def test_a_client_that_ends_takes_its_shim_and_its_requests_along_and_leaves_models_warm(
    text_only: Home, tmp_path: Path, count: int, tell: Tell
) -> None:
    gone_s, idle_s = list[float](), list[float]()
    async with ControlClient.open(text_only) as control:
        host = lock_holder(text_only)
        warm = None
        for end in ENDS * count:
            with _served(tmp_path) as (client, shim):
                end(client, shim)
                started = time.monotonic()
                gone_s.append(_gone([shim], GONE_S if count > 1 else PATIENCE_S))
                while (resident := await control.call("models_ps"))[0]["in_use"]:
                    assert time.monotonic() < started + (GONE_S if count > 1 else PATIENCE_S), "the request went on"
                idle_s.append(time.monotonic() - started)
            assert warm in (None, resident[0]["pid"])
            warm = resident[0]["pid"]
            assert lock_holder(text_only) == host
    tell(f"{count} ends of each kind: shim gone after at most {max(gone_s):.2f} s, model idle {max(idle_s):.2f} s")


@pytest.mark.soak
def test_a_standalone_server_leaves_no_process_in_mid_generation(staffed: Home, tmp_path: Path, tell: Tell) -> None:
    gone_s = list[float]()
    for end in ENDS * COUNT:
        with _served(tmp_path, "--standalone") as (client, shim):
            host = psutil.Process(lock_holder(staffed))
            family = [shim, host, *host.children(recursive=True)]
            assert len(family) >= 3
            end(client, shim)
            gone_s.append(_gone(family, GONE_S))
        eventually(lambda: lock_holder(staffed) is None, "the lock is free")
    tell(f"{COUNT} ends of each kind: all processes gone after at most {max(gone_s):.2f} s")
