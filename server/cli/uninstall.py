"""`rolecall uninstall`: out of every client, the host stopped, and with `--purge` all that Rolecall keeps removed."""

from __future__ import annotations

import shutil
import stat
import sys
from contextlib import suppress
from pathlib import Path

import anyio
import typer

from rolecall.config.errors import RolecallError
from rolecall.config.home import Home

from ..connect import held
from ..errors import BadRequest
from .clients import known_clients
from .install import removal
from .output import EXIT_ATTENTION, JSON_OPTION, gb, note, show

_OWN = (
    "models", "index", "receipts.sqlite3*", "logs", "config.yaml", "env", "allowed.json", "footprints.json",
    "http-token", "host.lock",
)  # fmt: skip
"""What Rolecall makes in its home. Anything else there is somebody's, and stays."""


def uninstall(
    purge: bool = typer.Option(False, "--purge", help="Also remove models, index, receipts, settings and logs."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask before --purge removes."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Take Rolecall out of every client and stop its host."""
    from ..host.control import stop_host

    home = Home.find()
    sizes = {str(path): _freed_bytes(path) for path in _own(home)} if purge else {}
    if sizes and not yes:
        _ask(sizes)
    stopped = anyio.run(stop_host, home) is not None
    taken, problems = list[str](), list[dict[str, str]]()
    for name, client in known_clients().items():
        try:
            for change in (changes := removal(client)):
                change.apply()
            taken += [name] if changes else []
        except (RolecallError, OSError) as error:
            problems.append({"client": name, "what": str(error)})
    left = _purge(home) if purge and home.root.exists() else []
    freed_bytes = sum(sizes.values())
    removed = [{"path": path, "size_bytes": size_bytes} for path, size_bytes in sizes.items()]
    report = {"clients": taken, "stopped": stopped, "removed": removed, "freed_bytes": freed_bytes, "left": left}
    said = [f"Taken out of: {', '.join(taken) or 'no client; it was in none'}."]
    said.append(f"Removed: {gb(freed_bytes)} freed." if purge else f"{home.root} stays; --purge removes it.")
    said += [f"Left, since Rolecall did not make it: {path}" for path in left]
    show(report | {"problems": problems}, as_json, *said, "`pip uninstall rolecall` removes the program itself.")
    for problem in problems:
        note(f"{problem['client']}: {problem['what']}")
    if problems:
        raise typer.Exit(EXIT_ATTENTION)


def _own(home: Home) -> list[Path]:
    """Rolecall's files and folders in its home, the lock last.

    Raises:
        BadRequest: the home holds the user's own folder, so that its `models` may be anybody's.
    """
    if Path.home().resolve().is_relative_to(home.root.resolve()):
        advice = "Remove Rolecall's files by hand, and set ROLECALL_HOME to a folder of its own."
        raise BadRequest("ROLECALL_HOME is no folder of Rolecall's own.", found=str(home.root), advice=advice)
    return [path for name in _OWN for path in sorted(home.root.glob(name))]


def _freed_bytes(path: Path) -> int:
    """What its removal frees: nothing behind a link, and no file that has another name."""
    found = path.lstat()
    if stat.S_ISDIR(found.st_mode):
        return sum(map(_freed_bytes, path.iterdir()))
    return found.st_size if found.st_nlink == 1 else 0


def _ask(sizes: dict[str, int]) -> None:
    for path, size_bytes in sizes.items():
        note(f"{gb(size_bytes):>12}  {path}")
    if not sys.stdin.isatty():
        failed, advice = "--purge asks before it removes, and no terminal answers here.", "Add --yes to agree."
        raise BadRequest(failed, advice=advice)
    typer.confirm(f"Remove all of this and free {gb(sum(sizes.values()))}?", abort=True, err=True)


def _purge(home: Home) -> list[str]:
    """Remove what is Rolecall's, links themselves and nothing behind them; returns what is left.

    The home's lock is held meanwhile, so that no client starts a host among the ruins.
    """
    from ..host.lock import HomeLock

    lock = HomeLock(home)
    if (pid := lock.take()) is not None:
        raise held(home, pid)
    for path in _own(home):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    left = sorted(map(str, home.root.iterdir()))
    with suppress(OSError):  # a link to a folder, or one with something left in it
        home.root.rmdir()
    return left
