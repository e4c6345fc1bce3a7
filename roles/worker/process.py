"""The parent's handle on one worker process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio
import anyio.abc
import numpy as np
import structlog
from anyio.streams.buffered import BufferedByteReceiveStream
from pydantic import ValidationError

from rolecall.config.errors import RolecallError
from rolecall.roles import errors
from rolecall.roles.contract import Generated, GenerationRequest, OnEvent, Prefilling, Vectors

from . import wire
from .wire import Loaded, WorkerResult, WorkerSpec

__all__ = ["Loaded", "StopOutcome", "Worker", "WorkerResult", "WorkerSpec"]

StopOutcome = Literal["exited", "terminated", "killed"]
OnLoading = Callable[[int, int], None]

START_TIMEOUT_S = 120.0  # imports take 2 to 5 s; a cold disk or a busy machine takes much longer
EXIT_GRACE_S = 4.0
TERMINATE_GRACE_S = 2.0
CANCEL_GRACE_S = 2.0
HUNG_AFTER_S = 60.0  # one step is measured to take under a second, so this is a worker that will not come back

_log = structlog.get_logger(__name__)
_ERRORS: dict[str, type[errors.RoleError]] = {
    kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RoleError)
}


@dataclass(slots=True)
class _Call:
    """One request under way: `done` is set once `outcome` (a message with its data, or an error) is there."""

    on_message: Callable[[wire.FromWorker], None] = lambda _message: None
    done: anyio.Event = field(default_factory=anyio.Event)
    outcome: tuple[wire.FromWorker, bytes] | RolecallError | None = None
    last_heard: float = field(default_factory=anyio.current_time)
    started: bool = False

    def finish(self, outcome: tuple[wire.FromWorker, bytes] | RolecallError) -> None:
        if self.outcome is None:
            self.outcome = outcome
            self.done.set()


class Worker:
    """One process that holds at most one model. For one event loop (asyncio); not for several threads.

    Make it with `start`, give it a model with `load`, end it with `stop`. If the process ends by itself, every
    pending call raises `WorkerDied` at once and `exited` is set. The process ends when its parent does.
    """

    def __init__(self, process: anyio.abc.Process) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._process = process
        self._stdin = process.stdin
        self._stdout = BufferedByteReceiveStream(process.stdout)
        self._ids = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._ready = _Call()
        self._reader: asyncio.Task[None] | None = None
        self._hung = False
        self.spec: WorkerSpec | None = None
        self.measured_bytes = 0
        self.exited = anyio.Event()

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
        # A session of its own: an interrupt at the terminal of the host is the host's to handle.
        pipe = subprocess.PIPE
        process = await anyio.open_process(
            command, stdin=pipe, stdout=pipe, stderr=None, env=_environment(), start_new_session=True
        )
        worker = cls(process)
        worker._reader = asyncio.create_task(worker._read(), name=f"worker {process.pid}")
        try:
            with anyio.fail_after(START_TIMEOUT_S):
                await worker._outcome(worker._ready)
        except TimeoutError:
            await worker.stop()
            raise errors.WorkerDied(
                "A model process did not start.",
                found=f"not ready after {START_TIMEOUT_S:.0f} s",
                advice="The machine may be out of memory or very busy: see `rolecall doctor` and `rolecall logs`.",
            ) from None
        except BaseException:
            await worker.stop()
            raise
        return worker

    async def load(self, spec: WorkerSpec, on_loading: OnLoading | None = None) -> Loaded:
        """Bring the model into memory; `on_loading` is told (done bytes, total bytes). Once per worker.

        After an error the worker holds nothing: stop it. Cancelling leaves it loading: stop it as well.

        Raises:
            ModelCorrupt, ModelRefused, WorkerDied.
        """
        self.spec = spec

        def forward(message: wire.FromWorker) -> None:
            if on_loading and isinstance(message, wire.LoadProgress):
                on_loading(message.done_bytes, message.total_bytes)

        message, _ = await self._call(lambda id: wire.Load(id=id, spec=spec), forward, watch=False)
        assert isinstance(message, wire.LoadDone)
        self.measured_bytes = message.loaded.measured_bytes
        return message.loaded

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

        def forward(message: wire.FromWorker) -> None:
            if on_event is None:
                return
            if isinstance(message, wire.PrefillProgress):
                on_event(Prefilling(message.done_tokens, message.total_tokens))
            elif isinstance(message, wire.Text):
                on_event(Generated(message.text, message.channel, message.tokens))

        message, _ = await self._call(
            lambda id: wire.Generate(id=id, request=request, thinks=thinks, thinking_budget=thinking_budget), forward
        )
        assert isinstance(message, wire.GenerateDone)
        return message.result

    async def embed(self, texts: Sequence[str], alone: bool = False) -> Vectors:
        """Unit-length vectors, shape (len(texts), dimensions), float32, in order; see `RoleModels.embed`.

        Raises:
            WorkerDied.
        """
        message, data = await self._call(lambda id: wire.Embed(id=id, texts=tuple(texts), alone=alone))
        assert isinstance(message, wire.EmbedDone)
        return np.frombuffer(data, dtype=np.float32).reshape(message.rows, message.dimensions)

    async def stop(self) -> StopOutcome:
        """End the process and return how: by itself, on SIGTERM, or on SIGKILL. Pending calls raise `WorkerDied`."""
        outcome: StopOutcome = "exited"
        with anyio.CancelScope(shield=True):
            if self._process.returncode is None:
                with anyio.move_on_after(EXIT_GRACE_S), contextlib.suppress(errors.WorkerDied):
                    await self._send(wire.Stop())
                    await self._process.wait()
            if self._process.returncode is None:
                outcome = "terminated"
                with contextlib.suppress(ProcessLookupError):
                    self._process.terminate()
                with anyio.move_on_after(TERMINATE_GRACE_S):
                    await self._process.wait()
            if self._process.returncode is None:
                outcome = "killed"
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
            await self._process.wait()
            if self._reader:
                await self.exited.wait()
        return outcome

    async def _call(
        self,
        make: Callable[[int], wire.ToWorker],
        on_message: Callable[[wire.FromWorker], None] = lambda _message: None,
        *,
        watch: bool = True,
    ) -> tuple[wire.FromWorker, bytes]:
        id = next(self._ids)
        call = _Call(on_message)
        if self.exited.is_set() or self._process.returncode is not None:
            raise self._death()
        self._calls[id] = call
        try:
            await self._send(make(id))
            return await (self._watched(call) if watch else self._outcome(call))
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(CANCEL_GRACE_S, shield=True), contextlib.suppress(RolecallError):
                await self._send(wire.Cancel(id=id))
                await call.done.wait()
            raise
        finally:
            del self._calls[id]

    async def _outcome(self, call: _Call) -> tuple[wire.FromWorker, bytes]:
        await call.done.wait()
        assert call.outcome is not None
        if isinstance(call.outcome, RolecallError):
            raise call.outcome
        return call.outcome

    async def _watched(self, call: _Call) -> tuple[wire.FromWorker, bytes]:
        """As `_outcome`, but a worker that says nothing for a minute while it works on the call is killed."""
        while not call.done.is_set():
            with anyio.move_on_after(HUNG_AFTER_S):
                await call.done.wait()
            silent_s = anyio.current_time() - call.last_heard
            if call.started and not call.done.is_set() and silent_s >= HUNG_AFTER_S:
                _log.warning("worker_hung", pid=self.pid, silent_s=round(silent_s))
                self._hung = True
                self._process.kill()
                await call.done.wait()
        return await self._outcome(call)

    async def _send(self, message: wire.ToWorker) -> None:
        try:
            await self._stdin.send(wire.encode(message))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise self._death() from None

    async def _read(self) -> None:
        """Deliver what the worker says until its pipe ends, then fail what is pending."""
        try:
            while True:
                body, data = await wire.receive(self._stdout.receive_exactly)
                self._deliver(wire.from_worker.validate_json(body), data)
        except (anyio.IncompleteRead, anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
            pass
        except (ValidationError, MemoryError) as error:
            _log.error("worker_protocol", pid=self.pid, error=type(error).__name__)
        finally:
            with contextlib.suppress(ProcessLookupError):
                if self._process.returncode is None and not await self._ended_within(TERMINATE_GRACE_S):
                    self._process.kill()
            await self._process.wait()
            self.exited.set()
            death = self._death()
            for call in (self._ready, *self._calls.values()):
                call.finish(death)
            await self._process.aclose()

    async def _ended_within(self, seconds: float) -> bool:
        with anyio.move_on_after(seconds):
            await self._process.wait()
        return self._process.returncode is not None

    def _deliver(self, message: wire.FromWorker, data: bytes) -> None:
        if isinstance(message, wire.Memory):
            self.measured_bytes = message.measured_bytes
            return
        if isinstance(message, wire.Ready):
            self._ready.finish((message, data))
            return
        call = self._calls.get(message.id)
        if call is None:  # cancelled and given up on
            return
        call.last_heard = anyio.current_time()
        call.started = True
        match message:
            case wire.Failed():
                call.finish(_error(message.error))
            case wire.Cancelled():
                call.finish(errors.RoleError("The request was cancelled."))
            case wire.LoadDone() | wire.GenerateDone() | wire.EmbedDone():
                call.finish((message, data))
            case _:
                try:
                    call.on_message(message)
                except Exception:
                    _log.exception("event_callback_failed", pid=self.pid)

    def _death(self) -> errors.WorkerDied:
        code = self._process.returncode
        found = f"exit status {code}" if code is not None else "its pipe is closed"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                found = f"signal {-code} ({signal.Signals(-code).name})"
        if self._hung:
            found = f"no sign of life for {HUNG_AFTER_S:.0f} s"
        name = f"of model {self.spec.model!r} " if self.spec else ""
        return errors.WorkerDied(
            f"The process {name}ended (pid {self.pid}).",
            found=found,
            advice="Ask again: the next call starts another. If it happens again, see `rolecall logs` and free memory.",
        )


def _error(data: dict[str, Any]) -> RolecallError:
    kind = _ERRORS.get(str(data.get("code")), errors.RoleError)
    return kind(
        str(data.get("message", "")),
        found=str(data.get("found", "")),
        allowed=str(data.get("allowed", "")),
        advice=str(data.get("advice", "")),
    )


def _environment() -> dict[str, str]:
    """The host's, without credentials a worker has no use for, and with the libraries kept off the network."""
    secrets = ("TOKEN", "SECRET", "PASSWORD", "API_KEY")
    kept = {name: value for name, value in os.environ.items() if not name.upper().endswith(secrets)}
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}
    quiet = {"TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1", "PYTHONUTF8": "1"}
    # OpenMP's threads spin where they wait, which on a shared CPU takes half of the speed from every process
    return {"OMP_WAIT_POLICY": "passive"} | kept | offline | quiet
