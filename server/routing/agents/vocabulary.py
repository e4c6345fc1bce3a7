"""Words that grammars take from tables: units of measure and places with their time zones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files

import yaml

from .words import pieces_of


@cache
def _table(file: str) -> dict[str, list[str]]:
    text = files("rolecall.config").joinpath("routing").joinpath(file).read_text("utf-8")
    table: dict[str, list[str]] = yaml.safe_load(text)
    return table


@cache
def vocabulary(terminal: str) -> Mapping[tuple[str, ...], str]:
    """Phrases by their words. `UNIT` gives the unit's name in pint, `CITY` the IANA time zone; `BEFORE` and `AFTER` are
    the carrier phrases around a request."""
    if terminal in ("BEFORE", "AFTER"):
        return {tuple(pieces_of(phrase)): terminal for phrase in _table("carrier.yaml")[terminal.lower()]}
    table = _table({"UNIT": "units.yaml", "CITY": "places.yaml"}[terminal])
    return {tuple(pieces_of(phrase)): name for name, phrases in table.items() for phrase in phrases}


def meaning(terminal: str, phrase: str) -> str:
    return vocabulary(terminal)[tuple(pieces_of(phrase))]
