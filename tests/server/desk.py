"""A desk: an orchestrator with scripted models, a real store, real folders and a retriever that is a list."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client

from rolecall.config.home import Home
from rolecall.config.settings import Settings, load_settings
from rolecall.retrieval.access import AllowedFolders
from rolecall.retrieval.contract import (
    AddReport,
    CollectionInfo,
    Filters,
    Found,
    IndexState,
    Leg,
    Passage,
    Verdict,
)
from rolecall.retrieval.errors import IndexEmpty
from rolecall.retrieval.retriever import LanceRetriever
from rolecall.roles.contract import RoleInfo
from rolecall.server.orchestration.contract import Call, Outcome
from rolecall.server.orchestration.jobs import Jobs, RunCall
from rolecall.server.orchestration.run import Orchestrator
from rolecall.server.orchestration.staff import Staff
from rolecall.server.routing.router import Router
from rolecall.server.session import SessionInfo, current_session
from rolecall.server.telemetry.store import Receipt, ReceiptStore

from .scripted import Answer, Script, ScriptedModels


@dataclass
class ListRetriever(LanceRetriever):
    """Passages as given, whatever is asked; nothing where there are none."""

    passages: tuple[Passage, ...] = ()
    pending: int = 0
    answerable: float | None = None

    async def search(
        self, query: str, collection: str | None = None, max_results: int = 8, filters: Filters | None = None,
        leg: Leg = "fused",
    ) -> Found:  # fmt: skip
        if not self.passages:
            raise IndexEmpty("Nothing is indexed.", advice="Run `rolecall index add FOLDER`.")
        index = IndexState(indexed=1, pending=self.pending, skipped=0, failed=0, age_s=1.0)
        return Found(passages=self.passages[:max_results], index=index, answerable=self.answerable)

    async def watch(self, collection: str | None, on_synced: Callable[[AddReport], None]) -> None:
        await anyio.sleep_forever()

    async def check(self, passages: Sequence[Passage]) -> tuple[Verdict, ...]:
        """What the list holds is the same, anything else is gone."""

        def look(one: Passage) -> Verdict:
            held = any((one.path, one.text) == (other.path, other.text) for other in self.passages)
            return "same" if held else "gone"

        return tuple(map(look, passages))

    async def collections(self) -> tuple[CollectionInfo, ...]:
        return ()

    async def aclose(self) -> None:
        return None


def passage(text: str, path: str = "/docs/a.md", **more: Any) -> Passage:
    span = {"start_line": 1, "end_line": 1, "start_byte": 0, "end_byte": len(text)}
    return Passage(path=path, collection="docs", **span, score=1.0, text=text, **more)


@dataclass
class Desk:
    """`run` is one call from a client; `receipt` is the last one kept."""

    models: ScriptedModels
    store: ReceiptStore
    orchestrator: Orchestrator
    access: AllowedFolders
    folder: Path
    said: list[str] = field(default_factory=list)

    def run(self, kind: type[Any], **arguments: Any) -> Outcome:
        return anyio.run(self.arun, self.call(kind, **arguments))

    async def arun(self, call: Call) -> Outcome:
        return await self.orchestrator.run(call, lambda words, fraction: self.said.append(words))

    def call(self, kind: type[Any], **arguments: Any) -> Any:
        """A call of the session `s1`, which is current from now on."""
        current_session.set(SessionInfo("s1", self.folder))
        return kind(**arguments)

    def receipt(self) -> Receipt:
        return anyio.run(self.store.recent, 1)[0]

    def states(self) -> list[str]:
        return [step.target for step in self.receipt().transitions]

    def prompts(self) -> list[str]:
        return [request.messages[-1].content for _, request in self.models.requests]


MakeDesk = Callable[..., Desk]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[MakeDesk]:
    """Make a desk from a script; `passages` are what its index holds, `roles` what its profile has."""
    made: list[Desk] = []

    def make(
        script: Script | Sequence[Answer] = ("unasked",),
        *,
        passages: tuple[Passage, ...] = (),
        pending: int = 0,
        roles: tuple[RoleInfo, ...] | None = None,
        models: ScriptedModels | None = None,
        change: Callable[[Settings], Settings] = lambda settings: settings,
    ) -> Desk:
        home = Home(tmp_path / "home").create()
        folder = tmp_path / "work"
        folder.mkdir(exist_ok=True)
        access = AllowedFolders(home)
        access.add(folder)
        models, store = models or ScriptedModels(script, roles), ReceiptStore(home.receipts_db)
        settings = change(load_settings(home, profile="starter"))
        staff = Staff(models, ListRetriever(passages, pending), Router(models, "starter"), access, settings)
        made.append(Desk(models, store, Orchestrator(staff, store), access, folder))
        return made[-1]

    yield make
    for each in made:
        anyio.run(each.store.aclose)


@asynccontextmanager
async def served(run: RunCall, store: ReceiptStore) -> AsyncIterator[Jobs]:
    """The calls of a host that ends with the block: what still runs then is cancelled."""
    async with anyio.create_task_group() as tasks:
        try:
            yield Jobs(run, store, tasks)
        finally:
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def client_of(server: Any, cwd: Path = Path("/"), session: str = "s1", **options: Any) -> AsyncIterator[Client]:
    """A client in memory, of a server or a transport to it, whose session has this id and folder."""
    token = current_session.set(SessionInfo(session, cwd))
    try:
        async with Client(server, **options) as client:
            yield client
    finally:
        current_session.reset(token)
