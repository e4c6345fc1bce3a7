"""What a request looks like: its instruction, its flags, and which rules of `config/routing/rules.yaml` it meets.

Only the head and the tail of a request are read, so a megabyte costs what a page costs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from rolecall.config.models import packaged

from .contract import TaskType

HEAD_CHARS = 2400
TAIL_CHARS = 1200
EDGE_CHARS = 240
"""An instruction around a document is looked for in this much at either end."""
EMBEDDED_CHARS = 160
"""An embedder's time goes with a text's length. Source: of 258 labelled requests of more than 480 characters 247 are
decided rightly by whole instructions, 246 by these ends, 245 by ends of 120."""
_WITHOUT_FORMAT_CHARS = 900
_SENTENCE_END = re.compile(r"(?<=[.!?。\uff01\uff1f])\s+|\n+")
_SPACE = re.compile(r"[ \t\u00a0]+")
_VERDICT = re.compile(r"(?i)^(?!.*\bnot\b).*\b(?:yes|true|correct|valid|supported)\b")


@dataclass(frozen=True, slots=True)
class Reading:
    """A request as the rules see it. `regions` are lower case but `raw`; `ends` of the `instruction` get embedded."""

    instruction: str
    regions: Mapping[str, str]
    flags: frozenset[str]


@dataclass(frozen=True, slots=True)
class Rule:
    """Where `pattern` is found in `region` and the flags agree, each type's score moves by its weight (log odds)."""

    name: str
    pattern: re.Pattern[str] | None
    region: str
    needs: frozenset[str]
    unless: frozenset[str]
    weights: Mapping[TaskType, float]


def read(text: str) -> Reading:
    """The request's instruction and signals, for any text at all; cost does not grow with its length."""
    length = len(text)
    seen = text if length <= HEAD_CHARS else text[:HEAD_CHARS] + "\n" + text[-TAIL_CHARS:]
    seen = seen.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate can be neither hashed nor embedded
    seen = _SPACE.sub(" ", seen.replace("\r\n", "\n").replace("\u2019", "'").replace("\x00", " ")).strip()
    seen = _without_format(seen)
    polite, low = policy()["polite"], seen.lower()
    whole = length <= 2 * EDGE_CHARS
    first, last = _edge(seen[:EDGE_CHARS], seen, slice(None, -1)), _edge(seen[-EDGE_CHARS:], seen, slice(1, None))
    start = re.sub(polite, "", first) or first
    instruction = seen if whole else f"{start}\n{last}"
    regions = {
        "all": low,
        "start": (re.sub(polite, "", low)[: 2 * EDGE_CHARS] if whole else start.lower()),
        "end": low[-EDGE_CHARS:] if whole else last.lower(),
        "edge": instruction.lower(),
        "raw": seen,
    }
    words = len(low.split())
    flags = (
        name for name, entries in policy()["flags"].items() if any(_holds(e, seen, length, words) for e in entries)
    )
    return Reading(instruction, regions, frozenset(flags))


def ends(instruction: str) -> str:
    """What is embedded of an instruction: a long one's beginning and end."""
    if len(instruction) <= 2 * EMBEDDED_CHARS:
        return instruction
    return f"{instruction[:EMBEDDED_CHARS]}\n{instruction[-EMBEDDED_CHARS:]}"


def met(reading: Reading) -> list[Rule]:
    """The rules that the reading meets, in the file's order."""
    return [
        rule
        for rule in load_rules()
        if rule.needs <= reading.flags
        and not rule.unless & reading.flags
        and (rule.pattern is None or rule.pattern.search(reading.regions[rule.region]))
    ]


@cache
def policy() -> dict[str, Any]:
    """The packaged `rules.yaml`, parsed."""
    loaded: dict[str, Any] = packaged("routing/rules.yaml")
    return loaded


@cache
def load_rules() -> tuple[Rule, ...]:
    rules = []
    for entry in policy()["rules"]:
        pattern = entry.get("match")
        for name, alternatives in policy()["words"].items() if pattern is not None else ():
            pattern = pattern.replace(f"<{name}>", f"(?:{alternatives})")
        rule = Rule(
            name=entry["name"],
            pattern=re.compile(pattern, re.MULTILINE) if pattern is not None else None,
            region=entry.get("in", "all"),
            needs=frozenset(entry.get("needs", ())),
            unless=frozenset(entry.get("unless", ())),
            weights={TaskType(kind): float(weight) for kind, weight in entry["weights"].items()},
        )
        rules.append(rule)
    return tuple(rules)


def _holds(entry: dict[str, Any], seen: str, size: int, words: int) -> bool:
    fits = entry.get("min_words", 0) <= words <= entry.get("max_words", words) and size >= entry.get("min_chars", 0)
    if not fits or "match" not in entry:
        return bool(fits)
    enough: int = entry.get("at_least", 1)
    return sum(1 for _ in islice(re.finditer(entry["match"], seen), enough)) == enough


def _without_format(seen: str) -> str:
    """Leave out sentences that only say how the answer should look: they tell nothing of the task.

    What asks for a verdict ("answer yes or no") stays.
    """
    if len(seen) > _WITHOUT_FORMAT_CHARS or "```" in seen[:200]:
        return seen
    pieces = re.split(r"(?<=[.!?])(?= )|(?=\n)", seen)
    kept = [piece for piece in pieces if not re.match(policy()["layout"], piece.strip()) or _VERDICT.search(piece)]
    return "".join(kept).strip() if kept else seen


def _edge(piece: str, seen: str, whole_sentences: slice) -> str:
    """One end of a longer text without the sentence that the cut broke, unless that is all there is."""
    if len(seen) <= EDGE_CHARS:
        return seen
    parts = [part for part in _SENTENCE_END.split(piece) if part.strip()]
    return "\n".join(parts[whole_sentences]).strip() if len(parts) > 1 else piece.strip()
