"""What a model folder holds: one file of hashes, so that a flipped byte, a lost shard or foreign code is seen.

A model `org/name` lies in `<home>/models/org/name`; its manifest is `rolecall.json` beside the weights.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from .errors import DownloadFailed, ModelCorrupt, ModelRefused

MANIFEST = "rolecall.json"
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


class FileState(BaseModel, frozen=True, extra="forbid", strict=True):
    """`mtime_ns` and `inode` are those of the moment the hash was true: a change of either asks for a new hash."""

    sha256: str
    size: int
    mtime_ns: int
    inode: int


class Manifest(BaseModel, frozen=True, extra="forbid", strict=True):
    """`source` says where the files came from (a hub revision, a package, a folder).

    `weights_sha256` is over the SHA-256 of each safetensors file in name order: the name of these weights.
    """

    model: str
    source: str
    files: dict[str, FileState]
    weights_sha256: str


def install(models: Path, model: str, fill: Callable[[Path], str]) -> Manifest:
    """Let a model's folder appear, by one rename, with what `fill` puts into the folder that it is given; it returns
    the source.

    One process at a time; what one leaves half-made is in the folder that the next is given. Raises: as
    `write_manifest`, and DownloadFailed for any OSError.
    """
    target, staging = models / model, models / ".pulling" / model
    old = staging.with_name(f"{staging.name}.old")
    with disk_errors(models):
        staging.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with staging.with_name(f"{staging.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            staging.mkdir(mode=0o700, exist_ok=True)
            manifest = write_manifest(staging, model, fill(staging))
            target.parent.mkdir(mode=0o700, exist_ok=True)
            shutil.rmtree(old, ignore_errors=True)
            if target.exists():
                target.rename(old)
            staging.rename(target)
            shutil.rmtree(old, ignore_errors=True)
    return manifest


@contextlib.contextmanager
def disk_errors(models: Path) -> Iterator[None]:
    """What the disk refuses, as a DownloadFailed that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # not the disk: the hub's client found a file shorter than stated
            what, do = "The download broke off.", "Run"
        elif error.errno in (errno.ENOSPC, errno.EDQUOT):
            what, do = "The disk is full.", "Free some space, or set ROLECALL_HOME to a larger disk, then run"
        else:
            what, do = f"The model could not be written under {models}.", "Make that folder writable, then run"
        found = str(error).removeprefix(f"[Errno {error.errno}] ")[:200]
        raise DownloadFailed(what, found=found, advice=f"{do} the same command again to go on.") from error


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raise OSError where the disk has less free than a download needs, and some for everybody else."""
    needed_gb, free_gb = needed_bytes / 1e9 + 0.5, shutil.disk_usage(folder).free / 1e9
    if free_gb < needed_gb:
        raise OSError(errno.ENOSPC, f"{free_gb:.2f} GB free where {needed_gb:.2f} GB are needed")


def write_manifest(folder: Path, model: str, source: str) -> Manifest:
    """Hash every file of a folder and write its manifest. Blocking: about a second per GB. Raises as `check_weights`
    and `refuse_code`."""
    refuse_code(folder, model)
    check_weights(folder, model)
    files = {name: _hashed(folder / name) for name in _names(folder)}
    hashes = "".join(files[name].sha256 for name in sorted(files) if name.endswith(".safetensors"))
    weights_sha256 = hashlib.sha256(hashes.encode()).hexdigest()
    manifest = Manifest(model=model, source=source, files=files, weights_sha256=weights_sha256)
    write_whole(folder / MANIFEST, manifest.model_dump_json(indent=1))
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest, or None where it has none. Raises ModelCorrupt where it is not readable as one."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise corrupt(_model(folder), f"{MANIFEST}: {error}") from None


def verify(folder: Path, full: bool) -> Manifest:
    """Check a folder against its manifest. Milliseconds, unless `full` or a file's size, mtime or inode changed.

    What was hashed anew and found true is written back, so that the next check is quick again. Raises ModelCorrupt: no
    manifest, or a file is missing, added or has another hash; ModelRefused: pickled weights or code of its own."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise corrupt(_model(folder), f"no {MANIFEST} in {folder}")
    refuse_code(folder, manifest.model)
    for name in _names(folder):
        if name.endswith(".safetensors") and name not in manifest.files:
            raise corrupt(manifest.model, f"{name} is not in its manifest")
    files = dict(manifest.files)
    for name, state in manifest.files.items():
        try:
            status = (folder / name).stat()
            same = (status.st_size, status.st_mtime_ns, status.st_ino) == (state.size, state.mtime_ns, state.inode)
            if full or not same:
                files[name] = _hashed(folder / name)
        except OSError as error:
            raise corrupt(manifest.model, f"{name}: {error.strerror}") from None
        if files[name].sha256 != state.sha256:
            raise corrupt(manifest.model, f"{name} has another SHA-256 than when it was fetched")
    if files != manifest.files:
        manifest = manifest.model_copy(update={"files": files})
        with contextlib.suppress(OSError):  # a read-only folder is only checked more slowly
            write_whole(folder / MANIFEST, manifest.model_dump_json(indent=1))
    return manifest


def weights_bytes(folder: Path) -> int:
    """Bytes of all tensors in a folder: what the weights take in memory, exactly.

    Raises ModelCorrupt where a file is not safetensors, or shorter or longer than its header says.
    Source: the safetensors format; a header of stated length, then the tensors without gaps.
    """
    from safetensors import SafetensorError, safe_open

    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy"), file.open("rb") as handle:  # compares header and file length
                total += file.stat().st_size - 8 - int.from_bytes(handle.read(8), "little")
        except (OSError, SafetensorError) as error:
            raise corrupt(_model(folder), f"{file.name}: {error}") from None
    return total


def check_weights(folder: Path, model: str) -> None:
    """Raise ModelCorrupt unless the folder has weights, their headers are whole, and no shard is missing."""
    if weights_bytes(folder) == 0:
        raise corrupt(model, f"no safetensors weights in {folder}")
    if (index := folder / "model.safetensors.index.json").exists():
        shards = read_json(index, model).get("weight_map", {}).values()
        if missing := sorted(name for name in set(shards) if not (folder / name).is_file()):
            raise corrupt(model, f"the shard {missing[0]} is missing")


def refuse_code(folder: Path, model: str) -> None:
    """Raise ModelRefused where a loader would run code of the folder's: pickled weights, `auto_map` or `model_file` in
    a config, a foreign module class."""
    for name in _names(folder):
        if name.endswith(PICKLED):
            raise _refused(model, f"pickled weights: {name}")
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).exists():
            read_config(folder / name, model)
    modules = folder / "modules.json"
    for entry in read_json(modules, model, list) if modules.exists() else []:
        if not str(entry.get("type", "")).startswith("sentence_transformers."):
            raise _refused(model, f"module class {entry.get('type')!r} in modules.json")


def read_config(file: Path, model: str) -> dict[str, Any]:
    """A model's configuration. Raises ModelRefused where it names code of its own, and as `read_json`."""
    config: dict[str, Any] = read_json(file, model)
    for key in ("auto_map", "model_file"):
        if config.get(key):
            raise _refused(model, f"{key!r} in {file.name}")
    return config


def read_json(file: Path, model: str, kind: type = dict) -> Any:
    """The JSON object (or list) in a model's file. Raises ModelCorrupt where it holds none."""
    try:
        if isinstance(data := json.loads(file.read_bytes()), kind):
            return data
        raise ValueError(f"not a JSON {kind.__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise corrupt(model, f"{file.name}: {error}") from None


def sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_whole(file: Path, text: str) -> None:
    """Replace a file at once: readers see the old text or the new one, whoever else writes."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        temporary.write_text(text)
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def corrupt(model: str, found: str, advice: str = "") -> ModelCorrupt:
    """The error for a model whose files are not what they should be."""
    again = "with the path of its folder" if model.startswith("local/") else model
    return ModelCorrupt(
        f"The files of model {model!r} cannot be used.",
        found=" ".join(found.split())[:300],
        allowed="every file of its manifest with its SHA-256, in a form that mlx-lm or sentence-transformers reads",
        advice=advice or f"Fetch it again (rolecall models pull {again}), or choose another model.",
    )


def _refused(model: str, found: str) -> ModelRefused:
    return ModelRefused(
        f"Model {model!r} is refused: loading it would run code that came with it.",
        found=found,
        allowed="safetensors weights and an architecture that mlx-lm or sentence-transformers knows",
        advice="Choose a repository with safetensors weights and without code of its own.",
    )


def _model(folder: Path) -> str:
    return "/".join(folder.parts[-2:])


def _names(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST and not any(part.startswith(".") for part in name.split("/")):
            yield name


def _hashed(file: Path) -> FileState:
    status = file.stat()
    return FileState(sha256=sha256(file), size=status.st_size, mtime_ns=status.st_mtime_ns, inode=status.st_ino)
