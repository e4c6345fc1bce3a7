"""`rolecall install`: our entry in a client's configuration, a skill beside it, and both out again."""

from __future__ import annotations

import difflib
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.text import Text

from rolecall.config.home import Home

from ..errors import BadRequest, ClientUnusable
from . import clients
from .clients import ENTRY, Client, ClientName, servers_of, with_entry
from .output import JSON_OPTION, ask_host, show

SKILL = "SKILL.md"
_BACKUP = ".before-rolecall"


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
        """Write at once, with the rights that the file had (0600 where it is new), or remove.

        Raises:
            BadRequest: somebody else wrote the file meanwhile.
        """
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
    client: ClientName = typer.Argument(help="The client to put Rolecall into.", show_default=False),
    allow: list[Path] = typer.Option([], "--allow", help="Folder that tools may read; repeatable."),
    skill: bool = typer.Option(False, "--skill", help="Teach the client when to delegate, with a skill in its folder."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show the change and write nothing."),
    uninstall: bool = typer.Option(False, "--uninstall", help="Take Rolecall out of this client again."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Put Rolecall into a client's configuration, everything else in it as it was."""
    if uninstall and (allow or skill):
        raise typer.BadParameter("--uninstall goes with neither --allow nor --skill.")
    chosen = clients.known_clients()[client]
    changes = removal(chosen) if uninstall else addition(chosen, skill)
    folders = [str(folder.expanduser().absolute()) for folder in allow]
    for folder in () if dry_run else folders:
        ask_host("allow", {"folder": folder})
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
    show(report, as_json, *(Text(line, styles.get(line[:1], "")) for line in diff.splitlines()), *said)


def addition(client: Client, skill: bool) -> list[Change]:
    """What puts our entry in; empty where it is there already.

    Raises:
        ClientUnusable: the configuration is broken or read-only.
        BadRequest: the client takes no skill, or the `rolecall` command is nowhere.
    """
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
    """What takes entry and skill out; the file gets its old bytes where nothing else in it has changed since.

    Raises:
        ClientUnusable: the configuration is broken or read-only.
    """
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
