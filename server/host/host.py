"""The host: accepts connections, answers their hello, serves them, and leaves when nobody needs it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import structlog
from anyio.abc import SocketListener, SocketStream, TaskGroup

from rolecall.config.home import Home
from rolecall.server.session import SessionInfo

from ..errors import BadRequest, HostMismatch
from ..protocol import DRAIN, VERSION, release
from .frames import Lines
from .lock import HomeLock
from .log import rotate
from .requests import serve_control
from .services import OperationContext, Services
from .sessions import SendLine, serve_mcp

_TICK_S = 5.0
_STOP_DRAIN_S = 5.0
_RETIRE_DRAIN_S = 30.0
_HELLO_S = 10.0


@dataclass
class Host:
    """One running host. `serve()` returns when it has been asked to stop, or was idle, and its clients are served."""

    home: Home
    lock: HomeLock
    services: Services
    socket_path: Path
    config: Path | None
    boot: str
    version: str = VERSION
    started_at: float = field(default_factory=time.monotonic)
    drain_s: float = _STOP_DRAIN_S
    stopping: anyio.Event = field(default_factory=anyio.Event)
    empty: anyio.Event = field(default_factory=anyio.Event)
    mcp_sessions: dict[str, SendLine] = field(default_factory=dict)
    connections: int = 0
    cut: bool = False

    async def serve(self, listener: socket.socket) -> None:
        """Serve the listening socket; it and its path are gone when this returns."""
        accepting = await SocketListener.from_socket(listener)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._signals)
            tasks.start_soon(self._watch)
            async with anyio.create_task_group() as accepts:
                accepts.start_soon(accepting.serve, self._connection, tasks)
                await self.stopping.wait()
                # Whoever looks for a host from here on must find none, and start the next.
                if self.lock.still_ours():
                    self.socket_path.unlink(missing_ok=True)
                accepts.cancel_scope.cancel()
            await accepting.aclose()
            await self._drain(tasks)
            tasks.cancel_scope.cancel()

    def stop(self, drain_s: float = _STOP_DRAIN_S) -> None:
        """Take no new connection, let open requests finish for up to `drain_s` seconds, then leave."""
        self.drain_s = drain_s
        self.stopping.set()

    async def _drain(self, tasks: TaskGroup) -> None:
        structlog.get_logger().info("draining", connections=self.connections, at_most_s=self.drain_s)
        for send in list(self.mcp_sessions.values()):
            tasks.start_soon(_send_quietly, send, DRAIN)
        with anyio.move_on_after(self.drain_s):
            while self.connections:
                self.empty = anyio.Event()
                await self.empty.wait()
        # What is still open is cancelled now; its shim, which knows more than the SDK's last words, answers it.
        self.cut = True

    async def _signals(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                self.stop()

    async def _watch(self) -> None:
        """Leave after `idle_exit_s` without connections or work, or where nobody can find us; rotate the log."""
        tick_s = min(_TICK_S, self.services.idle_exit_s / 4)
        idle_since = time.monotonic()
        while not self.stopping.is_set():
            await anyio.sleep(tick_s)
            if self.connections or self.services.busy():
                idle_since = time.monotonic()
            if time.monotonic() - idle_since >= self.services.idle_exit_s or not self.lock.still_ours():
                self.stop(0.0)
            elif not self.socket_path.exists():  # cleaners of /tmp take sockets too
                self.stop()
            else:
                rotate(self.home.logs / "host.log")

    async def _connection(self, stream: SocketStream) -> None:
        self.connections += 1
        writing = anyio.Lock()

        async def send(line: bytes) -> None:
            if self.cut:
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
            if not self.connections:
                self.empty.set()

    async def _greeted(self, lines: Lines, send: SendLine) -> None:
        line = None
        with anyio.move_on_after(_HELLO_S):
            line = await lines.next()
        greeting = _greeting(line)
        if greeting is None:
            await send(_json({"error": BadRequest("The first line of a connection is Rolecall's hello.").to_dict()}))
            return
        if release(str(greeting["rolecall"])) > release(self.version):
            await send(_json({"retiring": self.version}))
            structlog.get_logger().info("retiring", newer=str(greeting["rolecall"])[:40])
            self.stop(_RETIRE_DRAIN_S)
            return
        if mismatch := self._mismatch(greeting):
            await send(_json({"error": mismatch.to_dict()}))
            return
        await send(_json({"rolecall": self.version, "pid": os.getpid(), "boot": self.boot}))
        info = SessionInfo(id=secrets.token_hex(8), cwd=Path(str(greeting.get("cwd", "/"))))
        if greeting.get("kind") == "control":
            own = {"ping": self._ping, "stop": self._stop}
            await serve_control({**self.services.operations, **own}, lines, send, info)
            return
        self.mcp_sessions[info.id] = send
        try:
            if self.stopping.is_set():
                await send(DRAIN)
            await serve_mcp(self.services.mcp, lines, send, info, self.boot)
        finally:
            del self.mcp_sessions[info.id]

    def _mismatch(self, greeting: dict[str, Any]) -> HostMismatch | None:
        """The settings that the client names and the host was not started with."""
        wanted = {"--config": greeting.get("config"), **(greeting.get("env") or {})}
        running = {"--config": str(self.config) if self.config else None, **os.environ}
        unlike = [name for name, value in wanted.items() if value is not None and running.get(name) != value]
        if not unlike:
            return None
        return HostMismatch(
            "The running host has other settings than this client asks for.",
            found=", ".join(f"{name} {running.get(name) or 'not set'}" for name in unlike),
            allowed=", ".join(f"{name} {wanted[name]}" for name in unlike),
            advice="Run `rolecall stop` so that the next client's settings count, or give this one a ROLECALL_HOME.",
        )

    async def _ping(self, _context: OperationContext, _params: dict[str, Any]) -> dict[str, Any]:
        return {
            "version": self.version,
            "pid": os.getpid(),
            "boot": self.boot,
            "uptime_s": round(time.monotonic() - self.started_at, 3),
            "sessions": len(self.mcp_sessions),
            "config": str(self.config) if self.config else None,
            "settings_fingerprint": self.services.settings_fingerprint,
        }

    async def _stop(self, _context: OperationContext, params: dict[str, Any]) -> dict[str, Any]:
        drain_s = params.get("drain_s", _STOP_DRAIN_S)
        if isinstance(drain_s, bool) or not isinstance(drain_s, int | float) or not 0 <= drain_s <= 3600:
            raise BadRequest("`drain_s` cannot be used.", found=repr(drain_s)[:40], allowed="0 to 3600 seconds")
        self.stop(float(drain_s))
        return {"pid": os.getpid()}


def _greeting(line: object) -> dict[str, Any] | None:
    try:
        value = json.loads(line) if isinstance(line, bytes) else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("rolecall"), str) else None


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


async def _send_quietly(send: SendLine, line: bytes) -> None:
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        await send(line)
