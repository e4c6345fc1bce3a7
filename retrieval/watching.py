"""Which folders changed on the disk, as it happens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import structlog

from .sources import IGNORE_FILES, kind_of

if TYPE_CHECKING:
    from watchfiles._rust_notify import RustNotify

QUIET_MS = 200  # a change is told once nothing followed it for so long
AT_MOST_MS = 3_000  # however much follows it
LOOK_S = 0.5  # how soon a cancellation, and folders that came, went or were replaced, are noticed
POLL_MS = 2_000

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
                yield_on_timeout=True, force_polling=polling, poll_delay_ms=POLL_MS, ignore_permission_denied=True,
            )  # fmt: skip
            async with aclosing(changes):
                async for some in changes:
                    told = {root for root in watched if any(_matters(path, root) for _, path in some)} | new
                    new = set()  # once more when the watch stands: what changed before is seen now
                    if told:
                        yield told
                    if await anyio.to_thread.run_sync(_inodes, [*folders()], abandon_on_cancel=True) != watched:
                        break
        except (OSError, WatchfilesRustInternalError) as error:  # the system's limit of watches, or no such thing here
            if polling:
                raise
            log.warning("watch_by_polling", reason=str(error)[:200])
            polling = True


class Notices:
    """What the system tells of changes below a folder. For one thread at a time."""

    def __init__(self, root: str) -> None:
        self._root, self._refused = root, False
        self._told: tuple[int, RustNotify] | None = None  # with the inode of the folder that it tells of

    def any(self) -> bool:
        """Whether something may have changed since this was last asked: at first, where the folder is another one, and
        where the system does not tell, always. Waits 1 to 5 ms for what is on its way."""
        from watchfiles._rust_notify import RustNotify, WatchfilesRustInternalError

        inode = _inodes([self._root]).get(self._root)
        if inode is None or self._refused:
            self._told = None
            return True
        try:
            if self._told is None or self._told[0] != inode:
                self._told = inode, RustNotify([self._root], False, False, 0, True, True)
                return True
            changes = self._told[1].watch(5, 1, 1, None)
        except (OSError, WatchfilesRustInternalError) as error:
            log.warning("changes_not_told", reason=str(error)[:200])
            self._refused = True
            return True
        if isinstance(changes, str):
            return changes != "timeout"
        if any(path == self._root for _, path in changes):  # gone or replaced: it tells no more
            self._told = None
        return any(_matters(path, self._root) for _, path in changes)


def _inodes(folders: Iterable[str]) -> dict[str, int]:
    found = {}
    for folder in folders:
        try:
            found[folder] = Path(folder).stat().st_ino
        except OSError:
            continue
    return found


def _matters(path: str, root: str) -> bool:
    """Whether a change there can change what is indexed of a folder. A name without a kind may be, or have been, a
    folder's."""
    if path != root and not path.startswith(f"{root}/"):
        return False
    *folders, name = path[len(root) :].split("/")
    if any(folder.startswith(".") and folder != ".github" for folder in folders):
        return False
    return name in IGNORE_FILES or (not name.startswith(".") and (kind_of(name) is not None or "." not in name))
