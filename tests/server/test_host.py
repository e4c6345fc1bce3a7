from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import psutil
import pytest

from rolecall.config.errors import RemoteError
from rolecall.config.home import Home
from rolecall.server.connect import lock_holder
from rolecall.server.errors import HostDied, HostUnavailable
from rolecall.server.host.control import ControlClient, stop_host
from rolecall.server.host.lock import bind_socket, load_environment, network_disk
from rolecall.server.protocol import VERSION, release
from tests.conftest import StartClient, eventually, toy_connection

pytestmark = pytest.mark.anyio


async def test_control_requests_give_results_progress_and_typed_errors(shared_home: Home) -> None:
    seen: list[dict[str, int]] = []
    async with ControlClient.open(shared_home, start=False) as client:
        assert await client.call("count", {"to": 3}, seen.append) == 3
        assert seen == [{"number": 0}, {"number": 1}, {"number": 2}]
        ping = await client.call("ping")
        assert (ping["pid"], ping["version"]) == (lock_holder(shared_home), VERSION)
        with pytest.raises(RemoteError) as failed:
            await client.call("fail")
        assert failed.value.to_dict() == {
            "code": "config_invalid",
            "message": "It cannot be.",
            "found": "this",
            "allowed": "that",
            "advice": "Change it.",
        }
        assert await client.call("echo", {"text": "half a pair: \ud800"}) == "half a pair: \ud800"
        with pytest.raises(RemoteError, match=r"no such operation.*count, echo, fail, hang, .*ping, stop"):
            await client.call("nonsense")


async def test_an_operation_that_breaks_down_is_logged_without_what_it_said(shared_home: Home) -> None:
    async with ControlClient.open(shared_home, start=False) as client:
        with pytest.raises(RemoteError) as failed:
            await client.call("break_down", {"text": "a document's text"})
    assert failed.value.code == "internal"
    log = (shared_home.logs / "host.log").read_text()
    assert "ValueError" in log and "break_down" in log
    assert "a document's text" not in log + str(failed.value)


async def test_a_cancelled_call_is_cancelled_in_the_host(shared_home: Home, tmp_path: Path) -> None:
    mark = anyio.Path(tmp_path / "mark")
    async with ControlClient.open(shared_home, start=False) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, "hang", {"mark": str(mark)})
        await _until(mark.exists)
        tasks.cancel_scope.cancel()
    async with ControlClient.open(shared_home, start=False) as client:
        await _until(mark.exists, False)
        assert await client.call("ping")


async def test_calls_that_a_dead_host_leaves_open_say_so(home: Home, toy_host: int, tmp_path: Path) -> None:
    async with ControlClient.open(home, start=False) as client:
        async with anyio.create_task_group() as tasks:

            async def hang() -> None:
                with pytest.raises(HostDied):
                    await client.call("hang", {"mark": str(tmp_path / "mark")})

            tasks.start_soon(hang)
            await _until(anyio.Path(tmp_path / "mark").exists)
            os.kill(toy_host, signal.SIGKILL)
        with pytest.raises(HostDied):
            await client.call("ping")


async def test_without_a_host_a_client_that_starts_none_is_told_so(home: Home) -> None:
    with pytest.raises(HostUnavailable, match="No host runs"):
        async with ControlClient.open(home, start=False):
            pass
    assert await stop_host(home) is None


async def test_a_request_that_outlives_the_drain_gets_the_shims_typed_error(
    home: Home, toy_client: StartClient, tmp_path: Path
) -> None:
    client = toy_client()
    client.initialize()
    asked = client.send("tools/call", {"name": "wait", "arguments": {"mark": str(tmp_path / "mark")}})
    eventually((tmp_path / "mark").exists, "the tool runs")
    await stop_host(home, drain_s=0.1)
    error = client.receive()
    assert (error["id"], error["error"]["data"]["code"]) == (asked, "host_died")


async def test_an_idle_host_leaves_and_one_with_a_session_stays(home: Home, toy_client: StartClient) -> None:
    (home.root / "idle_exit_s").write_text("0.4")
    client = toy_client()
    client.initialize()
    pid = client.tool("whoami").split()[0]
    async with ControlClient.open(home, start=False) as control:
        assert (await control.call("ping"))["clients"] == ["test"]
    with pytest.raises(psutil.TimeoutExpired):  # more than twice the idle time, in which it must not end
        psutil.Process(int(pid)).wait(1.0)
    assert client.tool("whoami").split()[0] == pid
    client.close()
    eventually(lambda: lock_holder(home) is None, "the idle host has left")


async def test_a_host_whose_home_was_removed_leaves(home: Home) -> None:
    (home.root / "idle_exit_s").write_text("1")
    keeps_it_busy, reply = toy_connection(home, "control")
    pid = int(reply["pid"])
    shutil.rmtree(home.root)
    eventually(lambda: not _alive(pid), "the host has left")
    keeps_it_busy.close()


async def test_a_host_whose_socket_was_swept_away_leaves_and_its_client_goes_on(
    home: Home, toy_client: StartClient
) -> None:
    (home.root / "idle_exit_s").write_text("1")
    client = toy_client()
    client.initialize()
    before = client.tool("whoami").split()[0]
    Path(json.loads(home.lock_file.read_text())["socket"]).unlink()
    eventually(lambda: lock_holder(home) is None, "the host has left")
    assert client.tool("whoami").split()[0] != before


async def test_a_host_without_its_socket_is_stopped_all_the_same(home: Home, toy_host: int) -> None:
    Path(json.loads(home.lock_file.read_text())["socket"]).unlink()
    assert await stop_host(home) == toy_host


async def test_the_command_line_is_refused_other_settings_and_may_stop_the_host_all_the_same(
    home: Home, toy_host: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RemoteError, match=r"other\.yaml"):
        async with ControlClient.open(home, tmp_path / "other.yaml"):
            pass
    monkeypatch.setenv("ROLECALL_PROFILE", "mac-16")
    socket = Path(json.loads(home.lock_file.read_text())["socket"])
    assert socket.exists()
    assert await stop_host(home) == toy_host
    assert lock_holder(home) is None
    assert not socket.exists()


def test_a_log_over_its_limit_is_moved_aside_and_three_are_kept(home: Home) -> None:
    code = (
        "import os, sys, pathlib; from rolecall.server.host.log import rotate\n"
        "log = pathlib.Path(sys.argv[1])\n"
        "for number in range(5):\n"
        "    rotate(log); os.write(2, str(number).encode() * (10 * 1024 * 1024 + 1))"
    )
    log = home.logs / "host.log"
    subprocess.run([sys.executable, "-c", code, str(log)], check=True)
    assert sorted(file.name for file in home.logs.iterdir()) == ["host.log", "host.log.1", "host.log.2"]
    assert [Path(f"{log}{end}").read_bytes()[:1] for end in ("", ".1", ".2")] == [b"4", b"3", b"2"]


async def test_a_stranger_on_the_socket_is_told_what_is_expected(shared_home: Home) -> None:
    path = json.loads(shared_home.lock_file.read_text())["socket"]
    for first in (b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n', b"\xff\n", b"[" * 100_000 + b"\n"):
        async with await anyio.connect_unix(path) as stream:
            await stream.send(first)
            assert json.loads(await stream.receive())["error"]["code"] == "bad_request"


async def test_a_runtime_folder_that_is_a_link_is_refused(home: Home, tmp_path: Path, runtime: Path) -> None:
    (runtime / "rolecall").symlink_to(tmp_path)
    with pytest.raises(HostUnavailable, match="cannot be trusted"):
        bind_socket(home)


def test_a_home_on_a_network_disk_is_known_by_the_longest_mount() -> None:
    mounts = {"/": "ext4", "/home": "nfs4", "/home/local": "xfs"}
    assert network_disk(Path("/home/u/rolecall"), mounts) == "nfs4 at /home"
    assert network_disk(Path("/home/local/rolecall"), mounts) is None
    assert network_disk(Path("/srv"), mounts) is None


def test_a_line_of_the_env_file_that_cannot_be_used_is_named_by_its_number_alone(home: Home) -> None:
    home.env_file.write_text("A=1\nsecret words\n")
    with pytest.raises(Exception, match="Line 2 of") as failed:
        load_environment(home)
    assert "secret" not in str(failed.value)


def test_releases_compare_as_numbers_and_a_pre_release_replaces_nothing() -> None:
    assert release("0.10.0") > release("0.9.9")
    assert release("0.1.0rc1") == release("0.1.0") == (0, 1, 0)
    assert release("nonsense") == ()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def _until(holds: object, wanted: bool = True) -> None:
    assert callable(holds)
    with anyio.fail_after(30):
        while await holds() is not wanted:
            await anyio.sleep(0.01)
