"""The worker process: reads requests from its parent, steps one engine on its main thread, writes what comes out.

Standard input and output are the protocol; whatever a library prints goes to standard error. The process ends as
soon as its parent's pipe does, in the middle of whatever it was doing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import BinaryIO, Protocol

from rolecall.config.errors import RolecallError
from rolecall.roles.errors import ModelCorrupt, RoleError

from . import wire
from .wire import Loaded, WorkerSpec

MEMORY_EVERY_S = 1.0

Send = Callable[[wire.FromWorker, bytes], None]


class Stopping(Exception):
    """The parent asked the worker to end while it was loading."""


class Engine(Protocol):
    """What the harness drives. `step` does one bounded piece of work: a prefill chunk, a token, a few texts."""

    def load(self, spec: WorkerSpec, on_loading: Callable[[int, int], None]) -> Loaded: ...

    def submit(self, message: wire.Generate | wire.Embed) -> None: ...

    def cancel(self, id: int) -> None: ...

    @property
    def idle(self) -> bool: ...

    def step(self) -> None: ...

    def measured_bytes(self) -> int: ...

    def close(self) -> None: ...


def main() -> None:
    """Serve the parent until it says stop or goes away. The one argument is the kind: `text` or `embedder`."""
    requests, replies = _claim_pipes()
    inbox: queue.SimpleQueue[wire.ToWorker] = queue.SimpleQueue()
    stopping = threading.Event()
    threading.Thread(target=_listen, args=(requests, inbox, stopping), daemon=True).start()

    def send(message: wire.FromWorker, data: bytes = b"") -> None:
        try:
            replies.write(wire.encode(message, data))
            replies.flush()
        except OSError:
            os._exit(0)

    engine = _engine(sys.argv[1], send)
    send(wire.Ready())
    with contextlib.suppress(Stopping):
        engine = _serve(engine, inbox, stopping, send)
    engine.close()
    os._exit(0)  # libraries' exit handlers have nothing to save and have been seen to hang


def _claim_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The protocol's two pipes as private descriptors; 0 becomes /dev/null and 1 standard error."""
    requests, replies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return os.fdopen(requests, "rb"), os.fdopen(replies, "wb")


def _listen(requests: BinaryIO, inbox: queue.SimpleQueue[wire.ToWorker], stopping: threading.Event) -> None:
    while (body := wire.receive_blocking(requests.read)) is not None:
        message = wire.to_worker.validate_json(body)
        if isinstance(message, wire.Stop):
            stopping.set()
        inbox.put(message)
    os._exit(0)  # the parent is gone: nobody wants what is under way


def _engine(kind: str, send: Send) -> Engine:
    if kind == "embedder":
        from .embedder import EmbedderEngine

        return EmbedderEngine(send)
    from .blas import load_fast_blas

    blas = load_fast_blas()  # before anything imports mlx
    from .mlx_text import TextEngine

    return TextEngine(send, blas)


def _serve(engine: Engine, inbox: queue.SimpleQueue[wire.ToWorker], stopping: threading.Event, send: Send) -> Engine:
    reported_at = 0.0
    while True:
        message = _next(inbox, wait=engine.idle)
        match message:
            case wire.Stop():
                return engine
            case wire.Load():
                engine = _loaded(engine, message, stopping, send)
            case wire.Generate() | wire.Embed():
                _answering(message.id, send, functools.partial(engine.submit, message))
            case wire.Cancel():
                engine.cancel(message.id)
                send(wire.Cancelled(id=message.id), b"")
            case None:
                engine.step()
        if time.monotonic() - reported_at >= MEMORY_EVERY_S:
            send(wire.Memory(measured_bytes=engine.measured_bytes()), b"")
            reported_at = time.monotonic()


def _next(inbox: queue.SimpleQueue[wire.ToWorker], *, wait: bool) -> wire.ToWorker | None:
    try:
        return inbox.get(block=wait)
    except queue.Empty:
        return None


def _loaded(engine: Engine, message: wire.Load, stopping: threading.Event, send: Send) -> Engine:
    """Load into `engine`, or into one of the other kind where the spare was made for text."""
    from rolecall.roles.manifest import check_weights, refuse_code

    def on_loading(done_bytes: int, total_bytes: int) -> None:
        if stopping.is_set():
            raise Stopping
        send(wire.LoadProgress(id=message.id, done_bytes=done_bytes, total_bytes=total_bytes), b"")

    def load() -> None:
        nonlocal engine
        refuse_code(message.spec.folder, message.spec.model)
        check_weights(message.spec.folder, message.spec.model)
        if message.spec.kind == "embedder":
            engine = _engine("embedder", send)
        try:
            loaded = engine.load(message.spec, on_loading)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ModelCorrupt(
                f"Model {message.spec.model!r} could not be loaded from {message.spec.folder}.",
                found=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
                allowed="a model folder that mlx-lm or sentence-transformers can read",
                advice=f"Fetch it again with `rolecall models pull {message.spec.model}`, or choose another model.",
            ) from error
        send(wire.LoadDone(id=message.id, loaded=loaded), b"")

    _answering(message.id, send, load)
    return engine


def _answering(id: int, send: Send, action: Callable[[], None]) -> None:
    """Run `action`; a failure is the answer to request `id`."""
    try:
        action()
    except Stopping:
        raise
    except Exception as error:
        send(wire.Failed(id=id, error=failure(error).to_dict()), b"")


def failure(error: Exception) -> RolecallError:
    """The error as the parent gets it; of an unforeseen one type and place only: its text may hold a document's."""
    if isinstance(error, RolecallError):
        return error
    trace, last = error.__traceback__, None
    while trace:
        last, trace = trace, trace.tb_next
    place = f" at {last.tb_frame.f_code.co_filename.rsplit('/', 2)[-1]}:{last.tb_lineno}" if last else ""
    return RoleError(
        "The model process failed on this request.",
        found=f"{type(error).__name__}{place}",
        advice="Ask again; if it happens again, report it with the output of `rolecall doctor --json`.",
    )
