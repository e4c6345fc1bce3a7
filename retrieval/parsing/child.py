"""The child process that parses: data in, the spans of its chunks and any extracted text out, one file at a time.

It is given bytes, never a path. What a document could make a library do (connect, start a program, open or write a
file) is refused, and it ends when its input does.

A request is a line of JSON with `size`, then that many bytes; a reply likewise. The first reply says that it is ready.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rolecall.retrieval.chunks import Chunk, CountTokens, cut, token_counter
from rolecall.retrieval.errors import FileUnreadable, unfit
from rolecall.retrieval.outline import Headings

from . import formats

OUT_OF_MEMORY = 77  # the exit status of a child that was refused memory
GRACE_S = 1.0  # for the parent to end it first
_REFUSED = ("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "shutil.")
_RECURSION = 4_000  # frames; frames of Python take no C stack, and a deeper document is refused with a typed error


@dataclass(frozen=True, slots=True)
class Limits:
    """What one file may take, in seconds of processor time and bytes of resident memory (of the child in all); and how
    its text is cut, in tokens of the embedder whose `tokenizer.json` this is."""

    chunk_tokens: int
    tokenizer: Path | None = None
    cpu_s: float = 10.0
    memory_bytes: int = 512_000_000

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, line: str) -> Limits:
        values = json.loads(line)
        tokenizer = values.pop("tokenizer")
        return cls(tokenizer=Path(tokenizer) if tokenizer else None, **values)


def main() -> None:
    """Serve the parent until it goes away. The one argument: `Limits`, as JSON."""
    limits = Limits.from_json(sys.argv[1])
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    count = token_counter(limits.tokenizer)
    guard = confined(limits)
    _send(replies, {})
    while line := requests.readline():
        request = json.loads(line)
        data = requests.read(request["size"])
        signal.setitimer(signal.ITIMER_PROF, limits.cpu_s + GRACE_S)  # ends it where no parent is left to do so
        guard.watches = bool(data)
        try:
            if data:
                body, text = _parse(request, data, limits, count)
            else:  # what the format needs takes longer to import than a file may take, on a cold disk
                formats.prepare(request["language"])
                body, text = {}, b""
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        except FileUnreadable as error:
            body, text = {"error": error.to_dict()}, b""
        except Exception as error:  # a parser may raise anything; what it says may hold the document's text
            body, text = {"error": unfit("parse_failed", f"{type(error).__name__} of the parser").to_dict()}, b""
        _send(replies, body, text)
    os._exit(0)


def _parse(request: dict[str, Any], data: bytes, limits: Limits, count: CountTokens) -> tuple[dict[str, Any], bytes]:
    parts, converted = formats.extract(data, request["kind"], request["language"])
    chunks, above = [], Headings()
    byte = line = 0
    for part in parts:
        sized = limits.chunk_tokens, count
        cuts = cut(part.text, part.kind, part.language, request["title"], *sized, part.place, above)
        chunks += [_row(chunk, byte, line) for chunk in cuts]
        byte += len(part.text.encode())
        line += part.text.count("\n")
    text = "".join(part.text for part in parts).encode() if converted else b""
    return {"converted": converted, "chunks": chunks}, text


def _row(chunk: Chunk, byte: int, line: int) -> tuple[int | str, ...]:
    """Where the chunk lies, but not its text, which the parent has."""
    span = (chunk.start_byte + byte, chunk.end_byte + byte, chunk.start_line + line, chunk.end_line + line)
    return (*span, chunk.header, chunk.heading, chunk.place)


def _send(replies: BinaryIO, body: dict[str, Any], text: bytes = b"") -> None:
    try:
        replies.write(json.dumps(body | {"size": len(text)}).encode() + b"\n" + text)
        replies.flush()
    except BrokenPipeError:
        os._exit(0)


class _Guard:
    """Refuses, while a document is parsed, what no parser needs: an import does need some of it."""

    def __init__(self) -> None:
        self.watches = False
        self._readable = (sys.prefix, sys.base_prefix, *(path for path in sys.path if path))

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.watches:
            return
        named = event == "open" and isinstance(args[0], str | bytes)
        if event.startswith(_REFUSED) or (named and not os.fsdecode(args[0]).startswith(self._readable)):
            raise PermissionError("a document may open nothing")


def confined(limits: Limits) -> _Guard:
    """Hold this process to its limits for good; it is for the caller to set the guard to watch."""
    sys.setrecursionlimit(_RECURSION)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (limits.memory_bytes, limits.memory_bytes))  # Linux; macOS ignores it
    guard = _Guard()
    sys.addaudithook(guard)
    return guard


if __name__ == "__main__":
    main()
