"""From spawn to `tools/list`: the shim with and without a running host, beside a bare server on the same SDK.

Each round starts the three in turn, so that a drift of the machine's speed hits all alike; figures are medians, ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from .stage import show

ROLECALL = str(Path(sys.executable).with_name("rolecall"))
BARE = """
import anyio
from typing import Annotated
from pydantic import Field
from mcp.server.mcpserver import MCPServer
server = MCPServer("bare")
for name in ("route", "reason", "code", "summarize", "retrieve", "validate"):
    @server.tool(name=name)
    def tool(request: Annotated[str, Field(description="The request.")]) -> str:
        return request
server.run("stdio")
"""
HELLO = (
    {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}},
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
    {"jsonrpc": "2.0", "id": 2, "method": "tools/list"},
)  # fmt: skip


def measure(command: list[str], home: str) -> tuple[float, int]:
    """Seconds from spawn to the answer to `tools/list`, and the process's resident bytes then."""
    started = time.perf_counter()
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "ROLECALL_HOME": home},
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for message in HELLO:
            process.stdin.write(json.dumps(message).encode() + b"\n")
        process.stdin.flush()
        while json.loads(process.stdout.readline()).get("id") != 2:
            pass
        seconds = time.perf_counter() - started
        resident_bytes = psutil.Process(process.pid).memory_info().rss
        process.stdin.close()
        process.wait()
    return seconds, resident_bytes


def shim_modules(home: str) -> list[str]:
    """Every module of ours that the shim imports."""
    code = (
        "import sys; sys.argv = ['rolecall', 'serve']; sys.stdin.close(); import rolecall.server.main as m; "
        "import rolecall.server.shim; print(*sorted(n for n in sys.modules if n.startswith('rolecall')))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return out.stdout.split()


def main(rounds: int, readable: bool = True) -> None:
    seconds: dict[str, list[float]] = {"bare": [], "cold": [], "warm": []}
    memory: dict[str, int] = {}
    shim = [ROLECALL, "serve"]
    with tempfile.TemporaryDirectory(prefix="rolecall-bench-") as home:
        measure([sys.executable, "-c", BARE], home)
        for _ in range(rounds):
            stop(home)
            for name, command in (("bare", [sys.executable, "-c", BARE]), ("cold", shim), ("warm", shim)):
                taken, memory[name] = measure(command, home)
                seconds[name].append(taken)
        modules = shim_modules(home)
        stop(home)
    bare = statistics.median(seconds["bare"])
    report: dict[str, Any] = {
        name: {
            "median_s": round(statistics.median(values), 4),
            "min_s": round(min(values), 4),
            "max_s": round(max(values), 4),
            "over_bare": round(statistics.median(values) / bare, 3),
            "resident_mb": round(memory[name] / 1e6, 1),
        }
        for name, values in seconds.items()
    }
    report["shim_modules"] = modules
    lines = [f"spawn to tools/list, {rounds} rounds; bound: warm at most 0.2, cold at most 1.6 of the bare server"]
    for name in ("bare", "cold", "warm"):
        row = report[name]
        lines.append(
            f"{name:5} median {row['median_s']:.3f} s ({row['min_s']:.3f} to {row['max_s']:.3f}), "
            f"{row['over_bare']:.2f} of bare, {row['resident_mb']:.0f} MB in the client's process"
        )
    lines.append(f"the shim imports of ours: {', '.join(modules)}")
    show("startup", lines if readable else [], report)


def stop(home: str) -> None:
    subprocess.run([ROLECALL, "stop"], env={**os.environ, "ROLECALL_HOME": home}, capture_output=True, check=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-n", type=int, default=5, help="rounds")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    main(options.n, readable=not options.json)
