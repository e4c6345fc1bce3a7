"""The parent's handle on one worker process."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
import anyio.abc
import numpy as np
import structlog
from anyio.streams.buffered import BufferedByteReceiveStream

from rolecall.config.errors import RolecallError
from rolecall.roles import errors
from rolecall.roles.contract import GenerationRequest, Loading, OnEvent, Vectors

from . import wire
from .wire import Loaded, WorkerResult, WorkerSpec

__all__ = ["Loaded", "Worker", "WorkerResult", "WorkerSpec"]

START_TIMEOUT_S = 120.0  # imports take 2 to 5 s; a cold disk or a busy machine takes much longer
EXIT_GRACE_S = 4.0
TERMINATE_GRACE_S = 2.0
CANCEL_GRACE_S = 2.0
HUNG_AFTER_S = 60.0  # one step is measured to take under a second, so this is a worker that will not come back
LINE_LIMIT_BYTES = 1 << 30

T = TypeVar("T", Loaded, WorkerResult, wire.Embedded)
_log = structlog.get_logger(__name__)
_ERRORS = {kind.code: kind for kind in errors.RoleError.__subclasses__()}


@dataclass(slots=True)
class _Call:
    """One request under way: `done` is set once `outcome` is there."""

    on_event: Callable[[Any], None] | None
    done: anyio.Event = field(default_factory=anyio.Event)
    outcome: Loaded | WorkerResult | wire.Embedded | RolecallError | None = None

    def finish(self, outcome: Loaded | WorkerResult | wire.Embedded | RolecallError) -> None:
        if self.outcome is None:
            self.outcome = outcome
            self.done.set()


class Worker:
    """One process that holds at most one model. For one event loop (asyncio); not for several threads.

    Make it with `start`, give it a model with `load`, end it with `stop`. If the process ends by itself, every
    pending call raises `WorkerDied` at once and `exited` is set. The process ends when its parent does.
    """

    def __init__(self, process: anyio.abc.Process) -> None:
        self._process = process
        self._ids = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._ready = anyio.Event()
        self._heard_at = 0.0
        self._hung = False
        self.spec: WorkerSpec | None = None
        self.measured_bytes = 0
        self.exited = anyio.Event()
        self._reader = asyncio.create_task(self._read(), name=f"worker {process.pid}")

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def start(cls, spec: WorkerSpec | None = None) -> Worker:
        """A process with its imports done. `spec` only says which imports (None: text); `load` brings the model.

        Raises:
            WorkerDied: it ended, or was not ready in 120 s.
        """
        command = [sys.executable, "-P", "-m", "rolecall.roles.worker", spec.kind if spec else "text"]
        pipe = subprocess.PIPE
        # A session of its own: an interrupt at the terminal of the host is the host's to handle.
        worker = cls(
            await anyio.open_process(
                command, stdin=pipe, stdout=pipe, stderr=None, env=_environment(), start_new_session=True
            )
        )
        try:
            with anyio.move_on_after(START_TIMEOUT_S):
                await worker._ready.wait()
            if worker.exited.is_set():
                raise worker._death()
            if not worker._ready.is_set():
                raise errors.WorkerDied(
                    "A model process did not start.",
                    found=f"not ready after {START_TIMEOUT_S:.0f} s",
                    advice="The machine may be out of memory or very busy: see `rolecall doctor` and `rolecall logs`.",
                )
        except BaseException:
            await worker.stop()
            raise
        return worker

    async def load(self, spec: WorkerSpec, on_loading: Callable[[int, int], None] | None = None) -> Loaded:
        """Bring the model into memory; `on_loading` is told (done bytes, total bytes). Once per worker.

        After an error the worker holds nothing. Cancelling leaves it loading: stop it.

        Raises:
            ModelCorrupt, ModelRefused, WorkerDied.
        """
        self.spec = spec

        def forward(event: Loading) -> None:
            if on_loading:
                on_loading(event.done_bytes, event.total_bytes)

        loaded = await self._call(Loaded, lambda id: wire.Load(id=id, spec=spec), forward)
        self.measured_bytes = loaded.measured_bytes
        return loaded

    async def generate(
        self,
        request: GenerationRequest,
        thinks: bool = False,
        thinking_budget: int | None = None,
        on_event: OnEvent | None = None,
    ) -> WorkerResult:
        """One generation; several run at once, batched, up to the spec's concurrency, the rest in order.

        Cancelling the awaiting task stops the work within a prefill chunk or a token, and then returns.

        Raises:
            PromptTooLong, SchemaRefused, WorkerTimeout (no token within `request.timeout_s`), WorkerDied.
        """
        return await self._call(
            WorkerResult,
            lambda id: wire.Generate(id=id, request=request, thinks=thinks, thinking_budget=thinking_budget),
            on_event,
        )

    async def embed(self, texts: Sequence[str], alone: bool = False) -> Vectors:
        """Unit-length vectors, shape (len(texts), dimensions), float32, in order; see `RoleModels.embed`.

        Raises:
            WorkerDied.
        """
        done = await self._call(wire.Embedded, lambda id: wire.Embed(id=id, texts=tuple(texts), alone=alone))
        return np.frombuffer(base64.b64decode(done.base64), np.float32).reshape(done.rows, done.dimensions)

    async def stop(self) -> str:
        """End the process; pending calls raise `WorkerDied`. Returns `exited` (by itself), `terminated` or `killed`."""
        outcome = "exited"
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(EXIT_GRACE_S), contextlib.suppress(errors.WorkerDied):
                await self._send(wire.Stop())
                await self._process.wait()
            for next_outcome, number in (("terminated", signal.SIGTERM), ("killed", signal.SIGKILL)):
                if self._process.returncode is None:
                    outcome = next_outcome
                    self._signal(number)
                    with anyio.move_on_after(TERMINATE_GRACE_S):
                        await self._process.wait()
            await self.exited.wait()
        return outcome

    async def _call(
        self, kind: type[T], make: Callable[[int], wire.ToWorker], on_event: Callable[[Any], None] | None = None
    ) -> T:
        id, call, asked_at = next(self._ids), _Call(on_event), anyio.current_time()
        if self.exited.is_set():
            raise self._death()
        self._calls[id] = call
        try:
            await self._send(make(id))
            while not call.done.is_set():
                with anyio.move_on_after(HUNG_AFTER_S):
                    await call.done.wait()
                # a worker at work reports its memory every second, save in a load, where a slow disk may be silent
                silent_s = anyio.current_time() - max(asked_at, self._heard_at)
                if kind is not Loaded and silent_s >= HUNG_AFTER_S and not call.done.is_set():
                    _log.warning("worker_hung", pid=self.pid, silent_s=round(silent_s))
                    self._hung = True
                    self._signal(signal.SIGKILL)
        except anyio.get_cancelled_exc_class():
            if kind is not Loaded:
                with anyio.move_on_after(CANCEL_GRACE_S, shield=True), contextlib.suppress(RolecallError):
                    await self._send(wire.Cancel(id=id))
                    await call.done.wait()
            raise
        finally:
            del self._calls[id]
        if isinstance(call.outcome, RolecallError):
            raise call.outcome
        assert isinstance(call.outcome, kind)
        return call.outcome

    async def _send(self, message: wire.ToWorker) -> None:
        line = wire.request_line(message)
        try:
            assert self._process.stdin is not None
            await self._process.stdin.send(line)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            await self.exited.wait()
            raise self._death() from None

    async def _read(self) -> None:
        """Deliver what the worker says until its pipe ends, then fail what is pending."""
        assert self._process.stdout is not None
        stdout = BufferedByteReceiveStream(self._process.stdout)
        try:
            while True:
                line = await stdout.receive_until(b"\n", LINE_LIMIT_BYTES)
                self._deliver(wire.from_worker.validate_json(line))
        except (anyio.IncompleteRead, anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
            pass
        except (ValueError, anyio.DelimiterNotFound) as error:
            _log.error("worker_protocol", pid=self.pid, error=type(error).__name__)
        finally:
            with anyio.move_on_after(TERMINATE_GRACE_S):
                await self._process.wait()
            if self._process.returncode is None:
                self._signal(signal.SIGKILL)
            await self._process.wait()
            self.exited.set()
            self._ready.set()
            for call in self._calls.values():
                call.finish(self._death())
            await self._process.aclose()

    def _deliver(self, message: wire.FromWorker) -> None:
        self._heard_at = anyio.current_time()
        if isinstance(message, wire.Memory):
            self.measured_bytes = message.measured_bytes
            self._ready.set()
        elif call := self._calls.get(message.id):  # else it was cancelled and given up on
            match message:
                case wire.Done():
                    call.finish(message.result)
                case wire.Failed():
                    fields = dict(message.error)
                    call.finish(_ERRORS.get(fields.pop("code"), errors.RoleError)(**fields))
                case wire.News() if call.on_event:
                    try:
                        call.on_event(message.event)
                    except Exception:
                        _log.exception("event_callback_failed", pid=self.pid)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def _death(self) -> errors.WorkerDied:
        code = self._process.returncode
        found = f"exit status {code}"
        if code is not None and code < 0:
            found = f"signal {-code} ({signal.strsignal(-code)})"
        if self._hung:
            found = f"no sign of life for {HUNG_AFTER_S:.0f} s"
        name = f"of model {self.spec.model!r} " if self.spec else ""
        return errors.WorkerDied(
            f"The process {name}ended (pid {self.pid}).",
            found=found,
            advice="Ask again: the next call starts another. If it happens again, see `rolecall logs` and free memory.",
        )


def _environment() -> dict[str, str]:
    """The host's, without credentials a worker has no use for, and with the libraries kept off the network."""
    secrets = ("TOKEN", "SECRET", "PASSWORD", "API_KEY")
    kept = {name: value for name, value in os.environ.items() if not name.upper().endswith(secrets)}
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}
    quiet = {"TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1", "PYTHONUTF8": "1"}
    # OpenMP's threads spin where they wait, which on a shared CPU takes half of the speed from every process
    return {"OMP_WAIT_POLICY": "passive"} | kept | offline | quiet
