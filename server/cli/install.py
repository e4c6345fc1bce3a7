"""`rolecall install`: our entry in a client's configuration, a skill beside it, and both out again.

`rolecall uninstall`: out of every client, the host stopped, and with `--purge` all that Rolecall keeps removed.
"""

from __future__ import annotations

import difflib
import os
import shutil
import stat
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
import typer
from rich.text import Text

from rolecall.config.errors import RolecallError
from rolecall.config.home import Home

from ..connect import held
from ..errors import BadRequest, ClientUnusable
from . import clients
from .clients import ENTRY, Client, ClientName, servers_of, with_entry
from .output import EXIT_ATTENTION, Shell, answered, gb, note

SKILL = "SKILL.md"
_BACKUP = ".before-rolecall"
_OWN = (
    "models", "index", "receipts.sqlite3*", "logs", "config.yaml", "env", "allowed.json", "footprints.json",
    "http-token", "host.lock",
)  # fmt: skip
"""What Rolecall makes in its home. Anything else there is somebody's, and stays."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a file held and what it is to hold; None: there is none."""

    path: Path
    before: bytes | None
    after: bytes | None

    def diff(self) -> str:
        """A unified diff, with one line of context: further ones may hold another server's key."""
        old, new = ((data or b"").decode(errors="replace").splitlines() for data in (self.before, self.after))
        was, becomes = (os.devnull if data is None else str(self.path) for data in (self.before, self.after))
        return "\n".join(difflib.unified_diff(old, new, was, becomes, lineterm="", n=1))

    def apply(self) -> None:
        """Write at once, with the rights that the file had (0600 where it is new), or remove. Raises BadRequest:
        somebody else wrote the file meanwhile."""
        if _read(self.path) != self.before:
            raise BadRequest(f"{self.path} has just been changed by somebody else.", advice="Run the command again.")
        if self.after is None:
            self.path.unlink()
            with suppress(OSError):  # a skill's folder goes with it, unless somebody else's files are in there
                if self.path.name == SKILL:
                    self.path.parent.rmdir()
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=f".{self.path.name}.", delete=False) as file:
            try:
                file.write(self.after)
                file.close()
                if self.before is not None:
                    shutil.copymode(self.path, file.name)
                Path(file.name).replace(self.path)
            except OSError:
                Path(file.name).unlink(missing_ok=True)
                raise


def install(
    shell: Shell,
    client: ClientName = typer.Argument(help="The client to put Rolecall into.", show_default=False),
    allow: list[Path] = typer.Option([], "--allow", help="Folder that tools may read; repeatable."),
    skill: bool = typer.Option(False, "--skill", help="Teach the client when to delegate, with a skill in its folder."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show the change and write nothing."),
    uninstall: bool = typer.Option(False, "--uninstall", help="Take Rolecall out of this client again."),
) -> None:
    """Put Rolecall into a client's configuration, everything else in it as it was."""
    if uninstall and (allow or skill):
        raise typer.BadParameter("--uninstall goes with neither --allow nor --skill.")
    chosen = clients.known_clients()[client]
    changes = removal(chosen) if uninstall else addition(chosen, skill)
    folders = [str(folder.expanduser().absolute()) for folder in allow]
    for folder in () if dry_run else folders:
        shell.ask("allow", folder=folder)
    for change in () if dry_run else changes:
        change.apply()
    backup = next((each.path for each in changes if each.path.name.endswith(_BACKUP) and each.after is not None), None)
    diff = "\n".join(change.diff() for change in changes if not change.path.name.endswith(_BACKUP))
    then = f"Restart {chosen.title}." if changes else f"{chosen.title} needs no change."
    said = [f"Tools may read {folder}." for folder in folders] + ([f"The file as it was: {backup}"] if backup else [])
    said = ["Nothing was written (--dry-run)."] if dry_run else [*said, then]
    styles = {"+": "green", "-": "red"}
    report = {"client": client, "path": str(chosen.file), "changed": bool(changes), "dry_run": dry_run, "diff": diff}
    report |= {"backup": str(backup) if backup else None, "allowed": folders, "then": then}
    shell.show(report, *(Text(line, styles.get(line[:1], "")) for line in diff.splitlines()), *said)


def addition(client: Client, skill: bool) -> list[Change]:
    """What puts our entry in; empty where it is there already. Raises ClientUnusable: the configuration is broken or
    read-only; BadRequest: the client takes no skill, or the `rolecall` command is nowhere."""
    if skill and not client.skills:
        advice = "Leave out --skill: the server's own instructions tell it when to delegate."
        raise BadRequest(f"{client.title} reads no skills from the disk.", advice=advice)
    file, before, text = _opened(client)
    servers, changes = servers_of(client, text), list[Change]()
    home = str(Home.find().root) if os.environ.get("ROLECALL_HOME") else None
    entry = clients.entry_for(client, servers.get(ENTRY), _command(), home)
    if entry != servers.get(ENTRY):
        backup = file.with_name(file.name + _BACKUP)
        if before is not None and not (ENTRY in servers and backup.exists()):  # the oldest state is worth keeping
            changes.append(Change(backup, _read(backup), before))
        changes.append(Change(file, before, with_entry(client, text, entry).encode()))
    if skill and client.skills:
        path = client.skills / ENTRY / SKILL
        changes.append(Change(path, _read(path), Path(__file__).with_name("skill.md").read_bytes()))
    return [change for change in changes if change.before != change.after]


def removal(client: Client) -> list[Change]:
    """What takes entry and skill out; the file gets its old bytes where nothing else in it has changed since. Raises
    ClientUnusable: the configuration is broken or read-only."""
    file, before, text = _opened(client)
    servers, changes = servers_of(client, text), list[Change]()
    if ENTRY in servers:
        backup = file.with_name(file.name + _BACKUP)
        states = (_read(backup), None)
        after = [state for state in states if _gives(client, state, servers[ENTRY], text)]
        after = after or [clients.without_entry(client, text).encode()]
        changes += [Change(file, before, after[0]), Change(backup, states[0], None)]
    if client.skills:
        path = client.skills / ENTRY / SKILL
        changes.append(Change(path, _read(path), None))
    return [change for change in changes if change.before != change.after]


def _gives(client: Client, state: bytes | None, entry: dict[str, object], text: str) -> bool:
    """Whether putting our entry into a file in that state gives `text`."""
    try:
        old = (state or b"").decode()
        return ENTRY not in servers_of(client, old) and with_entry(client, old, entry) == text
    except (UnicodeDecodeError, ClientUnusable):
        return False


def _opened(client: Client) -> tuple[Path, bytes | None, str]:
    """The configuration's file behind any links, its bytes and its text."""
    file = Path(os.path.realpath(client.file))
    data = _read(file)
    if data is not None and not file.stat().st_mode & 0o200:
        raise clients.unusable(client, "a read-only file")
    try:
        return file, data, (data or b"").decode()
    except UnicodeDecodeError as error:
        raise clients.unusable(client, f"no UTF-8 at byte {error.start}") from None


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _command() -> str:
    """The `rolecall` that runs now, by its absolute path: desktop programs do not have the shell's."""
    run = Path(sys.argv[0]).absolute()
    command = run if run.name == ENTRY else Path(sys.executable).with_name(ENTRY)
    if not os.access(command, os.X_OK):
        advice = "Install Rolecall with pip and run the `rolecall` that comes with it."
        raise BadRequest("The `rolecall` command cannot be found.", found=f"no program {command}", advice=advice)
    return str(command)


def uninstall(
    shell: Shell,
    purge: bool = typer.Option(False, "--purge", help="Also remove models, index, receipts, settings and logs."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask before --purge removes."),
) -> None:
    """Take Rolecall out of every client and stop its host."""
    from ..host.control import stop_host

    home = Home.find()
    sizes = {str(path): _freed_bytes(path) for path in _own(home)} if purge else {}
    if sizes and not yes:
        for path, size_bytes in sizes.items():
            note(f"{gb(size_bytes):>12}  {path}")
        if answered(f"Remove all of this and free {gb(sum(sizes.values()))}? y, n", "n") != "y":
            raise typer.Abort
    stopped = anyio.run(stop_host, home) is not None
    taken, problems = list[str](), list[dict[str, str]]()
    for name, client in clients.known_clients().items():
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
    shell.show(report | {"problems": problems})
    note(f"{'' if purge else f'{home.root} stays; --purge removes it. '}`pip uninstall rolecall` removes the program.")
    if problems:
        raise typer.Exit(EXIT_ATTENTION)


def _own(home: Home) -> list[Path]:
    """Rolecall's files and folders in its home, the lock last. Raises BadRequest: the home holds the user's own folder,
    so that its `models` may be anybody's."""
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
