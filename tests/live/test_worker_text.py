"""One text worker, for real: the starter model in its own process."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import mlx.core as mx
import psutil
import pytest
from anyio.lowlevel import checkpoint
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs

from rolecall.roles.contract import EngineResult, Event, Generated, GenerationRequest, Message, Prefilling
from rolecall.roles.errors import (
    ModelCorrupt,
    ModelRefused,
    PromptTooLong,
    RoleError,
    SchemaRefused,
    WorkerDied,
    WorkerTimeout,
)
from rolecall.roles.manifest import MANIFEST
from rolecall.roles.starter import TEXT_FP32
from rolecall.roles.worker.process import Worker, WorkerSpec

pytestmark = [pytest.mark.live, pytest.mark.anyio]

LONG_PROMPT = "word " * 3000
SENTIMENT = {
    "type": "object",
    "properties": {"sentiment": {"enum": ["positive", "negative"]}, "stars": {"enum": [1, 2, 3, 4, 5]}},
    "required": ["sentiment", "stars"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def models(starter_models: Path) -> Path:
    return starter_models


def spec(folder: Path) -> WorkerSpec:
    kv_bytes = 2 * 4096 * 46_080
    return WorkerSpec("text", folder, TEXT_FP32, 4096, concurrency=2, cache_limit_bytes=256 << 20, kv_bytes=kv_bytes)


@pytest.fixture(scope="module")
async def worker(models: Path, anyio_backend: str) -> AsyncIterator[Worker]:
    worker = await Worker.start()
    loaded = await worker.load(spec(models / TEXT_FP32))
    assert loaded.weights_bytes == 538_060_032
    assert loaded.kv_bytes_per_token == 2 * 30 * 3 * 64 * 4  # keys and values, layers, heads, head size, float32
    assert loaded.measured_bytes > loaded.weights_bytes
    yield worker
    assert await worker.stop() == "exited"
    assert not psutil.pid_exists(worker.pid)


async def test_text_cut_within_a_character_ends_with_a_whole_one(worker: Worker) -> None:
    for most in (1, 2, 3):
        result = await worker.generate(ask("Say only: 😀😀😀😀", max_tokens=most, seed=2**80, temperature=0.1))
        assert "\ufffd" not in result.text


def ask(text: str, **options: Any) -> GenerationRequest:
    return GenerationRequest(messages=(Message(role="user", content=text),), **{"repetition_penalty": 1.1, **options})


async def test_an_answer_is_streamed_as_it_is_made(worker: Worker) -> None:
    events: list[Event] = []
    result = await worker.generate(ask("What is the capital of France?"), on_event=events.append)
    assert "Paris" in result.text and result.finish == "stop"
    assert "".join(e.text for e in events if isinstance(e, Generated)) == result.text
    assert isinstance(events[0], Prefilling)
    assert result.prefill_s > 0 < result.decode_s < 60
    assert [e.tokens for e in events if isinstance(e, Generated)][-1] == result.completion_tokens


async def test_requests_run_together_and_those_over_the_concurrency_follow(worker: Worker) -> None:
    results: list[EngineResult] = []
    order: list[int] = []

    async def one(number: int) -> None:
        results.append(
            await worker.generate(ask(f"Count from {number}.", max_tokens=8), on_event=lambda _: order.append(number))
        )

    async with anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(one, number)
    assert len(results) == 3 and all(result.completion_tokens for result in results)
    assert order != sorted(order), "the first two were not interleaved"


async def test_an_answer_under_a_schema_validates_and_is_what_the_prompt_asks(worker: Worker) -> None:
    review = "Review: 'I loved this film, it was great fun.' Give the sentiment and the stars as JSON."
    result = await worker.generate(ask(review, json_schema=SENTIMENT, max_tokens=60))
    assert result.finish == "stop"
    assert json.loads(result.text)["sentiment"] == "positive"


@pytest.mark.parametrize("schema", [{"type": "objec"}, {"not": {"type": "string"}}, {"$ref": "http://127.0.0.1:9/x"}])
async def test_a_schema_that_cannot_be_enforced_is_refused_with_the_reason(worker: Worker, schema: Any) -> None:
    with pytest.raises(SchemaRefused) as refused:
        await worker.generate(ask("x", json_schema=schema))
    assert refused.value.found


async def test_an_answer_under_a_regex_matches_the_whole_of_it(worker: Worker) -> None:
    date = r"(19|20)\d\d-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
    result = await worker.generate(ask("When did the Berlin wall fall? Answer with a date.", regex=date, max_tokens=30))
    assert result.finish == "stop" and re.fullmatch(date, result.text)


@pytest.mark.parametrize("regex", [r"(?=a)b", r"[a", r"(a)\1"])
async def test_a_regex_that_cannot_be_enforced_is_refused_with_the_reason(worker: Worker, regex: str) -> None:
    with pytest.raises(SchemaRefused, match="regex") as refused:
        await worker.generate(ask("x", regex=regex))
    assert refused.value.found


@pytest.mark.parametrize("text", ["word " * 5000, "a" * 3_000_000])
async def test_a_prompt_over_the_context_is_refused_with_figures(worker: Worker, text: str) -> None:
    with pytest.raises(PromptTooLong, match="4096 tokens together"):
        await worker.generate(ask(text))


async def test_a_stop_string_ends_the_answer_and_is_not_in_it(worker: Worker) -> None:
    cut = await worker.generate(ask("What is the capital of France?", stop=("tal of Fr",)))
    assert cut.finish == "stop"
    assert cut.text == "The capi"


async def test_the_same_seed_draws_the_same_answer_and_another_seed_another(worker: Worker) -> None:
    first, again, other = [
        (await worker.generate(ask("Write a story.", temperature=0.9, top_p=0.95, seed=s, max_tokens=8))).text
        for s in (5, 5, 6)
    ]
    assert first == again != other


async def test_text_that_is_not_unicode_is_a_typed_error(worker: Worker) -> None:
    with pytest.raises(RoleError, match="surrogate"):
        await worker.generate(ask("\ud800"))


async def test_a_time_out_keeps_what_was_written_by_then(worker: Worker) -> None:
    endless = {"type": "string", "minLength": 100_000}
    result = await worker.generate(ask("Tell me of the sea.", json_schema=endless, timeout_s=2.0, max_tokens=4000))
    assert result.finish == "timeout" and result.text.startswith('"')
    with pytest.raises(WorkerTimeout, match="made no token in time"):
        await worker.generate(ask(LONG_PROMPT, timeout_s=0.01))


@pytest.mark.parametrize("during", [Prefilling, Generated])
async def test_cancelling_stops_the_work_and_returns_once_it_has_stopped(worker: Worker, during: type) -> None:
    events: list[Event] = []
    under_way = anyio.Event()

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, during):
            under_way.set()

    async with anyio.create_task_group() as group:
        request = ask(LONG_PROMPT if during is Prefilling else "Write a long story.")
        group.start_soon(lambda: worker.generate(request, on_event=on_event))
        with anyio.fail_after(60):
            await under_way.wait()
        with anyio.fail_after(5):  # the call returns only once the worker has let go
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                while worker._calls:
                    await checkpoint()
    seen = len(events)
    after = await worker.generate(ask("What is the capital of France?"))
    assert "Paris" in after.text and len(events) == seen


@pytest.fixture(scope="module")
def tiny(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights with the starter's tokenizer, in which `<think>` is a token and opens each answer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    shutil.copytree(models / TEXT_FP32, folder, ignore=shutil.ignore_patterns("model.safetensors", MANIFEST))
    config = json.loads((folder / "config.json").read_text())
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config |= {**shape, "num_key_value_heads": 1, "head_dim": 32}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        text = text.replace("<reponame>", "<think>").replace("<file_sep>", "</think>")
        (folder / name).write_text(text.replace("<|im_start|>assistant\\n", "<|im_start|>assistant\\n<think>\\n"))
    mx.random.seed(0)
    model = Model(ModelArgs.from_dict(config))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    return folder


@pytest.fixture
async def second(anyio_backend: str) -> AsyncIterator[Worker]:
    """A worker of the test's own, without a model."""
    worker = await Worker.start()
    yield worker
    await worker.stop()
    assert not psutil.pid_exists(worker.pid)


async def test_short_prompts_do_not_lengthen_the_chunks_of_a_long_one(second: Worker, tiny: Path) -> None:
    await second.load(replace(spec(tiny), prefill_target_s=0.02))
    for _ in range(10):
        await second.generate(ask("x", max_tokens=1))
    events: list[Event] = []
    await second.generate(ask(LONG_PROMPT, max_tokens=1), on_event=events.append)
    assert isinstance(events[0], Prefilling) and events[0].done_tokens <= 64  # as a load begins


async def test_a_loaded_model_needs_its_folder_no_more(second: Worker, tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "gone"))
    await second.load(spec(folder))
    first = await second.generate(ask("Is the sky blue?", max_tokens=8))
    shutil.rmtree(folder)
    assert (await second.generate(ask("Is the sky blue?", max_tokens=8))).text == first.text
    under_schema = await second.generate(ask("Is the sky blue?", json_schema={"enum": ["yes", "no"]}))
    assert json.loads(under_schema.text) in ("yes", "no")


async def test_stopping_a_busy_worker_ends_its_calls_and_its_process(second: Worker, tiny: Path) -> None:
    await second.load(spec(tiny))
    under_way = anyio.Event()

    async def call() -> None:
        with pytest.raises(WorkerDied):
            await second.generate(ask(LONG_PROMPT), on_event=lambda _: under_way.set())

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await under_way.wait()
        assert await second.stop() == "exited"


PARENT = """
import anyio, os, sys
from pathlib import Path
from rolecall.roles.contract import GenerationRequest, Message
from rolecall.roles.worker.process import Worker, WorkerSpec

async def main(folder):
    worker = await Worker.start()
    await worker.load(WorkerSpec("text", Path(folder), "m", 8192, 1, 1 << 28))
    print(worker.pid, flush=True)
    request = GenerationRequest(messages=(Message(role="user", content="word " * 6000),))
    await worker.generate(request, on_event=lambda _: os.kill(os.getpid(), 9))

anyio.run(main, sys.argv[1])
"""


def test_a_worker_does_not_outlive_a_killed_parent(tiny: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PARENT, str(tiny)], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(done.stdout)).wait(timeout=5)


async def test_what_cannot_be_loaded_is_refused_and_what_can_thinks_within_its_budget(
    second: Worker, tiny: Path, tmp_path: Path
) -> None:
    config = json.loads((tiny / "config.json").read_text())
    for changes, error, found in (
        ({"auto_map": {"AutoModel": "model.Model"}}, ModelRefused, "auto_map"),
        ({"model_type": "no_such_architecture"}, ModelCorrupt, "no_such_architecture"),
    ):
        folder = Path(shutil.copytree(tiny, tmp_path / found))
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(error, match=found):
            await second.load(spec(folder))
    (folder / "model.safetensors").write_bytes(b"\xff" * 4096)
    with pytest.raises(ModelCorrupt, match="header"):
        await second.load(spec(folder))

    await second.load(spec(tiny))
    request = ask("Is the sky blue? Answer with JSON.", json_schema=SENTIMENT, max_tokens=120)
    result = await second.generate(request, thinks=True, thinking_budget=12)
    assert result.thinking and 12 <= result.thinking_tokens <= 15
    assert "think>" not in result.thinking + result.text
    assert json.loads(result.text).keys() == {"sentiment", "stars"}
    none = await second.generate(request, thinks=True, thinking_budget=0)
    assert none.thinking == "" and json.loads(none.text)
