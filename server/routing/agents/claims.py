"""Which agent can answer a request exactly: `claim` parses all of it, `compute` works the value out afterwards."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from ..contract import Agent, AgentAnswer, Claim
from . import calculator, datetimes, files, formulas, system, units
from .contract import AgentContext, Parse, Value
from .grammar import grammar
from .words import words_of


@dataclass(frozen=True, slots=True)
class _Stage:
    """One grammar: `fits` is a cheap look before parsing; `sound` tells whether a parse asks for what can be had."""

    agent: Agent
    grammar: str
    fits: re.Pattern[str]
    sound: Callable[[Parse], bool]
    compute: Callable[[Parse, AgentContext], Value | None]


_STAGES = (
    _Stage(
        Agent.FILES,
        "files",
        re.compile(r"\b(?:files?|folders?|director|lines|documents?|notes|scripts|size|large|big|space)"),
        lambda parse: True,
        files.compute,
    ),
    _Stage(
        Agent.SYSTEM,
        "system",
        # "What is cpu usage?" asks for a definition; "what is the cpu usage?" does not.
        re.compile(
            r"^(?!.*\bwhat(?: is|'s| are)? (?!.*\b(?:my|this|the|current|currently|now|free|available|left|used|using|"
            r"running|installed|loaded|have|has|much|many|am|remaining|total|here|resident|version)\b)).*"
            r"\b(?:cpus?|cores|processors?|chip|ram|memory|disk|storage|drive|ssd|space|swap|os|operating|macos|linux|"
            r"kernel|uptime|been|boot|host|names?|architecture|python|process|program|app|models?|index|busy|load|threads|"
            r"last|platform|version|system|usage)"
        ),
        lambda parse: True,
        system.compute,
    ),
    _Stage(
        Agent.DATETIME,
        "datetimes",
        re.compile(
            r"\b(?:time|date|day|days|weeks?|months?|years?|hours?|minutes?|today|tomorrow|yesterday|noon|midnight|"
            r"clock|am|pm|hora|heure|uhr|fecha|spät|час|число|день|дата|datum|tag|jour|día|dia)|[ap]\.m\.|\d ?[ap]m\b",
        ),
        datetimes.is_sound,
        datetimes.compute,
    ),
    _Stage(Agent.UNITS, "units", re.compile(r"."), units.is_convertible, lambda parse, context: units.compute(parse)),
    _Stage(
        Agent.CALCULATOR,
        "formulas",
        re.compile(
            r"\b(?:bmi|body mass|tip|gratuity|tax|discount|interest|density|batting|area|volume|circumference|"
            r"perimeter|hypotenuse|speed|mpg|split|markup|percent|triangle|bill|mileage|fuel)"
        ),
        formulas.is_sound,
        lambda parse, context: formulas.compute(parse),
    ),
    _Stage(
        Agent.CALCULATOR,
        "calculator",
        re.compile(r"."),
        calculator.is_computation,
        lambda parse, context: calculator.compute(parse),
    ),
)
_NO_ARITHMETIC = re.compile(
    r"^(?:what(?:'s| is| was| are|s)? )?(?:9/11|24/7|7/11|50/50|20/20|4/20|1/1|\d{1,3}(?:-\d{2,4}){2,}|\d+-\d+-\d+)\b"
)
"""Figures that are names: an event, a slogan, a telephone number, a verse form."""
_SHOUTED = re.compile(r"[-+*/x^].*\d\s*!")
"""A factorial or an exclamation: cannot be told."""


def claim(text: str) -> Claim | None:
    """The agent whose grammar accounts for the whole request, with the parse; pure, and None for any other text."""
    words = words_of(text)
    if not words or _NO_ARITHMETIC.match(text.strip().lower()) or _SHOUTED.search(text):
        return None
    line = " ".join(words)
    has_figure = any(char.isdigit() for char in line)
    for stage in _STAGES:
        if not stage.fits.search(line) or (stage.grammar in ("calculator", "formulas") and not has_figure):
            continue
        parse = next(filter(stage.sound, grammar(stage.grammar).parses(words)), None)
        if parse is not None:
            expression = json.dumps([stage.grammar, parse], ensure_ascii=False, separators=(",", ":"))
            return Claim(agent=stage.agent, expression=expression)
    return None


def compute(claimed: Claim, context: AgentContext) -> AgentAnswer | None:
    """The claimed request's value with its working; None where there is none, and then a model answers.

    Blocks for as long as reading the machine or a folder takes: run it in a thread.
    """
    name, parse = json.loads(claimed.expression)
    stage = next(stage for stage in _STAGES if stage.grammar == name)
    value = stage.compute(parse, context)
    return AgentAnswer(agent=claimed.agent, value=value.text, working=value.working) if value else None
