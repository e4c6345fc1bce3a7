"""The host's process: lock, socket, services, and its word to whoever started it.

Nothing heavy is imported before the lock is held, so that a second host leaves at once.
"""

from __future__ import annotations

import gc
import json
import os
import secrets
import sys
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rolecall.config.errors import RolecallError
from rolecall.config.home import Home

from ..errors import HostUnavailable
from ..protocol import VERSION

if TYPE_CHECKING:
    from .services import OpenServices, Services


def main(arguments: list[str], open_services: OpenServices | None = None, version: str = VERSION) -> int:
    """Run what a client starts: `--home DIR [--config FILE] (--ready-fd N | --standalone)`."""
    words = [word for word in arguments if word != "--standalone"]
    given = dict(zip(words[::2], words[1::2], strict=True))
    home = Home(Path(given["--home"]))
    config = Path(given["--config"]) if "--config" in given else None
    if words != arguments:
        from .standalone import serve_alone

        return serve_alone(home, config, open_services or product_services)
    return serve_host(home, config, Starter(int(given["--ready-fd"])), open_services or product_services, version)


def product_services(home: Home, config: Path | None) -> AbstractAsyncContextManager[Services]:
    """The product's composition root, imported when it is opened."""
    from .compose import open_services

    return open_services(home, config)


class Starter:
    """The process that waits for a host's one word: `{"ready": pid}`, `{"held": pid}` or `{"error": {...}}`."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd

    def say(self, word: dict[str, Any]) -> None:
        if self._fd is not None:
            with suppress(OSError):  # whoever started this may be gone
                os.write(self._fd, json.dumps(word).encode() + b"\n")
            os.close(self._fd)
        self._fd = None


def serve_host(home: Home, config: Path | None, starter: Starter, open_services: OpenServices, version: str) -> int:
    """Serve a home until nobody needs it; returns the exit code."""
    from .lock import HomeLock, bind_socket, load_environment

    with suppress(OSError):
        os.setsid()
    lock = HomeLock(home)
    boot = secrets.token_hex(6)
    try:
        if (holder := lock.take()) is not None:
            starter.say({"held": holder})
            return 0
        os.chdir(home.root)
        load_environment(home)
        listener, path = bind_socket(home)
        lock.note(boot=boot, config=config, socket_path=path)
    except (RolecallError, OSError) as error:
        named = error if isinstance(error, RolecallError) else HostUnavailable("No host starts.", found=str(error))
        starter.say({"error": named.to_dict()})
        return 1
    # Nothing that start makes becomes garbage: not looking for it saves a tenth of the time.
    gc.disable()
    try:
        import anyio

        from .host import Host
        from .log import configure_logging, rotate

        rotate(home.logs / "host.log")
        configure_logging()

        async def run() -> None:
            async with open_services(home, config) as services:
                gc.freeze()
                gc.enable()
                starter.say({"ready": os.getpid()})
                await Host(home, lock, services, path, config, boot, version).serve(listener)

        anyio.run(run)
    except Exception as error:
        if (typed := typed_error(error)) is None:
            raise
        starter.say({"error": typed.to_dict()})
        return 1
    finally:
        if lock.still_ours():
            path.unlink(missing_ok=True)
    return 0


def typed_error(error: BaseException) -> RolecallError | None:
    """The error a user can act on, also where a task group wrapped it."""
    if isinstance(error, BaseExceptionGroup):
        return next((typed for inner in error.exceptions if (typed := typed_error(inner))), None)
    return error if isinstance(error, RolecallError) else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
