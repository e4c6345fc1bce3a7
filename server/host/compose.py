"""The composition root: builds a host's objects once and owns their lives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import anyio

from rolecall.config.home import Home
from rolecall.config.settings import Settings, load_settings
from rolecall.retrieval.access import AllowedFolders
from rolecall.roles.contract import Role
from rolecall.roles.manager import ModelManager
from rolecall.roles.sources import pull

from ..surface.server import build_server
from ..telemetry.history import ModelHistory
from ..telemetry.store import ReceiptStore
from .downloads import Downloads
from .host import Services
from .operations import Desk, Operations


@asynccontextmanager
async def open_services(home: Home, config_path: Path | None) -> AsyncIterator[Services]:
    """Everything one host serves. Nothing heavy is imported and no model is loaded here."""
    settings = load_settings(home, config_path)
    access = AllowedFolders(home)
    async with (
        _open_history(home) as (store, history),
        ModelManager(home, settings, on_event=history.note) as models,
        anyio.create_task_group() as background,
    ):

        @cache
        def desk() -> Desk:
            return _desk(home, settings, access, models, store)

        downloads = Downloads(lambda name, seen: pull(name, home, settings, seen))
        background.start_soon(downloads.run)
        background.start_soon(history.watch, models)
        operations = Operations(settings, access, models, store, history, downloads, desk)
        try:
            yield Services(
                mcp=build_server(
                    lambda call, tell: desk().orchestrator.run(call, tell), lambda: models.preload(Role.ROUTER)
                ),
                operations=operations.table(),
                busy=lambda: downloads.busy,
                settings_fingerprint=settings.fingerprint,
                idle_exit_s=settings.host.idle_exit_s,
            )
        finally:
            background.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                if desk.cache_info().currsize:
                    await desk().retriever.aclose()


@asynccontextmanager
async def _open_history(home: Home) -> AsyncIterator[tuple[ReceiptStore, ModelHistory]]:
    """The receipts' store, and the history in it, which outlives the models whose ends it notes."""
    store = ReceiptStore(home.receipts_db)
    await store.recent(1)  # a host refuses a store that a newer one wrote before it serves anyone
    history = ModelHistory(store)
    try:
        yield store, history
    finally:
        with anyio.CancelScope(shield=True):
            await history.flush()
            await store.aclose()


def _desk(home: Home, settings: Settings, access: AllowedFolders, models: ModelManager, store: ReceiptStore) -> Desk:
    """What answers requests, imported at the first one: a client gets its list of tools a tenth of a second sooner."""
    from rolecall.retrieval.retriever import LanceRetriever

    from ..orchestration.run import Orchestrator
    from ..routing.router import Router

    def embedder_identity() -> str | None:
        return info.identity if (info := models.embedder()) else None

    tokenizer = home.models / settings.profile.embedder.model / "tokenizer.json"
    retriever = LanceRetriever(home, settings.retrieval, models.embed, embedder_identity, access, tokenizer)
    router = Router(models, settings.profile.name)
    return Desk(retriever, router, Orchestrator(models, retriever, router, access, store, settings))
