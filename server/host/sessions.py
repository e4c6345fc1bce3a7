"""One MCP session: the SDK's server between two streams of lines, with the guard in front."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import anyio
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.server.lowlevel.server import Server
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCError, JSONRPCMessage, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

from rolecall.server.session import SessionInfo, current_session

from .frames import Lines, Refusal, read_message

SendLine = Callable[[bytes], Awaitable[None]]

_FLUSH_S = 1.0
_CLIENT_INFO = "io.modelcontextprotocol/clientInfo"


async def serve_mcp(server: Server[Any], lines: Lines, send: SendLine, info: SessionInfo, boot: str) -> None:
    """Serve one connection until its input ends; that cancels its requests. `send` takes whole lines with their end.

    `current_session` is set for all that runs on the connection's behalf. Ids of requests that the server sends carry
    `boot`, so that a reply meant for an earlier host is known and dropped.
    """
    first = await _first_message(lines, send)
    if first is None:
        return
    info = replace(info, client=_client_name(first) or info.client)
    current_session.set(info)
    log = structlog.get_logger().bind(session=info.id, client=info.client)
    log.info("session_opened")
    to_server, server_reads = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    server_writes, from_server = anyio.create_memory_object_stream[SessionMessage](0)
    written = anyio.Event()
    with to_server, server_reads, server_writes, from_server:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_read, first, lines, to_server, server_writes.clone(), boot)
            tasks.start_soon(_write, from_server, send, boot, written)
            await server.run(server_reads, server_writes, server.create_initialization_options())
            with anyio.move_on_after(_FLUSH_S):
                await written.wait()
            tasks.cancel_scope.cancel()
    log.info("session_closed")


async def _first_message(lines: Lines, send: SendLine) -> JSONRPCMessage | None:
    while (frame := await lines.next()) is not None:
        message = await read_message(frame)
        if isinstance(message, Refusal):
            await send(_line(message.reply))
        elif message is not None:
            return message
    return None


async def _read(
    first: JSONRPCMessage,
    lines: Lines,
    to_server: MemoryObjectSendStream[SessionMessage | Exception],
    refusals: MemoryObjectSendStream[SessionMessage],
    boot: str,
) -> None:
    message: JSONRPCMessage | Refusal | None = first
    with to_server, refusals, suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        while True:
            if isinstance(message, Refusal):
                await refusals.send(SessionMessage(message.reply))
            elif message is not None and (known := _incoming(message, boot)) is not None:
                await to_server.send(SessionMessage(known))
            frame = await lines.next()
            if frame is None:
                return
            message = await read_message(frame)


async def _write(
    from_server: MemoryObjectReceiveStream[SessionMessage], send: SendLine, boot: str, written: anyio.Event
) -> None:
    """Write until the server is done; a client that is gone is read as such by the other side."""
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        async for item in from_server:
            await send(_line(_outgoing(item.message, boot)))
    written.set()
    async for _ in from_server:
        pass  # nobody reads any more, and the server must not wait for that


def _incoming(message: JSONRPCMessage, boot: str) -> JSONRPCMessage | None:
    """The message as the SDK knows it; None where it answers a request of an earlier host."""
    if not isinstance(message, JSONRPCResponse | JSONRPCError):
        return message
    ours, _, number = str(message.id).partition(":")
    return message.model_copy(update={"id": number}) if ours == boot and number else None


def _outgoing(message: JSONRPCMessage, boot: str) -> JSONRPCMessage:
    if isinstance(message, JSONRPCRequest):
        return message.model_copy(update={"id": f"{boot}:{message.id}"})
    if isinstance(message, JSONRPCNotification) and message.method == "notifications/cancelled" and message.params:
        params = {**message.params, "requestId": f"{boot}:{message.params.get('requestId')}"}
        return message.model_copy(update={"params": params})
    return message


def _line(message: JSONRPCMessage) -> bytes:
    return message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"


def _client_name(message: JSONRPCMessage) -> str:
    params = message.params if isinstance(message, JSONRPCRequest) and message.params else {}
    meta = params.get("_meta")
    info = params.get("clientInfo") or (meta.get(_CLIENT_INFO) if isinstance(meta, dict) else None)
    name = info.get("name") if isinstance(info, dict) else None
    return name[:200] if isinstance(name, str) else ""
