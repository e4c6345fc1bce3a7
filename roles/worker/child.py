"""The worker process: reads requests from its parent, steps one engine on its main thread, writes what comes out.

Standard input and output are the protocol; whatever a library prints goes to standard error. The process ends when
its parent's pipe does: after the step it is in, or after 1 s wherever it is.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO

from rolecall.roles.contract import Loading
from rolecall.roles.errors import ModelCorrupt, RoleError
from rolecall.roles.manifest import check_weights, refuse_code

from . import wire
from .wire import WorkerSpec

if TYPE_CHECKING:
    from .encoder import EncoderEngine
    from .mlx_text import TextEngine

MEMORY_EVERY_S = 1.0
EXIT_GRACE_S = 1.0

Send = Callable[[int, wire.Body], None]
Inbox = queue.SimpleQueue["wire.ToWorker | None"]


def main() -> None:
    """Serve the parent until it says stop or goes away. The one argument is the `wire.Kind`."""
    requests, replies = _claim_pipes()
    inbox: Inbox = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, inbox), daemon=True).start()

    def send(id: int, body: wire.Body) -> None:
        try:
            replies.write(wire.from_worker.dump_json(wire.FromWorker(id, body)) + b"\n")
            replies.flush()
        except OSError:
            os._exit(0)

    engine = _engine(sys.argv[1], send)
    _serve(engine, inbox, send)
    os._exit(0)  # libraries' exit handlers have nothing to save and have been seen to hang


def _claim_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The protocol's two pipes as private descriptors; 0 becomes /dev/null and 1 standard error."""
    requests, replies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return os.fdopen(requests, "rb"), os.fdopen(replies, "wb")


def _listen(requests: BinaryIO, inbox: Inbox) -> None:
    try:
        while (line := requests.readline()).endswith(b"\n"):
            inbox.put(wire.to_worker.validate_json(line))
    finally:  # the parent wants no more, is gone, or speaks another release's language
        inbox.put(None)
        time.sleep(EXIT_GRACE_S)
        os._exit(0)


def _engine(kind: str, send: Send) -> TextEngine | EncoderEngine:
    if kind != "text":
        # sentence-transformers imports it for evaluations: two seconds and 40 MB that an encoder has no use for
        sys.modules["sklearn.metrics"] = unused = ModuleType("sklearn.metrics")
        unused.__getattr__ = lambda _: None  # type: ignore[method-assign]
        from .encoder import EncoderEngine

        return EncoderEngine(send)
    from .blas import load_fast_blas

    load_fast_blas()  # before anything imports mlx
    # transformers imports torch where it finds it: 135 MB and half a second that a tokenizer has no use for
    sys.modules["torch"] = None  # type: ignore[assignment]
    from .mlx_text import TextEngine

    return TextEngine(send)


def _serve(engine: TextEngine | EncoderEngine, inbox: Inbox, send: Send) -> None:
    reported_at, reported_progress = 0.0, -1
    while True:
        patience_s = engine.patience_s
        gets_on = patience_s != 0.0 or engine.progress != reported_progress
        if gets_on and time.monotonic() - reported_at >= MEMORY_EVERY_S:  # silence is how the parent sees it hang
            send(0, engine.measured_bytes())
            reported_at, reported_progress = time.monotonic(), engine.progress
        try:
            message = inbox.get(block=patience_s != 0.0, timeout=patience_s)
        except queue.Empty:
            engine.step()
            continue
        if message is None:
            return engine.close()
        try:
            match message.body:
                case WorkerSpec() as spec:
                    _load(engine, message.id, spec, send)
                case None:
                    engine.cancel(message.id)
                    send(message.id, wire.failure(RoleError("The request was cancelled.")))
                case "grant":
                    engine.grant()
                case wire.Limit(kv_bytes):
                    engine.limit(kv_bytes)
                case body:
                    engine.submit(message.id, body)
        except Exception as error:
            send(message.id, wire.failure(error))


def _load(engine: TextEngine | EncoderEngine, id: int, spec: WorkerSpec, send: Send) -> None:
    def on_loading(done_bytes: int, total_bytes: int) -> None:
        send(id, Loading(spec.model, done_bytes, total_bytes))

    for folder in (spec.folder, *([spec.adapter] if spec.adapter else ())):
        refuse_code(folder, spec.model)
        check_weights(folder, spec.model)
    try:
        send(id, engine.load(spec, on_loading))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelCorrupt(
            f"Model {spec.model!r} could not be loaded from {spec.folder}.",
            found=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            allowed="a model folder that mlx-lm or sentence-transformers can read",
            advice=f"Fetch it again with `rolecall models pull {spec.model}`, or choose another model.",
        ) from error
