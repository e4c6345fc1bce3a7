"""The calculator: exact fractions where the mathematics is exact, 40 digits where it is not, bounded everywhere."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

import numpy as np

from .contract import AgentContext, Parse, Value

MAX_BITS = 4096
"""No operand or result is larger: 9**9**9 is refused before it is computed."""
_SHOWN_DIGITS = 12
_MAX_SHOWN = 400
_MAX_FACTORIAL = 400
_PRECISE = Context(prec=40)
_E = Fraction("2.7182818284590452353602874713526624977572")
PI = Fraction("3.141592653589793238462643383279502884197")
_ATOMS = {"number", "constant", "percent", "list", "digits", "mixed"}
_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "mod": "mod", "pow": "^", "percent_of": "of"}
_PERCENTAGES = {"what_percent", "as_percent", "change", "fall", "in_percent"}


def is_computation(parse: Parse) -> bool:
    """Whether the parse holds an operation that has a value: a bare number or constant asks for nothing."""
    if parse[0] == "neg":
        return isinstance(parse[1], list) and is_computation(parse[1])
    return parse[0] not in _ATOMS and compute(parse) is not None


def compute(parse: Parse, context: AgentContext | None = None) -> Value | None:
    """The value with its working, or None where there is none."""
    try:
        if parse[0] == "rebase":
            return _rebased(parse)
        as_fraction = parse[0] == "as_fraction"
        text = str(evaluate(parse[1])) if as_fraction else pretty(evaluate(parse))
    except (ArithmeticError, ValueError, KeyError):
        return None
    text += "%" if parse[0] in _PERCENTAGES else ""
    return Value(text, f"{_render(parse)} = {text}")


def evaluate(parse: Parse | str) -> Fraction:
    """The parse's value; a bare word is an ordinal, a part of a whole or a step to round to. Raises ValueError,
    ArithmeticError: there is none."""
    if isinstance(parse, str):
        return _WORDS[parse] if parse in _WORDS else _numeral(parse.rstrip("stndrh"))
    kind, parts = str(parse[0]), parse[1:]
    if kind == "constant":
        return PI if parts[0] == "pi" else _E
    if kind == "mixed":
        whole, above, below = (_numeral(str(part)) for part in parts)
        return whole + above / below
    if kind in ("number", "percent"):
        return _numeral(str(parts[0]))
    if isinstance(parts[0], list) and parts[0][0] == "list":
        parts = parts[0][1:]
    return _bounded(_OPERATIONS[kind]([evaluate(part) for part in parts]))


_PARTS = ("thirds", "quarters", "fifths", "sixths", "sevenths", "eighths", "ninths", "tenths")
_WORDS = {name: Fraction(value) for value, name in enumerate(_PARTS, start=3)} | {
    "fourths": Fraction(4), "ten": Fraction(10), "hundred": Fraction(100), "thousand": Fraction(1000),
    "million": Fraction(10**6), "tenth": Fraction(1, 10), "hundredth": Fraction(1, 100),
    "thousandth": Fraction(1, 1000), "cent": Fraction(1, 100), "integer": Fraction(1), "number": Fraction(1),
    "one": Fraction(1), "whole": Fraction(1), "dollar": Fraction(1),
}  # fmt: skip


def _numeral(text: str) -> Fraction:
    if text[:2] in _PREFIXES:
        return Fraction(int(text, 0))
    exponent = text.partition("e")[2]
    if exponent and abs(int(exponent)) > 300:
        raise ValueError("exponent out of reach")
    return _bounded(Fraction(text))


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() > MAX_BITS or value.denominator.bit_length() > MAX_BITS:
        raise ValueError("too large")
    return value


def _decimal(value: Fraction) -> Decimal:
    return _PRECISE.divide(Decimal(value.numerator), Decimal(value.denominator))


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        return root(_power(base, Fraction(exponent.numerator)), exponent.denominator)
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if size * abs(int(exponent)) > MAX_BITS:
        raise ValueError("too large")
    return base ** int(exponent)


def root(value: Fraction, degree: int = 2) -> Fraction:
    """The real root: exact where numerator and denominator are perfect powers."""
    if not 1 <= degree <= 64 or (value < 0 and degree % 2 == 0):
        raise ValueError("no real root")
    if value == 0:
        return value
    sign, size = (-1 if value < 0 else 1), abs(value)
    found = Fraction(_PRECISE.exp(_PRECISE.divide(_PRECISE.ln(_decimal(size)), degree)))
    exact = found.limit_denominator(10**15)
    return sign * (exact if exact**degree == size else found)


def _factorial(value: Fraction) -> Fraction:
    if value > _MAX_FACTORIAL:
        raise ValueError("too large")
    return Fraction(math.factorial(_whole(value)))


def _log(value: Fraction, base: Fraction) -> Fraction:
    if value <= 0 or base <= 0 or base == 1:
        raise ValueError("no logarithm")
    found = _PRECISE.divide(_PRECISE.ln(_decimal(value)), _PRECISE.ln(_decimal(base)))
    nearest = Fraction(round(found))
    return nearest if abs(nearest) < MAX_BITS and _power(base, nearest) == value else Fraction(found)


def _sine(degrees: Fraction) -> Fraction:
    return Fraction(str(round(math.sin(math.radians(float(degrees % 360))), 12)))


def _whole(value: Fraction) -> int:
    if value.denominator != 1:
        raise ValueError("not a whole number")
    return value.numerator


def _mode(values: Sequence[Fraction]) -> Fraction:
    common = statistics.multimode(values)
    if len(common) != 1:
        raise ValueError("no single mode")
    return common[0]


def to_step(value: Fraction, step: Fraction) -> Fraction:
    """Rounded to a multiple of `step`, halves away from zero."""
    steps = math.floor(abs(value) / step + Fraction(1, 2))
    return (-steps if value < 0 else steps) * step


_OPERATIONS: dict[str, Callable[[Sequence[Fraction]], Fraction]] = {
    "add": lambda v: v[0] + v[1],
    "sub": lambda v: v[0] - v[1],
    "sub_from": lambda v: v[1] - v[0],
    "difference": lambda v: abs(v[0] - v[1]),
    "mul": lambda v: v[0] * v[1],
    "div": lambda v: v[0] / v[1],
    "mod": lambda v: v[0] % v[1],
    "pow": lambda v: _power(v[0], v[1]),
    "neg": lambda v: -v[0],
    "abs": lambda v: abs(v[0]),
    "square": lambda v: _power(v[0], Fraction(2)),
    "cube": lambda v: _power(v[0], Fraction(3)),
    "sqrt": lambda v: root(v[0]),
    "cbrt": lambda v: root(v[0], 3),
    "root": lambda v: root(v[1], _whole(v[0])),
    "half": lambda v: v[0] / 2,
    "quarter": lambda v: v[0] / 4,
    "quarters": lambda v: v[0] * v[1] / 4,
    "fraction": lambda v: v[-1] / v[-2] * (v[0] if len(v) == 3 else 1),
    "ratio_of": lambda v: v[0] / v[1] * v[2],
    "double": lambda v: v[0] * 2,
    "triple": lambda v: v[0] * 3,
    "dozen": lambda v: v[0] * 12,
    "choose": lambda v: Fraction(math.comb(min(_whole(v[0]), 2 * MAX_BITS), _whole(v[1]))),
    "div_into": lambda v: v[1] / v[0],
    "as_decimal": lambda v: v[0],
    "percent_decimal": lambda v: v[0] / 100,
    "in_percent": lambda v: v[0] * 100,
    "reciprocal": lambda v: 1 / v[0],
    "factorial": lambda v: _factorial(v[0]),
    "log10": lambda v: _log(v[0], Fraction(10)),
    "log": lambda v: _log(v[1], v[0]),
    "ln": lambda v: _log(v[0], _E),
    "sin_degrees": lambda v: _sine(v[0]),
    "cos_degrees": lambda v: _sine(v[0] + 90),
    "tan_degrees": lambda v: _sine(v[0]) / _sine(v[0] + 90),
    "percent_of": lambda v: v[0] / 100 * v[1],
    "raise_by": lambda v: v[0] * (1 + v[1] / 100),
    "lower_by": lambda v: v[0] * (1 - v[1] / 100),
    "percent_more": lambda v: v[1] * (1 + v[0] / 100),
    "percent_off": lambda v: v[1] * (1 - v[0] / 100),
    "what_percent": lambda v: v[1] / v[0] * 100,
    "as_percent": lambda v: v[0] / v[1] * 100,
    "change": lambda v: (v[1] - v[0]) / abs(v[0]) * 100,
    "fall": lambda v: (v[0] - v[1]) / abs(v[0]) * 100,
    "round_places": lambda v: to_step(v[0], _power(Fraction(1, 10), v[1])),
    "round_nearest": lambda v: to_step(v[0], v[1]),
    "round_tenth": lambda v: to_step(v[0], Fraction(1, 10)),
    "round_first": lambda v: to_step(v[1], v[0]),
    "mean": statistics.mean,
    "median": statistics.median,
    "geometric_mean": lambda v: root(math.prod(v, start=Fraction(1)), len(v)),
    "mode": _mode,
    "spread": lambda v: max(v) - min(v),
    "sum_of": lambda v: sum(v, Fraction(0)),
    "product_of": lambda v: math.prod(v, start=Fraction(1)),
    "pvariance": statistics.pvariance,
    "variance": statistics.variance,
    "pstdev": lambda v: root(statistics.pvariance(v)),
    "stdev": lambda v: root(statistics.variance(v)),
    "maximum": max,
    "minimum": min,
    "gcd": lambda v: Fraction(math.gcd(*map(_whole, v))),
    "lcm": lambda v: Fraction(math.lcm(*map(_whole, v))),
}


_RADIX = {"binary": 2, "octal": 8, "decimal": 10, "hex": 16} | {str(base): base for base in range(2, 37)}
_PREFIXES = {"0x": "hex", "0b": "binary", "0o": "octal"}


def _rebased(parse: Parse) -> Value:
    """A change of number base; digits are read in the source base, which is decimal where none is named."""
    named: dict[str, Any] = {str(part[0]): part[1:] for part in parse[1:] if isinstance(part, list)}
    digits = "".join(named["digits"])
    source = _PREFIXES.get(digits[:2]) or (str(named["source"][0][-1]) if "source" in named else "decimal")
    target = str(named["target"][0][-1])
    number = int(digits[2:] if digits[:2] in _PREFIXES else digits, _RADIX[source])
    if source == target:
        raise ValueError("nothing to convert")
    text = np.base_repr(number, _RADIX[target])
    return Value(text, f"{digits} ({source}) = {text} ({target})")


def _render(parse: Parse | str) -> str:
    """The parse in plain notation."""
    if isinstance(parse, str):
        return parse
    kind = str(parse[0])
    parts = [f"({_render(part)})" if kind in _INFIX and part[0] in _INFIX else _render(part) for part in parse[1:]]
    if kind in _INFIX and len(parts) == 2:
        return f"{parts[0]} {_INFIX[kind]} {parts[1]}"
    if kind in ("number", "constant", "list"):
        return ", ".join(parts)
    if kind == "percent":
        return f"{parts[0]}%"
    return f"-{parts[0]}" if kind == "neg" else f"{kind.replace('_', ' ')}({', '.join(parts)})"


def pretty(value: Fraction, digits: int = _SHOWN_DIGITS) -> str:
    """Whole numbers in full; else the whole part and up to `digits` significant digits without trailing zeros. Raises
    ValueError: the number has more than 400 digits."""
    whole = str(int(value))
    if len(whole) > _MAX_SHOWN:
        raise ValueError("too many digits to show")
    if value.denominator == 1:
        return whole
    number = Context(prec=max(digits, min(len(whole), 30))).divide(Decimal(value.numerator), Decimal(value.denominator))
    text = f"{number:f}" if number.adjusted() > -8 else f"{number}"
    return text.rstrip("0").rstrip(".") if "." in text and "E" not in text else text
