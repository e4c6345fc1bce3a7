"""Words, sentences and numbers of a text, read by linear patterns: 100,000 characters take a few tenths of a second."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

MAX_CHARS = 100_000
"""Longer texts are read up to here."""

_WORD = re.compile("[^\\W_]+(?:['\u2019][^\\W_]+)*")
_SENTENCE_END = re.compile("(?<=[.!?\u3002\uff01\uff1f])[\\s\"'\u201d\u2019)\\]]{1,9}(?=\\S)|\n+")
_NUMBER = re.compile(
    "(?<![\\w.,])([$\u20ac\u00a3]?) ?(\\d[\\d,]{0,40})(\\.\\d{1,20})?(?!\\d)[ -]{0,2}(%|[^\\W\\d_]{1,14})?"
)
_CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBER_WORDS: dict[str, int] = {
    **{word: value for value, word in enumerate(_ONES.split())},
    **{word: 10 * value for value, word in enumerate(_TENS.split(), 2)},
}
SCALES = {"hundred": 10**2, "thousand": 10**3, "k": 10**3, "million": 10**6, "m": 10**6, "billion": 10**9, "bn": 10**9}
_FUNCTION_WORDS = (
    "a an the this that these those it its he she they them his her their him hers we us our you your i my me who whom "
    "whose which what when where why how is are was were be been being am do does did done has have had having will "
    "would can could shall should may might must of in on at by to from for with about as into over after before "
    "between under up down out off than then so and or but if while because also there here such s t just only very "
    "both each other some any all more most new one first"
)
STOP = frozenset(_FUNCTION_WORDS.split())
_DENIALS = "not no never none nobody nothing neither nor without cannot unable fails failed denied denies"
NEGATIONS = frozenset(_DENIALS.split())


@dataclass(frozen=True)
class Number:
    """A number of a text: its value with scale words applied, and the unit that follows ("%", "km", a noun, or "")."""

    value: Fraction
    unit: str


def words(text: str) -> list[str]:
    """Lower-case words; Chinese, Japanese and Korean runs as pairs of characters."""
    found: list[str] = []
    for word in _WORD.findall(text[:MAX_CHARS].lower()):
        if _CJK.search(word):
            found.extend(word[at : at + 2] for at in range(max(1, len(word) - 1)))
        else:
            found.append(word.replace("\u2019", "'"))
    return found


@lru_cache(maxsize=50_000)
def stem(word: str) -> str:
    """A word without its commonest English endings: enough that "directed" meets "director" and "cities" "city"."""
    word = word.removesuffix("'s").removesuffix("s'")
    if len(word) < 5 or not word.isascii():
        return word.removesuffix("s") if len(word) > 3 else word
    for ending, put in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)] + put
            break
    return word.removesuffix("e")


_ENDINGS = (
    ("ational", "ate"), ("ations", "ate"), ("ation", "ate"), ("ments", ""), ("ment", ""), ("iness", "y"), ("ness", ""),
    ("ingly", ""), ("edly", ""), ("ings", ""), ("ing", ""), ("ied", "y"), ("ies", "y"), ("ors", ""), ("ers", ""),
    ("or", ""), ("er", ""), ("ed", ""), ("ly", ""), ("es", ""), ("s", ""),
)  # fmt: skip


def content(text: str) -> list[str]:
    """The stems that carry meaning, in order, negations and function words left out."""
    return [
        stem(word) for word in words(text) if word not in STOP and word not in NEGATIONS and not word.endswith("n't")
    ]


def sentences(text: str) -> list[str]:
    return [piece for piece in (part.strip() for part in _SENTENCE_END.split(text[:MAX_CHARS])) if piece]


def denied(text: str) -> frozenset[str]:
    """The stems that a negation denies: the content words among the three words after it."""
    said = words(text)
    after = (said[at + 1 : at + 4] for at, word in enumerate(said) if word in NEGATIONS or word.endswith("n't"))
    return frozenset(stem(word) for near in after for word in near if word not in STOP)


def numbers(text: str) -> list[Number]:
    """The numbers of a text, in figures and in words up to ninety-nine, with scale ("2.5 million") and unit."""
    text = text[:MAX_CHARS]
    found = []
    for currency, whole, decimals, after in _NUMBER.findall(text):
        value = Fraction(whole.replace(",", "") + decimals)
        unit = after.lower()
        if unit in SCALES:
            value, unit = value * SCALES[unit], ""
        found.append(Number(value, currency or ("%" if unit in ("%", "percent", "per") else stem(unit))))
    spelt = _WORD.findall(text.lower())
    for at, word in enumerate(spelt):
        if word in NUMBER_WORDS and word != "one":
            value, step = Fraction(NUMBER_WORDS[word]), 1
            after = spelt[at + 1] if at + 1 < len(spelt) else ""
            if value >= 20 and 0 < NUMBER_WORDS.get(after, 0) < 10:
                value, step = value + NUMBER_WORDS[after], 2
            after = spelt[at + step] if at + step < len(spelt) else ""
            found.append(Number(value * SCALES.get(after, 1), "" if after in SCALES else stem(after)))
    return found
