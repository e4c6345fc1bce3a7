"""The simulator against this machine: one seeded trace of requests, run for real and simulated with measured rates.

    python -m tests.bench.trace [--minutes 10] [--seed 1] [--keep FOLDER]

1. The machine's rates on the starter model are measured. 2. A trace of three clients with bursts, documents and
follow-up questions to them is made for those rates: about two thirds of the time are work. 3. It is run through
`ModelManager` with the starter profile as it is; every request starts at its time whatever became of earlier ones.
4. The simulator runs the same trace with the rates; the tokens of prompts and answers are those of the real run, its
times are not used. Latency is from a request's time to its answer, queue and load included. Bound: 25% on p50 and p95.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import anyio

from rolecall.config.home import Home
from rolecall.config.settings import load_settings
from rolecall.roles.contract import GenerationRequest, Message, Role
from rolecall.roles.manager import ModelManager
from rolecall.roles.starter import TEXT_FP32
from tests.simulate.rates import ModelRates

from .rates import measure
from .stage import filler, models_folder, percentile, quiet, show, starter_home, story, workers

BUSY = 0.65
BURST_SHARE = 0.3  # of requests that come within two seconds of the one before
FOLLOW_UP_SHARE = 0.4  # of questions to a document that are to the client's last one
ROLES = ("reasoning", "coding", "summarization", "validation")
WEIGHTS = (4, 2, 3, 1)


@dataclass(frozen=True)
class Asked:
    """One line of the trace. Tokens are estimates until the real run has counted them."""

    at_s: float
    client: str
    role: str
    prompt_tokens: int
    completion_tokens: int
    max_tokens: int
    document: str | None
    document_tokens: int


def make_trace(rates: ModelRates, minutes: float, seed: int) -> list[Asked]:
    """Requests over so many minutes whose work, one after another, takes `BUSY` of them at these rates."""
    rng = random.Random(seed)
    made: list[Asked] = []
    last: dict[str, str] = {}
    work_s = 0.0
    while work_s < BUSY * minutes * 60:
        asked = _request(rng, last)
        cached = asked.document_tokens if any(asked.document == old.document for old in made if old.document) else 0
        work_s += rates.prefill_s(asked.prompt_tokens - cached, cached)
        work_s += asked.completion_tokens * rates.step_s(1, asked.prompt_tokens)
        made.append(asked)
    gaps = [rng.uniform(0.1, 2.0) if rng.random() < BURST_SHARE else rng.expovariate(1.0) * 10 for _ in made]
    scale = minutes * 60 * 0.97 / sum(gaps)
    at_s = 0.0
    for number, gap in enumerate(gaps):
        at_s += gap * scale
        made[number] = replace(made[number], at_s=round(at_s, 3))
    return made


def _request(rng: random.Random, last: dict[str, str]) -> Asked:
    client = rng.choice("abc")
    role = rng.choices(ROLES, WEIGHTS)[0]
    max_tokens = rng.choice((16, 24, 32, 48, 64, 96))
    document, document_tokens = None, 0
    if role in ("summarization", "validation"):
        if client not in last or rng.random() > FOLLOW_UP_SHARE:
            last[client] = f"{client}{rng.randrange(10**6)}/{round(rng.triangular(300, 2400, 600))}"
        document = last[client]
        document_tokens = int(document.partition("/")[2])
    prompt_tokens = document_tokens + 60
    return Asked(0.0, client, role, prompt_tokens, max_tokens, max_tokens, document, document_tokens)


def request_of(asked: Asked, number: int) -> GenerationRequest:
    """The request for real: a document of so many words, then a question that is answered at length."""
    text = document_of(asked) + story(number)
    return GenerationRequest(
        messages=(Message(role="user", content=text),), max_tokens=asked.max_tokens, client=asked.client
    )


def document_of(asked: Asked) -> str:
    if asked.document is None:
        return ""
    return filler(asked.document, asked.document_tokens) + "\n\n"


async def run_for_real(home: Home, trace: list[Asked]) -> tuple[list[Asked], list[float]]:
    """The trace with the tokens that were counted, and each request's latency in seconds."""
    counted, latency_s = list(trace), [0.0] * len(trace)
    async with ModelManager(home, load_settings(home, profile="starter")) as manager:
        manager.preload(Role.ROUTER)  # as the host does at its start
        began = anyio.current_time()

        async def one(number: int) -> None:
            asked = trace[number]
            await anyio.sleep_until(began + asked.at_s)
            role = Role(asked.role)
            result = await manager.generate(role, request_of(asked, number))
            latency_s[number] = anyio.current_time() - began - asked.at_s
            counted[number] = replace(
                asked,
                prompt_tokens=result.prompt_tokens,
                completion_tokens=result.completion_tokens,
                document_tokens=manager.count_tokens(role, document_of(asked)),
            )

        async with anyio.create_task_group() as group:
            for number in range(len(trace)):
                group.start_soon(one, number)
    return counted, latency_s


def simulate(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.simulate", "--profile", "starter", "--policy", "ours", "--json"]
    command += ["--rates", str(folder / "rates.json"), "--trace", str(folder / "trace.jsonl"), "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"The simulator failed:\n{done.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(done.stdout)["policies"]["ours"]
    return report


def compare(folder: Path, minutes: float, seed: int) -> None:
    with starter_home() as home:
        rates = anyio.run(measure, models_folder() / TEXT_FP32, TEXT_FP32)
        trace = make_trace(ModelRates.model_validate(rates["models"][TEXT_FP32]), minutes, seed)
        counted, latency_s = anyio.run(run_for_real, home, trace)
    (folder / "rates.json").write_text(json.dumps(rates, indent=1))
    (folder / "trace.jsonl").write_text("".join(json.dumps(asdict(asked)) + "\n" for asked in counted))
    (folder / "latency.json").write_text(json.dumps([round(value, 3) for value in latency_s]))
    simulated = simulate(folder)["latency_s"]
    figures: dict[str, Any] = {"minutes": minutes, "seed": seed, "requests": len(trace), "rates": rates}
    lines = [f"a trace of {minutes:g} minutes, {len(trace)} requests (seed {seed}); bound: 25% on p50 and p95"]
    for name, percent in (("p50", 50), ("p95", 95), ("p99", 99)):
        real = percentile(latency_s, percent)
        error = simulated[name] / real - 1
        figures[name] = {"real_s": round(real, 3), "simulated_s": simulated[name], "error": round(error, 3)}
        lines.append(f"{name}: real {real:.2f} s, simulated {simulated[name]:.2f} s, error {error:+.1%}")
    show("trace", lines, figures)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for rates, trace and latencies")
    options = parser.parse_args(arguments)
    quiet()
    with tempfile.TemporaryDirectory(prefix="rolecall-trace-") as folder:
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
        compare(options.keep or Path(folder), options.minutes, options.seed)
    assert workers() == []
    return 0


if __name__ == "__main__":
    sys.exit(main())
