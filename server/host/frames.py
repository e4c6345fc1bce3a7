"""Lines in, JSON-RPC messages or refusals out: the guard in front of the SDK, which leaves some lines unanswered."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import anyio
import anyio.to_thread
from mcp.types import ErrorData, JSONRPCError, JSONRPCMessage, jsonrpc_message_adapter
from pydantic import ValidationError
from pydantic_core import from_json

from ..protocol import INVALID_PARAMS, INVALID_REQUEST, MAX_FRAME_BYTES, MAX_NESTING, PARSE_ERROR

_BLOCKS_LOOP_BYTES = 256 * 1024
_HEAD_BYTES = 4096
_MAX_BRACKETS = 1_000_000
"""Five million empty lists fit into one frame, and cost half a gigabyte when read."""
_ID = re.compile(rb'"id"\s*:\s*("(?:[^"\\]|\\.){0,200}"|-?\d{1,18})\s*[,}]')


class TooLong(NamedTuple):
    """The first bytes of a line over `MAX_FRAME_BYTES`; the rest is read and dropped."""

    head: bytes


class Refusal(NamedTuple):
    """What a frame that is no message is answered with."""

    reply: JSONRPCError


class Lines:
    """The lines of a byte stream, one at a time, each of at most `longest_bytes`."""

    def __init__(self, receive: Callable[[], Awaitable[bytes]], longest_bytes: float = MAX_FRAME_BYTES) -> None:
        self._receive = receive
        self._longest_bytes = longest_bytes
        self._buffer = bytearray()
        self._searched = 0
        self._dropping = False

    async def next(self) -> bytes | TooLong | None:
        """The next line without its end, or None at the end of the stream; a last line needs no newline."""
        while True:
            end = self._buffer.find(b"\n", self._searched)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                self._searched = 0
                if self._dropping:
                    self._dropping = False
                    continue
                return line if len(line) <= self._longest_bytes else TooLong(line[:_HEAD_BYTES])
            if self._dropping:
                self._buffer.clear()
            elif len(self._buffer) > self._longest_bytes:
                self._dropping = True
                return TooLong(bytes(self._buffer[:_HEAD_BYTES]))
            self._searched = len(self._buffer)
            try:
                self._buffer += await self._receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                line = bytes(self._buffer)
                self._buffer.clear()
                return line if line and not self._dropping else None


async def read_message(frame: bytes | TooLong) -> JSONRPCMessage | Refusal | None:
    """The message of a frame, or its refusal; None is to be passed over.

    A long frame is read in a thread, so that it delays nobody else.
    """
    if isinstance(frame, bytes) and len(frame) > _BLOCKS_LOOP_BYTES:
        return await anyio.to_thread.run_sync(parse_message, frame)
    return parse_message(frame)


def parse_message(frame: bytes | TooLong) -> JSONRPCMessage | Refusal | None:
    if isinstance(frame, TooLong):
        return _refusal(INVALID_REQUEST, f"a message is at most {MAX_FRAME_BYTES} bytes", _id_in(frame.head))
    if not frame.strip():
        return None
    brackets = frame.count(b"[") + frame.count(b"{")
    if brackets > _MAX_BRACKETS:
        return _refusal(INVALID_REQUEST, f"a message has at most {_MAX_BRACKETS} lists and objects", _id_in(frame))
    try:
        value = from_json(frame, allow_inf_nan=False)
    except ValueError as error:
        return _refusal(PARSE_ERROR, f"not JSON: {str(error)[:120]}", _id_in(frame))
    if brackets > MAX_NESTING and _deeper(value, MAX_NESTING):
        return _refusal(INVALID_REQUEST, f"values are nested at most {MAX_NESTING} deep", _own_id(value))
    return _checked(value)


def _checked(value: Any) -> JSONRPCMessage | Refusal | None:
    if not isinstance(value, dict):
        return _refusal(INVALID_REQUEST, "a message is one JSON object; batches are not supported", None)
    request_id = _own_id(value)
    if "method" not in value:
        if "id" in value and ("result" in value or "error" in value):
            try:
                return jsonrpc_message_adapter.validate_python(value, by_name=False)
            except ValidationError:
                return None  # a reply is never replied to
        return _refusal(INVALID_REQUEST, "`method` is missing", request_id)
    if value.get("jsonrpc") != "2.0":
        return _refusal(INVALID_REQUEST, '`jsonrpc` must be "2.0"', request_id)
    if not isinstance(value["method"], str):
        return _refusal(INVALID_REQUEST, "`method` must be a string", request_id)
    if "id" in value and request_id is None:
        return _refusal(INVALID_REQUEST, "`id` must be a string or an integer", None)
    if not isinstance(value.get("params", {}), dict):
        wrong = _refusal(INVALID_PARAMS, "`params` must be an object", request_id)
        return wrong if "id" in value else None
    try:
        return jsonrpc_message_adapter.validate_python(value, by_name=False)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, item["loc"])) for item in error.errors(include_input=False)[:3])
        return _refusal(INVALID_REQUEST, f"not a JSON-RPC 2.0 message: {fields}", request_id)


def _refusal(code: int, message: str, request_id: str | int | None) -> Refusal:
    return Refusal(JSONRPCError(jsonrpc="2.0", id=request_id, error=ErrorData(code=code, message=message)))


def _own_id(value: Any) -> str | int | None:
    found = value.get("id") if isinstance(value, dict) else None
    return found if isinstance(found, str | int) and not isinstance(found, bool) else None


def _id_in(frame: bytes) -> str | int | None:
    """The id of a frame that is no JSON, if it can be made out at all."""
    if len(frame) <= _BLOCKS_LOOP_BYTES:
        try:
            return _own_id(json.loads(frame.decode(errors="replace")))
        except (ValueError, RecursionError):
            pass
    found = _ID.search(frame[:_HEAD_BYTES])
    try:
        return _own_id({"id": json.loads(found[1])}) if found else None
    except ValueError:
        return None


def _deeper(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [
            inner
            for outer in layer
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not layer:
            return False
    return True
