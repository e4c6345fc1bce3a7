"""Which agent can answer a request exactly: `claim` parses all of it, `compute` works the value out afterwards."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from ..contract import Agent, AgentAnswer, Claim
from . import calculator, datetimes, files, formulas, system, units
from .contract import AgentContext, Parse, Value
from .grammar import grammar
from .words import words_of

_PROBE = AgentContext(now=datetime(2024, 1, 1, 12, tzinfo=UTC))
"""A fixed day, on which a parse must have a value to be sound: no 31 February, no miles in pounds."""


@dataclass(frozen=True, slots=True)
class _Stage:
    """One grammar: `fits` is a cheap look before parsing; `sound` tells whether a parse asks for what can be had."""

    agent: Agent
    fits: re.Pattern[str]
    compute: Callable[[Parse, AgentContext], Value | None]
    sound: Callable[[Parse], bool] = lambda parse: True


_STAGES = {
    "files": _Stage(
        Agent.FILES,
        re.compile(r"\b(?:files?|folders?|director|lines|documents?|size|large|big|space)"),
        files.compute,
    ),
    "system": _Stage(
        Agent.SYSTEM,
        # "What is cpu usage?" asks for a definition; "what is the cpu usage?" does not.
        re.compile(
            r"^(?!.*\bwhat(?: is|'s| are)? (?!.*\b(?:my|this|the|current|currently|now|free|available|left|used|using|"
            r"running|installed|loaded|have|has|much|many|am|remaining|total|here|resident|version)\b)).*"
            r"\b(?:cpus?|cores|processors?|chip|ram|memory|disk|storage|drive|ssd|space|swap|os|operating|macos|linux|"
            r"kernel|uptime|been|boot|host|names?|architecture|python|process|program|app|models?|index|busy|load|threads|"
            r"last|platform|version|system|usage)"
        ),
        system.compute,
    ),
    "datetimes": _Stage(
        Agent.DATETIME,
        re.compile(
            r"\b(?:time|date|day|days|weeks?|months?|years?|hours?|minutes?|seconds|today|tomorrow|yesterday|noon|midnight|"
            r"clock|am|pm|hora|heure|uhr|fecha|spät|час|число|день|дата|datum|tag|jour|día|dia)|[ap]\.m\.|\d ?[ap]m\b|"
            r"\d:\d\d",
        ),
        datetimes.compute,
        lambda parse: datetimes.compute(parse, _PROBE) is not None,
    ),
    "units": _Stage(
        Agent.UNITS,
        re.compile(r"."),
        lambda parse, context: units.compute(parse),
        lambda parse: units.compute(parse) is not None,
    ),
    "formulas": _Stage(
        Agent.CALCULATOR,
        re.compile(
            r"^(?=.*\d).*\b(?:bmi|body mass|tip|gratuity|tax|discount|interest|density|batting|area|volume|circumference|"
            r"perimeter|hypotenuse|speed|mpg|split|markup|percent|triangle|bill|mileage|fuel)"
        ),
        lambda parse, context: formulas.compute(parse),
        lambda parse: formulas.compute(parse) is not None,
    ),
    "calculator": _Stage(
        Agent.CALCULATOR,
        re.compile(r"\d"),
        lambda parse, context: calculator.compute(parse),
        calculator.is_computation,
    ),
}
_NAMES = re.compile(
    r"(?i)^\W*(?:what(?:'s| is| was| are|s)? )?(?:9/11|24/7|7/11|50/50|20/20|4/20|1/1|\d{1,3}(?:-\d{2,4}){2,}|\d+-\d+-\d+|"
    r"\d{3}-\d{4}|[12]\d{3}-[12]\d{3})\b"
)
"""Figures that are names: an event, a slogan, a telephone number, a span of years, a verse form."""
_DOUBTFUL = re.compile(
    r"[-+*/x^].*\d\s*!|!!|(?<![A-Za-z])(?:[KMGT]b(?:ps)?|mW|N[mM]|Mg)(?![A-Za-z])"
)
"""What cannot be told: a factorial or an exclamation, a unit that its capitals distinguish (Mb from MB, mW from MW)."""
_CURRENCIES = re.compile(r"(?i)(\$|\bdollars?|\bbucks|\busd)|(€|\beuros?)|(£|\bpounds sterling)|(\bcents)")


def claim(text: str) -> Claim | None:
    """The agent whose grammar accounts for the whole request, with the parse; pure, and None for any other text."""
    words = words_of(text)
    if not words or _NAMES.match(text) or _DOUBTFUL.search(text):
        return None
    if len({match.lastindex for match in _CURRENCIES.finditer(text)}) > 1:
        return None
    line = " ".join(words)
    for name, stage in _STAGES.items():
        if stage.fits.search(line):
            parse = next(filter(stage.sound, grammar(name).parses(words)), None)
            if parse is not None:
                expression = json.dumps([name, parse], ensure_ascii=False, separators=(",", ":"))
                return Claim(agent=stage.agent, expression=expression)
    return None


def compute(claimed: Claim, context: AgentContext) -> AgentAnswer | None:
    """The claimed request's value with its working; None where there is none, and then a model answers.

    Blocks for as long as reading the machine or a folder takes: run it in a thread.
    """
    name, parse = json.loads(claimed.expression)
    value = _STAGES[name].compute(parse, context)
    return AgentAnswer(agent=claimed.agent, value=value.text, working=value.working) if value else None
