"""Equations that an output states, worked out again exactly: `3 + 4 = 8`, "12 times 12 is 144", "15% of 200 is 30"."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from .contract import Check, Verdict
from .text import MAX_CHARS, NUMBER_WORDS

MAX_TERMS = 60
"""Tokens of one side of an equation; a longer side is not read."""
MAX_EQUATIONS = 300
"""Equations of a text that are read."""
MAX_BITS = 1200
"""Size of an intermediate value (about 360 digits); a larger one is not worked out."""

_NUMBER = r"[$\u20ac\u00a3]?(?:(?:\d{1,3}(?:,\d{3}){1,9}|\d{1,40})(?:\.\d{1,30})?|\.\d{1,30})(?!\w|[.,]\d)%?"
_TOKEN = re.compile(
    rf"(?P<number>{_NUMBER})|(?P<word>[^\W\d_]+(?:-[^\W\d_]+)?)"
    r"|(?P<op>\*\*|//|[-+*/^()\u00d7\u00f7\u00b7\u2212\u2013])|(?P<equal>\u2248|==?)|(?P<other>\n|\\\w{0,20}|\S)"
)
_SYMBOL = {"\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2212": "-", "\u2013": "-", "^": "**"}
_WORDED = {"plus": "+", "minus": "-", "times": "*", "over": "/"}
_EQUALS = ("is", "equals", "gives", "makes", "are")
_HEDGE = ("about", "approximately", "roughly", "around", "nearly", "almost")
_DOUBT = re.compile(
    r"\b(?:not|isn't|false|wrong|incorrect|mistake|error|p?mod|modulo|modular|binary|hex|octal|base|xor|if|suppose|"
    r"claims?|remainder)\b",
    re.IGNORECASE,
)
_ASKED = re.compile(r"(?:what is|what's|calculate|compute|how much is)\s(.{1,200}?)\s?[?.=]{0,3}", re.IGNORECASE)
_BARE = re.compile(rf"\s{{0,20}}(?:(?:it|the answer) is )?(-?{_NUMBER})\s{{0,20}}\.?\s{{0,20}}", re.IGNORECASE)


@dataclass(frozen=True)
class Equation:
    """One stated equation, where it stands, its two exact values, and whether it holds at the digits shown."""

    text: str
    start: int
    end: int
    left: Fraction
    right: Fraction
    holds: bool


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


def arithmetic_check(output: str, question: str | None = None) -> Check:
    """The check `arithmetic`: decisive where an equation is wrong, and where the output is nothing but right ones.

    A bare number as the answer to "what is 12 * 12?" counts as that equation.
    """
    text = output[:MAX_CHARS]
    found = equations(text)
    if not found and question:
        asked, bare = _ASKED.fullmatch(question.strip()[:300]), _BARE.fullmatch(text)
        if asked and bare:
            text = f"{asked[1]} = {bare[1]}"
            found = [equation for equation in equations(text) if equation.start == 0]
    for equation in found:
        if not equation.holds:
            detail = (
                f"{equation.text!r} is wrong: the left side is {_shown(equation.left)}, not {_shown(equation.right)}"
            )
            return Check(name="arithmetic", verdict=Verdict.UNSUPPORTED, decisive=True, detail=detail)
    if not found:
        return Check(name="arithmetic", verdict=Verdict.ABSTAIN, decisive=False, detail="no equation is stated")
    words = len(re.findall(r"\w+", text)) - sum(len(re.findall(r"\w+", equation.text)) for equation in found)
    count = f"{len(found)} equation{'s' if len(found) > 1 else ''} worked out again and right"
    return Check(name="arithmetic", verdict=Verdict.SUPPORTED, decisive=words <= 3, detail=count)


def equations(text: str) -> list[Equation]:
    """The equations of a text, in order. Those hedged, denied, in another base or with an unknown are left out."""
    tokens = _tokens(text)
    signs = [at for at, token in enumerate(tokens) if token.kind == "equal" or token.text in _EQUALS]
    read = (_equation(text, tokens, at) for at in signs[:MAX_EQUATIONS])
    return [equation for equation in read if equation is not None]


def _tokens(text: str) -> list[_Token]:
    """Numbers, operators, words and the rest, with worded operators and number words turned into symbols."""
    found: list[_Token] = []
    for match in _TOKEN.finditer(text):
        kind, word = match.lastgroup or "other", match.group().lower()
        start, end = match.span()
        last = found[-1] if found else _Token("other", "", 0, 0)
        if word == "by" and last.text in ("divided", "multiplied"):
            found.pop()
            kind, word, start = "op", "/" if last.text == "divided" else "*", last.start
        elif word == "percent" and last.kind == "number":
            found.pop()
            kind, word, start = "number", last.text + "%", last.start
        elif (word == "of" and last.text.endswith("%")) or (word == "x" and last.kind == "number"):
            kind, word = "op", "*"
        elif kind == "word" and (value := _spelt(word)) is not None:
            kind, word = "number", str(value)
        elif kind == "word" and word in _WORDED:
            kind, word = "op", _WORDED[word]
        found.append(_Token(kind, _SYMBOL.get(word, word), start, end))
    return found


def _spelt(word: str) -> int | None:
    tens, _, ones = word.partition("-")
    if ones and not (NUMBER_WORDS.get(tens, 0) >= 20 and 0 < NUMBER_WORDS.get(ones, 0) < 10):
        return None
    return NUMBER_WORDS[tens] + NUMBER_WORDS.get(ones, 0) if tens in NUMBER_WORDS else None


def _equation(text: str, tokens: list[_Token], at: int) -> Equation | None:
    left_from, right_from = at, at + 1
    while left_from > 0 and tokens[left_from - 1].kind in ("number", "op") and at - left_from <= MAX_TERMS:
        left_from -= 1
    near = tokens[at].text == "\u2248"
    while right_from < len(tokens) and tokens[right_from].text in _HEDGE:
        near, right_from = True, right_from + 1
    right_to = right_from
    while right_to < len(tokens) and tokens[right_to].kind in ("number", "op") and right_to - right_from <= MAX_TERMS:
        right_to += 1
    after = tokens[right_to] if right_to < len(tokens) else _Token("other", "", 0, 0)
    while right_to > right_from and tokens[right_to - 1].text in ("(", "-"):
        right_to -= 1
    left, right = tokens[left_from:at], tokens[right_from:right_to]
    if not left or not right or _unknown(tokens, left_from, after, tokens[right_to - 1].end):
        return None
    operators = [token for token in left if token.kind == "op" and token.text not in "()"]
    if not operators and (tokens[at].kind == "word" or not any(token.kind == "op" for token in right)):
        return None
    # "from 2010-2012 is" and "24/7 is" are no sums: a worded equation needs room around its operators.
    tight = any(text[token.start - 1].isalnum() for token in operators if token.text in "-/")
    around = text[max(0, left[0].start - 120) : left[0].start].rpartition("\n")[2] + text[left[0].start : right[-1].end]
    line = around + text[right[-1].end : right[-1].end + 60].partition("\n")[0]
    if (tokens[at].kind == "word" and tight) or _DOUBT.search(line):
        return None
    first, second = _value(left), _value(right)
    if first is None or second is None:
        return None
    holds = _agree(first, second, right[-1].text if len(right) == 1 else "", near)
    if not holds and any(token.text.endswith("%") for token in (*left, *right)):  # "100 - 20 = 80%"
        holds = _value(left, percent=1) == _value(right, percent=1)
    return Equation(text[left[0].start : right[-1].end], left[0].start, right[-1].end, first, second, holds)


def _unknown(tokens: list[_Token], left_from: int, after: _Token, end: int) -> bool:
    """Whether a side goes on beyond what was read: "2x - 6 = 0", "f(3) = 9", "= 7y", "= 3 \\pi", "= 3 (a + b)"."""
    if after.text in ("{", "}", "[", "!", "_") or after.text.startswith("\\") or _letter(after):
        return True
    if after.kind in ("number", "op", "word") and after.start == end:
        return True
    first = tokens[left_from]
    before = tokens[left_from - 1] if left_from else _Token("other", "\n", 0, -1)
    if first.text == "-":
        return before.text not in ("\n", ":", "=", ".", ",")
    if first.kind == "op" and first.text != "(":
        return True
    touching = before.end == first.start and before.text not in ("\n", '"', "'", "=", ":", "`", "[", "$")
    return touching or before.text.startswith("\\") or (_letter(before) and before.text != "a")


def _letter(token: _Token) -> bool:
    return token.kind == "word" and len(token.text) == 1


def _value(side: list[_Token], percent: int = 100) -> Fraction | None:
    """The exact value of a side, or None where it is no expression, divides by zero or grows too large."""
    literals: list[Fraction] = []
    source = []
    for token in side:
        if token.kind == "number":
            digits = token.text.lstrip("$\u20ac\u00a3").rstrip("%").replace(",", "")
            literals.append(Fraction(digits) / (percent if token.text.endswith("%") else 1))
            source.append(f"n{len(literals) - 1}")
        else:
            source.append(token.text)
    try:
        return _evaluate(ast.parse(" ".join(source), mode="eval").body, literals)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def _evaluate(node: ast.expr, literals: list[Fraction]) -> Fraction:
    match node:
        case ast.Name(id=name):
            return literals[int(name[1:])]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, literals)
        case ast.BinOp(left=one, op=op, right=other):
            left, right = _evaluate(one, literals), _evaluate(other, literals)
        case _:
            raise ValueError("not an expression")
    if max(left.numerator.bit_length(), left.denominator.bit_length()) > MAX_BITS:
        raise ValueError("too large")
    match op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
        case ast.FloorDiv():
            return Fraction(left // right)
        case ast.Pow() if right.denominator == 1 and abs(right) <= 64:
            return left ** int(right)
    raise ValueError("not an operation that is worked out here")


def _agree(left: Fraction, right: Fraction, shown: str, near: bool) -> bool:
    if left == right:
        return True
    if near:
        return abs(left - right) * 20 <= abs(left)
    decimals = len(shown.rstrip("%").partition(".")[2])
    # A value with decimals may be rounded or cut at the last digit shown; a whole number must be exact.
    return decimals > 0 and abs(left - right) < Fraction(1, 10 ** (decimals + 2 * shown.endswith("%")))


def _shown(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    try:
        return f"{float(value):.10g}"
    except OverflowError:
        return "a very large number"
