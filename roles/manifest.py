"""What a model folder holds: one file of hashes, so that a flipped byte, a lost shard or foreign code is seen.

A model `org/name` lies in `<home>/models/org/name`; its manifest is `rolecall.json` beside the weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import ModelCorrupt, ModelRefused

MANIFEST = "rolecall.json"
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_HEADER_LIMIT_BYTES = 100_000_000  # Source: safetensors refuses longer headers


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileState(_Strict):
    """`mtime_ns` and `inode` are those of the moment the hash was true: a change of either asks for a new hash."""

    sha256: str
    size: int
    mtime_ns: int
    inode: int


class Manifest(_Strict):
    """`source` says where the files came from (a hub revision, a package, a folder).

    `weights_sha256` is over the SHA-256 of each safetensors file in name order: the name of these weights.
    """

    model: str
    source: str
    files: dict[str, FileState]
    weights_sha256: str


def write_manifest(folder: Path, model: str, source: str) -> Manifest:
    """Hash every file of a folder and write its manifest. Blocking: about a second per GB.

    Raises:
        ModelRefused: pickled weights or code of its own in the folder.
        ModelCorrupt: no weights, or a damaged header or shard list.
    """
    refuse_code(folder, model)
    check_weights(folder, model)
    files = {name: _hashed(folder / name) for name in _names(folder)}
    manifest = Manifest(model=model, source=source, files=files, weights_sha256=_weights_sha256(files))
    _store(folder, manifest)
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest, or None where it has none.

    Raises:
        ModelCorrupt: the manifest is not readable as one.
    """
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, ValueError) as error:
        raise _corrupt(folder.name, f"{MANIFEST}: {' '.join(str(error).split())[:200]}") from None


def verify(folder: Path, full: bool) -> Manifest:
    """Check a folder against its manifest. Milliseconds, unless `full` or a file's size, mtime or inode changed.

    What was hashed anew and found true is written back, so that the next check is quick again.

    Raises:
        ModelCorrupt: no manifest, or a file is missing, added or has another hash.
        ModelRefused: pickled weights or code of its own.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise _corrupt(folder.name, f"no {MANIFEST} in {folder}")
    refuse_code(folder, manifest.model)
    added = [n for n in _names(folder) if n.endswith(".safetensors") and n not in manifest.files]
    if added:
        raise _corrupt(manifest.model, f"{added[0]} is not in its manifest")
    files = dict(manifest.files)
    for name, state in manifest.files.items():
        try:
            status = (folder / name).stat()
            same = (status.st_size, status.st_mtime_ns, status.st_ino) == (state.size, state.mtime_ns, state.inode)
            if same and not full:
                continue
            files[name] = _hashed(folder / name)
        except OSError as error:
            raise _corrupt(manifest.model, f"{name}: {error.strerror}") from None
        if files[name].sha256 != state.sha256:
            raise _corrupt(manifest.model, f"{name} has another SHA-256 than when it was fetched")
    if files != manifest.files:
        manifest = manifest.model_copy(update={"files": files})
        with contextlib.suppress(OSError):  # a read-only folder is only checked more slowly
            _store(folder, manifest)
    return manifest


def safetensors_header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file: tensor name to dtype, shape and data_offsets, without `__metadata__`.

    Raises:
        ModelCorrupt: not a safetensors file, or shorter or longer than its header says.
    """
    try:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 0 < length <= _HEADER_LIMIT_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(handle.read(length))
        header.pop("__metadata__", None)
        data_bytes = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        size = file.stat().st_size
        if size != 8 + length + data_bytes:
            raise ValueError(f"{size} bytes where its header asks for {8 + length + data_bytes}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _corrupt(file.parent.name, f"{file.name}: {error}") from None
    return dict(header)


def weights_bytes(folder: Path) -> int:
    """Bytes of all tensors in a folder: what the weights take in memory, exactly.

    Source: the safetensors format; `data_offsets` are byte positions of each tensor.
    """
    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        total += sum(e["data_offsets"][1] - e["data_offsets"][0] for e in safetensors_header(file).values())
    return total


def check_weights(folder: Path, model: str) -> None:
    """See that the folder has weights, that their headers are whole, and that no shard is missing.

    Raises:
        ModelCorrupt: otherwise.
    """
    if weights_bytes(folder) == 0:
        raise _corrupt(model, f"no safetensors weights in {folder}")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = _json(index, model).get("weight_map", {}).values()
        if missing := sorted(name for name in set(shards) if not (folder / name).is_file()):
            raise _corrupt(model, f"the shard {missing[0]} is missing")


def refuse_code(folder: Path, model: str) -> None:
    """Refuse a folder that would make a loader run code that came with it.

    Raises:
        ModelRefused: pickled weights, `auto_map` or `model_file` in a config, or a foreign module class.
    """
    for name in _names(folder):
        if name.endswith(PICKLED):
            raise _refused(model, f"pickled weights: {name}")
    for name in ("config.json", "tokenizer_config.json"):
        keys = _json(folder / name, model) if (folder / name).exists() else {}
        for key in ("auto_map", "model_file"):
            if keys.get(key):
                raise _refused(model, f"{key!r} in {name}")
    if (modules := folder / "modules.json").exists():
        for entry in _json(modules, model):
            if not str(entry.get("type", "")).startswith("sentence_transformers."):
                raise _refused(model, f"module class {entry.get('type')!r} in modules.json")


def _json(file: Path, model: str) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise _corrupt(model, f"{file.name}: {error}") from None


def _names(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST and not any(part.startswith(".") for part in name.split("/")):
            yield name


def sha256(file: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file; `on_bytes` is told how many bytes were read each time, and may raise to stop."""
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while block := handle.read(1 << 22):
            digest.update(block)
            if on_bytes:
                on_bytes(len(block))
    return digest.hexdigest()


def _hashed(file: Path) -> FileState:
    status = file.stat()
    return FileState(sha256=sha256(file), size=status.st_size, mtime_ns=status.st_mtime_ns, inode=status.st_ino)


def _weights_sha256(files: dict[str, FileState]) -> str:
    digest = hashlib.sha256()
    for name in sorted(n for n in files if n.endswith(".safetensors")):
        digest.update(files[name].sha256.encode())
    return digest.hexdigest()


def _store(folder: Path, manifest: Manifest) -> None:
    temporary = folder / f".{MANIFEST}.{os.getpid()}"
    temporary.write_text(manifest.model_dump_json(indent=1))
    temporary.replace(folder / MANIFEST)


def _corrupt(model: str, found: str) -> ModelCorrupt:
    return ModelCorrupt(
        f"The files of model {model!r} are not the ones that were fetched.",
        found=found,
        allowed="every file of its manifest with its SHA-256",
        advice=f"Fetch it again: rolecall models pull {model}",
    )


def _refused(model: str, found: str) -> ModelRefused:
    return ModelRefused(
        f"Model {model!r} is refused: loading it would run code that came with it.",
        found=found,
        allowed="safetensors weights and an architecture that mlx-lm or sentence-transformers knows",
        advice="Choose a repository with safetensors weights and without code of its own.",
    )
