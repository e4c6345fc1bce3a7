from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client

from rolecall.config.errors import ConfigError, RemoteError
from rolecall.config.home import Home
from rolecall.server.host.control import ControlClient, stop_host
from rolecall.server.host.http import bearer_token
from rolecall.server.protocol import MAX_FRAME_BYTES
from tests.conftest import PATIENCE_S, eventually, toy_connection

from .listening import ACCEPT, Listening, listening

pytestmark = pytest.mark.anyio

ERAS = pytest.mark.parametrize("era", ["legacy", "2026-07-28"])
SOUND = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"whoami","arguments":{}}}'


async def text(client: Client, tool: str, **arguments: Any) -> str:
    with anyio.fail_after(PATIENCE_S):
        result = await client.call_tool(tool, arguments)
    return str(result.content[0].text)  # type: ignore[union-attr]


def connected(at: Listening, body_bytes: int, headers: dict[str, str] | None = None) -> socket.socket:
    """A connection that has sent the head of a request and none of its body."""
    own = {"Host": f"127.0.0.1:{at.port}", "Content-Length": str(body_bytes)}
    lines = [f"{key}: {value}\r\n" for key, value in {**at.headers, **own, **(headers or {})}.items()]
    sock = socket.create_connection(("127.0.0.1", at.port), PATIENCE_S)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.sendall(f"POST /mcp HTTP/1.1\r\n{''.join(lines)}\r\n".encode())
    return sock


def refuses(address: tuple[str, int]) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(address) == errno.ECONNREFUSED


async def exists(path: Path, wanted: bool = True) -> None:
    with anyio.fail_after(PATIENCE_S):
        while await anyio.Path(path).exists() is not wanted:
            await anyio.sleep(0.01)


@ERAS
async def test_both_eras_are_served_with_the_users_folder_as_their_own(shared_home: Home, era: str) -> None:
    async with listening(shared_home) as at, at.client(era) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} >= {"whoami", "wait"}
        pid, *_, cwd = (await text(client, "whoami")).split()
        assert cwd == str(Path.home()) and int(pid) != os.getpid()


async def test_each_handshake_session_is_its_own_and_a_stateless_client_is_known_by_its_token(
    shared_home: Home,
) -> None:
    async with listening(shared_home) as at:
        async with at.client("legacy") as one, at.client("legacy") as two:
            first, second = await text(one, "session"), await text(two, "session")
            assert first != second
            assert first == await text(one, "session")
        async with at.client("2026-07-28") as one, at.client("2026-07-28") as two:
            assert await text(one, "session") == await text(two, "session") not in (first, second)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1:1"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://localhost:1"}, 403),
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer \xe9"}, 401),
        ({"Content-Type": "text/plain"}, 400),
        ({"Mcp-Session-Id": "0" * 32}, 404),
    ],
)
async def test_a_request_that_is_not_the_users_own_is_refused(
    shared_home: Home, headers: dict[str, str], status: int
) -> None:
    async with listening(shared_home) as at, httpx2.AsyncClient() as http:
        sent = {key: value.encode("latin-1") for key, value in {**at.headers, **headers}.items()}
        answer = await http.post(at.url, content=SOUND, headers=sent)
        assert answer.status_code == status
        if status == 401:
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.json()["error"]["code"] == "unauthorized"
            assert at.token not in answer.text + (shared_home.logs / "host.log").read_text()


async def test_another_path_is_refused_and_nothing_listens_beyond_loopback(shared_home: Home) -> None:
    async with listening(shared_home) as at, httpx2.AsyncClient() as http:
        assert (await http.post(at.url + "/x", content=SOUND, headers=at.headers)).status_code == 404
        assert refuses(("127.0.0.2", at.port))


async def test_a_body_over_the_limit_is_refused_whether_or_not_it_says_its_length(shared_home: Home) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(MAX_FRAME_BYTES // 2**20 + 1):
            yield b" " * 2**20

    async with listening(shared_home) as at, at.http() as http:
        with connected(at, MAX_FRAME_BYTES + 1) as lying:
            first = await anyio.to_thread.run_sync(lying.recv, 4096)
        assert first.startswith(b"HTTP/1.1 413")
        assert (await http.post(at.url, content=chunks(), headers=ACCEPT)).status_code == 413


@ERAS
async def test_a_client_that_does_not_read_stalls_nobody_else(shared_home: Home, era: str) -> None:
    async with listening(shared_home) as at, at.client(era) as client:
        name = "io.modelcontextprotocol/"
        meta = {f"{name}protocolVersion": "2026-07-28", f"{name}clientCapabilities": {}}
        params = {"name": "big", "arguments": {"size": 8_000_000}, "_meta": meta}
        asked = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
        known = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "big"}
        with connected(at, len(asked), known) as slow:
            slow.sendall(asked)
            assert (await anyio.to_thread.run_sync(slow.recv, 12)) == b"HTTP/1.1 200"
            for _ in range(20):
                assert await text(client, "whoami")


@ERAS
async def test_closing_the_listener_cancels_what_is_open_and_the_host_goes_on(
    home: Home, toy_host: int, tmp_path: Path, era: str
) -> None:
    mark = tmp_path / "mark"

    async def hang(at: Listening) -> None:
        with pytest.raises(Exception):  # noqa: B017  # whatever the SDK makes of a lost connection
            async with at.client(era) as client:
                await client.call_tool("wait", {"mark": str(mark)})

    async with anyio.create_task_group() as tasks:
        async with listening(home) as at:
            tasks.start_soon(hang, at)
            await exists(mark)
        await exists(mark, False)
    eventually(lambda: refuses(("127.0.0.1", at.port)), "the listener is closed")
    async with ControlClient.open(home, start=False) as control:
        assert (await control.call("ping"))["pid"] == toy_host


@ERAS
async def test_a_host_that_stops_finishes_open_requests_and_waits_for_no_idle_stream(
    home: Home, toy_host: int, tmp_path: Path, era: str
) -> None:
    mark, answers = tmp_path / "mark", []

    async def stay(at: Listening) -> None:
        with suppress(Exception):  # whatever the SDK makes of a server that left
            async with at.client(era) as client:
                await client.list_tools()  # else it asks for them after the call
                answers.append(await text(client, "wait_for", mark=str(mark)))
                await at.ended.wait()

    found = Path(json.loads(home.lock_file.read_text())["socket"])
    async with anyio.create_task_group() as tasks, listening(home) as at:
        tasks.start_soon(stay, at)
        await exists(Path(f"{mark}.began"))
        tasks.start_soon(stop_host, home, 2 * PATIENCE_S)
        await exists(found, False)
        assert not at.ended.is_set()
        mark.touch()
        with anyio.fail_after(PATIENCE_S):
            await at.ended.wait()
    assert answers == ["done"]


async def test_a_taken_port_is_a_typed_error(shared_home: Home) -> None:
    async with listening(shared_home) as at, ControlClient.open(shared_home, start=False) as control:
        for port in (at.port, 99_999):
            with pytest.raises(RemoteError, match="Nothing can listen") as failed:
                await control.call("http", {"port": port})
            assert failed.value.code == "bad_request"


def test_the_token_is_the_users_alone_and_kept_and_a_file_open_to_others_is_refused(home: Home) -> None:
    token = bearer_token(home)
    assert stat.S_IMODE(home.http_token_file.stat().st_mode) == 0o600
    assert bearer_token(home) == token and len(token) >= 43
    home.http_token_file.chmod(0o640)
    with pytest.raises(ConfigError, match="cannot be trusted") as refused:
        bearer_token(home)
    assert token not in str(refused.value)
    home.http_token_file.rename(home.root / "elsewhere")
    (home.root / "elsewhere").chmod(0o600)
    home.http_token_file.symlink_to(home.root / "elsewhere")
    with pytest.raises(ConfigError):
        bearer_token(home)
    home.http_token_file.unlink()
    home.http_token_file.touch(0o600)
    with pytest.raises(ConfigError):
        bearer_token(home)


async def test_the_command_serves_until_it_is_interrupted_and_leaves_the_host(home: Home) -> None:
    sock, reply = toy_connection(home, "control")
    sock.close()
    # what a shell starts in the background ignores interrupts, and hands that on
    default = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [sys.executable, "-c", default, str(Path(sys.executable).with_name("rolecall")), "serve", "--http", "0"]
    serving = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert serving.stdout is not None
        said = serving.stdout.readline() + serving.stdout.readline()
        found = re.search(r"http://\S+", said)
        assert found and str(home.http_token_file) in said
        at = Listening(found[0], home.http_token_file.read_text().strip())
        async with at.client("auto") as client:
            assert await text(client, "whoami")
        serving.send_signal(signal.SIGINT)
        assert await anyio.to_thread.run_sync(serving.wait, PATIENCE_S) == 130
    finally:
        serving.kill()
        serving.communicate()
    async with ControlClient.open(home, start=False) as control:
        assert (await control.call("ping"))["pid"] == reply["pid"]
