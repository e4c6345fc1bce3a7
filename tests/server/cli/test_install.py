"""`rolecall install` changes its own entry and no other byte of a client's configuration, and takes it out again."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rolecall.config.home import Home
from rolecall.server.cli.app import main
from rolecall.server.cli.clients import Client, known_clients, servers_of, with_entry, without_entry
from rolecall.server.cli.install import addition, removal
from rolecall.server.connect import lock_holder
from rolecall.server.errors import BadRequest, ClientUnusable

CLIENTS = ("claude-desktop", "claude-code", "cursor", "vscode", "codex")
EXISTING = {
    "json": b'{\r\n\t"theme": "dark",\r\n\t"mcpServers": {\r\n\t\t"git": {"command": "git-mcp"}\r\n\t}\r\n}',
    "jsonc": b'\xef\xbb\xbf{\n  // mine\n  "servers": {},\n  "mcpServers": {\n    /* "x": { */ "git": {},\n  },\n}\n',
    "toml": b'# mine\nmodel = "x"  # kept\n\n[mcp_servers.git]\ncommand = "git-mcp"\n\n[tui]\nnotes = """\n[a]\n"""',
}  # fmt: skip


@pytest.fixture
def user(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder without any client in it; the test's own Rolecall home is set."""
    for name in ("XDG_CONFIG_HOME", "CLAUDE_CONFIG_DIR", "CODEX_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(params=CLIENTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def client_of(name: str) -> Client:
    return {str(key): value for key, value in known_clients().items()}[name]


def existing(name: str) -> tuple[Client, bytes]:
    """The client, with a configuration that a user has already."""
    client = client_of(name)
    client.file.parent.mkdir(parents=True, exist_ok=True)
    client.file.write_bytes(EXISTING[client.form])
    return client, EXISTING[client.form]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def report(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("there", [False, True], ids=["no file", "a file"])
def test_a_client_gets_one_entry_with_absolute_paths_and_uninstalling_restores_the_bytes(
    name: str, there: bool, user: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    client, before = existing(name) if there else (client_of(name), None)
    listed = files(user)

    assert main(["install", name, "--json"]) == 0
    said = report(capsys)
    entry = servers_of(client, client.file.read_text("utf-8"))["rolecall"]
    assert Path(entry["command"]).is_absolute() and os.access(entry["command"], os.X_OK)
    assert (entry["args"], entry["env"]) == (["serve"], {"ROLECALL_HOME": str(home.root)})
    assert said["changed"] and said["path"] == str(client.file) and '"serve"' in said["diff"]
    assert before is None or Path(said["backup"]).read_bytes() == before

    written = files(user)
    assert main(["install", name, "--json"]) == 0
    assert not report(capsys)["changed"]
    assert files(user) == written

    assert main(["install", name, "--uninstall"]) == 0
    assert files(user) == listed
    assert main(["install", name, "--uninstall", "--json"]) == 0
    assert lock_holder(home) is None


def test_every_client_has_its_own_place_on_each_platform(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def places() -> list[str]:
        return [str(client.file.relative_to(user)) for client in known_clients().values()]

    ours = [".claude.json", ".cursor/mcp.json", ".codex/config.toml"]
    monkeypatch.setattr(sys, "platform", "darwin")
    apps = "Library/Application Support"
    mac = [f"{apps}/Claude/claude_desktop_config.json", *ours[:2], f"{apps}/Code/User/mcp.json", ours[2]]
    assert places() == mac
    monkeypatch.setattr(sys, "platform", "linux")
    linux = [place.replace(apps, ".config") for place in mac]
    assert places() == linux
    for name in ("XDG_CONFIG_HOME", "CLAUDE_CONFIG_DIR", "CODEX_HOME"):
        monkeypatch.setenv(name, str(user / name))
    assert places() == [
        "XDG_CONFIG_HOME/Claude/claude_desktop_config.json", "CLAUDE_CONFIG_DIR/.claude.json", ".cursor/mcp.json",
        "XDG_CONFIG_HOME/Code/User/mcp.json", "CODEX_HOME/config.toml",
    ]  # fmt: skip


@pytest.mark.parametrize("odd", [{"env": None}, {"env": "A=1"}, {"args": None}, {"args": {}}, {"args": ["run"]}])
def test_an_entry_of_ours_that_holds_nonsense_is_mended(odd: dict[str, Any], user: Path) -> None:
    file = client_of("claude-code").file
    file.write_text(json.dumps({"mcpServers": {"rolecall": {"command": "/gone", "timeout": 9, **odd}}}))
    assert main(["install", "claude-code"]) == 0
    entry = json.loads(file.read_bytes())["mcpServers"]["rolecall"]
    assert (entry["args"], entry["timeout"]) == (["serve"], 9) and isinstance(entry.get("env", {}), dict)


def test_a_dry_run_shows_the_change_and_writes_nothing(
    name: str, user: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    existing(name)
    before = files(user)
    assert main(["install", name, "--dry-run", "--allow", str(user)]) == 0
    out = capsys.readouterr().out
    assert "+" in out and "rolecall" in out and "Nothing was written" in out
    assert files(user) == before
    assert lock_holder(home) is None


@pytest.mark.parametrize(
    "broken", [b"{", b"[]", b'{"mcpServers": []}', b'{"servers": 1}', b"\xff\xfe", b"a = [", b"mcp_servers = 3"]
)
def test_a_broken_configuration_is_a_typed_error_and_stays_as_it_is(
    broken: bytes, user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in CLIENTS:
        client = client_of(name)
        client.file.parent.mkdir(parents=True, exist_ok=True)
        client.file.write_bytes(broken)
        valid = client.form != "toml" and client.key not in broken.decode("latin-1") and broken.startswith(b'{"')
        before = files(user)
        assert main(["install", name, "--dry-run", "--json"]) == (0 if valid else 1)
        if not valid:
            assert main(["install", name, "--json"]) == 1
            error = json.loads(capsys.readouterr().err.splitlines()[-1])["error"]
            assert error["code"] == "client_unusable" and str(client.file) in error["advice"]
        assert files(user) == before


def test_a_client_that_reads_strict_json_gets_no_entry_beside_comments(user: Path) -> None:
    for name in ("claude-desktop", "claude-code"):
        client_of(name).file.parent.mkdir(parents=True, exist_ok=True)
        client_of(name).file.write_text('{"mcpServers": {}} // mine')
        assert main(["install", name]) == 1


def test_a_read_only_file_is_left_alone(name: str, user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client, before = existing(name)
    client.file.chmod(0o444)
    assert main(["install", name, "--json"]) == 1
    assert json.loads(capsys.readouterr().err)["error"]["found"] == "a read-only file"
    assert client.file.read_bytes() == before


def test_rights_and_links_of_a_configuration_stay(name: str, user: Path) -> None:
    client, before = existing(name)
    real = user / "dotfiles"
    client.file.rename(real)
    client.file.symlink_to(real)
    real.chmod(0o640)

    assert main(["install", name]) == 0
    assert client.file.is_symlink() and "rolecall" in real.read_text("utf-8")
    assert real.stat().st_mode & 0o777 == 0o640
    assert main(["install", name, "--uninstall"]) == 0
    assert (client.file.is_symlink(), real.read_bytes()) == (True, before)


def test_a_client_that_rewrote_its_file_keeps_its_changes_at_the_uninstall(user: Path) -> None:
    client, _ = existing("claude-code")
    assert main(["install", "claude-code"]) == 0
    client.file.write_text(json.dumps({"starts": 2, **json.loads(client.file.read_bytes())}))
    assert main(["install", "claude-code", "--uninstall"]) == 0
    kept = {"starts": 2, "theme": "dark", "mcpServers": {"git": {"command": "git-mcp"}}}
    assert json.loads(client.file.read_bytes()) == kept
    assert [path.name for path in client.file.parent.glob(".claude.json*")] == [".claude.json"]


def test_a_change_that_somebody_makes_meanwhile_is_not_overwritten(name: str, user: Path) -> None:
    client, before = existing(name)
    changes = addition(client, skill=False)
    client.file.write_bytes(before + b"\n")
    with pytest.raises(BadRequest):
        for change in changes:
            change.apply()
    assert client.file.read_bytes() == before + b"\n"


def test_what_the_user_added_to_the_entry_survives_an_update(name: str, user: Path, home: Home) -> None:
    client, before = existing(name)
    mine = {"command": "/gone/rolecall", "args": ["serve", "--standalone"], "timeout": 9, "env": {"A": "1"}}
    client.file.write_text(with_entry(client, before.decode(), mine), "utf-8")
    assert main(["install", name]) == 0
    entry = servers_of(client, client.file.read_text("utf-8"))["rolecall"]
    assert entry["command"] != "/gone/rolecall"
    assert (entry["args"], entry["timeout"]) == (mine["args"], 9)
    assert entry["env"] == {"A": "1", "ROLECALL_HOME": str(home.root)}


@pytest.mark.parametrize("name", CLIENTS[1:])
def test_a_skill_teaches_the_client_and_goes_with_the_entry(name: str, user: Path) -> None:
    before = files(user)
    assert main(["install", name, "--skill"]) == 0
    skills = client_of(name).skills
    assert skills is not None
    text = (skills / "rolecall" / "SKILL.md").read_text("utf-8")
    assert text.startswith("---\nname: rolecall\ndescription: ") and "`paths`" in text
    assert len(text.split("description: ")[1].splitlines()[0]) <= 1024
    assert main(["install", name, "--uninstall"]) == 0
    assert files(user) == before and not (skills / "rolecall").exists()


def test_a_client_without_skills_says_so_and_writes_nothing(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(user)
    assert main(["install", "claude-desktop", "--skill", "--json"]) == 1
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "bad_request"
    assert files(user) == before


def test_folders_are_allowed_and_a_wrong_one_stops_before_the_configuration(
    user: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    (user / "projects").mkdir()
    assert main(["install", "cursor", "--allow", str(user / "gone"), "--json"]) == 1
    assert not client_of("cursor").file.exists()
    assert main(["install", "cursor", "--allow", str(user / "projects"), "--json"]) == 0
    assert report(capsys)["allowed"] == [str(user / "projects")]
    assert str(user / "projects") in home.allowed_file.read_text()


@pytest.mark.parametrize("argv", [["emacs"], [], ["cursor", "--uninstall", "--skill"], ["cursor", "--bogus"]])
def test_wrong_usage_of_install_is_exit_code_2(argv: list[str], user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["install", *argv, "--json"]) == 2
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "bad_request"


# Configurations as people and programs leave them.

GAP = st.sampled_from(["", " ", "\n", "\r\n", "\t", "\n  ", "\r\n\t\t"])
NOTED = GAP | st.sampled_from(["// note { }\n", "/* \"rolecall\": {}, */", " // a, b\r\n  "])  # fmt: skip
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("a\"\\/{}[],:*é\n ", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("k\"/{é", max_size=3), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@st.composite
def json_text(draw: st.DrawFn, key: str, comments: bool, ours: bool = False) -> str:
    """Text of an object that may hold an object of servers under `key`; `ours`: it does, and we are among them."""
    gap = NOTED if comments else GAP

    def an_object(members: list[tuple[str, str]]) -> str:
        text = "{" + draw(gap)
        for number, (name, value) in enumerate(members):
            more = number < len(members) - 1 or (comments and draw(st.booleans()))
            within = st.just("") if name == "rolecall" else gap
            text += json.dumps(name) + draw(within) + ":" + draw(within) + value
            text += draw(gap) + ("," + draw(gap)) * more
        return text + "}"

    others = [(name, json.dumps(draw(VALUE))) for name in draw(st.lists(st.sampled_from('abc"/'), unique=True))]
    if ours or draw(st.booleans()):
        servers = draw(st.lists(st.sampled_from(["git", "x/*y", "z//"]), unique=True))
        servers = draw(st.permutations([*servers, "rolecall"])) if ours else servers
        others.insert(draw(st.integers(0, len(others))), (key, an_object([(each, "{}") for each in servers])))
    text = draw(st.sampled_from(["", "\ufeff"])) + draw(gap) + an_object(others) + draw(gap)
    return text if ours else draw(st.sampled_from(["", "\n", text, text, text, text]))


TOML_PARTS = (
    "# note\n", 'model = "x" # kept\n', "a.b = 1\n", "[tui]\nx = [\n  1, # one\n]\n", "\n", "[[many]]\n\tx = 1\n",
    "[mcp_servers]\n", "[mcp_servers.git]\ncommand = 'g'\n", "[mcp_servers.git.env]\nA = 'b'\n",
    '[mcp_servers."a b"]\nargs = [""]\n', "mcp_servers.dot.command = 'd'\n",
    '[deep.er]\ntext = """\n[mcp_servers.rolecall]\n"""\n',
)  # fmt: skip


def is_toml(text: str) -> bool:
    try:
        tomllib.loads(text.removeprefix("\ufeff"))
    except tomllib.TOMLDecodeError:
        return False
    return True


@st.composite
def toml_text(draw: st.DrawFn) -> str:
    text = "".join(
        draw(st.lists(st.sampled_from(TOML_PARTS), unique=True).filter(lambda parts: is_toml("".join(parts))))
    )
    text = text.replace("\n", draw(st.sampled_from(["\n", "\r\n"])))
    return draw(st.sampled_from(["", "\ufeff"])) + (text.rstrip() if draw(st.booleans()) else text)


PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # other tests take the machine's time
CONFIGURATIONS = st.one_of(
    st.tuples(st.just(Client("It", Path("file"), None, "servers", "json")), json_text("servers", False)),
    st.tuples(st.just(Client("It", Path("file"), None, "servers", "jsonc")), json_text("servers", True)),
    st.tuples(st.just(Client("It", Path("file"), None, "mcp_servers", "toml")), toml_text()),
)


@PATIENT
@given(CONFIGURATIONS)
def test_any_configuration_has_its_bytes_back_after_an_uninstall(made: tuple[Client, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        client = replace(made[0], file=Path(folder) / "file")
        client.file.write_bytes(made[1].encode())
        for change in addition(client, skill=False):
            change.apply()
        assert servers_of(client, client.file.read_bytes().decode()).keys() >= {"rolecall"}
        for change in removal(client):
            change.apply()
        assert files(Path(folder)) == {str(client.file): made[1].encode()}


@PATIENT
@given(CONFIGURATIONS, st.booleans())
def test_an_entry_taken_out_of_an_edited_configuration_leaves_every_other_sign(
    made: tuple[Client, str], updated: bool
) -> None:
    client, text = made
    entry = {"command": "/bin/rolecall", "args": ["serve"], "env": {"A": "1"}}
    try:
        installed = with_entry(client, text, entry)
        left = without_entry(client, with_entry(client, installed, {"command": "x"}) if updated else installed)
    except ClientUnusable:  # a text in which a string looks like our table, and both cannot be told apart
        assert "[deep.er]" in text
        return
    assert servers_of(client, left) == servers_of(client, text)
    if client.form == "toml" or client.key in text:
        assert re.sub(r"[\s,]", "", left) == re.sub(r"[\s,]", "", text)


@PATIENT
@given(st.booleans().flatmap(lambda comments: st.tuples(st.just(comments), json_text("servers", comments, ours=True))))
def test_an_entry_at_any_place_is_taken_out_and_every_note_stays(made: tuple[bool, str]) -> None:
    comments, text = made
    client = Client("It", Path("file"), None, "servers", "jsonc" if comments else "json")
    left = without_entry(client, text)
    assert servers_of(client, left) == {name: {} for name in servers_of(client, text) if name != "rolecall"}
    for note in ("note { }", '/* "rolecall": {}, */', "// a, b"):
        assert left.count(note) == text.count(note)


def test_servers_in_an_inline_table_are_a_typed_error(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client, _ = existing("codex")
    client.file.write_text(inline := "mcp_servers = { git = { command = 'g' } }\n")
    assert main(["install", "codex", "--json"]) == 1
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "client_unusable"
    assert client.file.read_text() == inline
