"""Facts about files under the folders that tools may read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from stat import S_ISREG

from rolecall.retrieval.access import is_secret

from .contract import AgentContext, Parse, Value

_MAX_ENTRIES = 200_000
"""More than this is not walked: a wrong count is worse than none."""
_MAX_LINES_BYTES = 64_000_000
_SUFFIXES = {
    "python": (".py",), "markdown": (".md", ".markdown"), "text": (".txt",), "javascript": (".js", ".mjs"),
    "typescript": (".ts", ".tsx"), "yaml": (".yaml", ".yml"), "rust": (".rs",), "image": (".png", ".jpg", ".jpeg",
    ".gif", ".svg", ".webp"), "ruby": (".rb",), "kotlin": (".kt",), "html": (".html", ".htm"), "jpg": (".jpg", ".jpeg"),
}  # fmt: skip


def compute(parse: Parse, context: AgentContext) -> Value | None:
    """The fact asked for, or None where the path is not in an allowed folder, cannot be read or holds too much."""
    given = {str(part[0]): str(part[1]) for part in parse[1:] if isinstance(part, list)}
    order = next((part for part in parse[1:] if isinstance(part, str)), "newest")
    if order.endswith("s"):
        given["kind"] = order.removesuffix("s")
    try:
        path = _allowed(given["path"].strip('"'), context)
        kind = str(parse[0])
        kind = ("count" if "kind" in given else "count_folders") if kind == "count_in" else kind
        return _fact(kind, path, given.get("kind", ""), order) if path else None
    except (OSError, RuntimeError):
        return None


def _fact(kind: str, path: Path, wanted: str, order: str) -> Value | None:
    where = f"under {path}, subfolders included, hidden files and links left out"
    if kind == "lines":
        if not path.is_file() or path.stat().st_size > _MAX_LINES_BYTES:
            return None
        with path.open("rb") as stream:
            return Value(f"{sum(1 for _ in stream)} lines", f"lines of {path}")
    if kind == "size" and path.is_file():
        return Value(f"{path.stat().st_size:,} bytes", f"size of {path}")
    if kind == "modified":
        return Value(f"{datetime.fromtimestamp(path.stat().st_mtime).astimezone():%Y-%m-%d %H:%M}", f"status of {path}")
    if not path.is_dir():
        return None
    if kind == "count_folders":
        return Value(f"{sum(1 for _, status in _walk(path) if status is None)} folders", where)
    suffixes = _SUFFIXES.get(wanted, (f".{wanted.removeprefix('.')}",)) if wanted else ()
    plain = ((item, status) for item, status in _walk(path) if status is not None)
    found = [(item, status) for item, status in plain if not suffixes or item.suffix.lower() in suffixes]
    if kind == "count":
        return Value(f"{len(found)} file{'s' * (len(found) != 1)}", where)
    if kind == "size":
        return Value(f"{sum(status.st_size for _, status in found):,} bytes in {len(found)} files", where)
    if not found:
        return None
    by_size = order in ("largest", "biggest", "smallest")
    ranked = sorted(found, key=lambda item: (item[1].st_size if by_size else item[1].st_mtime, str(item[0])))
    best, status = ranked[0 if order in ("smallest", "oldest") else -1]
    moment = datetime.fromtimestamp(status.st_mtime).astimezone()
    shown = os.fsencode(best).decode("utf-8", "backslashreplace")
    return Value(f"{shown} ({status.st_size:,} bytes, modified {moment:%Y-%m-%d %H:%M})", where)


def _allowed(named: str, context: AgentContext) -> Path | None:
    """The path with links resolved, if an allowed folder holds it and it is no secret; a relative one in one alone."""
    found = set()
    for folder in context.allowed_folders:
        root = folder.resolve()
        path = (root / Path(named).expanduser()).resolve()
        if path.is_relative_to(root) and path.exists() and not is_secret(path):
            found.add(path)
    return found.pop() if len(found) == 1 else None


def _walk(folder: Path) -> Iterator[tuple[Path, os.stat_result | None]]:
    """Folders (with None) and plain files (with their status) below, the hidden ones left out. Raises OSError: one
    cannot be read, or there are too many, so that a count would be wrong."""

    def refuse(error: OSError) -> None:
        raise error

    seen = 0
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        seen += len(folders) + len(names)
        if seen > _MAX_ENTRIES:
            raise OSError(f"more than {_MAX_ENTRIES} entries")
        yield from ((Path(place, name), None) for name in folders)
        for name in names:
            path = Path(place, name)
            status = path.lstat()
            if not name.startswith(".") and S_ISREG(status.st_mode):
                yield path, status
