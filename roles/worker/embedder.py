"""The sentence embedder: sentence-transformers on the CPU, or on Metal where there is one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from . import wire
from .child import failure
from .wire import Loaded, WorkerSpec

CPU_TEXTS_PER_STEP = 8  # about half a second at 256 tokens on two cores: how long another request waits
GPU_TEXTS_PER_STEP = 32


@dataclass(slots=True)
class _Job:
    """`order` holds the texts' positions by length, so that a batch has little padding; `done` counts along it."""

    id: int
    texts: tuple[str, ...]
    alone: bool
    order: list[int]
    vectors: Any
    done: int = 0


class EmbedderEngine:
    """Embeds a few texts per step, in turns between requests, those that are `alone` (decisions) first."""

    def __init__(self, send: Callable[[wire.FromWorker, bytes], None]) -> None:
        self._send = send
        self._jobs: deque[_Job] = deque()
        self._model: Any = None
        self._dimensions = 0
        import torch  # the slow import, before the parent is told that this process is ready
        from sentence_transformers import SentenceTransformer

        self._torch, self._loader = torch, SentenceTransformer
        self._threads = torch.get_num_threads()

    def load(self, spec: WorkerSpec, on_loading: Callable[[int, int], None]) -> Loaded:
        from rolecall.roles.manifest import weights_bytes

        started = time.monotonic()
        total = weights_bytes(spec.folder)
        on_loading(0, total)
        device = "mps" if self._torch.backends.mps.is_available() else "cpu"
        self._step_texts = CPU_TEXTS_PER_STEP if device == "cpu" else GPU_TEXTS_PER_STEP
        self._model = self._loader(str(spec.folder), device=device, trust_remote_code=False, local_files_only=True)
        self._model.max_seq_length = min(spec.context_length, self._model.max_seq_length or spec.context_length)
        self._dimensions = int(self._encode(["ready"], alone=True).shape[1])
        on_loading(total, total)
        return Loaded(
            weights_bytes=total,
            measured_bytes=self.measured_bytes(),
            kv_bytes_per_token=0,
            fixed_state_bytes=0,
            prefill_step=0,
            prefill_tokens_per_s=0.0,
            decode_tokens_per_s=0.0,
            load_s=time.monotonic() - started,
            blas="metal" if device == "mps" else "torch",
            dimensions=self._dimensions,
        )

    def submit(self, message: wire.Generate | wire.Embed) -> None:
        assert isinstance(message, wire.Embed) and self._model is not None
        texts = message.texts
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors = np.zeros((len(texts), self._dimensions), dtype=np.float32)
        job = _Job(message.id, texts, message.alone, order, vectors)
        if message.alone:
            self._jobs.appendleft(job)
        else:
            self._jobs.append(job)

    def cancel(self, id: int) -> None:
        self._jobs = deque(job for job in self._jobs if job.id != id)

    @property
    def idle(self) -> bool:
        return not self._jobs

    def step(self) -> None:
        job = self._jobs.popleft()
        now = job.order[job.done : job.done + self._step_texts]
        try:
            if now:
                job.vectors[now] = self._encode([job.texts[i] for i in now], job.alone)
        except Exception as error:
            self._send(wire.Failed(id=job.id, error=failure(error).to_dict()), b"")
            return
        job.done += len(now)
        if job.done < len(job.texts):
            self._jobs.append(job)
            return
        rows, dimensions = job.vectors.shape
        self._send(wire.EmbedDone(id=job.id, rows=rows, dimensions=dimensions), job.vectors.tobytes())

    def _encode(self, texts: list[str], alone: bool) -> Any:
        """Shape (n, dimensions). `alone`: one text per pass on one thread, since both a batch and a thread count
        change the last bits of a vector, and decisions are made from these."""
        self._torch.set_num_threads(1 if alone else self._threads)
        return self._model.encode(
            texts,
            batch_size=1 if alone else self._step_texts,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        ).astype(np.float32)

    def measured_bytes(self) -> int:
        return int(psutil.Process().memory_info().rss)

    def close(self) -> None:
        self._jobs.clear()
