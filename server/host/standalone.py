"""`rolecall serve --standalone`: the host's services for one client, in one process, over its own stdio."""

from __future__ import annotations

import json
import os
import secrets
import sys
from pathlib import Path

import anyio
import anyio.to_thread
from mcp.types import JSONRPCRequest

from rolecall.config.errors import RolecallError
from rolecall.config.home import Home
from rolecall.server.session import SessionInfo

from ..errors import HostUnavailable
from ..protocol import HOST_ERRORS
from .__main__ import product_services, typed_error
from .frames import Lines, Refusal, read_message
from .lock import HomeLock, load_environment
from .log import configure_logging
from .services import OpenServices
from .sessions import SendLine, serve_mcp

_CHUNK = 65536


def serve_alone(home: Home, config: Path | None, open_services: OpenServices = product_services) -> int:
    """Serve this process's client until its input ends; returns the exit code.

    Where the services cannot be had (the home is held, the settings are wrong), each request is answered with why.
    """
    cwd = Path.cwd()
    configure_logging()
    lines, send = _own_stdio()
    boot = secrets.token_hex(6)
    lock = HomeLock(home)

    async def run() -> None:
        if (holder := lock.take()) is not None:
            raise HostUnavailable(
                f"Another server holds {home.root}.",
                found=f"process {holder}",
                advice="Run `rolecall stop`, or set ROLECALL_HOME to a folder of this server's own.",
            )
        lock.note(boot=boot, config=config, socket_path=None)
        load_environment(home)
        async with open_services(home, config) as services:
            await serve_mcp(services.mcp, lines, send, SessionInfo(secrets.token_hex(8), cwd), boot)

    async def refuse(error: RolecallError) -> None:
        code = HOST_ERRORS.get(error.code, HOST_ERRORS["host_unavailable"])
        while (frame := await lines.next()) is not None:
            message = await read_message(frame)
            if isinstance(message, Refusal):
                await send(message.reply.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
            elif isinstance(message, JSONRPCRequest):
                failure = {"code": code, "message": str(error), "data": error.to_dict()}
                await send(json.dumps({"jsonrpc": "2.0", "id": message.id, "error": failure}).encode() + b"\n")

    try:
        anyio.run(run)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if (typed := typed_error(error)) is None:
            raise
        sys.stderr.write(f"rolecall: {typed}\n")
        anyio.run(refuse, typed)
        return 1
    return 0


def _own_stdio() -> tuple[Lines, SendLine]:
    """The client's lines and the way back, moved off descriptors 0 and 1, so that nothing else touches them."""
    source, target = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)

    async def receive() -> bytes:
        chunk = await anyio.to_thread.run_sync(os.read, source, _CHUNK, abandon_on_cancel=True)
        if not chunk:
            raise anyio.EndOfStream
        return chunk

    async def send(line: bytes) -> None:
        await anyio.to_thread.run_sync(_write_all, target, line)

    return Lines(receive), send


def _write_all(fd: int, line: bytes) -> None:
    view = memoryview(line)
    while view:
        view = view[os.write(fd, view) :]
