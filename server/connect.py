"""Find the host of a home, or start one. Standard library only: the shim and the command line both do it.

A host is found through the lock file, which says where its socket is.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rolecall.config.errors import RemoteError
from rolecall.config.home import Home
from rolecall.server.errors import HostUnavailable
from rolecall.server.protocol import VERSION

HOST_COMMAND = (sys.executable, "-P", "-m", "rolecall.server.host")
_HELLO_TIMEOUT_S = 60.0
"""How long a client waits for a host that has started: its composition may open large stores on a slow disk."""
_RETRY_S = 0.05
_CLIENT_ONLY = ("_TOKEN", "_KEY", "_SECRET", "_PASSWORD", "_PROXY")

Connection = tuple[socket.socket, dict[str, Any]]
"""A blocking socket after the hello, and the host's reply to it."""


class HostCrashed(HostUnavailable):
    """A host that was started ended without a word."""


class SocketDenied(HostUnavailable):
    """A sandbox keeps this process, or the host it started, from its socket."""

    code = "socket_denied"


def hello(kind: str, config: Path | None, version: str = VERSION) -> dict[str, Any]:
    """The first line of a connection. Settings that this process does not name are no opinion about the host's."""
    try:
        cwd = os.getcwd()  # noqa: PTH109  # a str is what travels
    except OSError:  # the folder is gone
        cwd = "/"
    env = {k: v for k, v in os.environ.items() if k.startswith("ROLECALL_") and k != "ROLECALL_HOME"}
    return {"rolecall": version, "kind": kind, "cwd": cwd, "config": str(config) if config else None, "env": env}


def connect(
    home: Home, greeting: dict[str, Any], *, start: bool = True, command: Sequence[str] = HOST_COMMAND
) -> Connection:
    """Connect to the host and exchange hellos, starting a host where there is none and `start` is true. Raises
    HostUnavailable: no host, or it cannot be started, reached (`SocketDenied` in a sandbox) or trusted; RemoteError:
    the host cannot start, or refuses this client; the error is its own."""
    deadline = time.monotonic() + _HELLO_TIMEOUT_S
    started = 0
    while time.monotonic() < deadline:
        try:
            sock = _open_socket(home, deadline)
        except PermissionError as error:
            if started:  # a host that this process may not reach is in nobody's service
                os.kill(started, signal.SIGTERM)
                while lock_holder(home) == started and time.monotonic() < deadline:
                    time.sleep(_RETRY_S)
            denied = "This program may not open the host's socket."
            raise SocketDenied(denied, found=str(error), advice="A sandbox forbids it.") from error
        if sock is not None:
            if (reply := _greet(sock, greeting)) is not None:
                return sock, reply
        elif (pid := lock_holder(home)) is not None and lock_note(home).get("socket", "") is None:
            raise held(home, pid)
        elif not start:
            raise HostUnavailable(f"No host runs for {home.root}.", advice="`rolecall serve` starts one.")
        elif pid is None:
            starter, word = _launch(home, greeting["config"], command)
            starter.close()
            started = word.get("ready", 0)
            continue
        time.sleep(_RETRY_S)
    failed = f"The host of {home.root} did not answer within {_HELLO_TIMEOUT_S:.0f} s."
    raise HostUnavailable(failed, advice=f"Its log is {home.logs / 'host.log'}; `rolecall stop` ends it.")


def connect_alone(home: Home, greeting: dict[str, Any], *, command: Sequence[str] = HOST_COMMAND) -> Connection:
    """Start a host for this connection only, and exchange hellos: it has no other socket, and leaves with its client.
    Raises HostUnavailable: it cannot be started, or another host holds the home; RemoteError: it cannot serve; the
    error is its own."""
    sock, word = _launch(home, greeting["config"], command, "--alone")
    if "held" in word:
        sock.close()
        raise held(home, word["held"])
    if (reply := _greet(sock, greeting)) is None:
        raise _crashed(home)
    return sock, reply


def lock_note(home: Home) -> dict[str, Any]:
    """What the lock's last holder wrote into it: pid, version and socket (None: a standalone server)."""
    try:
        note = json.loads(home.lock_file.read_bytes())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def lock_holder(home: Home) -> int | None:
    """The process that holds the lock, 0 where it has not written its note yet, None where nobody does."""
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


def held(home: Home, pid: int) -> HostUnavailable:
    """What is said where another server holds the home, and one of the two is standalone."""
    advice = "End it (a standalone one ends with its client), or give this client its own ROLECALL_HOME."
    return HostUnavailable(f"Another server holds {home.root}.", found=f"process {pid}", advice=advice)


def unusable(home: Home, error: OSError) -> HostUnavailable:
    """What is said where a home cannot be made or written to."""
    advice = f"Make {home.root} writable, with room on its disk, or set ROLECALL_HOME to another folder."
    return HostUnavailable("No host can be started.", found=str(error), advice=advice)


def _open_socket(home: Home, deadline: float) -> socket.socket | None:
    path = lock_note(home).get("socket")
    if not isinstance(path, str):
        return None
    if os.path.lexists(folder := Path(path).parent) and not private(folder):  # swept, and made anew by somebody else
        raise distrusted(folder)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(max(_RETRY_S, deadline - time.monotonic()))
    try:
        sock.connect(path)
        return sock
    except OSError as error:
        sock.close()
        if isinstance(error, PermissionError):
            raise
        return None


def private(folder: Path) -> bool:
    """Whether nobody else can put anything into a folder: it is this user's, no link, and closed to others."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077


def distrusted(folder: Path) -> HostUnavailable:
    """What is said of a folder for the host's socket that is not private."""
    found, allowed = "a link, another user's, or open to others", "a folder of this user with mode 0700"
    failed = f"The folder {folder} cannot be trusted with the host's socket."
    return HostUnavailable(failed, found=found, allowed=allowed, advice=f"Remove {folder}; it is made anew.")


def _greet(sock: socket.socket, greeting: dict[str, Any]) -> dict[str, Any] | None:
    """The host's reply to our hello; None, with the socket closed, where it leaves without one."""
    with contextlib.suppress(OSError):
        sock.sendall(json.dumps(greeting).encode() + b"\n")
        if "rolecall" in (reply := _word(sock)):
            sock.settimeout(None)
            return reply
    sock.close()
    return None


def _launch(home: Home, config: str | None, command: Sequence[str], *options: str) -> tuple[socket.socket, Any]:
    """Start a host and wait for its word: `ready` or `held` with a process. The socket leads to the host.

    It is nobody's child, since some clients kill whole process trees: a shell in the middle leaves at once.
    `posix_spawn` rather than a fork, since this process may have threads. The environment is this process's without
    tokens, keys and proxies, which the host takes from its home: it must not depend on which client came first.
    """
    ours, theirs = socket.socketpair()
    ours.settimeout(_HELLO_TIMEOUT_S)
    theirs.set_inheritable(True)
    fd = str(theirs.fileno())
    arguments = [*command, "--home", str(home.root), "--starter-fd", fd, *options]
    arguments += ["--config", config] if config else []
    kept = {k: v for k, v in os.environ.items() if k.startswith("ROLECALL_") or not k.upper().endswith(_CLIENT_ONLY)}
    try:
        home.create()
        log = str(home.logs / "host.log")
        shell = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", '"$@" &', "sh", *arguments],
            {**kept, "ROLECALL_HOME": str(home.root)},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
        )
        with contextlib.suppress(ChildProcessError):  # a client may have its children's ends ignored
            os.waitpid(shell, 0)
    except OSError as error:
        raise unusable(home, error) from error
    finally:
        theirs.close()
    if not (word := _word(ours)):
        raise _crashed(home)
    return ours, word


def _word(sock: socket.socket) -> dict[str, Any]:
    """The next line from a host, empty where none comes. Raises RemoteError: the line holds the host's error; the
    socket is closed."""
    try:
        with sock.makefile("rb", buffering=0) as reader:  # unbuffered: what follows the line is not ours to take
            word = json.loads(reader.readline())
    except (OSError, ValueError):
        return {}
    if "error" in word:
        sock.close()
        raise RemoteError(word["error"])
    return dict(word)


def _crashed(home: Home) -> HostCrashed:
    advice = f"Its log is {home.logs / 'host.log'}; `rolecall doctor` checks the installation."
    return HostCrashed("The host ended while it started.", advice=advice)
