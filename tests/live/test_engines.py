"""One role, two engines in one run: an OpenAI-compatible server of three ranks, and a worker where that is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import psutil
import pytest

from rolecall.config.home import Home
from rolecall.config.settings import load_settings
from rolecall.roles.contract import Event, Generated, GenerationRequest, Message, Role
from rolecall.roles.errors import SchemaRefused
from rolecall.roles.manager import ModelManager
from rolecall.roles.starter import TEXT_FP32
from rolecall.roles.worker.blas import find_fast_blas
from tests.conftest import eventually

pytestmark = [pytest.mark.live, pytest.mark.anyio]
PATIENCE_S = 900.0  # three ranks meet twice in every layer: seconds a token where other work has the cores
RANKS = 3  # the starter's 9 heads and 3 KV heads divide by it


@dataclass
class Launched:
    """`mlx.launch` and what it started, a session of their own."""

    process: subprocess.Popen[bytes]
    url: str
    model: str

    def members(self) -> list[int]:
        pids = []
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(pid) == self.process.pid:
                    pids.append(pid)
        return pids

    def stop(self) -> None:
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal_number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        eventually(lambda: not self.members(), "no rank is left")


@pytest.fixture
def launched(starter_models: Path, tmp_path: Path) -> Iterator[Launched]:
    """The recipe of docs/engines.md on this machine: one model in three processes, ring back end on loopback."""
    folder, bin = (starter_models / TEXT_FP32).resolve(), Path(sys.executable).parent
    port, ring = free_ports()
    command = [bin / "mlx.launch", "-n", str(RANKS), "--backend", "ring", "--starting-port", str(ring), "--"]
    command += [bin / "mlx_lm.server", "--model", folder, "--host", "127.0.0.1", "--port", str(port)]
    (tmp_path / "cache").mkdir()  # /v1/models fails where there is none
    fast = ":".join(map(str, find_fast_blas()[1]))
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "LD_PRELOAD": fast}
    env["OMP_NUM_THREADS"] = "1"  # there are more ranks than cores
    with (tmp_path / "launch.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=tmp_path, start_new_session=True)
    server = Launched(process, f"http://127.0.0.1:{port}/v1", str(folder))
    try:
        eventually(lambda: healthy(port), "the server listens", PATIENCE_S)
        yield server
    finally:
        server.stop()


def free_ports() -> tuple[int, int]:
    """One port, and the first of as many as the ring takes."""
    with socket.socket() as one, socket.socket() as ring:
        one.bind(("127.0.0.1", 0))
        ring.bind(("127.0.0.1", 0))
        return one.getsockname()[1], min(ring.getsockname()[1], 65000)


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


@pytest.mark.soak
async def test_a_role_is_served_by_three_ranks_and_by_a_worker_once_they_are_gone(
    starter_home: Home, launched: Launched
) -> None:
    starter_home.settings_file.write_text(
        f"""
profile: starter
host: {{spare_worker: false}}
endpoints:
  spread: {{url: {launched.url}, model: "{launched.model}", timeout_s: {PATIENCE_S}}}
roles:
  router: {{pinned: false, context_length: 512}}
  reasoning: {{engines: [spread, mlx], context_length: 512, timeout_s: {PATIENCE_S}, repetition_penalty: 1.0}}
  coding: {{engines: [spread], timeout_s: {PATIENCE_S}}}
"""
    )
    events: list[Event] = []
    question = (Message(role="user", content="What is the capital of France?"),)
    request = GenerationRequest(messages=question, max_tokens=12)
    with anyio.fail_after(PATIENCE_S):
        async with ModelManager(starter_home, load_settings(starter_home)) as manager:
            there = await manager.generate(Role.REASONING, request, events.append)
            with pytest.raises(SchemaRefused, match="not enforced"):  # found out: it would answer in prose
                await manager.generate(Role.CODING, request.model_copy(update={"json_schema": {"type": "integer"}}))
            the, bon = await manager.score_labels(Role.CODING, question, ["The", "Bon"])
            assert manager.resident() == ()

            here = await manager.generate(Role.ROUTER, request)
            launched.stop()
            instead = await manager.generate(Role.REASONING, request)

    assert (there.model, there.finish, there.degraded) == (launched.model, "stop", "")
    assert "".join(event.text for event in events if isinstance(event, Generated)).strip() == there.text
    assert (there.text, there.prompt_tokens) == ("The capital of France is Paris.", here.prompt_tokens)
    assert the > bon
    assert (here.model, instead.model, instead.text) == (TEXT_FP32, TEXT_FP32, there.text)
    assert "spread" in instead.degraded
