"""Equations that an output states, worked out again exactly: `3 + 4 = 8`, "12 times 12 is 144", "15% of 200 is 30"."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from .blocks import parse_python
from .contract import Check, Verdict, said
from .text import MAX_CHARS, NUMBER_WORDS, SCALES

MAX_TERMS = 60
"""Tokens of one side of an equation; a longer side is not read."""
MAX_EQUATIONS = 300
"""Equations of a text that are read."""
MAX_BITS = 1200
"""Size of an intermediate value (about 360 digits); a larger one is not worked out."""

_NUMBER = r"[$\u20ac\u00a3]?(?:(?:\d{1,3}(?:,\d{3}){1,9}|\d{1,40})(?:\.\d{1,30})?|\.\d{1,30})(?!\w|[.,]\d)(?: ?%)?"
_TOKEN = re.compile(
    rf"(?P<number>{_NUMBER})|(?P<word>[^\W\d_]+(?:-[^\W\d_]+)?)"
    r"|(?P<op>\*\*|//|[-+*/^()])|(?P<equal>\u2248|==?)|(?P<other>\n|\\\w{0,20}|\S)"
)
_SYMBOL = {
    "plus": "+", "minus": "-", "times": "*", "multiplied by": "*", "over": "/", "divided by": "/", "percent": "%",
    "\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2212": "-", "\u2013": "-", "^": "**",
    **{word: str(value) for word, value in NUMBER_WORDS.items()},
}  # fmt: skip
_SPELT = re.compile(
    r"(?:divided|multiplied) by\b|[^\W\d_]+(?:-[^\W\d_]+)?|[\u00d7\u00b7\u00f7\u2212\u2013^]", re.IGNORECASE
)
_TIMES = re.compile(r"(?<=%) of\b|(?<=\d) x(?= [\d($.])")
_EQUALS = ("is", "equals", "gives", "makes", "are")
_HEDGE = ("about", "approximately", "roughly", "around", "nearly", "almost")
_DOUBT = re.compile(
    r"\b(?:not|isn't|false|wrong|incorrect|mistake|error|p?mod|modulo|modular|binary|hex|octal|base|xor|if|suppose|"
    r"claims?|remainder)\b",
    re.IGNORECASE,
)
_ARGUMENT_OF = "half third thirds quarters fourths fifths root sqrt log ln exp sin cos tan average"
_APPLIED = frozenset(_ARGUMENT_OF.split())
"""Words that make what follows the argument of a function: "log 100 * 2 = 4", "half of 10 + 2 = 7"."""
_ASKED = re.compile(r"(?:what is|what's|calculate|compute|how much is)\s(.{1,200}?)\s?[?.=]{0,3}", re.IGNORECASE)
_BARE = re.compile(rf"\s{{0,20}}(?:(?:it|the answer) is )?(-?{_NUMBER})\s{{0,20}}\.?\s{{0,20}}", re.IGNORECASE)
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: lambda base, power: base ** int(power),
}


class Equation(NamedTuple):
    """One stated equation, its two exact values, and whether it holds at the digits shown."""

    text: str
    left: Fraction
    right: Fraction
    holds: bool


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


_NOTHING = _Token("other", "", 0, 0)


def arithmetic_check(output: str, question: str | None = None) -> Check:
    """The check `arithmetic`: decisive where an equation is wrong, and where the output is nothing but right ones.

    A bare number as the answer to "what is 12 * 12?" counts as that equation.
    """
    text = output[:MAX_CHARS]
    found = equations(text)
    if not found and question:
        asked, bare = _ASKED.fullmatch(question.strip()[:300]), _BARE.fullmatch(text)
        if asked and bare:
            text = _in_symbols(f"{asked[1].strip()} = {bare[1]}")
            found = [equation for equation in equations(text) if equation.text == text]
    if not found:
        return said("arithmetic", Verdict.ABSTAIN, "no equation is stated")
    for stated, left, right, holds in found:
        if not holds:
            values = f"the left side is {_shown(left)}, not {_shown(right)}"
            return said("arithmetic", Verdict.UNSUPPORTED, f"{stated!r} is wrong: {values}")
    words = len(re.findall(r"\w+", text)) - sum(len(re.findall(r"\w+", equation.text)) for equation in found)
    count = f"{len(found)} equation{'s' if len(found) > 1 else ''} worked out again and right"
    return Check(name="arithmetic", verdict=Verdict.SUPPORTED, decisive=words <= 3, detail=count)


def equations(text: str) -> list[Equation]:
    """The equations of a text, in order and in symbols. Those denied, with an unknown or in another base are not."""
    text = _in_symbols(text)
    tokens = [_Token(m.lastgroup or "other", m.group().lower(), *m.span()) for m in _TOKEN.finditer(text)]
    signs = [at for at, token in enumerate(tokens) if token.kind == "equal" or token.text in _EQUALS]
    read = (_equation(text, tokens, at) for at in signs[:MAX_EQUATIONS])
    return [equation for equation in read if equation is not None]


def _in_symbols(text: str) -> str:
    return _TIMES.sub(" *", _SPELT.sub(lambda match: _SYMBOL.get(match.group().lower(), match.group()), text))


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
    after = tokens[right_to] if right_to < len(tokens) else _NOTHING
    while right_to > right_from and tokens[right_to - 1].text in ("(", "-"):
        right_to -= 1
    left, right = tokens[left_from:at], tokens[right_from:right_to]
    if not left or not right or _unknown(tokens, left_from, after, right[-1].end):
        return None
    operators = [token for token in left if token.kind == "op" and token.text not in "()"]
    worded = tokens[at].kind == "word"
    if not operators and (worded or not any(token.kind == "op" for token in right)):
        return None
    # "from 2010-2012 is" and "24/7 is" are no sums: a worded equation needs room around its operators.
    if worded and any(text[token.start - 1].isalnum() for token in operators if token.text in "-/"):
        return None
    start, end = left[0].start, right[-1].end
    if _DOUBT.search(text[max(0, start - 120) : start].rpartition("\n")[2] + text[start : end + 60].partition("\n")[0]):
        return None
    first, second = _value(left), _value(right)
    if first is None or second is None:
        return None
    alone = len(right) == 1 + (right[0].text == "-")
    holds = _agree(first, second, right[-1].text if alone else "", near)
    if not holds and any(token.text.endswith("%") for token in (*left, *right)):  # "100 - 20 = 80%"
        holds = _value(left, percent=1) == _value(right, percent=1)
    return Equation(text[start:end], first, second, holds)


def _unknown(tokens: list[_Token], left_from: int, after: _Token, end: int) -> bool:
    """Whether a side goes on beyond what was read ("2x - 6 = 0", "f(3) = 9", "= 3 \\pi", "= 2 thousand")."""
    if after.text in ("{", "}", "[", "!", "_", "?", "dozen", *SCALES) or after.text.startswith("\\") or _letter(after):
        return True
    if after.kind in ("number", "op", "word") and after.start == end:
        return True
    first = tokens[left_from]
    before = tokens[left_from - 1] if left_from else _Token("other", "\n", 0, -1)
    if first.text == "-":
        return before.text not in ("\n", ":", "=", ".", ",")
    applied = tokens[left_from - 2] if before.text == "of" and left_from > 1 else before
    if applied.text in _APPLIED or (applied is not before and applied.kind == "number"):
        return True
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
        source.append(f"n{len(literals)}" if token.kind == "number" else token.text)
        if token.kind == "number":
            digits = token.text.lstrip("$\u20ac\u00a3").rstrip(" %").replace(",", "")
            literals.append(Fraction(digits) / (percent if token.text.endswith("%") else 1))
    try:
        return _evaluate(parse_python(" ".join(source), mode="eval"), literals)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def _evaluate(node: ast.AST, literals: list[Fraction]) -> Fraction:
    match node:
        case ast.Expression(body=inner):
            return _evaluate(inner, literals)
        case ast.Name(id=name):
            return literals[int(name[1:])]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, literals)
        case ast.BinOp(left=one, op=op, right=other) if type(op) in _OPERATORS:
            left, right = _evaluate(one, literals), _evaluate(other, literals)
            if max(left.numerator.bit_length(), left.denominator.bit_length()) > MAX_BITS:
                raise ValueError("too large")
            if isinstance(op, ast.Pow) and (right.denominator != 1 or abs(right) > 64):
                raise ValueError("too large, or a root")
            return Fraction(_OPERATORS[type(op)](left, right))
    raise ValueError("not an expression that is worked out here")


def _agree(left: Fraction, right: Fraction, shown: str, near: bool) -> bool:
    if left == right:
        return True
    if near:
        return abs(left - right) * 20 <= abs(left)
    decimals = len(shown.rstrip(" %").partition(".")[2])
    last, off = Fraction(1, 10 ** (decimals + 2 * shown.endswith("%"))), abs(left) - abs(right)
    # A value with decimals may be rounded or cut at the last digit shown; a whole number must be exact.
    return decimals > 0 and left * right >= 0 and -last <= 2 * off < 2 * last


def _shown(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value)
    return str(Context(prec=10).divide(*map(Decimal, value.as_integer_ratio())).normalize())
