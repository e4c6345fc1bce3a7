"""The staff of models behind one contract: roles become models, models become worker processes within one budget."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import anyio.to_thread

from rolecall.config.home import Home
from rolecall.config.profile import RoleSpec
from rolecall.config.settings import GB, Settings

from .contract import EmbedderInfo, GenerationRequest, GenerationResult, OnEvent, Resident, Role, RoleInfo
from .errors import ModelCorrupt, ModelMissing, PromptTooLong, RoleError
from .footprint import footprints, quick_footprint
from .manifest import Manifest, corrupt, read_manifest, verify, write_manifest
from .plan import EMBEDDER_OVERHEAD_BYTES, Reservation, reserve, working_set_bytes
from .pool import Phase, PooledModel, StartWorker, WorkerPool
from .sources import resolve
from .staff import EMBEDDER_ROLE, Staff
from .worker.wire import WorkerSpec

if TYPE_CHECKING:
    from .contract import Vectors
    from .worker.process import Worker  # imported where one is started

EMBEDDER_SLOTS = 8  # the embedder takes turns between its requests
TTL_CHECKS = 8  # idle times are looked at so often per time-out


async def start_process(spec: WorkerSpec | None) -> Worker:
    """A real worker process."""
    from .worker.process import Worker

    return await Worker.start(spec)


class ModelManager:
    """The staff of models of one home: see `contract.RoleModels` for what each method promises.

    An async context manager, entered and left in the same task; leaving ends every worker. `start_worker` makes
    worker processes; `machine_bytes` None is this machine's memory.
    """

    def __init__(
        self,
        home: Home,
        settings: Settings,
        start_worker: StartWorker = start_process,
        machine_bytes: int | None = None,
    ) -> None:
        self._home = home
        self._settings = settings
        self._staff = Staff(home, settings.profile)
        self._tasks = anyio.create_task_group()
        self._tokenizers: dict[str, Any] = {}
        self._cache_bytes = int(settings.profile.cache_limit_gb * GB)
        self._pool = WorkerPool(
            self._tasks,
            settings.budget_bytes(machine_bytes),
            settings.host.queue_limit,
            self._cache_bytes,
            start_worker,
            self._prepared,
            self._wants_spare,
        )

    @property
    def budget_bytes(self) -> int:
        """Configured, at most the machine less the reserve, at most Metal's recommended working set."""
        return self._pool.budget_bytes

    async def __aenter__(self) -> ModelManager:
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._heed_metal)
        if limits := [spec.idle_ttl_s for spec in self._staff.profile.roles.values() if spec.idle_ttl_s > 0]:
            self._tasks.start_soon(self._end_the_idle, min(limits) / TTL_CHECKS)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)  # what the body raised goes on as it is, in no group

    async def aclose(self) -> None:
        await self._pool.aclose()

    async def generate(
        self, role: Role, request: GenerationRequest, on_event: OnEvent | None = None
    ) -> GenerationResult:
        spec, degraded = self._staff.post(role)
        model = await self._model(spec.model)
        await self._check_length(spec, model, request)
        changes: dict[str, Any] = {
            "timeout_s": request.timeout_s or spec.timeout_s,
            "repetition_penalty": request.repetition_penalty or spec.repetition_penalty,
        }
        budget = spec.thinking_budget if request.thinking_budget is None else request.thinking_budget
        async with self._pool.place(model, role, spec, on_event) as (ticket, worker):
            waited_s = time.monotonic() - ticket.queued_at
            load_s = min(model.reload_s, waited_s) if ticket.cold else 0.0
            made = await worker.generate(request.model_copy(update=changes), spec.thinks, budget, on_event)
        return GenerationResult(
            **asdict(made),
            role=role,
            model=spec.model,
            model_sha256=model.weights_sha256,
            queue_s=waited_s - load_s,
            load_s=load_s,
            cold_start=ticket.cold,
            degraded=degraded,
        )

    async def embed(self, texts: Sequence[str], *, alone: bool = False) -> Vectors:
        model = await self._model(self._staff.profile.embedder.model)
        async with self._pool.place(model, EMBEDDER_ROLE, None) as (_, worker):
            return await worker.embed(texts, alone)

    def embedder(self) -> EmbedderInfo | None:
        return self._staff.embedder()

    def roles(self) -> tuple[RoleInfo, ...]:
        return tuple(self._info(Role(name), spec) for name, spec in self._staff.profile.roles.items())

    def resident(self) -> tuple[Resident, ...]:
        return tuple(self._resident(model, model.worker) for model in self._pool.models.values() if model.worker)

    def count_tokens(self, role: Role, text: str) -> int:
        try:
            return self._count(self._staff.post(role)[0].model, text)
        except ModelMissing:
            return _estimate(text)

    def preload(self, role: Role) -> None:
        spec = self._staff.profile.roles.get(role)
        if spec is not None and self._staff.present(spec.model):
            self._tasks.start_soon(self._preload, spec.model)

    async def load(self, name: str) -> Resident:
        model = await self._model(resolve(name, self._staff.profile))
        async with self._pool.place(model, "", None) as (_, worker):
            return self._resident(model, worker)

    async def unload(self, name: str) -> bool:
        model = self._pool.models.get(resolve(name, self._staff.profile))
        return model is not None and await self._pool.unload(model)

    async def _preload(self, name: str) -> None:
        with contextlib.suppress(RoleError):  # the call that needs it will say what is wrong
            self._pool.preload(await self._model(name))

    async def _model(self, name: str) -> PooledModel:
        """The pool's entry for a model on disk."""
        if not self._staff.present(name):
            raise ModelMissing(
                f"Model {name!r} is not on disk.",
                found=f"no {self._home.models / name / 'config.json'}",
                advice=f"Get it with: rolecall models pull {name}",
            )
        if name in self._pool.models:
            return self._pool.models[name]
        size = quick_footprint(self._home, name)
        if size is None:
            size = (await anyio.to_thread.run_sync(footprints, self._home, [name]))[name]
        folder = self._home.models / name
        if (folder / "modules.json").is_file():
            specs: tuple[RoleSpec, ...] = ()
            reservation = Reservation(size.weights_bytes, 0, 0, EMBEDDER_OVERHEAD_BYTES, 0, 0, EMBEDDER_SLOTS)
        else:
            specs = self._staff.specs(name)
            reservation = reserve(size, specs, self._cache_bytes)
        model = PooledModel(name, folder, specs, reservation, reservation.total_bytes)
        return self._pool.models.setdefault(name, model)

    def _info(self, role: Role, spec: RoleSpec) -> RoleInfo:
        pooled = self._pool.models.get(spec.model)
        try:
            size = pooled.reservation if pooled else quick_footprint(self._home, spec.model)
        except ModelCorrupt:  # a call to the role says what is wrong; the others go on
            size = None
        return RoleInfo(
            **spec.model_dump(include={"model", "context_length", "concurrency", "timeout_s", "max_tokens", "thinks"}),
            role=role,
            present=self._staff.present(spec.model),
            resident=pooled is not None and pooled.phase is Phase.READY,
            size_bytes=size.weights_bytes if size else 0,
        )

    def _resident(self, model: PooledModel, worker: Worker) -> Resident:
        return Resident(
            model=model.model,
            roles=self._staff.roles_of(model.model),
            pid=worker.pid,
            pinned=model.pinned,
            in_use=sum(1 for ticket in model.active if ticket.role),
            reserved_bytes=model.reserved_bytes,
            measured_bytes=worker.measured_bytes,
        )

    async def _check_length(self, spec: RoleSpec, model: PooledModel, request: GenerationRequest) -> None:
        """Refuse what exceeds the role's context where the worker, made for all its roles, would take it."""
        if spec.context_length == max(each.context_length for each in model.specs):
            return
        text = "\n".join(message.content for message in request.messages)
        prompt_tokens = await anyio.to_thread.run_sync(self._count, spec.model, text)
        if prompt_tokens + request.max_tokens > spec.context_length:
            raise PromptTooLong(
                "The prompt and its answer exceed the role's context.",
                found=f"{prompt_tokens} tokens of prompt and {request.max_tokens} for the answer",
                allowed=f"{spec.context_length} tokens together",
                advice="Shorten the text, ask for a shorter answer, or raise the role's context_length.",
            )

    def _count(self, model: str, text: str) -> int:
        file = self._home.models / model / "tokenizer.json"
        if model not in self._tokenizers:
            from tokenizers import Tokenizer

            try:
                self._tokenizers[model] = Tokenizer.from_file(str(file))
            except Exception:  # its only type of error; a load says what is wrong with the file
                return _estimate(text)
        return len(self._tokenizers[model].encode(text, add_special_tokens=False).ids)

    def _prepared(self, model: PooledModel) -> Manifest:
        """What a load does before its process starts. A folder that was put there by hand gets a manifest. Blocking."""
        self._count(model.model, "")
        try:
            if read_manifest(model.folder) is None:
                return write_manifest(model.folder, model.model, "found in place")
            return verify(model.folder, full=False)
        except OSError as error:
            raise corrupt(model.model, str(error)) from None

    def _wants_spare(self) -> bool:
        """A spare is for the next load: pointless where every model on disk is in memory."""
        models = {spec.model for spec in self._staff.profile.roles.values()}
        resident = {model.model for model in self._pool.models.values() if model.phase is Phase.READY}
        return self._settings.host.spare_worker and any(self._staff.present(model) for model in models - resident)

    async def _heed_metal(self) -> None:
        if limit := await anyio.to_thread.run_sync(working_set_bytes, abandon_on_cancel=True):
            self._pool.limit(limit)

    async def _end_the_idle(self, every_s: float) -> None:
        while True:
            await anyio.sleep(every_s)
            self._pool.end_idle()


def _estimate(text: str) -> int:
    """Tokens of a text whose tokenizer is not there: four bytes each, rounded up."""
    return -(-len(text.encode("utf-8", "replace")) // 4)
