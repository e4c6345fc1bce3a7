"""The host's process: lock, socket, services, and its word to whoever started it.

Nothing heavy is imported before the lock is held, so that a second host leaves at once.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import secrets
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rolecall.config.errors import RolecallError
from rolecall.config.home import Home

from ..connect import unusable
from ..protocol import VERSION

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from .host import OpenServices, Services


class Starter:
    """The process that waits for a host's one word: `{"ready": pid}`, `{"held": pid}` or `{"error": {...}}`."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd

    def say(self, word: dict[str, Any]) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            with suppress(OSError):  # whoever started this may be gone
                os.write(fd, json.dumps(word).encode() + b"\n")


def main(arguments: list[str], open_services: OpenServices | None = None, version: str = VERSION) -> int:
    """Serve a home until nobody needs it; returns the exit code.

    `--starter-fd` is a socket of the process that started this. With `--alone` that is the one client that is served.
    """
    parser = argparse.ArgumentParser("rolecall.server.host")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--starter-fd", type=int, required=True)
    parser.add_argument("--alone", action="store_true")
    given = parser.parse_args(arguments)
    os.set_inheritable(given.starter_fd, False)
    with suppress(OSError):
        os.setsid()
    from .lock import HomeLock, bind_socket, load_environment

    home, starter, boot = Home(given.home), Starter(given.starter_fd), secrets.token_hex(6)
    lock = HomeLock(home)
    path = None
    try:
        if (holder := lock.take()) is not None:
            starter.say({"held": holder})
            return 0
        os.chdir(home.root)
        load_environment(home)
        if given.alone:
            sock = socket.socket(fileno=given.starter_fd)
        else:
            sock, path = bind_socket(home)
        lock.note(path)
    except (RolecallError, OSError) as error:
        typed = error if isinstance(error, RolecallError) else unusable(home, error)
        starter.say({"error": typed.to_dict()})
        return 1
    # Nothing that start makes becomes garbage: not looking for it saves a tenth of the time.
    gc.disable()
    import anyio
    import structlog

    from .host import Host
    from .log import configure_logging, rotate

    if open_services is None:
        from .compose import open_services as product_services

        open_services = product_services
    rotate(home.logs / "host.log")
    configure_logging()

    async def run(opening: AbstractAsyncContextManager[Services]) -> None:
        async with opening as services:
            gc.freeze()
            gc.enable()
            starter.say({"ready": os.getpid()})
            await Host(home, lock, services, path, given.config, boot, version).serve(sock)

    try:
        anyio.run(run, open_services(home, given.config))
    except Exception as error:
        if known := _typed(error):
            structlog.get_logger().error("host_failed", code=known.code, reason=known.message)
            starter.say({"error": known.to_dict()})
        else:
            structlog.get_logger().error("host_failed", exc_info=True)
        return 1
    return 0


def _typed(error: BaseException) -> RolecallError | None:
    """The error a user can act on, also where a task group wrapped it."""
    if isinstance(error, BaseExceptionGroup):
        return next((typed for inner in error.exceptions if (typed := _typed(inner))), None)
    return error if isinstance(error, RolecallError) else None


if __name__ == "__main__":
    # All is closed by now; to take the interpreter and its libraries apart would keep a client waiting half a second.
    os._exit(main(sys.argv[1:]))
