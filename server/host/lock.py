"""One host per home: the lock it holds while it lives, and the socket that only the holder makes and unlinks."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from rolecall.config.errors import ConfigError
from rolecall.config.home import Home

from ..connect import SocketDenied, distrusted, lock_note, private
from ..protocol import VERSION

_PATH_BYTES = 100
"""macOS takes 104 bytes of socket path with its end. Source: sys/un.h."""
_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "afpfs", "webdav", "fuse.sshfs", "afs", "ceph"})
"""File systems on which neither a lock nor SQLite's write-ahead log can be relied on."""

_ENTRY = re.compile(r"""(?:export\s+)?([^\W\d]\w*)\s*=\s*(["']?)(.*)\2""")


class HomeLock:
    """The exclusive lock of a home, held from `take()` until the process ends."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._fd = -1

    def take(self) -> int | None:
        """Take the lock; returns None, or the process that holds it (0 where it has not said yet). Raises ConfigError:
        the home is on a network disk; OSError: it cannot be written."""
        self.home.create()
        self._fd = os.open(self.home.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if found := network_disk(self.home.root.resolve()):
            failed = f"The home {self.home.root} is on a network disk, where locks and stores cannot be relied on."
            advice = "Set ROLECALL_HOME to a local folder."
            raise ConfigError(failed, found=found, allowed="a local disk", advice=advice)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(lock_note(self.home).get("pid", 0))
        os.ftruncate(self._fd, 0)  # an earlier holder's note must not be taken for ours
        return None

    def note(self, socket_path: Path | None) -> None:
        """Write into the lock file who holds it and where its socket is (None: a standalone server without one)."""
        note = {"pid": os.getpid(), "version": VERSION, "socket": str(socket_path) if socket_path else None}
        os.pwrite(self._fd, json.dumps(note).encode() + b"\n", 0)

    def still_ours(self) -> bool:
        """Whether the lock file is the one we hold: false once somebody removed the home."""
        try:
            return self.home.lock_file.stat().st_ino == os.fstat(self._fd).st_ino
        except OSError:
            return False


def bind_socket(home: Home) -> tuple[socket.socket, Path]:
    """The listening socket of the home's host and its path; the caller holds the lock, so what lies there is stale.
    Raises SocketDenied: this process may not make sockets; HostUnavailable: no folder for it can be trusted."""
    name = hashlib.sha256(str(home.root.resolve()).encode()).hexdigest()[:16] + ".sock"
    try:
        path = _runtime_folder(name) / name
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen(128)
    except PermissionError as error:
        advice = "A sandbox forbids it; serve standalone."
        raise SocketDenied("The host's socket cannot be made.", found=str(error), advice=advice) from error
    listener.setblocking(False)
    return listener, path


def _runtime_folder(name: str) -> Path:
    given = Path(os.environ.get("XDG_RUNTIME_DIR") or "/")
    folder = given / "rolecall"
    if not private(given) or len(os.fsencode(folder / name)) > _PATH_BYTES:
        folder = Path(f"/tmp/rolecall-{os.getuid()}")  # short, and checked below
    with suppress(FileExistsError):  # a link or a file: refused below
        folder.mkdir(mode=0o700, exist_ok=True)
    if not private(folder):
        raise distrusted(folder)
    return folder


def network_disk(path: Path, mounts: Mapping[str, str] | None = None) -> str | None:
    """The network disk that an absolute path lies on, in words; `mounts` holds file systems by mount point."""
    if mounts is None:
        try:
            mounts = {disk.mountpoint: disk.fstype for disk in psutil.disk_partitions(all=True)}
        except OSError:  # a sandbox
            return None
    mount = max((point for point in mounts if path.is_relative_to(point)), key=len, default="")
    kind = mounts.get(mount, "").lower()
    return f"{kind} at {mount}" if kind in _REMOTE else None


def load_environment(home: Home) -> None:
    """Put the home's `env` file (`KEY=value` lines, `#` comments) into this process's environment. Raises ConfigError:
    a line is neither; the error names the line's number and keeps its text to itself."""
    try:
        text = home.env_file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if (entry := _ENTRY.fullmatch(line.strip())) is None:
            failed, found = f"Line {number} of {home.env_file} cannot be used.", f"{len(line)} characters, not shown"
            allowed, advice = "KEY=value, an empty line or a # comment", "Correct or remove that line."
            raise ConfigError(failed, found=found, allowed=allowed, advice=advice)
        os.environ[entry[1]] = entry[3]
