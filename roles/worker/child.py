"""The worker process: reads requests from its parent, steps one engine on its main thread, writes what comes out.

Standard input and output are the protocol; whatever a library prints goes to standard error. The process ends as
soon as its parent's pipe does, in the middle of whatever it was doing.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import BinaryIO, Protocol

from rolecall.roles.contract import Loading
from rolecall.roles.errors import ModelCorrupt, RoleError
from rolecall.roles.manifest import check_weights, refuse_code

from . import wire
from .wire import Loaded, WorkerSpec

MEMORY_EVERY_S = 1.0

Send = Callable[[wire.FromWorker], None]
OnLoading = Callable[[int, int], None]


class Engine(Protocol):
    """What the harness drives. `step` does one bounded piece of work: a prefill chunk, a token, a few texts."""

    @property
    def idle(self) -> bool: ...

    def load(self, spec: WorkerSpec, on_loading: OnLoading) -> Loaded: ...

    def submit(self, message: wire.Generate | wire.Embed) -> None: ...

    def cancel(self, id: int) -> None: ...

    def step(self) -> None: ...

    def measured_bytes(self) -> int: ...

    def close(self) -> None: ...


def main() -> None:
    """Serve the parent until it says stop or goes away. The one argument is the kind: `text` or `embedder`."""
    requests, replies = _claim_pipes()
    inbox: queue.SimpleQueue[wire.ToWorker] = queue.SimpleQueue()
    stopping = threading.Event()
    threading.Thread(target=_listen, args=(requests, inbox, stopping), daemon=True).start()

    def send(message: wire.FromWorker) -> None:
        try:
            replies.write(wire.from_worker.dump_json(message) + b"\n")
            replies.flush()
        except OSError:
            os._exit(0)

    engine = _engine(sys.argv[1], send)
    _serve(engine, inbox, stopping, send)
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
    try:
        while (line := requests.readline()).endswith(b"\n"):
            message = wire.to_worker.validate_json(line)
            if isinstance(message, wire.Stop):
                stopping.set()
            inbox.put(message)
    finally:
        os._exit(0)  # the parent is gone, or of another release: nobody wants what is under way


def _engine(kind: str, send: Send) -> Engine:
    if kind == "embedder":
        from .embedder import EmbedderEngine

        return EmbedderEngine(send)
    from .blas import load_fast_blas

    blas = load_fast_blas()  # before anything imports mlx
    from .mlx_text import TextEngine

    return TextEngine(send, blas)


def _serve(engine: Engine, inbox: queue.SimpleQueue[wire.ToWorker], stopping: threading.Event, send: Send) -> None:
    reported_at = 0.0
    while True:
        if time.monotonic() - reported_at >= MEMORY_EVERY_S:
            send(wire.Memory(measured_bytes=engine.measured_bytes()))
            reported_at = time.monotonic()
        try:
            message = inbox.get(block=engine.idle)
        except queue.Empty:
            engine.step()
            continue
        try:
            match message:
                case wire.Stop():
                    return engine.close()
                case wire.Load():
                    if message.spec.kind == "embedder":  # the spare was made for text
                        engine = _engine("embedder", send)
                    _load(engine, message, stopping, send)
                case wire.Cancel():
                    engine.cancel(message.id)
                    send(wire.failed(message.id, RoleError("The request was cancelled.")))
                case _:
                    engine.submit(message)
        except Exception as error:
            send(wire.failed(message.id, error))


def _load(engine: Engine, message: wire.Load, stopping: threading.Event, send: Send) -> None:
    spec = message.spec

    def on_loading(done_bytes: int, total_bytes: int) -> None:
        if stopping.is_set():
            os._exit(0)
        send(wire.News(id=message.id, event=Loading(spec.model, done_bytes, total_bytes)))

    refuse_code(spec.folder, spec.model)
    check_weights(spec.folder, spec.model)
    try:
        loaded = engine.load(spec, on_loading)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelCorrupt(
            f"Model {spec.model!r} could not be loaded from {spec.folder}.",
            found=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            allowed="a model folder that mlx-lm or sentence-transformers can read",
            advice=f"Fetch it again with `rolecall models pull {spec.model}`, or choose another model.",
        ) from error
    send(wire.Done(id=message.id, result=loaded))
