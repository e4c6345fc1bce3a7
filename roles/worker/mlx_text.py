"""The text engine: mlx-lm's BatchGenerator, stepped one prefill chunk or token at a time.

A request waits here, holding nothing, until the generator has a place for it and no other prompt is being prefilled: so
it begins with all that earlier ones have computed of its prompt, and what runs and what is kept fit the spec's bytes.
"""

from __future__ import annotations

import copy
import importlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import mlx.core as mx
import psutil
from mlx_lm.models.cache import can_trim_prompt_cache

from rolecall.roles.contract import Channel, EngineResult, Finish, Generated, GenerationRequest, Prefilling
from rolecall.roles.dry_run import kv_of
from rolecall.roles.errors import PromptTooLong, WorkerTimeout
from rolecall.roles.footprint import stepped

from . import wire
from .channels import TextStream
from .loading import MAX_PREFILL_STEP, MIN_PREFILL_STEP, first_rates, read_model
from .prefixes import Layers, Prefixes
from .steering import Grammars, Steering, closing, sampler
from .wire import Loaded, Scored, WorkerSpec

LEASE_PATIENCE_S = 1.0  # how often a worker that waits for its lease looks at time-outs and says it lives
_CHARACTERS_PER_TOKEN = 64  # far above any text's: longer prompts are refused without being tokenised
_ANSWER_SHARE = 4  # thinking is closed where only this part (a quarter) of max_tokens is left

# A batch generator raises the limit of wired memory to the device's recommendation, which was traced to macOS kernel
# panics (Source: mlx issue 3186). There is no option against it, so the function it calls is another one.
# `mlx_lm.generate` itself is a function of that name.
_generate: Any = importlib.import_module("mlx_lm.generate")
_generate.maybe_set_recommended_wired_limit = lambda: None


@dataclass(slots=True)
class _Job:
    """A request under way. Times on the awake clock; `began` is the start of its first prefill step.

    Of the prompt, `cached` tokens were taken from the prefix cache, `done` are in its KV cache; a snapshot is due at
    `boundary`; `left` is what the generator gave back of it. With `labels` nothing is generated: these are scored.
    """

    id: int
    request: GenerationRequest
    prompt: list[int]
    steering: Steering
    stream: TextStream
    labels: list[list[int]] = field(default_factory=list)
    cached: int = 0
    done: int = 0
    boundary: int = 0
    left: tuple[Layers, list[int]] | None = None
    began: float = 0.0
    prefilled: float = 0.0


class TextEngine:
    """Batches up to the spec's concurrency; every method on the thread that made it, as MLX's streams require."""

    def __init__(self, send: Callable[[int, wire.Body], None]) -> None:
        self._send = send
        self._before_load_bytes = psutil.Process().memory_info().rss
        self._waiting: deque[_Job] = deque()
        self._jobs: dict[int, _Job] = {}  # by the batch generator's uid
        self._prefilling: int | None = None  # the one whose prompt is not done
        self._lease: Literal["want", "held"] | None = None
        self._prefixes = Prefixes()
        self._decode_s = 0.0  # of the last step that was nothing else: what a chunk's step takes beside the chunk
        self._model: Any = None
        self._tokenizer: Any = None
        self._generator: Any = None
        self.progress = 0  # counts chunks and tokens

    def load(self, spec: WorkerSpec, on_loading: Callable[[int, int], None]) -> Loaded:
        self._spec = spec
        mx.set_cache_limit(spec.cache_limit_bytes)  # of freed buffers; unbounded by default
        self._model, self._tokenizer, weights_bytes = read_model(spec, on_loading)
        self._grammars = Grammars(self._tokenizer)
        self._kv = kv_of(self._model)
        self._step_tokens, decode_rate = first_rates(self._model)
        self._reset()
        mx.clear_cache()
        return Loaded(
            weights_bytes=weights_bytes,
            measured_bytes=self.measured_bytes(),
            kv_bytes_per_token=self._kv.per_token_bytes,
            fixed_state_bytes=self._kv.fixed_bytes,
            decode_tokens_per_s=decode_rate,
        )

    def submit(self, id: int, message: wire.Generate | wire.Encode) -> None:
        """Queue one request. Raises PromptTooLong, SchemaRefused."""
        assert self._generator is not None and isinstance(message, wire.Generate)
        request = message.request
        prompt, text = self._prompt(request, message.thinks and message.thinking_budget != 0)
        thinking, budget = self._thinking(prompt, message)
        if message.labels and thinking:  # a label is an answer, no thought
            prompt += closing(self._tokenizer)
        matcher = self._grammars.matcher(request)
        steering = Steering(self._tokenizer, matcher, request.repetition_penalty, thinking, message.thinks, budget)
        stream = TextStream(self._tokenizer, thinking=thinking, stop=request.stop)
        tokens = [_label_tokens(self._tokenizer, prompt, text, label) for label in message.labels]
        self._waiting.append(_Job(id, request, prompt, steering, stream, tokens))

    def cancel(self, id: int) -> None:
        self._waiting = deque(job for job in self._waiting if job.id != id)
        for uid in [uid for uid, job in self._jobs.items() if job.id == id]:
            self._drop(uid)

    def grant(self) -> None:
        """One prefill chunk may run. Comes too late for a request that was let go: then it means nothing."""
        if self._lease == "want":
            self._lease = "held"

    def limit(self, kv_bytes: int) -> None:
        """Keep no more than running requests leave of so many bytes; the caller sees that these have what they need."""
        self._spec = replace(self._spec, kv_bytes=kv_bytes)
        self._prefixes.trim_to(self._room_bytes())

    @property
    def patience_s(self) -> float | None:
        """How long a message may be waited for before the next step is due; None: for ever."""
        if not self._jobs and not self._waiting:
            return None
        return LEASE_PATIENCE_S if self._lease == "want" and len(self._jobs) == 1 else 0.0

    def step(self) -> None:
        """One token for each decoding request and one chunk of one prompt; then what is over is answered."""
        if self._waiting and self._prefilling is None and len(self._jobs) < self._spec.concurrency:
            job = self._waiting.popleft()
            try:
                self._begin(job)
            except Exception as error:
                self._send(job.id, wire.failure(error))
        # with no place left for completions the generator decodes those that it has, and prefills nothing
        self._generator.completion_batch_size = self._spec.concurrency if self._may_prefill() else 0
        began = time.monotonic()
        try:
            prefilled, decoded = self._generator.next()
        except Exception as error:  # the batch's state is unknown now: nobody in it can go on
            self._reset()
            for uid in list(self._jobs):
                self._fail(uid, error)
            return
        now = time.monotonic()
        if self._lease == "held":
            self._lease = None
            self._send(0, "done")
        self.progress += len(prefilled) + len(decoded)
        if not prefilled:
            self._decode_s = now - began
        chunk_s = now - began - (self._decode_s if decoded else 0.0)
        for response in prefilled:
            self._on_prefill(response, began, now, chunk_s)
        for response in decoded:
            try:
                self._on_token(response)
            except Exception as error:
                self._fail(response.uid, error)
        for uid, job in list(self._jobs.items()):
            if job.steering.failure is not None:
                self._fail(uid, job.steering.failure)
            elif job.request.timeout_s and job.began and now - job.began > job.request.timeout_s:
                self._time_out(uid, now - job.began)

    def measured_bytes(self) -> int:
        """What this process holds. Metal's buffers need not show in the resident size, so the larger view counts."""
        held = self._before_load_bytes + mx.get_active_memory() + mx.get_cache_memory()
        return int(max(psutil.Process().memory_info().rss, held))

    def close(self) -> None:
        self._generator = None
        self._prefixes.trim_to(0)
        mx.synchronize()
        mx.clear_cache()

    def _begin(self, job: _Job) -> None:
        """Give a request to the generator, with what is known of its prompt."""
        with mx.stream(self._generator.stream):
            running = self._generator.extract_cache(list(self._jobs)).values() if self._jobs else ()
            layers, cached = self._prefixes.fetch(job.prompt, running)
            mx.eval([layer.state for layer in layers or ()])  # before a running batch changes what it was taken from
        self._prefixes.trim_to(self._room_bytes(job))
        job.cached = job.done = cached
        job.boundary = max(cached, self._prefixes.boundary(job.prompt, cached))
        [uid] = self._generator.insert_segments(
            [[job.prompt[cached : job.boundary], job.prompt[job.boundary :]]],
            max_tokens=[job.request.max_tokens],
            caches=[layers],
            all_tokens=[job.prompt[:cached]],
            samplers=[sampler(job.request)],
            logits_processors=[[job.steering] if job.steering.needed else []],
        )
        self._jobs[uid] = job
        self._prefilling = uid
        if job.labels and job.done == len(job.prompt) - 1:
            self._score(uid)

    def _may_prefill(self) -> bool:
        """Whether the next step may run a chunk, or has none to run. Asks for the lease where it is needed."""
        job = self._jobs.get(-1 if self._prefilling is None else self._prefilling)
        if not self._spec.leased or job is None or job.done == len(job.prompt) - 1:
            return True
        if self._lease is None:
            self._lease = "want"
            self._send(0, "want")
        return self._lease == "held"

    def _kv_bytes(self, *jobs: _Job) -> int:
        """What the caches of requests come to take: each is padded to the longest."""
        longest = max((len(job.prompt) + job.request.max_tokens for job in jobs), default=0)
        return self._kv.reserved_bytes(len(jobs) * stepped(longest), len(jobs), MAX_PREFILL_STEP)

    def _room_bytes(self, *more: _Job) -> int:
        """What running requests, and `more`, leave for the prefix cache."""
        return self._spec.kv_bytes - self._kv_bytes(*self._jobs.values(), *more)

    def _score(self, uid: int) -> None:
        job = self._jobs[uid]
        try:
            with mx.stream(self._generator.stream):
                layers, _ = self._generator.extract_cache([uid])[uid]
                scores = _label_scores(self._model, layers, job.prompt[-1], job.labels)
        except Exception as error:
            self._fail(uid, error)
            return
        self._drop(uid)
        self._send(job.id, Scored(scores))

    def _prompt(self, request: GenerationRequest, think: bool) -> tuple[list[int], str]:
        """The prompt's tokens and its text."""
        room = self._spec.context_length
        count = sum(len(message.content) for message in request.messages) // _CHARACTERS_PER_TOKEN
        if count <= room:
            templated = self._tokenizer.has_chat_template
            if templated:
                messages = [message.model_dump() for message in request.messages]
                text = self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, enable_thinking=think
                )
            else:
                text = "\n\n".join(message.content for message in request.messages)
            tokens = list(self._tokenizer.encode(text, add_special_tokens=not templated))
            if (count := len(tokens)) + request.max_tokens <= room:
                return tokens, text
        raise PromptTooLong(
            f"The prompt is too long for model {self._spec.model!r}.",
            found=f"at least {count} prompt tokens and {request.max_tokens} for the answer",
            allowed=f"{room} tokens together",
            advice="Send less text, summarize it first, or use a role with a larger context.",
        )

    def _thinking(self, prompt: list[int], message: wire.Generate) -> tuple[bool, int | None]:
        """Whether the prompt ends inside a thinking section, and the tokens it may take."""
        if not self._tokenizer.has_thinking:
            return False, None
        opened = self._tokenizer.rfind_think_start(prompt) > self._tokenizer.rfind_think_end(prompt)
        most = message.request.max_tokens - message.request.max_tokens // _ANSWER_SHARE
        wanted = most if message.thinking_budget is None else message.thinking_budget
        return opened, min(most, wanted) if message.thinks else 0

    def _on_prefill(self, response: Any, began: float, now: float, chunk_s: float) -> None:
        job = self._jobs[response.uid]
        job.began = job.began or began
        if response.end_of_prompt:
            job.prefilled = now
            self._prefilling = None
        done = job.cached + response.progress[0]
        self._adapt(chunk_s, done - job.done)
        job.done = done
        self._send(job.id, Prefilling(done, len(job.prompt)))
        if response.end_of_prompt:
            return
        if done == job.boundary:
            with mx.stream(self._generator.stream):
                layers, tokens = self._generator.extract_cache([response.uid])[response.uid]
                if not can_trim_prompt_cache(layers):  # one that can be cut is kept once, at the end
                    self._prefixes.keep(layers, tokens, self._room_bytes())
        if job.labels and done == len(job.prompt) - 1:
            self._score(response.uid)

    def _on_token(self, response: Any) -> None:
        job = self._jobs[response.uid]
        if response.finish_reason != "stop":  # then the token is the model's own end mark
            self._say(job, job.stream.add(response.token))
        if job.stream.stopped or response.finish_reason:
            if response.finish_reason:
                job.left = response.prompt_cache, response.all_tokens
            self._finish(response.uid, "stop" if job.stream.stopped else response.finish_reason)

    def _say(self, job: _Job, pieces: list[tuple[Channel, str]]) -> None:
        for channel, text in pieces:
            self._send(job.id, Generated(text, channel, job.stream.tokens))

    def _finish(self, uid: int, finish: Finish) -> None:
        job = self._jobs[uid]
        now = time.monotonic()
        self._say(job, job.stream.finish())
        self._drop(uid)
        result = EngineResult(
            text=job.stream.text("answer"),
            thinking=job.stream.text("thinking"),
            finish=finish,
            prompt_tokens=len(job.prompt),
            completion_tokens=job.stream.tokens,
            thinking_tokens=job.stream.thinking_tokens,
            prefill_s=job.prefilled - job.began,
            decode_s=now - job.prefilled,
            cached_tokens=job.cached,
        )
        self._send(job.id, result)

    def _time_out(self, uid: int, elapsed_s: float) -> None:
        job = self._jobs[uid]
        if job.stream.tokens:
            return self._finish(uid, "timeout")
        error = WorkerTimeout(
            f"Model {self._spec.model!r} made no token in time.",
            found=f"{elapsed_s:.1f} s in a prompt of {len(job.prompt)} tokens",
            allowed=f"{job.request.timeout_s:.1f} s from the first prefill step",
            advice="Send less text, or raise the role's timeout_s.",
        )
        return self._fail(uid, error)

    def _fail(self, uid: int, error: Exception) -> None:
        self._send(self._jobs[uid].id, wire.failure(error))
        self._drop(uid)

    def _drop(self, uid: int) -> None:
        """Let go of a request and keep what was computed of it."""
        job = self._jobs.pop(uid)
        with mx.stream(self._generator.stream):
            if left := self._generator.remove([uid], return_prompt_caches=True).get(uid, job.left):
                layers, tokens = left
                self._prefixes.keep(layers, tokens, self._room_bytes())
        if uid == self._prefilling:
            self._prefilling = None
            if self._lease:
                self._lease = None
                self._send(0, "done")

    def _adapt(self, chunk_s: float, tokens: int) -> None:
        """Follow what a chunk takes now: attention grows with the context, and other processes share the device.

        A good part of a small chunk's time does not grow with it, so twice the tokens take less than twice as long.
        """
        target_s = self._spec.prefill_target_s
        if chunk_s > target_s * 1.2:
            self._step_tokens = max(MIN_PREFILL_STEP, self._step_tokens // 2)
        elif chunk_s < target_s * 0.7 and tokens >= self._step_tokens:  # a short prompt's chunk says nothing
            self._step_tokens = min(MAX_PREFILL_STEP, self._step_tokens * 2)
        self._generator.prefill_step_size = self._step_tokens

    def _reset(self) -> None:
        """Start with nothing running and nothing kept."""
        self._prefixes.trim_to(0)
        self._generator = _generate.BatchGenerator(
            self._model,
            stop_tokens=[(token,) for token in self._tokenizer.eos_token_ids],
            completion_batch_size=self._spec.concurrency,
            prefill_batch_size=1,  # a chunk is then never longer than one prompt's, and its time stays bounded
            prefill_step_size=self._step_tokens,
        )


def _label_tokens(tokenizer: Any, prompt: list[int], text: str, label: str) -> list[int]:
    """The label's tokens after the prompt of that text: those it adds to the prompt's, where it leaves these as they
    are; else (it would merge with the prompt's end, or thinking was closed after it) its own."""
    whole = list(tokenizer.encode(text + label, add_special_tokens=False))
    if whole[: len(prompt)] == prompt and len(whole) > len(prompt):
        return whole[len(prompt) :]
    return list(tokenizer.encode(label, add_special_tokens=False))


def _label_scores(model: Any, layers: Layers, last: int, labels: Sequence[list[int]]) -> tuple[float, ...]:
    """Natural log-probability of each label after what `layers` hold and the token `last`; `layers` stay as they are.
    Labels of one token, and those that differ in their last one only, take one pass together."""
    logprobs: dict[tuple[int, ...], mx.array] = {}
    for begin in {tuple(label[:-1]) for label in labels}:
        logits = model(mx.array([[last, *begin]]), cache=copy.deepcopy(layers))[0].astype(mx.float32)
        logprobs[begin] = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return tuple(
        float(logprobs[tuple(label[:-1])][mx.arange(len(label)), mx.array(label)].sum().item()) for label in labels
    )
