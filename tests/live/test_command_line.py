"""The command line on the starter models: a batch of summaries that is killed, an answer seen while it is written."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path

import pytest

from rolecall.config.home import Home
from tests.conftest import ROLECALL, eventually

from .conftest import command

pytestmark = pytest.mark.live
TEXTS = {
    "crane": "The harbour crane lifts at most 43 tonnes.",
    "depot": "The north depot opens at seven.",
    "ferry": "The ferry carries forty cars.",
}


@pytest.mark.soak
def test_a_killed_batch_of_summaries_ends_in_the_same_bytes(home: Home, starter_home: Home, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / f"{name}.txt").write_text(text)
    job, out, whole = tmp_path / "job.yaml", tmp_path / "job.jsonl", tmp_path / "whole.jsonl"
    job.write_text("tool: summarize\npaths: [texts]\narguments: {max_words: 10}\n")
    command("allow", str(folder))
    command("batch", str(job), "--out", str(whole))
    with subprocess.Popen([ROLECALL, "batch", str(job)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        eventually(lambda: out.exists() and out.read_bytes().count(b"\n"), "the first line", 120)
        running.kill()
        running.communicate()
    assert out.read_bytes().count(b"\n") < len(TEXTS)

    report = json.loads(command("batch", str(job), "--json"))

    assert out.read_bytes() == whole.read_bytes()
    assert report["before"] + report["done"] == len(TEXTS) and report["before"] >= 1
    lines = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert [Path(line["path"]).stem for line in lines] == sorted(TEXTS)
    assert all(line["answer"] and len(line["answer"].split()) <= 10 for line in lines)
    usage = json.loads(command("status", "--json"))["usage"]["today"]
    assert usage["spared"]["read_bytes"] >= 2 * sum(len(text) for text in TEXTS.values())
    assert usage["spared"]["read_tokens"] > 0
    assert usage["by_role"].keys() == {"summarization"}  # the call that was killed may have had no role yet
    assert usage["calls"] - 1 <= usage["by_role"]["summarization"] <= usage["calls"]


@pytest.mark.soak
def test_an_answer_is_seen_on_a_terminal_while_it_is_written(home: Home, starter_home: Home) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    request = "Name a colour in a short sentence."
    with subprocess.Popen([ROLECALL, "ask", request], stdout=follower, stderr=follower) as process:
        os.close(follower)
        seen = b""
        while chunk := _read(leader):
            seen += chunk
        os.close(leader)
    assert process.returncode == 0
    written, _, final = seen.rpartition(b"\x1b[?25h")  # the display ended: what follows is the checked answer
    first = b" ".join(re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", final).split()[:2])
    assert first and first in written, "no part of the answer was shown before its end"


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:  # Linux says so where the other side is closed
        return b""
