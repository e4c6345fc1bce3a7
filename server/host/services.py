"""What the host serves: the objects that the composition root builds once and every connection shares."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcp.server.lowlevel.server import Server

from rolecall.config.home import Home
from rolecall.server.session import SessionInfo


@dataclass(frozen=True, slots=True)
class OperationContext:
    """What a control operation is given beside its parameters; `progress` may be called from the event loop only."""

    session: SessionInfo
    progress: Callable[[dict[str, Any]], None]


Operation = Callable[[OperationContext, dict[str, Any]], Awaitable[Any]]
"""A control operation: returns a JSON value or raises a `RolecallError`; cancelled when its caller goes away."""


@dataclass(frozen=True, slots=True)
class Services:
    """One host's services.

    `mcp` is the SDK's low-level server. `busy` tells whether work goes on without a session (a download, a job), which
    keeps the host from its idle exit after `idle_exit_s` seconds. `ping` reports `settings_fingerprint`.
    """

    mcp: Server[Any]
    operations: Mapping[str, Operation]
    busy: Callable[[], bool]
    settings_fingerprint: str
    idle_exit_s: float = 600.0


OpenServices = Callable[[Home, Path | None], AbstractAsyncContextManager[Services]]
"""The composition root: builds the services of a home (and a `--config` file), closes them on exit."""
