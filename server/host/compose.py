"""The composition root: builds a host's objects once and owns their lives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path

import anyio

from rolecall.config.home import Home
from rolecall.config.settings import load_settings
from rolecall.retrieval.access import AllowedFolders
from rolecall.roles.contract import ModelEvent, Role
from rolecall.roles.manager import ModelManager
from rolecall.roles.sources import pull

from ..orchestration.jobs import Jobs
from ..surface.resources import Resources
from ..surface.server import build_server
from ..surface.updates import MODELS, STATUS, Updates
from ..telemetry.history import ModelHistory
from ..telemetry.store import ReceiptStore
from .downloads import Downloads
from .host import Services
from .live import LiveIndex
from .operations import Desk, Operations


@asynccontextmanager
async def open_services(home: Home, config_path: Path | None) -> AsyncIterator[Services]:
    """Everything one host serves. Nothing heavy is imported and no model is loaded here."""
    settings = load_settings(home, config_path)
    access = AllowedFolders(home)
    updates = Updates()

    def noted(event: ModelEvent) -> None:
        history.note(event)
        updates.changed(MODELS, STATUS)

    def indexed() -> None:
        updates.changed(STATUS)
        live.begin()

    def listed() -> None:
        models.preload(Role.ROUTER)
        live.begin()

    async def drained() -> None:
        for watch in operations.watches:
            watch.cancel()
        await jobs.drained()

    async with (
        _open_history(home) as (store, history),
        ModelManager(home, settings, on_event=noted) as models,
        anyio.create_task_group() as background,
    ):

        @cache
        def desk() -> Desk:
            """What answers requests; its imports would keep a client a tenth of a second from its list of tools."""
            from rolecall.retrieval.retriever import LanceRetriever

            from ..orchestration.run import Orchestrator
            from ..routing.router import Router

            retriever = LanceRetriever(
                home, settings.retrieval, models.embed, models.embedder, access,
                home.models / settings.profile.embedder.model / "tokenizer.json", indexed,
                embed_query=partial(models.embed, query=True),
                rerank=models.rerank if settings.profile.reranker else None,
            )  # fmt: skip
            live.begin()
            router = Router(models, settings.profile.name, settings.routing)
            return Desk(retriever, router, Orchestrator(models, retriever, router, access, store, settings))

        live = LiveIndex(lambda: desk().retriever)
        downloads = Downloads(lambda name, seen: pull(name, home, settings, seen))
        background.start_soon(downloads.run)
        background.start_soon(history.watch, models)
        background.start_soon(updates.run)
        if settings.retrieval.watch:
            background.start_soon(live.run)
        jobs = Jobs(
            lambda call, tell: desk().orchestrator.run(call, tell), store, background, settings.telemetry.keep_content
        )
        resources = Resources(models, access, store, jobs, lambda: desk().retriever, updates)
        operations = Operations(settings, access, models, store, history, downloads, desk)
        try:
            yield Services(
                mcp=build_server(jobs, listed, settings.host.call_deadline_s, resources),
                operations=operations.table(),
                busy=lambda: downloads.busy or jobs.busy,
                settings_fingerprint=settings.fingerprint,
                idle_exit_s=settings.host.idle_exit_s,
                drained=drained,
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
