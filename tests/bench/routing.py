"""The time of a decision beside semantic-router's, with the same embedder on the same texts, in turn.

Theirs embeds in its own process and compares with each route's examples. Ours parses (stage 1), reads signals, has the
instruction embedded by a worker, and decides; no text is repeated, so no cache helps. One thread for either.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio

from rolecall.config.home import Home
from rolecall.config.settings import load_settings
from rolecall.roles.manager import ModelManager
from rolecall.server.routing.router import Router

from .stage import filler, peer_process, percentile, show, spread, starter_home

VERSION = "1.1.1"
LENGTHS = {"short (20 words)": (20, 60), "long (20,000 words)": (20_000, 12)}
"""Words of a request, and requests of a round."""

BOUNDS = {"short (20 words)": 1.0, "long (20,000 words)": 0.25}

ROUTES = {
    "tool": ["what is 12 times 7", "convert 5 miles to km", "how much memory is free"],
    "validation": ["is this claim true", "check the answer below", "does the text support this"],
    "summarization": ["summarize this article", "give me the key points", "tl;dr please"],
    "coding": ["write a function that sorts a list", "fix this bug", "a regex for dates"],
    "retrieval": ["what does our policy say", "find it in my notes", "look up the contract"],
    "reasoning": ["a train leaves at noon", "solve the riddle", "plan a route with constraints"],
    "general": ["tell me a story", "translate this sentence", "who was the first president"],
}
_PEER = """
import json, sys, time
import torch
torch.set_num_threads(1)
from semantic_router import IndexedRouter, Route
from semantic_router.encoders.local import LocalEncoder
routes = [Route(name=name, utterances=said) for name, said in json.loads(sys.argv[2]).items()]
router = IndexedRouter(encoder=LocalEncoder(name=sys.argv[1], device="cpu"), routes=routes)
router("warm up")
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    text = json.loads(line)
    began = time.perf_counter()
    router(text)
    print(json.dumps(time.perf_counter() - began), flush=True)
"""


def main(rounds: int) -> None:
    python = _peer_python()
    with starter_home() as home:
        found = anyio.run(_measure, home, rounds, python)
    figures = {"rounds": rounds, "semantic_router": VERSION if python else None, **found}
    show("routing", [_line(name, each) for name, each in found.items()], figures)


async def _measure(home: Home, rounds: int, python: str | None) -> dict[str, dict[str, Any]]:
    settings = load_settings(home, profile="starter")
    seconds: dict[str, dict[str, list[list[float]]]] = {name: {"rolecall": [], "peer": []} for name in LENGTHS}
    async with ModelManager(home, settings) as models:
        router = Router(models, settings.profile.name, settings.routing)
        await router.decide("warm up the embedder")
        with _peer(python, home.models / settings.profile.embedder.model) as peer:
            for number in range(rounds):
                for name, (words, count) in LENGTHS.items():
                    texts = [filler(f"{name} {number} {each}", words) for each in range(count)]
                    seconds[name]["rolecall"].append([await _ours(router, text) for text in texts])
                    if peer:
                        seconds[name]["peer"].append([_theirs(peer, text) for text in texts])
    return {name: _figures(sides["rolecall"], sides["peer"]) for name, sides in seconds.items()}


async def _ours(router: Router, text: str) -> float:
    began = time.perf_counter()
    await router.decide(text)
    return time.perf_counter() - began


def _theirs(peer: subprocess.Popen[bytes], text: str) -> float:
    assert peer.stdin and peer.stdout
    peer.stdin.write(json.dumps(text).encode() + b"\n")
    peer.stdin.flush()
    return float(json.loads(peer.stdout.readline()))


def _figures(ours: list[list[float]], theirs: list[list[float]]) -> dict[str, Any]:
    found = {"rolecall": _side(ours)}
    if theirs:
        found["semantic-router"] = _side(theirs)
        ratios = [percentile(a, 50) / percentile(b, 50) for a, b in zip(ours, theirs, strict=True)]
        found["over_semantic_router"] = spread(ratios)
    return found


def _side(rounds: list[list[float]]) -> dict[str, float]:
    every = [seconds for each in rounds for seconds in each]
    p50, p95 = (round(percentile(every, share) * 1e3, 2) for share in (50, 95))
    return {"n": len(every), "p50_ms": p50, "p95_ms": p95, "per_s": round(len(every) / sum(every), 1)}


def _line(name: str, found: dict[str, Any]) -> str:
    each = ", ".join(
        f"{side} p50 {found[side]['p50_ms']:.1f} ms, p95 {found[side]['p95_ms']:.1f} ms, {found[side]['per_s']:.0f}/s"
        for side in ("rolecall", "semantic-router")
        if side in found
    )
    ratio = f"; ratio {found['over_semantic_router']['median']:.2f}" if "over_semantic_router" in found else ""
    return f"{name}: {each}{ratio}; bound at most {BOUNDS[name]}"


@contextmanager
def _peer(python: str | None, model: Path) -> Iterator[subprocess.Popen[bytes] | None]:
    """semantic-router, ready; None where it cannot be had."""
    if python is None:
        yield None
        return
    arguments = ["-c", _PEER, str(model), json.dumps(ROUTES)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with peer_process(arguments, python=python, **pipes) as process:
        assert process.stdout
        process.stdout.readline()
        yield process


def _peer_python() -> str | None:
    """The Python of an environment of semantic-router's own over ours, which has the embedder's libraries."""
    folder = Path(sys.prefix) / f"bench-semantic-router-{VERSION}"
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        subprocess.run((sys.executable, "-m", "venv", str(folder)), check=True)
        (own,) = folder.glob("lib/python3*/site-packages")
        (ours,) = Path(sys.prefix).glob("lib/python3*/site-packages")
        (own / "beside.pth").write_text(f"{ours}\n")
        pip = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        done = subprocess.run((*pip, f"semantic-router=={VERSION}"), capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"without semantic-router {VERSION}: {done.stderr.strip().splitlines()[-1]}", flush=True)
            return None
        (folder / "made").touch()
    return str(python)
