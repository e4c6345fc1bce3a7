"""Requests as words: spelling made uniform, number words made figures. Everything a grammar reads comes from here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from functools import cache
from importlib.resources import files
from itertools import takewhile

import yaml

MAX_CHARS = 400
"""Longer requests are no plain computation."""
MAX_TOKENS = 64

_SPELLING = str.maketrans(
    {"\u2019": "'", "\u2018": "'", "\u00d7": "*", "\u00f7": "/", "\u2212": "-", "\u2013": "-", "\u22c5": "*"}
    | {"\u00b2": "^2", "\u00b3": "^3", "\u221a": " sqrt ", "\u03c0": " pi ", "\u00b0": " degrees ", "\u00a0": " "}
)
_PIECE = re.compile(
    r"0x[0-9a-f]+|0b[01]+|\d{1,2}:\d\d(?::\d\d)?|\d{4}-\d\d?-\d\d?|\d\d?/\d\d?/\d{4}|"
    r"\d+(?:st|nd|rd|th)\b|(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[+-]?\d+\b)?|\.\d+|"
    r"(?<!\w)\.[a-z]\w{0,5}\b|\"[^\"]+\"|(?<![\w./])(?:~|\.{1,2})?/[\w.~/-]*[\w~/-](?<!\d/)|\*\*|"
    r"a\.m\.|p\.m\.|u\.s\.|[^\W\d_]+(?:'[a-z]+)?|\S",
    re.IGNORECASE,
)
_UNITS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fourty": 40,
    "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ORDINALS = {
    "first": 1, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10,
    "eleventh": 11, "twelfth": 12, "twentieth": 20, "thirtieth": 30,
}  # fmt: skip
_FIGURE = re.compile(r"\d+(?:\.\d+)?")
_MONEY = re.compile(r"[$£€](?=\s?\d)")


def words_of(text: str) -> list[str] | None:
    """The request's words in lower case, numbers as plain decimals; None where it is too long to be a computation."""
    if not text or len(text) > MAX_CHARS or "\n" in text.strip():
        return None
    pieces = [_plain(piece) for piece in _PIECE.findall(_MONEY.sub("$ ", text.strip().translate(_SPELLING)))]
    return _figures(pieces) if len(pieces) <= MAX_TOKENS else None


def pieces_of(phrase: str) -> list[str]:
    """A grammar's phrase as the words that a request holding it would have."""
    return _PIECE.findall(phrase.lower().translate(_SPELLING))


@cache
def vocabulary(terminal: str) -> Mapping[tuple[str, ...], str]:
    """Phrases by their words. `UNIT` gives the unit's name in pint, `CITY` the IANA time zone; `BEFORE` and `AFTER` are
    the carrier phrases around a request."""
    name = {"UNIT": "units", "CITY": "places"}.get(terminal, "carrier")
    text = files("rolecall.config").joinpath(f"routing/{name}.yaml").read_text("utf-8")
    table: dict[str, list[str]] = yaml.safe_load(text)
    if name == "carrier":
        return {tuple(pieces_of(phrase)): terminal for phrase in table[terminal.lower()]}
    return {tuple(pieces_of(phrase)): meaning for meaning, phrases in table.items() for phrase in phrases}


def _plain(piece: str) -> str:
    if piece[0] == '"' or "/" in piece[:3]:  # a path, whose capitals count
        return piece
    piece = piece.lower()
    if piece[0].isdigit() and "," in piece:
        return piece.replace(",", "")
    return "0" + piece if re.fullmatch(r"\.\d+", piece) else piece


def _figures(words: list[str]) -> list[str]:
    """Replace runs of number words by figures: "two hundred and five" is 205, "3.5 million" 3500000, "fifth" 5th."""
    out: list[str] = []
    position = 0
    while position < len(words):
        value, taken, ordinal = _number(words, position)
        if taken:
            out.append(f"{value:f}" + ("th" if ordinal else ""))
            position += taken
        else:
            out.append(words[position])
            position += 1
    return out


def _number(words: list[str], start: int) -> tuple[Decimal, int, bool]:
    """The number that begins at `start`: its value, how many words it takes (0: none), whether it is an ordinal."""
    if _FIGURE.fullmatch(words[start]):
        value, taken = Decimal(words[start]), 1
        while start + taken < len(words) and words[start + taken] in _SCALES:
            value *= _SCALES[words[start + taken]]
            taken += 1
        return value, taken, False
    if words[start] in _ORDINALS:
        return Decimal(_ORDINALS[words[start]]), 1, True
    total, group, position, last = 0, 0, start, None
    while position < len(words):
        word = words[position]
        if word in _UNITS and (last is None or last == "scale" or (last == "tens" and 0 < _UNITS[word] < 10)):
            group += _UNITS[word]
            last = "tens" if _UNITS[word] >= 20 else "unit"
        elif word == "hundred" and last == "unit" and 0 < group < 100:
            group, last = group * 100, "scale"
        elif word in _SCALES and last is not None and group and word != "hundred":
            total, group, last = total + group * _SCALES[word], 0, "scale"
        elif word == "a" and last is None and position + 1 < len(words) and words[position + 1] in _SCALES:
            group, last = 1, "unit"
        elif word in ("and", "-") and last in ("scale", "tens") and _continues(words, position + 1, last, word):
            pass
        elif word in _ORDINALS and last in ("tens", "scale"):
            return Decimal(total + group + _ORDINALS[word]), position + 1 - start, True
        else:
            break
        position += 1
    taken = position - start
    value = Decimal(total + group)
    if taken and words[position : position + 1] == ["point"]:
        digits = list(takewhile(lambda digit: digit < 10, (_UNITS.get(word, 10) for word in words[position + 1 :])))
        if digits:
            value += Decimal("0." + "".join(map(str, digits)))
            taken += 1 + len(digits)
    return value, taken, False


def _continues(words: list[str], position: int, last: str, joint: str) -> bool:
    """Whether "and" or a hyphen joins what comes next to the number: "hundred and five", "twenty-five"."""
    if position >= len(words):
        return False
    following = words[position]
    if joint == "-":
        return last == "tens" and (0 < _UNITS.get(following, 0) < 10 or following in _ORDINALS)
    return last == "scale" and following in _UNITS
