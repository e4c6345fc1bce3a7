"""The parent's side of a worker that does not do as it should, and the worker's own loop, without a model."""

from __future__ import annotations

import queue
import signal
import sys
import threading
from asyncio.subprocess import PIPE, create_subprocess_exec
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from anyio.lowlevel import checkpoint

from rolecall.roles.contract import GenerationRequest, Message
from rolecall.roles.errors import WorkerDied
from rolecall.roles.lease import PrefillLease
from rolecall.roles.worker.child import MEMORY_EVERY_S, _serve
from rolecall.roles.worker.process import Worker, WorkerSpec

READY = 'import sys; sys.stdout.write(\'{"id": 0, "body": 1}\\n\'); sys.stdout.flush(); '
HANGS = "import ctypes; ctypes.PyDLL(None).pause()"  # a native call that never comes back and holds the interpreter


async def started(code: str, lease: PrefillLease | None = None) -> Worker:
    worker = Worker(await create_subprocess_exec(sys.executable, "-c", READY + code, stdin=PIPE, stdout=PIPE))
    worker.lease = lease
    with anyio.fail_after(60):
        await worker._ready.wait()
    return worker


@pytest.mark.anyio
async def test_stopping_asks_then_terminates_then_kills_and_says_which_it_took() -> None:
    outcomes = {}

    async def stop(code: str, key: str) -> None:
        worker = await started(code)
        outcomes[key] = await worker.stop()
        assert not psutil.pid_exists(worker.pid)

    async with anyio.create_task_group() as group:
        group.start_soon(stop, "sys.stdin.read()", "reads the end of its input")
        group.start_soon(stop, HANGS, "hangs")
        group.start_soon(
            stop, f"import signal; signal.signal(15, signal.SIG_IGN); {HANGS}", "hangs and ignores SIGTERM"
        )
    assert outcomes == {
        "reads the end of its input": "exited",
        "hangs": "terminated",
        "hangs and ignores SIGTERM": "killed",
    }


LEASED = """
import json
def say(body): sys.stdout.write(json.dumps({'id': 0, 'body': body}) + '\\n'); sys.stdout.flush()
say('want')
for number, line in enumerate(sys.stdin, 2):
    assert json.loads(line) == {'id': 0, 'body': 'grant'}
    say(number); say('done'); say('want')
"""


LIMITED = """
import json
limit, request = (json.loads(sys.stdin.readline()) for _ in range(2))
assert limit == {'id': 0, 'body': {'kv_bytes': 5}} and request['body']['thinks'] is False, (limit, request)
sys.stdout.write(json.dumps({'id': 0, 'body': 7}) + '\\n')
"""


@pytest.mark.anyio
async def test_a_limit_reaches_the_worker_before_any_later_request() -> None:
    worker = await started(LIMITED)
    worker.spec = WorkerSpec("text", Path("m"), "m", 256, 1, 0)
    worker.limit_kv(5)
    with anyio.fail_after(60), pytest.raises(WorkerDied):
        await worker.generate(GenerationRequest(messages=(Message(role="user", content="Go."),), max_tokens=1))
    assert worker.measured_bytes == 7
    worker.limit_kv(6)  # a dead one is not told
    await worker.stop()


class Other:
    """Another holder of the lease, which is told of its grants."""

    def __init__(self) -> None:
        self.grants = 0

    def grant_prefill(self) -> None:
        self.grants += 1


@pytest.mark.anyio
async def test_a_worker_takes_turns_at_its_lease_and_gives_it_back_when_it_dies() -> None:
    lease, other = PrefillLease(), Other()
    lease.want(other)
    worker = await started(LEASED, lease)
    lease.want(other)
    with anyio.fail_after(60):
        lease.done(other)
        while other.grants < 2:  # between its two turns the worker has one
            await checkpoint()
        assert worker.measured_bytes == 1, "it was told before the other's turn was over"
        lease.done(other)
        while worker.measured_bytes < 3:
            await checkpoint()
        lease.want(other)
        worker._signal(signal.SIGKILL)
        await worker.exited.wait()
    assert other.grants == 3
    lease.leave(other)
    await worker.stop()


class Engine:
    """Steps a hundred times a second and gets on only until `stuck`."""

    def __init__(self) -> None:
        self.progress, self.steps = 0, 0
        self.patience_s: float | None = 0.0
        self.stuck = threading.Event()
        self.pace = threading.Event()

    def step(self) -> None:
        self.pace.wait(0.01)
        self.steps += 1
        self.progress += not self.stuck.is_set()

    def measured_bytes(self) -> int:
        return self.steps

    def close(self) -> None: ...


def test_a_worker_whose_requests_make_no_progress_falls_silent() -> None:
    said: queue.SimpleQueue[Any] = queue.SimpleQueue()
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    engine: Any = Engine()
    thread = threading.Thread(target=_serve, args=(engine, inbox, lambda id, body: said.put(body)))
    thread.start()
    try:
        said.get(timeout=30)
        assert said.get(timeout=30) > 0, "it gets on and says so"
        engine.stuck.set()
        with pytest.raises(queue.Empty):
            while True:  # at most one more report, of the progress before
                said.get(timeout=3 * MEMORY_EVERY_S)
        engine.patience_s = 0.01  # now it only waits for its turn: that is no hang
        said.get(timeout=30)
    finally:
        inbox.put(None)
        thread.join(timeout=30)
    assert not thread.is_alive()
