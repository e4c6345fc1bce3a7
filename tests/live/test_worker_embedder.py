"""The sentence encoders in their own processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import numpy as np
import psutil
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rolecall.config.home import Home
from rolecall.config.profile import EncoderSpec
from rolecall.config.settings import load_settings
from rolecall.roles.errors import ModelCorrupt
from rolecall.roles.manager import ModelManager
from rolecall.roles.starter import EMBEDDER
from rolecall.roles.worker.process import Worker, WorkerSpec

pytestmark = [pytest.mark.live, pytest.mark.anyio]

TEXTS = ["A cat sat on the mat.", "The invoice is due on Friday.", "a cat is sitting on a mat", "x"]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def embedder(starter_models: Path, anyio_backend: str) -> AsyncIterator[Worker]:
    spec = WorkerSpec(
        "embedder", starter_models / EMBEDDER, EMBEDDER, context_length=256, concurrency=1, cache_limit_bytes=0
    )
    worker = await Worker.start(spec)
    loaded = await worker.load(spec)
    assert loaded.weights_bytes > 80_000_000
    yield worker
    assert await worker.stop() == "exited"
    assert not psutil.pid_exists(worker.pid)


async def test_vectors_have_unit_length_keep_the_order_and_tell_meanings_apart(embedder: Worker) -> None:
    vectors = await embedder.encode(TEXTS)
    assert vectors.shape == (4, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    assert vectors[0] @ vectors[2] > 0.7 > vectors[0] @ vectors[1]


async def test_alone_a_text_has_the_same_bits_whatever_stands_beside_it(embedder: Worker) -> None:
    together = await embedder.encode(TEXTS, alone=True)
    for text, vector in zip(TEXTS, together, strict=True):
        assert (await embedder.encode([text], alone=True)).tobytes() == vector.tobytes()


async def test_a_decision_does_not_wait_for_a_folder_that_is_being_indexed(embedder: Worker) -> None:
    finished: list[str] = []

    async def index() -> None:
        await embedder.encode([f"{n} passages about many things. " * 30 for n in range(24)])
        finished.append("index")

    async with anyio.create_task_group() as group:
        group.start_soon(index)
        while not embedder._calls:
            await anyio.lowlevel.checkpoint()
        await embedder.encode(["What is 2 + 2?"], alone=True)
        finished.append("decision")
    assert finished == ["decision", "index"]


async def test_no_texts_give_no_rows(embedder: Worker) -> None:
    assert (await embedder.encode([])).shape == (0, 384)


async def test_of_a_long_text_the_first_tokens_are_read(embedder: Worker) -> None:
    long = await embedder.encode(["A cat sat on the mat. " * times for times in (60, 600)])
    np.testing.assert_allclose(long[0], long[1], atol=1e-6)


async def test_vectors_are_those_of_sentence_transformers(embedder: Worker, starter_models: Path) -> None:
    texts = [f"{n} " + "passages about many things. " * (n % 40) for n in range(80)]
    bare = SentenceTransformer(str(starter_models / EMBEDDER), device="cpu", local_files_only=True)
    for query, expected in (False, bare.encode_document(texts)), (True, bare.encode_query(texts)):
        np.testing.assert_allclose(await embedder.encode(texts, query=query), expected, atol=1e-6)


async def test_queries_and_documents_get_the_models_own_prompts(starter_models: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(starter_models / EMBEDDER), device="cpu", local_files_only=True)
    model.prompts = {"query": "", "web_search_query": "search for: ", "document": "passage: "}
    model.save(str(tmp_path))
    spec = WorkerSpec("embedder", tmp_path, "tester/prompted", context_length=256, concurrency=1, cache_limit_bytes=0)
    worker = await Worker.start(spec)
    try:
        await worker.load(spec)
        query, document = await worker.encode(["x"], query=True), await worker.encode(["x"])
        plain = model.encode(["search for: x", "passage: x"], prompt="")
        np.testing.assert_allclose(np.concatenate([query, document]), plain, atol=1e-6)
    finally:
        await worker.stop()


def write_reranker(source: Path, folder: Path, labels: int = 1) -> Path:
    """A cross-encoder with the embedder's weights and a head of its own."""
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_pretrained(source, num_labels=labels).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


async def test_scores_are_those_of_the_cross_encoder_that_the_profile_names(
    starter_models: Path, starter_home: Home, tmp_path: Path
) -> None:
    query, name = "who sat on the mat?", "tester/reranker"
    starter_home.models.unlink()
    folder = write_reranker(starter_models / EMBEDDER, starter_home.models / name)
    expected = CrossEncoder(str(folder), device="cpu", local_files_only=True).predict([(query, text) for text in TEXTS])
    settings = load_settings(starter_home, profile="starter")
    profile = settings.profile.model_copy(update={"reranker": EncoderSpec(model=name)})
    async with ModelManager(starter_home, settings.model_copy(update={"profile": profile})) as models:
        np.testing.assert_allclose(await models.rerank(query, TEXTS), expected, atol=1e-6)
        assert await models.rerank(query, []) == []
        (resident,) = models.resident()
        assert resident.roles == ("reranker",) and 0 < resident.measured_bytes <= resident.reserved_bytes


@pytest.mark.soak
async def test_a_classifier_of_several_labels_is_no_reranker(starter_models: Path, tmp_path: Path) -> None:
    folder = write_reranker(starter_models / EMBEDDER, tmp_path / "model", labels=3)
    spec = WorkerSpec("reranker", folder, "tester/nli", context_length=256, concurrency=1, cache_limit_bytes=0)
    worker = await Worker.start(spec)
    try:
        with pytest.raises(ModelCorrupt, match="3 scores for a pair"):
            await worker.load(spec)
    finally:
        await worker.stop()
