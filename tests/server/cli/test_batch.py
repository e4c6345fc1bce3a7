"""One line a file, in their order, whatever happens between: no work is lost and none is done twice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rolecall.config.home import Home
from rolecall.config.models import load_yaml
from rolecall.server.cli.app import main
from rolecall.server.cli.batch import Job, open_lines, run_batch
from rolecall.server.connect import lock_holder
from rolecall.server.errors import BadRequest, HostUnavailable
from tests.conftest import eventually

ROLECALL = str(Path(sys.executable).with_name("rolecall"))
JOB = "0123456789ab"


class Desk:
    """Work that is a function of a file's name and text; `asked` records it, `gone` is a file that finds no host."""

    def __init__(self, gone: str = "") -> None:
        self.asked: list[str] = []
        self.gone = gone

    async def __call__(self, path: str) -> dict[str, Any]:
        await anyio.lowlevel.checkpoint()
        if path.endswith(self.gone or "\0"):
            raise HostUnavailable("No host.")
        self.asked.append(path)
        text = Path(path).read_text()
        if "bad" in text:
            return {"status": "failed", "error": {"code": "file_unreadable"}}
        return {"status": "ok", "answer": f"é {len(text)}", "receipt_id": f"r{len(self.asked)}"}


def written(folder: Path, count: int = 7) -> list[str]:
    folder.mkdir(exist_ok=True)
    files = [folder / f"{number:02}.txt" for number in range(count)]
    for number, file in enumerate(files):
        file.write_text("bad" if number == 3 else "x" * number)
    return [str(file) for file in files]


def done(
    files: Sequence[str], out: Path, desk: Desk, job: str = JOB, concurrency: int = 1, retry: bool = False
) -> dict[str, int]:
    with open_lines(out, job) as lines:
        changed = lines.forget(files, retry)
        left = [file for file in files if file not in lines.kept]
        anyio.run(run_batch, left, lines, desk, concurrency, lambda update: None)
        return {"changed": changed, "done": len(left), "failed": lines.finish()}


def test_lines_are_in_the_order_of_the_files_and_hold_nothing_that_differs_between_runs(tmp_path: Path) -> None:
    files = written(tmp_path / "files")
    counts = done(files, tmp_path / "one.jsonl", Desk())
    done(files, tmp_path / "four.jsonl", Desk(), concurrency=4)

    assert counts == {"changed": 0, "done": 7, "failed": 1}
    data = (tmp_path / "one.jsonl").read_bytes()
    assert data == (tmp_path / "four.jsonl").read_bytes()
    lines = [json.loads(line) for line in data.splitlines()]
    assert [line["path"] for line in lines] == files
    assert set(lines[0]) == {"path", "sha256", "job", "status", "answer"}
    assert lines[3]["error"] == {"code": "file_unreadable"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_killed_after_any_byte_it_goes_on_to_the_same_output_and_does_nothing_twice(
    tmp_path: Path, data: st.DataObject
) -> None:
    files, out = written(tmp_path / "files"), tmp_path / "out.jsonl"
    done(files, out, Desk())
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    shuffled = b"".join(data.draw(st.permutations(lines)))  # as several at once may have written them
    kept = shuffled[: data.draw(st.integers(0, len(whole)))]
    out.write_bytes(kept)
    desk = Desk()

    done(files, out, desk)

    assert out.read_bytes() == whole
    before = {json.loads(line)["path"] for line in kept.splitlines(keepends=True) if line.endswith(b"\n")}
    assert sorted(desk.asked) == [file for file in files if file not in before]


def test_what_fails_is_done_again_only_where_that_is_asked_for(tmp_path: Path) -> None:
    files, out, desk = written(tmp_path / "files"), tmp_path / "out.jsonl", Desk()
    done(files, out, Desk())

    assert done(files, out, desk)["failed"] == 1 and desk.asked == []
    assert done(files, out, desk, retry=True)["done"] == 1 and desk.asked == [files[3]]


def test_a_changed_file_is_done_again_and_the_line_of_one_that_is_gone_is_kept(tmp_path: Path) -> None:
    files, out, desk = written(tmp_path / "files"), tmp_path / "out.jsonl", Desk()
    done(files, out, Desk())
    Path(files[2]).write_text("more than before")

    counts = done(files[1:], out, desk)

    assert (counts["changed"], desk.asked) == (1, [files[2]])
    lines = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert [line["path"] for line in lines] == files and lines[2]["answer"] == "é 16"


@pytest.mark.parametrize("held", [b'{"path":"a","sha256":"","job":"ffffffffffff"}\n', b"notes\n", b"notes", b"{}\n"])
def test_an_output_that_holds_anything_else_is_left_as_it_is(held: bytes, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_bytes(held)

    with pytest.raises(BadRequest) as caught:
        done(written(tmp_path / "files"), tmp_path / "out.jsonl", Desk())

    assert "--out" in caught.value.advice
    assert (tmp_path / "out.jsonl").read_bytes() == held


def test_a_name_that_is_no_text_has_a_line_like_any_other(tmp_path: Path) -> None:
    odd, out, desk = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt"), tmp_path / "out.jsonl", Desk()
    Path(odd).write_text("x")

    done([odd], out, Desk())
    done([odd], out, desk)

    assert json.loads(out.read_text("utf-8"))["path"] == odd and desk.asked == []


def test_two_batches_do_not_write_one_output(tmp_path: Path) -> None:
    with open_lines(tmp_path / "out.jsonl", JOB), pytest.raises(BadRequest, match="Another batch"):
        done([], tmp_path / "out.jsonl", Desk())


def test_a_host_that_is_gone_fails_no_file_and_the_batch_goes_on_later(tmp_path: Path) -> None:
    files, out = written(tmp_path / "files"), tmp_path / "out.jsonl"
    done(files, tmp_path / "whole.jsonl", Desk())

    with pytest.raises(HostUnavailable):
        done(files, out, Desk(gone="02.txt"), concurrency=2)
    done(files, out, Desk())

    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert [a for a, b in zip(out.read_bytes().splitlines(), whole.splitlines(), strict=True) if a != b] == []
    assert out.read_bytes() == whole


@pytest.mark.parametrize(
    ("job", "named"),
    [
        ("tool: code\npaths: [a]", "tool"),
        ("tool: reason\npaths: [a]", "question"),
        ("tool: summarize\npaths: []", "paths"),
        ("tool: summarize\npaths: [a]\narguments: {save_to: b}", "save_to"),
        ("tool: summarize\npaths: [a]\narguments: {words: 3}", "max_words"),
        ("tool: summarize\npaths: [a]\nthreads: 3", "concurrency"),
        ("just words", "the file"),
        (": :\n-", "YAML"),
        ("tool: reason\npaths: [a]\narguments: &loop {question: q, schema: *loop}", "Circular"),
        ("tool: reason\npaths: [a]\narguments: {question: 2024-01-01, schema: {const: 2024-01-01}, x: 1}", "x"),
    ],
)
def test_a_job_that_cannot_be_done_is_refused_before_anything_starts(
    job: str, named: str, home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.yaml").write_text(job)

    assert main(["batch", str(tmp_path / "job.yaml"), "--json"]) == 1

    out, errors = capsys.readouterr()
    assert out == "" and json.loads(errors)["error"]["code"] == "bad_request"
    assert named in errors
    assert not (tmp_path / "job.jsonl").exists()


def test_the_job_on_the_documentations_page_is_one() -> None:
    page = (Path(__file__).parents[3] / "docs" / "cli.md").read_text("utf-8")
    job = Job.model_validate(load_yaml(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0]))
    assert (job.tool, job.out, job.concurrency) == ("reason", "reports.jsonl", 1)


def test_sixty_files_killed_twice_and_resumed_are_the_same_bytes_as_uninterrupted(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "reports"
    folder.mkdir()
    for number in range(60):
        # Many sums to check, so that a kill finds the batch at work.
        sums = "".join(f"{number} + {other} = {number + other}. " for other in range(200))
        (folder / f"{number:02}.txt").write_text(sums)
    (folder / "30.txt").write_bytes(b"\xff\xfe no text")
    job = tmp_path / "job.yaml"
    job.write_text("tool: validate\npaths: ['reports/*.txt']\nconcurrency: 2\n")
    out = tmp_path / "job.jsonl"
    assert main(["batch", str(job), "--json"]) == 1  # the server's rules on paths hold
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "path_not_allowed" and not out.exists()
    assert main(["allow", str(folder)]) == 0
    assert main(["batch", str(job), "--out", str(tmp_path / "whole.jsonl")]) == 3
    capsys.readouterr()

    def lines() -> int:
        return out.read_bytes().count(b"\n") if out.exists() else 0

    for least in (10, 25):
        running = subprocess.Popen([ROLECALL, "batch", str(job)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        eventually(lambda least=least: lines() >= least, f"{least} lines")
        running.kill()
        running.communicate()
        assert running.returncode == -9 and least <= lines() < 60
    kept = lines()
    # This time the host dies: the files that were under way are asked of the next one.
    with subprocess.Popen([ROLECALL, "batch", str(job), "--json"], stdout=subprocess.PIPE) as running:
        eventually(lambda: lines() > kept, "another line")
        host = lock_holder(home)
        assert host
        os.kill(host, signal.SIGKILL)
        report = json.loads(running.communicate()[0])
    assert running.returncode == 3

    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert [a for a, b in zip(out.read_bytes().splitlines(), whole.splitlines(), strict=True) if a != b] == []
    assert out.read_bytes() == whole
    assert (report["files"], report["before"], report["done"], report["failed"]) == (60, kept, 60 - kept, 1)
    failed = [line for line in map(json.loads, out.read_bytes().splitlines()) if "error" in line]
    assert [Path(line["path"]).name for line in failed] == ["30.txt"] and failed[0]["error"]["advice"]
