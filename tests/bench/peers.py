"""Servers over stdio side by side: the shim, a bare server on the same SDK, and one on fastmcp.

They are spoken to in raw lines, so that no client's own work is in the figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from .stage import ROLECALL

FASTMCP_VERSION = "4.1.6"
_TOOLS = """
for name in ("route", "reason", "code", "summarize", "retrieve", "validate"):
    @server.tool(name=name)
    def tool(request: Annotated[str, Field(description="The request.")]) -> str:
        return str(sum(int(number) for number in request.split("+")))
"""
BARE = f"""
from typing import Annotated
from pydantic import Field
from mcp.server.mcpserver import MCPServer
server = MCPServer("bare")
{_TOOLS}
server.run("stdio")
"""
FASTMCP = f"""
from typing import Annotated
from pydantic import Field
from fastmcp import FastMCP
server = FastMCP("bare")
{_TOOLS}
server.run("stdio", show_banner=False)
"""
SHIM = (ROLECALL, "serve")
_HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}


def peers() -> dict[str, tuple[str, ...]]:
    """What to start a server with, by name; fastmcp where it can be had."""
    found: dict[str, tuple[str, ...]] = {"bare": (sys.executable, "-c", BARE)}
    if python := fastmcp_python():
        found["fastmcp"] = (python, "-c", FASTMCP)
    return found


def fastmcp_python() -> str | None:
    """The Python of an environment of fastmcp's own, made once beside ours; where it cannot be, says why."""
    folder = Path(sys.prefix) / f"bench-fastmcp-{FASTMCP_VERSION}"
    python = str(folder / "bin" / "python")
    if not (folder / "bin" / "fastmcp").exists():
        pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        for made in ((sys.executable, "-m", "venv", str(folder)), (*pip, f"fastmcp=={FASTMCP_VERSION}")):
            done = subprocess.run(made, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"without fastmcp {FASTMCP_VERSION}: {done.stderr.strip().splitlines()[-1]}", flush=True)
                return None
    return python


class Peer:
    """A server that has been started; ends at the end of the `with`."""

    def __init__(self, command: Sequence[str], home: Path) -> None:
        self.started = time.perf_counter()
        self.is_shim = tuple(command) == SHIM
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "ROLECALL_HOME": str(home)},
        )
        self._sent = 0

    def listed_s(self) -> float:
        """Seconds from the start until the answer to `tools/list`; client and server do not wait for each other."""
        self.send("initialize", _HELLO)
        self._write({"jsonrpc": "2.0", "method": "notifications/initialized"})
        listed = self.send("tools/list")
        while self.receive()["id"] != listed:
            pass
        return time.perf_counter() - self.started

    def ask(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer to the only request that is open."""
        self.send(method, params)
        return self.receive()

    def send(self, method: str, params: dict[str, Any] | None = None) -> int:
        self._sent += 1
        self._write({"jsonrpc": "2.0", "id": self._sent, "method": method, "params": params or {}})
        return self._sent

    def receive(self) -> dict[str, Any]:
        """The next answer to any request."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            message: dict[str, Any] = json.loads(line)
            if "id" in message and "method" not in message:
                return message
        raise SystemExit(f"{self.process.args!r} ended by itself.")

    def _write(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self.process:  # closes its input and its output, and waits for its end
            pass
