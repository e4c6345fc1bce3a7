"""What tools may read and write."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import pytest

from rolecall.config.errors import ConfigError
from rolecall.config.home import Home
from rolecall.retrieval.access import AllowedFolders, glob_matches, is_secret
from rolecall.retrieval.errors import FileUnreadable, MacosPrivacy, PathAmbiguous, PathMissing, PathNotAllowed, os_error


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "deep" / "er").mkdir(parents=True)
    for name in ("a.md", "b.txt", "deep/c.md", "deep/er/d.md", ".hidden.md"):
        (folder / name).write_text(f"text of {name}\n")
    return folder


@pytest.fixture
def access(tmp_path: Path, docs: Path) -> AllowedFolders:
    folders = AllowedFolders(Home(tmp_path / "home"), user_home=tmp_path)
    folders.add(docs)
    return folders


def test_files_folders_and_globs_name_each_file_once_in_order(access: AllowedFolders, docs: Path) -> None:
    assert access.resolve(["**/*.md", "a.md", str(docs)], docs) == (
        docs / "a.md",
        docs / "b.txt",
        docs / "deep/c.md",
        docs / "deep/er/d.md",
    )
    assert access.resolve(["*.md"], docs) == (docs / "a.md",)
    assert access.resolve(["deep/*/[c-e].md"], docs) == (docs / "deep/er/d.md",)


def test_a_file_whose_name_looks_like_a_glob_is_that_file(access: AllowedFolders, docs: Path) -> None:
    (docs / "odd[1].md").write_text("x")
    assert access.resolve(["odd[1].md"], docs) == (docs / "odd[1].md",)
    (docs / "[id]").mkdir()
    (docs / "[id]" / "page.md").write_text("x")
    assert access.resolve(["*.md"], docs / "[id]") == (docs / "[id]" / "page.md",)


@pytest.mark.skipif(sys.platform == "darwin", reason="its disks hold only names in UTF-8")
def test_a_name_that_is_not_utf8_is_left_out_of_globs_and_refused_where_it_is_named(
    access: AllowedFolders, docs: Path
) -> None:
    (docs / "odd\udcff.md").write_text("x")
    (docs / "link.md").symlink_to(docs / "odd\udcff.md")
    assert access.resolve(["*.md"], docs) == (docs / "a.md",)
    with pytest.raises(PathMissing, match="odd bytes"):
        access.resolve(["odd\udcff.md"], docs)
    with pytest.raises(PathMissing, match="odd bytes"):
        access.writable("new\udcff.md", docs)


def test_a_hidden_folder_is_entered_only_where_the_pattern_names_it(access: AllowedFolders, docs: Path) -> None:
    (docs / "deep" / ".github").mkdir()
    (docs / "deep" / ".github" / "x.md").write_text("x")
    assert access.resolve(["*/.github/*.md"], docs) == (docs / "deep/.github/x.md",)
    assert docs / "deep/.github/x.md" not in access.resolve(["**/*.md"], docs)


def test_a_glob_of_many_stars_is_matched_at_once() -> None:
    assert glob_matches(("src", "a" * 200), ("**", "*a" * 30))
    assert not glob_matches(("a",) * 60, ("**", "a") * 30 + ("b",))
    assert not glob_matches(("a" * 200,), ("*a" * 30 + "b",))


@pytest.mark.parametrize("path", ["\ud800.md", "a\0.md", "\ud800*"])
def test_what_is_no_path_is_a_typed_error(access: AllowedFolders, docs: Path, path: str) -> None:
    with pytest.raises(PathMissing):
        access.resolve([path], docs)
    with pytest.raises(PathMissing):
        access.write_new(path, "x", docs)


@pytest.mark.parametrize("where", ["/", "home"])
def test_a_relative_path_in_the_root_or_home_is_refused_with_its_absolute_form(
    access: AllowedFolders, tmp_path: Path, where: str
) -> None:
    cwd = tmp_path if where == "home" else Path("/")
    with pytest.raises(PathAmbiguous, match=str(cwd / "docs/a.md")):
        access.resolve(["docs/a.md"], cwd)


@pytest.mark.parametrize("name", ["there.md", "not-there.md"])
def test_outside_the_allowed_folders_nothing_is_told_but_how_to_allow(
    access: AllowedFolders, tmp_path: Path, name: str
) -> None:
    (tmp_path / "there.md").write_text("x")
    with pytest.raises(PathNotAllowed, match="rolecall allow"):
        access.resolve([f"../{name}"], tmp_path / "docs")
    with pytest.raises(PathNotAllowed):
        access.read(tmp_path / name)


def test_a_missing_file_is_told_with_its_nearest_neighbour(access: AllowedFolders, docs: Path) -> None:
    with pytest.raises(PathMissing, match=r"Did you mean b\.txt\?"):
        access.resolve(["bb.txt"], docs)
    with pytest.raises(PathMissing):
        access.resolve(["*.pdf"], docs)


SECRETS = [".env", ".env.local", "x.env", "server.pem", "id_rsa", "ID_ED25519.pub", ".netrc", ".ssh/config", ".aws/x"]


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_in_an_allowed_folder_is_never_read(access: AllowedFolders, docs: Path, name: str) -> None:
    secret = docs / name
    secret.parent.mkdir(exist_ok=True)
    secret.write_text("token")
    (docs / "link.md").symlink_to(secret)
    for path in (secret, docs / "link.md"):
        with pytest.raises(PathNotAllowed):
            access.read(path)
    with pytest.raises(PathNotAllowed):
        access.writable(docs / "new" / ".." / name, docs)
    assert secret not in access.resolve(["**/*"], docs)


def test_a_private_key_is_known_by_its_content_too(access: AllowedFolders, docs: Path) -> None:
    (docs / "notes.txt").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n")
    with pytest.raises(PathNotAllowed):
        access.read(docs / "notes.txt")
    assert not is_secret(docs / "environment.md")


def test_a_link_out_of_the_folder_is_refused_and_left_out_of_globs(
    access: AllowedFolders, docs: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside.md").write_text("x")
    (docs / "link.md").symlink_to(tmp_path / "outside.md")
    (docs / "loop.md").symlink_to(docs / "loop.md")
    with pytest.raises(PathNotAllowed, match="which is"):
        access.read(docs / "link.md")
    with pytest.raises(FileUnreadable):
        access.read(docs / "loop.md")
    assert access.resolve(["*.md"], docs) == (docs / "a.md",)


class _SwappedAfterTheCheck(AllowedFolders):
    """Puts a link to an outside folder in place of a checked one, as an attacker would between check and open."""

    def _checked(self, path: Path) -> tuple[Path, Path]:
        found = super()._checked(path)
        deep = found[1] / "deep"
        if deep.is_dir() and not deep.is_symlink():
            deep.rename(found[1] / "moved")
            deep.symlink_to(found[1].parent / "elsewhere")
        return found


def test_a_folder_swapped_for_a_link_between_check_and_open_does_not_lead_outside(tmp_path: Path, docs: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c.md").write_text("outside")
    access = _SwappedAfterTheCheck(Home(tmp_path / "home"), user_home=tmp_path)
    access.add(docs)
    with pytest.raises((FileUnreadable, PathMissing)):
        access.read(docs / "deep" / "c.md")


def test_a_new_file_is_not_made_where_its_folder_became_a_link_to_another_allowed_one(
    tmp_path: Path, docs: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()  # a name as long as docs/deep: cut by length alone, the path would fit
    access = _SwappedAfterTheCheck(Home(tmp_path / "home"), user_home=tmp_path)
    for folder in (docs, tmp_path / "elsewhere"):
        access.add(folder)
    with pytest.raises(PathMissing):
        access.write_new("deep/new.md", "x", docs)
    assert list(tmp_path.rglob("new.md")) == []


def test_what_is_no_text_file_is_refused_without_waiting(access: AllowedFolders, docs: Path) -> None:
    os.mkfifo(docs / "pipe.md")
    (docs / "latin.md").write_bytes(b"caf\xe9")
    (docs / "nul.md").write_bytes(b"a\0b")
    (docs / "large.md").write_text("x" * 101)
    for name in ("pipe.md", "latin.md", "nul.md", "large.md", "deep"):
        opened = len(list(Path("/dev/fd").iterdir()))
        with pytest.raises(FileUnreadable):
            access.read(docs / name, max_bytes=100)
        assert len(list(Path("/dev/fd").iterdir())) == opened


def test_a_new_file_is_written_once_and_nothing_is_overwritten(access: AllowedFolders, docs: Path) -> None:
    assert access.write_new("deep/new.py", "x = 1\n", docs) == docs / "deep/new.py"
    assert access.read(docs / "deep/new.py").text == "x = 1\n"
    for taken in ("deep/new.py", "deep"):
        with pytest.raises(PathNotAllowed, match="nothing is overwritten"):
            access.write_new(taken, "y", docs)
    with pytest.raises(PathMissing):
        access.write_new("nowhere/x.py", "x", docs)
    assert (docs / "deep/new.py").read_text() == "x = 1\n"


@pytest.mark.parametrize("name", [".bashrc", ".git/hooks/post-commit", "key.pem", "../x.py", "/etc/x.py"])
def test_hidden_secret_and_outside_files_are_never_written(access: AllowedFolders, docs: Path, name: str) -> None:
    (docs / ".git" / "hooks").mkdir(parents=True)
    with pytest.raises(PathNotAllowed):
        access.write_new(name, "x", docs)


def test_the_list_is_kept_and_an_entry_can_be_taken_off(access: AllowedFolders, docs: Path, tmp_path: Path) -> None:
    again = AllowedFolders(Home(tmp_path / "home"), user_home=tmp_path)
    assert again.list() == (docs,)
    assert again.remove(docs) and not again.remove(docs)
    assert access.list() == ()
    with pytest.raises(PathNotAllowed, match="no folder yet"):
        access.read(docs / "a.md")


def test_the_disk_the_home_folder_and_places_of_secrets_cannot_be_allowed(
    access: AllowedFolders, tmp_path: Path
) -> None:
    (tmp_path / ".ssh").mkdir()
    for folder in (Path("/"), tmp_path, tmp_path.parent, tmp_path / ".ssh", tmp_path / "home"):
        with pytest.raises(PathNotAllowed):
            access.add(folder)
    for missing in (tmp_path / "nowhere", Path("~nobody-of-this-name/x")):
        with pytest.raises(PathMissing):
            access.add(missing)


def test_a_refusal_names_the_folder_where_allowing_it_is_all_it_takes(
    access: AllowedFolders, docs: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "other" / "deep"
    outside.mkdir(parents=True)
    (outside / "a.md").touch()
    found = {}
    for path in (outside / "a.md", outside, outside / ".env", tmp_path / "x.md", tmp_path / "home", docs / ".env"):
        with pytest.raises(PathNotAllowed) as refused:
            access.read(path)
        found[path] = refused.value.folder
    assert found == {**dict.fromkeys(found), outside / "a.md": outside, outside: outside}
    assert access.allowable(outside) == outside and access.list() == (docs,)


def test_rolecalls_own_state_is_not_readable_from_an_allowed_folder(docs: Path, tmp_path: Path) -> None:
    nested = AllowedFolders(Home(docs / "home"), user_home=tmp_path)
    nested.add(docs)
    for name in ("env", "ENV", "receipts.sqlite3-wal"):
        (docs / "home" / name).write_text("TOKEN=1")
        with pytest.raises(PathNotAllowed):
            nested.read(docs / "home" / name)
    assert docs / "a.md" in nested.resolve(["**/*"], docs)
    assert not [path for path in nested.resolve(["**/*"], docs) if "home" in path.relative_to(docs).parts]


def test_what_is_in_a_private_folder_stays_private_until_the_user_says_otherwise(
    access: AllowedFolders, docs: Path, tmp_path: Path
) -> None:
    deep = docs / "deep"
    assert not access.is_private(deep / "c.md")

    access.set_private([deep], True)
    (docs / "link.md").symlink_to(deep / "c.md")
    for path in (deep / "c.md", deep / "er" / "d.md", docs / "link.md", docs / "DEEP" / "c.md", deep / "later.md"):
        assert AllowedFolders(Home(tmp_path / "home"), user_home=tmp_path).is_private(path), path
    assert not access.is_private(docs / "a.md") and not access.is_private(docs / "deeper" / "c.md")

    access.add(deep)
    assert access.remove(deep) and access.add(deep) and access.is_private(deep / "c.md")
    access.set_private([docs], False)
    assert access.is_private(deep / "c.md")
    access.set_private([deep], False)
    assert not access.is_private(deep / "c.md") and docs in access.list()


@pytest.mark.parametrize("text", ["{", json.dumps({"folders": None}), "[]", json.dumps({"folders": "/etc"})])
def test_a_damaged_list_is_a_typed_error_and_allows_nothing(access: AllowedFolders, tmp_path: Path, text: str) -> None:
    (tmp_path / "home" / "allowed.json").write_text(text)
    with pytest.raises(ConfigError, match="Remove the file"):
        access.read(tmp_path / "docs" / "a.md")


def test_a_privacy_refusal_of_macos_names_the_program_and_the_setting(tmp_path: Path) -> None:
    refused = PermissionError(errno.EPERM, "Operation not permitted")
    error = os_error(tmp_path / "Documents" / "x.md", refused, tmp_path, platform="darwin")
    assert isinstance(error, MacosPrivacy) and "Privacy & Security" in error.advice
    assert isinstance(os_error(tmp_path / "Documents" / "x.md", refused, tmp_path, platform="linux"), FileUnreadable)
