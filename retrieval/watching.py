"""Which folders changed on the disk, as it happens."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from .access import folded
from .sources import IGNORE_FILES, kind_of

QUIET_MS = 200  # a change is told once nothing followed it for so long
AT_MOST_MS = 3_000  # however much follows it
LOOK_S = 0.5  # how soon a cancellation, and folders that came, went or were replaced, are noticed
POLL_MS = 2_000
ODD_NAME = "Unable to decode path"  # Source: watchfiles' src/lib.rs, of a name that is not UTF-8

log = structlog.get_logger(__name__)


async def changed(folders: Callable[[], Iterable[str]]) -> AsyncIterator[set[str]]:
    """The folders in which a document, a folder or an ignore rule may have changed since they were last told, at first
    all. They may vanish, come back and be others from time to time. Ends when there is none."""
    from watchfiles import awatch
    from watchfiles._rust_notify import WatchfilesRustInternalError

    watched: dict[str, int] = {}
    polling: bool | None = None
    while wanted := [*folders()]:
        now = await anyio.to_thread.run_sync(_inodes, wanted, abandon_on_cancel=True)
        new = {folder for folder, inode in now.items() if watched.get(folder) != inode}
        if told := new | (watched.keys() - now.keys()):
            yield told
        watched = now
        if not watched:
            await anyio.sleep(LOOK_S)
            continue
        try:
            changes = awatch(
                *watched, watch_filter=None, debounce=AT_MOST_MS, step=QUIET_MS, rust_timeout=int(LOOK_S * 1_000),
                yield_on_timeout=True, force_polling=polling, poll_delay_ms=POLL_MS,
                ignore_permission_denied=bool(polling),  # it hides as well that the system's watches are used up
            )  # fmt: skip
            async with aclosing(changes):
                async for some in changes:
                    told = {root for root in watched if any(matters(path, root) for _, path in some)} | new
                    new = set()  # once more when the watch stands: what changed before is seen now
                    if told:
                        yield told
                    if await anyio.to_thread.run_sync(_inodes, [*folders()], abandon_on_cancel=True) != watched:
                        break
        except (OSError, WatchfilesRustInternalError, ExceptionGroup) as failed:
            error = failed.exceptions[0] if isinstance(failed, ExceptionGroup) else failed
            watched = {}  # what changed meanwhile was not told
            if not (isinstance(error, FileNotFoundError) or ODD_NAME in str(error)):
                # the system's limit of watches, or no such thing here
                if polling:
                    raise
                log.warning("watch_by_polling", reason=str(error)[:200])
                polling = True


def _inodes(folders: Iterable[str]) -> dict[str, int]:
    found = {}
    for folder in folders:
        try:
            found[folder] = Path(folder).stat().st_ino
        except OSError:
            continue
    return found


def matters(path: str, root: str) -> bool:
    """Whether a change there can change what is indexed of a folder. A name without a kind may be, or have been, a
    folder's. A disk may spell a path otherwise than the folder is known by."""
    told, known = folded(path), folded(root)
    if told != known and not told.startswith(f"{known}/"):
        return False
    *above, name = (part for part in told[len(known) :].split("/") if part != ".github")
    if any(folder.startswith(".") for folder in above):
        return False
    if name.startswith("."):
        return name in IGNORE_FILES
    return kind_of(name) is not None or "." not in name or os.path.isdir(path)  # noqa: PTH112  (never raises)
