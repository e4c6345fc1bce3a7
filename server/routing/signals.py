"""What a request looks like: its instruction, its flags, and which rules of `config/routing/rules.yaml` it meets.

Only the head and the tail of a request are read, so a megabyte costs what a page costs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from .contract import TaskType

HEAD_CHARS = 2400
TAIL_CHARS = 1200
EDGE_CHARS = 240
"""An instruction around a document is looked for in this much at either end."""

_POLITE = re.compile(
    r"^(?:(?:hey|hi|hello|ok(?:ay)?|so|well|um+|please|pls|kindly|yo|thanks|perfect|great|sure|bitte|hallo|"
    r"por favor|s'il (?:te|vous) pla[iî]t|пожалуйста|请|and|also|now|quick question|"
    r"(?:can|could|would|will) (?:you|u)(?: please)?(?= \w)|kannst du(?: mir)?|k[oö]nnten sie|puedes|peux[- ]tu|"
    r"pouvez[- ]vous|i (?:want|need|would like) (?:you )?to|i'd like (?:you )?to|help me(?: to)?|let's|try to|"
    r"go ahead and|your task is to|the task is to)\b[\s,.!:;-]*)+",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?。\uff01\uff1f])\s+|\n+")
_SPACE = re.compile(r"[ \t\u00a0]+")


@dataclass(frozen=True, slots=True)
class Reading:
    """A request as the rules see it. `regions` are lower case; `instruction` is what gets embedded."""

    instruction: str
    regions: Mapping[str, str]
    flags: frozenset[str]
    words: int


@dataclass(frozen=True, slots=True)
class Rule:
    """Where `pattern` is found in `region` and the flags agree, each type's score moves by its weight (log odds)."""

    name: str
    pattern: re.Pattern[str] | None
    region: str
    needs: frozenset[str]
    unless: frozenset[str]
    weights: tuple[tuple[TaskType, float], ...]


def read(text: str) -> Reading:
    """The request's instruction and signals, for any text at all; cost does not grow with its length."""
    length = len(text)
    head, tail = text[:HEAD_CHARS], text[-TAIL_CHARS:]
    seen = head if length <= HEAD_CHARS else head + "\n" + tail
    seen = seen.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate can be neither hashed nor embedded
    seen = _SPACE.sub(" ", seen.replace("\r\n", "\n").replace("\u2019", "'").replace("\x00", " ")).strip()
    seen = _without_format(seen)
    start = _POLITE.sub("", _first(seen)) or _first(seen)
    end = _last(seen)
    whole = length <= 2 * EDGE_CHARS
    instruction = seen if whole else f"{start}\n{end}"
    low = seen.lower()
    regions = {
        "all": low,
        "start": (_POLITE.sub("", low)[: 2 * EDGE_CHARS] if whole else start.lower()),
        "end": low[-EDGE_CHARS:] if whole else end.lower(),
        "edge": low if whole else f"{start}\n{end}".lower(),
        "raw": seen,
    }
    words = len(low.split())
    return Reading(instruction, regions, frozenset(_flags(seen, low, length, words)), words)


def met(reading: Reading) -> list[Rule]:
    """The rules that the reading meets, in the file's order."""
    found = []
    for rule in load_rules():
        if not rule.needs <= reading.flags or rule.unless & reading.flags:
            continue
        if rule.pattern is None or rule.pattern.search(reading.regions[rule.region]):
            found.append(rule)
    return found


@cache
def load_rules() -> tuple[Rule, ...]:
    """The packaged rules. A rule with an unknown task type, flag or region is an error at the first call."""
    data = yaml.safe_load(rules_text())
    words: dict[str, str] = data["words"]
    return tuple(_rule(entry, words) for entry in data["rules"])


@cache
def rules_text() -> str:
    return files("rolecall.config").joinpath("routing/rules.yaml").read_text("utf-8")


def _rule(entry: dict[str, Any], words: dict[str, str]) -> Rule:
    pattern = entry.get("match")
    if pattern is not None:
        for name, alternatives in words.items():
            pattern = pattern.replace(f"<{name}>", f"(?:{alternatives})")
    needs, unless = frozenset(entry.get("needs", ())), frozenset(entry.get("unless", ()))
    if unknown := (needs | unless) - FLAGS.keys():
        raise ValueError(f"rule {entry['name']}: unknown flags {sorted(unknown)}")
    region = entry.get("in", "all")
    if region not in ("all", "start", "end", "edge", "raw"):
        raise ValueError(f"rule {entry['name']}: unknown region {region}")
    weights = tuple((TaskType(kind), float(weight)) for kind, weight in entry["weights"].items())
    compiled = re.compile(pattern, re.MULTILINE) if pattern is not None else None
    return Rule(entry["name"], compiled, region, needs, unless, weights)


_WITHOUT_FORMAT_CHARS = 900


def _without_format(seen: str) -> str:
    """Leave out sentences that only say how the answer should look: they tell nothing of the task.

    What asks for a verdict ("answer yes or no") stays.
    """
    if len(seen) > _WITHOUT_FORMAT_CHARS or "```" in seen[:200]:
        return seen
    pieces = re.split(r"(?<=[.!?])(?= )|(?=\n)", seen)
    layout = _layout()
    kept = [piece for piece in pieces if not layout.match(piece.strip()) or _VERDICT.search(piece)]
    return "".join(kept).strip() if kept else seen


@cache
def _layout() -> re.Pattern[str]:
    pattern: str = yaml.safe_load(rules_text())["layout"]
    return re.compile(pattern)


_VERDICT = re.compile(r"(?i)^(?!.*\bnot\b).*\b(?:yes|true|correct|valid|supported)\b")


def _first(seen: str) -> str:
    return _cut(seen[:EDGE_CHARS], keep_last=False) if len(seen) > EDGE_CHARS else seen


def _last(seen: str) -> str:
    return _cut(seen[-EDGE_CHARS:], keep_last=True) if len(seen) > EDGE_CHARS else seen


def _cut(piece: str, keep_last: bool) -> str:
    """Drop the sentence that the cut broke, unless it is all there is."""
    parts = [part for part in _SENTENCE_END.split(piece) if part.strip()]
    if len(parts) < 2:
        return piece.strip()
    return "\n".join(parts[1:] if keep_last else parts[:-1]).strip()


_CODE_LINE = re.compile(
    r"^\s*(?:def \w+\(|class \w+[:({]|import [\w.]+$|from [\w.]+ import |#include|public (?:static|class|void)|"
    r"function \w*\(|(?:const|let|var) \w+ ?=|fn \w+\(|func \w+\(|return [^.]+;?$|if ?\(.*\) ?\{|for ?\(.*;|"
    r"while ?\(.*\{|select .+ from |insert into |create table |<(?:html|div|script|body|head|\?php|template|!doctype)|"
    r"traceback \(most|\$ \w+|#!/|package main|using namespace|.*\w\(.*\);\s*$|.*[{};]\s*$|.*=> ?[{(]|>>> |"
    r"at [\w.$]+\(.*:\d+\)|\s*file \".*\", line \d+)",
    re.MULTILINE,
)
_TURN = re.compile(r"^ ?[A-ZÀ-ÖА-Я#\[][\w .'#\]-]{0,24}: \S", re.MULTILINE)
_OPTION = re.compile(r"(?:^|\s)[(\[]?([a-eA-E1-5])[).\]:] ?\S")
_LATEX = re.compile(
    r"\\(?:frac|sqrt|boxed|text|begin|mathbb|mathbf|cdot|sum|int|pi|theta|left|angle|log|le|ge)\b|\[asy\]|"
    r"\$[^$\n]{1,80}\$"
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_NUMBER_WORD = re.compile(
    r"\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|hundred|thousand|half|twice|"
    r"double|triple|dozen)\b"
)
_SENTENCES = re.compile(r"[.!?。\uff01\uff1f](?:\s|$|[\"'”])|[。\uff01\uff1f]")


def _options(seen: str) -> bool:
    marks = [mark.lower() for mark in _OPTION.findall(seen)]
    return {"a", "b", "c"} <= set(marks) or (seen.count("\n- ") >= 3 and "?" in seen)


_QUOTED = re.compile(r"[\"“«„「][^\"”»“」]{3,}[\"”»“」]")
_COLON = re.compile(r"[:\uff1a]\s*\n|^[^\n:]{3,160}[:\uff1a] \S")
_NON_LATIN = re.compile(r"[\u0400-\u04ff\u0600-\u06ff\u3040-\u9fff]")


def _count(pattern: re.Pattern[str], text: str) -> int:
    return len(pattern.findall(text))


_Probe = Callable[[str, str, int, int], bool]
FLAGS: dict[str, _Probe] = {
    "fence": lambda seen, low, size, words: "```" in seen or "~~~" in seen,
    "code": lambda seen, low, size, words: _count(_CODE_LINE, low) >= (1 if words < 60 else 2),
    "long": lambda seen, low, size, words: size > 700,
    "document": lambda seen, low, size, words: size > 420 and words > 70,
    "short": lambda seen, low, size, words: words <= 14,
    "one_line": lambda seen, low, size, words: "\n" not in seen,
    "dialogue": lambda seen, low, size, words: _count(_TURN, seen) >= 3,
    "options": lambda seen, low, size, words: _options(seen),
    "latex": lambda seen, low, size, words: bool(_LATEX.search(seen)),
    "number": lambda seen, low, size, words: bool(_NUMBER.search(low)),
    "numbers": lambda seen, low, size, words: _count(_NUMBER, low) + _count(_NUMBER_WORD, low) >= 2,
    "story": lambda seen, low, size, words: _count(_SENTENCES, seen) >= 2 and words >= 15,
    "question": lambda seen, low, size, words: seen.rstrip(" \"')").endswith(("?", "\uff1f")),
    "quoted": lambda seen, low, size, words: bool(_QUOTED.search(seen)),
    "colon": lambda seen, low, size, words: bool(_COLON.search(seen)),
    "non_latin": lambda seen, low, size, words: bool(_NON_LATIN.search(seen)),
    "letters": lambda seen, low, size, words: bool(re.search(r"\w", seen)),
}


def _flags(seen: str, low: str, length: int, words: int) -> list[str]:
    return [name for name, probe in FLAGS.items() if probe(seen, low, length, words)]
