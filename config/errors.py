"""The root of Rolecall's error tree.

    RolecallError
    ├── ConfigError          settings, profiles, prompts        (config)
    ├── roles.errors         models, memory, workers
    ├── retrieval.errors     folders, files, index
    └── server.errors        requests, host, tools

Every error carries a stable `code`, what was found, what is allowed and what to do next, so that each edge (MCP tool
error, control reply, command line) shows the same four things.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar


class RolecallError(Exception):
    """A failure the user can act on.

    `message` says what failed; `found`, `allowed` and `advice` are shown after it where given. `code` is stable across
    releases and is what programs should test for.
    """

    code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, found: str = "", allowed: str = "", advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.found = found
        self.allowed = allowed
        self.advice = advice

    def __str__(self) -> str:
        found = f"Found: {self.found}." if self.found else ""
        allowed = f"Allowed: {self.allowed}." if self.allowed else ""
        return " ".join(part for part in (self.message, found, allowed, self.advice) if part)

    def to_dict(self) -> dict[str, Any]:
        """The wire form: `{"code", "message", "found", "allowed", "advice"}`, all strings."""
        return {key: getattr(self, key) for key in ("code", "message", "found", "allowed", "advice")}


class RemoteError(RolecallError):
    """An error that happened in another process (host or worker), re-raised here with its code kept."""

    def __init__(self, data: dict[str, Any]) -> None:
        shown = {key: str(data.get(key, "")) for key in ("found", "allowed", "advice")}
        super().__init__(str(data.get("message", "unknown error")), **shown)
        self.code = str(data.get("code", "internal"))  # type: ignore[misc]  # the other process's, not the class's


class ConfigError(RolecallError):
    """Settings, a profile or a prompt cannot be used."""

    code = "config_invalid"

    @classmethod
    def unknown(cls, what: str, path: tuple[str, ...], names: Iterable[str], source: str = "") -> ConfigError:
        """What the last part of `path` names is none of `names`; `source` is the file that says it."""
        names, where = list(names), ".".join(path)
        near = difflib.get_close_matches(path[-1], names, n=1)
        advice = f"Did you mean {'.'.join((*path[:-1], *near))}?" if near else "Name one of these, or remove it."
        place = source and f" in {source}"
        return cls(f"Unknown {what} {where}{place}.", found=where, allowed=", ".join(names), advice=advice)
