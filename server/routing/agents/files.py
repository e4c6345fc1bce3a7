"""Facts about files under the folders that tools may read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from stat import S_ISREG

from .contract import AgentContext, Parse, Value

_MAX_ENTRIES = 200_000
"""More than this is not walked: a wrong count is worse than none."""
_MAX_LINES_BYTES = 64_000_000
_SUFFIXES = {
    "python": (".py",), "markdown": (".md", ".markdown"), "text": (".txt",), "javascript": (".js", ".mjs"),
    "typescript": (".ts", ".tsx"), "yaml": (".yaml", ".yml"), "rust": (".rs",), "image": (".png", ".jpg", ".jpeg",
    ".gif", ".svg", ".webp"), "ruby": (".rb",), "kotlin": (".kt",), "html": (".html", ".htm"), "jpg": (".jpg", ".jpeg"),
}  # fmt: skip


class _TooMany(Exception):
    """The folder holds more entries than are walked."""


@dataclass(frozen=True, slots=True)
class _Found:
    path: Path
    size_bytes: int
    modified_s: float


def compute(parse: Parse, context: AgentContext) -> Value | None:
    """The fact asked for, or None where the path is not in an allowed folder, does not exist or holds too much."""
    kind, parts = str(parse[0]), parse[1:]
    named = next((str(part[1]) for part in parts if isinstance(part, list) and part[0] == "path"), "")
    wanted = next((str(part[1]) for part in parts if isinstance(part, list) and part[0] == "kind"), "")
    order = next((part for part in parts if isinstance(part, str)), "")
    path = _allowed(named.strip('"'), context)
    if path is None:
        return None
    try:
        return _fact(kind, path, _suffixes(wanted), order)
    except (OSError, _TooMany):
        return None


def _fact(kind: str, path: Path, suffixes: tuple[str, ...], order: str) -> Value | None:
    where = f"under {path}, subfolders included, hidden files and links left out"
    if kind == "lines":
        if not path.is_file() or path.stat().st_size > _MAX_LINES_BYTES:
            return None
        with path.open("rb") as stream:
            return Value(f"{sum(1 for _ in stream)} lines", f"lines of {path}")
    if kind == "count_folders":
        return Value(f"{sum(1 for _ in _folders(path))} folders", where)
    found = [item for item in _walk(path) if not suffixes or item.path.suffix.lower() in suffixes]
    if kind == "count":
        return Value(f"{len(found)} files", where)
    if kind == "size":
        return Value(f"{sum(item.size_bytes for item in found):,} bytes in {len(found)} files", where)
    if not found:
        return None
    by_size = order in ("largest", "biggest", "smallest")
    last = order in ("largest", "biggest", "newest", "latest")
    ranked = sorted(found, key=lambda item: (item.size_bytes if by_size else item.modified_s, str(item.path)))
    best = ranked[-1 if last else 0]
    moment = datetime.fromtimestamp(best.modified_s).astimezone()
    return Value(f"{best.path} ({best.size_bytes:,} bytes, modified {moment:%Y-%m-%d %H:%M})", where)


def _allowed(named: str, context: AgentContext) -> Path | None:
    """The path with links resolved, if it exists in an allowed folder. Requests are lower case, disks are not."""
    wanted = Path(named).expanduser()
    for folder in context.allowed_folders:
        root = folder.resolve()
        for candidate in (wanted, root / named):
            exact = _exact(candidate) if candidate.is_absolute() else None
            if exact is not None and (exact == root or root in exact.parents):
                return exact
    return None


def _exact(path: Path) -> Path | None:
    """The path as it is on disk, each part matched without regard to case where it must be."""
    current = Path(path.anchor)
    for part in path.parts[1:]:
        if part == "..":
            return None
        if not (current / part).exists():
            try:
                names = [entry.name for entry in current.iterdir() if entry.name.lower() == part.lower()]
            except OSError:
                return None
            if len(names) != 1:
                return None
            part = names[0]
        current /= part
    return current.resolve() if current.exists() else None


def _walk(folder: Path) -> Iterator[_Found]:
    seen = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        seen += len(folders) + len(names)
        if seen > _MAX_ENTRIES:
            raise _TooMany(folder)
        for name in sorted(names):
            path = Path(place, name)
            status = path.lstat()
            if not name.startswith(".") and S_ISREG(status.st_mode):
                yield _Found(path, status.st_size, status.st_mtime)


def _folders(folder: Path) -> Iterator[Path]:
    for place, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in folders)


def _suffixes(wanted: str) -> tuple[str, ...]:
    if not wanted:
        return ()
    return (wanted,) if wanted.startswith(".") else _SUFFIXES.get(wanted, (f".{wanted}",))
