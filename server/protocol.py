"""What the shim, the command line and the host agree on before MCP or control lines flow. Standard library only.

The first line on a connection is the client's hello, the second the host's reply:

    {"rolecall": VERSION, "kind": "mcp" | "control", "cwd": PATH, "config": PATH | null, "env": {"ROLECALL_X": ...}}
    {"rolecall": VERSION, "pid": N, "boot": ID}   or   {"error": {code, message, found, allowed, advice}}

A hello from a strictly newer release is not answered: the host drains and leaves, and the newer client starts its own.
A host that drains tells its MCP connections with the line `DRAIN`; a shim then sends nothing new, and closes once its
open requests are answered.
"""

from __future__ import annotations

import re

VERSION = "0.1.0"

MAX_FRAME_BYTES = 16 * 1024 * 1024
DRAIN = b'{"rolecall":"drain"}\n'
HOST_ERRORS = {"host_died": -32010, "host_unavailable": -32011, "host_mismatch": -32012}
"""JSON-RPC codes of errors that the shim answers itself; any other code is -32011.

Source: the 2026-07-28 MCP specification leaves -32000 to -32019 to implementations.
"""


def release(version: str) -> tuple[int, ...]:
    """The comparable release of a version: `"0.10.0rc1"` is `(0, 10, 0)`, so that a pre-release replaces nothing."""
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()
