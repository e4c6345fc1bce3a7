"""The composition root: builds a host's objects once and owns their lives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import numpy as np
import numpy.typing as npt

from rolecall.config.home import Home
from rolecall.config.settings import load_settings
from rolecall.retrieval.access import AllowedFolders
from rolecall.retrieval.retriever import LanceRetriever
from rolecall.roles.contract import Role
from rolecall.roles.manager import ModelManager
from rolecall.roles.sources import OnProgress, pull

from ..orchestration.run import Orchestrator
from ..routing.router import Router
from ..surface.server import build_server
from ..telemetry.store import ReceiptStore
from .downloads import Downloads
from .operations import Operations
from .services import Services


@asynccontextmanager
async def open_services(home: Home, config_path: Path | None) -> AsyncIterator[Services]:
    """Everything one host serves. Nothing heavy is imported and no model is loaded here."""
    settings = load_settings(home, config_path)
    access = AllowedFolders(home)
    store = ReceiptStore(home.receipts_db)
    async with ModelManager(home, settings) as models, anyio.create_task_group() as background:

        async def embed(texts: Sequence[str]) -> npt.NDArray[np.float32]:
            return await models.embed(texts)

        def embedder_identity() -> str | None:
            info = models.embedder()
            return info.identity if info else None

        async def get(name: str, seen: OnProgress) -> object:
            return await pull(name, home, settings, seen)

        retriever = LanceRetriever(home, settings.retrieval, embed, embedder_identity, access)
        router = Router(models, settings.profile.name)
        orchestrator = Orchestrator(models, retriever, router, access, store, settings)
        downloads = Downloads(get)
        background.start_soon(downloads.run)
        operations = Operations(home, settings, access, models, retriever, router, store, orchestrator, downloads)
        try:
            yield Services(
                mcp=build_server(orchestrator.run, lambda: models.preload(Role.ROUTER)),
                operations=operations.table(),
                busy=lambda: downloads.busy,
                settings_fingerprint=settings.fingerprint,
                idle_exit_s=settings.host.idle_exit_s,
            )
        finally:
            background.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await retriever.aclose()
                await store.aclose()
