"""Errors of folders, files and the index: under each code, what it means."""

from __future__ import annotations

import errno
import sys
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from rolecall.config.errors import RolecallError

NAMES_COMPARED = 1_000  # of a folder, to guess what was meant


class RetrievalError(RolecallError):
    code = "retrieval_error"


class PathMissing(RetrievalError):
    code = "path_missing"  # no such file, or a glob that matches nothing


class PathNotAllowed(RetrievalError):
    """`folder` is what would have to be allowed, where that is all it takes."""

    code = "path_not_allowed"  # outside every allowed folder, or a secret (keys, .env, .ssh)

    def __init__(self, message: str, *, folder: Path | None = None, **shown: str) -> None:
        super().__init__(message, **shown)
        self.folder = folder


class PathAmbiguous(RetrievalError):
    code = "path_ambiguous"  # a relative path where the client runs in `/` or the home folder


class FileUnreadable(RetrievalError):
    """It is the file's fault: the next one can be read."""

    code = "file_unreadable"  # not text, too large, or no permission; or one of the codes of `unfit`

    def __init__(self, message: str, code: str = "file_unreadable", **shown: str) -> None:
        super().__init__(message, **shown)
        self.code = code  # type: ignore[misc]  # the reason's, not the class's


_UNFIT = {
    "file_unreadable": ("The file is not UTF-8 text.", "Convert it to UTF-8."),
    "binary": ("The file is no text.", "Leave it out."),
    "generated": ("A program wrote the file.", "Leave it out."),
    "no_text": ("The document has no text.", "Run text recognition (OCR) over it, or leave it out."),
    "encrypted": ("The document needs a password.", "Save it without, or leave it out."),
    "parse_failed": ("The file is damaged, or not what its name says.", "Open it, and save it anew."),
    "parse_timeout": ("The file takes too long to parse.", "Split it, or leave it out."),
    "parse_memory": ("The file holds too much to parse.", "Split it, or leave it out."),
    "needs_documents_extra": ("The file takes an extra to read.", "Get it with: pip install 'rolecall[documents]'"),
}
"""What failed and what to do, by code."""


def unfit(code: str, found: str, allowed: str = "") -> FileUnreadable:
    """Why a file's bytes cannot be indexed; a code that is none here is `parse_failed`."""
    code = code if code in _UNFIT else "parse_failed"
    message, advice = _UNFIT[code]
    return FileUnreadable(message, code, found=found, allowed=allowed, advice=advice)


class MacosPrivacy(RetrievalError):
    code = "macos_privacy"  # macOS denies this program the folder


class IndexLarge(RetrievalError):
    code = "index_large"  # so many files are indexed only where the user said so


class IndexCorrupt(RetrievalError):
    code = "index_corrupt"  # the store cannot be read, or was made by a newer version


class IndexEmpty(RetrievalError):
    code = "index_empty"  # nothing is indexed (or no such collection)


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
        names = (file.name for file in islice(path.parent.glob("*"), NAMES_COMPARED))
        near = get_close_matches(path.name, names, n=1)
        advice = f"Did you mean {near[0]}?" if near else "Check the path."
        return PathMissing("No such file or folder.", found=str(path), advice=advice)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RetrievalError(f"{path} cannot be written.", found="the disk is full", advice="Free disk space.")
    reasons = {errno.ELOOP: "a link where a file was", errno.EISDIR: "a folder", errno.ENXIO: "not a regular file"}
    reason = reasons.get(error.errno or 0) or error.strerror or "an error of the disk"
    return FileUnreadable(f"{path} cannot be opened.", found=reason, advice="Check its permissions, or leave it out.")
