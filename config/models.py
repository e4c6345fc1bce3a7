"""The table of known models: architecture figures, published sizes, other names."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Annotated, Any

import yaml
from pydantic import Field

from .profile import Strict


class ModelFigures(Strict):
    """What the router weighs of a model: rates in tokens/s, and quality in [0, 1] by task type (`scores`), or for any
    other type `prior`. `models.yaml` says which are published and which estimated."""

    prefill_tps: float = Field(gt=0)
    decode_tps: float = Field(gt=0)
    prior: float = Field(ge=0, le=1)
    scores: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default={})


class ModelEntry(Strict):
    """One repository. `architecture` is its `config.json` figures, or None where they are not known: then the
    published decimal GB on disk and KV KiB per token (16 bit) stand in, and a plan says `"source": "published"`.
    `quantization` adds to `bits` and `group_size` what layers whose names end so have instead.

    `aliases` are LM Studio ids and short names that mean this repository.
    """

    repository: str
    bits: int
    group_size: int = 64
    quantization: dict[str, Any] = Field(default={})
    published_gb: float
    kv_kib_per_token: float
    fixed_mib: float = 0.0
    context_length: int
    figures: ModelFigures | None = None
    architecture: dict[str, Any] | None = None
    aliases: Annotated[tuple[str, ...], Field(strict=False)] = ()


def load_yaml(text: str) -> Any:
    """The value of one YAML document, by the C parser where PyYAML has it, which is ten times faster at start."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def packaged(name: str) -> Any:
    """The value of a packaged YAML file, such as `routing/rules.yaml`."""
    return load_yaml(files("rolecall.config").joinpath(name).read_text("utf-8"))


@cache
def models_table() -> Mapping[str, ModelEntry]:
    """Known repositories by id."""
    data = packaged("models.yaml")
    architectures: dict[str, dict[str, Any]] = data["architectures"]
    table = {}
    for repository, entry in data["models"].items():
        if "architecture" in entry:
            entry["architecture"] = architectures[entry["architecture"]]
        table[repository] = ModelEntry(repository=repository, **entry)
    return table


def known_repository(name: str) -> str | None:
    """The repository that an id, an LM Studio id or a short name of the table stands for; case does not matter."""
    wanted = name.strip().lower()
    for repository, entry in models_table().items():
        if wanted in (repository.lower(), *(alias.lower() for alias in entry.aliases)):
            return repository
    return None
