"""The programs in docs/frameworks.md run as they stand there, each in an environment of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "frameworks.md"
PROGRAMS = re.findall(
    r'```console\n\$ pip install "?([^"\n]+)"?\n```\n\n```python\n(.*?)```', PAGE.read_text(), re.DOTALL
)
ROLECALL = Path(sys.executable).with_name("rolecall")


@pytest.mark.soak
@pytest.mark.parametrize(("package", "program"), PROGRAMS, ids=[package for package, _ in PROGRAMS])
def test_a_framework_calls_the_tools_twice_over_one_session(package: str, program: str, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", package], check=True, capture_output=True)
    (tmp_path / "program.py").write_text(program.replace("/absolute/path/to/rolecall", str(ROLECALL)))
    user = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}

    try:
        done = subprocess.run(
            [python, "program.py"], env=user, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        log = subprocess.run([ROLECALL, "logs", "--json"], env=user, capture_output=True, text=True, check=True)
    finally:
        subprocess.run([ROLECALL, "stop"], env=user, capture_output=True, check=True)

    first, second = done.stdout.splitlines()
    assert "391" in first and "4.828" in second
    events = [json.loads(line)["event"] for line in json.loads(log.stdout)["lines"]]
    assert events.count("session_opened") == 1


def test_the_page_shows_both_of_langchains_adapters() -> None:
    assert [package for package, _ in PROGRAMS] == ["langchain-mcp-adapters", "langchain[mcp]"]
