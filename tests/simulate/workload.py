"""What three clients ask for in a day, drawn from a seed; or a trace that was kept (`--trace`).

A trace is JSONL, one request a line with the fields of `Call`, `at_s` rising:

    {"at_s": 0.5, "client": "a", "role": "reasoning", "prompt_tokens": 300, "completion_tokens": 40,
     "max_tokens": 64, "document": "id", "document_tokens": 250}

Everything here is assumed, not measured: no public trace is of one user's local models. Lengths are log-normal, as
those of the public traces of services roughly are; coding prompts' median is near the one reported for the Azure code
trace (1,500 tokens; Source: Patel et al., Splitwise, ISCA 2024), answers are far longer than its (13), since here
whole functions are asked for. Thinking counts as output.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

from pydantic import TypeAdapter

from rolecall.config.profile import Profile

from .worker import Call

WITHOUT_MODEL = 0.35  # of all requests an agent answers (arithmetic, dates, files); they do not reach the manager
Shape: TypeAlias = tuple[float, float]  # median, and sigma of the logarithm
PAUSE_S: Shape = (25, 1.0)  # what a client's user or agent takes between two requests
MORE_TOKENS: Shape = (200, 0.8)  # of a follow-up
# Weight of each hour of the day for the two clients that people sit at, from midnight.
HOURS = (1, 0, 0, 0, 0, 0, 1, 3, 8, 10, 10, 9, 5, 8, 10, 10, 9, 6, 4, 4, 5, 4, 3, 2)


class Kind(NamedTuple):
    """A task class: who answers, and tokens in and out."""

    role: str
    prompt: Shape
    output: Shape


KINDS = {
    "search": Kind("embedder", (20, 0.5), (0, 0.0)),
    "general": Kind("router", (700, 0.8), (90, 0.7)),
    "summarization": Kind("summarization", (3000, 0.8), (160, 0.5)),
    "validation": Kind("validation", (800, 0.6), (40, 0.5)),
    "reasoning": Kind("reasoning", (900, 0.8), (450, 0.7)),
    "reasoning_heavy": Kind("reasoning_heavy", (1500, 0.6), (600, 0.6)),
    "coding": Kind("coding", (1500, 0.9), (350, 0.9)),
    "coding_large_context": Kind("coding_large_context", (40000, 0.5), (450, 0.7)),
}


class Pattern(NamedTuple):
    """What a session does, once to three times over; `per_day` such sessions. `channel` is announced at its start."""

    client: str
    kinds: tuple[str, ...]
    per_day: int
    channel: str = ""


PATTERNS = (
    Pattern("editor", ("reasoning", "coding", "coding", "validation"), 45, "code"),
    Pattern("editor", ("coding", "coding", "coding"), 35, "code"),
    Pattern("editor", ("coding_large_context", "coding_large_context", "coding"), 8, "code"),
    Pattern("desktop", ("search", "general", "general"), 60),
    Pattern("desktop", ("search", "summarization", "reasoning"), 30),
    Pattern("desktop", ("reasoning", "reasoning_heavy", "validation"), 14, "system_health"),
)
BURSTS_PER_DAY, BURST_CALLS, BURST_GAP_S = 12, 12, 0.5  # the third client hands in documents at once, at any hour


class Session(NamedTuple):
    """Calls of one client, each so long (`pauses_s`) after the one before was answered; the first at its `at_s`."""

    calls: tuple[Call, ...]
    pauses_s: tuple[float, ...]
    channel: str = ""


def draw_day(profile: Profile, seed: int, hours: float) -> tuple[Session, ...]:
    """The sessions that start in the first `hours` of a day. Same arguments, same sessions."""
    chance = random.Random(seed)
    sessions: list[Session] = []
    for pattern in PATTERNS:
        for number in range(pattern.per_day):
            at_s = 3600 * (chance.choices(range(24), HOURS)[0] + chance.random())
            kinds = pattern.kinds * chance.randint(1, 3)
            calls = _calls(chance, profile, pattern.client, kinds, f"{pattern.kinds}{number}", at_s)
            pauses_s = tuple(_length(chance, PAUSE_S) for _ in calls)
            sessions.append(Session(calls, pauses_s, pattern.channel))
    for number in range(BURSTS_PER_DAY):
        at_s = 86400 * chance.random()
        for part in range(BURST_CALLS):
            at_s += BURST_GAP_S
            calls = _calls(chance, profile, "batch", ("summarization",), f"burst{number}.{part}", at_s)
            sessions.append(Session(calls, (0.0,)))
    kept = [session for session in sessions if session.calls and session.calls[0].at_s < hours * 3600]
    return tuple(sorted(kept, key=lambda session: session.calls[0].at_s))


def read_trace(file: Path) -> tuple[Session, ...]:
    """Each call of the trace, at its own time whatever happened before."""
    read = TypeAdapter(Call).validate_json
    calls = [read(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
    return tuple(Session((replace(call, kind=call.kind or call.role),), (0.0,)) for call in calls)


def _calls(
    chance: random.Random, profile: Profile, client: str, kinds: tuple[str, ...], document: str, at_s: float
) -> tuple[Call, ...]:
    """A session's calls. Within one its calls of a kind are about the same text, which grows by what was answered."""
    calls: list[Call] = []
    grown: dict[str, int] = {}
    for kind in kinds:
        shape = KINDS[kind]
        if shape.role not in (*profile.roles, "embedder"):
            continue
        spec = profile.roles.get(shape.role)
        limit, context = (spec.max_tokens, spec.context_length) if spec else (0, 256)
        output = min(limit, _length(chance, shape.output))
        shared = grown.get(kind, 0)
        wanted = shared + _length(chance, MORE_TOKENS) if shared else _length(chance, shape.prompt)
        prompt = min(wanted, context - limit)
        shared = min(shared, prompt)
        about = f"{document}.{kind}"
        calls.append(Call(at_s, client, shape.role, prompt, output, limit, about, shared, kind))
        grown[kind] = prompt + output
    return tuple(calls)


def _length(chance: random.Random, shape: Shape) -> int:
    median, sigma = shape
    return math.ceil(chance.lognormvariate(math.log(median), sigma)) if median else 0
