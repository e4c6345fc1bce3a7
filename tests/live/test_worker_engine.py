"""The text engine by itself, step by step: what it keeps of prompts, its lease, label scores, adapters.

Models of random weights stand for the three kinds of cache: one that can be cut (Llama), windows that rotate (Gemma 3)
and a recurrent state beside attention (Qwen3-Next).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

from rolecall.roles.contract import EngineResult, GenerationRequest, Message, Prefilling
from rolecall.roles.errors import ModelCorrupt, ModelRefused
from rolecall.roles.starter import TEXT_FP32
from rolecall.roles.worker import wire
from rolecall.roles.worker.child import _load
from rolecall.roles.worker.mlx_text import TextEngine
from rolecall.roles.worker.wire import Failure, Scored, WorkerSpec

pytestmark = pytest.mark.live

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 2},
    "gemma3_text": {"sliding_window": 96, "sliding_window_pattern": 2, "query_pre_attn_scalar": 32},
    "qwen3_next": {
        **dict.fromkeys(("linear_num_value_heads", "full_attention_interval", "num_experts"), 2),
        **dict.fromkeys(("linear_num_key_heads", "num_experts_per_tok", "decoder_sparse_step"), 1),
        **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 32),
        **dict.fromkeys(("shared_expert_intermediate_size", "moe_intermediate_size"), 32),
        "linear_conv_kernel_dim": 4,
        "mlp_only_layers": [],
        "partial_rotary_factor": 0.5,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 8192,
    },
}
DOCUMENT = "The harbour was quiet and the ferry left at nine. " * 40  # about 480 tokens


@pytest.fixture(scope="module")
def folder_of(starter_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def make(kind: str) -> Path:
        folder = tmp_path_factory.getbasetemp() / f"engine-{kind}"
        if folder.exists():
            return folder
        starter = starter_models / TEXT_FP32
        shutil.copytree(starter, folder, ignore=shutil.ignore_patterns("model.safetensors", "rolecall.json"))
        eos = json.loads((starter / "config.json").read_text())["eos_token_id"]
        config = {"model_type": kind, "eos_token_id": eos, **SHAPE, **KINDS[kind]}
        model_class, args_class = _get_classes(config)
        mx.random.seed(1)
        model = model_class(args_class.from_dict(config))
        weights = {name: value * 3 for name, value in tree_flatten(model.parameters())}
        mx.save_safetensors(str(folder / "model.safetensors"), weights)
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


class Driven:
    """An engine, and what it said by request."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.said: dict[int, list[Any]] = {}
        self.engine = TextEngine(lambda id, body: self.said.setdefault(id, []).append(body))
        spec = WorkerSpec("text", folder, "m", 2048, 2, 64 << 20, kv_bytes=64 << 20)
        self.spec = replace(spec, **changes)
        self.loaded = self.engine.load(self.spec, lambda done, total: None)
        self.engine._step_tokens = 64
        self.engine._generator.prefill_step_size = 64
        self.count = 0

    def ask(self, text: str, **options: Any) -> int:
        self.count += 1
        request = GenerationRequest(messages=(Message(role="user", content=text),), **{"max_tokens": 6, **options})
        self.engine.submit(self.count, wire.Generate(request, False, None))
        return self.count

    def score(self, text: str, *labels: str) -> int:
        self.count += 1
        request = GenerationRequest(messages=(Message(role="user", content=text),), max_tokens=8)
        self.engine.submit(self.count, wire.Generate(request, False, 0, labels))
        return self.count

    def run(self, grants: bool = True) -> None:
        """Step until nothing is left to do, or, without `grants`, to do without a lease."""
        while (patience_s := self.engine.patience_s) is not None:
            if patience_s and not grants:
                return
            if grants:
                self.engine.grant()
            self.engine.step()
            running = self.engine._kv_bytes(*self.engine._jobs.values())
            assert self.engine._prefixes.nbytes + running <= max(self.spec.kv_bytes, running)

    def answer(self, text: str, **options: Any) -> EngineResult:
        id = self.ask(text, **options)
        self.run()
        result = self.said[id][-1]
        assert isinstance(result, EngineResult), result
        return result


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, folder_of: Callable[[str], Path]) -> Path:
    return folder_of(request.param)


def test_a_shared_beginning_is_prefilled_once_and_changes_no_answer(folder: Path) -> None:
    warm, cold = Driven(folder), Driven(folder, kv_bytes=0)
    questions = [f"{DOCUMENT} Question {n}: when?" for n in ("one", "two", "three", "four")]
    answers = [warm.answer(question) for question in questions]
    expected = [cold.answer(question) for question in questions]
    assert [answer.text for answer in answers] == [answer.text for answer in expected]
    assert not any(answer.cached_tokens for answer in expected)
    # a cache that can be cut serves the second question; the others take a snapshot there, which serves the third
    first_hit = 1 if "llama" in folder.name else 2
    for answer in answers[first_hit:]:
        assert answer.cached_tokens > 0.9 * answer.prompt_tokens
    assert answers[0].cached_tokens == 0


def test_ten_questions_to_one_file_prefill_it_once(folder_of: Callable[[str], Path]) -> None:
    driven = Driven(folder_of("llama"), context_length=4096)
    answers = [driven.answer(f"{DOCUMENT * 7} Question {n}?", max_tokens=1) for n in range(10)]
    assert answers[0].prompt_tokens > 3000 and answers[0].cached_tokens == 0
    prefilled = sum(answer.prompt_tokens - answer.cached_tokens for answer in answers)
    assert prefilled < answers[0].prompt_tokens * 1.05


def test_requests_that_run_together_share_what_the_first_has_prefilled(folder: Path) -> None:
    driven, cold = Driven(folder), Driven(folder, kv_bytes=0, concurrency=1)
    questions = [f"{DOCUMENT} Question {n}: when?" for n in range(4)]
    ids = [driven.ask(question, max_tokens=12) for question in questions]
    driven.run()
    results = [driven.said[id][-1] for id in ids]
    assert [result.text for result in results] == [cold.answer(q, max_tokens=12).text for q in questions]
    cut = "llama" in folder.name
    assert [result.cached_tokens > 400 for result in results] == [False, cut, True, True]


def test_what_a_cancelled_or_failed_request_leaves_is_right(folder: Path) -> None:
    warm, cold = Driven(folder), Driven(folder, kv_bytes=0)
    question = f"{DOCUMENT} And now?"
    cancelled = warm.ask(question)
    while not any(isinstance(said, Prefilling) and said.done_tokens >= 256 for said in warm.said.get(cancelled, ())):
        warm.engine.step()
    warm.engine.cancel(cancelled)
    assert warm.engine.patience_s is None
    again = warm.answer(question)
    assert again.text == cold.answer(question).text and again.cached_tokens >= 256
    failing = warm.ask(f"{DOCUMENT} Fail.", repetition_penalty=1.5)
    warm.engine._waiting[0].steering.failure = ValueError("broken")
    warm.run()
    assert isinstance(warm.said[failing][-1], Failure)
    other = f"{DOCUMENT} Fail not."
    assert warm.answer(other).text == cold.answer(other).text


def test_a_batch_that_breaks_fails_its_requests_and_takes_the_prefix_cache_with_it(
    folder_of: Callable[[str], Path],
) -> None:
    driven = Driven(folder_of("llama"))
    expected = driven.answer(f"{DOCUMENT} Go on.").text

    def broken(request: GenerationRequest) -> Any:
        raise RuntimeError("broken")

    id = driven.ask(f"{DOCUMENT} Break.", temperature=1.0, top_p=0.5)
    driven.engine.step()
    driven.engine._generator._prompt_batch.samplers[:] = [broken]
    driven.run()
    assert isinstance(driven.said[id][-1], Failure) and "RuntimeError" in driven.said[id][-1].error["found"]
    again = driven.answer(f"{DOCUMENT} Go on.")
    assert again.text == expected and again.cached_tokens == 0


def test_the_least_recently_used_cache_goes_when_running_requests_need_its_room(
    folder_of: Callable[[str], Path],
) -> None:
    per_token = Driven(folder_of("llama")).loaded.kv_bytes_per_token
    driven = Driven(folder_of("llama"), kv_bytes=1024 * per_token)
    for name in ("a", "b"):
        driven.answer(f"{name} {DOCUMENT[:1500]}")
    assert driven.answer(f"a {DOCUMENT[:1500]}").cached_tokens  # b is now the older one
    driven.answer("c", max_tokens=300)
    assert not driven.answer(f"b {DOCUMENT[:1500]}").cached_tokens


def test_a_lower_limit_drops_what_is_kept_at_once_and_a_higher_one_keeps_more(
    folder_of: Callable[[str], Path],
) -> None:
    per_token = Driven(folder_of("llama")).loaded.kv_bytes_per_token
    driven = Driven(folder_of("llama"), kv_bytes=2048 * per_token)
    first = driven.answer(f"a {DOCUMENT}")
    assert driven.answer(f"a {DOCUMENT}").cached_tokens == first.prompt_tokens - 1
    running = driven.ask("Go on.", max_tokens=200)
    for _ in range(20):
        driven.engine.step()
    driven.engine.limit(driven.engine._kv_bytes(*driven.engine._jobs.values()))
    assert driven.engine._prefixes.nbytes == 0 and driven.engine._jobs
    driven.run()
    assert isinstance(driven.said[running][-1], EngineResult), "what runs goes on"
    driven.engine.limit(0)
    assert not driven.answer(f"a {DOCUMENT}").cached_tokens and driven.engine._prefixes.nbytes == 0
    driven.engine.limit(2048 * per_token)
    driven.answer(f"a {DOCUMENT}")
    assert driven.answer(f"a {DOCUMENT}").cached_tokens == first.prompt_tokens - 1


def naive(driven: Driven, text: str, labels: tuple[str, ...]) -> list[float]:
    """One whole forward pass for each label."""
    tokenizer, model = driven.engine._tokenizer, driven.engine._model
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
    scores = []
    for label in labels:
        own = tokenizer.encode(label, add_special_tokens=False)
        logits = model(mx.array([[*prompt, *own]])).astype(mx.float32)[0, len(prompt) - 1 : -1]
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        scores.append(float(logprobs[mx.arange(len(own)), mx.array(own)].sum().item()))
    return scores


def test_label_scores_are_those_of_a_whole_forward_pass_for_each(folder: Path) -> None:
    driven = Driven(folder)
    labels = ("A", "coding", "coding_large_context", "code review")
    tokens = [driven.engine._tokenizer.encode(label, add_special_tokens=False) for label in labels]
    assert {len(each) for each in tokens} >= {1, 2, 5}
    text = DOCUMENT[:1200]
    expected = naive(driven, text, labels)
    for _ in range(2):  # prefilled, and then from the cache
        id = driven.score(text, *labels)
        driven.run()
        scored = driven.said[id][-1]
        assert isinstance(scored, Scored), scored
        assert scored.logprobs == pytest.approx(expected, abs=1e-3)
    cold = Driven(folder, kv_bytes=0)
    answer = driven.answer(text)
    assert answer.text == cold.answer(text).text and answer.cached_tokens == answer.prompt_tokens - 1


def test_a_leased_engine_decodes_on_while_a_prompt_waits_for_each_of_its_chunks(
    folder_of: Callable[[str], Path],
) -> None:
    driven = Driven(folder_of("llama"), leased=True)
    first = driven.ask("Go on.", max_tokens=30)
    driven.run(grants=False)
    assert driven.said == {0: ["want"]} and driven.engine.patience_s == 1.0
    driven.engine.grant()
    driven.engine.step()
    assert driven.said[0] == ["want", "done"]
    long = driven.ask(DOCUMENT, max_tokens=1)
    driven.run(grants=False)
    assert isinstance(driven.said[first][-1], EngineResult), "it did not decode while the other waited"
    assert long not in driven.said and driven.said[0] == ["want", "done", "want"]
    driven.run()
    chunks = sum(isinstance(said, Prefilling) for said in driven.said[long]) - 1  # the last is the first token's
    assert driven.said[0] == ["want", "done", *["want", "done"] * chunks]
    waits = driven.ask(f"Other {DOCUMENT}")
    driven.run(grants=False)
    driven.engine.cancel(waits)
    assert driven.said[0][-2:] == ["want", "done"] and driven.engine.patience_s is None
    driven.engine.grant()  # too late
    assert driven.ask(f"More {DOCUMENT}") and driven.run(grants=False) is None
    assert driven.said[0][-1] == "want"


@pytest.fixture
def adapter(folder_of: Callable[[str], Path], tmp_path: Path) -> Path:
    """A LoRA of rank 2 over the queries of both layers of the Llama, as mlx-lm stores it."""
    config = {
        "num_layers": 2,
        "lora_parameters": {"rank": 2, "scale": 8.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]},
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    mx.random.seed(2)
    names = [f"model.layers.{layer}.self_attn.q_proj.lora_" for layer in (0, 1)]
    weights = {f"{name}a": mx.random.normal((64, 2)) for name in names}
    weights |= {f"{name}b": mx.random.normal((2, 64)) for name in names}
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), weights)
    return tmp_path


def test_an_adapter_changes_the_answers_and_one_that_does_not_fit_is_refused(
    folder_of: Callable[[str], Path], adapter: Path
) -> None:
    plain, adapted = Driven(folder_of("llama")), Driven(folder_of("llama"), adapter=adapter)
    assert adapted.answer("Go on.").text != plain.answer("Go on.").text
    assert adapted.loaded.weights_bytes == plain.loaded.weights_bytes + 2 * 2 * 128 * 4
    engine = plain.engine
    mx.save_safetensors(str(adapter / "adapters.safetensors"), {"model.layers.0.nothing.lora_a": mx.zeros((64, 2))})
    with pytest.raises(ModelCorrupt, match="adapter"):
        _load(engine, 1, adapted.spec, lambda id, body: None)
    (adapter / "adapters.bin").write_bytes(b"x")
    with pytest.raises(ModelRefused, match=r"adapters\.bin"):
        _load(engine, 1, adapted.spec, lambda id, body: None)
