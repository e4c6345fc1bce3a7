"""`rolecall serve`: the process that an MCP client starts. Standard library only, so that it costs a few MB.

It passes lines between its client and the host. It remembers the handshake, the subscriptions and the ids that are
open, so that a client whose host dies gets a typed error for each open request and goes on with the next host.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rolecall.config.home import Home
from rolecall.server.connect import HOST_COMMAND, Connecting, Refused, Wait, connecting, hello
from rolecall.server.protocol import CRASH_LIMIT, CRASH_WINDOW_S, DRAIN, HOST_ERRORS, MAX_FRAME_BYTES, problem, sentence

USAGE = "usage: rolecall serve [--config FILE] [--standalone]\n"
_CHUNK = 65536
_HIGH_WATER = 1024 * 1024
_FLUSH_S = 0.8
_WAITING_LINES = 64
_REPLAY_ID = "rolecall-replay"
_REPLY = re.compile(rb'\{"jsonrpc":"2\.0","id":("(?:[^"\\]|\\.)*"|-?\d+),"(?:result|error)":')
"""Replies as the host writes them; whatever else it sends is no reply."""


def serve(arguments: list[str]) -> int:
    """Run `rolecall serve` with what follows it on the command line; returns the exit code."""
    config: Path | None = None
    standalone = False
    words = iter(arguments)
    for word in words:
        name, _, value = word.partition("=")
        if name == "--config" and (value := value or next(words, "")):
            config = Path(value).expanduser().absolute()
        elif word == "--standalone":
            standalone = True
        else:
            asked = word in ("-h", "--help")
            sys.stderr.write(USAGE if asked else f"rolecall serve: cannot use {word!r}\n{USAGE}")
            return 0 if asked else 2
    if standalone:
        from rolecall.server.host.standalone import serve_alone

        return serve_alone(Home.find(), config)
    try:
        return Shim(Home.find(), config).run()
    except KeyboardInterrupt:
        return 130


class Shim:
    """One client's lines, passed to whichever host is alive. `run()` returns soon after the client's input ends."""

    def __init__(self, home: Home, config: Path | None, command: Sequence[str] = HOST_COMMAND) -> None:
        self.home = home
        self.config = config
        self.command = command
        self.steps: Connecting | None = None
        self.wait = Wait(None, 0.0)
        self.resume_at = 0.0
        self.host: socket.socket | None = None
        self.draining = False  # the host answers what it has and takes nothing new
        self.resting = False  # no host until the client says something
        self.answered = True
        self.crashes: deque[float] = deque(maxlen=CRASH_LIMIT)
        self.from_client = bytearray()
        self.skipping = False
        self.waiting: deque[bytes] = deque()  # lines that no host has seen
        self.last_sent = b""
        self.to_host = memoryview(b"")
        self.from_host = bytearray()
        self.to_client = bytearray()
        self.leave_at: float | None = None  # set at the end of the client's input
        self.open: dict[str, bytes] = {}  # requests without a reply, by their id as JSON
        self.handshake: dict[str, Any] = {}
        self.greeted = False
        self.initialized = b""
        self.subscriptions: dict[str, bytes] = {}

    def run(self) -> int:
        """Pass lines until the client's input ends or its output is closed; returns the exit code."""
        while True:
            if self.leave_at is not None:
                if (self.host is None and not self.to_client) or time.monotonic() >= self.leave_at:
                    return 0
            elif self._needs_host():
                self._start_connecting()
            readable, writable = self._select()
            if self.steps is not None and (self.wait.fd in readable or time.monotonic() >= self.resume_at):
                self._advance()
            try:
                if 1 in writable:
                    del self.to_client[: os.write(1, self.to_client[: select.PIPE_BUF])]
                if 0 in readable:
                    self._read_client()
            except OSError:
                return 0
            if self.host in writable:
                self._write_host()
            if self.host in readable:
                self._read_host()

    def _select(self) -> tuple[list[Any], list[Any]]:
        reads: list[Any] = []
        writes: list[Any] = [1] if self.to_client else []
        wake_at = self.leave_at
        if self.leave_at is None and len(self.waiting) < _WAITING_LINES:
            reads.append(0)
        if self.host is not None:
            if len(self.to_client) < _HIGH_WATER:
                reads.append(self.host)
            if self.to_host or (self.waiting and not self.draining):
                writes.append(self.host)
        elif self.steps is not None:
            reads += [] if self.wait.fd is None else [self.wait.fd]
            wake_at = self.resume_at
        timeout_s = None if wake_at is None else max(0.0, wake_at - time.monotonic())
        readable, writable, _ = select.select(reads, writes, [], timeout_s)
        return readable, writable

    def _read_client(self) -> None:
        chunk = os.read(0, _CHUNK)
        if not chunk:
            if self.from_client and not self.skipping:
                self.waiting.append(bytes(self.from_client) + b"\n")
            self.leave_at = time.monotonic() + _FLUSH_S
            self.steps = None
            self._half_close()
            return
        self.resting = False
        self.from_client += chunk
        if b"\n" in chunk:
            *lines, rest = self.from_client.split(b"\n")
            self.waiting += (bytes(line) + b"\n" for line in lines[1 if self.skipping else 0 :])
            self.from_client = rest
            self.skipping = False
        if self.skipping:
            self.from_client.clear()
        elif len(self.from_client) > MAX_FRAME_BYTES:
            # The host's guard answers a line that is too long; one byte over the limit is enough to be that.
            self.waiting.append(bytes(self.from_client[: MAX_FRAME_BYTES + 1]) + b"\n")
            self.from_client.clear()
            self.skipping = True

    def _write_host(self) -> None:
        assert self.host is not None
        if not self.to_host and self.waiting:
            line = self.waiting.popleft()
            self._note_sent(line)
            self.last_sent = line
            self.to_host = memoryview(line)
        try:
            self.to_host = self.to_host[self.host.send(self.to_host) :]
        except BlockingIOError:
            return
        except OSError:
            self._lost(unread=True)
            return
        self._half_close()

    def _half_close(self) -> None:
        """At the end of the client's input, tell the host once everything has been sent."""
        if self.leave_at is not None and self.host is not None and not self.to_host and not self.waiting:
            with contextlib.suppress(OSError):
                self.host.shutdown(socket.SHUT_WR)

    def _read_host(self) -> None:
        assert self.host is not None
        try:
            chunk = self.host.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._lost(unread=True)
            return
        if not chunk:
            self._lost(unread=bool(self.to_host))
            return
        self.from_host += chunk
        if b"\n" in chunk:
            *lines, self.from_host = self.from_host.split(b"\n")
            for line in lines:
                if line + b"\n" == DRAIN:
                    self.draining = True
                elif self._note_received(line):
                    self.to_client += line + b"\n"
        if self.draining and not self.open and not self.to_host:
            self.resting = True
            self._lost()

    # What must be known of a line -------------------------------------------------------------------------------

    def _note_sent(self, line: bytes) -> None:
        message = _message(line)
        method, params = message.get("method"), message.get("params")
        params = params if isinstance(params, dict) else {}
        key = json.dumps(message["id"]) if message.get("id") is not None else None
        if method == "notifications/initialized":
            self.initialized = line
        elif method == "notifications/cancelled":
            cancelled = json.dumps(params.get("requestId"))
            self.open.pop(cancelled, None)
            self.subscriptions.pop(cancelled, None)
        elif key is None or method is None:
            return
        elif method == "subscriptions/listen":
            self.subscriptions[key] = line
        else:
            self.open[key] = line if method == "initialize" else b""
            if method == "initialize":
                self.handshake, self.greeted = message, False
            elif method == "resources/subscribe":
                self.subscriptions[f"uri {params.get('uri')}"] = _replay(message)
            elif method == "resources/unsubscribe":
                self.subscriptions.pop(f"uri {params.get('uri')}", None)

    def _note_received(self, line: bytearray) -> bool:
        """Whether the client should see this line."""
        found = _REPLY.match(line)
        if found is None:
            return True
        key = json.dumps(json.loads(found[1]))
        if key.startswith(f'"{_REPLAY_ID}'):
            return False
        self.answered = True
        self.open.pop(key, None)
        self.subscriptions.pop(key, None)
        self.greeted = self.greeted or key == json.dumps(self.handshake.get("id"))
        return True

    # Hosts come and go ------------------------------------------------------------------------------------------

    def _needs_host(self) -> bool:
        wanted = bool(self.waiting) or (bool(self.subscriptions) and not self.resting)
        return wanted and self.host is None and self.steps is None

    def _start_connecting(self) -> None:
        if len(self.crashes) == CRASH_LIMIT and time.monotonic() - self.crashes[0] < CRASH_WINDOW_S:
            failed = f"{CRASH_LIMIT} hosts in {CRASH_WINDOW_S:.0f} s died before their first answer, so no more start."
            log = self.home.logs / "host.log"
            self._refuse(problem("host_unavailable", failed, advice=f"{log} says why. Try again in a minute."))
            return
        self.steps = connecting(self.home, hello("mcp", self.config), command=self.command)
        self.wait, self.resume_at = Wait(None, 0.0), 0.0

    def _advance(self) -> None:
        assert self.steps is not None
        try:
            self.wait = next(self.steps)
            self.resume_at = time.monotonic() + self.wait.timeout_s
            return
        except StopIteration as end:
            self._connected(end.value.sock)
        except PermissionError as error:
            self._serve_alone(str(error))
        except Refused as refused:
            if refused.crashed:
                self.crashes.append(time.monotonic())
            elif refused.data["code"] == "socket_denied":
                self._serve_alone(refused.data["found"])
            else:
                self._refuse(refused.data)
        self.steps = None

    def _connected(self, sock: socket.socket) -> None:
        self.host = sock
        self.answered = False
        replay = [_replay(self.handshake), self.initialized] if self.greeted else []
        self.to_host = memoryview(b"".join([*replay, *self.subscriptions.values()]))

    def _serve_alone(self, why: str) -> None:
        """Where no socket is to be had, the host runs as this process's child, for this client only."""
        sys.stderr.write(f"rolecall: no socket can be used here ({why}); serving this client alone.\n")
        arguments = [*self.command, "--standalone", "--home", str(self.home.root)]
        arguments += ["--config", str(self.config)] if self.config else []
        try:
            ours, theirs = socket.socketpair()
            stdio = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), fd) for fd in (0, 1)]
            os.posix_spawn(arguments[0], arguments, os.environ, file_actions=stdio)
        except OSError as error:
            self._refuse(problem("host_unavailable", "No server can be started here.", found=str(error)))
            return
        theirs.close()
        ours.setblocking(False)
        self._connected(ours)

    def _lost(self, *, unread: bool = False) -> None:
        """The host is gone, or is left: answer what it had not, and keep what no host has seen.

        `unread`: it did not read the end of the last line sent, so that this one cannot have been begun. A reset
        connection says so. Source: unix_release_sock() in Linux's net/unix/af_unix.c.
        """
        if self.host is not None:
            self.host.close()
        if self.leave_at is not None:
            self.open.clear()
            self.waiting.clear()
        if self.open and not self.answered and not self.draining:
            self.crashes.append(time.monotonic())
        self.host, self.to_host, self.draining = None, memoryview(b""), False
        self.from_host.clear()
        if unread and self.last_sent and self.leave_at is None:
            key = json.dumps(_message(self.last_sent).get("id"))
            if self.open.pop(key, None) is not None:
                self.waiting.appendleft(self.last_sent)
        self.last_sent = b""
        died = problem(
            "host_died",
            "The host ended while this request was open; it was not repeated.",
            advice=f"Send it again: a new host starts with it. The old one's log is {self.home.logs / 'host.log'}.",
        )
        for key, line in self.open.items():
            if line:
                self.waiting.appendleft(line)
            else:
                self._answer(key, died)
        self.open.clear()

    def _refuse(self, data: dict[str, str]) -> None:
        """Answer every waiting request with why there is no host; the next one tries again."""
        for line in self.waiting:
            message = _message(line)
            if message.get("id") is not None and "method" in message:
                self._answer(json.dumps(message["id"]), data)
        self.waiting.clear()
        self.resting = True

    def _answer(self, key: str, data: dict[str, str]) -> None:
        error = {"code": HOST_ERRORS.get(data["code"], HOST_ERRORS["host_unavailable"]), "message": sentence(data)}
        reply = {"jsonrpc": "2.0", "id": json.loads(key), "error": {**error, "data": data}}
        self.to_client += json.dumps(reply).encode() + b"\n"


def _message(line: bytes) -> dict[str, Any]:
    """The message of a line, empty where it cannot be read: the host's guard answers those."""
    try:
        value = json.loads(line) if len(line) <= MAX_FRAME_BYTES else None
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _replay(message: dict[str, Any]) -> bytes:
    """The line of a request that is sent again for the shim's sake, so that its reply is not passed on."""
    return json.dumps({**message, "id": f"{_REPLAY_ID}-{json.dumps(message['id'])}"}).encode() + b"\n"
