"""What the shim, the command line and the host agree on before MCP or control lines flow. Standard library only.

The first line on a connection is the client's hello, the second the host's reply:

    {"rolecall": VERSION, "kind": "mcp" | "control", "cwd": PATH, "config": PATH | null, "env": {"ROLECALL_X": ...}}
    {"rolecall": VERSION, "pid": N, "boot": ID}   or   {"error": {code, message, found, allowed, advice}}

A hello from a strictly newer release is answered with `{"retiring": VERSION}`: the host drains and leaves, and the
newer client starts its own. A host that drains tells its MCP connections with the line `DRAIN`; a shim then sends
nothing new, and closes once its open requests are answered.
"""

from __future__ import annotations

VERSION = "0.1.0"

MAX_FRAME_BYTES = 16 * 1024 * 1024
MAX_NESTING = 100

HELLO_TIMEOUT_S = 60.0
"""How long a client waits for a host that has started: its composition may open large stores on a slow disk."""
CRASH_WINDOW_S = 60.0
CRASH_LIMIT = 3

DRAIN = b'{"rolecall":"drain"}\n'

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
INVALID_PARAMS = -32602
HOST_ERRORS = {"host_died": -32010, "host_unavailable": -32011, "host_mismatch": -32012}
"""JSON-RPC codes of errors that the shim answers itself; any other code is -32011.

Source: the 2026-07-28 MCP specification leaves -32000 to -32019 to implementations.
"""


def release(version: str) -> tuple[int, ...]:
    """The comparable release of a version: `"0.10.0rc1"` is `(0, 10, 0)`, so that a pre-release replaces nothing."""
    numbers: list[int] = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)


def problem(code: str, message: str, *, found: str = "", allowed: str = "", advice: str = "") -> dict[str, str]:
    """The wire form of a typed error, for processes that must not import the error tree's consumers."""
    return {"code": code, "message": message, "found": found, "allowed": allowed, "advice": advice}


def sentence(data: dict[str, str]) -> str:
    """A typed error in words: what failed, what was found, what is allowed, what to do."""
    parts = [data["message"]]
    parts += [f"{label}: {data[key]}." for key, label in (("found", "Found"), ("allowed", "Allowed")) if data.get(key)]
    return " ".join([*parts, data["advice"]] if data.get("advice") else parts)
