"""What must never get out or be written: seeded attempts through every argument that names a path, and the socket."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import mcp_types as types
import pytest
from mcp import Client, MCPError

from rolecall.config.home import Home
from rolecall.retrieval.retriever import LanceRetriever
from rolecall.server.connect import connect, hello, lock_holder
from rolecall.server.errors import HostUnavailable
from rolecall.server.host.lock import bind_socket
from rolecall.server.surface.resources import Resources
from rolecall.server.surface.server import build_server
from rolecall.server.surface.updates import Updates
from tests.conftest import TOY_HOST
from tests.retrieval.embedding import HashEmbedder

from .desk import Desk, MakeDesk, client_of, served

pytestmark = pytest.mark.anyio

CANARY = "xylophone-4711-outside"
ALLOWED = "The north depot opens at seven."
READS = ("route", "reason", "code", "summarize", "validate")
SAVES = ("code", "summarize")
NEEDED = {
    "route": {"request": "Tell me what these files say."},
    "reason": {"question": "What do they say?"},
    "code": {"task": "Write what they say.", "language": "python"},
    "summarize": {"text": "The meeting is on Monday. " * 20},
    "validate": {},
}
LOOKALIKES = str.maketrans({"/": "\u2215", ".": "\u2024"}), str.maketrans({"/": "\uff0f", ".": "\uff0e"})


@dataclass
class Ground:
    """An allowed folder full of ways out, and what lies outside it."""

    desk: Desk
    client: Client
    retriever: LanceRetriever
    inside: Path
    outside: Path

    def escaped(self, reply: str) -> bool:
        """Whether anything from outside was read by a model, or came back to the client."""
        prompts = [message.content for _, request in self.desk.models.requests for message in request.messages]
        self.desk.models.requests.clear()
        return CANARY in reply or any(CANARY in prompt for prompt in prompts)

    def tree(self) -> dict[str, str]:
        """Every file and link outside the visible part of the allowed folder, and what was in that at the start."""
        found = {}
        for file in sorted(self.inside.parent.rglob("*")):
            below = file.relative_to(self.inside.parent)
            if below.parts[0] == "home":  # receipts are written there
                continue
            new = below.parts[0] == "work" and not any(part.startswith(".") for part in below.parts)
            if not (new and file.name.startswith("new")):
                found[str(below)] = _fingerprint(file)
        return found


def _fingerprint(file: Path) -> str:
    if file.is_symlink():
        return f"link {file.readlink()}"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "folder"


@pytest.fixture
async def ground(desk: MakeDesk, tmp_path: Path) -> AsyncIterator[Ground]:
    here = desk(lambda role, request: "```python\nx = 1\n```" if "ode" in str(request.messages) else "It is on Monday.")
    inside, outside = here.folder, tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    for secret in (outside / "canary.md", outside / "deep" / "canary.md", inside / ".env", tmp_path / "workmate.md"):
        secret.write_text(f"# {CANARY}\n\nThe code is {CANARY}.\n")
    (inside / "sub").mkdir()
    (inside / ".git").mkdir()
    (inside / ".ssh").mkdir()
    (inside / ".ssh" / "id_rsa").write_text(f"-----BEGIN OPENSSH PRIVATE KEY-----\n{CANARY}\n")
    for name in ("ok.md", "sub/ok.md", "%2e%2e"):
        (inside / name).write_text(ALLOWED)
    (inside / "file-link.md").symlink_to(outside / "canary.md")
    (inside / "folder-link").symlink_to(outside)
    (inside / "up-link").symlink_to("..")
    (inside / "env-link.md").symlink_to(".env")
    (inside / "loop").symlink_to("loop")
    (inside / "dangling.md").symlink_to(outside / "new.md")
    home, embedder = Home(tmp_path / "home"), HashEmbedder()
    settings = here.orchestrator.staff.settings.retrieval
    retriever = LanceRetriever(home, settings, embedder, lambda: embedder.identity, here.access)
    await retriever.add(inside, "work")
    async with served(here.orchestrator.run, here.store) as jobs:
        resources = Resources(here.models, here.access, here.store, jobs, lambda: retriever, Updates())
        async with client_of(build_server(jobs, resources=resources), inside) as client:
            yield Ground(here, client, retriever, inside, outside)
    await retriever.aclose()


def hostile_paths(seed: int, ground: Ground, count: int, file: str) -> Iterator[str]:
    """So many names of `file`, which is relative to the parent of the allowed folder, or of what holds secrets."""
    rng = random.Random(seed)
    parent = str(ground.inside.parent)
    for _ in range(count):
        way = rng.choice(("..", "sub/../..", "./..", "folder-link/..", ".//..", "nowhere/../..", "up-link"))
        goal = rng.choice((
            f"{way}/{file}", f"{parent}/{file}", f"{ground.inside}/{way}/{file}", f"{way}/work/{way}/{file}",
            f"up-link/{file}", f"sub/../up-link/{file}", f"/proc/self/root{parent}/{file}", f"/proc/self/cwd/../{file}",
            f"{'../' * rng.randint(2, 40)}{parent.lstrip('/')}/{file}", f"{way}/workmate.md",
            f"{parent}/work/../{file}", "file-link.md", f"folder-link/{Path(file).name}", "env-link.md", ".env",
            ".ssh/id_rsa", ".ssh/../.env", "dangling.md", "loop", f"loop/../../{file}", ".git/hooks/post-commit", "sub",
            ".", "..", "/", "~", "~root", f"~/../..{parent}/{file}",
        ))  # fmt: skip
        match rng.randrange(12):
            case 0:
                goal = quote(goal, safe=rng.choice(("", "/")))
            case 1:
                goal = quote(quote(goal, safe=""), safe="")
            case 2:
                goal = goal.translate(rng.choice(LOOKALIKES))
            case 3:
                goal = goal.replace("/", "\\")
            case 4:
                goal = rng.choice((f"ok.md\0/{goal}", f"{goal}\0", f"{goal}\n", f" {goal}", f"{goal} "))
            case 5:
                goal = rng.choice((f"file://{goal}", f"sub/{'a/../' * 700}{goal}", f"{'/' * 50}{goal}"))
            case 6 | 7:
                goal = rng.choice((
                    str(Path(goal).parent / "*"), f"{way}/**/*.md", "**/../../outside/*", "[.][.]/outside/*.md",
                    "{..,sub}/outside/*.md", f"{way}/[a-z]*/[c]anary.md", "folder-link/**", "*/canary.md", "**/.env",
                    ".*", ".*/*", "*-link.md", "*-link/*", f"{parent}/*/*.md", "/**/canary.md", "../work*",
                ))  # fmt: skip
            case 8:
                goal = goal.upper() if rng.random() < 0.5 else goal.replace("canary", "CANARY")
        yield goal


async def test_no_path_given_to_a_tool_reads_outside_the_allowed_folder(ground: Ground) -> None:
    before, refused = ground.tree(), 0
    for number, path in enumerate(hostile_paths(1, ground, 300, "outside/canary.md")):
        tool = READS[number % len(READS)]
        given = [path, "ok.md"] if number % 3 == 0 else [path]
        result = await ground.client.call_tool(tool, {**NEEDED[tool], "paths": given})
        assert not ground.escaped(result.model_dump_json()), (tool, path)
        assert not _text(result).startswith("[internal]"), (path, _text(result))
        refused += result.is_error is True
    assert refused > 200
    assert ground.tree() == before
    allowed = await ground.client.call_tool("summarize", {"paths": ["ok.md"]})
    assert not allowed.is_error, "what is allowed is still read"


async def test_no_result_is_saved_outside_the_allowed_folder_or_over_a_file(ground: Ground) -> None:
    before, saved = ground.tree(), 0
    for number, path in enumerate(hostile_paths(2, ground, 150, "outside/new.md")):
        tool = SAVES[number % len(SAVES)]
        result = await ground.client.call_tool(tool, {**NEEDED[tool], "save_to": path})
        assert not _text(result).startswith("[internal]"), (path, _text(result))
        if not result.is_error and (where := (result.structured_content or {}).get("saved_path")):
            assert Path(where).resolve().is_relative_to(ground.inside), (path, where)
            Path(where).unlink()
            saved += 1
        assert ground.tree() == before, path
    allowed = await ground.client.call_tool("summarize", {**NEEDED["summarize"], "save_to": "new.md"})
    assert (ground.inside / "new.md").exists() and not allowed.is_error
    again = await ground.client.call_tool("summarize", {**NEEDED["summarize"], "save_to": "new.md"})
    assert again.is_error and _text(again).startswith("[path_not_allowed]")


async def test_no_uri_of_a_resource_reads_what_is_not_indexed(ground: Ground) -> None:
    rng = random.Random(3)
    for path in hostile_paths(4, ground, 300, "outside/canary.md"):
        encoded = rng.choice((path, quote(path, safe=""), quote(path)))
        kind = rng.choice(("doc/work",) * 6 + ("doc", "doc/..", "receipts", "results", "models"))
        uri = rng.choice(("rolecall://",) * 5 + ("rolecall:///", "ROLECALL://", "file://")) + f"{kind}/{encoded}"
        try:
            text = (await ground.client.read_resource(uri)).model_dump_json()
        except (MCPError, ValueError) as error:
            text = str(error)
            assert "internal" not in text.lower(), (uri, text)
        assert not ground.escaped(text), uri
    found = await ground.client.read_resource("rolecall://doc/work/sub/ok.md")
    assert ALLOWED in found.model_dump_json(), "what is indexed is still read"


def _text(result: types.CallToolResult) -> str:
    return result.content[0].text if isinstance(result.content[0], types.TextContent) else ""


def test_a_socket_folder_that_others_may_enter_or_own_is_never_used(home: Home, runtime: Path) -> None:
    folder = runtime / "rolecall"
    folder.mkdir(mode=0o700)
    for mode in (0o755, 0o770, 0o701, 0o777):
        folder.chmod(mode)
        with pytest.raises(HostUnavailable, match="cannot be trusted"):
            bind_socket(home)
    folder.chmod(0o700)
    if os.getuid() == 0:
        os.chown(folder, 65534, -1)
        with pytest.raises(HostUnavailable, match="cannot be trusted"):
            bind_socket(home)


def test_a_client_does_not_speak_to_a_socket_that_lies_in_anothers_folder(home: Home, tmp_path: Path) -> None:
    """As where a cleaner of /tmp took the folder of a host that died, and somebody else made it again."""
    folder = tmp_path / "taken"
    folder.mkdir()
    folder.chmod(0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as evil:
        evil.bind(str(folder / "host.sock"))
        evil.listen()
        evil.setblocking(False)
        home.lock_file.write_text(json.dumps({"pid": 1, "version": "0.1.0", "socket": str(folder / "host.sock")}))
        with pytest.raises(HostUnavailable, match="cannot be trusted"):
            connect(home, hello("mcp", None), command=TOY_HOST)
        with pytest.raises(BlockingIOError):
            evil.accept()
    assert lock_holder(home) is None
