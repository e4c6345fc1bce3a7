"""Files parsed in a child process that is held to its limits: what a file does to a parser happens there."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream

from rolecall.retrieval.chunks import Chunk
from rolecall.retrieval.errors import FileUnreadable, RetrievalError, unfit
from rolecall.retrieval.sources import Source

from .child import OUT_OF_MEMORY, Limits

CHILD = "rolecall.retrieval.parsing.child"
START_S = 60.0  # to start, and to import what a format needs; on a cold disk each takes seconds
SAMPLE_S = 0.05
PATIENCE = 3.0
LINE_LIMIT_BYTES = 1 << 28
_BROKEN = (anyio.IncompleteRead, anyio.EndOfStream, anyio.BrokenResourceError, anyio.DelimiterNotFound)
_GRACE_S = 2.0  # between the end of its output and its own
_KEPT = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "TMPDIR")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Parsed:
    """A file's text with its chunks. `converted`: the text was extracted, so that the chunks' spans are its own and
    not the file's; else `text` is the file decoded."""

    text: str
    converted: bool
    chunks: tuple[Chunk, ...]


class Parser:
    """Parses one file at a time in a child of at most `limits`, started with the first file and ended with the context.

    A child that a file was too much for is replaced. For one event loop (asyncio).
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._child: _Child | None = None

    async def __aenter__(self) -> Parser:
        return self

    async def __aexit__(self, *_: object) -> None:
        child, self._child = self._child, None
        if child:
            with anyio.CancelScope(shield=True):
                await child.end()

    async def parse(self, data: bytes, source: Source, title: str) -> Parsed:
        """Text and chunks of a file's bytes; `title` starts each chunk's header. Raises FileUnreadable: its `code` says
        why this file cannot be indexed; the next one can be."""
        if not data:
            return Parsed("", False, ())
        used = self._child is not None
        try:
            reply, text = await self._asked(data, source, title)
        except FileUnreadable as error:
            if error.code == "parse_timeout" or not used:
                raise
            reply, text = await self._asked(data, source, title)  # it may have been for an earlier file's remains
        if told := reply.get("error"):
            raise unfit(told["code"], str(told["found"]), str(told["allowed"]))
        try:
            return _parsed(reply, text if reply["converted"] else data)
        except (KeyError, TypeError, ValueError):
            raise unfit("parse_failed", "an answer that is none") from None

    async def _asked(self, data: bytes, source: Source, title: str) -> tuple[dict[str, Any], bytes]:
        try:
            return await (self._child or await self._started()).parse(data, source, title)
        except BaseException:
            await self.__aexit__()
            raise

    async def _started(self) -> _Child:
        command = [sys.executable, "-P", "-B", "-X", "utf8", "-m", CHILD, self._limits.to_json()]
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL  # what a library says may hold a document's text
        try:
            process = await anyio.open_process(
                command, stdin=pipe, stdout=pipe, stderr=nothing, env=_environment(), start_new_session=True
            )
            self._child = _Child(process, self._limits)
            await self._child.ready()
        except (OSError, FileUnreadable) as error:  # no file is to blame
            found = error.found if isinstance(error, FileUnreadable) else str(error)
            message = "The process that parses files did not start."
            raise RetrievalError(message, found=found, advice="Free memory and try again.") from None
        return self._child


def _parsed(reply: dict[str, Any], body: bytes) -> Parsed:
    """Each chunk's text is cut out of the body here, so that it is what its span says."""
    chunks = tuple(
        Chunk(start, end, first, last, body[start:end].decode(), heading, place, header)
        for start, end, first, last, header, heading, place in reply["chunks"]
    )
    return Parsed(body.decode(), bool(reply["converted"]), chunks)


class _Child:
    """One process; after an error it is of no more use."""

    def __init__(self, process: anyio.abc.Process, limits: Limits) -> None:
        from psutil import Process

        assert process.stdin and process.stdout
        self._process, self._limits = process, limits
        self._requests, self._replies = process.stdin, BufferedByteReceiveStream(process.stdout)
        self._measured = Process(process.pid)
        self._prepared: dict[str, dict[str, Any]] = {}

    async def ready(self) -> None:
        """Wait for it to have started."""
        await self._limited(self._reply(), START_S)

    async def parse(self, data: bytes, source: Source, title: str) -> tuple[dict[str, Any], bytes]:
        """The child's reply and the text it extracted."""
        request = {"kind": source.kind, "language": source.language, "title": title}
        if source.language not in self._prepared:
            self._prepared[source.language], _ = await self._limited(self._exchange(request, b""), START_S)
        if "error" in (unprepared := self._prepared[source.language]):
            return unprepared, b""
        return await self._limited(self._exchange(request, data), self._limits.cpu_s)

    async def end(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._process.aclose()

    async def _exchange(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        await self._requests.send(json.dumps(request | {"size": len(data)}).encode() + b"\n" + data)
        return await self._reply()

    async def _reply(self) -> tuple[dict[str, Any], bytes]:
        reply = json.loads(await self._replies.receive_until(b"\n", LINE_LIMIT_BYTES))
        return reply, await self._replies.receive_exactly(reply["size"]) if reply["size"] else b""

    async def _limited(self, exchange: Coroutine[Any, Any, T], cpu_s: float) -> T:
        """What the child answers within its memory, and within so many seconds of processor time: of wall clock it may
        take `PATIENCE` times as many, since embedding may keep every core busy."""
        task = asyncio.ensure_future(exchange)
        started, (used_s, _) = time.monotonic(), self._use()
        try:
            while not (await asyncio.wait([task], timeout=SAMPLE_S))[0]:
                now_s, resident_bytes = self._use()
                if resident_bytes > self._limits.memory_bytes:
                    raise self._too_large(f"{resident_bytes:,} bytes")
                if now_s - used_s > cpu_s or time.monotonic() - started > cpu_s * PATIENCE:
                    raise unfit("parse_timeout", f"over {cpu_s:g} s of processor time")
            return task.result()
        except (*_BROKEN, ValueError):
            raise await self._death(cpu_s) from None
        finally:
            task.cancel()

    def _use(self) -> tuple[float, int]:
        """Seconds of processor time so far, and bytes of resident memory."""
        from psutil import Error

        try:
            times, memory = self._measured.cpu_times(), self._measured.memory_info()
            return times.user + times.system, memory.rss
        except Error:  # it has ended, of which its pipe tells more
            return 0.0, 0

    async def _death(self, cpu_s: float) -> FileUnreadable:
        with anyio.move_on_after(_GRACE_S):
            await self._process.wait()
        code = self._process.returncode
        if code == OUT_OF_MEMORY:
            return self._too_large("more than that")
        if code == -signal.SIGPROF:
            return unfit("parse_timeout", f"over {cpu_s:g} s of processor time")
        found = f"signal {-code} ({signal.strsignal(-code)})" if code and code < 0 else f"exit status {code}"
        return unfit("parse_failed", found)

    def _too_large(self, found: str) -> FileUnreadable:
        return unfit("parse_memory", found, f"{self._limits.memory_bytes:,} bytes")


def _environment() -> dict[str, str]:
    """What Python needs to start, and nothing that is anyone's: no keys, no proxies, no home."""
    quiet = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {name: os.environ[name] for name in _KEPT if name in os.environ} | quiet
