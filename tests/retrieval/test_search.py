"""Questions to a real index: legs, filters, duplicates, a reranker, and what is not quoted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from rolecall.config.errors import RolecallError

from .embedding import HashEmbedder, names, opened

pytestmark = pytest.mark.anyio


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "valve.md").write_text("# Valve\n\nThe valve of the northern pump opens at 42 bar.\n")
    (folder / "tea.md").write_text("# Tea\n\nGreen tea wants water of 70 degrees.\n")
    return folder


async def test_each_leg_can_be_asked_alone(tmp_path: Path, docs: Path) -> None:
    async with opened(tmp_path, HashEmbedder()) as retriever:
        await retriever.add(docs)
        text, dense, fused = [await retriever.search("valve opens", leg=leg) for leg in ("text", "dense", "fused")]
    assert names(text) == ["valve.md"] and text.answerable is None
    assert names(dense) == names(fused) == ["valve.md", "tea.md"]
    assert dense.answerable is None and fused.answerable is None  # too few passages to tell


async def test_inflected_words_find_each_other_in_full_text(tmp_path: Path, docs: Path) -> None:
    (docs / "abwehr.md").write_text("Die Verteidiger des Tores standen tief.\n")
    async with opened(tmp_path, HashEmbedder()) as retriever:
        await retriever.add(docs)
        assert names(await retriever.search("Verteidigung", leg="text")) == ["abwehr.md"]


async def test_near_duplicates_stand_once_and_other_numbers_are_no_duplicates(tmp_path: Path, docs: Path) -> None:
    text = "The valve of the northern pump opens at {} bar and closes again when the pressure has gone."
    (docs / "copy.md").write_text(text.format(42))
    (docs / "shouted.md").write_text(text.format(42).upper().replace(",", ";"))
    (docs / "other.md").write_text(text.format(43))
    async with opened(tmp_path, HashEmbedder()) as retriever:
        await retriever.add(docs)
        found = names(await retriever.search("when does the valve of the pump close?"))
    assert len({"copy.md", "shouted.md"} & set(found)) == 1
    assert "other.md" in found


async def test_a_reranker_has_the_last_word_and_search_goes_on_without_it(tmp_path: Path, docs: Path) -> None:
    async def prefers_tea(query: str, texts: Sequence[str]) -> list[float]:
        return [float("tea" in text) for text in texts]

    async def is_missing(query: str, texts: Sequence[str]) -> list[float]:
        raise RolecallError("The reranker is not on disk.")

    for rerank, first in ((prefers_tea, "tea.md"), (is_missing, "valve.md")):
        async with opened(tmp_path, HashEmbedder(), rerank=rerank) as retriever:
            await retriever.add(docs)
            found = await retriever.search("valve opens")
        assert names(found)[0] == first
        assert [each.score for each in found.passages] == sorted((each.score for each in found.passages), reverse=True)
