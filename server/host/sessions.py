"""One connection: an MCP session (the SDK's server behind the guard) or the command line's control requests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import anyio
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.server.lowlevel.server import Server
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCError, JSONRPCMessage, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse
from pydantic_core import to_json

from rolecall.config.errors import RolecallError
from rolecall.server.session import SessionInfo, current_session

from ..errors import BadRequest
from .frames import Lines, Refusal, parse_message
from .services import Operation, OperationContext

SendLine = Callable[[bytes], Awaitable[None]]
Item = TypeVar("Item")

_FLUSH_S = 1.0
_BUFFERED = 256
_CLIENT_INFO = "io.modelcontextprotocol/clientInfo"


async def read_messages(lines: Lines, send: SendLine) -> AsyncIterator[JSONRPCMessage]:
    """The messages of a connection until its input ends; what is none is refused."""
    while (frame := await lines.next()) is not None:
        message = parse_message(frame)
        if isinstance(message, Refusal):
            await send(_line(message))
        elif message is not None:
            yield message


def client_name(first: JSONRPCMessage) -> str:
    """The name that a client gives itself in its first message, "" where it gives none."""
    params = first.params if isinstance(first, JSONRPCRequest) and first.params else {}
    meta = params.get("_meta")
    info = params.get("clientInfo") or (meta.get(_CLIENT_INFO) if isinstance(meta, dict) else None)
    name = info.get("name") if isinstance(info, dict) else None
    return name[:200] if isinstance(name, str) else ""


async def serve_mcp(
    server: Server[Any],
    first: JSONRPCMessage,
    messages: AsyncIterator[JSONRPCMessage],
    send: SendLine,
    info: SessionInfo,
    boot: str,
) -> None:
    """Serve one connection until its messages end; that cancels its requests. `send` takes whole lines with their end.

    `current_session` is set for all that runs on the connection's behalf. Ids of requests that the server sends carry
    `boot`, so that a reply meant for an earlier host is known and dropped.
    """
    current_session.set(info)
    log = structlog.get_logger().bind(session=info.id, client=info.client)
    log.info("session_opened")
    to_server, server_reads = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    server_writes, from_server = anyio.create_memory_object_stream[SessionMessage](0)
    with to_server, server_reads, server_writes, from_server:
        async with anyio.create_task_group() as writing:
            writing.start_soon(_write, from_server, send, lambda item: _line(_outgoing(item.message, boot)))
            async with anyio.create_task_group() as reading:
                reading.start_soon(_read, first, messages, to_server, boot)
                await server.run(server_reads, server_writes, server.create_initialization_options())
                reading.cancel_scope.cancel()
            server_writes.close()
            writing.cancel_scope.deadline = anyio.current_time() + _FLUSH_S
    log.info("session_closed")


async def _read(
    first: JSONRPCMessage,
    messages: AsyncIterator[JSONRPCMessage],
    to_server: MemoryObjectSendStream[SessionMessage | Exception],
    boot: str,
) -> None:
    with to_server, suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        await to_server.send(SessionMessage(first))
        async for message in messages:
            if (known := _incoming(message, boot)) is not None:
                await to_server.send(SessionMessage(known))


async def _write(source: MemoryObjectReceiveStream[Item], send: SendLine, encoded: Callable[[Item], bytes]) -> None:
    """Write until nothing more comes; a client that is gone is read as such by the other side."""
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        async for item in source:
            await send(encoded(item))
    async for _ in source:
        pass  # nobody reads any more, and whoever writes must not wait for that


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


async def serve_control(operations: Mapping[str, Operation], lines: Lines, send: SendLine, info: SessionInfo) -> None:
    """Answer the requests of one connection until its input ends, which cancels what still runs."""
    current_session.set(info)
    replies, outgoing = anyio.create_memory_object_stream[dict[str, Any]](_BUFFERED)
    with replies, outgoing:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_write, outgoing, send, lambda reply: to_json(reply) + b"\n")
            while (frame := await lines.next()) is not None:
                tasks.start_soon(_answer, operations, frame, replies, info)
            tasks.cancel_scope.cancel()


async def _answer(
    operations: Mapping[str, Operation],
    frame: bytes,
    replies: MemoryObjectSendStream[dict[str, Any]],
    info: SessionInfo,
) -> None:
    reply: dict[str, Any] = {"id": None}

    def progress(note: dict[str, Any]) -> None:
        with suppress(anyio.WouldBlock):  # a caller that does not read misses progress, never its result
            replies.send_nowait({"id": reply["id"], "progress": note})

    try:
        reply["id"], op, params = _parsed(frame)
        if op not in operations:
            raise BadRequest("There is no such operation.", found=op[:100], allowed=", ".join(sorted(operations)))
        reply["result"] = await operations[op](OperationContext(info, progress), params)
    except RolecallError as error:
        reply["error"] = error.to_dict()
    except Exception:
        structlog.get_logger().error("operation_failed", op=op, exc_info=True)
        failed = RolecallError("The host failed at this request.", advice="`rolecall logs` says where.")
        reply["error"] = failed.to_dict()
    await replies.send(reply)


def _parsed(frame: bytes) -> tuple[int | str, str, dict[str, Any]]:
    try:
        match json.loads(frame):
            case {"id": int() | str() as request_id, "op": str() as op, "params": dict() as params}:
                return request_id, op, params
    except (ValueError, RecursionError):
        pass
    raise BadRequest(
        "This is no control request.",
        found=f"a line of {len(frame)} bytes",
        allowed='{"id": number or string, "op": name, "params": object} in a line of at most 16 MiB',
    )
