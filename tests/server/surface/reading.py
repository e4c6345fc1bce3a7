"""Clients of one server that offers resources, over a desk and a real index of its folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import pytest
from mcp import Client
from mcp.client._memory import InMemoryTransport
from mcp.server.lowlevel.server import Server

from rolecall.config.home import Home
from rolecall.config.settings import RetrievalSettings
from rolecall.retrieval.contract import Retriever
from rolecall.retrieval.retriever import LanceRetriever
from rolecall.server.orchestration.jobs import Jobs
from rolecall.server.orchestration.run import Orchestrator
from rolecall.server.surface.resources import Resources
from rolecall.server.surface.server import build_server
from rolecall.server.surface.updates import STATUS, Updates
from tests.retrieval.embedding import HashEmbedder
from tests.server.desk import Desk, client_of, served

ERAS = pytest.mark.parametrize("era", ["legacy", "2026-07-28"])


@dataclass
class Reading:
    """`index` is of the desk's folder, whose `add` and `remove` the subscribers of the status hear of; `embedder` makes
    its vectors, and without an identity leaves the search to words."""

    desk: Desk
    server: Server[Any]
    jobs: Jobs
    updates: Updates
    index: Retriever
    embedder: HashEmbedder

    def client(self, era: str, session: str = "s1", **callbacks: Any) -> AbstractAsyncContextManager[Client]:
        return client_of(InMemoryTransport(self.server), self.desk.folder, session, mode=era, **callbacks)


@asynccontextmanager
async def reading(desk: Desk, retriever: Retriever | None = None) -> AsyncIterator[Reading]:
    updates, embedder = Updates(), HashEmbedder()
    index = retriever or LanceRetriever(
        Home(desk.folder.parent / "home"), RetrievalSettings(chunk_tokens=200, max_file_mb=0.1), embedder,
        lambda: embedder.identity, desk.access, on_change=lambda: updates.changed(STATUS),
    )  # fmt: skip
    desk = over(desk, index)
    async with anyio.create_task_group() as tasks, served(desk.orchestrator.run, desk.store) as jobs:
        tasks.start_soon(updates.run)
        resources = Resources(desk.models, desk.access, desk.store, jobs, lambda: index, updates)
        yield Reading(desk, build_server(jobs, resources=resources), jobs, updates, index, embedder)
        tasks.cancel_scope.cancel()
    await index.aclose()


def over(desk: Desk, index: Retriever) -> Desk:
    """The desk with an orchestrator that searches this index."""
    return replace(desk, orchestrator=Orchestrator(replace(desk.orchestrator.staff, retriever=index), desk.store))


def text_of(result: types.ReadResourceResult) -> str:
    (content,) = result.contents
    assert isinstance(content, types.TextResourceContents)
    return content.text


def fill(folder: Path) -> None:
    """Two files to index, and one that is a secret."""
    (folder / "deep").mkdir()
    (folder / "pump.md").write_text("# Pump\n\nThe valve opens at 42 bar.\n")
    (folder / "deep" / "tea 100%.txt").write_text("Green tea wants water of 70 degrees.\n")
    (folder / ".env").write_text("TOKEN=1\n")
