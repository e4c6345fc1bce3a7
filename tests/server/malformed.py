"""Seeded malformed frames, and what each must be answered with; and seeded bad arguments for a tool's schema."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rolecall.server.protocol import MAX_FRAME_BYTES

PARSE, REQUEST, PARAMS, METHOD = -32700, -32600, -32602, -32601
_JUNK = ("", " ", "x", "ü", "🙂", "\u2028", "\u200f", "\x00", "null", "../..", "é" * 50)


Answers = tuple[tuple[int | str | None, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Frame:
    """One or more lines without the last one's end. Each entry of `answers` is an id and the codes that may come with
    it: no id is an answer with a null one, or, where there are no codes either, with any."""

    kind: str
    data: bytes
    answers: Answers


def frames(seed: int, count: int, oversized_every: int = 1000) -> Iterator[Frame]:
    """So many malformed frames, each with an id of its own where it has one."""
    rng = random.Random(seed)
    for number in range(1, count + 1):
        unique = rng.getrandbits(50)
        request_id = f"f{unique}" if rng.random() < 0.5 else unique
        kind = _oversized if number % oversized_every == 0 else rng.choice(_KINDS)
        data, answers = kind(rng, request_id)
        yield Frame(kind.__name__.removeprefix("_"), data, answers)


_Made = tuple[bytes, Answers]
_Id = int | str


def _members(request_id: _Id, **changed: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "method": "ping", "params": {}, **changed}


def _encoded(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _cut(rng: random.Random, request_id: _Id) -> _Made:
    """A request that ends too soon: after its id's end the id is known, before it is not."""
    whole = _encoded(_members(request_id, params={"text": rng.choice(_JUNK) * 9}))
    known_from = whole.index(b',"method"') + 1
    at = rng.randrange(1, len(whole))
    return whole[:at], ((request_id if at >= known_from else None, (PARSE,)),)


def _no_method(rng: random.Random, request_id: _Id) -> _Made:
    value = _members(request_id)
    del value["method"]
    return _encoded(value), ((request_id, (REQUEST,)),)


def _odd_method(rng: random.Random, request_id: _Id) -> _Made:
    return _encoded(_members(request_id, method=_other(rng, str))), ((request_id, (REQUEST,)),)


def _odd_version(rng: random.Random, request_id: _Id) -> _Made:
    value = _members(request_id, jsonrpc=rng.choice(["1.0", "2", 2.0, None, [], "2.0 "]))
    return _encoded(value), ((request_id, (REQUEST,)),)


def _odd_params(rng: random.Random, request_id: _Id) -> _Made:
    return _encoded(_members(request_id, params=_other(rng, dict))), ((request_id, (PARAMS,)),)


def _odd_id(rng: random.Random, _: _Id) -> _Made:
    odd = rng.choice([None, 1.5, True, False, [], {}, [3], {"id": 3}])
    return _encoded(_members(0) | {"id": odd}), ((None, (REQUEST,)),)


def _huge_id(rng: random.Random, _: _Id) -> _Made:
    digits = rng.choice((30, 400, 4000, 5000, 20_000))
    number = rng.randint(1, 9) * 10**digits
    known = (number,) if digits <= 4000 else ()  # past 4,300 digits Python reads no number
    line = b'{"jsonrpc":"2.0","id":%s%s,"method":5}' % (b"%d" % (number // 10**digits), b"0" * digits)
    return line, tuple((each, (REQUEST,)) for each in known) or ((None, (PARSE, REQUEST)),)


def _bad_utf8(rng: random.Random, request_id: _Id) -> _Made:
    bad = rng.choice([b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xe2\x82", b"\xf5\x80\x80\x80"])
    return _encoded(_members(request_id, params={"x": "@"})).replace(b"@", bad), ((request_id, (PARSE,)),)


def _half_a_pair(rng: random.Random, request_id: _Id) -> _Made:
    half = rng.choice(["\ud800", "\udfff", "\udc00\ud800"])
    return _encoded(_members(request_id, params={half if rng.random() < 0.3 else "x": half})), ((request_id, (PARSE,)),)


def _no_number(rng: random.Random, request_id: _Id) -> _Made:
    bad = rng.choice([float("nan"), float("inf"), -float("inf")])
    return _encoded(_members(request_id, params={"x": bad})), ((request_id, (PARSE,)),)


def _deep(rng: random.Random, request_id: _Id) -> _Made:
    depth, closed = rng.choice([250, 1500, 50_000]), rng.random() < 0.5
    opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
    nested = opening * depth + (b"0" + closing * depth if closed else b"")
    return _encoded(_members(request_id, params={"x": 0}))[:-2].rstrip(b"0") + nested + b"}}" * closed, (
        (request_id, (PARSE,)),
    )


def _trailing(rng: random.Random, request_id: _Id) -> _Made:
    more = rng.choice([b"x", b"}", b"{}", b",", b"\x00", _encoded(_members("other"))])
    return _encoded(_members(request_id)) + more, ((request_id, (PARSE,)),)


def _byte_order_mark(rng: random.Random, request_id: _Id) -> _Made:
    return b"\xef\xbb\xbf" + _encoded(_members(request_id)), ((request_id, (PARSE,)),)


def _batch(rng: random.Random, request_id: _Id) -> _Made:
    return _encoded([_members(request_id)] * rng.randint(0, 3)), ((None, (REQUEST,)),)


def _scalar(rng: random.Random, _: _Id) -> _Made:
    return _encoded(rng.choice([0, 1.5, "ping", True, None])), ((None, (REQUEST,)),)


def _noise(rng: random.Random, _: _Id) -> _Made:
    return b"\x01" + rng.randbytes(rng.randint(1, 300)).replace(b"\n", b"."), ((None, (PARSE,)),)


def _over_lines(rng: random.Random, request_id: _Id) -> _Made:
    """Printed prettily: every line is a frame. A line such as `"id": 3,` says too little to know what it is of."""
    lines = json.dumps(_members(request_id), indent=1).encode().split(b"\n")
    return b"\n".join(lines), tuple((None, (PARSE, REQUEST)) for _ in lines)


def _twice(rng: random.Random, request_id: _Id) -> _Made:
    other = _encoded(_members(request_id, method=5))
    return b'{"id":"first",' + other[1:], ((request_id, (REQUEST,)),)


def _both(rng: random.Random, request_id: _Id) -> _Made:
    """A request that is a reply too: it is answered, since whoever sent an id with a method waits."""
    also = rng.choice([{"result": {}}, {"error": {"code": 1, "message": "m"}}, {"result": {}, "error": {}}])
    return _encoded({**_members(request_id, method="no/such"), **also}), ((request_id, (REQUEST,)),)


def _no_such_method(rng: random.Random, request_id: _Id) -> _Made:
    name = rng.choice(["", "tools", "tools/call/x", "__proto__", "🙂", "x" * 10_000, "rpc.discover"])
    return _encoded(_members(request_id, method=name)), ((request_id, (METHOD,)),)


def _spec_params(rng: random.Random, request_id: _Id) -> _Made:
    method, params = rng.choice(
        [
            ("tools/call", {}),
            ("tools/call", {"name": _other(rng, str)}),
            ("tools/call", {"name": "route", "arguments": _other(rng, dict, type(None))}),
            ("tools/call", {"name": "route", "arguments": {}, "_meta": _other(rng, dict, type(None))}),
            ("tools/list", {"cursor": _other(rng, str, type(None))}),
        ]
    )
    return _encoded(_members(request_id, method=method, params=params)), ((request_id, (PARAMS,)),)


def _flipped(rng: random.Random, request_id: _Id) -> _Made:
    """A sound request with some bytes changed: what it must be answered with depends on what is left of it."""
    line = bytearray(_encoded(_members(request_id, method="no/such")))
    for _ in range(rng.randint(1, 3)):
        line[rng.randrange(len(line))] = rng.choice(b' "{}[]:,09azA\\\x00\x7f\xff')
    return bytes(line), _answers_of(bytes(line))


def _answers_of(line: bytes) -> Answers:
    try:
        value = json.loads(line.decode())
    except (ValueError, RecursionError):
        return ((None, ()),)  # an id where one can be made out, which is tested with the frames above
    if not isinstance(value, dict):
        return ((None, (REQUEST,)),)
    found = value.get("id")
    if "id" in value:
        known = isinstance(found, int | str) and not isinstance(found, bool)
        return ((found if known else None, ()),)
    sound = value.get("jsonrpc") == "2.0" and isinstance(value.get("method"), str)
    return () if sound else ((None, (REQUEST,)),)


def _oversized(rng: random.Random, request_id: _Id) -> _Made:
    return _encoded(_members(request_id, params={"x": "y" * MAX_FRAME_BYTES})), ((request_id, (REQUEST,)),)


_KINDS: tuple[Callable[[random.Random, _Id], _Made], ...] = (
    _cut, _no_method, _odd_method, _odd_version, _odd_params, _odd_id, _huge_id, _bad_utf8, _half_a_pair, _no_number,
    _deep, _trailing, _byte_order_mark, _batch, _scalar, _noise, _over_lines, _twice, _both, _no_such_method,
    _spec_params, _flipped,
)  # fmt: skip


def _other(rng: random.Random, *not_these: type) -> Any:
    """A JSON value of another type."""
    values = [None, True, 0, -1, 1.5, "", "text", [], [1], {}, {"a": 1}]
    return rng.choice([value for value in values if type(value) not in not_these])


def bad_arguments(seed: int, count: int, schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """So many sets of arguments that a tool's schema forbids, or that no tool expects, seeded."""
    rng = random.Random(seed)
    properties: dict[str, Any] = schema["properties"]
    for _ in range(count):
        given = {name: _plausible(rng, properties[name]) for name in schema.get("required", ())}
        for _ in range(rng.randint(1, 3)):
            given[rng.choice([*properties, *properties, _unknown(rng)])] = _implausible(rng)
        if rng.random() < 0.2 and given:
            del given[rng.choice([*given])]
        yield given


def _unknown(rng: random.Random) -> str:
    return rng.choice(["", "colour", "Request", "__class__", "p\u0430ths", "x" * 50_000, "a.b", "\x00", "self", "kind"])


def _plausible(rng: random.Random, schema: dict[str, Any]) -> Any:
    if "enum" in schema:
        return rng.choice(schema["enum"])
    return {"integer": 7, "boolean": True, "array": [], "object": {}}.get(schema.get("type", ""), "what is 2 + 2?")


def _implausible(rng: random.Random) -> Any:
    deep: Any = 0
    for _ in range(rng.choice([5, 60])):
        deep = [deep] if rng.random() < 0.5 else {"properties": deep}
    text = rng.choice(_JUNK) * rng.choice([0, 1, 400])
    return rng.choice(
        [
            None, True, False, 0, -1, 7, 10**30, -(10**400), 1.5, 1e308, -0.0, text, text, "\ud800", "a\udfff",
            "x" * rng.choice([5000, 150_000, 2_100_000]), [], [[]], [None], [text] * 3, ["x"] * 1001, {}, deep,
            {"type": "nonsense"}, {"$ref": "#"}, {"pattern": "(a+)+$"}, {"glob": 3}, {"glob": "**" * 2000},
            {"since": "yesterday"}, [{"text": text}],
        ]
    )  # fmt: skip
