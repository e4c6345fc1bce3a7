"""The embedder and the reranker: sentence-transformers on the CPU, or on Metal where there is one."""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.util import batch_to_device

from rolecall.roles.manifest import weights_bytes

from . import wire
from .wire import Encode, Encoded, Input, Loaded, WorkerSpec

CPU_STEP_TOKENS = 512  # a quarter of a second of MiniLM on two cores: how long another request waits; more is no faster
GPU_STEP_TOKENS = 8192
STEP_INPUTS = 32
BYTES_PER_TOKEN = 4
QUERY_PROMPTS = ("query", "web_search_query")  # Source: sentence-transformers' encode_query; harrier's own name
DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # Source: sentence-transformers' encode_document


@dataclass(slots=True)
class _Job:
    """`left` holds (about so many tokens, position) of the inputs to do, the longest first, so that a batch has little
    padding."""

    id: int
    message: Encode
    left: list[tuple[int, int]]
    rows: Any


class EncoderEngine:
    """Encodes a few inputs per step, in turns between requests, those that are `alone` (decisions) first."""

    def __init__(self, send: Callable[[int, wire.Body], None]) -> None:
        self._send = send
        self._jobs: deque[_Job] = deque()
        self._model: Any = None
        self._width = 0
        self._threads = torch.get_num_threads()
        self.progress = 0  # counts steps

    def load(self, spec: WorkerSpec, on_loading: Callable[[int, int], None]) -> Loaded:
        total = weights_bytes(spec.folder)
        on_loading(0, total)
        self._device = "mps" if torch.backends.mps.is_available() else "cpu"
        self._step_tokens = CPU_STEP_TOKENS if self._device == "cpu" else GPU_STEP_TOKENS
        self._reranks = spec.kind == "reranker"
        self._model = model = (CrossEncoder if self._reranks else SentenceTransformer)(
            str(spec.folder),
            device=self._device,
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True},
        ).eval()
        model.max_seq_length = min(spec.context_length, model.max_seq_length or spec.context_length)
        ready = Encode((("ready", "ready") if self._reranks else "ready",), alone=True)
        self._width = self._encode(ready, ready.inputs).shape[1]
        if self._reranks and self._width != 1:
            raise ValueError(f"{self._width} scores for a pair, where a reranker gives one")
        on_loading(total, total)
        return Loaded(weights_bytes=total, measured_bytes=self.measured_bytes())

    def submit(self, id: int, message: wire.Generate | Encode) -> None:
        assert isinstance(message, Encode) and self._model is not None
        left = sorted(((self._tokens(input), at) for at, input in enumerate(message.inputs)), reverse=True)
        job = _Job(id, message, left, np.zeros((len(left), self._width), np.float32))
        if message.alone or message.query:
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
        longest = job.left[0][0] if job.left else 1
        count = 1 if job.message.alone else max(1, min(STEP_INPUTS, self._step_tokens // longest))
        now, job.left = [at for _, at in job.left[:count]], job.left[count:]
        try:
            if now:
                job.rows[now] = self._encode(job.message, [job.message.inputs[at] for at in now])
        except Exception as error:
            self._send(job.id, wire.failure(error))
            return
        if job.left:
            if job.message.alone:
                self._jobs.appendleft(job)
            else:
                self._jobs.append(job)
        else:
            data = base64.b64encode(job.rows.tobytes()).decode()
            self._send(job.id, Encoded(len(job.rows), self._width, data))

    def _encode(self, message: Encode, inputs: Sequence[Input]) -> Any:
        """Shape (n, width), float32: unit-length vectors, or one score each. What is alone goes on one thread, since
        both a batch and a thread count change the last bits of a vector, and decisions are made from these.
        """
        model, prompts = self._model, self._model.prompts
        task: dict[str, str] = {}
        names: tuple[str | None, ...] = (model.default_prompt_name,)
        if not self._reranks:
            task["task"] = "query" if message.query else "document"
            names = QUERY_PROMPTS if message.query else DOCUMENT_PROMPTS
        prompt = next((prompts[name] for name in names if prompts.get(name)), None)
        torch.set_num_threads(1 if message.alone else self._threads)
        # not `encode`, which first looks at the device and the mode of every module: a twentieth of a short text's time
        with torch.inference_mode():
            features = batch_to_device(model.preprocess(list(inputs), prompt=prompt, **task), self._device)
            features = model(features, **task)
            if self._reranks:
                rows = model.activation_fn(features["scores"].float())
            else:
                vectors = features["sentence_embedding"][:, : model.truncate_dim].float()
                rows = torch.nn.functional.normalize(vectors, p=2, dim=1)
            return rows.reshape(len(inputs), -1).cpu().numpy()

    def _tokens(self, input: Input) -> int:
        """About so many tokens, of those that the model reads of it."""
        parts = (input,) if isinstance(input, str) else input
        return int(min(self._model.max_seq_length, 3 + sum(len(part.encode()) for part in parts) // BYTES_PER_TOKEN))

    def measured_bytes(self) -> int:
        return int(psutil.Process().memory_info().rss)

    def close(self) -> None:
        """There is nothing to give back."""
