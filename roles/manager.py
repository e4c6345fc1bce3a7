"""The staff of models behind one contract: roles become models, models become worker processes within one budget."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.abc
import anyio.to_thread

from rolecall.config.home import Home
from rolecall.config.profile import Encoder, RoleSpec
from rolecall.config.settings import GB, Settings

from .contract import (
    EmbedderInfo,
    GenerationRequest,
    GenerationResult,
    MemoryState,
    Message,
    OnEvent,
    OnModelEvent,
    Resident,
    Role,
    RoleInfo,
)
from .errors import EndpointUnavailable, ModelCorrupt, ModelMissing, PromptTooLong, RoleError, SchemaRefused
from .footprint import footprints, quick_footprint, remember
from .life import StartWorker
from .manifest import corrupt, read_manifest, verify, weights_bytes, write_manifest
from .memory import Machine
from .plan import ENCODER_OVERHEAD_BYTES, Reservation, adapter_bytes, reserve, working_set_bytes
from .pool import WorkerPool
from .pooled import Phase, PooledModel, Ticket
from .schema import keep_to
from .sources import resolve
from .staff import Staff, key_of
from .worker.wire import Loaded, WorkerSpec

if TYPE_CHECKING:
    from .contract import Vectors
    from .openai_compatible import Endpoint  # imported where a role names one
    from .worker.process import Worker  # imported where one is started

T = TypeVar("T")

ENCODER_SLOTS = 8  # an encoder takes turns between its requests
TEMPLATE_TOKENS, MESSAGE_TOKENS = 512, 16  # more than chat templates add to a request, and around each message
SHORT_BYTES = 1024  # a text has at most as many tokens as bytes: so few are not worth counting


async def start_process(spec: WorkerSpec | None) -> Worker:
    """A real worker process."""
    from .worker.process import Worker

    return await Worker.start(spec)


class ModelManager:
    """The staff of models of one home: see `contract.RoleModels` for what each method promises.

    An async context manager, entered and left in the same task; leaving ends every worker. `start_worker` makes
    worker processes; `on_event` hears what happens to models in memory and must return at once.
    """

    def __init__(
        self,
        home: Home,
        settings: Settings,
        start_worker: StartWorker = start_process,
        machine: Machine | None = None,
        on_event: OnModelEvent | None = None,
    ) -> None:
        self._home = home
        self._settings = settings
        self._machine = machine or Machine()
        self._staff = Staff(home, settings.profile, self._in_memory)
        self._tasks = anyio.create_task_group()
        self._tokenizers: dict[Path, Any] = {}
        self._counting = anyio.CapacityLimiter(1)  # in the order they came; a tokenizer is read once
        self._endpoints: dict[str, Endpoint] = {}
        self._cache_bytes = int(settings.profile.cache_limit_gb * GB)
        self._pool = WorkerPool(
            tasks=self._tasks,
            machine=self._machine,
            configured_bytes=settings.budget_bytes(self._machine.total_bytes),
            queue_limit=settings.host.queue_limit,
            cache_limit_bytes=self._cache_bytes,
            start_worker=start_worker,
            prepared=self._prepared,
            wants_spare=self._wants_spare,
            learned=self._learned,
            on_event=on_event,
        )

    async def __aenter__(self) -> ModelManager:
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._heed_metal)
        self._tasks.start_soon(self._pool.tend)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)  # what the body raised goes on as it is, in no group

    async def aclose(self) -> None:
        await self._pool.aclose()
        for endpoint in self._endpoints.values():
            await endpoint.aclose()

    async def generate(
        self, role: Role, request: GenerationRequest, on_event: OnEvent | None = None
    ) -> GenerationResult:
        async def by(engine: str, last: bool) -> GenerationResult:
            if engine == "mlx":
                return await self._generate_here(role, request, on_event, stand_in=last)
            endpoint, spec = self._endpoint(engine), self._staff.profile.roles[role]
            made = await endpoint.generate(*_filled(request, spec), on_event)
            return GenerationResult(**dict(made), role=role, model=endpoint.model)

        result, gave_way = await self._by_engines(role, by)
        if gave_way:
            result = result.model_copy(update={"degraded": (gave_way + result.degraded).strip()})
        if request.json_schema is not None or request.regex is not None:
            await anyio.to_thread.run_sync(keep_to, request, result.text, result.finish, result.completion_tokens)
        return result

    async def score_labels(self, role: Role, messages: Sequence[Message], labels: Sequence[str]) -> tuple[float, ...]:
        if not labels or not all(labels):
            raise ValueError("labels must not be empty")

        async def by(engine: str, last: bool) -> tuple[float, ...]:
            if engine != "mlx":
                return await self._endpoint(engine).score(messages, labels)
            spec, _ = self._staff.post(role, stand_in=last)
            model = await self._model(key_of(spec))
            need_tokens = await self._need_tokens(spec, model, messages, max(map(len, labels)))
            # labels are computed on a copy of the prompt's cache
            ticket = Ticket(role, spec, tokens=need_tokens and 2 * need_tokens)
            async with self._pool.place(model, ticket) as worker:
                return await worker.score(messages, labels)

        return (await self._by_engines(role, by))[0]

    async def embed(self, texts: Sequence[str], *, alone: bool = False, query: bool = False) -> Vectors:
        async with self._encoder("embedder") as worker:
            return await worker.encode(texts, alone, query)

    async def rerank(self, query: str, texts: Sequence[str]) -> list[float]:
        async with self._encoder("reranker") as worker:
            scores = await worker.encode([(query, text) for text in texts])
        return [float(score) for score in scores[:, 0]]

    def embedder(self) -> EmbedderInfo | None:
        return self._staff.embedder()

    def roles(self) -> tuple[RoleInfo, ...]:
        return tuple(self._info(Role(name), spec) for name, spec in self._staff.profile.roles.items())

    def resident(self) -> tuple[Resident, ...]:
        return tuple(self._resident(model) for model in self._pool.models.values() if model.worker)

    def count_tokens(self, role: Role, text: str) -> int:
        try:
            return self._count(self._home.models / self._staff.post(role)[0].model, text)
        except ModelMissing:
            return _estimate(text)

    def preload(self, role: Role) -> None:
        spec = self._staff.profile.roles.get(role)
        if spec is not None and self._staff.present(key_of(spec)):
            self._tasks.start_soon(self._preload, key_of(spec))

    async def load(self, name: str) -> Resident:
        model = await self._model(self._key(name))
        async with self._pool.place(model, Ticket()):
            return self._resident(model)

    async def unload(self, name: str) -> bool:
        model = self._pool.models.get(self._key(name))
        return model is not None and await self._pool.unload(model)

    async def pin(self, name: str, pinned: bool) -> Resident:
        model = await self._model(self._key(name))
        if not pinned and any(spec.pinned for spec in model.specs):
            raise RoleError(
                f"Model {model.model!r} is pinned by the profile.",
                found=", ".join(self._staff.roles_of(model.model)),
                advice="Set `pinned: false` for its roles in config.yaml.",
            )
        async with self._pool.place(model, Ticket()) if pinned else contextlib.nullcontext():
            self._pool.pin(model, pinned)
            return self._resident(model)

    def memory(self) -> MemoryState:
        self._pool.heed_memory()
        return MemoryState(
            budget_bytes=self._pool.budget_bytes,
            configured_bytes=self._pool.configured_bytes,
            reserved_bytes=self._pool.reserved_bytes,
            measured_bytes=self._pool.held_bytes,
            machine_bytes=self._machine.total_bytes,
            available_bytes=self._machine.available_bytes(),
        )

    async def _by_engines(self, role: Role, by: Callable[[str, bool], Awaitable[T]]) -> tuple[T, str]:
        """What the role's first engine gives that can, and in words which gave way. `by` gets an engine and whether it
        is the last."""
        spec, gave_way = self._staff.profile.roles.get(role), ""
        *preferred, last = spec.engines if spec else ("mlx",)
        for engine in preferred:
            try:
                return await by(engine, False), gave_way
            except (EndpointUnavailable, ModelMissing, SchemaRefused) as error:
                gave_way += f"{error.message} ({engine}) "
        return await by(last, True), gave_way

    def _endpoint(self, name: str) -> Endpoint:
        if name not in self._endpoints:
            from .openai_compatible import Endpoint

            self._endpoints[name] = Endpoint(name, self._settings.endpoints[name])
        return self._endpoints[name]

    async def _generate_here(
        self, role: Role, request: GenerationRequest, on_event: OnEvent | None, stand_in: bool
    ) -> GenerationResult:
        spec, degraded = self._staff.post(role, stand_in)
        model = await self._model(key_of(spec))
        need_tokens = await self._need_tokens(spec, model, request.messages, request.max_tokens)
        ticket = Ticket(role, spec, on_event, request.client, request.deadline_s, need_tokens)
        async with self._pool.place(model, ticket) as worker:
            waited_s = anyio.current_time() - ticket.queued_at
            load_s = min(model.reload_s, waited_s) if ticket.cold else 0.0
            made = await worker.generate(*_filled(request, spec), on_event)
        model.made(made.completion_tokens, made.decode_s)
        return GenerationResult(
            **dict(made),
            role=role,
            model=model.model,
            model_sha256=model.weights_sha256,
            queue_s=waited_s - load_s,
            load_s=load_s,
            cold_start=ticket.cold,
            degraded=degraded,
        )

    @contextlib.asynccontextmanager
    async def _encoder(self, name: Encoder) -> AsyncIterator[Worker]:
        profile = self._staff.profile
        if name not in profile.encoders:
            raise ModelMissing(f"The profile {profile.name!r} has no {name}.", advice="Choose another profile.")
        async with self._pool.place(await self._model(profile.encoders[name].model), Ticket(name)) as worker:
            yield worker

    async def _preload(self, name: str) -> None:
        with contextlib.suppress(RoleError):  # the call that needs it will say what is wrong
            self._pool.preload(await self._model(name))

    def _key(self, name: str) -> str:
        """The pool's key for a role, a model, or what `models ps` shows."""
        if name in self._pool.models:
            return name
        spec = self._staff.profile.roles.get(name)
        return key_of(spec) if spec else resolve(name, self._staff.profile)

    async def _model(self, key: str) -> PooledModel:
        """The pool's entry for a model on disk."""
        name, _, adapter = key.partition("+")
        if not self._staff.present(key):
            missing = f", or no adapter_config.json in {self._staff.adapter(adapter)}" if adapter else ""
            raise ModelMissing(
                f"Model {key!r} is not on disk.",
                found=f"no {self._home.models / name / 'config.json'}{missing}",
                advice=f"Get it with: rolecall models pull {name}"
                + (", and put its adapter there." if adapter else ""),
            )
        if key in self._pool.models:
            return self._pool.models[key]
        folder, adapter_folder = self._home.models / name, self._staff.adapter(adapter)
        if (kind := self._staff.kind(name)) != "text":
            reservation = Reservation(weights_bytes(folder), 0, 0, ENCODER_OVERHEAD_BYTES, 0, 0, ENCODER_SLOTS)
            tokens = self._staff.profile.encoders[kind].max_tokens
            model = PooledModel(key, folder, (), reservation, kind=kind, input_tokens=tokens)
            return self._pool.models.setdefault(key, model)
        size = quick_footprint(self._home, name)
        if size is None:
            size = (await anyio.to_thread.run_sync(footprints, self._home, [name]))[name]
        specs = self._staff.specs(key)
        more_bytes = adapter_bytes(str(adapter_folder) if adapter_folder else None)
        reservation = reserve(size, specs, self._cache_bytes, adapter_bytes=more_bytes)
        model = PooledModel(key, folder, specs, reservation, adapter_folder)
        return self._pool.models.setdefault(key, model)

    def _info(self, role: Role, spec: RoleSpec) -> RoleInfo:
        pooled = self._pool.models.get(key_of(spec))
        try:
            size = pooled.reservation if pooled else quick_footprint(self._home, spec.model)
        except ModelCorrupt:  # a call to the role says what is wrong; the others go on
            size = None
        return RoleInfo(
            **spec.model_dump(include={"model", "context_length", "concurrency", "timeout_s", "max_tokens", "thinks"}),
            role=role,
            present=self._staff.present(key_of(spec)) or spec.engines != ("mlx",),
            resident=self._in_memory(key_of(spec)),
            size_bytes=size.weights_bytes if size else 0,
        )

    def _in_memory(self, key: str) -> bool:
        return key in self._pool.models and self._pool.models[key].phase is Phase.READY

    def _resident(self, model: PooledModel) -> Resident:
        return Resident(
            model=model.model,
            roles=self._staff.roles_of(model.model),
            pid=model.worker.pid if model.worker else 0,
            pinned=model.pinned,
            in_use=sum(1 for ticket in model.active if ticket.role),
            reserved_bytes=model.reserved_bytes,
            measured_bytes=model.held_bytes,
            tokens_per_s=model.tokens_per_s,
            queued=len(model.waiting),
        )

    async def _need_tokens(
        self, spec: RoleSpec, model: PooledModel, messages: Sequence[Message], max_tokens: int
    ) -> int | None:
        """The most that prompt and answer come to; None where no tokenizer can tell. Refuses what exceeds the role's
        context, which a worker that is made for all its roles might take."""
        text = "\n".join(message.content for message in messages)
        more_tokens = max_tokens + TEMPLATE_TOKENS + MESSAGE_TOKENS * len(messages)
        size = len(text.encode("utf-8", "replace"))
        if size <= SHORT_BYTES and size + max_tokens <= spec.context_length:
            return size + more_tokens
        prompt_tokens = await anyio.to_thread.run_sync(self._count, model.folder, text, limiter=self._counting)
        counted = model.folder in self._tokenizers
        narrow = spec.context_length < max(each.context_length for each in model.specs)
        if (counted or narrow) and prompt_tokens + max_tokens > spec.context_length:
            raise PromptTooLong(
                "The prompt and its answer exceed the role's context.",
                found=f"{prompt_tokens} tokens of prompt and {max_tokens} for the answer",
                allowed=f"{spec.context_length} tokens together",
                advice="Shorten the text, ask for a shorter answer, or raise the role's context_length.",
            )
        return prompt_tokens + more_tokens if counted else None

    def _count(self, folder: Path, text: str) -> int:
        if folder not in self._tokenizers:
            from tokenizers import Tokenizer

            try:
                self._tokenizers[folder] = Tokenizer.from_file(str(folder / "tokenizer.json"))
            except Exception:  # its only type of error; a load says what is wrong with the file
                return _estimate(text)
        return len(self._tokenizers[folder].encode(text, add_special_tokens=False).ids)

    async def _prepared(self, model: PooledModel) -> str:
        return await anyio.to_thread.run_sync(self._checked, model, abandon_on_cancel=True)

    async def _learned(self, model: PooledModel, loaded: Loaded) -> None:
        name = model.model.partition("+")[0]
        await anyio.to_thread.run_sync(remember, self._home, name, loaded)

    def _checked(self, model: PooledModel) -> str:
        """What a load does before its process starts. A folder that was put there by hand gets a manifest. Blocking."""
        self._count(model.folder, "")
        try:
            if read_manifest(model.folder) is None:
                return write_manifest(model.folder, model.model, "found in place").weights_sha256
            return verify(model.folder, full=False).weights_sha256
        except OSError as error:
            raise corrupt(model.model, str(error)) from None

    def _wants_spare(self) -> bool:
        """A spare is for the next load: pointless where every model on disk is in memory."""
        models = {key_of(spec) for spec in self._staff.profile.roles.values() if "mlx" in spec.engines}
        absent = (model for model in models if not self._in_memory(model))
        return self._settings.host.spare_worker and any(map(self._staff.present, absent))

    async def _heed_metal(self) -> None:
        if limit := await anyio.to_thread.run_sync(working_set_bytes, abandon_on_cancel=True):
            self._pool.limit(limit)


def _filled(request: GenerationRequest, spec: RoleSpec) -> tuple[GenerationRequest, bool, int | None]:
    """The request with what its role sets where it says nothing; whether the model thinks, and at most how much."""
    changes: dict[str, Any] = {
        "timeout_s": request.timeout_s or spec.timeout_s,
        "repetition_penalty": request.repetition_penalty or spec.repetition_penalty,
    }
    budget = spec.thinking_budget if request.thinking_budget is None else request.thinking_budget
    return request.model_copy(update=changes), spec.thinks, budget


def _estimate(text: str) -> int:
    """Tokens of a text whose tokenizer is not there: four bytes each, rounded up."""
    return -(-len(text.encode("utf-8", "replace")) // 4)
