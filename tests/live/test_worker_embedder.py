"""The sentence embedder in its own process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import numpy as np
import psutil
import pytest

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
    vectors = await embedder.embed(TEXTS)
    assert vectors.shape == (4, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    assert vectors[0] @ vectors[2] > 0.7 > vectors[0] @ vectors[1]


async def test_alone_a_text_has_the_same_bits_whatever_stands_beside_it(embedder: Worker) -> None:
    together = await embedder.embed(TEXTS, alone=True)
    for text, vector in zip(TEXTS, together, strict=True):
        assert (await embedder.embed([text], alone=True)).tobytes() == vector.tobytes()


async def test_a_decision_does_not_wait_for_a_folder_that_is_being_indexed(embedder: Worker) -> None:
    finished: list[str] = []

    async def index() -> None:
        await embedder.embed([f"{n} passages about many things. " * 30 for n in range(24)])
        finished.append("index")

    async with anyio.create_task_group() as group:
        group.start_soon(index)
        while not embedder._calls:
            await anyio.lowlevel.checkpoint()
        await embedder.embed(["What is 2 + 2?"], alone=True)
        finished.append("decision")
    assert finished == ["decision", "index"]


async def test_no_texts_give_no_rows(embedder: Worker) -> None:
    assert (await embedder.embed([])).shape == (0, 384)
