"""The parent's handle on one worker process."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import anyio
import numpy as np
import structlog

from rolecall.config.errors import RolecallError
from rolecall.roles import errors
from rolecall.roles.contract import (
    EngineResult,
    Generated,
    GenerationRequest,
    Loading,
    Message,
    OnEvent,
    Prefilling,
    Vectors,
    tell,
)
from rolecall.roles.lease import PrefillLease

from . import wire
from .wire import Loaded, WorkerSpec

START_TIMEOUT_S = 120.0  # imports take 2 to 5 s; a cold disk or a busy machine takes much longer
EXIT_GRACE_S = 4.0  # for each rung of the ladder that ends a process
PIPE_GRACE_S = 2.0  # between the end of its output and its own
CANCEL_GRACE_S = 2.0
HUNG_AFTER_S = 60.0  # one step is measured to take under a second, so this is a worker that will not come back
LINE_LIMIT_BYTES = 1 << 30

T = TypeVar("T", Loaded, EngineResult, wire.Scored, wire.Encoded)
OnBody = Callable[[Any], None]
_log = structlog.get_logger(__name__)
Outcome = wire.Result | RolecallError


class Worker:
    """One process that holds at most one model. For one event loop (asyncio); not for several threads.

    Make it with `start`, give it a model with `load`, end it with `stop`. If the process ends by itself, every
    pending call raises `WorkerDied` at once and `exited` is set. The process ends when its parent does.

    A model whose spec is `leased` prefills as `lease` lets it (`comes_first`: before others); without one, freely.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._ids = itertools.count(1)
        self._calls: dict[int, tuple[asyncio.Future[Outcome], OnBody | None]] = {}
        self._ready = anyio.Event()
        self._heard_at = 0.0
        self._silent_s = 0.0  # for how long, where it was killed for that
        self.lease: PrefillLease | None = None
        self.comes_first = False
        self.spec: WorkerSpec | None = None
        self.measured_bytes = 0
        self.exited = anyio.Event()
        self._reader = asyncio.create_task(self._read(), name=f"worker {process.pid}")

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def start(cls, spec: WorkerSpec | None = None) -> Worker:
        """A process with its imports done. `spec` only says of which kind (None: text); `load` brings the model.
        Raises WorkerDied: it ended, or was not ready in 120 s."""
        command = [sys.executable, "-P", "-m", "rolecall.roles.worker", spec.kind if spec else "text"]
        # A session of its own: an interrupt at the terminal of the host is the host's to handle.
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, env=_environment(), start_new_session=True, limit=LINE_LIMIT_BYTES
        )
        worker = cls(process)
        try:
            with anyio.move_on_after(START_TIMEOUT_S) as patience:
                await worker._ready.wait()
        except BaseException:  # cancelled, perhaps as it became ready
            await worker.stop()
            raise
        if not worker.measured_bytes:
            await worker.stop()
            worker._silent_s = START_TIMEOUT_S if patience.cancelled_caught else 0.0
            raise worker._death()
        return worker

    async def load(self, spec: WorkerSpec, on_loading: Callable[[int, int], None] | None = None) -> Loaded:
        """Bring the model into memory; `on_loading` is told (done bytes, total bytes). Once per worker.

        After an error the worker holds nothing. Cancelling leaves it loading: stop it. Raises ModelCorrupt,
        ModelRefused, WorkerDied."""
        self.spec = spec
        loaded = await self._call(
            Loaded, spec, on_loading and (lambda event: on_loading(event.done_bytes, event.total_bytes))
        )
        self.measured_bytes = loaded.measured_bytes
        return loaded

    async def generate(
        self,
        request: GenerationRequest,
        thinks: bool = False,
        thinking_budget: int | None = None,
        on_event: OnEvent | None = None,
    ) -> EngineResult:
        """One generation; several run at once, batched, up to the spec's concurrency, the rest in order.

        Cancelling the awaiting task stops the work within a prefill chunk or a token, and then returns. Raises
        PromptTooLong, SchemaRefused, WorkerTimeout (no token within `request.timeout_s`), WorkerDied."""
        return await self._call(EngineResult, wire.Generate(request, thinks, thinking_budget), on_event)

    async def score(self, messages: Sequence[Message], labels: Sequence[str]) -> tuple[float, ...]:
        """Natural log-probability of each label as the answer to `messages`, in order; see `RoleModels.score_labels`.
        Raises PromptTooLong, WorkerDied."""
        longest = max(len(label.encode("utf-8", "replace")) for label in labels)  # no more tokens than bytes
        request = GenerationRequest(messages=tuple(messages), max_tokens=longest)
        return (await self._call(wire.Scored, wire.Generate(request, False, 0, tuple(labels)))).logprobs

    async def encode(self, inputs: Sequence[wire.Input], alone: bool = False, query: bool = False) -> Vectors:
        """Shape (len(inputs), columns), float32, in order: unit-length vectors, see `RoleModels.embed`, or of a
        reranker one score each."""
        done = await self._call(wire.Encoded, wire.Encode(tuple(inputs), alone, query))
        return np.frombuffer(base64.b64decode(done.base64), np.float32).reshape(done.rows, done.columns)

    def grant_prefill(self) -> None:
        """Let it prefill one chunk. Returns at once; a worker that died meanwhile is not told."""
        self._write(wire.ToWorker(0, "grant"))

    def limit_kv(self, kv_bytes: int) -> None:
        """Let KV caches take so much in place of the spec's, from before any later request on; what is kept of earlier
        ones goes at once where it is more. Returns at once, as `grant_prefill`."""
        self._write(wire.ToWorker(0, wire.Limit(kv_bytes)))

    async def stop(self) -> Literal["exited", "terminated", "killed"]:
        """End the process; pending calls raise `WorkerDied`. Returns what it took: the end of its input, on which it
        finishes its step and frees the device; SIGTERM; or SIGKILL, after which macOS may keep wired memory."""
        assert self._process.stdin is not None
        with anyio.CancelScope(shield=True):
            self._process.stdin.close()
            if await self._ends_in(EXIT_GRACE_S):
                return "exited"
            self._signal(signal.SIGTERM)  # its default action ends a process whose interpreter hangs, too
            if await self._ends_in(EXIT_GRACE_S):
                outcome: Literal["terminated", "killed"] = "terminated"
            else:
                outcome = "killed"
                self._signal(signal.SIGKILL)
                await self.exited.wait()
        _log.warning("worker_would_not_exit", pid=self.pid, outcome=outcome)
        return outcome

    async def _ends_in(self, grace_s: float) -> bool:
        with anyio.move_on_after(grace_s):
            await self.exited.wait()
        return self.exited.is_set()

    async def _call(self, kind: type[T], body: wire.Request, on_event: OnBody | None = None) -> T:
        if self.exited.is_set():
            raise self._death()
        id, done, asked_at = next(self._ids), asyncio.get_running_loop().create_future(), anyio.current_time()
        self._calls[id] = done, on_event
        try:
            self._write(wire.ToWorker(id, body))
            while not done.done():
                await asyncio.wait([done], timeout=HUNG_AFTER_S)
                # a worker at work reports its memory every second, save in a load, where a slow disk may be silent
                silent_s = anyio.current_time() - max(asked_at, self._heard_at)
                if kind is not Loaded and silent_s >= HUNG_AFTER_S and not done.done():
                    _log.warning("worker_hung", pid=self.pid, silent_s=round(silent_s))
                    self._silent_s = silent_s
                    await self.stop()
        except asyncio.CancelledError:
            if kind is not Loaded:
                self._write(wire.ToWorker(id, None))
                with anyio.move_on_after(CANCEL_GRACE_S, shield=True):
                    await asyncio.wait([done])
            raise
        finally:
            del self._calls[id]
        outcome = done.result()
        if isinstance(outcome, RolecallError):
            raise outcome
        assert isinstance(outcome, kind)
        return outcome

    def _write(self, message: wire.ToWorker) -> None:
        """Say it after all that was said before. A dead worker is not told: its calls fail by themselves."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(wire.to_worker.dump_json(message) + b"\n")
        except ValueError as error:
            raise errors.RoleError(
                "The request cannot be given to a model.",
                found=str(error)[:200],
                allowed="Unicode text (no half surrogate pairs), and a schema that is not too deep",
            ) from None

    async def _read(self) -> None:
        """Deliver what the worker says until its pipe ends, then fail what is pending."""
        assert self._process.stdout is not None
        try:
            while (line := await self._process.stdout.readline()).endswith(b"\n"):
                self._deliver(wire.from_worker.validate_json(line))
        except (OSError, ValueError) as error:  # the second of a line over the limit, too
            _log.error("worker_protocol", pid=self.pid, error=type(error).__name__)
        finally:
            with anyio.move_on_after(PIPE_GRACE_S):
                await self._process.wait()
            self._signal(signal.SIGKILL)
            await self._process.wait()
            self.exited.set()
            self._ready.set()
            if self.lease:
                self.lease.leave(self)
            for id in self._calls:
                self._finish(id, self._death())
            if self._process.stdin:
                self._process.stdin.close()

    def _deliver(self, message: wire.FromWorker) -> None:
        self._heard_at = anyio.current_time()
        match message.body:
            case int(measured_bytes):
                self.measured_bytes = measured_bytes
                self._ready.set()
            case "want" if self.lease:
                self.lease.want(self, self.comes_first)
            case "want":
                self.grant_prefill()
            case "done":
                if self.lease:
                    self.lease.leave(self)
            case wire.Failure(error):
                self._finish(message.id, errors.from_dict(error))
            case Loading() | Prefilling() | Generated() as event:
                tell(self._calls.get(message.id, (None, None))[1], event)
            case result:
                self._finish(message.id, result)

    def _finish(self, id: int, outcome: Outcome) -> None:
        done, _ = self._calls.get(id, (None, None))
        if done and not done.done():  # else it was cancelled and given up on
            done.set_result(outcome)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def _death(self) -> errors.WorkerDied:
        code = self._process.returncode
        found = f"exit status {code}"
        if code is not None and code < 0:
            found = f"signal {-code} ({signal.strsignal(-code)})"
        if self._silent_s:
            found = f"no sign of life for {self._silent_s:.0f} s"
        name = f"of model {self.spec.model!r} " if self.spec else ""
        return errors.WorkerDied(
            f"The process {name}ended (pid {self.pid}).",
            found=found,
            advice="Ask again: the next call starts another. If it happens again, see `rolecall logs` and free memory.",
        )


def _environment() -> dict[str, str]:
    """The host's, without credentials a worker has no use for, and with the libraries kept off the network."""
    secrets = ("TOKEN", "SECRET", "PASSWORD", "KEY")
    kept = {name: value for name, value in os.environ.items() if not name.upper().endswith(secrets)}
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}
    quiet = {"TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1", "PYTHONUTF8": "1"}
    # OpenMP's threads spin where they wait, which on a shared CPU takes half of the speed from every process
    return {"OMP_WAIT_POLICY": "passive"} | kept | offline | quiet
