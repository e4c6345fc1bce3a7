"""One control connection: typed requests of the command line, several at a time, each of which can be cancelled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import anyio
import structlog
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from pydantic_core import to_json

from rolecall.config.errors import RolecallError
from rolecall.server.session import SessionInfo, current_session

from ..errors import BadRequest
from ..protocol import problem
from .frames import Lines, TooLong
from .services import Operation, OperationContext
from .sessions import SendLine

_BUFFERED = 256


async def serve_control(operations: Mapping[str, Operation], lines: Lines, send: SendLine, info: SessionInfo) -> None:
    """Answer the requests of one connection until its input ends, which cancels what still runs."""
    current_session.set(info)
    replies, outgoing = anyio.create_memory_object_stream[dict[str, Any]](_BUFFERED)
    running: dict[str, anyio.CancelScope] = {}
    with replies, outgoing:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_write, outgoing, send)
            while (frame := await lines.next()) is not None:
                try:
                    request = _parsed(frame)
                except BadRequest as error:
                    await replies.send({"id": None, "error": error.to_dict()})
                    continue
                if "cancel" in request:
                    if scope := running.get(_key(request["cancel"])):
                        scope.cancel()
                else:
                    _start(tasks, operations, request, replies, running, info)
            tasks.cancel_scope.cancel()


def _start(
    tasks: TaskGroup,
    operations: Mapping[str, Operation],
    request: dict[str, Any],
    replies: MemoryObjectSendStream[dict[str, Any]],
    running: dict[str, anyio.CancelScope],
    info: SessionInfo,
) -> None:
    request_id = request["id"]
    scope = running[_key(request_id)] = anyio.CancelScope()

    def progress(note: dict[str, Any]) -> None:
        with suppress(anyio.WouldBlock):  # a caller that does not read misses progress, never its result
            replies.send_nowait({"id": request_id, "progress": note})

    async def work() -> None:
        reply = problem("cancelled", "The request was cancelled.")
        with scope:
            result = await _result(operations, request, OperationContext(info, progress))
            await replies.send({"id": request_id, **result})
        running.pop(_key(request_id), None)
        if scope.cancelled_caught:
            await replies.send({"id": request_id, "error": reply})

    tasks.start_soon(work)


async def _result(
    operations: Mapping[str, Operation], request: dict[str, Any], context: OperationContext
) -> dict[str, Any]:
    try:
        operation = operations.get(request["op"])
        if operation is None:
            raise BadRequest(
                "There is no such operation.", found=str(request["op"])[:100], allowed=", ".join(sorted(operations))
            )
        return {"result": await operation(context, request.get("params") or {})}
    except RolecallError as error:
        return {"error": error.to_dict()}
    except Exception:
        structlog.get_logger().error("operation_failed", op=request["op"], exc_info=True)
        return {"error": problem("internal", "The host failed at this request.", advice="`rolecall logs` says where.")}


async def _write(outgoing: MemoryObjectReceiveStream[dict[str, Any]], send: SendLine) -> None:
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        async for reply in outgoing:
            await send(to_json(reply) + b"\n")
    async for _ in outgoing:
        pass


def _parsed(frame: bytes | TooLong) -> dict[str, Any]:
    try:
        request = json.loads(frame if isinstance(frame, bytes) else frame.head)
    except (ValueError, RecursionError) as error:
        raise BadRequest("A control request is a line of JSON of at most 16 MiB.", found=str(type(error))) from error
    if isinstance(request, dict) and "cancel" in request:
        return request
    if (
        not isinstance(request, dict)
        or not isinstance(request.get("id"), int | str)
        or not isinstance(request.get("op"), str)
        or not isinstance(request.get("params") or {}, dict)
    ):
        raise BadRequest(
            "This is no control request.", allowed='{"id": number or string, "op": name, "params": object}'
        )
    return request


def _key(request_id: object) -> str:
    return json.dumps(request_id)
