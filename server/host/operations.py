"""The control operations: what the command line asks of the host. Never MCP tools."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from functools import partial
from inspect import iscoroutinefunction
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio
from pydantic import ConfigDict, ValidationError, validate_call

from rolecall.config.policy import RoutingSettings
from rolecall.config.settings import EndpointSettings, Settings
from rolecall.retrieval.access import AllowedFolders
from rolecall.retrieval.contract import Filters, Leg, OnIndexed, Passage, Retriever
from rolecall.roles.contract import RoleModels
from rolecall.roles.errors import EndpointUnavailable, RoleError

from ..errors import BadRequest
from ..session import current_session
from ..surface.reply import plain_result
from ..surface.server import parse_call
from ..telemetry.history import ModelHistory
from ..telemetry.savings import usage
from ..telemetry.store import Receipt, ReceiptStore
from .downloads import Downloads
from .sessions import Operation, Tell

if TYPE_CHECKING:
    from ..orchestration.run import Orchestrator
    from ..routing.router import Router

UNASKED_FILES = 50_000
"""A first index of more files takes hours, and is rarely meant."""

PROBE_S = 20.0
"""For one server to show what it can do; it may have to load its model."""


@dataclass(frozen=True, slots=True)
class Operations:
    """The host's objects, as the command line may use them; `desk` builds its own at the first call.

    Every coroutine method is an operation of its name; its parameters after `tell` are those on the wire. `watches` are
    what the operations that go on until their caller leaves run in, for the host to end as it leaves."""

    settings: Settings
    access: AllowedFolders
    models: RoleModels
    store: ReceiptStore
    history: ModelHistory
    downloads: Downloads
    desk: Callable[[], Orchestrator]
    watches: set[anyio.CancelScope] = field(default_factory=set)

    def table(self) -> Mapping[str, Operation]:
        """Every operation by its name."""
        lazily = validate_call(config=ConfigDict(defer_build=True))
        names = [name for name, each in vars(Operations).items() if iscoroutinefunction(each)]
        return {name: partial(_checked, lazily(getattr(self, name))) for name in names}

    @property
    def _retriever(self) -> Retriever:
        return self.desk().staff.retriever

    async def status(self, _: Tell) -> Any:
        folders = await anyio.to_thread.run_sync(self.access.list)
        return {
            "resident": self.models.resident(),
            "folders": [await anyio.to_thread.run_sync(_probe_folder, folder) for folder in folders],
            "downloads": self.downloads.state(),
        }

    async def usage(self, _: Tell) -> Any:
        return await usage(self.store)

    async def tool(self, tell: Tell, name: str, arguments: dict[str, Any], stream: bool = False) -> Any:
        """A tool's result; with `stream` the pieces of its answer are told as `{"text": ...}` before any check."""

        def say(words: str, fraction: float | None) -> None:
            tell({"words": words, "done": fraction, "total": None if fraction is None else 1.0})

        def hear(piece: str) -> None:
            if stream:
                tell({"text": piece})

        outcome = await self.desk().run(parse_call(name, arguments), say, hear)
        return plain_result(name, outcome)[0]

    async def files(self, _: Tell, paths: list[str]) -> Any:
        """The files in allowed folders that paths, folders and globs name, sorted."""
        return await anyio.to_thread.run_sync(self.access.resolve, paths, current_session.get().cwd)

    async def route(
        self, _: Tell, id: Any, text: str, policy: RoutingSettings | None = None, escalate: bool | None = None
    ) -> Any:
        from ..routing.router import batch_line

        return batch_line(id, (await self._router(policy).decide(text, escalate=escalate))[2])

    async def explain(self, _: Tell, text: str, policy: RoutingSettings | None = None) -> Any:
        return await self._router(policy).explain(text)

    def _router(self, policy: RoutingSettings | None) -> Router:
        """The host's router; with a policy, one that has it in place of the settings'."""
        router = self.desk().staff.router
        return router if policy is None else router.with_policy(policy)

    async def embed(
        self, _: Tell, texts: list[str], identity: str = "", alone: bool = True, query: bool = False
    ) -> Any:
        """Unit-length vectors as of `RoleModels.embed`; refused where the caller means another embedder than the
        host's."""
        mine = self.models.embedder()
        if identity and mine != identity:
            failed, advice = "The host embeds with another model.", "Run `rolecall stop`, and try again."
            raise BadRequest(failed, found=mine or "none", allowed=identity, advice=advice)
        return (await self.models.embed(texts, alone=alone, query=query)).tolist()

    async def validate(self, _: Tell, line: Any) -> Any:
        from ..validation.verdict import verdict_line

        return await anyio.to_thread.run_sync(verdict_line, line)

    async def allow(self, _: Tell, folder: str = "", remove: bool = False) -> Any:
        if folder and not remove:
            self.access.add(Path(folder))
        elif folder and not self.access.remove(Path(folder)):
            listed = ", ".join(map(str, self.access.list())) or "none, the list is empty"
            advice = "Name the folder as `rolecall allow --list` shows it."
            raise BadRequest("That folder is not allowed anyway.", found=folder, allowed=listed, advice=advice)
        return {"folders": [str(folder) for folder in self.access.list()]}

    async def index_preview(self, _: Tell, folder: Path) -> Any:
        return await self._retriever.preview(folder)

    async def index_add(
        self, tell: Tell, folder: Path, collection: str | None = None, confirmed: bool = False,
        private: bool | None = None,
    ) -> Any:  # fmt: skip
        most = None if confirmed else UNASKED_FILES
        return await self._retriever.add(folder, collection, _saying(tell), most, private)

    async def index_sync(self, tell: Tell, collection: str | None = None) -> Any:
        return await self._retriever.sync(collection, _saying(tell))

    async def index_watch(self, tell: Tell, collection: str | None = None) -> None:
        """Keep collections in step with their folders until the caller leaves or the host does; each sync is told as
        `{"synced": report}`."""
        with anyio.CancelScope() as watch:
            self.watches.add(watch)
            try:
                await self._retriever.watch(collection, lambda report: tell({"synced": report}))
            finally:
                self.watches.discard(watch)

    async def index_status(self, _: Tell, collection: str | None = None) -> Any:
        return await self._retriever.status(collection)

    async def index_list(self, _: Tell) -> Any:
        return await self._retriever.collections()

    async def index_remove(self, _: Tell, collection: str) -> Any:
        return {"collection": collection, "files": await self._retriever.remove(collection)}

    async def search(
        self, _: Tell, query: str, max_results: int, collection: str | None = None, filters: Filters | None = None,
        leg: Leg = "fused",
    ) -> Any:  # fmt: skip
        return await self._retriever.search(query, collection, max_results, filters, leg)

    async def check(self, _: Tell, passages: list[Passage]) -> Any:
        """Citations looked up again."""
        return await self._retriever.check(passages)

    async def models_ps(self, _: Tell) -> Any:
        return self.models.resident()

    async def models_load(self, _: Tell, name: str) -> Any:
        return await self.models.load(name)

    async def models_unload(self, _: Tell, name: str) -> Any:
        return {"unloaded": await self.models.unload(name)}

    async def models_pin(self, _: Tell, name: str, pinned: bool) -> Any:
        return await self.models.pin(name, pinned)

    async def models_download(self, _: Tell, names: list[str]) -> Any:
        """Queue downloads that go on after this client has left."""
        self.downloads.add(names)
        return self.downloads.state()

    async def memory(self, _: Tell) -> Any:
        """Who holds the machine's memory now, and what the models took in the last 24 hours."""
        return {**self.models.memory().model_dump(), **await self.history.last_day()}

    async def endpoints(self, _: Tell) -> Any:
        """What each server of models in the settings can do, tried now. Never its key."""
        return [await _probed(name, each) for name, each in self.settings.endpoints.items()]

    async def receipt(self, _: Tell, id: str) -> Any:
        if (receipt := await self.store.get(id)) is None:
            advice = "`rolecall receipt list` shows the latest."
            raise BadRequest("There is no such receipt.", found=id[:100], advice=advice)
        return receipt

    async def receipts(self, _: Tell, count: int) -> Any:
        def row(item: Receipt) -> dict[str, Any]:
            ended = {"status": item.status or "failed", "seconds": item.timings.get("total_s", 0.0)}
            return {"id": item.id, "tool": item.tool, "who": item.who, **ended}

        return [row(item) for item in await self.store.recent(count)]


def _saying(tell: Tell) -> OnIndexed:
    def say(done: int, total: int, path: str, chunks: int) -> None:
        words = f"{done:,} of {total:,} files, {chunks:,} chunks"
        tell({"done": done, "total": total, "words": words, "path": path})

    return say


async def _checked(operation: Callable[..., Awaitable[Any]], tell: Tell, params: dict[str, Any]) -> Any:
    try:
        return await operation(tell, **params)
    except ValidationError as error:
        if error.title != operation.__qualname__:
            raise
        first = error.errors()[0]
        raise BadRequest(
            "The control request's parameters are wrong.",
            found=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            advice="The command line and the host may differ in version; run `rolecall stop`.",
        ) from None


def _probe_folder(folder: Path) -> dict[str, str]:
    """Whether the host itself may list an allowed folder: on a Mac its rights differ from the shell's."""
    try:
        next(iter(folder.iterdir()), None)
    except OSError as error:
        return {"path": str(folder), "problem": error.strerror or type(error).__name__}
    return {"path": str(folder), "problem": ""}


async def _probed(name: str, settings: EndpointSettings) -> dict[str, Any]:
    from rolecall.roles.openai_compatible import Endpoint

    can, error = None, None
    async with aclosing(Endpoint(name, settings)) as endpoint:
        try:
            with anyio.fail_after(PROBE_S):
                can = asdict(await endpoint.capabilities())
        except TimeoutError:
            slow = EndpointUnavailable("It did not answer in time.", allowed=f"{PROBE_S:.0f} s", advice="Try it again.")
            error = slow.to_dict()
        except RoleError as refused:
            error = refused.to_dict()
    host = urlsplit(settings.url).netloc
    return {"name": name, "host": host, "model": settings.model, "capabilities": can, "error": error}
