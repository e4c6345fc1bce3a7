"""The client half of the control protocol: how the command line talks to the host."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import UNIXSocketStream

from rolecall.config.errors import RemoteError
from rolecall.config.home import Home

from ..connect import Refused, connecting, finish, hello, lock_holder, lock_note, standalone_holder
from ..errors import HostDied, HostMismatch, HostUnavailable
from .frames import Lines

_LEAVE_S = 10.0
"""What a host needs at most, after its drain, to end its workers."""

OnProgress = Callable[[dict[str, Any]], None]


class ControlClient:
    """A control connection to a home's host. Calls may run side by side; a cancelled call is cancelled there too."""

    def __init__(self, stream: UNIXSocketStream, home: Home, host: dict[str, Any]) -> None:
        self.host = host
        self._stream = stream
        self._home = home
        self._writing = anyio.Lock()
        self._next_id = 0
        self._calls: dict[int, tuple[anyio.Event, list[dict[str, Any]], OnProgress | None]] = {}
        self._closed = False

    @classmethod
    @asynccontextmanager
    async def open(
        cls, home: Home, config_path: Path | None = None, start: bool = True
    ) -> AsyncIterator[ControlClient]:
        """Connect, starting a host where none runs and `start` is true.

        Raises:
            HostUnavailable: there is no host and none can be started or reached.
            HostMismatch: the host refuses this client's settings.
            RemoteError: the host could not start; the error is the host's own.
        """
        config = config_path.absolute() if config_path else None
        try:
            steps = connecting(home, hello("control", config), start=start)
            sock, host = await anyio.to_thread.run_sync(finish, steps, abandon_on_cancel=True)
        except Refused as refused:
            raise _local(refused.data) from refused
        except PermissionError as error:
            raise HostUnavailable(
                "This program may not open the host's socket.", found=str(error), advice="A sandbox forbids it."
            ) from error
        failure: Exception | None = None
        async with await UNIXSocketStream.from_socket(sock) as stream, anyio.create_task_group() as tasks:
            client = cls(stream, home, host)
            tasks.start_soon(client._read)
            try:
                yield client
            except Exception as error:  # raised below, where the task group does not wrap it
                failure = error
            finally:
                tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def call(self, op: str, params: dict[str, Any] | None = None, on_progress: OnProgress | None = None) -> Any:
        """The result of one operation.

        Raises:
            RemoteError: the operation failed there; its `code` is the failure's.
            HostDied: the host ended before it answered.
        """
        self._next_id += 1
        call_id = self._next_id
        done, replies = anyio.Event(), list[dict[str, Any]]()
        self._calls[call_id] = (done, replies, on_progress)
        try:
            await self._send({"id": call_id, "op": op, "params": params or {}})
            await done.wait()
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(1, shield=True), suppress(HostDied):
                await self._send({"cancel": call_id})
            raise
        finally:
            del self._calls[call_id]
        if not replies:
            raise self._died()
        if "error" in replies[0]:
            raise RemoteError(replies[0]["error"])
        return replies[0].get("result")

    async def _send(self, message: dict[str, Any]) -> None:
        if self._closed:
            raise self._died()
        try:
            async with self._writing:
                await self._stream.send(json.dumps(message).encode() + b"\n")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise self._died() from error

    async def _read(self) -> None:
        lines = Lines(self._stream.receive, longest_bytes=math.inf)
        while isinstance(line := await lines.next(), bytes):
            reply = json.loads(line)
            done, replies, on_progress = self._calls.get(reply.get("id"), (None, [], None))
            if "progress" not in reply:
                replies.append(reply)
                if done is not None:
                    done.set()
            elif on_progress is not None:
                on_progress(reply["progress"])
        self._closed = True
        for done, _, _ in self._calls.values():
            done.set()

    def _died(self) -> HostDied:
        log = self._home.logs / "host.log"
        return HostDied(
            "The host ended before it answered.", advice=f"Try again: a new host starts. The old one's log is {log}."
        )


async def stop_host(home: Home, drain_s: float = 5.0) -> int | None:
    """Stop the home's host and wait until its lock is free; returns the process that ended, None where none ran.

    Open requests have `drain_s` seconds. A host that cannot be asked gets SIGTERM, one that does not leave SIGKILL.

    Raises:
        HostUnavailable: the lock is a standalone server's, which belongs to its client.
    """
    if not (pid := lock_holder(home)):
        return None
    try:
        async with ControlClient.open(home, start=False) as client:
            await client.call("stop", {"drain_s": drain_s})
    except (HostUnavailable, HostDied, HostMismatch):
        if lock_note(home).get("standalone"):
            raise HostUnavailable(**standalone_holder(home, pid)) from None
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    kill_at = time.monotonic() + drain_s + _LEAVE_S
    while lock_holder(home) == pid:
        if time.monotonic() > kill_at:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await anyio.sleep(0.02)
    return pid


def _local(data: dict[str, str]) -> HostUnavailable | HostMismatch | RemoteError:
    """A refusal as the error that callers know; what the host itself said keeps its code."""
    values = {key: data.get(key, "") for key in ("found", "allowed", "advice")}
    if data["code"] == HostMismatch.code:
        return HostMismatch(data["message"], **values)
    if data["code"] == HostUnavailable.code:
        return HostUnavailable(data["message"], **values)
    return RemoteError(data)
