"""Run on a small disk of its own: fill it while indexing, make room, index again; says what was seen as JSON."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import anyio

from rolecall.retrieval.errors import RetrievalError

from .embedding import HashEmbedder, opened, stored

FILES = 80
ROOM_BYTES = 400_000


async def main(folder: Path) -> None:
    docs, home, ballast = folder / "docs", folder / "disk" / "home", folder / "disk" / "ballast"
    docs.mkdir()
    rng, told = random.Random(1), list[str]()
    for number in range(FILES):
        words = (f"w{rng.randrange(5_000)}" for _ in range(800))
        (docs / f"{number}.md").write_text(f"# Note {number}\n\n{' '.join(words)}\n")
    with ballast.open("wb") as filled:
        filled.write(bytes(64 * 1024 * 1024 - ROOM_BYTES))
    async with opened(folder, HashEmbedder(), home=home) as retriever:
        try:
            await retriever.add(docs, on_progress=lambda done, total, path, *_: told.append(path))
        except RetrievalError as error:
            seen = {"code": error.code, "found": error.found}
        kept = (await retriever.search("note")).index.indexed
        ballast.unlink()
        completed = (await retriever.add(docs)).indexed
    files, _ = await stored(home / "index")
    assert len(files) == FILES
    print(json.dumps({**seen, "told": len(told), "kept": kept, "completed": completed, "files": FILES}))


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]))
