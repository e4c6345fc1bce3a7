"""The text engine: mlx-lm's BatchGenerator, stepped one prefill chunk or token at a time."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import psutil
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model, load_tokenizer

from rolecall.roles.contract import Generated, GenerationRequest, Prefilling
from rolecall.roles.errors import PromptTooLong, WorkerTimeout

from . import wire
from .channels import TextStream
from .steering import Grammars, Steering, sampler
from .wire import Channel, Finish, Loaded, WorkerResult, WorkerSpec

MAX_PREFILL_STEP = 2048  # Source: mlx-lm's default; larger chunks gain nothing on the devices it was tuned for
MIN_PREFILL_STEP = 8
_LOAD_SLICE_BYTES = 256 << 20
_CHARACTERS_PER_TOKEN = 64  # far above any text's: longer prompts are refused without being tokenised
_ANSWER_SHARE = 4  # thinking is closed where only this part (a quarter) of max_tokens is left

# A batch generator raises the limit of wired memory to the device's recommendation, which was traced to macOS kernel
# panics (Source: mlx issue 3186). There is no option against it, so the function it calls is another one.
# `mlx_lm.generate` itself is a function of that name.
_generate: Any = importlib.import_module("mlx_lm.generate")
_generate.maybe_set_recommended_wired_limit = lambda: None


@dataclass(slots=True)
class _Job:
    """A request under way. Times on the awake clock; `began` is the start of its first prefill step."""

    id: int
    request: GenerationRequest
    prompt_tokens: int
    steering: Steering
    stream: TextStream
    prefill_tokens: int = 0
    began: float = 0.0
    prefilled: float = 0.0


class TextEngine:
    """Batches up to the spec's concurrency; every method on the thread that made it, as MLX's streams require."""

    def __init__(self, send: Callable[[int, wire.Body], None], blas: str) -> None:
        self._send = send
        self._blas = blas
        self._before_load_bytes = psutil.Process().memory_info().rss
        self._jobs: dict[int, _Job] = {}  # by the batch generator's uid
        self._model: Any = None
        self._tokenizer: Any = None
        self._generator: Any = None

    def load(self, spec: WorkerSpec, on_loading: Callable[[int, int], None]) -> Loaded:
        started = time.monotonic()
        self._spec = spec
        mx.set_cache_limit(spec.cache_limit_bytes)  # of freed buffers; unbounded by default
        self._model, config = load_model(spec.folder, lazy=True, trust_remote_code=False)
        weights_bytes = _read_weights(self._model, on_loading)
        eos = config.get("eos_token_id")
        self._tokenizer = load_tokenizer(spec.folder, {"trust_remote_code": False}, eos_token_ids=eos)
        self._grammars = Grammars(self._tokenizer)
        kv_bytes_per_token, fixed_state_bytes = _cache_bytes(self._model)
        self._step_tokens, prefill_rate, decode_rate = _rates(self._model, spec)
        self._new_generator()
        mx.clear_cache()
        return Loaded(
            weights_bytes=weights_bytes,
            measured_bytes=self.measured_bytes(),
            kv_bytes_per_token=kv_bytes_per_token,
            fixed_state_bytes=fixed_state_bytes,
            prefill_step=self._step_tokens,
            prefill_tokens_per_s=prefill_rate,
            decode_tokens_per_s=decode_rate,
            load_s=time.monotonic() - started,
            blas=self._blas,
        )

    def submit(self, id: int, message: wire.Generate | wire.Embed) -> None:
        """Queue one request.

        Raises:
            PromptTooLong, SchemaRefused.
        """
        assert isinstance(message, wire.Generate) and self._generator is not None
        request = message.request
        prompt = self._prompt(request, message.thinks and message.thinking_budget != 0)
        thinking, budget = self._thinking(prompt, message)
        matcher = self._grammars.matcher(request.json_schema)
        steering = Steering(
            self._tokenizer, matcher, request.repetition_penalty, thinking, may_think=message.thinks, budget=budget
        )
        [uid] = self._generator.insert(
            [prompt],
            max_tokens=[request.max_tokens],
            samplers=[sampler(request)],
            logits_processors=[[steering] if steering.needed else []],
        )
        stream = TextStream(self._tokenizer, thinking=thinking, stop=request.stop)
        self._jobs[uid] = _Job(id, request, len(prompt), steering, stream)

    def cancel(self, id: int) -> None:
        for uid in [uid for uid, job in self._jobs.items() if job.id == id]:
            self._drop(uid)

    @property
    def idle(self) -> bool:
        return not self._jobs

    def step(self) -> None:
        """One token for each decoding request and one chunk of one prompt; then what is over is answered."""
        began = time.monotonic()
        try:
            prefilled, decoded = self._generator.next()
        except Exception as error:  # the batch's state is unknown now: nobody in it can go on
            self._new_generator()
            for uid in list(self._jobs):
                self._fail(uid, error)
            return
        now = time.monotonic()
        for response in prefilled:
            self._on_prefill(response, began, now)
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
        mx.synchronize()
        mx.clear_cache()

    def _prompt(self, request: GenerationRequest, think: bool) -> list[int]:
        room = self._spec.context_length
        count = sum(len(message.content) for message in request.messages) // _CHARACTERS_PER_TOKEN
        if count <= room:
            if self._tokenizer.has_chat_template:
                messages = [message.model_dump() for message in request.messages]
                tokens = self._tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, enable_thinking=think
                )
            else:
                tokens = self._tokenizer.encode("\n\n".join(message.content for message in request.messages))
            if (count := len(tokens)) + request.max_tokens <= room:
                return list(tokens)
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

    def _on_prefill(self, response: Any, began: float, now: float) -> None:
        job = self._jobs[response.uid]
        job.began = job.began or began
        if response.end_of_prompt:
            job.prefilled = now
        done, total = response.progress
        self._adapt(now - began, done - job.prefill_tokens)
        job.prefill_tokens = done
        self._send(job.id, Prefilling(done, total))

    def _on_token(self, response: Any) -> None:
        job = self._jobs[response.uid]
        if response.finish_reason != "stop":  # then the token is the model's own end mark
            self._say(job, job.stream.add(response.token))
        if job.stream.stopped or response.finish_reason:
            self._finish(response.uid, "stop" if job.stream.stopped else response.finish_reason)

    def _say(self, job: _Job, pieces: list[tuple[Channel, str]]) -> None:
        for channel, text in pieces:
            self._send(job.id, Generated(text, channel, job.stream.tokens))

    def _finish(self, uid: int, finish: Finish) -> None:
        job = self._jobs[uid]
        now = time.monotonic()
        self._say(job, job.stream.finish())
        self._drop(uid)
        result = WorkerResult(
            text=job.stream.text("answer"),
            thinking=job.stream.text("thinking"),
            finish=finish,
            prompt_tokens=job.prompt_tokens,
            completion_tokens=job.stream.tokens,
            thinking_tokens=job.stream.thinking_tokens,
            prefill_s=job.prefilled - job.began,
            decode_s=now - job.prefilled,
        )
        self._send(job.id, result)

    def _time_out(self, uid: int, elapsed_s: float) -> None:
        job = self._jobs[uid]
        if job.stream.tokens:
            return self._finish(uid, "timeout")
        error = WorkerTimeout(
            f"Model {self._spec.model!r} made no token in time.",
            found=f"{elapsed_s:.1f} s in a prompt of {job.prompt_tokens} tokens",
            allowed=f"{job.request.timeout_s:.1f} s from the first prefill step",
            advice="Send less text, or raise the role's timeout_s.",
        )
        return self._fail(uid, error)

    def _fail(self, uid: int, error: Exception) -> None:
        self._send(self._jobs[uid].id, wire.failure(error))
        self._drop(uid)

    def _drop(self, uid: int) -> None:
        self._generator.remove([uid])
        del self._jobs[uid]

    def _adapt(self, step_s: float, tokens: int) -> None:
        """Follow what a chunk takes now: attention grows with the context, and other processes share the device."""
        target_s = self._spec.prefill_target_s
        if step_s > target_s:
            self._step_tokens = max(MIN_PREFILL_STEP, self._step_tokens // 2)
        elif step_s < target_s * 0.4 and tokens >= self._step_tokens:  # a short prompt's chunk says nothing
            self._step_tokens = min(MAX_PREFILL_STEP, self._step_tokens * 2)
        self._generator.prefill_step_size = self._step_tokens

    def _new_generator(self) -> None:
        self._generator = _generate.BatchGenerator(
            self._model,
            stop_tokens=[(token,) for token in self._tokenizer.eos_token_ids],
            completion_batch_size=self._spec.concurrency,
            prefill_batch_size=1,  # a chunk is then never longer than one prompt's, and its time stays bounded
            prefill_step_size=self._step_tokens,
        )


def _read_weights(model: Any, on_loading: Callable[[int, int], None]) -> int:
    """Bring the lazy weights into memory in slices; returns their bytes."""
    arrays = [array for _, array in tree_flatten(model.parameters())]
    total = sum(array.nbytes for array in arrays)
    done = told = 0
    waiting: list[Any] = []
    on_loading(0, total)
    for array in arrays:
        waiting.append(array)
        done += array.nbytes
        if done - told >= _LOAD_SLICE_BYTES or done == total:
            mx.eval(waiting)
            waiting.clear()
            on_loading(done, total)
            told = done
    return int(total)


def _cache_bytes(model: Any) -> tuple[int, int]:
    """KV bytes per token and state bytes that do not grow, from shapes alone: nothing is computed."""
    cache = make_prompt_cache(model)
    sizes = []
    for _ in range(2):
        model(mx.zeros((1, 256), dtype=mx.int32), cache=cache)
        sizes.append(sum(layer.nbytes for layer in cache))
    per_token = (sizes[1] - sizes[0]) // 256
    return int(per_token), int(sizes[0] - 256 * per_token)


def _rates(model: Any, spec: WorkerSpec) -> tuple[int, float, float]:
    """The largest prefill chunk that stays under the target, and tokens per second of prefill and of decode."""

    def seconds(tokens: int, cache: Any) -> float:
        began = time.monotonic()
        logits = model(mx.ones((1, tokens), dtype=mx.int32), cache=cache)
        mx.eval(logits if tokens == 1 else [layer.state for layer in cache])
        return time.monotonic() - began

    cache = make_prompt_cache(model)
    seconds(MIN_PREFILL_STEP, cache)  # the first pass compiles and touches pages
    decode_s = min(seconds(1, cache) for _ in range(3))
    step = MIN_PREFILL_STEP
    step_s = seconds(step, make_prompt_cache(model))
    while step_s * 2 < spec.prefill_target_s * 0.8 and step * 2 <= min(MAX_PREFILL_STEP, spec.context_length):
        step *= 2
        step_s = seconds(step, make_prompt_cache(model))
    return step, step / step_s, 1 / decode_s
