"""The AI clients that `rolecall install` knows: where each keeps its servers, and how our entry gets in and out.

All else keeps its bytes: files are edited as text, and the outcome is parsed again before it counts.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import ClientUnusable

ENTRY = "rolecall"
ClientName = Literal["claude-desktop", "claude-code", "cursor", "vscode", "codex"]


@dataclass(frozen=True, slots=True)
class Client:
    """`key` names the member of `file` that holds the servers; `skills` is None where no folder of skills is read."""

    title: str
    file: Path
    skills: Path | None
    key: str = "mcpServers"
    form: Literal["json", "jsonc", "toml"] = "json"


def known_clients() -> dict[ClientName, Client]:
    """Every client, with this user's files. Sources: the clients' own pages, listed in docs/clients.md."""
    user = Path.home()
    mac, apps = user / "Library" / "Application Support", Path(os.environ.get("XDG_CONFIG_HOME") or user / ".config")
    apps = mac if sys.platform == "darwin" else apps
    claude = Path(os.environ.get("CLAUDE_CONFIG_DIR") or user / ".claude")
    claude_json = (claude if os.environ.get("CLAUDE_CONFIG_DIR") else user) / ".claude.json"
    codex = Path(os.environ.get("CODEX_HOME") or user / ".codex") / "config.toml"
    return {
        "claude-desktop": Client("Claude Desktop", apps / "Claude/claude_desktop_config.json", None),
        "claude-code": Client("Claude Code", claude_json, claude / "skills"),
        "cursor": Client("Cursor", user / ".cursor/mcp.json", user / ".cursor/skills", form="jsonc"),
        "vscode": Client("VS Code", apps / "Code/User/mcp.json", user / ".copilot/skills", "servers", "jsonc"),
        "codex": Client("Codex", codex, user / ".agents/skills", "mcp_servers", "toml"),
    }


def servers_of(client: Client, text: str) -> dict[str, Any]:
    """The servers by name; an empty text has none. Raises ClientUnusable: the client itself could not read it."""
    try:
        whole = tomllib.loads(_body(text)) if client.form == "toml" else json.loads(_strict(client, text))
    except (ValueError, RecursionError) as error:
        raise unusable(client, str(error)[:200]) from None
    servers = whole.get(client.key, {}) if isinstance(whole, dict) else None
    if not isinstance(servers, dict):
        raise unusable(client, f"no object {client.key!r} at its top")
    return servers


def entry_for(client: Client, old: Any, command: str, home: str | None) -> dict[str, Any]:
    """Our entry, with what the user added to an `old` one kept. `home` is ROLECALL_HOME, where it is set."""
    old = old if isinstance(old, dict) and "command" in old else {}
    env = {**given} if isinstance(given := old.get("env"), dict) else {}
    env.pop("ROLECALL_HOME", None)
    env |= {"ROLECALL_HOME": home} if home else {}
    # Codex waits 10 s for a server by default; a first start from a cold disk may take longer.
    first: dict[str, Any] = {"startup_timeout_sec": 60} if client.form == "toml" else {"type": "stdio"}
    args = given if isinstance(given := old.get("args"), list) and given[:1] == ["serve"] else ["serve"]
    kept = {key: value for key, value in old.items() if key != "env"}
    return first | kept | {"command": command, "args": args} | ({"env": env} if env else {})


def with_entry(client: Client, text: str, entry: dict[str, Any]) -> str:
    """`text` with our entry as given, in place of the one it has. Raises ClientUnusable: `text` cannot be read, or not
    be edited safely."""
    servers = servers_of(client, text)
    wanted = servers | {ENTRY: entry}
    if client.form != "toml":
        return _checked(client, _put(client, text if _body(text).strip() else "{}\n", entry), wanted)
    line = "\r\n" if "\r\n" in text else "\n"
    rest = _toml_tables(client).sub("", text) if ENTRY in servers else text
    start = "" if not rest else line if rest.endswith("\n") else line * 2
    lines = [f"[{client.key}.{ENTRY}]", *(f"{_toml_key(key)} = {_toml(value)}" for key, value in entry.items()), ""]
    return _checked(client, rest + start + line.join(lines), wanted)


def without_entry(client: Client, text: str) -> str:
    """`text`, which has our entry, without it; raises as `with_entry` does."""
    wanted = {name: value for name, value in servers_of(client, text).items() if name != ENTRY}
    if client.form == "toml":
        return _checked(client, _toml_tables(client).sub("", text), wanted)
    strict = _strict(client, text)
    servers = _members(strict, _members(strict, strict.index("{"))[client.key][1])
    return _checked(client, _cut(text, *servers[ENTRY][::2]), wanted)


def unusable(client: Client, found: str) -> ClientUnusable:
    failed, advice = f"{client.title} has an unusable configuration.", f"Correct {client.file}; it was not touched."
    return ClientUnusable(failed, found=found, allowed=f"a writable {client.form} file", advice=advice)


def _checked(client: Client, text: str, wanted: dict[str, Any]) -> str:
    if servers_of(client, text) != wanted:
        raise unusable(client, "a layout that cannot be edited safely")
    return text


def _body(text: str) -> str:
    return text.removeprefix("\ufeff")


def _toml_tables(client: Client) -> re.Pattern[str]:
    """Our table and those below it, up to the next one's header and the comments above that."""
    noted, header = r"(?:^[ \t]*(?:#[^\n]*)?\r?\n)*", rf'^[ \t]*\[\s*"?{client.key}"?\s*\.\s*"?{ENTRY}"?\s*[].]'
    return re.compile(rf"{header}.*?(?={noted}(?:^[ \t]*\[|\Z))", re.DOTALL | re.MULTILINE)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml_key(key)} = {_toml(each)}" for key, each in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


_STRING = r'"[^"\\]*(?:\\.[^"\\]*)*"'
_COMMENT = re.compile(rf"({_STRING})|//[^\r\n]*|/\*.*?\*/", re.DOTALL)
_LAST_COMMA = re.compile(rf"({_STRING})|,(?=\s*[}}\]])", re.DOTALL)
_KEY = re.compile(rf"[\s,]*({_STRING})\s*:\s*", re.DOTALL)


def _blanked(pattern: re.Pattern[str], text: str) -> str:
    """`text` with spaces for what the pattern finds outside strings, so that every place stays the same."""
    return pattern.sub(lambda found: found[1] or re.sub(r"\S", " ", found[0]), text)


def _strict(client: Client, text: str) -> str:
    """The strict JSON that the text stands for, place by place; `{}` where it is empty."""
    plain = " " * (len(text) - len(_body(text))) + _body(text)
    if client.form == "jsonc":
        plain = _blanked(_LAST_COMMA, _blanked(_COMMENT, plain))
    return plain if plain.strip() else "{}"


def _members(strict: str, at: int) -> dict[str, tuple[int, int, int]]:
    """The members of the object at `at`: where key and value start, and where the value ends."""
    found, end = dict[str, tuple[int, int, int]](), at + 1
    while key := _KEY.match(strict, end):
        end = json.JSONDecoder().raw_decode(strict, key.end())[1]
        found[json.loads(key[1])] = (key.start(1), key.end(), end)
    return found


def _put(client: Client, text: str, entry: dict[str, Any]) -> str:
    """Our entry over the old one, else as the first member: right behind the brace nothing is split."""
    strict = _strict(client, text)
    at, depth, name, value = strict.index("{"), 1, client.key, dict[str, Any]({ENTRY: entry})
    if client.key in (top := _members(strict, at)):
        at, depth, name, value = top[client.key][1], 2, ENTRY, entry
    line = "\r\n" if "\r\n" in text else "\n"
    step = found[1] if (found := re.search(r'\n([ \t]+)"', text)) else "  "
    written = json.dumps(value, indent=step, ensure_ascii=False).replace("\n", line + step * depth)
    members = _members(strict, at)
    if name in members:
        _, start, end = members[name]
        return text[:start] + written + text[end:]
    closes = strict[at + 1 :].lstrip(" \t").startswith("}")
    after = "," if members else line + step * (depth - 1) if closes else ""
    return f'{text[: at + 1]}{line}{step * depth}"{name}": {written}{after}{text[at + 1 :]}'


def _cut(text: str, start: int, end: int) -> str:
    """`text` without the member from `start` to `end`, one comma beside it, and its line."""
    bare = _blanked(_COMMENT, text)
    if comma := re.compile(r"\s*,").match(bare, end):
        text = text[: comma.end() - 1] + text[comma.end() :]
    elif (before := bare[:start].rstrip()).endswith(","):
        text, start, end = text[: len(before) - 1] + text[len(before) :], start - 1, end - 1
    if re.compile(r"[ \t]*[\r\n]").match(text, end):
        start = len(text[:start].rstrip())
    return text[:start] + text[end:]
