"""A home per test, whose host is ended and whose lock is free afterwards; and a client that speaks in raw lines."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from rolecall.config.home import Home
from rolecall.server.connect import Connection, connect, hello, lock_holder
from rolecall.server.protocol import VERSION

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as workers have it: what spins takes the CPU from other tests
TOY = Path(__file__).parent / "server" / "toy"
TOY_HOST = (sys.executable, "-P", str(TOY / "host.py"))
PATIENCE_S = 30.0
ROLECALL = str(Path(sys.executable).with_name("rolecall"))
_kept_locks: list[int] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest alone comes first: at the end one worker would wait for it."""
    items.sort(key=lambda item: item.path.name != "test_packaging.py")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """What a test configures of the log ends with it: it may write to an output that pytest closes."""
    handlers = logging.root.handlers[:]
    yield
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The test's own runtime folder, of a path that is short enough for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="rc", dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A home of the test's own, also in `ROLECALL_HOME`. Its host is ended by its recorded id."""
    monkeypatch.setenv("ROLECALL_HOME", str(tmp_path / "home"))
    with home_at(tmp_path / "home") as made:
        yield made


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home whose toy host runs already, for tests that leave it as they found it."""
    with home_at(tmp_path_factory.mktemp("shared") / "home") as made:
        toy_connection(made, "control")[0].close()
        yield made


@contextmanager
def home_at(root: Path) -> Iterator[Home]:
    made = Home(root).create()
    yield made
    pid = lock_holder(made)
    if pid:
        os.kill(pid, signal.SIGTERM)
    eventually(lambda: lock_holder(made) is None, "the lock of the home is free")
    # A host that a dead client had started may come late: it finds the lock taken, and leaves.
    fd = os.open(made.create().lock_file, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _kept_locks.append(fd)


def eventually(holds: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Wait until `holds()` is true, and return its value; fails the test after `patience_s`."""
    deadline = time.monotonic() + patience_s
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {patience_s} s: {what}"
        select.select([], [], [], 0.01)
    return value


class Stdio:
    """An MCP client that writes and reads the lines of one `rolecall serve`."""

    def __init__(self, command: list[str], cwd: Path, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd, env=env
        )
        self._next_id = 0
        self._buffer = b""

    def write(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def send(self, method: str, params: dict[str, Any] | None = None) -> int:
        """Send a request; returns its id."""
        self._next_id += 1
        self.write(
            json.dumps({"jsonrpc": "2.0", "id": self._next_id, "method": method, "params": params or {}}).encode()
        )
        return self._next_id

    def receive(self, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """The next line; an empty object at the end of the output."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        deadline = time.monotonic() + patience_s
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no line within {patience_s} s"
            chunk = os.read(fd, 1 << 20)
            if not chunk:
                return {}
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def request(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer to a request, which must be the next line."""
        request_id = self.send(method, params)
        answer = self.receive()
        assert answer.get("id") == request_id, answer
        return answer

    def initialize(self, protocol: str = "2025-11-25") -> dict[str, Any]:
        answer = self.request(
            "initialize",
            {"protocolVersion": protocol, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
        )
        self.write(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
        return answer

    def tool(self, name: str, meta: dict[str, Any] | None = None, **arguments: Any) -> str:
        """The text of a tool's answer; `meta` is what stateless clients send with each request."""
        answer = self.request("tools/call", {"name": name, "arguments": arguments, **({"_meta": meta} if meta else {})})
        return str(answer["result"]["content"][0]["text"])

    def close(self, patience_s: float = PATIENCE_S) -> tuple[int, list[bytes], str]:
        """End the input; returns the exit code, the lines that still came, and what was said on standard error."""
        out, errors = self.process.communicate(timeout=patience_s)
        return self.process.returncode, (self._buffer + out).splitlines(), errors.decode()


StartClient = Callable[..., Stdio]


@pytest.fixture
def toy_client(home: Home, tmp_path: Path) -> Iterator[StartClient]:
    """Starts clients of the toy's shim: `toy_client("--option", env={...})`. Each has ended after the test."""
    with _clients(home, tmp_path) as start:
        yield start


@pytest.fixture
def shared_client(shared_home: Home, tmp_path: Path) -> Iterator[StartClient]:
    """`toy_client` for the shared home."""
    with _clients(shared_home, tmp_path) as start:
        yield start


@contextmanager
def _clients(home: Home, cwd: Path) -> Iterator[StartClient]:
    started: list[Stdio] = []

    def start(*arguments: str, env: dict[str, str] | None = None) -> Stdio:
        command = [sys.executable, "-P", str(TOY / "serve.py"), *arguments]
        started.append(Stdio(command, cwd, {**os.environ, "ROLECALL_HOME": str(home.root), **(env or {})}))
        return started[-1]

    yield start
    for client in started:
        if client.process.poll() is None:
            client.process.kill()
        if client.process.stdin is not None and not client.process.stdin.closed:
            client.process.communicate(timeout=PATIENCE_S)


@pytest.fixture
def toy_host(home: Home) -> int:
    """The process of a running toy host."""
    sock, reply = toy_connection(home, "control")
    sock.close()
    return int(reply["pid"])


def toy_connection(home: Home, kind: str, version: str = VERSION) -> Connection:
    """A connection to the toy host, started where there is none; the caller closes its socket."""
    sock, reply = connect(home, hello(kind, None, version), command=TOY_HOST)
    sock.settimeout(PATIENCE_S)
    return sock, reply
