"""The process that fetches one model: from a hub, from a folder, or the packaged starter.

Its argument is one JSON job; it writes JSON lines: `{"progress": [what, done, total]}`, then `{"manifest": ...}` or
`{"error": ...}`. Killing it at any time is safe: a model folder appears by one rename, when whole and verified.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rolecall.config.errors import RolecallError

from .errors import DownloadFailed, ModelRefused, ModelUnknown
from .manifest import MANIFEST, PICKLED, Manifest, install, read_config, refuse_code, require_space, sha256, verify
from .starter import OnProgress, fetch_starter

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

WANTED = (".safetensors", ".json", ".txt", ".model", ".jinja")
COPIES = ("original/", "consolidated")  # how some repositories name their weights in a second form
PARTS = ".parts"  # files under way
DOWNLOADS_AT_ONCE = 3
PROGRESS_EVERY_S = 0.3


def fetch(job: dict[str, str], emit: OnProgress) -> Manifest:
    """Do one job of `sources.pull`, which see for the errors. Blocking."""
    models, model = Path(job["models"]), job["model"]
    if job["kind"] == "starter":
        fetch_starter(models, emit)
        return verify(models / model, full=False)
    if job["kind"] == "folder":
        return install(models, model, lambda staging: _from_folder(Path(job["folder"]), staging, model, emit))
    return install(models, model, lambda staging: _from_hub(model, staging, models / model, emit))


def _from_folder(folder: Path, staging: Path, model: str, emit: OnProgress) -> str:
    refuse_code(folder, model)
    shutil.rmtree(staging)  # nothing of an earlier attempt may mix with this folder
    staging.mkdir(mode=0o700)
    files = [p for p in folder.rglob("*") if p.is_file() and p.name.endswith(WANTED) and p.name != MANIFEST]
    total, done = sum(p.stat().st_size for p in files), 0
    emit(f"copying {folder}", 0, total)
    require_space(staging, total)
    for file in files:
        _link(file, staging / file.relative_to(folder))
        done += file.stat().st_size
        emit(f"copying {folder}", done, total)
    return f"folder:{folder}"


def _from_hub(model: str, staging: Path, target: Path, emit: OnProgress) -> str:
    caches = _cached(model)
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
        if found := next((folder / name for folder in (target, *caches) if _is_at(folder / name, file)), None):
            _link(found, staging / name)
        else:
            missing.append(file)
    require_space(staging, sum(file.size or 0 for file in missing) - _size(staging / PARTS))
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        downloads = [pool.submit(_download, model, revision, file, staging) for file in missing]
        while wait(downloads, PROGRESS_EVERY_S).not_done:
            emit(what, min(_size(staging), total), total)  # one figure for links, resumed parts and new bytes alike
    for download in downloads:
        download.result()
    emit(what, total, total)
    shutil.rmtree(staging / PARTS, ignore_errors=True)
    wanted = {staging / file.rfilename for file in files}
    for left in [path for path in staging.rglob("*") if path.is_file() and path not in wanted]:
        left.unlink()  # of an earlier revision
    return f"hub:{model}@{revision}"


def fetch_config(model: str) -> dict[str, Any]:
    """A repository's `config.json`; nothing else is fetched."""
    from huggingface_hub import HfApi, constants, hf_hub_download

    try:
        with _hub_errors(model):
            # without a network this fails at its first attempt; a download makes six, for half a minute
            HfApi().model_info(model, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            file = Path(hf_hub_download(model, "config.json"))
    except DownloadFailed:
        if not (caches := _cached(model)):
            raise
        file = caches[0] / "config.json"
    return read_config(file, model)


def _listing(model: str) -> tuple[str, list[RepoSibling]]:
    """(revision, files wanted) as the hub lists them: name, size, and the SHA-256 of a large file, else its git id."""
    from huggingface_hub import HfApi

    with _hub_errors(model):
        info = HfApi().model_info(model, files_metadata=True)
    named = {file.rfilename: file for file in info.siblings or []}
    files = {name: file for name, file in named.items() if not (name.startswith(("/", *COPIES)) or ".." in name)}
    if not any(name.endswith(".safetensors") for name in files):
        raise ModelRefused(
            f"Repository {model!r} has no safetensors weights.",
            found=next((name for name in files if name.endswith(PICKLED)), "no weights"),
            allowed="safetensors; pickled weights run code when they are read",
            advice="Choose a conversion of it, for example from mlx-community.",
        )
    return str(info.sha), [file for name, file in files.items() if name.endswith(WANTED)]


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
    hashed = file.lfs.sha256 if file.lfs else str(file.blob_id)
    part = staging / PARTS / f"{hashed}-{name.replace('/', '-')}"  # two files may have the same bytes
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
            allowed=f"{size} bytes with the hash {hashed}",
            advice="Run the same command again; if it repeats, a proxy or mirror changes what it passes on.",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    part.rename(target)


def _cached(model: str) -> list[Path]:
    """Folders of other programs that hold this repository already."""
    from huggingface_hub import try_to_load_from_cache

    with _hub_errors(model):
        config = try_to_load_from_cache(model, "config.json")
    shelves = (Path.home() / ".lmstudio" / "models", Path.home() / ".cache" / "lm-studio" / "models")
    folders = [Path(config).parent] if isinstance(config, str) else []
    return folders + [shelf / model for shelf in shelves if (shelf / model / "config.json").is_file()]


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
    except (http_error, errors.EntryNotFoundError, ConnectionError) as error:  # the last when HF_HUB_OFFLINE is set
        raise DownloadFailed(
            f"The hub at {constants.ENDPOINT} could not be reached for {model}.",
            found=" ".join(str(error).split())[:200].rstrip(".") or type(error).__name__,
            advice="Check the network, HTTPS_PROXY and HF_ENDPOINT, then run the same command again to go on.",
        ) from None


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
    except Exception as error:  # the caller gets a sentence, never a traceback
        say({"error": DownloadFailed("Fetching the model failed.", found=f"{type(error).__name__}: {error}").to_dict()})


if __name__ == "__main__":
    _main()
