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
        parts = [self.message]
        if self.found:
            parts.append(f"Found: {self.found}.")
        if self.allowed:
            parts.append(f"Allowed: {self.allowed}.")
        if self.advice:
            parts.append(self.advice)
        return " ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """The wire form: `{"code", "message", "found", "allowed", "advice"}`, all strings."""
        return {
            "code": self.code,
            "message": self.message,
            "found": self.found,
            "allowed": self.allowed,
            "advice": self.advice,
        }


class RemoteError(RolecallError):
    """An error that happened in another process (host or worker), re-raised here with its code kept."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(
            str(data.get("message", "unknown error")),
            found=str(data.get("found", "")),
            allowed=str(data.get("allowed", "")),
            advice=str(data.get("advice", "")),
        )
        self._code = str(data.get("code", "internal"))

    @property
    def code(self) -> str:  # type: ignore[override]  # the class attribute becomes the other process's code
        return self._code

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "code": self._code}


class ConfigError(RolecallError):
    """Settings, a profile or a prompt cannot be used."""

    code = "config_invalid"
