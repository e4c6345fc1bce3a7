"""What the retrieval benches index: real text and code of this environment's packages, and passages of real words."""

from __future__ import annotations

import random
import re
import sysconfig
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rolecall.config.home import Home
from rolecall.config.settings import RetrievalSettings
from rolecall.retrieval.access import AllowedFolders
from rolecall.retrieval.retriever import LanceRetriever

DIMENSIONS = 384
PASSAGE_WORDS = 60
PASSAGES_A_FILE = 20
SUFFIXES = frozenset((".py", ".pyi", ".md", ".rst", ".txt", ".js", ".h", ".css"))

Vectors = npt.NDArray[np.float32]


class RandomVectors:
    """Random unit vectors for any texts, at no cost: for what does not depend on them."""

    identity = "random-384"

    def __init__(self) -> None:
        self._rng = np.random.default_rng(1)

    async def __call__(self, texts: Sequence[str]) -> Vectors:
        drawn = self._rng.standard_normal((len(texts), DIMENSIONS), dtype=np.float32)
        unit: Vectors = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        return unit


@asynccontextmanager
async def retrieving(
    home: Home,
    settings: RetrievalSettings,
    embed: Callable[[Sequence[str]], Awaitable[Vectors]],
    identity: str,
    tokenizer: Path | None = None,
) -> AsyncIterator[LanceRetriever]:
    retriever = LanceRetriever(home, settings, embed, lambda: identity, AllowedFolders(home), tokenizer)
    try:
        yield retriever
    finally:
        await retriever.aclose()


@cache
def real_files(low_bytes: int, high_bytes: int) -> list[Path]:
    """Text and code of the installed packages of such a size, in an order that is random and always the same."""
    packages = Path(sysconfig.get_path("purelib"))
    found = sorted(
        path
        for path in packages.rglob("*")
        if path.suffix in SUFFIXES and path.is_file() and low_bytes <= path.stat().st_size < high_bytes
    )
    random.Random(1).shuffle(found)
    return found


def copy_real(folder: Path, files: Sequence[Path]) -> None:
    """Copies that no ignore rule leaves out."""
    folder.mkdir(parents=True)
    for number, path in enumerate(files):
        (folder / f"{number:05}-{path.name}").write_bytes(path.read_bytes())


def excerpts(folder: Path, count: int, size_chars: int) -> None:
    """So many small files, each some lines of a real one, of about a size."""
    folder.mkdir(parents=True)
    made = 0
    for path in real_files(2_000, 60_000):
        text = path.read_text("utf-8", errors="ignore")
        for start in range(0, len(text) - size_chars, size_chars):
            (folder / f"{made:05}{path.suffix}").write_text(text[start : start + size_chars].strip() + f"\n# {made}\n")
            made += 1
            if made == count:
                return
    raise SystemExit(f"The installed packages hold text for {made} excerpts, not for {count}.")


@cache
def _words() -> list[str]:
    """Words as often as real prose and code hold them."""
    text = " ".join(path.read_text("utf-8", errors="ignore") for path in real_files(2_000, 60_000)[:1_000])
    return re.findall(r"[A-Za-z_]{2,24}", text)


def passages(folder: Path, count: int) -> None:
    """Files of so many passages in all, each of random real words under a heading of its own."""
    rng, words = random.Random(count), _words()
    folder.mkdir(parents=True)
    for number in range(count // PASSAGES_A_FILE):
        parts = (f"# {rng.choice(words)} {each}\n\n{_line(rng, words)}\n\n" for each in range(PASSAGES_A_FILE))
        (folder / f"{number:05}.md").write_text("".join(parts))


def queries(count: int) -> list[str]:
    """Of five words each, drawn as the passages' are."""
    rng = random.Random(2)
    return [" ".join(rng.choices(_words(), k=5)) for _ in range(count)]


def _line(rng: random.Random, words: list[str]) -> str:
    return " ".join(rng.choices(words, k=PASSAGE_WORDS)) + "."
