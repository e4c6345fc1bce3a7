"""Glob patterns over absolute paths: `*` and `?` stay within a name, `**` crosses folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

GENERATED = frozenset(("__pycache__", "node_modules", "bower_components", "site-packages", "venv"))
MAX_SCANNED = 200_000


def has_magic(pattern: str) -> bool:
    return any(mark in pattern for mark in "*?[")


def glob_regex(pattern: str) -> re.Pattern[str]:
    """A regular expression for `fullmatch` against a path with `/` between names; a trailing `**` takes all below."""
    out = ""
    i = 0
    while i < len(pattern):
        if pattern.startswith("**/", i):
            out, i = out + "(?:[^/]+/)*", i + 3
        elif pattern.startswith("**", i):
            out, i = out + ".*", i + 2
        elif pattern[i] == "[" and (end := pattern.find("]", i + 2)) > 0:
            inner = re.sub(r"([\\\[&~|])", r"\\\1", pattern[i + 1 : end])
            out, i = out + f"[{'^' + inner[1:] if inner[0] == '!' else inner}]", end + 1
        else:
            out, i = out + {"*": "[^/]*", "?": "[^/]"}.get(pattern[i], re.escape(pattern[i])), i + 1
    try:
        return re.compile(out, re.DOTALL)
    except re.error:
        return re.compile(re.escape(pattern))


def list_files(base: Path, wanted: re.Pattern[str]) -> Iterator[Path]:
    """Files below `base` whose relative path matches; hidden names and generated folders are passed over, links to
    folders are not followed, and at most `MAX_SCANNED` names are looked at."""
    scanned = 0
    for folder, folders, names in os.walk(base):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in GENERATED)
        scanned += len(names) + len(folders)
        if scanned > MAX_SCANNED:
            return
        relative = Path(folder).relative_to(base)
        for name in names:
            if not name.startswith(".") and wanted.fullmatch((relative / name).as_posix()):
                yield Path(folder, name)
