"""The host: accepts connections, answers their hello, serves them, and leaves when nobody needs it."""

from __future__ import annotations

import json
import math
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import structlog
from anyio.abc import SocketListener, SocketStream, TaskGroup, UNIXSocketStream
from mcp.server.lowlevel.server import Server

from rolecall.config.errors import RolecallError
from rolecall.config.home import Home

from ..errors import BadRequest, HostMismatch
from ..protocol import DRAIN, release
from ..session import SessionInfo, current_session
from .lock import HomeLock
from .log import rotate
from .sessions import Lines, Operation, SendLine, Tell, client_name, read_messages, serve_control, serve_mcp

_TICK_S = 5.0
_STOP_DRAIN_S = 5.0
_RETIRE_DRAIN_S = 30.0
_HELLO_S = 10.0


@dataclass(frozen=True, slots=True)
class Services:
    """One host's services.

    `mcp` is the SDK's low-level server. `busy` tells whether work goes on without a session (a download, a job), which
    keeps the host from its idle exit after `idle_exit_s` seconds. `ping` reports `settings_fingerprint`. `drained`
    returns once no such work is left that is worth a drain.
    """

    mcp: Server[Any]
    operations: Mapping[str, Operation]
    busy: Callable[[], bool]
    settings_fingerprint: str
    idle_exit_s: float
    drained: Callable[[], Coroutine[Any, Any, None]] = anyio.lowlevel.checkpoint


OpenServices = Callable[[Home, Path | None], AbstractAsyncContextManager[Services]]
"""The composition root: builds the services of a home (and a `--config` file), closes them on exit."""


@dataclass
class Host:
    """One running host. `serve()` returns when it has been asked to stop, or was idle, and its clients are served."""

    home: Home
    lock: HomeLock
    services: Services
    socket_path: Path | None
    config: Path | None
    boot: str
    version: str
    drain_s: float = _STOP_DRAIN_S
    stopping: anyio.Event = field(default_factory=anyio.Event)
    clients: dict[SendLine, str] = field(default_factory=dict)
    connections: int = 0
    cut_at: float = math.inf

    async def serve(self, sock: socket.socket) -> None:
        """Serve the listening socket at `socket_path`, or without one the only client, at the other end of `sock`."""
        async with anyio.create_task_group() as watching:
            watching.start_soon(self._signals)
            watching.start_soon(self._watch)
            async with anyio.create_task_group() as serving:
                if self.socket_path is None:
                    serving.start_soon(self._only_connection, sock)
                    await self.stopping.wait()
                else:
                    await self._accept(sock, self.socket_path, serving)
                structlog.get_logger().info("draining", connections=self.connections, at_most_s=self.drain_s)
                for send in self.clients:
                    serving.start_soon(_send_quietly, send, DRAIN)
                serving.start_soon(self.services.drained)
                # What is open then is cancelled; its shim, which knows more than the SDK's last words, answers it.
                self.cut_at = serving.cancel_scope.deadline = anyio.current_time() + self.drain_s
            watching.cancel_scope.cancel()

    def stop(self, drain_s: float = _STOP_DRAIN_S) -> None:
        """Take no new connection, let open requests finish for up to `drain_s` seconds, then leave."""
        self.drain_s = drain_s
        self.stopping.set()

    async def _accept(self, listener: socket.socket, path: Path, tasks: TaskGroup) -> None:
        async with await SocketListener.from_socket(listener) as accepting, anyio.create_task_group() as accepts:
            accepts.start_soon(accepting.serve, self._connection, tasks)
            await self.stopping.wait()
            # Whoever looks for a host from here on must find none, and start the next.
            if self.lock.still_ours():
                path.unlink(missing_ok=True)
            accepts.cancel_scope.cancel()

    async def _only_connection(self, sock: socket.socket) -> None:
        await self._connection(await UNIXSocketStream.from_socket(sock))
        self.stop(0.0)

    async def _signals(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                self.stop()

    async def _watch(self) -> None:
        """Leave after `idle_exit_s` without connections or work, or where nobody can find us; rotate the log."""
        idle_exit_s = self.services.idle_exit_s
        idle_since = time.monotonic()
        while not self.stopping.is_set():
            await anyio.sleep(min(_TICK_S, idle_exit_s / 4))
            if self.connections or self.services.busy():
                idle_since = time.monotonic()
            if time.monotonic() - idle_since >= idle_exit_s or not self.lock.still_ours():
                self.stop(0.0)
            elif self.socket_path and not self.socket_path.exists():  # cleaners of /tmp take sockets too
                self.stop()
            else:
                with suppress(OSError):  # a log that cannot be made is no reason to end
                    rotate(self.home.logs / "host.log")

    async def _connection(self, stream: SocketStream) -> None:
        self.connections += 1
        writing = anyio.Lock()

        async def send(line: bytes) -> None:
            if anyio.current_time() >= self.cut_at:
                raise anyio.ClosedResourceError
            async with writing:
                await stream.send(line)

        try:
            async with stream:
                with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                    await self._greeted(Lines(stream.receive), send)
        except Exception:
            structlog.get_logger().error("connection_failed", exc_info=True)
        finally:
            self.connections -= 1

    async def _greeted(self, lines: Lines, send: SendLine) -> None:
        line = None
        with anyio.move_on_after(_HELLO_S):
            line = await lines.next()
        greeting = _greeting(line)
        if greeting and release(greeting["rolecall"]) > release(self.version):
            self.stop(_RETIRE_DRAIN_S)
            return
        refused = self._refusal(greeting)
        welcome = {"rolecall": self.version, "pid": os.getpid(), "boot": self.boot}
        await send(json.dumps({"error": refused.to_dict()} if refused else welcome).encode() + b"\n")
        if refused:
            return
        current_session.set(SessionInfo(id=secrets.token_hex(8), cwd=Path(str(greeting.get("cwd", "/")))))
        if greeting.get("kind") == "control":
            own = {"ping": self._ping, "stop": self._stop, "http": self._http}
            await serve_control({**self.services.operations, **own}, lines, send)
        else:
            await self._session(lines, send)

    async def _session(self, lines: Lines, send: SendLine) -> None:
        self.clients[send] = ""
        try:
            if self.stopping.is_set():
                await send(DRAIN)
            messages = read_messages(lines, send)
            if (first := await anext(messages, None)) is not None:
                self.clients[send] = client_name(first)
                current_session.set(replace(current_session.get(), client=self.clients[send]))
                await serve_mcp(self.services.mcp, first, messages, send, self.boot)
        finally:
            del self.clients[send]

    def _refusal(self, greeting: dict[str, Any]) -> RolecallError | None:
        """Why this connection is not served: it is no client of ours, or names settings that the host has not."""
        if not greeting:
            allowed, advice = '{"rolecall": VERSION, ...}', "Connect with `rolecall serve` or the command line."
            return BadRequest("The first line is no hello of Rolecall's.", allowed=allowed, advice=advice)
        wanted = {"--config": greeting.get("config"), **(greeting.get("env") or {})}
        running = {"--config": str(self.config) if self.config else None, **os.environ}
        if not (unlike := [key for key, value in wanted.items() if value is not None and running.get(key) != value]):
            return None
        failed = "The running host has other settings than this client asks for."
        found = ", ".join(f"{key} {running.get(key) or 'not set'}" for key in unlike)
        asked = ", ".join(f"{key} {wanted[key]}" for key in unlike)
        advice = "Run `rolecall stop` so that the next client's settings count, or give this one a ROLECALL_HOME."
        return HostMismatch(failed, found=found, allowed=asked, advice=advice)

    async def _ping(self, _: Tell, _params: dict[str, Any]) -> dict[str, Any]:
        return {
            "version": self.version,
            "pid": os.getpid(),
            "sessions": len(self.clients),
            "clients": sorted(self.clients.values()),
            "settings_fingerprint": self.services.settings_fingerprint,
        }

    async def _http(self, tell: Tell, params: dict[str, Any]) -> dict[str, Any]:
        """MCP over HTTP for as long as whoever asked for it stays."""
        from .http import serve_http

        return await serve_http(self.services.mcp, self.home, int(params["port"]), tell, self.stopping)

    async def _stop(self, _: Tell, params: dict[str, Any]) -> dict[str, Any]:
        self.stop(float(params.get("drain_s", _STOP_DRAIN_S)))
        return {"pid": os.getpid()}


def _greeting(line: bytes | None) -> dict[str, Any]:
    """The hello in a connection's first line, empty where it is none."""
    with suppress(ValueError, RecursionError):
        value = json.loads(line or b"")
        if isinstance(value, dict) and isinstance(value.get("rolecall"), str):
            return value
    return {}


async def _send_quietly(send: SendLine, line: bytes) -> None:
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        await send(line)
