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


def test_documents_are_found_and_what_is_left_out_has_a_reason(tmp_path: Path) -> None:
    _write(
        tmp_path, "a.md", "src/b.py", "Makefile", "data.bin", "poetry.lock", "x.min.js", ".env.md", "keys/id_rsa.txt"
    )
    _write(tmp_path, "node_modules/p/r.md", "venv/lib/s.py", ".git/c.md", "build/d.md", ".github/e.md", ".f.md")
    _write(tmp_path, "package-lock.json", "package.json")
    assert _names(tmp_path) == [".github/e.md", "Makefile", "a.md", "package.json", "src/b.py"]
    assert scan(tmp_path, 1_000).skipped == {"unknown_kind": 2, "ignored": 3, "secret": 2}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("X.PY", ("code", "python")),
        ("a.HTM", ("html", "html")),
        ("a.csv", ("table", "csv")),
        ("a.ndjson", ("json", "jsonl")),
        ("a.ipynb", ("notebook", "notebook")),
        ("a.pdf", ("document", "pdf")),
        ("x.png", None),
        ("noext", None),
    ],
)
def test_a_name_says_kind_and_language(name: str, kind: tuple[str, str] | None) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize("mark", ["CACHEDIR.TAG", "pyvenv.cfg"])
def test_a_cache_or_virtual_environment_of_any_name_is_left_out_unless_it_is_named(tmp_path: Path, mark: str) -> None:
    _write(tmp_path, "a.md", f"env/{mark}", "env/b.md", "env/lib/c.md")
    assert _names(tmp_path) == ["a.md"]
    assert {"b.md", "lib/c.md"} <= {*_names(tmp_path / "env")}


def test_documents_may_be_larger_than_text_for_their_pictures(tmp_path: Path) -> None:
    for name in ("a.pdf", "a.ipynb", "a.md"):
        (tmp_path / name).write_bytes(b"x" * 20_000)
    (tmp_path / "b.pdf").write_bytes(b"x" * 20_001)
    tree = scan(tmp_path, 1_000)
    assert [Path(source.path).name for source in tree.sources] == ["a.ipynb", "a.pdf"]
    assert tree.skipped == {"too_large": 2}


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


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_without_permission_fails_and_the_rest_is_found(tmp_path: Path) -> None:
    _write(tmp_path, "a.md", "shut/b.md")
    (tmp_path / "shut").chmod(0)
    tree = scan(tmp_path, 1_000)
    (tmp_path / "shut").chmod(0o700)
    assert len(tree.sources) == 1
    assert [(Path(file.path).name, file.code, file.reason) for file in tree.failed] == [
        ("shut", "file_unreadable", "Permission denied")
    ]


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


def test_an_ignore_pattern_of_many_stars_holds_nothing_up(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*a" * 12 + "b\n*.log\n")
    (tmp_path / f"{'a' * 240}.txt").write_text("text")
    assert [Path(source.path).name[0] for source in scan(tmp_path, 1_000).sources] == ["a"]
