"""Which agent can answer a request exactly: `claim` parses all of it, `compute` works the value out afterwards."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime

from ..contract import Agent, Claim
from . import calculator, datetimes, files, formulas, system, units
from .contract import AgentContext, Parse, Value
from .grammar import grammar
from .words import words_of

_PROBE = AgentContext(now=datetime(2024, 1, 1, 12, tzinfo=UTC))
"""A fixed day, on which a parse must have a value to be sound: no 31 February, no miles in pounds."""
_STAGES: dict[str, tuple[Agent, Callable[[Parse, AgentContext], Value | None]]] = {
    "files": (Agent.FILES, files.compute),
    "system": (Agent.SYSTEM, system.compute),
    "datetimes": (Agent.DATETIME, datetimes.compute),
    "units": (Agent.UNITS, units.compute),
    "formulas": (Agent.CALCULATOR, formulas.compute),
    "calculator": (Agent.CALCULATOR, calculator.compute),
}
"""Each grammar's agent, in the order in which they are asked."""
_DEFINITION = re.compile(
    r"\bwhat(?: is|'s| are)? (?!.*\b(?:my|this|the|current|currently|now|free|available|left|used|using|running|"
    r"installed|loaded|models|index|have|has|much|many|am|remaining|total|here|resident|version)\b)"
)
"""Of a machine, "What is cpu usage?" asks for a definition; "what is the cpu usage?" does not."""
_NAMES = re.compile(
    r"(?i)^\W*(?:(?:1[0-2]|0?[1-9])/(?:3[01]|[12]\d|0?[1-9])\W*$|"
    r"(?:what(?:'s| is| was| are|s)? )?(?:9/11|24/7|7/11|50/50|20/20|4/20|1/1|\d+(?:-\d+){2,}|"
    r"\d{3}-\d{4}|[12]\d{3}-[12]\d{3}|10-4\W*$|\d+-[a-z]+)\b)"
)
"""Figures that are names: a bare date, an event, a slogan, a telephone number, a span of years, a verse form."""
_DOUBTFUL = re.compile(
    r"^(?!.*\d!\s*[-+*/]).*[-+*/x^].*\d\s*!|!!|(?<![A-Za-z])(?:[KMGT]b|[KMGT]Bps|m[WJ]|mPa|M[VA]|N[mM]|Mg)(?![A-Za-z])"
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
    for name, (agent, _) in _STAGES.items():
        if (name == "system" and _DEFINITION.search(line)) or (
            agent is Agent.CALCULATOR and not re.search(r"\d|\bhex", line)
        ):
            continue
        said = words_of(text, paths=True) or [] if name == "files" else words
        parse = next((parse for parse in grammar(name).parses(said) if _is_sound(name, parse)), None)
        if parse is not None:
            expression = json.dumps([name, parse], ensure_ascii=False, separators=(",", ":"))
            return Claim(agent=agent, expression=expression)
    return None


def _is_sound(name: str, parse: Parse) -> bool:
    """Whether a parse asks for what can be had. Machine and files are not looked at before the decision."""
    if name == "calculator":
        return calculator.is_computation(parse)
    return name in ("files", "system") or _STAGES[name][1](parse, _PROBE) is not None


def compute(claimed: Claim, context: AgentContext) -> Value | None:
    """The claimed request's value with its working; None where there is none (say, a division by zero).

    Blocks for as long as reading the machine or a folder takes: run it in a thread.
    """
    name, parse = json.loads(claimed.expression)
    return _STAGES[name][1](parse, context)
