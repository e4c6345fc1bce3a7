from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rolecall.config.home import Home
from rolecall.server.connect import Connection, lock_holder
from rolecall.server.protocol import DRAIN, HOST_ERRORS, MAX_FRAME_BYTES, VERSION
from tests.conftest import PATIENCE_S, StartClient, Stdio, eventually, toy_connection

_META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "stateless", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


def test_two_clients_share_one_host_and_each_is_known_by_its_name_and_folder(
    shared_client: StartClient, tmp_path: Path
) -> None:
    first, second = shared_client(), shared_client()
    first.initialize()
    second.initialize()
    assert first.tool("whoami") == second.tool("whoami")
    pid, name, cwd = first.tool("whoami").split(" ")
    assert (name, cwd) == ("test", str(tmp_path))
    assert int(pid) not in (first.process.pid, second.process.pid)


def test_a_host_killed_in_mid_request_leaves_a_typed_error_and_the_next_call_succeeds(
    toy_client: StartClient, home: Home, tmp_path: Path
) -> None:
    client = toy_client()
    client.initialize()
    before = client.tool("whoami")
    waiting = client.send("tools/call", {"name": "wait", "arguments": {"mark": str(tmp_path / "mark")}})
    eventually((tmp_path / "mark").exists, "the tool runs")
    os.kill(int(before.split()[0]), signal.SIGKILL)
    error = client.receive(patience_s=2.0)
    assert error["id"] == waiting
    assert error["error"]["code"] == HOST_ERRORS["host_died"]
    assert error["error"]["data"]["code"] == "host_died"
    assert str(home.logs / "host.log") in error["error"]["message"]
    # The stale socket and lock are those of the dead host; the handshake's second answer is not passed on.
    after = client.tool("whoami")
    assert after.split()[0] != before.split()[0]
    assert after.split()[1] == "test"


def test_subscriptions_and_streams_are_made_again_with_the_next_host_without_being_asked(
    toy_client: StartClient, tmp_path: Path
) -> None:
    client, stateless = toy_client(), toy_client()
    client.initialize()
    seen = tmp_path / "seen"
    client.request("resources/subscribe", {"uri": f"file://{seen}"})
    asked = stateless.send("subscriptions/listen", {"notifications": {"toolsListChanged": True}, "_meta": _META})
    opened = stateless.receive()
    assert opened["method"] == "notifications/subscriptions/acknowledged"
    before, name, _ = stateless.tool("whoami", _META).split()
    assert name == "stateless"
    os.kill(int(before), signal.SIGKILL)
    assert stateless.receive() == opened
    eventually(lambda: len(seen.read_text().split()) == 2, "the next host knows the subscription")
    after, name, _ = stateless.tool("whoami", _META).split()
    assert (seen.read_text().split(), name) == ([before, after], "stateless")
    stateless.write(b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%d}}' % asked)
    assert stateless.tool("whoami", _META)


def test_hosts_started_at_once_over_a_lock_file_of_rubbish_leave_one(toy_client: StartClient, home: Home) -> None:
    home.lock_file.write_bytes(b"\xff{not json")
    clients = [toy_client() for _ in range(3)]
    requests = [client.send("initialize", _handshake()) for client in clients]
    assert [client.receive()["id"] for client in clients] == requests
    assert len({client.tool("whoami").split()[0] for client in clients}) == 1


def test_the_end_of_input_cancels_requests_flushes_replies_and_ends_the_shim_within_a_second(
    shared_client: StartClient, tmp_path: Path
) -> None:
    client = shared_client()
    client.initialize()
    client.send("tools/call", {"name": "wait", "arguments": {"mark": str(tmp_path / "mark")}})
    eventually((tmp_path / "mark").exists, "the tool runs")
    asked = client.send("tools/list")
    answer = client.receive()
    started = time.monotonic()
    code, _, _ = client.close()
    assert time.monotonic() - started < 1.0
    assert (answer["id"], code) == (asked, 0)
    eventually(lambda: not (tmp_path / "mark").exists(), "the tool was cancelled")


def test_a_host_asked_to_stop_answers_what_is_open_and_the_next_request_starts_another(
    toy_client: StartClient, home: Home, tmp_path: Path
) -> None:
    client = toy_client()
    client.initialize()
    mark = tmp_path / "mark"
    waiting = client.send("tools/call", {"name": "wait_for", "arguments": {"mark": str(mark)}})
    eventually(Path(f"{mark}.began").exists, "the tool runs")
    old = lock_holder(home)
    assert old
    os.kill(old, signal.SIGTERM)
    late = client.send("tools/list")
    socket = Path(json.loads(home.lock_file.read_text())["socket"])
    eventually(lambda: not socket.exists(), "the socket is gone before the host has drained")
    mark.touch()
    answers = {answer["id"]: answer for answer in (client.receive(), client.receive())}
    assert answers[waiting]["result"]["content"][0]["text"] == "done"
    assert "result" in answers[late]
    eventually(lambda: lock_holder(home) != old, "the old host has left")
    assert client.tool("whoami").split()[0] != str(old)


def test_an_older_client_is_served_and_a_newer_one_replaces_the_host_when_it_has_drained(
    toy_client: StartClient, home: Home, tmp_path: Path
) -> None:
    (home.root / "version").write_text("0.0.2")
    older, reply = toy_connection(home, "mcp", "0.0.1")
    (home.root / "version").unlink()
    assert reply["rolecall"] == "0.0.2"
    older.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": _handshake()}).encode())
    older.sendall(b"\n")
    lines = older.makefile("rb")
    assert json.loads(lines.readline())["id"] == 1
    newer = toy_client()
    asked = newer.send("initialize", _handshake())
    assert json.loads(lines.readline()) == {"rolecall": "drain"}
    older.sendall(b'{"jsonrpc":"2.0","id":2,"method":"ping"}\n')
    assert json.loads(lines.readline())["id"] == 2
    lines.close()
    older.close()
    assert newer.receive()["id"] == asked
    assert json.loads(home.lock_file.read_text())["version"] == VERSION
    assert newer.tool("whoami").split()[0] != str(reply["pid"])


def test_an_upgrade_under_two_clients_with_open_calls_costs_neither_anything(
    toy_client: StartClient, home: Home, tmp_path: Path
) -> None:
    clients = [toy_client(), toy_client()]
    open_calls = list[int]()
    for number, client in enumerate(clients):
        client.initialize()
        mark = tmp_path / str(number)
        open_calls.append(client.send("tools/call", {"name": "wait_for", "arguments": {"mark": str(mark)}}))
        eventually(Path(f"{mark}.began").exists, "the tool runs")
    older, (watcher, _) = lock_holder(home), toy_connection(home, "mcp")
    (home.root / "version").write_text("9.9.9")  # of the next host
    connected = list[Connection]()
    newer = threading.Thread(target=lambda: connected.append(toy_connection(home, "mcp", "9.9.9")))
    newer.start()
    with watcher, watcher.makefile("rb") as lines:  # the last to be told: the others know it too
        assert lines.readline() == DRAIN
    late = [client.send("tools/call", {"name": "whoami", "arguments": {}}) for client in clients]
    for number, (client, asked) in enumerate(zip(clients, open_calls, strict=True)):
        assert lock_holder(home) == older, "it waits for what is open"
        (tmp_path / str(number)).touch()
        answer = client.receive()
        assert (answer["id"], answer["result"]["content"][0]["text"]) == (asked, "done")
    newer.join(PATIENCE_S)
    ((newest, reply),) = connected
    newest.close()
    assert reply["rolecall"] == "9.9.9" and reply["pid"] == lock_holder(home) != older
    for client, asked in zip(clients, late, strict=True):
        answer = client.receive()
        assert answer["id"] == asked
        assert answer["result"]["content"][0]["text"].split()[:2] == [str(reply["pid"]), "test"]


def test_three_hosts_that_die_before_an_answer_are_the_last(toy_client: StartClient, home: Home) -> None:
    (home.root / "crash").touch()
    client = toy_client()
    refused = client.request("initialize", _handshake())["error"]
    assert refused["data"]["code"] == "host_unavailable"
    assert str(home.logs / "host.log") in refused["message"]
    (home.root / "crash").unlink()
    again = client.request("initialize", _handshake())["error"]
    assert again == refused
    eventually(lambda: lock_holder(home) is None, "the last of them is gone")


def test_settings_that_cannot_be_used_are_named_and_the_next_request_tries_again(
    toy_client: StartClient, tmp_path: Path
) -> None:
    client = toy_client(str(tmp_path / "broken.yaml"))
    for _ in range(2):
        error = client.request("initialize", _handshake())["error"]
        assert error["data"]["code"] == "config_invalid"
        assert "broken.yaml" in error["message"]


def test_settings_unlike_the_hosts_are_refused_by_name_and_others_are_served(
    toy_client: StartClient, tmp_path: Path
) -> None:
    one, two = str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml")
    assert "result" in toy_client(one).initialize()
    error = toy_client(two).request("initialize", _handshake())["error"]
    assert error["data"]["code"] == "host_mismatch"
    assert one in error["message"] and two in error["message"]
    assert (
        "ROLECALL_PROFILE"
        in (toy_client(env={"ROLECALL_PROFILE": "x"}).request("initialize", _handshake())["error"]["message"])
    )
    assert "result" in toy_client().initialize()


def test_the_host_takes_keys_and_proxies_from_its_home_and_not_from_a_client(
    toy_client: StartClient, home: Home
) -> None:
    home.env_file.write_text("# mine\nexport TOY_TOKEN='from home'\n")
    client = toy_client(env={"TOY_TOKEN": "from client", "TOY_PLAIN": "plain"})
    client.initialize()
    assert client.tool("token") == f"from home plain {home.root}"


def test_where_no_socket_can_be_made_the_client_is_served_alone_with_a_warning(
    toy_client: StartClient, home: Home
) -> None:
    (home.root / "no_socket").touch()
    client = toy_client()
    client.initialize()
    assert int(client.tool("whoami").split()[0]) == lock_holder(home)
    _, _, warning = client.close()
    assert "serving this client alone" in warning
    eventually(lambda: lock_holder(home) is None, "the server has left with its client")


def test_a_standalone_server_keeps_others_out_is_replaced_when_it_dies_and_leaves_with_its_client(
    toy_client: StartClient, home: Home
) -> None:
    client = toy_client("--standalone")
    client.initialize()
    pid = int(client.tool("whoami").split()[0])
    assert lock_holder(home) == pid
    for other in (toy_client(), toy_client("--standalone")):
        error = other.request("initialize", _handshake())["error"]
        assert error["data"]["code"] == "host_unavailable" and str(pid) in error["message"]
    os.kill(pid, signal.SIGKILL)
    assert client.tool("whoami").split()[0] != str(pid)
    assert client.close()[0] == 0
    eventually(lambda: lock_holder(home) is None, "the server has left with its client")


def test_odd_lines_are_answered_by_the_host_and_the_next_request_works(shared_client: StartClient) -> None:
    client = shared_client()
    client.initialize()
    client.write(b'{"id": 7, "jsonrpc": "2.0", "method": "tools/list", "params": {"x": ' + b"[" * 50_000)
    assert (deep := client.receive())["error"]["code"] == -32700
    assert deep["id"] == 7
    client.write(b'{"jsonrpc":"2.0","id":8,"method":"tools/call","params":{"x":"' + b"x" * (MAX_FRAME_BYTES + 100_000))
    assert (long := client.receive())["error"]["code"] == -32600
    assert long["id"] == 8
    assert "result" in client.request("tools/list")


def test_a_client_that_does_not_read_keeps_nobody_waiting(shared_client: StartClient) -> None:
    deaf, other = shared_client(), shared_client()
    deaf.initialize()
    other.initialize()
    asked = [deaf.send("tools/call", {"name": "big", "arguments": {"size": 4_000_000}}) for _ in range(4)]
    assert other.tool("big", size=10) == "x" * 10
    assert sorted(deaf.receive()["id"] for _ in asked) == asked


def test_a_reply_for_an_earlier_host_is_dropped(shared_client: StartClient) -> None:
    client = shared_client()
    client.request("initialize", {**_handshake(), "capabilities": {"roots": {}}})
    client.write(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
    asked = client.send("tools/call", {"name": "ask", "arguments": {}})
    question = client.receive()
    boot, _, number = question["id"].partition(":")
    assert question["method"] == "roots/list"
    for reply_id, root in ((f"earlier:{number}", "file:///wrong"), (f"{boot}:{number}", "file:///right")):
        client.write(json.dumps({"jsonrpc": "2.0", "id": reply_id, "result": {"roots": [{"uri": root}]}}).encode())
    answer = client.receive()
    assert (answer["id"], answer["result"]["content"][0]["text"]) == (asked, "file:///right")


def test_the_shim_imports_the_standard_library_and_constants_of_ours() -> None:
    code = "import sys, rolecall.server.shim; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout.split()
    foreign = {name.partition(".")[0] for name in out} - set(sys.stdlib_module_names) - {"rolecall", "__main__"}
    assert {name for name in foreign if not name.startswith("_")} == set()
    assert {name for name in out if name.startswith("rolecall")} == {
        "rolecall",
        "rolecall.config",
        "rolecall.config.errors",
        "rolecall.config.home",
        "rolecall.server",
        "rolecall.server.connect",
        "rolecall.server.errors",
        "rolecall.server.protocol",
        "rolecall.server.shim",
    }


@pytest.mark.parametrize("arguments", [["--nonsense"], ["--config"]])
def test_an_unknown_option_is_refused_with_the_usage(arguments: list[str]) -> None:
    command = [sys.executable, "-c", "import sys; from rolecall.server.main import main; sys.exit(main())", "serve"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: rolecall serve" in done.stderr


def test_the_command_serves_the_product(home: Home, tmp_path: Path) -> None:
    client = Stdio([str(Path(sys.executable).with_name("rolecall")), "serve"], tmp_path, dict(os.environ))
    assert client.initialize()["result"]["serverInfo"]["name"] == "rolecall"
    assert {tool["name"] for tool in client.request("tools/list")["result"]["tools"]} >= {"route", "validate"}
    code, _, errors = client.close()
    assert (code, errors) == (0, "")


def _handshake() -> dict[str, object]:
    return {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
