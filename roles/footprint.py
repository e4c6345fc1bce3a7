"""What one model takes in memory: weights, KV cache per token, fixed state and the transients of a step.

Weights come from safetensors headers, or from the architecture instantiated without weights; the KV cache comes from a
dry run of the model's own code that computes shapes and never values, so that sliding windows, hybrids and MLA are
right where formulas are not. Both run in a short-lived process of their own: the caller never imports mlx. What a
worker measured once it had loaded the model replaces what was planned.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel

from rolecall.config.home import Home
from rolecall.config.models import models_table
from rolecall.config.settings import GB

from .errors import ModelRefused, ModelUnknown, RoleError
from .manifest import corrupt, read_json, weights_bytes, write_whole

if TYPE_CHECKING:
    from .worker.wire import Loaded

KV_STEP_TOKENS = 256  # Source: mlx-lm's KVCache.step
DRY_RUN_TIMEOUT_S = 300.0
# Source: `use_fallback` of mlx/backend/metal/scaled_dot_product_attention.cpp for more than 8 queries in mlx 0.32.0;
# later ones add 72 and 96. 256 is fused only from 1,024 queries on, more than a chunk has, and on the newest GPUs.
FUSED_HEAD_DIMS = (64, 80, 128)
UNKNOWN_TRANSIENT_BYTES = 250_000_000
COPIES_IN_FLIGHT = 8  # of a layer's cache. Source: 7 to 8 measured on the CPU as prompts join a batch
_FORMAT = 3


def stepped(tokens: int) -> int:
    """The tokens for which mlx-lm allocates a cache that holds so many."""
    return -(-tokens // KV_STEP_TOKENS) * KV_STEP_TOKENS


def prefill_step_tokens(mac: bool) -> int:
    """The longest chunk that a worker prefills at once: what a plan reserves working memory for."""
    return 512 if mac else 128


class Kv(NamedTuple):
    """One sequence's cache in bytes: what grows with each token, and what does not (recurrent state, full windows).

    `windows`: (tokens kept, bytes per token) of sliding-window layers; their full size is in `fixed_bytes`.
    """

    per_token_bytes: int
    fixed_bytes: int = 0
    windows: tuple[tuple[int, int], ...] = ()

    def reserved_bytes(self, tokens: int, sequences: int, chunk_tokens: int) -> int:
        """The most that `sequences` may take which have `tokens` together, one of them in prefill."""
        prefilled = sum(width * (chunk_tokens - 1) for _, width in self.windows)
        return stepped(tokens) * self.per_token_bytes + sequences * self.fixed_bytes + prefilled


class Footprint(BaseModel, frozen=True):
    """Bytes. `overhead_bytes` beside the weights were measured in a worker's process, 0 where none was.

    `source`: `computed` from architecture figures, `files` on disk, `published` in the table, or `measured` in a
    worker.
    """

    weights_bytes: int
    kv: Kv
    figures: dict[str, Any] = {}
    source: Literal["computed", "files", "published", "measured"]
    overhead_bytes: int = 0

    @property
    def kv_bytes_per_token(self) -> int:
        return self.kv.per_token_bytes

    @property
    def context_length(self) -> int | None:
        """The longest context that the model was made for, in tokens, where it is known."""
        return self.figures.get("max_position_embeddings")

    def transient_bytes(self, context_tokens: int, kv_bytes: int, mac: bool) -> int:
        """An upper estimate of what a step takes beside weights and `kv_bytes` of cache.

        Two layers' activations and logits; off a Mac also what its fused kernels avoid, attention scores and recurrent
        states, and copies of layers while the cache grows (on a Mac, where fewer and larger operations are in flight,
        they fit within the cache limit, which is reserved as well).
        """
        size = defaultdict(int, {name: value for name, value in self.figures.items() if isinstance(value, int)})
        if not (hidden := size["hidden_size"]):
            return UNKNOWN_TRANSIENT_BYTES
        step = min(prefill_step_tokens(mac), context_tokens)
        width = 4 if self.figures.get("torch_dtype") == "float32" else 2
        heads = size["num_attention_heads"] or 1
        head_dim = size["head_dim"] or hidden // heads
        inner = (size["moe_intermediate_size"] or size["intermediate_size"] or 4 * hidden) * 3
        linear = size["linear_num_value_heads"] * size["linear_value_head_dim"]
        mixed = heads * head_dim + linear + size["mamba_num_heads"] * size["mamba_head_dim"]
        inner *= size["num_experts_per_tok"] or 1
        activations = 2 * step * width * (8 * hidden + inner + 4 * mixed) + 3 * 4 * size["vocab_size"]
        scores = 0 if mac and head_dim in FUSED_HEAD_DIMS else 2 * heads * step * context_tokens * 4
        states = 0 if mac else step * linear * size["linear_key_head_dim"] * 4
        layers = max(COPIES_IN_FLIGHT, size["num_hidden_layers"])
        copies = 0 if mac else COPIES_IN_FLIGHT * kv_bytes // layers
        return activations + scores + states + copies


def quick_footprint(home: Home, model: str) -> Footprint | None:
    """What is known without a dry run: figures that were kept, else headers and the table; None where it needs one."""
    if kept := _kept(home).get(_key(home, model)):
        return Footprint.model_validate(kept)
    folder, entry = home.models / model, models_table().get(model)
    present = (folder / "config.json").is_file()
    if present and (folder / "modules.json").is_file():
        return Footprint(weights_bytes=weights_bytes(folder), kv=Kv(0), source="files")
    if entry is None:
        return None
    kv = Kv(int(entry.kv_kib_per_token * 1024), int(entry.fixed_mib * 1024**2))
    known = {"max_position_embeddings": entry.context_length, **(entry.architecture or {})}
    size = Footprint(weights_bytes=int(entry.published_gb * GB), kv=kv, figures=figures_of(known), source="published")
    return size.model_copy(update={"weights_bytes": weights_bytes(folder), "source": "files"}) if present else size


def footprints(home: Home, models: Sequence[str], configs: Mapping[str, Any] | None = None) -> dict[str, Footprint]:
    """Exact footprints of models; those not kept yet are worked out in one process (seconds) and kept. Blocking.

    `configs`: the `config.json` of models of which only that is known. Raises ModelUnknown for one neither there, nor
    on disk, nor in the table, ModelCorrupt for one that mlx-lm cannot read.
    """
    kept, configs = _kept(home), configs or {}
    found: dict[str, Footprint] = {}
    keys = {model: _key(home, model, configs.get(model)) for model in models}
    jobs: dict[str, dict[str, Any]] = {}
    for model in keys:
        if old := kept.get(keys[model]):
            found[model] = Footprint.model_validate(old)
        elif job := _job(home, model, configs.get(model)):
            jobs[model] = job
        elif quick := quick_footprint(home, model):
            found[model] = quick
        else:
            raise unknown_model(model, f"Its size is known once it is here: rolecall models pull {model}")
    for model, answer in zip(jobs, _dry_runs(list(jobs.values())), strict=True):
        if "error" in answer:
            raise _unreadable(model, answer["error"])
        source = "files" if "folder" in jobs[model] else "computed"
        more = {"figures": figures_of(jobs[model]["config"]), "source": source}
        found[model] = Footprint.model_validate(answer | more)
    if jobs:
        _keep(home, {keys[model]: found[model] for model in jobs})
    return found


def remember(home: Home, model: str, loaded: Loaded) -> None:
    """Let the next plan of a model use what its worker measured; of overheads, the largest seen. Blocking."""
    if (known := quick_footprint(home, model)) is None:
        return
    kv = Kv(loaded.kv_bytes_per_token, loaded.fixed_state_bytes)
    update = {
        "weights_bytes": loaded.weights_bytes,
        "kv": known.kv if kv[:2] == known.kv[:2] else kv,  # a worker does not tell windows apart
        "overhead_bytes": max(known.overhead_bytes, loaded.measured_bytes - loaded.weights_bytes),
        "source": "measured",
    }
    _keep(home, {_key(home, model): known.model_copy(update=update)})


def unknown_model(name: str, advice: str = "See `rolecall models list`.") -> ModelUnknown:
    """The error for a name that means no model: it names the nearest that does, else gives `advice`."""
    near = difflib.get_close_matches(name, models_table(), n=1)
    return ModelUnknown(
        "No such model is on disk or in the table.",
        found=repr(name),
        allowed="a role, a repository id such as org/name, a known other name, or a folder",
        advice=f"Did you mean {near[0]}?" if near else advice,
    )


def _unreadable(model: str, error: str) -> RoleError:
    if "not supported" in error:
        return ModelRefused(
            f"mlx-lm does not know the architecture of model {model!r}.",
            found=error,
            allowed="an architecture of the installed mlx-lm",
            advice="Choose another model, or an OpenAI-compatible engine that runs it.",
        )
    return corrupt(model, f"mlx-lm cannot read it: {error}")


def _job(home: Home, model: str, config: dict[str, Any] | None) -> dict[str, Any] | None:
    """What a dry run needs, None for an embedder or where too little is known."""
    folder, entry = home.models / model, models_table().get(model)
    if config is not None:
        return {"config": config}
    if (folder / "config.json").is_file():
        on_disk = {"config": read_json(folder / "config.json", model), "folder": str(folder)}
        return None if (folder / "modules.json").is_file() else on_disk
    if entry is None or entry.architecture is None:
        return None
    form: dict[str, Any] = {"quantization": {"group_size": entry.group_size, "bits": entry.bits, **entry.quantization}}
    if entry.bits == 32:
        form = {"torch_dtype": "float32"}
    return {"config": {"max_position_embeddings": entry.context_length, **entry.architecture, **form}}


def figures_of(config: dict[str, Any]) -> dict[str, Any]:
    """The plain figures of a `config.json`, its language model's among them; the `dtype` under its older name."""
    flat = {**config, **config.get("text_config", {})}
    flat.setdefault("torch_dtype", flat.get("dtype"))
    return {name: value for name, value in flat.items() if isinstance(value, int | str)}


def _key(home: Home, model: str, config: Mapping[str, Any] | None = None) -> str:
    """Changes with the files, the figures or the version of the reader, so that nothing stale is used."""
    folder, entry = home.models / model, models_table().get(model)
    parts: list[Any] = [_FORMAT, model, config, entry and entry.model_dump(mode="json")]
    if (folder / "config.json").is_file() and config is None:
        statuses = [(file, file.stat()) for file in sorted([folder / "config.json", *folder.glob("*.safetensors")])]
        parts += [[file.name, status.st_size, status.st_mtime_ns] for file, status in statuses]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _kept(home: Home) -> dict[str, Any]:
    try:
        return dict(json.loads((home.root / "footprints.json").read_bytes()))
    except (OSError, ValueError):
        return {}


def _keep(home: Home, known: dict[str, Footprint]) -> None:
    kept = _kept(home) | {key: size.model_dump() for key, size in known.items()}
    with contextlib.suppress(OSError):  # on a full disk it is only worked out again
        home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(home.root / "footprints.json", json.dumps(kept))


def _dry_runs(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not jobs:
        return []
    command = [sys.executable, "-P", "-m", "rolecall.roles.dry_run"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    found = ""
    try:
        result = subprocess.run(
            command, input=json.dumps(jobs), capture_output=True, text=True, env=env, timeout=DRY_RUN_TIMEOUT_S
        )
        found = result.stderr.strip().rpartition("\n")[2]
        return list(json.loads(result.stdout.splitlines()[-1]))
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        return [{"error": f"the dry run gave no answer ({found or type(error).__name__})"} for _ in jobs]
