"""Find the host of a home, or start one. Standard library only: the shim and the command line both do it.

`connecting()` is a generator: it yields what it waits for, so that the shim can watch its client meanwhile and the
command line can simply block. A host is found through the lock file, which says where its socket is.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rolecall.config.home import Home
from rolecall.server.protocol import HELLO_TIMEOUT_S, VERSION, problem

HOST_COMMAND = (sys.executable, "-P", "-m", "rolecall.server.host")
_RETRY_S = 0.05
_CLIENT_ONLY = ("_TOKEN", "_KEY", "_SECRET", "_PASSWORD", "_PROXY")


class Wait(NamedTuple):
    """Resume when `fd` is readable, or after `timeout_s`; fd None only waits."""

    fd: int | None
    timeout_s: float


class Connected(NamedTuple):
    """A non-blocking socket after the hello, and the host's reply to it."""

    sock: socket.socket
    reply: dict[str, Any]


class Refused(Exception):
    """No connection; `data` is a typed error's wire form, `crashed` that a started host ended without a word."""

    def __init__(self, data: dict[str, str], *, crashed: bool = False) -> None:
        super().__init__(data["message"])
        self.data = data
        self.crashed = crashed


Connecting = Generator[Wait, None, Connected]


def hello(kind: str, config: Path | None, version: str = VERSION) -> dict[str, Any]:
    """The first line of a connection. Settings that this process does not name are no opinion about the host's."""
    try:
        cwd = os.getcwd()  # noqa: PTH109  # a str is what travels
    except OSError:  # the folder is gone
        cwd = "/"
    env = {k: v for k, v in os.environ.items() if k.startswith("ROLECALL_") and k != "ROLECALL_HOME"}
    return {
        "rolecall": version,
        "kind": kind,
        "cwd": cwd,
        "config": str(config) if config else None,
        "env": env,
    }


def connecting(
    home: Home, greeting: dict[str, Any], *, start: bool = True, command: Sequence[str] = HOST_COMMAND
) -> Connecting:
    """Connect to the host and exchange hellos, starting a host where there is none and `start` is true.

    Raises:
        Refused: no host, it cannot be started or reached, or it refuses this client.
        PermissionError: this process may not open sockets (a sandbox).
    """
    deadline = time.monotonic() + HELLO_TIMEOUT_S
    started: int | None = None
    while time.monotonic() < deadline:
        try:
            sock = _open_socket(home)
        except PermissionError:
            if started is not None:  # a host that this process may not reach is in nobody's service
                os.kill(started, signal.SIGTERM)
                while lock_holder(home) == started and time.monotonic() < deadline:
                    yield Wait(None, _RETRY_S)
            raise
        if sock is not None:
            reply = yield from _greet(sock, greeting, deadline)
            if reply and "rolecall" in reply:
                return Connected(sock, reply)
            sock.close()
            if reply and "error" in reply:
                raise Refused(reply["error"])
        elif not start:
            raise _unavailable(f"No host runs for {home.root}.", advice="Any client, or `rolecall serve`, starts one.")
        elif (pid := lock_holder(home)) is None:
            word = yield from _launch(home, greeting["config"], command, deadline)
            if "error" in word:
                raise Refused(word["error"])
            started = word.get("ready")
            continue
        elif lock_note(home).get("standalone"):
            raise Refused(problem("host_unavailable", **standalone_holder(home, pid)))
        yield Wait(None, _RETRY_S)
    late = f"The host of {home.root} did not answer within {HELLO_TIMEOUT_S:.0f} s."
    raise _unavailable(late, advice=f"Its log is {home.logs / 'host.log'}; `rolecall stop` ends it.")


def finish(steps: Connecting) -> Connected:
    """Run `connecting()` to its end, blocking."""
    try:
        while True:
            fd, timeout_s = next(steps)
            select.select([] if fd is None else [fd], [], [], timeout_s)
    except StopIteration as end:
        connected: Connected = end.value
        return connected


def lock_note(home: Home) -> dict[str, Any]:
    """What the lock's last holder wrote into it: pid, boot, version, config, socket, standalone."""
    try:
        note = json.loads(home.lock_file.read_bytes())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def lock_holder(home: Home) -> int | None:
    """The process that holds the lock, 0 where it has not written its note yet, None where nobody does."""
    import fcntl

    try:
        fd = os.open(home.lock_file, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(lock_note(home).get("pid", 0))
    finally:
        os.close(fd)
    return None


def _open_socket(home: Home) -> socket.socket | None:
    path = lock_note(home).get("socket")
    if not isinstance(path, str):
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except PermissionError:
        sock.close()
        raise
    except OSError:
        sock.close()
        return None
    sock.setblocking(False)
    return sock


def _greet(
    sock: socket.socket, greeting: dict[str, Any], deadline: float
) -> Generator[Wait, None, dict[str, Any] | None]:
    """The host's reply to our hello, or None where it left before it."""
    try:
        sock.sendall(json.dumps(greeting).encode() + b"\n")
    except OSError:
        return None
    line = yield from _read_line(sock.fileno(), deadline)
    return _decoded(line)


def _read_line(fd: int, deadline: float) -> Generator[Wait, None, bytes]:
    """One line without taking what follows it; what there was at end of file or deadline otherwise."""
    line = b""
    while not line.endswith(b"\n"):
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            break
        yield Wait(fd, remaining_s)
        try:
            byte = os.read(fd, 1)
        except BlockingIOError:
            continue
        except OSError:
            break
        if not byte:
            break
        line += byte
    return line


def _decoded(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def host_environment() -> dict[str, str]:
    """This process's environment without tokens, keys and proxies, which the host takes from its home's `env` file.

    Clients differ in theirs, and the host must not depend on which of them came first.
    """
    return {
        k: v
        for k, v in os.environ.items()
        if k.startswith("ROLECALL_") or not (k.upper().endswith(_CLIENT_ONLY) or k.upper() == "NO_PROXY")
    }


def _launch(
    home: Home, config: str | None, command: Sequence[str], deadline: float
) -> Generator[Wait, None, dict[str, Any]]:
    """Start a host that is nobody's child and wait for its word: `ready`, `held` by another, or `error`.

    A shell in the middle leaves at once. `posix_spawn` rather than a fork: this process may have threads.
    """
    log = home.logs / "host.log"
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    arguments = [*command, "--home", str(home.root), "--ready-fd", str(writer)]
    arguments += ["--config", config] if config else []
    try:
        try:
            home.create()
            shell = os.posix_spawn(
                "/bin/sh",
                ["sh", "-c", '"$@" &', "sh", *arguments],
                {**host_environment(), "ROLECALL_HOME": str(home.root)},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
            )
        finally:
            os.close(writer)
        os.waitpid(shell, 0)
        word = _decoded((yield from _read_line(reader, deadline)))
    except OSError as error:
        advice = f"Make {home.root} writable, with room on its disk, or set ROLECALL_HOME to another folder."
        raise _unavailable("No host can be started.", found=str(error), advice=advice) from error
    finally:
        os.close(reader)
    if word is None:
        advice = f"Its log is {log}; `rolecall doctor` checks the installation."
        raise _unavailable("The host ended while it started.", advice=advice, crashed=True)
    return word


def _unavailable(message: str, *, found: str = "", advice: str = "", crashed: bool = False) -> Refused:
    return Refused(problem("host_unavailable", message, found=found, advice=advice), crashed=crashed)


def standalone_holder(home: Home, pid: int) -> dict[str, str]:
    """What is said where a standalone server holds the home."""
    return {
        "message": f"A standalone server holds {home.root}.",
        "found": f"process {pid} (`rolecall serve --standalone`)",
        "advice": "End it, or give this client its own ROLECALL_HOME.",
    }
