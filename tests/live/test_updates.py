"""Updates of resources over real processes: the shim, the host, its workers and its index."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import pytest
from mcp import Client
from mcp.client.subscriptions import ResourceUpdated

from rolecall.config.home import Home
from rolecall.server.connect import lock_holder
from rolecall.server.surface.updates import MODELS, STATUS

from .conftest import command, connected

pytestmark = [pytest.mark.live, pytest.mark.anyio]

PATIENCE_S = 60.0

Next = Callable[[], Awaitable[str]]


@asynccontextmanager
async def subscribed(era: str, cwd: Path) -> AsyncIterator[tuple[Client, Next]]:
    """A client of `rolecall serve` that subscribed to models and status, and the next URI that it hears of."""
    send, receive = anyio.create_memory_object_stream[str](100)

    async def hear(message: Any) -> None:
        if isinstance(message, types.ResourceUpdatedNotification):
            send.send_nowait(str(message.params.uri))

    with send, receive:
        async with connected(cwd, mode=era, message_handler=hear) as client:
            if era == "legacy":
                for uri in (MODELS, STATUS):
                    params = types.SubscribeRequestParams(uri=uri)
                    await client.session.send_request(types.SubscribeRequest(params=params), types.EmptyResult)
                yield client, receive.receive
                return
            async with client.listen(resource_subscriptions=[MODELS, STATUS]) as heard:

                async def following() -> str:
                    event = await anext(heard)
                    assert isinstance(event, ResourceUpdated)
                    return event.uri

                yield client, following


async def read(client: Client, uri: str) -> dict[str, Any]:
    (content,) = (await client.read_resource(uri)).contents
    assert isinstance(content, types.TextResourceContents)
    found: dict[str, Any] = json.loads(content.text)
    return found


async def test_a_loaded_model_and_an_indexed_folder_are_heard_of_also_after_a_crash_of_the_host(
    staffed: Home, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "depot.md").write_text("# Depots\n\nThe reference code of the north depot is 4711.\n")
    async with subscribed("legacy", tmp_path) as older, subscribed("2026-07-28", tmp_path) as newer:

        async def until(uri: str, holds: Callable[[dict[str, Any]], bool]) -> None:
            """Each client reads the resource each time that it is said to have changed, until it has."""
            with anyio.fail_after(PATIENCE_S):
                for client, following in (older, newer):
                    while await following() != uri or not holds(await read(client, uri)):
                        pass

        await anyio.to_thread.run_sync(command, "models", "load", "reasoning")
        await until(MODELS, lambda found: bool(found["resident"]))
        await anyio.to_thread.run_sync(command, "index", "add", str(notes))
        await until(STATUS, lambda found: bool(found["collections"]))
        for client, _ in (older, newer):
            text = (await client.read_resource("rolecall://doc/notes/depot.md")).contents[0]
            assert isinstance(text, types.TextResourceContents) and "4711" in text.text

        host = lock_holder(staffed)
        assert host is not None
        os.kill(host, signal.SIGKILL)
        with anyio.fail_after(PATIENCE_S):
            while lock_holder(staffed) in (None, host):  # the shim starts the next host for the subscriptions' sake
                await anyio.sleep(0.05)
        assert not (await read(older[0], MODELS))["resident"]
        await anyio.to_thread.run_sync(command, "models", "load", "reasoning")
        await until(MODELS, lambda found: bool(found["resident"]))
        await anyio.to_thread.run_sync(command, "models", "unload", "reasoning")
        await until(MODELS, lambda found: not found["resident"])
