"""Profiles: which model holds which role on a machine of which size."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Encoder = Literal["embedder", "reranker"]
Engines = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]  # YAML has lists only


class Frozen(BaseModel):
    """A value that is passed on unchanged, and has no other keys than these."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Strict(Frozen):
    """What may stand in a file of settings, or comes from this program alone: right types, finite numbers."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class RoleSpec(Strict):
    """One role of a profile. `timeout_s` counts per model call from its first prefill step; `idle_ttl_s` 0 keeps it.

    `engines` in order of preference: `mlx` (worker processes here), or keys of the settings' `endpoints`. `adapter` is
    the folder of a LoRA adapter over `model`.
    """

    model: str
    quantization: str = ""
    engines: Engines = ("mlx",)
    adapter: str | None = None
    context_length: int = Field(gt=0)
    concurrency: int = Field(default=1, gt=0)
    timeout_s: float = Field(gt=0)
    max_tokens: int = Field(default=1024, gt=0)
    thinks: bool = False
    thinking_budget: int | None = None
    repetition_penalty: float | None = None
    pinned: bool = False
    idle_ttl_s: float = 0.0


class EncoderSpec(Strict):
    """A model of sentence-transformers, and how much it reads of one text (of a query and a text, in a reranker)."""

    model: str
    max_tokens: int = Field(default=256, gt=0)


class Profile(Strict):
    """The staff for one size of machine. Sizes in decimal GB."""

    name: str
    description: str
    budget_gb: float = Field(gt=0)
    cache_limit_gb: float = Field(gt=0)
    roles: dict[str, RoleSpec]
    embedder: EncoderSpec
    reranker: EncoderSpec | None = None

    @property
    def encoders(self) -> dict[Encoder, EncoderSpec]:
        """Those that it has, by what they do."""
        specs: dict[Encoder, EncoderSpec | None] = {"embedder": self.embedder, "reranker": self.reranker}
        return {name: spec for name, spec in specs.items() if spec}
