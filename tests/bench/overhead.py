"""What Rolecall adds to a client and to a call that costs nothing, beside a bare server on the same SDK and fastmcp.

The peers' tool adds two numbers, and that is all. `call` is Rolecall's least tool call, `job`'s status of an unknown
id: shim, socket, host, SDK, one look into the store. `sum` is `route` with the numbers: its router parses and claims
the request, an exact agent computes it, and a receipt is written before the answer. One host serves throughout with
the starter model in memory; the sides take turns.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import psutil

from rolecall.config.home import Home
from rolecall.server.connect import lock_holder

from .peers import SHIM, Peer, peers
from .stage import percentile, show, spread, starter_home

CONFIG = "profile: starter\nhost: {spare_worker: false}\n"  # a spare would import its libraries beside the figures
FURTHER = 6  # clients beside the first
CALLS = 150  # one after another, in a round
IN_FLIGHT = 16
FLIGHT_CALLS = 600
KINDS = ("ping", "tools/list", "call", "sum")

Sides = dict[str, tuple[str, ...]]


def main(rounds: int) -> None:
    with starter_home(CONFIG) as home, Peer(SHIM, home.root) as first:
        first.listed_s()
        first.ask("tools/call", {"name": "reason", "arguments": {"question": "Name a colour.", "depth": "quick"}})
        sides: Sides = {**peers(), "rolecall": SHIM}
        memory = _memory(sides, home)
        calls = _calls(sides, home, rounds)
    over = {name: round(value / memory["bare"], 3) for name, value in memory.items()}
    figures = {"rounds": rounds, "further_client_mb": memory, "further_client_over_bare": over, **calls}
    each = ", ".join(f"{name} {memory[name]:.1f} MB" for name in sides)
    lines = [f"memory per further client: {each}; {over['rolecall']:.2f} of bare, bound at most 0.25"]
    lines += [_line(f"{kind}, ms p50 one after another", calls["p50_ms"][kind], "at most 1.1") for kind in KINDS]
    lines += [
        _line(f"{kind}, calls/s with {IN_FLIGHT} in flight", calls["calls_per_s"][kind], "at least 0.9")
        for kind in KINDS
    ]
    show("overhead", lines, figures)


def _line(what: str, found: dict[str, Any], bound: str) -> str:
    each = ", ".join(f"{name} {figure['median']:.2f}" for name, figure in found["by_side"].items())
    ratios = ", ".join(f"{name} {figure['median']:.2f}" for name, figure in found["over_bare"].items())
    return f"{what}: {each}; of bare: {ratios}; bound {bound}"


def _memory(sides: Sides, home: Home) -> dict[str, float]:
    """MB that each client beside the first adds to its servers and to the host, which grows with each session."""
    host = lock_holder(home)
    assert host
    found = {}
    for name, words in sides.items():
        processes, before = [psutil.Process(host)], 0
        with ExitStack() as stack:
            for number in range(1 + FURTHER):
                peer = stack.enter_context(Peer(words, home.root))
                peer.listed_s()
                _call(peer, "sum", number)
                processes.append(psutil.Process(peer.process.pid))
                before = before or _memory_bytes(processes)
            found[name] = round((_memory_bytes(processes) - before) / FURTHER / 1e6, 2)
    return found


def _memory_bytes(processes: list[psutil.Process]) -> int:
    """Proportional memory, which counts shared pages once in all; what is the processes' own where there is no such."""
    infos = [process.memory_full_info() for process in processes]
    return sum(getattr(info, "pss", info.uss) for info in infos)


def _calls(sides: Sides, home: Home, rounds: int) -> dict[str, Any]:
    p50_ms: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in sides} for kind in KINDS}
    calls_per_s: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in sides} for kind in KINDS}
    with ExitStack() as stack:
        started = {name: stack.enter_context(Peer(words, home.root)) for name, words in sides.items()}
        for peer in started.values():
            peer.listed_s()
        for number in range(rounds + 1):
            order = sorted(started, reverse=number % 2 == 1)
            for kind in KINDS:
                for name in order:
                    taken_s = [_call(started[name], kind, call) for call in range(CALLS)]
                    rate = _flight(started[name], kind)
                    if number:  # the first round warms all of them
                        p50_ms[kind][name].append(percentile(taken_s, 50) * 1e3)
                        calls_per_s[kind][name].append(rate)
    return {"p50_ms": _against_bare(p50_ms), "calls_per_s": _against_bare(calls_per_s)}


def _call(peer: Peer, kind: str, number: int) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    answer = peer.ask(*_request(peer, kind, number))
    taken_s = time.perf_counter() - began
    added = kind == "sum" or (kind == "call" and not peer.is_shim)
    if added and str(number + 1234) not in answer["result"]["content"][0]["text"]:
        raise SystemExit(f"{peer.process.args!r} cannot add: {answer}")
    return taken_s


def _request(peer: Peer, kind: str, number: int) -> tuple[str, dict[str, Any]]:
    if kind == "call" and peer.is_shim:
        return "tools/call", {"name": "job", "arguments": {"id": f"{number:032x}", "action": "status"}}
    if kind in ("call", "sum"):
        return "tools/call", {"name": "route", "arguments": {"request": f"{number}+1234"}}
    return kind, {}


def _flight(peer: Peer, kind: str) -> float:
    """Calls per second where each answer makes room for the next call."""
    began = time.perf_counter()
    for number in range(FLIGHT_CALLS):
        if number >= IN_FLIGHT:
            peer.receive()
        peer.send(*_request(peer, kind, number))
    for _ in range(IN_FLIGHT):
        peer.receive()
    return FLIGHT_CALLS / (time.perf_counter() - began)


def _against_bare(found: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """The sides' medians over rounds, and the medians of their rounds' ratios to the bare server's."""
    return {
        kind: {
            "by_side": {name: spread(values) for name, values in by_side.items()},
            "over_bare": {
                name: spread([a / b for a, b in zip(values, by_side["bare"], strict=True)])
                for name, values in by_side.items()
                if name != "bare"
            },
        }
        for kind, by_side in found.items()
    }
