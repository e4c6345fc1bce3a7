from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from rolecall.roles.errors import DownloadFailed, ModelCorrupt, ModelRefused
from rolecall.roles.manifest import MANIFEST, install, read_manifest, verify, weights_bytes, write_manifest
from tests.roles.tiny import write_model, write_safetensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "org" / "name")


def test_a_manifest_reads_back_and_names_the_weights(folder: Path) -> None:
    written = write_manifest(folder, "org/name", "test")
    assert read_manifest(folder) == written
    assert set(written.files) == {"config.json", "model.safetensors"}
    assert len(written.weights_sha256) == 64
    assert verify(folder, full=True) == written
    assert weights_bytes(folder) == 64


def test_the_name_of_the_weights_depends_on_the_weights_alone(tmp_path: Path) -> None:
    first = write_manifest(write_model(tmp_path / "a"), "a", "x").weights_sha256
    assert write_manifest(write_model(tmp_path / "b", vocab_size=9), "b", "y").weights_sha256 == first
    assert write_manifest(write_model(tmp_path / "c", data=b"1" * 64), "c", "x").weights_sha256 != first


def test_a_flipped_byte_is_found_quickly_when_the_time_changed_and_by_a_full_check_when_it_did_not(
    folder: Path,
) -> None:
    write_manifest(folder, "org/name", "test")
    weights = folder / "model.safetensors"
    before = weights.stat()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    verify(folder, full=False)
    with pytest.raises(ModelCorrupt, match=r"another SHA-256.*rolecall models pull org/name"):
        verify(folder, full=True)
    os.utime(weights)
    with pytest.raises(ModelCorrupt):
        verify(folder, full=False)


def test_a_touched_file_with_the_same_bytes_is_hashed_once_and_then_trusted(folder: Path) -> None:
    first = write_manifest(folder, "org/name", "test")
    os.utime(folder / "model.safetensors")
    second = verify(folder, full=False)
    assert second != first and second.weights_sha256 == first.weights_sha256
    assert read_manifest(folder) == second


def test_missing_added_and_truncated_weights_are_corrupt(folder: Path) -> None:
    write_manifest(folder, "org/name", "test")
    write_safetensors(folder / "extra.safetensors")
    with pytest.raises(ModelCorrupt, match="not in its manifest"):
        verify(folder, full=False)
    (folder / "extra.safetensors").unlink()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelCorrupt):
        verify(folder, full=False)
    with pytest.raises(ModelCorrupt, match=r"model org/name|'org/name'.*not fully covered"):
        weights_bytes(folder)
    weights.unlink()
    with pytest.raises(ModelCorrupt, match=r"model\.safetensors"):
        verify(folder, full=False)


def test_a_missing_shard_is_corrupt(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelCorrupt, match=r"model-2\.safetensors is missing"):
        write_manifest(folder, "org/name", "test")


def test_a_folder_without_manifest_and_a_damaged_file_are_corrupt_and_the_error_says_what_to_fetch(
    folder: Path,
) -> None:
    assert read_manifest(folder) is None
    with pytest.raises(ModelCorrupt, match=f"no {MANIFEST}.*rolecall models pull org/name"):
        verify(folder, full=False)
    (folder / MANIFEST).write_text("{")
    with pytest.raises(ModelCorrupt, match="rolecall models pull org/name"):
        read_manifest(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(ModelCorrupt, match=r"config\.json: not a JSON dict"):
        write_manifest(folder, "org/name", "test")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("pytorch_model.bin", "x"),
        ("sub/weights.pkl", "x"),
        ("config.json", '{"auto_map": {"AutoModel": "modeling.Foreign"}}'),
        ("config.json", '{"model_file": "model.py"}'),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["t.T", null]}}'),
        ("modules.json", '[{"type": "foreign.Module"}]'),
    ],
)
def test_a_folder_that_brings_code_is_refused(folder: Path, file: str, content: str) -> None:
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(content)
    with pytest.raises(ModelRefused, match="run code that came with it"):
        write_manifest(folder, "org/name", "test")


def test_a_folder_appears_when_whole_replaces_the_one_before_and_what_is_half_made_is_kept(tmp_path: Path) -> None:
    def broken(folder: Path) -> str:
        (folder / "half.txt").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DownloadFailed, match=r"The disk is full\. Found: No space left.*again to go on"):
        install(tmp_path, "org/name", broken)
    assert not (tmp_path / "org").exists()
    for data in (b"1" * 64, b"2" * 64):
        manifest = install(tmp_path, "org/name", lambda folder, data=data: str(write_model(folder, data)))
        assert verify(tmp_path / "org" / "name", full=True) == manifest
    assert "half.txt" not in manifest.files and not list((tmp_path / ".pulling" / "org").glob("name*/"))
