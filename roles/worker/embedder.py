"""The sentence embedder: sentence-transformers on the CPU, or on Metal where there is one."""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from sentence_transformers import SentenceTransformer

from rolecall.roles.manifest import weights_bytes

from . import wire
from .wire import Embedded, Loaded, WorkerSpec

CPU_TEXTS_PER_STEP = 8  # about half a second at 256 tokens on two cores: how long another request waits
GPU_TEXTS_PER_STEP = 32


@dataclass(slots=True)
class _Job:
    """`left` holds the positions of texts to do, by length, so that a batch has little padding."""

    id: int
    message: wire.Embed
    left: list[int]
    vectors: Any


class EmbedderEngine:
    """Embeds a few texts per step, in turns between requests, those that are `alone` (decisions) first."""

    def __init__(self, send: Callable[[int, wire.Body], None]) -> None:
        self._send = send
        self._jobs: deque[_Job] = deque()
        self._model: Any = None
        self._dimensions = 0
        self._threads = torch.get_num_threads()
        self.progress = 0  # counts steps

    def load(self, spec: WorkerSpec, on_loading: Callable[[int, int], None]) -> Loaded:
        total = weights_bytes(spec.folder)
        on_loading(0, total)
        device = "mps" if torch.backends.mps.is_available() else "cpu"
        self._step_texts = CPU_TEXTS_PER_STEP if device == "cpu" else GPU_TEXTS_PER_STEP
        self._model = SentenceTransformer(
            str(spec.folder), device=device, trust_remote_code=False, local_files_only=True
        )
        self._model.max_seq_length = min(spec.context_length, self._model.max_seq_length or spec.context_length)
        self._dimensions = int(self._encode(["ready"], alone=True).shape[1])
        on_loading(total, total)
        return Loaded(weights_bytes=total, measured_bytes=self.measured_bytes())

    def submit(self, id: int, message: wire.Generate | wire.Score | wire.Embed) -> None:
        assert isinstance(message, wire.Embed) and self._model is not None
        by_length = sorted(range(len(message.texts)), key=lambda i: len(message.texts[i]))
        job = _Job(id, message, by_length, np.zeros((len(by_length), self._dimensions), np.float32))
        if message.alone:
            self._jobs.appendleft(job)
        else:
            self._jobs.append(job)

    def cancel(self, id: int) -> None:
        self._jobs = deque(job for job in self._jobs if job.id != id)

    def grant(self) -> None:
        """It asks for none."""

    def limit(self, kv_bytes: int) -> None:
        """It has no KV cache."""

    @property
    def patience_s(self) -> float | None:
        """How long a message may be waited for before the next step is due; None: for ever."""
        return 0.0 if self._jobs else None

    def step(self) -> None:
        self.progress += 1
        job = self._jobs.popleft()
        now, job.left = job.left[: self._step_texts], job.left[self._step_texts :]
        try:
            if now:
                job.vectors[now] = self._encode([job.message.texts[i] for i in now], job.message.alone)
        except Exception as error:
            self._send(job.id, wire.failure(error))
            return
        if job.left:
            self._jobs.append(job)
            return
        data = base64.b64encode(job.vectors.tobytes()).decode()
        self._send(job.id, Embedded(len(job.vectors), self._dimensions, data))

    def _encode(self, texts: list[str], alone: bool) -> Any:
        """Shape (n, dimensions). `alone`: one text per pass on one thread, since both a batch and a thread count
        change the last bits of a vector, and decisions are made from these."""
        torch.set_num_threads(1 if alone else self._threads)
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
        """There is nothing to give back."""
