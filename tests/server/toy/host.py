"""A host with small services of its own, run as the product's is: for tests of the processes themselves."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from mcp.server.mcpserver import Context, MCPServer
from mcp.types import EmptyResult, SubscribeRequestParams

from rolecall.config.errors import ConfigError
from rolecall.config.home import Home
from rolecall.retrieval.errors import IndexLarge
from rolecall.server.connect import SocketDenied
from rolecall.server.host.__main__ import Starter, main
from rolecall.server.host.host import Services
from rolecall.server.host.sessions import Tell
from rolecall.server.protocol import VERSION
from rolecall.server.session import current_session

server = MCPServer("toy")


@server.tool()
async def whoami() -> str:
    session = current_session.get()
    return f"{os.getpid()} {session.client} {session.cwd}"


@server.tool()
async def session() -> str:
    return current_session.get().id


@server.tool()
async def token() -> str:
    return f"{os.environ.get('TOY_TOKEN', '')} {os.environ.get('TOY_PLAIN', '')} {Path.cwd()}"


@server.tool()
async def big(size: int) -> str:
    return "x" * size


@server.tool()
async def wait(mark: str) -> str:
    """Say that it began by making the file, and that it was cancelled by removing it."""
    Path(mark).touch()
    try:
        await anyio.sleep_forever()
    finally:
        Path(mark).unlink()
    return ""


@server.tool()
async def wait_for(mark: str) -> str:
    """Make `mark`.began, and answer once `mark` is there."""
    Path(mark + ".began").touch()
    while not await anyio.Path(mark).exists():
        await anyio.sleep(0.01)
    return "done"


@server.tool()
async def ask(ctx: Context) -> str:
    """Ask the client something, as servers of the handshake era may."""
    result = await ctx.session.list_roots()
    return ",".join(str(root.uri) for root in result.roots)


async def subscribe(_context: Any, params: SubscribeRequestParams) -> EmptyResult:
    with Path(params.uri.removeprefix("file://")).open("a") as seen:
        seen.write(f"{os.getpid()}\n")
    return EmptyResult()


server._lowlevel_server.add_request_handler("resources/subscribe", SubscribeRequestParams, subscribe)


async def count(tell: Tell, params: dict[str, Any]) -> int:
    for number in range(params["to"]):
        tell({"number": number})
    return int(params["to"])


async def echo(_tell: Tell, params: dict[str, Any]) -> Any:
    return params["text"]


async def fail(_tell: Tell, _params: dict[str, Any]) -> None:
    raise ConfigError("It cannot be.", found="this", allowed="that", advice="Change it.")


async def break_down(_tell: Tell, params: dict[str, Any]) -> None:
    raise ValueError(params["text"])


async def index_add(_tell: Tell, params: dict[str, Any]) -> dict[str, Any]:
    """A folder with more files than are indexed unasked."""
    if not params["confirmed"]:
        raise IndexLarge("It is large.", found="60,000 files", advice="Confirm it.")
    return {"collection": "toy", "indexed": 60_000, "skipped": 0, "failed": [], "seconds": 1.0}


async def index_watch(tell: Tell, params: dict[str, Any]) -> None:
    """Two syncs of a collection named after a file, which is there until the caller leaves."""
    report = {"collection": params["collection"], "indexed": 3, "skipped": 0, "failed": [], "seconds": 0.1}
    tell({"synced": report})
    tell({"synced": {**report, "indexed": 4}})
    await wait(params["collection"])


async def hang(_tell: Tell, params: dict[str, Any]) -> None:
    await wait(params["mark"])


@asynccontextmanager
async def open_services(home: Home, config: Path | None) -> AsyncIterator[Services]:
    if config is not None and "broken" in config.name:
        raise ConfigError("The settings are broken.", found=str(config), advice="Mend them.")
    if (home.root / "crash").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    idle = home.root / "idle_exit_s"
    yield Services(
        mcp=server._lowlevel_server,
        operations={each.__name__: each for each in (count, echo, fail, break_down, hang, index_add, index_watch)},
        busy=lambda: False,
        settings_fingerprint="toy",
        idle_exit_s=float(idle.read_text()) if idle.exists() else 600.0,
    )


if __name__ == "__main__":
    root = Path(sys.argv[sys.argv.index("--home") + 1])
    version = root / "version"
    if (root / "no_socket").exists() and "--alone" not in sys.argv:
        Starter(int(sys.argv[sys.argv.index("--starter-fd") + 1])).say({"error": SocketDenied("No socket.").to_dict()})
        sys.exit(1)
    sys.exit(main(sys.argv[1:], open_services, version.read_text() if version.exists() else VERSION))
