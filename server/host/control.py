"""The client half of the control protocol: how the command line talks to the host."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import UNIXSocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from rolecall.config.errors import RemoteError, RolecallError
from rolecall.config.home import Home

from ..connect import connect, held, hello, lock_holder, lock_note
from ..errors import HostDied

_ASK_S = 5.0
_LEAVE_S = 10.0
"""What a host needs at most, after its drain, to end its workers."""

OnProgress = Callable[[dict[str, Any]], None]


class ControlClient:
    """A control connection to a home's host, for one call at a time. A call still open when it closes is cancelled."""

    def __init__(self, stream: UNIXSocketStream) -> None:
        self._stream = stream
        self._lines = BufferedByteReceiveStream(stream)
        self._last_id = 0

    @classmethod
    @asynccontextmanager
    async def open(
        cls, home: Home, config_path: Path | None = None, start: bool = True
    ) -> AsyncIterator[ControlClient]:
        """Connect, starting a host where none runs and `start` is true. Raises HostUnavailable: there is no host and
        none can be started or reached; RemoteError: the host could not start or refuses this client's settings; the
        error is the host's own."""
        greeting = hello("control", config_path.absolute() if config_path else None)
        sock, _ = await anyio.to_thread.run_sync(lambda: connect(home, greeting, start=start), abandon_on_cancel=True)
        async with await UNIXSocketStream.from_socket(sock) as stream:
            yield cls(stream)

    async def call(self, op: str, params: dict[str, Any] | None = None, on_progress: OnProgress | None = None) -> Any:
        """The result of one operation. Raises RemoteError: the operation failed there; its `code` is the failure's;
        HostDied: the host ended before it answered."""
        self._last_id += 1
        request = {"id": self._last_id, "op": op, "params": params or {}}
        with suppress(anyio.IncompleteRead, anyio.BrokenResourceError, anyio.ClosedResourceError):
            await self._stream.send(json.dumps(request).encode() + b"\n")
            while True:
                reply = json.loads(await self._lines.receive_until(b"\n", sys.maxsize))
                if reply["id"] not in (self._last_id, None):  # None: the host could not read the request
                    continue
                if "error" in reply:
                    raise RemoteError(reply["error"])
                if "progress" not in reply:
                    return reply["result"]
                if on_progress is not None:
                    on_progress(reply["progress"])
        advice = "Try again: a new host starts. `rolecall logs` shows the old one's."
        raise HostDied("The host ended before it answered.", advice=advice)


async def stop_host(home: Home, drain_s: float = 5.0) -> int | None:
    """Stop the home's host and wait until its lock is free; returns the process that ended, None where none ran.

    Open requests have `drain_s` seconds. A host that cannot be asked gets SIGTERM, one that does not leave SIGKILL.
    Raises HostUnavailable: the lock is a standalone server's, which belongs to its client."""
    if not (pid := lock_holder(home)):
        return None
    if lock_note(home).get("socket", "") is None:
        raise held(home, pid)
    asked = False
    with anyio.move_on_after(_ASK_S), suppress(RolecallError):
        async with ControlClient.open(home, start=False) as client:
            await client.call("stop", {"drain_s": drain_s})
            asked = True
    if not asked:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    kill_at = time.monotonic() + drain_s + _LEAVE_S
    while lock_holder(home) == pid:
        if time.monotonic() > kill_at:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await anyio.sleep(0.02)
    return pid
