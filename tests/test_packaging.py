"""The project installs the way users install it, and its rooms keep to their import rules."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
ROOMS = ("server", "roles", "retrieval", "config")


def _sources() -> list[Path]:
    return [path for room in ROOMS for path in (PROJECT / room).rglob("*.py")]


def test_no_module_imports_a_room_by_its_bare_name() -> None:
    for path in _sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").split(".")[0] not in ROOMS, path
            elif isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & set(ROOMS), path


def test_package_init_files_stay_empty() -> None:
    assert [str(path) for path in _sources() if path.name == "__init__.py" and path.read_text().strip()] == []


def test_no_module_is_longer_than_five_hundred_lines() -> None:
    assert [str(path) for path in _sources() if len(path.read_text().splitlines()) > 500] == []


@pytest.mark.parametrize("heavy", ["mcp", "pydantic", "yaml", "anyio", "typer"])
def test_the_shim_imports_nothing_heavy(heavy: str) -> None:
    code = f"import sys, rolecall.server.main, rolecall.server.shim; sys.exit({heavy!r} in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_composing_a_host_imports_neither_models_nor_the_store() -> None:
    heavy = ("torch", "mlx", "mlx_lm", "lancedb", "transformers", "sentence_transformers", "pint", "lark")
    code = f"import sys, rolecall.server.host.compose; print([m for m in {heavy!r} if m in sys.modules])"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("resolved", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_the_wheel_from_the_sdist_answers_a_route_call_over_stdio(tmp_path: Path, resolved: bool) -> None:
    """With its dependencies from the index, or with those that are installed here, if they are what it asks for."""
    build = [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(PROJECT)]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    wanted = ["-c", str(PROJECT / "constraints.txt"), "torch"] if resolved else ["--no-deps"]
    if not resolved:
        (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
        (packages / "installed-here.pth").write_text(sysconfig.get_path("purelib"))
    install = [python, "-m", "pip", "install", "-q", "--no-compile", *wanted, str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    checked = subprocess.run([python, "-m", "pip", "check"], capture_output=True, text=True)
    assert "rolecall" not in checked.stdout, checked.stdout
    home = tmp_path / "home"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "ROLECALL_HOME": str(home)}

    answers = _session(tmp_path / "venv" / "bin" / "rolecall", environment, tmp_path)
    stopped = subprocess.run(
        [tmp_path / "venv" / "bin" / "rolecall", "stop", "--json"], env=environment, capture_output=True, check=True
    )

    result = answers[2]["result"]["structuredContent"]
    assert result["decision"]["agent"] == "calculator"
    assert "391" in result["answer"]
    assert json.loads(stopped.stdout)["stopped"] is True


def _session(rolecall: Path, environment: dict[str, str], cwd: Path) -> dict[int, dict[str, object]]:
    hello = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    }
    call = {"name": "route", "arguments": {"request": "what is 17 * 23?"}}
    lines = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call},
    ]
    answers: dict[int, dict[str, object]] = {}
    with subprocess.Popen(
        [rolecall, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=cwd
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for line in lines:
            process.stdin.write(json.dumps(line).encode() + b"\n")
        process.stdin.flush()
        while 2 not in answers:
            answer = json.loads(process.stdout.readline())
            answers[answer.get("id")] = answer
        process.stdin.close()
    return answers
