"""The composition root: builds a host's objects once and owns their lives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import anyio

from rolecall.config.home import Home
from rolecall.config.settings import Settings, load_settings
from rolecall.retrieval.access import AllowedFolders
from rolecall.roles.contract import Role, Vectors
from rolecall.roles.manager import ModelManager
from rolecall.roles.sources import OnProgress, pull

from ..orchestration.contract import Call, Outcome
from ..orchestration.contract import OnProgress as OnWords
from ..surface.server import build_server
from ..telemetry.history import ModelHistory
from ..telemetry.store import ReceiptStore
from .downloads import Downloads
from .operations import Desk, Operations
from .services import Services


@asynccontextmanager
async def open_services(home: Home, config_path: Path | None) -> AsyncIterator[Services]:
    """Everything one host serves. Nothing heavy is imported and no model is loaded here."""
    settings = load_settings(home, config_path)
    access = AllowedFolders(home)
    store = ReceiptStore(home.receipts_db)
    await store.recent(1)  # a host refuses a store that a newer one wrote before it serves anyone
    history = ModelHistory(store)
    async with (
        ModelManager(home, settings, on_event=history.note) as models,
        anyio.create_task_group() as background,
    ):

        @cache
        def desk() -> Desk:
            return _desk(home, settings, access, models, store)

        async def run(call: Call, tell: OnWords) -> Outcome:
            return await desk().orchestrator.run(call, tell)

        async def get(name: str, seen: OnProgress) -> object:
            return await pull(name, home, settings, seen)

        downloads = Downloads(get)
        background.start_soon(downloads.run)
        background.start_soon(history.watch, models)
        operations = Operations(settings, access, models, store, history, downloads, desk)
        try:
            yield Services(
                mcp=build_server(run, lambda: models.preload(Role.ROUTER)),
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
                await history.flush()
                await store.aclose()


def _desk(home: Home, settings: Settings, access: AllowedFolders, models: ModelManager, store: ReceiptStore) -> Desk:
    """What answers requests, imported at the first one: a client gets its list of tools a tenth of a second sooner."""
    from rolecall.retrieval.retriever import LanceRetriever

    from ..orchestration.run import Orchestrator
    from ..routing.router import Router

    async def embed(texts: Sequence[str]) -> Vectors:
        return await models.embed(texts)

    def embedder_identity() -> str | None:
        info = models.embedder()
        return info.identity if info else None

    tokenizer = home.models / settings.profile.embedder.model / "tokenizer.json"
    retriever = LanceRetriever(home, settings.retrieval, embed, embedder_identity, access, tokenizer)
    router = Router(models, settings.profile.name)
    return Desk(retriever, router, Orchestrator(models, retriever, router, access, store, settings))
