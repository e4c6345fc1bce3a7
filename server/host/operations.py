"""The control operations: what the command line asks of the host. Never MCP tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import anyio
from pydantic import BaseModel, ConfigDict, ValidationError

from rolecall.config.settings import EndpointSettings, Settings
from rolecall.retrieval.access import AllowedFolders
from rolecall.retrieval.contract import Filters, Retriever
from rolecall.roles.contract import RoleModels
from rolecall.roles.errors import EndpointUnavailable, RoleError

from ..errors import BadRequest
from ..surface.server import parse_call
from ..surface.tools import result_of
from ..telemetry.history import ModelHistory
from ..telemetry.store import ReceiptStore
from .downloads import Downloads
from .services import Operation, OperationContext

if TYPE_CHECKING:
    from ..orchestration.run import Orchestrator
    from ..routing.router import Router


PROBE_S = 20.0
"""For one server to show what it can do; it may have to load its model."""


class _Params(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Tool(_Params):
    name: str
    arguments: dict[str, Any]


class _Items(_Params):
    items: list[Any]


class _Folder(_Params):
    folder: str = ""
    remove: bool = False


class _Index(_Params):
    folder: str
    collection: str | None = None


class _Collection(_Params):
    collection: str


class _Search(_Params):
    query: str
    max_results: int = 8
    collection: str | None = None
    filters: dict[str, str] | None = None


class _Model(_Params):
    name: str


class _Pin(_Model):
    pinned: bool


class _Models(_Params):
    names: list[str]


class _Receipt(_Params):
    id: str


class _Count(_Params):
    count: int = 20


@dataclass(frozen=True, slots=True)
class Desk:
    """What answers requests."""

    retriever: Retriever
    router: Router
    orchestrator: Orchestrator


@dataclass(frozen=True, slots=True)
class Operations:
    """The host's objects, as the command line may use them; `desk` builds its own at the first call."""

    settings: Settings
    access: AllowedFolders
    models: RoleModels
    store: ReceiptStore
    history: ModelHistory
    downloads: Downloads
    desk: Callable[[], Desk]

    def table(self) -> Mapping[str, Operation]:
        """Every operation by the name it has on the wire."""
        offered: tuple[Operation, ...] = (
            self.status, self.tool, self.route_batch, self.validate_batch, self.allow, self.index_add, self.index_list,
            self.index_remove, self.search, self.models_ps, self.models_load, self.models_unload, self.models_pin,
            self.models_download, self.memory, self.endpoints, self.receipt, self.receipts,
        )  # fmt: skip
        return {each.__name__: each for each in offered}

    async def status(self, context: OperationContext, params: dict[str, Any]) -> Any:
        folders = await anyio.to_thread.run_sync(self._probe_folders)
        return {
            "profile": self.settings.profile.name,
            "budget_bytes": self.settings.budget_bytes(),
            "resident": [item.model_dump(mode="json") for item in self.models.resident()],
            "roles": [item.model_dump(mode="json") for item in self.models.roles()],
            "folders": folders,
            "downloads": self.downloads.state(),
        }

    async def tool(self, context: OperationContext, params: dict[str, Any]) -> Any:
        given = _parse(_Tool, params)
        call = parse_call(given.name, given.arguments)

        def tell(words: str, fraction: float | None) -> None:
            context.progress({"words": words, "done": fraction, "total": None if fraction is None else 1.0})

        outcome = await self.desk().orchestrator.run(call, tell)
        return result_of(given.name, outcome).model_dump(mode="json")

    async def route_batch(self, context: OperationContext, params: dict[str, Any]) -> Any:
        from ..routing.router import batch_line

        router = self.desk().router
        lines = []
        for item in _parse(_Items, params).items:
            _, _, decision = await router.decide(item["text"])
            lines.append(batch_line(item["id"], decision))
        return lines

    async def validate_batch(self, context: OperationContext, params: dict[str, Any]) -> Any:
        from ..validation.verdict import batch_line, subject_from_line, validate

        lines = []
        for item in _parse(_Items, params).items:
            subject = subject_from_line(item)
            lines.append(batch_line(item["id"], await anyio.to_thread.run_sync(validate, subject)))
        return lines

    async def allow(self, context: OperationContext, params: dict[str, Any]) -> Any:
        given = _parse(_Folder, params)
        if given.folder and given.remove:
            if not self.access.remove(Path(given.folder)):
                listed = ", ".join(map(str, self.access.list())) or "none, the list is empty"
                advice = "Name the folder as `rolecall allow --list` shows it."
                raise BadRequest(
                    "That folder is not allowed anyway.", found=given.folder, allowed=listed, advice=advice
                )
        elif given.folder:
            self.access.add(Path(given.folder))
        return {"folders": [str(folder) for folder in self.access.list()]}

    async def index_add(self, context: OperationContext, params: dict[str, Any]) -> Any:
        given = _parse(_Index, params)

        def tell(done: int, total: int, path: str) -> None:
            context.progress({"done": done, "total": total, "words": path})

        report = await self.desk().retriever.add(Path(given.folder), given.collection, tell)
        return report.model_dump(mode="json")

    async def index_list(self, context: OperationContext, params: dict[str, Any]) -> Any:
        return [item.model_dump(mode="json") for item in await self.desk().retriever.collections()]

    async def index_remove(self, context: OperationContext, params: dict[str, Any]) -> Any:
        collection = _parse(_Collection, params).collection
        return {"collection": collection, "files": await self.desk().retriever.remove(collection)}

    async def search(self, context: OperationContext, params: dict[str, Any]) -> Any:
        given = _parse(_Search, params)
        try:
            filters = Filters(**given.filters) if given.filters else None
        except ValidationError as error:
            allowed = "glob, kind, language, since"
            raise BadRequest("Unknown filter.", found=str(given.filters), allowed=allowed) from error
        found = await self.desk().retriever.search(given.query, given.collection, given.max_results, filters)
        return found.model_dump(mode="json")

    async def models_ps(self, context: OperationContext, params: dict[str, Any]) -> Any:
        return [item.model_dump(mode="json") for item in self.models.resident()]

    async def models_load(self, context: OperationContext, params: dict[str, Any]) -> Any:
        return (await self.models.load(_parse(_Model, params).name)).model_dump(mode="json")

    async def models_unload(self, context: OperationContext, params: dict[str, Any]) -> Any:
        return {"unloaded": await self.models.unload(_parse(_Model, params).name)}

    async def models_pin(self, context: OperationContext, params: dict[str, Any]) -> Any:
        given = _parse(_Pin, params)
        return (await self.models.pin(given.name, given.pinned)).model_dump(mode="json")

    async def memory(self, context: OperationContext, params: dict[str, Any]) -> Any:
        """Who holds the machine's memory now, and what the models took in the last 24 hours."""
        return {**self.models.memory().model_dump(), **await self.history.last_day()}

    async def endpoints(self, context: OperationContext, params: dict[str, Any]) -> Any:
        """What each server of models in the settings can do, tried now. Never its key."""
        return [await _probed(name, each) for name, each in self.settings.endpoints.items()]

    async def models_download(self, context: OperationContext, params: dict[str, Any]) -> Any:
        """Queue downloads that go on after this client has left."""
        self.downloads.add(_parse(_Models, params).names)
        return self.downloads.state()

    async def receipt(self, context: OperationContext, params: dict[str, Any]) -> Any:
        wanted = _parse(_Receipt, params).id
        receipt = await self.store.get(wanted)
        if receipt is None:
            raise BadRequest(
                "There is no such receipt.", found=wanted[:100], advice="`rolecall receipt list` shows the latest."
            )
        return receipt.model_dump(mode="json")

    async def receipts(self, context: OperationContext, params: dict[str, Any]) -> Any:
        return [
            {
                "id": item.id,
                "tool": item.tool,
                "who": item.who,
                "status": item.status or "failed",
                "seconds": item.timings.get("total_s", 0.0),
            }
            for item in await self.store.recent(_parse(_Count, params).count)
        ]

    def _probe_folders(self) -> list[dict[str, str]]:
        """Whether the host itself may list each allowed folder: on a Mac its rights differ from the shell's."""
        found = []
        for folder in self.access.list():
            try:
                next(iter(folder.iterdir()), None)
                found.append({"path": str(folder), "problem": ""})
            except OSError as error:
                found.append({"path": str(folder), "problem": error.strerror or type(error).__name__})
        return found


async def _probed(name: str, settings: EndpointSettings) -> dict[str, Any]:
    from rolecall.roles.openai_compatible import Endpoint

    endpoint, can = Endpoint(name, settings), None
    error: RoleError | None = None
    try:
        with anyio.fail_after(PROBE_S):
            can = asdict(await endpoint.capabilities())
    except TimeoutError:
        error = EndpointUnavailable("It did not answer in time.", allowed=f"{PROBE_S:.0f} s", advice="Try it again.")
    except RoleError as refused:
        error = refused
    finally:
        with anyio.CancelScope(shield=True):
            await endpoint.aclose()
    shown = {"name": name, "host": urlsplit(settings.url).netloc, "model": settings.model, "capabilities": can}
    return {**shown, "reachable": can is not None, "error": error.to_dict() if error else None}


Model = TypeVar("Model", bound=BaseModel)


def _parse(model: type[Model], params: dict[str, Any]) -> Model:
    try:
        return model.model_validate(params)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadRequest(
            "The control request's parameters are wrong.",
            found=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            advice="The command line and the host may differ in version; run `rolecall stop`.",
        ) from None
