"""The main job on the starter models: real clients over stdio, one host, six tools, and the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import psutil
import pytest
from mcp import Client, MCPError

from rolecall.config.home import Home
from rolecall.server.connect import lock_holder
from tests.conftest import ROLECALL, home_at

from .conftest import command, connected, furnished

pytestmark = [pytest.mark.live, pytest.mark.anyio]

LONG_ANSWER = "Write a long story about a lighthouse keeper, with many details."


@pytest.fixture(scope="module")
def house(starter_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home whose host stays for several tests: it takes long to start."""
    with home_at(tmp_path_factory.mktemp("house") / "home") as home:
        yield furnished(home, starter_models)


@pytest.fixture
def running(house: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("ROLECALL_HOME", str(house.root))
    return house


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "depot.md").write_text("# Depots\n\nThe reference code of the north depot is 4711. It opens at 07:00.\n")
    (folder / "crane.txt").write_text("The harbour crane lifts at most 43 tonnes. It was built in 1974.\n" * 3)
    (folder / "tool.py").write_text("def lift(tonnes: int) -> bool:\n    return tonnes <= 43\n")
    (folder / ".env").write_text("SECRET=1\n")
    return folder


async def cli(*arguments: str, code: int = 0) -> Any:
    """A command beside the running event loop; its JSON."""
    return json.loads(await anyio.to_thread.run_sync(lambda: command(*arguments, "--json", code=code)))


def data(result: types.CallToolResult) -> dict[str, Any]:
    assert not result.is_error, result.content
    content: dict[str, Any] = result.structured_content
    return content


def text_of(result: types.CallToolResult) -> str:
    assert isinstance(result.content[0], types.TextContent)
    return result.content[0].text


async def test_six_tools_answer_on_real_input_and_files_outside_allowed_folders_are_refused(
    running: Home, notes: Path, tmp_path: Path
) -> None:
    report = await cli("index", "add", str(notes))
    assert (report["indexed"], report["failed"]) == (3, [])
    async with connected(notes) as ask:
        routed = data(await ask.call_tool("route", {"request": "what is 17 * 23?"}))
        reasoned = data(await ask.call_tool("reason", {"question": "What is the capital of France?", "depth": "quick"}))
        coded = data(await ask.call_tool("code", {"task": "Write reverse_string(s).", "language": "python"}))
        summed = data(await ask.call_tool("summarize", {"paths": ["crane.txt"], "max_words": 40}))
        found = data(
            await ask.call_tool("retrieve", {"query": "reference code of the north depot", "collection": "notes"})
        )
        valid = data(await ask.call_tool("validate", {"output": "It lifts 44 tonnes.", "paths": ["crane.txt"]}))
        refused = await ask.call_tool("summarize", {"paths": [str(tmp_path / "elsewhere.md")]})
        secret = await ask.call_tool("summarize", {"paths": [".env"]})

    assert "391" in routed["answer"] and routed["decision"]["agent"] == "calculator"
    assert "Paris" in reasoned["answer"]
    assert coded["blocks"] and coded["blocks"][0]["language"] == "python"
    assert summed["answer"] and len(summed["answer"].split()) <= 40
    best = found["passages"][0]
    assert "4711" in best["text"]
    assert Path(best["path"]).read_bytes()[best["start_byte"] : best["end_byte"]].decode() == best["text"]
    assert found["index"]["indexed"] == 3
    assert valid["verdict"] == "unsupported"
    assert refused.is_error and text_of(refused).startswith("[path_")
    assert secret.is_error and text_of(secret).startswith("[path_not_allowed]")
    receipt = await cli("receipt", "show", reasoned["receipt_id"])
    assert receipt["model"] == "starter/smollm2-135m-instruct-fp32" and receipt["tokens"]


async def test_a_schema_is_satisfied_or_refused_and_a_saved_file_is_never_overwritten(
    running: Home, notes: Path
) -> None:
    await cli("allow", str(notes))
    schema = {
        "type": "object",
        "properties": {"year": {"type": "integer", "minimum": 1900, "maximum": 2100}},
        "required": ["year"],
        "additionalProperties": False,
    }
    async with connected(notes) as ask:
        extracted = data(
            await ask.call_tool("reason", {"question": "When was it built?", "paths": ["crane.txt"], "schema": schema})
        )
        saved = data(await ask.call_tool("code", {"task": "Write add(a, b).", "language": "python", "save_to": "a.py"}))
        again = await ask.call_tool("code", {"task": "Write add(a, b).", "language": "python", "save_to": "a.py"})

    assert set(extracted["data"]) == {"year"} and 1900 <= extracted["data"]["year"] <= 2100
    assert saved["saved_path"] == str(notes / "a.py") or saved["status"] == "unverified"
    if saved["saved_path"]:
        assert (notes / "a.py").read_text() not in saved["answer"]
        assert again.is_error


async def test_a_killed_worker_and_a_killed_host_cost_one_typed_error_each(text_only: Home, notes: Path) -> None:
    async with connected(notes) as ask:
        data(await ask.call_tool("reason", {"question": "What is the capital of France?", "depth": "quick"}))
        worker = (await cli("models", "ps"))[0]["pid"]
        codes, seconds = await _killed_during_generation(ask, worker)
        assert codes == ["worker_died"] and seconds < 2
        data(await ask.call_tool("reason", {"question": "What is the capital of France?", "depth": "quick"}))

        host = lock_holder(text_only)
        assert host is not None
        codes, seconds = await _killed_during_generation(ask, host)
        assert codes == ["host_died"] and seconds < 2
        data(await ask.call_tool("route", {"request": "what is 17 * 23?"}))
        assert lock_holder(text_only) not in (None, host)


@pytest.mark.soak
async def test_twenty_kills_of_workers_cost_one_typed_error_each(text_only: Home, notes: Path) -> None:
    async with connected(notes) as ask:
        for _ in range(20):
            data(await ask.call_tool("reason", {"question": "What is the capital of France?", "depth": "quick"}))
            worker = next(item["pid"] for item in await cli("models", "ps") if "reasoning" in item["roles"])
            codes, seconds = await _killed_during_generation(ask, worker)
            assert codes == ["worker_died"] and seconds < 2


@pytest.mark.soak
async def test_fifty_kills_of_the_host_cost_each_open_call_one_typed_error_and_the_session_goes_on(
    text_only: Home, notes: Path
) -> None:
    async with connected(notes) as ask:
        data(await ask.call_tool("route", {"request": "what is 17 * 23?"}))
        for _ in range(50):
            host = lock_holder(text_only)
            assert host is not None
            codes, seconds = await _killed_during_generation(ask, host, calls=3)
            assert codes == ["host_died"] * 3 and seconds < 2
            assert "391" in data(await ask.call_tool("route", {"request": "what is 17 * 23?"}))["answer"]
            assert lock_holder(text_only) not in (None, host)


async def _killed_during_generation(ask: Client, pid: int, calls: int = 1) -> tuple[list[str], float]:
    """Kill a process once tokens flow to one of some calls; their errors' codes, and the seconds until all are told."""
    killed_at = 0.0
    codes = list[str]()

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        nonlocal killed_at
        if message and "token" in message and not killed_at:
            killed_at = time.monotonic()
            os.kill(pid, signal.SIGKILL)

    async def call() -> None:
        try:
            result = await ask.call_tool("reason", {"question": LONG_ANSWER}, progress_callback=on_progress)
        except MCPError as error:
            codes.append(error.error.data["code"])
        else:
            assert killed_at and result.is_error, text_of(result)
            codes.append(text_of(result)[1:].partition("]")[0])

    async with anyio.create_task_group() as group:
        for _ in range(calls):
            group.start_soon(call)
    return codes, time.monotonic() - killed_at


def test_search_and_validate_print_the_shapes_that_others_score(running: Home, notes: Path, tmp_path: Path) -> None:
    command("index", "add", str(notes), "--collection", "scored", "--json")
    found = json.loads(command("search", "reference code of the north depot", "-k", "2", "--json"))
    batch = tmp_path / "claims.jsonl"
    batch.write_text(
        '{"id": 1, "output": "It lifts 43 tonnes.", "evidence": "The crane lifts 43 tonnes."}\n'
        '{"id": 2, "output": "{\\"a\\": 1}", "schema": {"type": "object", "required": ["b"]}}\n'
    )
    verdicts = [json.loads(line) for line in command("validate", "--batch", str(batch), "--json").splitlines()]
    suite, run = tmp_path / "suite", tmp_path / "run.jsonl"
    suite.mkdir()
    texts = ("The crane lifts 43 tonnes.", "The bakery sells rye bread.")
    rows = (json.dumps({"_id": str(number), "title": "", "text": text}) for number, text in enumerate(texts))
    (suite / "corpus.jsonl").write_text("\n".join(rows))
    asked = (json.dumps({"_id": f"q{number}", "text": text}) for number, text in enumerate(texts))
    (suite / "queries.jsonl").write_text("\n".join(asked))
    (suite / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq0\t0\t1\nq1\t1\t1\n")
    score = json.loads(command("eval", "run", "retrieval", "--data", str(suite), "--out", str(run), "--json"))

    assert set(found[0]) >= {"path", "start_line", "end_line", "start_byte", "end_byte", "score", "text", "sha256"}
    assert "4711" in found[0]["text"]
    assert [line["verdict"] for line in verdicts] == ["supported", "unsupported"]
    assert set(verdicts[0]) == {"id", "verdict", "confidence", "checks"}
    assert set(verdicts[0]["checks"][0]) == {"name", "verdict", "decisive", "detail"}
    assert set(score) == {"suite", "n", "score", "interval", "control", "verdict", "detail"} and score["score"] == 1.0
    results = [json.loads(line) for line in run.read_text().splitlines()]
    assert results == [{"query_id": "q0", "results": ["0", "1"]}, {"query_id": "q1", "results": ["1", "0"]}]


def test_a_bad_batch_line_is_named_and_nothing_is_printed(staffed: Home, tmp_path: Path) -> None:
    batch = tmp_path / "batch.jsonl"
    batch.write_text('{"id": "1", "text": "hello"}\nnot json\n')

    done = subprocess.run([ROLECALL, "route", "--batch", str(batch), "--json"], capture_output=True, text=True)

    assert done.returncode == 1 and done.stdout == ""
    error: dict[str, Any] = json.loads(done.stderr)["error"]
    assert error["code"] == "bad_request" and "Line 2" in error["message"]


def test_doctor_names_what_is_in_use_and_each_problem_with_what_to_do(staffed: Home) -> None:
    report = json.loads(command("doctor", "--json"))

    assert report["profile"] == "starter" and report["problems"] == []
    assert any("no judge of answers" in note for note in report["notes"])
    staffed.models.unlink()
    staffed.models.mkdir()
    report = json.loads(command("doctor", "--json", code=3))
    assert {problem["code"] for problem in report["problems"]} == {"model_missing"}
    assert all(problem["do"] for problem in report["problems"])


async def test_five_clients_share_one_copy_of_each_model_and_stop_leaves_no_process(staffed: Home, notes: Path) -> None:
    await cli("allow", str(notes))
    calls: list[tuple[str, dict[str, Any]]] = [
        ("reason", {"question": "What is the capital of France?", "depth": "quick"}),
        ("code", {"task": "Write add(a, b).", "language": "python"}),
        ("summarize", {"paths": ["crane.txt"], "max_words": 30}),
        ("reason", {"question": "Name an animal.", "depth": "quick"}),
        ("route", {"request": "what is 17 * 23?"}),
    ]
    answers: list[dict[str, Any]] = []
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(notes)) for _ in calls]

        async def one(each: Client, tool: str, arguments: dict[str, Any]) -> None:
            answers.append(data(await each.call_tool(tool, arguments)))

        async with anyio.create_task_group() as group:
            for each, (tool, arguments) in zip(clients, calls, strict=True):
                group.start_soon(one, each, tool, arguments)
        resident = await cli("models", "ps")
        host = lock_holder(staffed)
        family = [host, *(child.pid for child in psutil.Process(host).children(recursive=True))]

    assert len(answers) == 5
    models = [item["model"] for item in resident]
    assert len(models) == len(set(models)) and "starter/smollm2-135m-instruct-fp32" in models
    assert len(next(item for item in resident if "reasoning" in item["roles"])["roles"]) >= 3
    stopped = await cli("stop")
    assert stopped == {"stopped": True, "pid": host}
    alive = [psutil.Process(pid) for pid in family if pid is not None and psutil.pid_exists(pid)]
    psutil.wait_procs(alive, timeout=5)
    assert [each.pid for each in alive if each.is_running() and each.status() != psutil.STATUS_ZOMBIE] == []
