"""Who is asking: the session a request belongs to, as its handlers see it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One connection to the host.

    `id` is unguessable and unique over hosts; `cwd` is the absolute working directory of the client's process, against
    which relative paths count; `client` is the client's name as it introduced itself, or "" before it has.
    """

    id: str
    cwd: Path
    client: str = ""


current_session: ContextVar[SessionInfo] = ContextVar("rolecall_session")
"""Set for each connection, so that everything that runs on its behalf can read it."""
