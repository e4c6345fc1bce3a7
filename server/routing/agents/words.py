"""Requests as words: spelling made uniform, number words made figures. Everything a grammar reads comes from here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import cache
from importlib.resources import files

from rolecall.config.models import packaged

MAX_CHARS = 400
"""Longer requests are no plain computation."""
MAX_TOKENS = 64

_SPELLING = str.maketrans("\u2019\u2018\u00d7\u00f7\u2212\u2013\u22c5\u00bf\u00a1\u00a0", "''*/--*   ") | str.maketrans(
    {"\u2192": "->", "\u00b2": "^2", "\u00b3": "^3", "\u221a": " sqrt ", "\u03c0": " pi ", "\u00b0": " degrees "}
)
_PIECE = re.compile(
    r"0x[0-9a-f]+|0b[01]+|0o[0-7]+|\d{1,2}:\d\d(?::\d\d)?|\d{4}-\d\d?-\d\d?|\d\d?/\d\d?/\d{4}|"
    r"\d+(?:st|nd|rd|th)\b|(?<![\d,])\d+,\d{1,2}(?![\d,])|(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[+-]?\d+\b)?|\.\d+|"
    r"(?<!\w)\.[a-z]\w{0,5}\b|\"[^\"]+\"|(?<![\w./])(?:~|\.{1,2})?/[\w.~/-]*[\w~/-](?<!\d/)|\*\*|"
    r"(?:[mck]?m|ft|in)[23]\b|a\.m\.|p\.m\.|u\.s\.|[^\W\d_]+(?:'[^\W\d_]+)?|\S",
    re.IGNORECASE,
)
_PATH_PIECE = re.compile(
    r"(?:[A-Za-z_][\w-]*/)+(?:[\w.-]*\w)?|[A-Za-z_][\w-]*\.[A-Za-z]\w{0,5}\b|" + _PIECE.pattern, re.I
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
_NUMBER_WORDS = {*_UNITS, *_SCALES, *_ORDINALS}
_APART = "\x1f"
"""Stands between words where they are read as one line: a quoted word may hold spaces."""


def _any(names: Iterable[str]) -> str:
    return f"(?:{'|'.join(sorted(names, key=len, reverse=True))})"


def _number_pattern() -> re.Pattern[str]:
    """Number words or a figure with scales; an ordinal joins what ends in tens, a hundred or more, not "one third"."""
    tens, digits = _any(n for n in _UNITS if _UNITS[n] >= 20), _any(n for n in _UNITS if 0 < _UNITS[n] < 10)
    scale = _any(name for name in _SCALES if name != "hundred")
    small = f"(?:{tens}(?:(?: -)? {digits})?|{_any(_UNITS)})"
    group = f"(?:(?:{small}|a) hundred(?:(?: and)? {small})?|{small}|a(?= {scale}))"
    cardinal = f"(?:{group}(?: {scale})+(?: and)? )*{group}(?: {scale})*"
    joined = f"{cardinal}(?:(?<=ty)|(?<=hundred)|(?<=thousand)|(?<=illion))(?: -)? "
    ordinal = f"(?P<ordinal>(?:{joined})?{_any(_ORDINALS)})"
    spoken = f"{cardinal}(?: point(?: (?:zero|{digits}))+)?"
    figure = rf"\d+(?:\.\d+)?(?: {_any(_SCALES)})*"
    pattern = f"(?<![^ ])(?:{ordinal}|{spoken}|{figure})(?![^ ])"
    return re.compile(pattern.replace(" ", _APART))


_NUMBER = _number_pattern()
_MONEY = re.compile(r"[$£€](?=\s?\d)")


def words_of(text: str, paths: bool = False) -> list[str] | None:
    """The request's words in lower case, numbers as plain decimals; None where it is too long to be a computation.

    With `paths`, "docs/a" and "notes.md" are one word each: elsewhere they are a quotient and a typing error.
    """
    if not text or len(text) > MAX_CHARS or "\n" in text.strip():
        return None
    pattern = _PATH_PIECE if paths else _PIECE
    pieces = [_plain(piece, paths) for piece in pattern.findall(_MONEY.sub("$ ", text.strip().translate(_SPELLING)))]
    return _figures(_uniform(pieces)) if len(pieces) <= MAX_TOKENS else None


def pieces_of(phrase: str) -> list[str]:
    """A grammar's phrase as the words that a request holding it would have."""
    return _PIECE.findall(phrase.lower().translate(_SPELLING))


@cache
def vocabulary(terminal: str) -> Mapping[tuple[str, ...], str]:
    """Phrases by their words. `UNIT` gives the unit's name in pint, `CITY` the IANA time zone, `INSTEAD` the
    English for a foreign phrase; `BEFORE` and `AFTER` are the carrier phrases around a request, `SPELT` more words to
    mend."""
    name = {"UNIT": "units", "CITY": "places"}.get(terminal, "carrier")
    table = packaged(f"routing/{name}.yaml")
    if terminal == "INSTEAD":
        table = table["instead"]
    elif name == "carrier":
        return {tuple(pieces_of(phrase)): terminal for phrase in table[terminal.lower()]}
    return {tuple(pieces_of(phrase)): meaning for meaning, phrases in table.items() for phrase in phrases}


def _plain(piece: str, paths: bool) -> str:
    if piece[0] == '"' or "/" in piece or (paths and "." in piece[1:]):  # a path, whose capitals count
        return piece
    piece = piece.lower()
    if piece[0].isdigit() and re.search(r",\d{3}", piece):
        return piece.replace(",", "")
    return "0" + piece if re.fullmatch(r"\.\d+", piece) else piece


def _uniform(pieces: list[str]) -> list[str]:
    """Slips in filler words mended, foreign phrases in English."""
    instead, position = vocabulary("INSTEAD"), 0
    found: list[str] = []
    pieces = [_slips().get(piece, piece) for piece in pieces]
    while position < len(pieces):
        sizes = range(6, 0, -1) if pieces[position] in _foreign() else ()
        size = next((n for n in sizes if tuple(pieces[position : position + n]) in instead), 0)
        phrase = tuple(pieces[position : position + max(size, 1)])
        found += pieces_of(instead[phrase]) if size else phrase
        position += len(phrase)
    decimals = "." if found != pieces else " , "  # "2,5 Meter" but "the mean of 1,2"
    return [
        word for piece in found for word in (piece.replace(",", decimals).split() if piece[0].isdigit() else [piece])
    ]


@cache
def _foreign() -> set[str]:
    return {phrase[0] for phrase in vocabulary("INSTEAD")}


@cache
def _slips() -> Mapping[str, str]:
    """Filler words by what they become with two letters exchanged, or (long ones) one inside left out or doubled."""
    spelt = {word for kind in ("BEFORE", "AFTER", "SPELT") for phrase in vocabulary(kind) for word in phrase}
    known = (
        spelt
        | _NUMBER_WORDS
        | {word for kind in ("UNIT", "CITY", "INSTEAD") for phrase in vocabulary(kind) for word in phrase}
    )
    for grammar in files("rolecall.server.routing.agents").iterdir():
        known |= set(re.findall(r"[a-z]+", grammar.read_text("utf-8"))) if grammar.name.endswith(".lark") else set()
    table = {}
    for word in sorted(word for word in spelt if len(word) > 2 and word.isalpha()):
        for at in range(len(word) - 1):
            table[word[:at] + word[at + 1] + word[at] + word[at + 2 :]] = word
            if at and len(word) > 4:
                table |= {word[:at] + word[at + 1 :]: word, word[: at + 1] + word[at:]: word}
    return {slip: word for slip, word in table.items() if slip not in known}


def _figures(words: list[str]) -> list[str]:
    """Replace runs of number words by figures: "two hundred and five" is 205, "3.5 million" 3500000, "fifth" 5th."""
    return _NUMBER.sub(_figure, _APART.join(words)).split(_APART) if words else []


def _figure(number: re.Match[str]) -> str:
    total, group = Decimal(0), Decimal(0)
    whole, _, decimals = number[0].partition(f"{_APART}point{_APART}")
    for word in whole.split(_APART):
        if word[0].isdigit():
            group = Decimal(word)
        elif word == "hundred":
            group *= 100
        elif word in _SCALES:
            total = total + group * _SCALES[word] if group else total * _SCALES[word]
            group = Decimal(0)
        elif word not in ("and", "-"):
            group += 1 if word == "a" else _UNITS.get(word) or _ORDINALS.get(word, 0)
    if decimals:
        group += Decimal("0." + "".join(str(_UNITS[digit]) for digit in decimals.split(_APART)))
    return f"{total + group:f}" + ("th" if number["ordinal"] else "")
