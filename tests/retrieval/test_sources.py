"""Which files of a folder are documents."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from rolecall.retrieval.sources import kind_of, scan


def _write(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text\n")


def _names(root: Path, max_bytes: int = 1_000) -> list[str]:
    return [str(Path(source.path).relative_to(root)) for source in scan(root, max_bytes).sources]


def test_documents_are_found_and_generated_and_foreign_files_are_not(tmp_path: Path) -> None:
    _write(tmp_path, "a.md", "src/b.py", "Makefile", "data.bin", "poetry.lock", "x.min.js", ".env", "keys/id_rsa.txt")
    _write(tmp_path, "node_modules/p/r.md", "venv/lib/s.py", ".git/c.md", "build/d.md")
    assert _names(tmp_path) == ["Makefile", "a.md", "src/b.py"]
    assert scan(tmp_path, 1_000).skipped == 5
    assert kind_of("X.PY") == ("code", "python") and kind_of("x.png") is None


def test_a_folder_that_is_named_is_taken_whatever_its_own_name(tmp_path: Path) -> None:
    root = tmp_path / "node_modules" / "site-packages"
    _write(root, "a.md")
    assert _names(root) == ["a.md"]


def test_ignore_files_count_from_their_folder_and_can_take_a_name_back(tmp_path: Path) -> None:
    _write(tmp_path, "a.md", "b.md", "sub/a.md", "sub/keep.md", "build/c.md", "secret.pem")
    (tmp_path / ".gitignore").write_text("/a.md\nkeep.md\n")
    (tmp_path / ".rolecallignore").write_text("b.md\n!build/\n!secret.pem\n")
    (tmp_path / "sub" / ".gitignore").write_text("!keep.md\n")
    assert _names(tmp_path) == ["build/c.md", "sub/a.md", "sub/keep.md"]


def test_links_empty_and_large_files_are_skipped_and_pipes_fail(tmp_path: Path) -> None:
    _write(tmp_path, "a.md")
    (tmp_path / "empty.md").touch()
    (tmp_path / "large.md").write_text("x" * 1_001)
    (tmp_path / "link.md").symlink_to(tmp_path / "a.md")
    (tmp_path / "up").symlink_to(tmp_path.parent)
    os.mkfifo(tmp_path / "pipe.md")
    tree = scan(tmp_path, 1_000)
    assert [Path(source.path).name for source in tree.sources] == ["a.md"]
    assert [(Path(failure.path).name, failure.reason) for failure in tree.failed] == [("pipe.md", "not a regular file")]
    assert tree.skipped == 4


@pytest.mark.parametrize("name", [b"bad\xff.md", b"new\nline 'quote'.md"])
def test_a_name_that_is_not_utf8_fails_and_any_other_is_taken(tmp_path: Path, name: bytes) -> None:
    if sys.platform == "darwin" and b"\xff" in name:
        with pytest.raises(OSError):
            Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("x")
        return
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("x")
    tree = scan(tmp_path, 1_000)
    if b"\xff" in name:
        assert [failure.reason for failure in tree.failed] == ["its name is not valid UTF-8"]
        assert tree.failed[0].path.endswith("bad\\xff.md")
    else:
        assert [source.path for source in tree.sources] == [str(tmp_path / name.decode())]


def test_a_folder_that_is_gone_is_a_failure_not_an_exception(tmp_path: Path) -> None:
    assert [failure.code for failure in scan(tmp_path / "gone", 1_000).failed] == ["path_missing"]
