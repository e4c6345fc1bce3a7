"""Why a file cannot be had: the typed error of each refusal, by the rules or by the system."""

from __future__ import annotations

import errno
import os
import sys
from difflib import get_close_matches
from pathlib import Path

from .errors import FileUnreadable, MacosPrivacy, PathMissing, PathNotAllowed, RetrievalError


def secret_file(path: Path) -> PathNotAllowed:
    return PathNotAllowed(
        "Keys, credentials and .env files are never read.", found=str(path), advice="Leave this file out."
    )


def file_exists(path: Path) -> PathNotAllowed:
    return PathNotAllowed("The file exists, and nothing is overwritten.", found=str(path), advice="Choose a new name.")


def too_large(path: Path, size_bytes: int, max_bytes: int) -> FileUnreadable:
    return FileUnreadable(
        f"{path} is too large.",
        found=f"{size_bytes:,} bytes",
        allowed=f"{max_bytes:,} bytes",
        advice="Split the file, or index it in parts.",
    )


def os_error(path: Path, error: OSError, user_home: Path, platform: str = sys.platform) -> RetrievalError:
    """The typed error of a failed system call on a path inside an allowed folder."""
    guarded = (user_home / name for name in ("Desktop", "Documents", "Downloads"))
    if error.errno == errno.EPERM and platform == "darwin" and any(path.is_relative_to(place) for place in guarded):
        return MacosPrivacy(
            f"macOS does not let this program read {path}.",
            found=f"no permission for {sys.executable}",
            advice="System Settings, Privacy & Security, Files and Folders: allow it, then `rolecall stop`.",
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        siblings = os.listdir(path.parent) if path.parent.is_dir() else []  # noqa: PTH208
        near = get_close_matches(path.name, siblings, n=1)
        return PathMissing(
            "No such file.", found=str(path), advice=f"Did you mean {near[0]}?" if near else "Check the path."
        )
    reasons = {
        errno.EACCES: "permission denied",
        errno.ELOOP: "a link where a file was",
        errno.EISDIR: "a folder",
        errno.ENXIO: "not a regular file",
        errno.ENAMETOOLONG: "a name that is too long",
    }
    reason = reasons.get(error.errno or 0, error.strerror or "an error of the disk")
    return FileUnreadable(f"{path} cannot be opened.", found=reason, advice="Check its permissions, or leave it out.")
