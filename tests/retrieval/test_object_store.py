"""The index on an object store: the same code, against a local S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rolecall.retrieval.errors import IndexEmpty, RetrievalError

from .embedding import HashEmbedder, opened, stored

pytestmark = pytest.mark.anyio
URI = "s3://documents/rolecall/index"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A local S3 server with one bucket, told of in the environment as a user would."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("OBJECT_STORE_CLIENT_MAX_RETRIES", "0")
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="documents")
        yield URI
    finally:
        server.stop()


async def test_an_index_on_s3_is_added_to_searched_synced_and_removed_by_the_same_code(tmp_path: Path, s3: str) -> None:
    docs, embedder = tmp_path / "docs", HashEmbedder()
    docs.mkdir()
    for number in range(20):
        (docs / f"{number}.md").write_text(f"# Note {number}\n\nThe marker of it is m{number}.\n")
    async with opened(tmp_path, embedder, uri=s3) as retriever:
        assert (await retriever.add(docs)).indexed == 20
        found = await retriever.search("m7")
        assert Path(found.passages[0].path).name == "7.md" and found.index.pending == 0
    assert not list((tmp_path / "home").rglob("*.lance"))
    (docs / "7.md").write_text("# Note 7\n\nThe marker of it is other7.\n")
    (docs / "8.md").unlink()
    (docs / "9.md").rename(docs / "nine.md")
    asked = embedder.passages
    async with opened(tmp_path, embedder, uri=s3) as retriever:  # another process's look at the same bucket
        assert (await retriever.search("m7")).index.pending == 4
        (report,) = await retriever.sync()
        assert report.indexed == 19
        assert embedder.passages == asked + 1
        found = await retriever.search("other7")
        assert Path(found.passages[0].path).name == "7.md" and found.index.pending == 0
        files, chunks = await stored(s3)
        assert len(files) == len(chunks) == 19
        assert await retriever.remove("docs") == 19
        with pytest.raises(IndexEmpty):
            await retriever.search("m7")


async def test_a_bucket_that_is_not_there_and_a_server_that_does_not_answer_are_no_damage_to_the_index(
    tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.md").write_text("text\n")
    async with opened(tmp_path, HashEmbedder(), uri="s3://nowhere/index") as retriever:
        with pytest.raises(RetrievalError, match=r"nowhere.*Check `retrieval\.uri`") as missing:
            await retriever.add(docs)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    async with opened(tmp_path, HashEmbedder(), uri=s3) as retriever:
        with pytest.raises(RetrievalError, match=r"127\.0\.0\.1:9.*Check `retrieval\.uri`") as silent:
            await retriever.search("text")
    assert missing.value.code == silent.value.code == RetrievalError.code
