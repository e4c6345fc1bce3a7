"""What tools may read and write: files inside the folders a user allowed, never secrets.

Every read resolves the path's links first and then opens the file folder by folder without following a link, so that a
swap between check and open cannot lead out of the allowed folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
from collections.abc import Sequence
from pathlib import Path

from rolecall.config.errors import ConfigError
from rolecall.config.home import Home

from .contract import SourceText
from .errors import FileUnreadable, PathAmbiguous, PathMissing, PathNotAllowed, RetrievalError
from .globs import glob_regex, has_magic, list_files
from .refusals import file_exists, os_error, secret_file, too_large
from .secret_files import PRIVATE_KEY, is_secret

MAX_FILE_BYTES = 10_000_000
MAX_MATCHES = 1_000


class AllowedFolders:
    """The user's list of readable folders, kept in `Home.allowed_file`. Safe to use from several threads."""

    def __init__(self, home: Home, user_home: Path | None = None) -> None:
        self._home = home
        self._user_home = _real(user_home or Path.home())
        self._lock = threading.Lock()
        self._cached: tuple[tuple[int, int, int], tuple[Path, ...]] | None = None
        root = _real(home.root)
        private = (home.env_file, home.settings_file, home.allowed_file, home.receipts_db, home.lock_file)
        self._own = tuple(root / path.name for path in (*private, home.index, home.models, home.logs))

    def add(self, folder: Path) -> Path:
        """Allow a folder and all below it; returns its real path. Idempotent.

        Raises:
            PathMissing: no such folder. PathNotAllowed: the whole disk, a home folder, or a place of secrets.
        """
        real = _real(folder.expanduser().absolute())
        if not real.is_dir():
            raise PathMissing("No such folder.", found=str(folder), advice="Give the path of an existing folder.")
        if real == Path(real.anchor) or self._user_home.is_relative_to(real):
            raise PathNotAllowed(
                "The whole disk, or a home folder as a whole, cannot be allowed: it holds keys, mail and browser data.",
                found=str(real),
                allowed="any folder below it",
                advice="Allow the folder you work in, e.g. `rolecall allow ~/projects`.",
            )
        if is_secret(real) or self._is_own(real):
            raise PathNotAllowed(
                "This folder holds secrets or Rolecall's own state.", found=str(real), advice="Allow another folder."
            )
        if not str(real).isprintable():
            raise PathNotAllowed(
                "A folder whose path is not printable text cannot be allowed.",
                found=ascii(str(real)),
                advice="Rename it.",
            )
        with self._lock:
            folders = set(self.list())
            if real not in folders:
                self._write(sorted(folders | {real}))
        return real

    def remove(self, folder: Path) -> bool:
        """Take a folder off the list; False where it was not on it."""
        absolute = folder.expanduser().absolute()
        with self._lock:
            folders = self.list()
            kept = [entry for entry in folders if entry not in (absolute, _real(absolute))]
            if len(kept) < len(folders):
                self._write(kept)
        return len(kept) < len(folders)

    def list(self) -> tuple[Path, ...]:
        """The allowed folders, sorted.

        Raises:
            ConfigError: the list's file is not what Rolecall wrote.
        """
        file = self._home.allowed_file
        try:
            found = file.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if self._cached is None or self._cached[0] != stamp:
                data = json.loads(file.read_text("utf-8"))
                self._cached = (stamp, tuple(sorted(Path(str(entry)) for entry in data["folders"])))
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"The list of allowed folders {file} cannot be read.",
                found=" ".join(str(error).split())[:200],
                advice="Remove the file and run `rolecall allow FOLDER` again.",
            ) from None
        return self._cached[1]

    def resolve(self, patterns: Sequence[str], cwd: Path) -> tuple[Path, ...]:
        """Real paths of files named by paths, folders or globs (`*`, `?`, `[..]`, `**`), sorted, each once.

        Relative patterns count from `cwd`. Secrets and links out of the allowed folders are left out of globs and
        folders, and refused where named. Hidden and generated folders are entered only where a pattern names them.

        Raises:
            PathMissing, PathNotAllowed, PathAmbiguous, FileUnreadable (too many files).
        """
        found: set[Path] = set()
        for pattern in patterns:
            found.update(self._resolve_one(pattern, cwd))
            if len(found) > MAX_MATCHES:
                raise FileUnreadable(
                    "The paths name too many files for one request.",
                    found=f"more than {MAX_MATCHES} files",
                    allowed=f"at most {MAX_MATCHES} files",
                    advice="Narrow the pattern, or index the folder and use retrieve.",
                )
        return tuple(sorted(found))

    def read(self, path: Path, max_bytes: int = MAX_FILE_BYTES) -> SourceText:
        """A regular UTF-8 file inside an allowed folder, read once.

        Raises:
            PathMissing, PathNotAllowed, MacosPrivacy.
            FileUnreadable: not a regular file, over `max_bytes`, not text, no permission, or changing while read.
        """
        data, real = self.read_bytes(path, max_bytes)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FileUnreadable(
                f"{path} is not UTF-8 text.",
                found=f"byte 0x{data[error.start]:02x} at offset {error.start:,}",
                allowed="UTF-8",
                advice="Convert the file to UTF-8.",
            ) from None
        if "\0" in text:
            raise FileUnreadable(f"{path} is not text.", found="NUL bytes", advice="Leave this file out.")
        return SourceText(path=real, text=text, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))

    def read_bytes(self, path: Path, max_bytes: int = MAX_FILE_BYTES) -> tuple[bytes, Path]:
        """The bytes of a file and its real path; errors as `read`."""
        real, root = self._checked(path)
        try:
            with os.fdopen(self._open_below(root, real, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                before = os.fstat(file.fileno())
                if not stat.S_ISREG(before.st_mode):
                    raise FileUnreadable(f"{path} is not a regular file.", advice="Name a file.")
                if before.st_size > max_bytes:
                    raise too_large(path, before.st_size, max_bytes)
                data = file.read(max_bytes + 1)
                after = os.fstat(file.fileno())
        except OSError as error:
            raise os_error(path, error, self._user_home) from None
        if len(data) > max_bytes:
            raise too_large(path, len(data), max_bytes)
        if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, len(data)):
            raise FileUnreadable(f"{path} changed while it was read.", advice="Try again when it is written.")
        if PRIVATE_KEY.match(data):
            raise secret_file(path)
        return data, real

    def writable(self, path: str | Path, cwd: Path) -> Path:
        """The real path of a new file that may be created: in an existing, visible folder that is allowed.

        Raises:
            PathNotAllowed: outside, a secret, hidden, or existing already. PathMissing: no such folder.
        """
        target = self._absolute(str(path), cwd)
        folder, root = self._checked(target.parent)
        real = folder / target.name
        if is_secret(real) or any(part.startswith(".") for part in real.relative_to(root).parts):
            raise PathNotAllowed(
                "Hidden files and secrets are never written: other programs run or trust them.",
                found=str(real),
                advice="Choose a visible file name.",
            )
        if not folder.is_dir():
            raise PathMissing("No such folder.", found=str(folder), advice="Make the folder first.")
        if os.path.lexists(real):
            raise file_exists(real)
        return real

    def write_new(self, path: str | Path, text: str, cwd: Path) -> Path:
        """Create a file with `text` in full, or not at all; never overwrites. Returns its real path.

        Raises:
            As `writable`, and RetrievalError where the disk refuses.
        """
        real = self.writable(path, cwd)
        root = self._root_of(real)
        assert root is not None
        try:
            fd = self._open_below(root, real, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            raise file_exists(real) from None
        except OSError as error:
            raise os_error(real, error, self._user_home) from None
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(text.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
        except (OSError, UnicodeEncodeError) as error:
            real.unlink(missing_ok=True)
            raise RetrievalError(
                f"{real} could not be written.", found=str(error), advice="Free disk space or choose another folder."
            ) from None
        return real

    def _resolve_one(self, pattern: str, cwd: Path) -> Sequence[Path]:
        path = self._absolute(pattern, cwd)
        if has_magic(pattern) and not os.path.lexists(path):
            parts = path.parts
            fixed = next(i for i, part in enumerate(parts) if has_magic(part))
            base, _ = self._checked(Path(*parts[:fixed]))
            wanted = glob_regex("/".join(parts[fixed:]))
        else:
            base, _ = self._checked(path)
            if not base.is_dir():
                return (base,)
            wanted = glob_regex("**")
        matched = [file for file in list_files(base, wanted) if self._visible(file)]
        if not matched:
            raise PathMissing(
                "No readable file matches.", found=pattern, advice=f"Secrets are left out; list {base} and name a file."
            )
        return [_real(file) for file in matched]

    def _visible(self, file: Path) -> bool:
        real = _real(file)
        return self._root_of(real) is not None and not is_secret(real) and not is_secret(file) and real.is_file()

    def _absolute(self, pattern: str, cwd: Path) -> Path:
        if not pattern.strip() or "\0" in pattern:
            raise PathMissing("An empty path.", found=repr(pattern), advice="Give the path of a file or folder.")
        path = Path(pattern).expanduser() if pattern.startswith("~/") else Path(pattern)
        if path.is_absolute():
            return Path(os.path.abspath(path))  # noqa: PTH100  (`..` goes before the longest fixed prefix is cut)
        if _real(cwd) in (Path(cwd.anchor), self._user_home):
            raise PathAmbiguous(
                "A relative path is ambiguous here: the client runs in the disk's root or the home folder.",
                found=pattern,
                allowed="absolute paths",
                advice=f"Write the absolute path, e.g. {cwd / path}.",
            )
        return Path(os.path.abspath(cwd / path))  # noqa: PTH100

    def _checked(self, path: Path) -> tuple[Path, Path]:
        """The real path and the allowed folder it is in; says nothing of what exists outside those folders."""
        real = _real(path)
        root = self._root_of(real)
        if root is None or self._is_own(real):
            folders = self.list()
            raise PathNotAllowed(
                "This path is outside the folders you allowed.",
                found=str(path) if real == path else f"{path} (which is {real})",
                allowed=", ".join(str(folder) for folder in folders) or "no folder yet",
                advice=f"Run `rolecall allow {real if real.is_dir() else real.parent}` or name a file in one of them.",
            )
        if is_secret(real) or is_secret(path):
            raise secret_file(path)
        try:
            real.lstat()
        except OSError as error:
            raise os_error(path, error, self._user_home) from None
        return real, root

    def _root_of(self, real: Path) -> Path | None:
        inside = [folder for folder in self.list() if real.is_relative_to(folder)]
        return max(inside, key=lambda folder: len(folder.parts), default=None)

    def _is_own(self, real: Path) -> bool:
        return any(real == own or real.is_relative_to(own) for own in self._own)

    def _open_below(self, root: Path, real: Path, flags: int, mode: int = 0) -> int:
        """Open `real` from `root` down with no link followed at any step; the caller closes the descriptor."""
        safe = os.O_NOFOLLOW | os.O_CLOEXEC
        parts = real.relative_to(root).parts
        if not parts:
            raise FileUnreadable(f"{real} is a folder.", advice="Name a file.")
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | safe)
        try:
            for part in parts[:-1]:
                below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | safe, dir_fd=folder)
                os.close(folder)
                folder = below
            return os.open(parts[-1], flags | os.O_NOCTTY | safe, mode, dir_fd=folder)
        finally:
            os.close(folder)

    def _write(self, folders: Sequence[Path]) -> None:
        file = self._home.allowed_file
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = file.with_name(f"{file.name}.{os.getpid()}.new")
        try:
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
                json.dump({"version": 1, "folders": [str(folder) for folder in folders]}, out, indent=1)
                out.flush()
                os.fsync(out.fileno())
            new.replace(file)
        except (OSError, UnicodeEncodeError) as error:
            new.unlink(missing_ok=True)
            raise ConfigError(f"{file} could not be written.", found=str(error), advice="Free disk space.") from None


def _real(path: Path) -> Path:
    """The path without links; one in a loop of links stays, and cannot be opened."""
    return Path(os.path.realpath(path))
