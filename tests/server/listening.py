"""A host's HTTP listener, and clients that bear its token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from rolecall.config.home import Home
from rolecall.server.host.control import ControlClient
from tests.conftest import PATIENCE_S

ACCEPT = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}


@dataclass
class Listening:
    """A home's HTTP listener; `ended` is set when the host has closed it."""

    url: str
    token: str
    ended: anyio.Event = field(default_factory=anyio.Event)

    @property
    def port(self) -> int:
        return int(self.url.split(":")[2].split("/")[0])

    @property
    def headers(self) -> dict[str, str]:
        return {**ACCEPT, "Authorization": f"Bearer {self.token}"}

    def http(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(headers={"Authorization": self.headers["Authorization"]}, timeout=PATIENCE_S)

    @asynccontextmanager
    async def client(self, era: str) -> AsyncIterator[Client]:
        async with self.http() as http, Client(streamable_http_client(self.url, http_client=http), mode=era) as client:
            yield client


@asynccontextmanager
async def listening(home: Home, port: int = 0) -> AsyncIterator[Listening]:
    """The listener of a running host; it closes with the block."""
    send, receive = anyio.create_memory_object_stream[dict[str, Any]](1)
    async with ControlClient.open(home, start=False) as control, anyio.create_task_group() as tasks:

        async def hold() -> None:
            await control.call("http", {"port": port}, send.send_nowait)
            at.ended.set()

        with send, receive, anyio.fail_after(PATIENCE_S):
            tasks.start_soon(hold)
            told = await receive.receive()
        at = Listening(told["url"], Path(told["token_file"]).read_text().strip())
        yield at
        tasks.cancel_scope.cancel()
