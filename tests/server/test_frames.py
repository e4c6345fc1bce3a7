from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest
from mcp.types import JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

from rolecall.server.host.sessions import Lines, Refusal, parse_message
from rolecall.server.protocol import MAX_FRAME_BYTES

PARSE, REQUEST, PARAMS = -32700, -32600, -32602


@pytest.mark.parametrize(
    ("frame", "code", "request_id"),
    [
        (b"nonsense", PARSE, None),
        (b'{"jsonrpc":"2.0","id":3,"method":"ping"', PARSE, 3),
        (b'{"jsonrpc":"2.0","id":4,"method":"ping","params":{"x":"\\ud800"}}', PARSE, 4),
        (b'{"jsonrpc":"2.0","id":5,"method":"ping","params":{"x":"\xff"}}', PARSE, 5),
        (b'{"jsonrpc":"2.0","id":6,"method":"ping","params":{"x":NaN}}', PARSE, 6),
        (b'{"jsonrpc":"2.0","id":"seven","method":"ping","params":{"x":' + b"[" * 50_000, PARSE, "seven"),
        (b'{"params":{"id":9,"x":[1,]},"id":8,"jsonrpc":"2.0"}', PARSE, None),
        (b'{"jsonrpc":"2.0","id":3,"method":"' + b"x" * MAX_FRAME_BYTES, REQUEST, 3),
        (b'{"id":"\\ud800","jsonrpc":"2.0","method":"ping"}', PARSE, None),
        (b"[]", REQUEST, None),
        (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', REQUEST, None),
        (b"3", REQUEST, None),
        (b"{}", REQUEST, None),
        (b'{"jsonrpc":"2.0","id":8}', REQUEST, 8),
        (b'{"jsonrpc":"2.0","id":9,"method":5}', REQUEST, 9),
        (b'{"id":10,"method":"ping"}', REQUEST, 10),
        (b'{"jsonrpc":"2.0","id":15,"method":"ping","error":{"code":1,"message":"m"}}', REQUEST, 15),
        (b'\xef\xbb\xbf{"jsonrpc":"2.0","id":16,"method":"ping"}', PARSE, 16),
        (b'{"jsonrpc":"1.0","id":11,"method":"ping"}', REQUEST, 11),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', REQUEST, None),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', REQUEST, None),
        (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', REQUEST, None),
        (b'{"jsonrpc":"2.0","id":12,"method":"ping","params":[1]}', PARAMS, 12),
        (b'{"jsonrpc":"2.0","id":13,"method":"ping","params":null}', PARAMS, 13),
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
