"""What the parser's two processes agree on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

OUT_OF_MEMORY = 77  # the exit status of a child that was refused memory


@dataclass(frozen=True, slots=True)
class Limits:
    """What one file may take, in seconds of processor time and bytes of resident memory (of the child in all); and how
    its text is cut, in tokens of the embedder whose `tokenizer.json` this is."""

    chunk_tokens: int
    tokenizer: Path | None = None
    cpu_s: float = 10.0
    memory_bytes: int = 512_000_000

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)


def read_limits(line: str) -> Limits:
    values = json.loads(line)
    tokenizer = values.pop("tokenizer")
    return Limits(tokenizer=Path(tokenizer) if tokenizer else None, **values)
