from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest
from mcp.types import JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

from rolecall.server.host.sessions import Lines, Refusal, parse_message

PARSE = -32700


@pytest.mark.parametrize(
    ("frame", "code", "request_id"),
    [  # what the seeded frames of test_malformed do not hold
        (b'{"params":{"id":9,"x":[1,]},"id":8,"jsonrpc":"2.0"}', PARSE, None),
        (b'{"id":"\\ud800","jsonrpc":"2.0","method":"ping"}', PARSE, None),
        (b'{"jsonrpc":"2.0","id":14,"method":"ping","params":{"x":' + b"[" * 200 + b"]" * 200 + b"}}", PARSE, 14),
    ],
)
def test_a_malformed_frame_is_answered_with_its_code_and_id(frame: bytes, code: int, request_id: object) -> None:
    answer = parse_message(frame)
    assert isinstance(answer, Refusal)
    assert (answer.error.code, answer.id) == (code, request_id)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"  \r",
        b'{"jsonrpc":"2.0","id":1,"result":5}',
        b'{"jsonrpc":"2.0","method":"notifications/progress","params":[]}',
    ],
)
def test_what_needs_no_answer_gets_none(frame: bytes) -> None:
    assert parse_message(frame) is None


def test_sound_messages_pass() -> None:
    nested = b"[" * 98 + b"]" * 98
    assert isinstance(
        parse_message(b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"x":' + nested + b"}}"), JSONRPCRequest
    )
    assert isinstance(parse_message(b'{"jsonrpc":"2.0","method":"m"}\r'), JSONRPCNotification)
    assert isinstance(parse_message(b'{"jsonrpc":"2.0","id":"a","result":{}}'), JSONRPCResponse)


async def _lines(chunks: Sequence[bytes], longest_bytes: int) -> list[bytes]:
    rest = list(chunks)

    async def receive() -> bytes:
        if not rest:
            raise anyio.EndOfStream
        return rest.pop(0)

    lines = Lines(receive, longest_bytes)
    found = []
    while (line := await lines.next()) is not None:
        found.append(line)
    return found


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([b"a\nb", b"c\n", b"d"], [b"a", b"bc", b"d"]),
        ([b"x" * 11, b"y\nok\n"], [b"x" * 11, b"ok"]),
        ([b"x" * 11 + b"\nok\n"], [b"x" * 11, b"ok"]),
        ([b"x" * 11, b"yy"], [b"x" * 11]),
        ([b"\n\n"], [b"", b""]),
    ],
)
async def test_lines_are_bounded_and_a_long_one_does_not_spoil_the_next(
    chunks: list[bytes], expected: list[bytes]
) -> None:
    assert await _lines(chunks, 10) == expected
