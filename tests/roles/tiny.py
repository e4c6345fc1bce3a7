"""Model folders of a few kilobytes, with real safetensors headers, for tests that load nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rolecall.config.home import Home
from rolecall.roles.footprint import Kv, stepped

ROUTER = "mlx-community/Qwen3-4B-Instruct-2507-8bit"
REASONING = "mlx-community/DeepSeek-R1-Distill-Qwen-14B-8bit"
CODING = "mlx-community/Qwen3-1.7B-8bit"
HEAVY = "mlx-community/DeepSeek-R1-Distill-Qwen-32B-4bit"


def write_safetensors(file: Path, data: bytes = bytes(64)) -> None:
    header = {"weight": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_model(folder: Path, data: bytes = bytes(64), **config: Any) -> Path:
    """A folder that looks like a model of `len(data)` bytes of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64, **config}))
    write_safetensors(folder / "model.safetensors", data)
    return folder


def home_with(path: Path, *models: str) -> Home:
    home = Home(path / "home").create()
    for model in models:
        write_model(home.models / model)
    return home


def kv_bytes(kv: Kv, tokens: int, chunk_tokens: int) -> int:
    """Exactly what one sequence takes after a prefill of `tokens` in chunks: a power of two, at most the last shorter.

    A window layer keeps what the last chunk may see and the chunk itself; growing layers go in steps of 256 tokens.
    """
    last = tokens % chunk_tokens or min(tokens, chunk_tokens)
    less = sum(width * (window - min(tokens - last, window - 1) - last) for window, width in kv.windows)
    return stepped(tokens) * kv.per_token_bytes + kv.fixed_bytes - less
