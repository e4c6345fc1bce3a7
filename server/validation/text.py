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
_MARKS = re.compile(r"^[ \t]{0,8}(?:\d{1,3}[.)]|[-*\u2022])(?=[ \t])|[ \t]?\[\d{1,3}\]", re.MULTILINE)
_NUMBER = re.compile(
    "(?<![\\w.,])([$\u20ac\u00a3]?) ?(\\d[\\d,]{0,40})(\\.\\d{1,20})?(?!\\d)([ -]{0,2})(%|per cent|[^\\W\\d_]{1,14})?"
)
_GROUPED = re.compile(r"(?<=\d),(?=\d{3})")
_ROUGHLY = re.compile(r"\b(?:about|around|approximately|nearly|almost|over|roughly|some|than|least|up to) ?$")
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
    "a an the this that these those it its he she they them him his her their hers we us our you your i my me who whom "
    "whose which what when where why how is are was were be been being am do does did done has have had having will "
    "would can could shall should may might must of in on at by to from for with about as into over after before "
    "between under up down out off than then so and or but if while because also there here such s t just only very "
    "both each other some any all more most new one first yes ok okay"
)
STOP = frozenset(_FUNCTION_WORDS.split())
_DENIALS = "not no never none nobody nothing neither nor without cannot unable fails failed denied denies"
NEGATIONS = frozenset(_DENIALS.split())
_ENDINGS = (
    ("ational", "ate"), ("ations", "ate"), ("ation", "ate"), ("ments", ""), ("ment", ""), ("iness", "y"), ("ness", ""),
    ("ingly", ""), ("edly", ""), ("ings", ""), ("ing", ""), ("ied", "y"), ("ies", "y"), ("ors", ""), ("ers", ""),
    ("or", ""), ("er", ""), ("ed", ""), ("ly", ""), ("es", ""), ("s", ""),
)  # fmt: skip


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


_UNITS = (
    "% percent;$ dollar usd;\u20ac euro eur;\u00a3 pound gbp lb;km kilometer kilometre;mile mi;m meter metre;"
    "cm centimeter centimetre;mm millimeter millimetre;feet foot ft;inch inche;kg kilogram kilo;g gram;ton tonne;"
    "second sec;minute min;hour hr;day;week;month;year yr;degree celsius fahrenheit;liter litre;gallon;mph;kmh"
)
_UNIT = {
    stem(form): group.split()[0] for group in _UNITS.split(";") for name in group.split() for form in (name, name + "s")
}


@dataclass(frozen=True)
class Number:
    """A number of a text with scale words applied, its unit of measure ("km" for "kilometres", "" if none is known).

    `rough`: said to be rounded ("about 400").
    """

    value: Fraction
    unit: str
    rough: bool


def words(text: str) -> list[str]:
    """Lower-case words; Chinese, Japanese and Korean runs as pairs of characters."""
    found: list[str] = []
    for word in _WORD.findall(_GROUPED.sub("", text[:MAX_CHARS].lower())):
        if _CJK.search(word):
            found.extend(word[at : at + 2] for at in range(max(1, len(word) - 1)))
        else:
            found.append(word.replace("\u2019", "'"))
    return found


def content(text: str) -> list[str]:
    """The stems that carry meaning, in order, negations and function words left out."""
    return [stem(word) for word in words(text) if word not in STOP and not _denies(word)]


def without_marks(text: str) -> str:
    """The text without the numbers and dots of lists and without citations such as [1]."""
    return _MARKS.sub("", text[:MAX_CHARS])


def sentences(text: str) -> list[str]:
    return [piece for piece in (part.strip() for part in _SENTENCE_END.split(text[:MAX_CHARS])) if piece]


def denied(text: str) -> frozenset[str]:
    """The stems that a negation denies: the content words among the three words after it."""
    said = words(text)
    after = (said[at + 1 : at + 4] for at, word in enumerate(said) if _denies(word))
    return frozenset(stem(word) for near in after for word in near if word not in STOP)


def _denies(word: str) -> bool:
    return word in NEGATIONS or word.endswith("n't")


def numbers(text: str) -> list[Number]:
    """The numbers of a text, in figures and in words up to ninety-nine, with scale ("2.5 million") and unit."""
    text = text[:MAX_CHARS].lower()
    found = []
    for match in _NUMBER.finditer(text):
        currency, whole, decimals, gap, after = (group or "" for group in match.groups())
        # "$5 m" and "5m people" are millions, "5 m" is a length.
        scale = 1 if after == "m" and gap and not currency else SCALES.get(after, 1)
        unit = _UNIT.get(currency or stem(after.replace(" ", "")), "") if scale == 1 or currency else ""
        value = Fraction(whole.replace(",", "") + decimals) * scale
        found.append(Number(value, unit, _roughly(text, match.start())))
    spelt = list(_WORD.finditer(text))
    names = [match.group() for match in spelt] + ["", ""]
    for at, word in enumerate(names):
        if word in NUMBER_WORDS and word != "one":
            value, after = Fraction(NUMBER_WORDS[word]), names[at + 1]
            if value >= 20 and 0 < NUMBER_WORDS.get(after, 0) < 10:
                value, after = value + NUMBER_WORDS[after], names[at + 2]
            unit = "" if after in SCALES else _UNIT.get(stem(after), "")
            found.append(Number(value * SCALES.get(after, 1), unit, _roughly(text, spelt[at].start())))
    return found


def _roughly(text: str, at: int) -> bool:
    return bool(_ROUGHLY.search(text[max(0, at - 20) : at]))
