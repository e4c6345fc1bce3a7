"""What indexing a folder would do, told before it is done."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from .contract import Embed, Preview
from .sources import Tree

SHOWN_FOLDERS = 10
SAMPLE_PASSAGES = 16  # embedded to tell how long an index takes
BYTES_PER_TOKEN = 4


async def preview(folder: Path, tree: Tree, embed: Embed | None, chunk_tokens: int) -> Preview:
    """The files of a folder by kind and by folder; with an embedder, how long they take it, by a sample of passages."""
    size_bytes = sum(source.size_bytes for source in tree.sources)
    folders = Counter(str(Path(source.path).parent) for source in tree.sources)
    return Preview(
        folder=str(folder),
        files=len(tree.sources),
        size_bytes=size_bytes,
        kinds=Counter(source.kind for source in tree.sources),
        skipped=tree.skipped,
        folders=dict(folders.most_common(SHOWN_FOLDERS)),
        failed=tree.failed,
        seconds=None if embed is None else round(size_bytes / await _bytes_per_s(embed, chunk_tokens), 1),
    )


async def _bytes_per_s(embed: Embed, chunk_tokens: int) -> float:
    passage = "word " * chunk_tokens
    await embed([passage])  # the first call may load the embedder
    started = time.monotonic()
    await embed([passage] * SAMPLE_PASSAGES)
    return SAMPLE_PASSAGES * chunk_tokens * BYTES_PER_TOKEN / (time.monotonic() - started)
