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
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rolecall.config.errors import RolecallError
from rolecall.config.home import Home
from rolecall.server.connect import HOST_COMMAND, Connection, HostCrashed, SocketDenied, connect, connect_alone, hello
from rolecall.server.errors import HostDied, HostUnavailable
from rolecall.server.protocol import DRAIN, HOST_ERRORS, MAX_FRAME_BYTES

_USAGE = "usage: rolecall serve [--config FILE] [--standalone | --http PORT]\n"
_CHUNK = 65536
_HIGH_WATER = 1024 * 1024
_FLUSH_S = 0.8
_WAITING_LINES = 64
_CRASH_WINDOW_S = 60.0
_CRASH_LIMIT = 3
_REPLAY_ID = "rolecall-replay"
_REPLY = re.compile(rb'\{"jsonrpc":"2\.0","id":("(?:[^"\\]|\\.)*"|-?\d+),"(?:result|error)":')
"""Replies as the host writes them; whatever else it sends is no reply."""


def serve(arguments: list[str]) -> int:
    """Run `rolecall serve` with what follows it on the command line; returns the exit code."""
    config: Path | None = None
    words = iter(arguments)
    for word in words:
        name, _, value = word.partition("=")
        if name == "--config" and (value := value or next(words, "")):
            config = Path(value).expanduser().absolute()
        elif word != "--standalone":
            sys.stderr.write(f"rolecall serve: cannot use {word!r}\n{_USAGE}")
            return 2
    try:
        return Shim(Home.find(), config, alone="--standalone" in arguments).run()
    except KeyboardInterrupt:
        return 130


class Shim:
    """One client's lines, passed to whichever host is alive. `run()` returns soon after the client's input ends.

    `alone`: the host serves this client only, and leaves with it.
    """

    def __init__(
        self, home: Home, config: Path | None, command: Sequence[str] = HOST_COMMAND, *, alone: bool = False
    ) -> None:
        self.home = home
        self.config = config
        self.command = command
        self.alone = alone
        self.connecting = False
        self.outcome: Connection | Exception | None = None  # of the connecting thread, which then writes to `wakes`
        self.woken, self.wakes = os.pipe()
        self.parent = _parent_end()
        self.host: socket.socket | None = None
        self.draining = False  # the host answers what it has and takes nothing new
        self.resting = False  # no host until the client says something
        self.answered = True
        self.crashes: deque[float] = deque(maxlen=_CRASH_LIMIT)
        self.from_client = bytearray()
        self.waiting: deque[bytes] = deque()  # lines that no host has seen
        self.last_sent = b""
        self.to_host = memoryview(b"")
        self.from_host = bytearray()
        self.to_client = bytearray()
        self.leave_at: float | None = None  # set at the end of the client's input
        self.open: dict[str, bytes] = {}  # requests without a reply, by their id as JSON
        self.handshake = b""  # what the next host is told first, once a host has answered it
        self.initialized = b""
        self.subscriptions: dict[str, bytes] = {}

    def run(self) -> int:
        """Pass lines until the client's input ends or its output is closed; returns the exit code."""
        while True:
            if self.leave_at is not None:
                done = self.host is None and not self.connecting and not self.to_client
                if done or time.monotonic() >= self.leave_at:
                    return 0
                if self.host is not None and not self.to_host and not self.waiting:
                    with contextlib.suppress(OSError):
                        self.host.shutdown(socket.SHUT_WR)
            wanted = self.waiting or (self.subscriptions and not self.resting)
            if wanted and self.host is None and not self.connecting and self.leave_at is None:
                self._start_connecting()
            readable, writable = self._select()
            if self.woken in readable:
                self._finish_connecting()
            if self.parent in readable:
                self.parent, self.leave_at = None, self.leave_at or time.monotonic() + _FLUSH_S
            try:
                if 1 in writable:
                    del self.to_client[: os.write(1, self.to_client[: select.PIPE_BUF])]
                if 0 in readable:
                    self._read_client()
            except OSError:
                return 0
            try:
                if self.host in writable:
                    self._write_host()
                if self.host in readable:
                    self._read_host()
            except BlockingIOError:
                pass
            except OSError:
                self._lost(unread=True)

    def _select(self) -> tuple[list[Any], list[Any]]:
        reads: list[Any] = [self.woken, *([] if self.parent is None else [self.parent])]
        writes: list[Any] = [1] if self.to_client else []
        room = len(self.waiting) < _WAITING_LINES and sum(map(len, self.waiting)) < _HIGH_WATER
        if self.leave_at is None and room:
            reads.append(0)
        if self.host is not None:
            if len(self.to_client) < _HIGH_WATER:
                reads.append(self.host)
            if self.to_host or (self.waiting and not self.draining):
                writes.append(self.host)
        timeout_s = None if self.leave_at is None else max(0.0, self.leave_at - time.monotonic())
        readable, writable, _ = select.select(reads, writes, [], timeout_s)
        return readable, writable

    def _read_client(self) -> None:
        chunk = os.read(0, _CHUNK)
        if not chunk:
            if self.from_client:
                self.waiting.append(bytes(self.from_client) + b"\n")
            self.leave_at = time.monotonic() + _FLUSH_S
            return
        self.resting = False
        self.from_client += chunk
        if b"\n" in chunk:
            *lines, self.from_client = self.from_client.split(b"\n")
            self.waiting += (bytes(line[: MAX_FRAME_BYTES + 1]) + b"\n" for line in lines)
        # The host's guard answers a line that is too long; one byte over the limit is enough to be that.
        del self.from_client[MAX_FRAME_BYTES + 1 :]

    def _write_host(self) -> None:
        assert self.host is not None
        if not self.to_host and self.waiting:
            line = self.waiting.popleft()
            self._note_sent(line)
            self.last_sent = line
            self.to_host = memoryview(line)
        self.to_host = self.to_host[self.host.send(self.to_host) :]

    def _read_host(self) -> None:
        assert self.host is not None
        chunk = self.host.recv(_CHUNK)
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

    def _note_sent(self, line: bytes) -> None:
        match message := _message(line):
            case {"method": "notifications/initialized"}:
                self.initialized = line
            case {"method": "notifications/cancelled", "params": {"requestId": cancelled}}:
                self.open.pop(json.dumps(cancelled), None)
                self.subscriptions.pop(json.dumps(cancelled), None)
            case {"method": "subscriptions/listen", "id": int() | str() as request_id}:
                self.subscriptions[json.dumps(request_id)] = line
            case {"method": "initialize", "id": int() | str() as request_id}:
                self.open[json.dumps(request_id)] = line
            case {"method": method, "id": int() | str() as request_id}:
                self.open[json.dumps(request_id)] = b""
                match method, message.get("params"):
                    case "resources/subscribe", {"uri": uri}:
                        self.subscriptions[f"uri {uri}"] = _replay(message)
                    case "resources/unsubscribe", {"uri": uri}:
                        self.subscriptions.pop(f"uri {uri}", None)

    def _note_received(self, line: bytearray) -> bool:
        """Whether the client should see this line."""
        found = _REPLY.match(line)
        if found is None:
            return True
        key = json.dumps(json.loads(found[1]))
        if key.startswith(f'"{_REPLAY_ID}'):
            return False
        self.answered = True
        self.subscriptions.pop(key, None)
        if handshake := self.open.pop(key, b""):
            self.handshake = _replay(_message(handshake))
        return True

    def _start_connecting(self) -> None:
        if len(self.crashes) == _CRASH_LIMIT and time.monotonic() - self.crashes[0] < _CRASH_WINDOW_S:
            failed = f"{_CRASH_LIMIT} hosts in {_CRASH_WINDOW_S:.0f} s died before their first answer; no more start."
            advice = f"{self.home.logs / 'host.log'} says why. Try again in a minute."
            self._refuse(HostUnavailable(failed, advice=advice))
        else:
            self.connecting = True
            threading.Thread(target=self._connect, daemon=True).start()

    def _connect(self) -> None:
        """The one thing that waits for a host; in a thread, since the client may leave meanwhile."""
        try:
            find = connect_alone if self.alone else connect
            self.outcome = find(self.home, hello("mcp", self.config), command=self.command)
        except Exception as error:
            self.outcome = error
        os.write(self.wakes, b"\n")

    def _finish_connecting(self) -> None:
        os.read(self.woken, 1)
        self.connecting = False
        if isinstance(self.outcome, tuple):
            self.host = self.outcome[0]
            self.host.setblocking(False)
            self.answered = False
            replay = [self.handshake, self.initialized] if self.handshake else []
            self.to_host = memoryview(b"".join([*replay, *self.subscriptions.values()]))
        elif isinstance(self.outcome, HostCrashed):
            self.crashes.append(time.monotonic())
        elif isinstance(self.outcome, RolecallError) and self.outcome.code == SocketDenied.code:
            sys.stderr.write(f"rolecall: no socket can be used here ({self.outcome}); serving this client alone.\n")
            self.alone = True
        elif isinstance(self.outcome, RolecallError):
            self._refuse(self.outcome)
        else:
            self._refuse(HostUnavailable("No host can be reached.", found=repr(self.outcome)))

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
        if unread and self.last_sent:
            key = json.dumps(_message(self.last_sent).get("id"))
            if self.open.pop(key, None) is not None:
                self.waiting.appendleft(self.last_sent)
        self.last_sent = b""
        failed = "The host ended while this request was open; it was not repeated."
        advice = f"Send it again: a new host starts with it. The old one's log is {self.home.logs / 'host.log'}."
        for key, line in self.open.items():
            if line:
                self.waiting.appendleft(line)
            else:
                self._answer(key, HostDied(failed, advice=advice))
        self.open.clear()

    def _refuse(self, error: RolecallError) -> None:
        """Answer every waiting request with why there is no host; the next one tries again."""
        for line in self.waiting:
            match _message(line):
                case {"method": _, "id": int() | str() as request_id}:
                    self._answer(json.dumps(request_id), error)
        self.waiting.clear()
        self.resting = True

    def _answer(self, key: str, error: RolecallError) -> None:
        code = HOST_ERRORS.get(error.code, HOST_ERRORS["host_unavailable"])
        failure = {"code": code, "message": str(error), "data": error.to_dict()}
        self.to_client += json.dumps({"jsonrpc": "2.0", "id": json.loads(key), "error": failure}).encode() + b"\n"


def _parent_end() -> Any:
    """What `select` finds readable once the parent has ended: its pipe may be held open by others. None: not here."""
    try:
        if sys.platform == "linux":
            return os.pidfd_open(os.getppid())
        queue = select.kqueue()
        end = select.kevent(os.getppid(), select.KQ_FILTER_PROC, select.KQ_EV_ADD, select.KQ_NOTE_EXIT)
        queue.control([end], 0)
        return queue
    except (OSError, AttributeError):
        return None


def _message(line: bytes) -> dict[str, Any]:
    """The message of a line, empty where it cannot be read: the host's guard answers those."""
    try:
        value = json.loads(line) if len(line) <= MAX_FRAME_BYTES else None
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) and not isinstance(value.get("id"), bool) else {}


def _replay(message: dict[str, Any]) -> bytes:
    """The line of a request that is sent again for the shim's sake, so that its reply is not passed on."""
    return json.dumps({**message, "id": f"{_REPLAY_ID}-{json.dumps(message['id'])}"}).encode() + b"\n"
