"""Model folders of a few kilobytes, with real safetensors headers, for tests that load nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rolecall.config.home import Home

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
