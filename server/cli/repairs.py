"""What `doctor` finds in the home and in clients' files, and what `--fix` puts right. No data of a user is deleted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from rolecall.config.errors import RolecallError
from rolecall.config.home import Home

from .clients import ENTRY, Client, known_clients, servers_of
from .install import addition
from .output import Bar

Found = Callable[[str, str, str], None]
"""Takes a problem's code, what it is, and what to do."""


def check_files(home: Home, found: Found) -> None:
    """Files that other users may open, and clients that start a command which is not there any more."""
    for path in _loose(home):
        found("loose_permissions", f"other users may open {path}", f"chmod go= {path}")
    for name, (client, command) in _moved().items():
        what = f"{client.title} starts {command}, which is no program (any more)"
        found("client_command_gone", what, f"rolecall install {name}")


def repair(home: Home, problems: Iterable[dict[str, str]]) -> list[str]:
    """Put right what is safe to; what was done, and what could not be, in words."""
    said, steps = list[str](), list[Callable[[], str]]()
    steps += [partial(_close, path) for path in _loose(home)]
    steps += [partial(_renew, client) for client, _ in _moved().values()]
    lacking = [each["what"] for each in problems if each["code"] in ("model_missing", "model_corrupt")]
    steps += [partial(_fetch_starter, home)] if any("starter/" in what for what in lacking) else []
    for step in steps:
        try:
            said.append(step())
        except (RolecallError, OSError) as error:
            said.append(f"not mended: {error}")
    return said


def _loose(home: Home) -> list[Path]:
    private = (home.root, home.env_file, home.receipts_db, home.http_token_file)
    return [path for path in private if os.path.exists(path) and path.stat().st_mode & 0o077]  # noqa: PTH110


def _close(path: Path) -> str:
    path.chmod(path.stat().st_mode & 0o700)
    return f"{path} is yours alone now"


def _moved() -> dict[str, tuple[Client, str]]:
    moved = dict[str, tuple[Client, str]]()
    for name, client in known_clients().items():
        with suppress(RolecallError, OSError, ValueError):  # a file that cannot be read is for the client to say
            entry = servers_of(client, client.file.read_text("utf-8")).get(ENTRY)
            command = str(entry["command"]) if isinstance(entry, dict) and "command" in entry else ""
            if Path(command).is_absolute() and not os.access(command, os.X_OK):
                moved[name] = client, command
    return moved


def _renew(client: Client) -> str:
    for change in addition(client, skill=False):
        change.apply()
    return f"{client.title} starts this Rolecall now; restart it"


def _fetch_starter(home: Home) -> str:
    from rolecall.roles.starter import fetch_starter

    with Bar("starter") as bar:
        fetch_starter(home.models, bar.bytes)
    return f"the starter models are in {home.models}"
