"""Names and pulls, against a hub of this file on the loopback: a real HTTP server that speaks the hub's interface."""

from __future__ import annotations

import hashlib
import json
import random
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio
import pytest

from rolecall.config.home import Home
from rolecall.config.settings import Settings, load_profile, load_settings
from rolecall.roles.errors import DownloadFailed, ModelCorrupt, ModelRefused, ModelUnknown
from rolecall.roles.manifest import Manifest, verify
from rolecall.roles.sources import list_models, pull, resolve, to_plan
from tests.roles.tiny import write_model

REPOSITORY = "tester/tiny"
REVISION = "a" * 40
WRITTEN = 10_000_000  # the hub's client writes in pieces of 10 MB
PART = 11_000_000


@dataclass
class Hub:
    """Serves one repository. `cut` breaks the first connection off after so many bytes of a large file,
    or, with `stall`, keeps it open without sending more."""

    files: dict[str, bytes]
    cut: int = 0
    stall: bool = False
    stated: dict[str, bytes] = field(default_factory=dict)
    ranges: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)
    go_on: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def etag(self, name: str) -> str:
        data = self.stated.get(name, self.files[name])
        if name.endswith(".safetensors"):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def listing(self) -> dict[str, Any]:
        siblings: list[dict[str, Any]] = []
        for name, data in self.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": "0" * 40}
            if name.endswith(".safetensors"):
                entry["lfs"] = {"sha256": self.etag(name), "size": len(data), "pointerSize": 134}
            else:
                entry["blobId"] = self.etag(name)
            siblings.append(entry)
        return {"id": REPOSITORY, "modelId": REPOSITORY, "sha": REVISION, "siblings": siblings, "tags": []}


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        hub = self.hub
        hub.tokens.add(self.headers.get("authorization", ""))
        if self.path.startswith(f"/api/models/{REPOSITORY}"):
            self.reply(200, json.dumps(hub.listing()).encode(), {"Content-Type": "application/json"}, body)
            return
        name = re.split("/resolve/[^/]+/", self.path)[-1]
        if name not in hub.files:
            self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
            return
        hub.asked.add(name)
        data, start = hub.files[name], 0
        headers = {"ETag": f'"{hub.etag(name)}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
        if asked := self.headers.get("range"):
            hub.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.reply(206 if asked else 200, data[start:], headers, body, large=name.endswith(".safetensors"))

    def reply(self, status: int, data: bytes, headers: dict[str, str], body: bool, large: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        if large and self.hub.cut:
            cut = self.hub.cut
            self.wfile.write(data[:cut])
            self.wfile.flush()
            if self.hub.stall:
                self.hub.go_on.wait(20)
            self.hub.cut = 0
            self.close_connection = True
            return
        self.wfile.write(data)
        return


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a model of 13 MB, an embedder by its `modules.json`, so that a pull ends without a dry run."""
    folder = write_model(tmp_path_factory.mktemp("model") / "m", random.Random(1).randbytes(13_000_000))
    (folder / "modules.json").write_text('[{"type": "sentence_transformers.models.Transformer"}]')
    (folder / "README.md").write_text("not wanted")
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture
def hub(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub(dict(files))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": made}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield made
    made.go_on.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").create()


@pytest.fixture
def settings(home: Home) -> Settings:
    return load_settings(home, profile="starter")


def pulled(name: str, home: Home, settings: Settings, seen: list[tuple[str, int, int]] | None = None) -> Manifest:
    async def run() -> Manifest:
        with anyio.fail_after(60):
            return await pull(name, home, settings, lambda *p: seen.append(p) if seen is not None else None)

    return anyio.run(run)


def test_a_name_may_be_a_role_an_id_an_lm_studio_id_or_a_short_name() -> None:
    profile = load_profile("mac-128")
    assert resolve("reasoning", profile) == "mlx-community/DeepSeek-R1-Distill-Qwen-14B-8bit"
    assert resolve("embedder", profile) == "starter/all-minilm-l6-v2"
    assert resolve("reranker", load_profile("mac-128-2026")) == "Qwen/Qwen3-Reranker-0.6B"
    assert resolve("qwen/qwen3-4b-thinking-2507") == "mlx-community/Qwen3-4B-Thinking-2507-8bit"
    assert resolve("MLX-Community/qwen3-1.7b-8BIT") == "mlx-community/Qwen3-1.7B-8bit"
    assert resolve("somebody/some-model") == "somebody/some-model"


@pytest.mark.parametrize("name", ["", "nonsense", "a/b/c", "../etc", "org/..", "mlx-comunity"])
def test_a_name_of_nothing_is_a_typed_error(name: str) -> None:
    with pytest.raises(ModelUnknown, match=r"No such model .*(Did you mean|rolecall models list)"):
        resolve(name)


def test_a_pull_shows_the_size_first_verifies_and_leaves_only_the_model(
    hub: Hub, home: Home, settings: Settings
) -> None:
    seen: list[tuple[str, int, int]] = []
    manifest = pulled(REPOSITORY, home, settings, seen)
    wanted = sum(len(data) for name, data in hub.files.items() if name != "README.md")
    assert seen[0] == (f"fetching {REPOSITORY}", 0, wanted) and seen[-1][1:] == (wanted, wanted)
    assert set(manifest.files) == {"config.json", "model.safetensors", "modules.json"}
    assert manifest.source == f"hub:{REPOSITORY}@{REVISION}"
    assert verify(home.models / REPOSITORY, full=True) == manifest
    assert "Bearer hf_secret" in hub.tokens
    (line,) = [entry for entry in list_models(home, settings) if entry.model == REPOSITORY]
    assert line.present and line.source == manifest.source and line.size_bytes > 0


def test_a_second_pull_fetches_only_what_changed_and_files_of_the_same_bytes_do_not_meet(
    hub: Hub, home: Home, settings: Settings
) -> None:
    twins = {f"{part}/config.json": b"{}" for part in ("1_Pooling", "2_Normalize", "3_Dense")}
    hub.files |= {**twins, "original/model.safetensors": b"of another form"}
    files = pulled(REPOSITORY, home, settings).files
    assert twins.keys() < files.keys() and "original/model.safetensors" not in files
    hub.asked.clear()
    hub.files["config.json"] += b" "
    assert pulled(REPOSITORY, home, settings).files["model.safetensors"].sha256 == files["model.safetensors"].sha256
    assert hub.asked == {"config.json"}


def test_a_broken_download_goes_on_where_it_stopped(hub: Hub, home: Home, settings: Settings) -> None:
    hub.cut = PART
    manifest = pulled(REPOSITORY, home, settings)
    assert manifest.files["model.safetensors"].sha256 == hub.etag("model.safetensors")
    assert hub.ranges and not hub.ranges[-1].startswith("bytes=0-")


def test_other_bytes_than_stated_are_refused_and_nothing_appears(hub: Hub, home: Home, settings: Settings) -> None:
    good = hub.files["model.safetensors"]
    hub.stated["model.safetensors"] = good
    hub.files["model.safetensors"] = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(DownloadFailed, match="has other bytes than the hub states"):
        pulled(REPOSITORY, home, settings)
    assert not (home.models / REPOSITORY).exists()
    hub.files["model.safetensors"] = good
    assert pulled(REPOSITORY, home, settings).model == REPOSITORY


def test_a_cancelled_pull_ends_within_a_second_and_the_next_goes_on_from_there(
    hub: Hub, home: Home, settings: Settings
) -> None:
    hub.cut, hub.stall = PART, True
    took_s = 0.0

    async def run() -> None:
        nonlocal took_s
        written = anyio.Event()

        def watch(what: str, done_bytes: int, total_bytes: int) -> None:
            if done_bytes >= WRITTEN:
                written.set()

        async with anyio.create_task_group() as group:
            group.start_soon(pull, REPOSITORY, home, settings, watch)
            with anyio.fail_after(30):
                await written.wait()
            began = time.monotonic()
            group.cancel_scope.cancel()
        took_s = time.monotonic() - began

    anyio.run(run)
    assert 0 < took_s < 1.0
    assert not (home.models / REPOSITORY).exists()
    hub.cut, hub.stall = 0, False
    assert pulled(REPOSITORY, home, settings).files["model.safetensors"].sha256 == hub.etag("model.safetensors")
    assert hub.ranges and not hub.ranges[-1].startswith("bytes=0-")


def test_a_repository_that_is_not_there_and_one_of_pickles_are_typed_errors(
    hub: Hub, home: Home, settings: Settings
) -> None:
    with pytest.raises(ModelUnknown, match="no repository 'tester/absent'"):
        pulled("tester/absent", home, settings)
    hub.files = {"pytorch_model.bin": b"x", "config.json": b"{}"}
    with pytest.raises(ModelRefused, match=r"no safetensors weights.*pytorch_model\.bin"):
        pulled(REPOSITORY, home, settings)


def test_a_repository_is_planned_from_its_configuration_without_its_weights(
    hub: Hub, home: Home, settings: Settings
) -> None:
    profile, configs = anyio.run(to_plan, [REPOSITORY], home, settings)
    assert list(profile.roles) == [REPOSITORY]
    assert configs[REPOSITORY] == {"model_type": "llama", "hidden_size": 64}
    assert hub.asked == {"config.json"} and not (home.models / REPOSITORY).exists()


def test_a_repository_with_code_of_its_own_is_not_planned(hub: Hub, home: Home, settings: Settings) -> None:
    hub.files["config.json"] = b'{"auto_map": {"AutoModel": "modeling.Foreign"}}'
    with pytest.raises(ModelRefused, match="auto_map"):
        anyio.run(to_plan, [REPOSITORY], home, settings)


def test_a_pull_of_an_architecture_that_nothing_here_runs_is_refused_with_its_name(
    home: Home, settings: Settings, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "odd", model_type="nonsense")
    with pytest.raises(ModelRefused, match=r"nonsense not supported.*Choose another model"):
        pulled(str(folder), home, settings)


def test_without_a_network_the_error_says_what_to_check_and_a_cached_copy_is_used(
    files: dict[str, bytes], home: Home, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with pytest.raises(DownloadFailed, match=r"http://127\.0\.0\.1:9 could not be reached.*HF_ENDPOINT"):
        anyio.run(to_plan, [REPOSITORY], home, settings)
    with pytest.raises(DownloadFailed, match=r"http://127\.0\.0\.1:9 could not be reached.*HF_ENDPOINT"):
        pulled(REPOSITORY, home, settings)
    cached = tmp_path / "hf" / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(REVISION)
    snapshot = cached / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    for name, data in files.items():
        (snapshot / name).write_bytes(data)
    manifest = pulled(REPOSITORY, home, settings)
    assert manifest.source == f"cache:{snapshot}"
    ours, theirs = home.models / REPOSITORY / "model.safetensors", snapshot / "model.safetensors"
    assert ours.stat().st_ino == theirs.stat().st_ino


def test_a_folder_of_the_users_becomes_a_local_model(
    files: dict[str, bytes], home: Home, settings: Settings, tmp_path: Path
) -> None:
    mine = tmp_path / "my model"
    mine.mkdir()
    for name, data in files.items():
        (mine / name).write_bytes(data)
    manifest = pulled(str(mine), home, settings)
    assert manifest.model == "local/my-model" and "README.md" not in manifest.files
    assert (home.models / "local" / "my-model" / "config.json").is_file()
    left_over = home.models / ".pulling" / "local" / "my-model"
    left_over.mkdir()
    (left_over / "of-an-earlier-attempt.safetensors").write_bytes(b"x")
    (mine / "modules.json").unlink()
    with pytest.raises(ModelCorrupt, match=r"mlx-lm cannot read it.*rolecall models pull with the path of its folder"):
        pulled(str(mine), home, settings)
    assert set(verify(home.models / "local" / "my-model", full=False).files) == {"config.json", "model.safetensors"}
    (mine / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelRefused):
        pulled(str(mine), home, settings)


def test_a_folder_without_a_model_or_with_a_truncated_one_is_a_typed_error(
    home: Home, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(ModelUnknown, match="holds no model"):
        pulled(str(tmp_path), home, settings)
    folder = write_model(tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(ModelCorrupt):
        pulled(str(folder), home, settings)
    assert not (home.models / "local").exists()
