"""What every bench stands on: a home with the starter models, settings, peers in processes of their own, figures.

Ratios are taken between what ran in turn in one run, so that a drift of the machine's speed hits both sides alike.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import math
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import structlog
from mcp import Client, StdioServerParameters

from rolecall.config.home import Home
from rolecall.config.settings import Settings, load_settings
from rolecall.roles.contract import Event, Generated, GenerationRequest, Message, Prefilling
from rolecall.roles.starter import starter_missing

PATIENCE_S = 120.0
ROLECALL = str(Path(sys.executable).with_name("rolecall"))
_PEER = """
import sys
from rolecall.roles.worker.blas import load_fast_blas
load_fast_blas()
from mlx_lm.server import main
main()
"""
_WORDS = (
    "water",
    "stone",
    "light",
    "evening",
    "letter",
    "garden",
    "winter",
    "window",
    "road",
    "bread",
    "river",
    "lamp",
)
SUBJECTS = ("lighthouse", "harbour", "market", "railway", "orchard", "library", "observatory", "mill", "vineyard",
            "quarry", "glacier", "bakery")  # fmt: skip


def quiet() -> None:
    """Keep the program's own log out of the figures (warnings only, on standard error), and leave no process behind
    when this one is told to end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def models_folder() -> Path:
    """The folder with the starter models: `$ROLECALL_TEST_MODELS`, else the user's own."""
    named = os.environ.get("ROLECALL_TEST_MODELS")
    models = Path(named) if named else Home.find().models
    if missing := starter_missing(models):
        raise SystemExit(f"{', '.join(missing)} not under {models}: run `make setup`, or set ROLECALL_TEST_MODELS.")
    return models


@contextlib.contextmanager
def starter_home(config: str = "profile: starter\n") -> Iterator[Home]:
    """A home of its own with the starter models in it and `config` as its settings; it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="rolecall-bench-") as folder:
        home = Home(Path(folder) / "home").create()
        home.models.rmdir()
        home.models.symlink_to(models_folder())
        home.settings_file.write_text(config)
        try:
            yield home
        finally:
            command(home, "stop")


def starter_settings(
    home: Home, *, budget_gb: float = 4.0, spare: bool = False, models: dict[str, str] | None = None, **role: Any
) -> Settings:
    """The starter profile with `role`'s fields in every role (no repetition penalty, nothing pinned unless said);
    `models` puts other models into some roles."""
    settings = load_settings(home, profile="starter")
    fields: dict[str, Any] = {"repetition_penalty": None, "pinned": False, "timeout_s": 600.0, **role}
    roles = {
        name: spec.model_copy(update={**fields, "model": (models or {}).get(name, spec.model)})
        for name, spec in settings.profile.roles.items()
    }
    return settings.model_copy(
        update={
            "profile": settings.profile.model_copy(update={"roles": roles}),
            "memory": settings.memory.model_copy(update={"budget_gb": budget_gb}),
            "host": settings.host.model_copy(update={"spare_worker": spare}),
        }
    )


def request(text: str, max_tokens: int, **fields: Any) -> GenerationRequest:
    return GenerationRequest(messages=(Message(role="user", content=text),), max_tokens=max_tokens, **fields)


def story(number: int) -> str:
    """A prompt that a model of any size answers at length; no two begin alike, so no prefix cache can help."""
    subject = SUBJECTS[number % len(SUBJECTS)]
    return f"{number + 11}. Write a long story about a {subject} and its keeper, with many details of the place."


def question(number: int) -> str:
    """One whose answer is short by itself: a tool would ask its model again for one that was cut off."""
    subject = SUBJECTS[number % len(SUBJECTS)]
    return f"Name one tool that is used in a {subject}, and say in one short sentence what it is for."


def filler(seed: str, words: int) -> str:
    """So many words, of about a token each, that are like no other seed's from the first on."""
    return f"{seed}: {' '.join(random.Random(seed).choices(_WORDS, k=words))}"


class Clock:
    """When one call's pieces came, in seconds from `start`; its `on_event` is for `ModelManager.generate`."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.chunks: list[tuple[float, int]] = []
        self.tokens: list[tuple[float, int]] = []

    def on_event(self, event: Event) -> None:
        now = time.perf_counter() - self.start
        if isinstance(event, Prefilling):
            self.chunks.append((now, event.done_tokens))
        elif isinstance(event, Generated):
            self.tokens.append((now, event.tokens))

    @property
    def prefilled_s(self) -> float:
        return self.chunks[-1][0]

    @property
    def first_token_s(self) -> float:
        return self.tokens[0][0]

    @property
    def per_token_s(self) -> float:
        """Between the first and the last piece, so that neither prefill nor the way there counts."""
        (first_s, first), (last_s, last) = self.tokens[0], self.tokens[-1]
        return (last_s - first_s) / (last - first)


@contextlib.contextmanager
def peer_process(
    arguments: Sequence[str], python: str = sys.executable, **pipes: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process on the same terms as a worker: same threads' waiting, no network; ended afterwards."""
    env = {**os.environ, "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    process = subprocess.Popen([python, *arguments], env=env, **pipes)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def mlx_server(model: Path, *options: str) -> Iterator[int]:
    """`mlx_lm.server` for a model with the matrix library that our workers get; yields its port at once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["-c", _PEER, "--model", str(model), "--port", str(port), "--log-level", "ERROR", *options]
    with peer_process(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        yield port
        if process.poll() is not None:
            raise SystemExit(f"mlx_lm.server ended by itself with status {process.returncode}.")


def chat(port: int, messages: Sequence[Message], max_tokens: int) -> tuple[float, float, int]:
    """A streamed completion from `mlx_lm.server`, which is waited for: (first token at, end at, completion tokens),
    in seconds from the call."""
    start = time.perf_counter()
    body = {
        "model": "default_model",
        "messages": [message.model_dump() for message in messages],
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = _post(port, json.dumps(body))
    first_s, tokens = 0.0, 0
    with contextlib.closing(connection):
        response = connection.getresponse()
        if response.status != 200:
            raise SystemExit(f"mlx_lm.server answered {response.status}: {response.read(300)!r}")
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            piece = json.loads(line[6:])
            if usage := piece.get("usage"):
                tokens = usage["completion_tokens"]
            if not first_s and any((choice.get("delta") or {}).get("content") for choice in piece["choices"]):
                first_s = time.perf_counter() - start
    return first_s, time.perf_counter() - start, tokens


def _post(port: int, body: str) -> http.client.HTTPConnection:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        try:
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        except ConnectionRefusedError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return connection


@contextlib.asynccontextmanager
async def rolecall_client(home: Home, cwd: Path | None = None) -> AsyncIterator[Client]:
    """An MCP client over stdio, as a user's program has one. The host it starts ends with its `starter_home`."""
    env = {**os.environ, "ROLECALL_HOME": str(home.root)}
    server = StdioServerParameters(command=ROLECALL, args=["serve"], env=env, cwd=str(cwd or home.root))
    async with Client(server) as connected:
        yield connected


def command(home: Home, *arguments: str) -> None:
    """Run `rolecall` for a home; what it says does not matter."""
    env = {**os.environ, "ROLECALL_HOME": str(home.root)}
    subprocess.run([ROLECALL, *arguments], env=env, capture_output=True, check=False)


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of at least one value."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def workers() -> list[psutil.Process]:
    """The worker processes that this one has started and that live."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if "rolecall.roles.worker" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


def show(name: str, lines: Sequence[str], figures: dict[str, Any]) -> None:
    """The readable table, then one line of JSON."""
    if lines:
        print("\n".join(lines))
    print(json.dumps({"bench": name, **figures}), flush=True)
