"""What tools may read and write: files inside the folders a user allowed, never secrets.

Every read resolves the path's links first and then opens the file folder by folder without following a link, so that a
swap between check and open cannot lead out of the allowed folder.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import re
import stat
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from rolecall.config.errors import ConfigError
from rolecall.config.home import Home
from rolecall.config.profile import Strict

from .contract import SourceText
from .errors import FileUnreadable, PathAmbiguous, PathMissing, PathNotAllowed, os_error

MAX_FILE_BYTES = 10_000_000
MAX_MATCHES = 1_000
MAX_SCANNED = 200_000

_MAGIC = frozenset("*?[")
NOT_UTF8 = frozenset(map(chr, range(0xDC80, 0xDD00)))  # how Python writes a name's odd bytes
_GENERATED = frozenset(("__pycache__", "node_modules", "bower_components", "site-packages", "venv"))
SECRET_FOLDERS = frozenset(
    (".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker", ".password-store", "keychains", "keyrings", "gcloud")
)
SECRET_NAMES = (
    ".env*", "*.env", "*.pem", "*.key", "*.p8", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk",
    "*.keychain*", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", ".netrc", "_netrc", ".pgpass", ".my.cnf", ".npmrc",
    ".pypirc", ".htpasswd", ".git-credentials", "credentials", "credentials.json", "credentials.toml",
    "credentials.y*ml", "client_secret*.json", "service-account*.json", "secrets.json", "secrets.y*ml", "secrets.toml",
)  # fmt: skip
_SECRET_NAME = re.compile("|".join(fnmatch.translate(name) for name in SECRET_NAMES))
_PRIVATE_KEY = re.compile(rb"\s*-----BEGIN [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----")


class _Stored(Strict):
    version: Literal[1] = 1
    folders: list[Path]
    private: list[Path] = Field(default=[])


class AllowedFolders:
    """The user's list of readable folders, kept in `Home.allowed_file`. Safe to use from several threads.

    What is in a private one is read by local models only: no client is sent its text. That is kept here, so that it
    outlives the index. Raises RetrievalError: its subclass says why a path is refused, MacosPrivacy among them;
    ConfigError: the list's file is not what Rolecall wrote."""

    def __init__(self, home: Home, user_home: Path | None = None) -> None:
        self._file = home.allowed_file
        self._user_home = _real(user_home or Path.home())
        self._own = folded(_real(home.root))
        self._lock = threading.Lock()
        self._cached: tuple[tuple[int, int, int], _Stored] = ((0, 0, 0), _Stored(folders=[]))

    def add(self, folder: Path) -> Path:
        """Allow a folder and all below it; returns its real path. Idempotent."""
        real = self.allowable(folder)
        with self._lock:
            self._write({*self.list(), real}, set(self._stored().private))
        return real

    def set_private(self, folders: Iterable[Path], private: bool) -> None:
        """Make allowed folders private, or no longer so."""
        with self._lock:
            known, given = set(self._stored().private), set(folders)
            if (kept := known | given if private else known - given) != known:
                self._write({*self.list()}, kept)

    def allowable(self, folder: Path) -> Path:
        """The real path of a folder that `add` would allow; raises as `add` does where it would not."""
        real = _real(folder)
        if not os.path.isdir(real):  # noqa: PTH112  (says no where Path.is_dir raises)
            raise PathMissing("No such folder.", found=str(folder), advice="Give the path of an existing folder.")
        if self._user_home.is_relative_to(real):
            refusal = "The whole disk, or a home folder as a whole, holds keys, mail and browser data."
        elif is_secret(real) or self._is_own(real):
            refusal = "This folder holds secrets or Rolecall's own state."
        elif not str(real).isprintable():
            refusal = "The path of an allowed folder is printable text."
        else:
            return real
        raise PathNotAllowed(refusal, found=repr(str(real)), advice="Allow the folder you work in below your home.")

    def remove(self, folder: Path) -> bool:
        """Take a folder off the list; False where it was not on it."""
        with self._lock:
            folders, gone = {*self.list()}, {folder, _real(folder)}
            self._write(folders - gone, set(self._stored().private))  # private it stays, should it be allowed again
            return len(self.list()) < len(folders)

    def list(self) -> tuple[Path, ...]:
        """The allowed folders, sorted."""
        return tuple(self._stored().folders)

    def is_private(self, path: Path) -> bool:
        """Whether no client may have the text of the file at this path."""
        private = self._stored().private
        return bool(private) and any(_within(folded(_real(path)), folded(folder)) for folder in private)

    def _stored(self) -> _Stored:
        try:
            found = self._file.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if self._cached[0] != stamp:
                self._cached = (stamp, _Stored.model_validate_json(self._file.read_bytes()))
        except FileNotFoundError:
            return _Stored(folders=[])
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"The list of allowed folders {self._file} cannot be read.",
                found=" ".join(str(error).split())[:200],
                advice="Remove the file and run `rolecall allow FOLDER` again.",
            ) from None
        return self._cached[1]

    def resolve(self, patterns: Sequence[str], cwd: Path) -> tuple[Path, ...]:
        """Real paths of files named by paths, folders or globs (`*`, `?`, `[..]`, `**`), sorted, each once.

        Relative patterns count from `cwd`. Secrets, links out of the allowed folders and names that are not UTF-8 are
        left out of globs and folders, and refused where named. Hidden and generated folders are entered only where a
        pattern names them.
        """
        found: set[Path] = set()
        for pattern in patterns:
            matched = None
            for matched in self._named_by(pattern, cwd):
                found.add(matched)
                _limit(len(found), MAX_MATCHES, "files")
            if matched is None:
                advice = "Secrets are left out. Name a file that is there."
                raise PathMissing("No readable file matches.", found=repr(pattern), advice=advice)
        return tuple(sorted(found))

    def read(self, path: Path, max_bytes: int = MAX_FILE_BYTES) -> SourceText:
        """A regular UTF-8 file inside an allowed folder, read once; FileUnreadable where it is none, is over
        `max_bytes` or changes while it is read."""
        data, real = self.read_bytes(path, max_bytes)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            found = f"byte 0x{data[error.start]:02x} at offset {error.start:,}"
            raise FileUnreadable(f"{path} is not UTF-8 text.", found=found, advice="Convert it to UTF-8.") from None
        if "\0" in text:
            raise FileUnreadable(f"{path} is not text.", found="NUL bytes", advice="Leave this file out.")
        return SourceText(path=real, text=text, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))

    def read_bytes(self, path: Path, max_bytes: int = MAX_FILE_BYTES) -> tuple[bytes, Path]:
        """The bytes of a file and its real path; errors as `read`."""
        real, root = self._checked(path)
        try:
            with open(real, "rb", opener=partial(_open_below, root)) as file:
                before = os.fstat(file.fileno())
                if not stat.S_ISREG(before.st_mode):
                    raise FileUnreadable(f"{path} is not a regular file.", advice="Name a file.")
                data = file.read(max_bytes + 1)
                after = os.fstat(file.fileno())
        except OSError as error:
            raise os_error(real, error, self._user_home) from None
        if len(data) > max_bytes:
            found, allowed = f"{after.st_size:,} bytes", f"{max_bytes:,} bytes"
            raise FileUnreadable(f"{path} is too large.", found=found, allowed=allowed, advice="Split the file.")
        if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, len(data)):
            raise FileUnreadable(f"{path} changed while it was read.", advice="Try again when it is written.")
        if _PRIVATE_KEY.match(data):
            raise _secret(path)
        return data, real

    def writable(self, path: str | Path, cwd: Path) -> Path:
        """The real path of a new file that may be created: in an existing, visible folder that is allowed."""
        target = self._absolute(str(path), cwd)
        folder, root = self._checked(target.parent)
        real = folder / target.name
        if is_secret(real) or any(part.startswith(".") for part in real.relative_to(root).parts):
            message = "Hidden files and secrets are never written: other programs run or trust them."
            raise PathNotAllowed(message, found=str(real), advice="Choose a visible file name.")
        if not folder.is_dir():
            raise PathMissing("No such folder.", found=str(folder), advice="Make the folder first.")
        if os.path.lexists(real):
            raise _exists(real)
        return real

    def write_new(self, path: str | Path, text: str, cwd: Path) -> Path:
        """Create a file with `text` in full, or not at all; never overwrites. Returns its real path."""
        real = self.writable(path, cwd)
        _, root = self._checked(real.parent)
        made = False
        try:
            with open(real, "xb", opener=partial(_open_below, root)) as file:
                made = True
                file.write(text.encode("utf-8", "replace"))
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            raise _exists(real) from None
        except OSError as error:
            if made:
                real.unlink(missing_ok=True)
            raise os_error(real, error, self._user_home) from None
        return real

    def _named_by(self, pattern: str, cwd: Path) -> Iterator[Path]:
        parts = self._absolute(pattern, cwd).parts
        fixed = 1  # a name that looks like a glob but is there is that file or folder, `[id]` for one
        while fixed < len(parts) and (_MAGIC.isdisjoint(parts[fixed]) or os.path.lexists(Path(*parts[: fixed + 1]))):
            fixed += 1
        base, _ = self._checked(Path(*parts[:fixed]))
        if fixed < len(parts):
            yield from self._files_below(base, parts[fixed:])
        elif base.is_dir():
            yield from self._files_below(base, ("**",))
        else:
            yield base

    def _files_below(self, base: Path, wanted: Sequence[str]) -> Iterator[Path]:
        """Real paths of readable files below `base` whose relative path matches; links to folders are not followed."""

        def refuse(error: OSError) -> None:
            if error.filename == str(base):
                raise os_error(base, error, self._user_home) from None

        def entered(name: str) -> bool:
            return name in wanted or not (name.startswith(".") or name in _GENERATED)

        scanned = 0
        for folder, folders, names in os.walk(base, onerror=refuse):
            scanned += len(names) + len(folders)
            _limit(scanned, MAX_SCANNED, "names")
            relative = Path(folder).relative_to(base).parts
            deeper = "**" in wanted or len(relative) + 1 < len(wanted)
            folders[:] = [name for name in folders if deeper and entered(name)]
            for name in names:
                if entered(name) and glob_matches((*relative, name), wanted):
                    real = _real(file := Path(folder, name))
                    unfit = is_secret(real) or is_secret(file) or not NOT_UTF8.isdisjoint(str(real))
                    if self._root_of(real) and not unfit and os.path.isfile(real):  # noqa: PTH113
                        yield real

    def _absolute(self, pattern: str, cwd: Path) -> Path:
        path = Path(os.path.expanduser(pattern) if pattern.startswith("~/") else pattern)  # noqa: PTH111
        absolute = Path(os.path.abspath(cwd / path))  # noqa: PTH100  (`..` goes before a glob is split off)
        if not NOT_UTF8.isdisjoint(str(_real(absolute))):
            raise _no_path(absolute)
        if not path.is_absolute() and _real(cwd) in (Path(cwd.anchor), self._user_home):
            raise PathAmbiguous(
                "A relative path is ambiguous here: the client runs in the disk's root or the home folder.",
                found=repr(pattern),
                allowed="absolute paths",
                advice=f"Write the absolute path, e.g. {absolute}.",
            )
        return absolute

    def _checked(self, path: Path) -> tuple[Path, Path]:
        """The real path and the allowed folder it is in."""
        real = _real(path)
        root = self._root_of(real)
        if root is None:
            folder = real if os.path.isdir(real) else real.parent  # noqa: PTH112
            refused = self._user_home.is_relative_to(folder) or self._is_own(folder)
            raise PathNotAllowed(
                "This path is outside the folders you allowed, or Rolecall's own.",
                found=str(path) if real == path else f"{path} (which is {real})",
                allowed=", ".join(str(folder) for folder in self.list()) or "no folder yet",
                advice=f"Run `rolecall allow {'FOLDER' if refused else folder}` or name a file in an allowed folder.",
                folder=None if refused or is_secret(real) else folder,
            )
        if is_secret(real) or is_secret(path):
            raise _secret(path)
        try:
            real.lstat()
        except OSError as error:
            raise os_error(real, error, self._user_home) from None
        return real, root

    def _root_of(self, real: Path) -> Path | None:
        inside = [folder for folder in self.list() if _within(str(real), str(folder))]
        return None if not inside or self._is_own(real) else max(inside, key=lambda folder: len(str(folder)))

    def _is_own(self, real: Path) -> bool:
        return _within(folded(real), self._own)

    def _write(self, folders: set[Path], private: set[Path]) -> None:
        new = self._file.with_suffix(f".{os.getpid()}.new")
        try:
            new.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            stored = _Stored(folders=sorted(folders), private=sorted(private))
            new.write_text(stored.model_dump_json(indent=1), "utf-8")
            new.replace(self._file)
        except OSError as error:
            new.unlink(missing_ok=True)
            advice = "Free disk space."
            raise ConfigError(f"{self._file} could not be written.", found=str(error), advice=advice) from None


def is_secret(path: Path) -> bool:
    """Whether a path names keys or credentials, which are never read, indexed or written whatever is allowed."""
    folded = [part.casefold() for part in path.parts]
    return bool(folded) and (not SECRET_FOLDERS.isdisjoint(folded) or _SECRET_NAME.match(folded[-1]) is not None)


def glob_matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a glob, both as their names; `**` stands for any number of names.

    Quick on every input: patterns come from clients, and a regular expression of many stars would not be.
    """
    at = i = 0
    last, retry = -1, 0
    while at < len(parts):
        if i < len(pattern) and pattern[i] == "**":
            last, retry, i = i, at, i + 1
        elif i < len(pattern) and fnmatch.fnmatchcase(parts[at], pattern[i]):
            at, i = at + 1, i + 1
        elif last >= 0:  # the last `**` takes one name more
            retry += 1
            at, i = retry, last + 1
        else:
            return False
    return all(part == "**" for part in pattern[i:])


def _open_below(root: Path, path: str, flags: int) -> int:
    """An opener: from `root` down with no link followed at any step, and without waiting for a pipe's other end."""
    if not _within(path, str(root)):  # the folder became a link since it was looked at
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    safe = os.O_NOFOLLOW | os.O_CLOEXEC
    *folders, name = (path[len(str(root)) + 1 :] or ".").split("/")
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | safe)
    try:
        for part in folders:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | safe, dir_fd=folder)
            os.close(folder)
            folder = below
        return os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY | safe, 0o644, dir_fd=folder)
    finally:
        os.close(folder)


def _secret(path: Path) -> PathNotAllowed:
    message = "Keys, credentials and .env files are never read."
    return PathNotAllowed(message, found=str(path), advice="Leave this file out.")


def _exists(path: Path) -> PathNotAllowed:
    return PathNotAllowed("The file exists, and nothing is overwritten.", found=str(path), advice="Choose a new name.")


def _limit(count: int, most: int, what: str) -> None:
    if count > most:
        message = "The paths name too many files for one request."
        advice = "Narrow the pattern, or index the folder and use retrieve."
        raise FileUnreadable(message, found=f"over {most:,} {what}", allowed=f"{most:,} {what}", advice=advice)


def _no_path(path: Path) -> PathMissing:
    return PathMissing("This is no path.", found=ascii(str(path)), advice="Give a path without odd bytes.")


def _real(path: Path) -> Path:
    """The path without links; one in a loop of links stays, and cannot be opened."""
    try:
        return Path(os.path.realpath(os.path.expanduser(path)))  # noqa: PTH111  (keeps `~nobody`, where Path raises)
    except ValueError:
        raise _no_path(path) from None


def _within(path: str, folder: str) -> bool:
    """Of real paths, quicker than Path.is_relative_to."""
    return path == folder or path.startswith(f"{folder}/")


def folded(path: Path | str) -> str:
    """For comparison on disks that do not tell upper case from lower, nor accents from letters with accents."""
    return unicodedata.normalize("NFD", str(path)).casefold()
