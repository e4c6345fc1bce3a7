"""Lines in, JSON-RPC messages or refusals out: the guard in front of the SDK, which leaves some lines unanswered."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
from mcp import types
from mcp.types import INVALID_PARAMS, INVALID_REQUEST, PARSE_ERROR, JSONRPCMessage, jsonrpc_message_adapter
from pydantic import ValidationError
from pydantic_core import from_json

from ..errors import BadRequest
from ..protocol import MAX_FRAME_BYTES

_LEADING_ID = re.compile(
    rb'\s*\{\s*(?:"(?:jsonrpc|method)"\s*:\s*"[^"\\]*"\s*,\s*)*"id"\s*:\s*("(?:[^"\\]|\\.){0,200}"|-?\d{1,18})\s*[,}]'
)
"""An id among a message's first members: one further in might belong to its arguments."""


class Refusal(types.JSONRPCError):
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
    if value.get("jsonrpc") != "2.0":
        return _refusal(INVALID_REQUEST, '`jsonrpc` must be "2.0"', request_id)
    if "id" in value and request_id is None:
        return _refusal(INVALID_REQUEST, "`id` must be a string or an integer", None)
    if not isinstance(value.get("params", {}), dict):
        return _refusal(INVALID_PARAMS, "`params` must be an object", request_id) if "id" in value else None
    return jsonrpc_message_adapter.validate_python(value, by_name=False)


def _refusal(code: int, message: str, request_id: str | int | None) -> Refusal:
    typed = BadRequest(
        "This line is no message that can be read.",
        found=message,
        allowed=f"one JSON-RPC 2.0 message in UTF-8, of at most {MAX_FRAME_BYTES} bytes, on a line",
        advice="Correct it and send it again; the session goes on.",
    )
    error = types.ErrorData(code=code, message=message, data=typed.to_dict())
    return Refusal(jsonrpc="2.0", id=request_id, error=error)


def _own_id(value: Any) -> str | int | None:
    found = value.get("id") if isinstance(value, dict) else None
    return found if isinstance(found, str | int) and not isinstance(found, bool) else None


def _id_in(frame: bytes) -> str | int | None:
    """The id of a frame that is no sound JSON, if it can be made out at all."""
    with suppress(ValueError, RecursionError):
        found_id = _own_id(json.loads(frame.decode(errors="replace")))
        str(found_id).encode()  # fails where half a surrogate pair could not be sent back
        return found_id
    with suppress(ValueError):
        if found := _LEADING_ID.match(frame):
            return _own_id({"id": from_json(found[1])})
    return None
