"""A small OpenAI-compatible server in the test's own event loop, with the faults that real ones have."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio

PATIENCE_S = 10.0
Write = Callable[[bytes], Awaitable[None]]
Fault = Callable[["Server", Write], Awaitable[None]]


@dataclass
class Server:
    """Answers `reply`, in pieces of a word; `silent`: nothing. `faults` replace it for `streamed` requests, in order.

    `bodies` and `headers` are what was sent to it. `enforces` schemas (objects of enums only).
    """

    reply: str = "Paris."
    enforces: bool = True
    logprobs: dict[str, float] = field(default_factory=lambda: {"Paris": -0.1, " Rome": -3.0, "Lon": -4.0})
    context: int | None = 4096
    extras: bool = True
    usage: bool = True
    reasoning: str = ""
    models: bytes | None = None
    silent: bool = False
    faults: list[Fault] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    held: anyio.Event = field(default_factory=anyio.Event)
    closed_by_client: anyio.Event = field(default_factory=anyio.Event)
    busy: int = 0
    most_at_once: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def streamed(self) -> list[dict[str, Any]]:
        """The requests for a stream, those with a schema apart: probes have one."""
        return [body for body in self.bodies if body.get("stream") and "response_format" not in body]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def write(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
            raw = await reader.readexactly(int(headers.get("content-length", 0)))
            if head[0].startswith("GET"):
                await self._get(head[0].split()[1], write)
            else:
                self.headers.append(headers)
                self.bodies.append(json.loads(raw))
                await self._post(self.bodies[-1], write, reader)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _get(self, path: str, write: Write) -> None:
        if path != "/v1/models":
            return await write(respond(404, b"{}"))
        data = [{"id": "tiny"} | ({"max_model_len": self.context} if self.context else {})]
        known = json.dumps({"data": data}).encode() if self.models is None else self.models
        return await write(respond(200, known))

    async def _post(self, body: dict[str, Any], write: Write, reader: asyncio.StreamReader) -> None:
        if self.silent:
            return await holds()(self, write)
        if not self.extras and "repetition_penalty" in body:
            return await write(respond(400, b'{"error": {"message": "Unrecognized", "code": "unknown_parameter"}}'))
        if body.get("stream"):
            watch = asyncio.create_task(self._watch(reader))
            self.busy += 1
            self.most_at_once = max(self.most_at_once, self.busy)
            try:
                faulty = self.faults and "response_format" not in body
                return await (self.faults.pop(0) if faulty else answer)(self, write)
            finally:
                self.busy -= 1
                watch.cancel()
        choice: dict[str, Any] = {"message": {"content": self._text(body)}, "finish_reason": "stop"}
        if body.get("logprobs") and self.logprobs:
            top = [{"token": token, "logprob": value} for token, value in self.logprobs.items()]
            choice["logprobs"] = {"content": [{"top_logprobs": top}]}
        return await write(respond(200, json.dumps({"choices": [choice]}).encode()))

    def _text(self, body: dict[str, Any]) -> str:
        if not self.enforces or "response_format" not in body:
            return self.reply
        fields = body["response_format"]["json_schema"]["schema"]["properties"]
        return json.dumps({name: kind["enum"][0] for name, kind in fields.items()})

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        if not await reader.read(1):
            self.closed_by_client.set()


def respond(status: int, body: bytes, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", "Connection: close", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def event(finish: str | None = None, **delta: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": delta, "finish_reason": finish}]}).encode() + b"\n\n"


async def answer(server: Server, write: Write) -> None:
    await write(STREAM)
    if server.reasoning:
        await write(event(reasoning_content=server.reasoning))
    text = server._text(server.bodies[-1])
    for piece in text.split(" "):
        await write(event(content=piece if text.startswith(piece) else f" {piece}"))
    await write(event("stop"))
    if server.usage:
        usage = {"prompt_tokens": 11, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 5}}
        await write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
    await write(b"data: [DONE]\n\n")


def says(raw: bytes) -> Fault:
    """Writes these bytes and closes the connection."""

    async def fault(server: Server, write: Write) -> None:
        await write(raw)

    return fault


def holds(raw: bytes = b"") -> Fault:
    """Writes these bytes and then nothing until `held` is set."""

    async def fault(server: Server, write: Write) -> None:
        await write(raw)
        with anyio.move_on_after(PATIENCE_S):
            await server.held.wait()

    return fault


@asynccontextmanager
async def serving(**given: Any) -> AsyncIterator[Server]:
    server = Server(**given)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, limit=1 << 20)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        with anyio.fail_after(30):
            yield server
    finally:
        server.held.set()
        listener.close()
