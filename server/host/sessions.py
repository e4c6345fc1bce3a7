"""One connection: an MCP session (the SDK's server behind a guard) or the command line's control requests.

The guard makes JSON-RPC messages or refusals of lines: the SDK leaves some unanswered.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import anyio
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.server.lowlevel.server import Server
from mcp.shared.message import ServerMessageMetadata, SessionMessage
from mcp.types import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCRequest,
    JSONRPCResponse,
    jsonrpc_message_adapter,
)  # fmt: skip
from pydantic import ValidationError
from pydantic_core import from_json, to_jsonable_python

from rolecall.config.errors import RolecallError

from ..errors import BadRequest, TooManyRequests, told
from ..protocol import MAX_FRAME_BYTES
from ..session import current_session

SendLine = Callable[[bytes], Awaitable[None]]
Tell = Callable[[dict[str, Any]], None]
"""Sends progress to whoever asked; for the event loop only."""
Operation = Callable[[Tell, dict[str, Any]], Awaitable[Any]]
"""A control operation: takes its parameters and returns what pydantic makes JSON of, or raises a `RolecallError`;
cancelled when its caller goes away."""
Item = TypeVar("Item")

_FLUSH_S = 1.0
_BUFFERED = 256
_MOST_OPEN = 128
_TOO_MANY = -32013
_CROWDED = TooManyRequests(
    "Too many requests of this client are open.", allowed=f"{_MOST_OPEN} at a time",
    advice="Send it again when others are answered.",
)  # fmt: skip
_CLIENT_INFO = "io.modelcontextprotocol/clientInfo"
_LEADING_ID = re.compile(
    rb'\s*\{\s*(?:"(?:jsonrpc|method)"\s*:\s*"[^"\\]*"\s*,\s*)*"id"\s*:\s*("(?:[^"\\]|\\.){0,200}"|-?\d{1,18})\s*[,}]'
)
"""An id among a message's first members: one further in might belong to its arguments."""


class Refusal(JSONRPCError):
    """What a frame that is no message is answered with."""


class Lines:
    """The lines of a byte stream, one at a time, each cut to one byte over `longest_bytes`."""

    def __init__(self, receive: Callable[[], Awaitable[bytes]], longest_bytes: int = MAX_FRAME_BYTES) -> None:
        self._receive = receive
        self._kept = longest_bytes + 1
        self._buffer = bytearray()

    async def next(self) -> bytes | None:
        """The next line without its end, or None at the end of the stream; a last line needs no newline."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            del self._buffer[self._kept :]
            searched = len(self._buffer)
            try:
                self._buffer += await self._receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                line = bytes(self._buffer)
                self._buffer.clear()
                return line or None
        line = bytes(self._buffer[: min(end, self._kept)])
        del self._buffer[: end + 1]
        return line


def parse_message(frame: bytes) -> JSONRPCMessage | Refusal | None:
    """The message of a frame, or its refusal; None is to be passed over."""
    if len(frame) > MAX_FRAME_BYTES:
        return _refusal(INVALID_REQUEST, f"a message is at most {MAX_FRAME_BYTES} bytes", _id_in(frame))
    if not frame.strip():
        return None
    try:
        value = from_json(frame, allow_inf_nan=False)
    except ValueError as error:
        return _refusal(PARSE_ERROR, f"not JSON: {str(error)[:120]}", _id_in(frame))
    if not isinstance(value, dict):
        return _refusal(INVALID_REQUEST, "a message is one JSON object; batches are not supported", None)
    request_id = _own_id(value)
    if "method" not in value and "id" in value and ("result" in value or "error" in value):
        try:
            return jsonrpc_message_adapter.validate_python(value, by_name=False)
        except ValidationError:
            return None  # a reply is never replied to
    if not isinstance(value.get("method"), str):
        return _refusal(INVALID_REQUEST, "`method` must be a string", request_id)
    if "result" in value or "error" in value:  # the SDK would take it for a reply, and leave it unanswered
        return _refusal(INVALID_REQUEST, "a message is a request or a reply, not both", request_id)
    if value.get("jsonrpc") != "2.0":
        return _refusal(INVALID_REQUEST, '`jsonrpc` must be "2.0"', request_id)
    if "id" in value and request_id is None:
        return _refusal(INVALID_REQUEST, "`id` must be a string or an integer", None)
    if not isinstance(value.get("params", {}), dict):
        return _refusal(INVALID_PARAMS, "`params` must be an object", request_id) if "id" in value else None
    return jsonrpc_message_adapter.validate_python(value, by_name=False)


def _refusal(code: int, message: str, request_id: str | int | None, error: RolecallError | None = None) -> Refusal:
    allowed = f"one JSON-RPC 2.0 message in UTF-8, of at most {MAX_FRAME_BYTES} bytes, on a line"
    advice = "Correct it and send it again; the session goes on."
    unread = BadRequest("This line is no message that can be read.", found=message, allowed=allowed, advice=advice)
    data = (error or unread).to_dict()
    return Refusal(jsonrpc="2.0", id=request_id, error=ErrorData(code=code, message=message, data=data))


def _own_id(value: Any) -> str | int | None:
    found = value.get("id") if isinstance(value, dict) else None
    return found if isinstance(found, str | int) and not isinstance(found, bool) else None


def _id_in(frame: bytes) -> str | int | None:
    """The id of a frame that is no sound JSON, if it can be made out at all."""
    with suppress(ValueError, RecursionError):
        found_id = _own_id(json.loads(frame.decode(errors="replace").lstrip("\ufeff")))
        str(found_id).encode()  # fails where half a surrogate pair could not be sent back
        return found_id
    with suppress(ValueError):
        if found := _LEADING_ID.match(frame):
            return _own_id({"id": from_json(found[1])})
    return None


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
    server: Server[Any], first: JSONRPCMessage, messages: AsyncIterator[JSONRPCMessage], send: SendLine, boot: str
) -> None:
    """Serve one connection until its messages end; that cancels its requests. `send` takes whole lines with their end.

    Ids of requests that the server sends carry `boot`, so that a reply meant for an earlier host is known and dropped.
    """
    session = current_session.get()
    log = structlog.get_logger().bind(session=session.id, client=session.client)
    log.info("session_opened")
    passing = _Passing(send, boot)
    to_server, server_reads = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    server_writes, from_server = anyio.create_memory_object_stream[SessionMessage](0)
    with to_server, server_reads, server_writes, from_server:
        async with anyio.create_task_group() as writing:
            writing.start_soon(_write, from_server, send, passing.outgoing)
            async with anyio.create_task_group() as reading:
                reading.start_soon(passing.read, first, messages, to_server)
                await server.run(server_reads, server_writes, server.create_initialization_options())
                reading.cancel_scope.cancel()
            server_writes.close()
            writing.cancel_scope.deadline = anyio.current_time() + _FLUSH_S
    log.info("session_closed")


class _Passing:
    """A session's messages on their way to the SDK and back.

    Counts the requests that have no answer: the SDK starts each at once and keeps what nobody reads.
    """

    def __init__(self, send: SendLine, boot: str) -> None:
        self._send = send
        self._boot = boot
        self._open = 0

    async def read(
        self,
        first: JSONRPCMessage,
        messages: AsyncIterator[JSONRPCMessage],
        to_server: MemoryObjectSendStream[SessionMessage | Exception],
    ) -> None:
        with to_server, suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            await to_server.send(self._began(first))
            async for message in messages:
                if isinstance(message, JSONRPCRequest) and self._open >= _MOST_OPEN:
                    refused = _refusal(_TOO_MANY, str(_CROWDED), message.id, _CROWDED)
                    await self._send(_line(refused))  # waits for a client that does not read
                elif isinstance(message, JSONRPCResponse | JSONRPCError):
                    boot, _, number = str(message.id).partition(":")
                    if boot == self._boot and number:
                        await to_server.send(SessionMessage(message.model_copy(update={"id": number})))
                else:
                    await to_server.send(self._began(message))

    def _began(self, message: JSONRPCMessage) -> SessionMessage:
        if not isinstance(message, JSONRPCRequest):
            return SessionMessage(message)
        self._open += 1
        return SessionMessage(message, ServerMessageMetadata(on_request_unanswered=self._unanswered))

    async def _unanswered(self) -> None:
        """The client cancelled one."""
        self._open -= 1

    def outgoing(self, item: SessionMessage) -> bytes:
        message = item.message
        if isinstance(message, JSONRPCRequest):
            message = message.model_copy(update={"id": f"{self._boot}:{message.id}"})
        elif isinstance(message, JSONRPCResponse | JSONRPCError):
            self._open -= 1
        elif message.method == "notifications/cancelled" and message.params:
            params = {**message.params, "requestId": f"{self._boot}:{message.params.get('requestId')}"}
            message = message.model_copy(update={"params": params})
        return _line(message)


async def _write(source: MemoryObjectReceiveStream[Item], send: SendLine, encoded: Callable[[Item], bytes]) -> None:
    """Write until nothing more comes; a client that is gone is read as such by the other side."""
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        async for item in source:
            await send(encoded(item))
    async for _ in source:
        pass  # nobody reads any more, and whoever writes must not wait for that


def _line(message: JSONRPCMessage) -> bytes:
    return message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"


async def serve_control(operations: Mapping[str, Operation], lines: Lines, send: SendLine) -> None:
    """Answer the requests of one connection until its input ends, which cancels what still runs."""
    replies, outgoing = anyio.create_memory_object_stream[dict[str, Any]](_BUFFERED)
    with replies, outgoing:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_write, outgoing, send, _encoded)
            while (frame := await lines.next()) is not None:
                tasks.start_soon(_answer, operations, frame, replies)
            tasks.cancel_scope.cancel()


def _encoded(reply: dict[str, Any]) -> bytes:
    return json.dumps(to_jsonable_python(reply)).encode() + b"\n"  # ASCII: half a surrogate pair can be sent back


async def _answer(
    operations: Mapping[str, Operation], frame: bytes, replies: MemoryObjectSendStream[dict[str, Any]]
) -> None:
    reply: dict[str, Any] = {"id": None}
    op = ""

    def progress(note: dict[str, Any]) -> None:
        with suppress(anyio.WouldBlock):  # a caller that does not read misses progress, never its result
            replies.send_nowait({"id": reply["id"], "progress": note})

    try:
        reply["id"], op, params = _parsed(frame)
        if op not in operations:
            raise BadRequest("There is no such operation.", found=op[:100], allowed=", ".join(sorted(operations)))
        reply["result"] = await operations[op](progress, params)
    except Exception as error:
        reply["error"] = told(f"The operation {op!r}", error).to_dict()
    await replies.send(reply)


def _parsed(frame: bytes) -> tuple[int | str, str, dict[str, Any]]:
    try:
        match json.loads(frame):
            case {"id": int() | str() as request_id, "op": str() as op, "params": dict() as params}:
                return request_id, op, params
    except (ValueError, RecursionError):
        pass
    allowed = '{"id": number or string, "op": name, "params": object} in a line of at most 16 MiB'
    raise BadRequest("This is no control request.", found=f"a line of {len(frame)} bytes", allowed=allowed)
