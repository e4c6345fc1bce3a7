"""The calculator: exact fractions where the mathematics is exact, 40 digits where it is not, bounded everywhere."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext
from fractions import Fraction

from .contract import Parse, Value
from .numbers import integer_of, pretty, to_base, to_fraction

MAX_BITS = 4096
"""No operand or result is larger: 9**9**9 is refused before it is computed."""
_DIGITS = 40
_MAX_FACTORIAL = 400
_ATOMS = {"number", "constant", "percent", "list", "based", "digits"}


class NoValue(Exception):
    """The expression has no value here: a division by zero, a root of a negative number, a number too large."""


def is_computation(parse: Parse) -> bool:
    """Whether the parse holds an operation: a bare number or constant asks for nothing."""
    return parse[0] not in _ATOMS and not (parse[0] == "neg" and not is_computation(_sub(parse, 1)))


def compute(parse: Parse) -> Value | None:
    """The value with its working, or None where there is none."""
    try:
        special = _SPECIAL.get(str(parse[0]))
        if special is not None:
            return special(parse)
        value = evaluate(parse)
    except (NoValue, ZeroDivisionError, ArithmeticError, ValueError, statistics.StatisticsError):
        return None
    text = pretty(value)
    return Value(text, f"{render(parse)} = {text}")


def evaluate(parse: Parse) -> Fraction:
    """The parse's value.

    Raises:
        NoValue, ZeroDivisionError: there is none.
    """
    kind = str(parse[0])
    if kind in ("number", "percent"):
        return _bounded(to_fraction(str(parse[1])))
    if kind == "constant":
        return _rounded(_pi())
    if kind in _OVER_LISTS:
        return _bounded(_OVER_LISTS[kind](_items(parse)))
    if kind == "root":
        return _root(evaluate(_sub(parse, 2)), _ordinal(str(parse[1])))
    if kind == "fraction":
        return _part(parse)
    if kind == "pow" and isinstance(parse[2], str):
        return _power(evaluate(_sub(parse, 1)), Fraction(_ordinal(parse[2])))
    operands = [evaluate(_sub(parse, position)) for position in range(1, len(parse))]
    return _bounded(_OPERATIONS[kind](operands))


def _items(parse: Parse) -> list[Fraction]:
    return [evaluate(item) for item in _sub(parse, 1)[1:] if isinstance(item, list)]


def _sub(parse: Parse, position: int) -> Parse:
    part = parse[position]
    if isinstance(part, str):
        raise NoValue(part)
    return part


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() > MAX_BITS or value.denominator.bit_length() > MAX_BITS:
        raise NoValue("too large")
    return value


def _rounded(value: Decimal) -> Fraction:
    with localcontext() as context:
        context.prec = _DIGITS
        return Fraction(+value)


def _decimal(value: Fraction) -> Decimal:
    with localcontext() as context:
        context.prec = _DIGITS
        return Decimal(value.numerator) / Decimal(value.denominator)


def _pi() -> Decimal:
    return Decimal("3.141592653589793238462643383279502884197")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        return _root(_power(base, Fraction(exponent.numerator)), exponent.denominator)
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) > MAX_BITS or size * abs(int(exponent)) > MAX_BITS:
        raise NoValue("too large")
    return base ** int(exponent)


def _root(value: Fraction, degree: int) -> Fraction:
    """The real root: exact where numerator and denominator are perfect powers."""
    if not 1 <= degree <= 64 or (value < 0 and degree % 2 == 0):
        raise NoValue("no real root")
    sign = -1 if value < 0 else 1
    top, bottom = (_integer_root(part, degree) for part in (abs(value.numerator), value.denominator))
    if top**degree == abs(value.numerator) and bottom**degree == value.denominator:
        return sign * Fraction(top, bottom)
    with localcontext() as context:
        context.prec = _DIGITS
        return sign * Fraction((_decimal(abs(value)).ln() / degree).exp())


def _integer_root(value: int, degree: int) -> int:
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**degree <= value else (low, middle - 1)
    return low


def _factorial(value: Fraction) -> Fraction:
    number = integer_of(value)
    if number is None or not 0 <= number <= _MAX_FACTORIAL:
        raise NoValue("no factorial")
    return Fraction(math.factorial(number))


def _log(value: Fraction, base: Fraction | None) -> Fraction:
    if value <= 0 or (base is not None and (base <= 0 or base == 1)):
        raise NoValue("no logarithm")
    with localcontext() as context:
        context.prec = _DIGITS
        natural = _decimal(value).ln()
        result = natural if base is None else natural / _decimal(base).ln()
    nearest = round(result)
    if base is not None and abs(nearest) < MAX_BITS and _power(base, Fraction(nearest)) == value:
        return Fraction(nearest)
    return Fraction(result)


_EXACT_SINES = {0: Fraction(0), 30: Fraction(1, 2), 90: Fraction(1), 150: Fraction(1, 2), 180: Fraction(0)}


def _sine(degrees: Fraction) -> Fraction:
    turned = degrees % 360
    sign, folded = (-1, turned - 180) if turned >= 180 else (1, turned)
    if folded in _EXACT_SINES:
        return sign * _EXACT_SINES[int(folded)]
    return sign * Fraction(str(round(math.sin(math.radians(float(folded))), 12)))


def _part(parse: Parse) -> Fraction:
    """ "a third of 90", "two thirds of 90": `[fraction, ordinal, x]` or `[fraction, number, parts, x]`."""
    whole = evaluate(_sub(parse, len(parse) - 1))
    count = evaluate(_sub(parse, 1)) if len(parse) == 4 else Fraction(1)
    return count * whole / _ordinal(str(parse[-2]))


_PART_NAMES = ["thirds", "quarters", "fifths", "sixths", "sevenths", "eighths", "ninths", "tenths"]


def _ordinal(word: str) -> int:
    named = {name: value for value, name in enumerate(_PART_NAMES, start=3)} | {"fourths": 4}
    return named[word] if word in named else int("".join(filter(str.isdigit, word)))


def _gcd(values: Sequence[Fraction]) -> Fraction:
    return Fraction(math.gcd(*(_whole(value) for value in values)))


def _lcm(values: Sequence[Fraction]) -> Fraction:
    return Fraction(math.lcm(*(_whole(value) for value in values)))


def _whole(value: Fraction) -> int:
    number = integer_of(value)
    if number is None:
        raise NoValue("not a whole number")
    return number


def _mode(values: Sequence[Fraction]) -> Fraction:
    common = statistics.multimode(values)
    if len(common) != 1:
        raise NoValue("no single mode")
    return common[0]


_OVER_LISTS: dict[str, Callable[[Sequence[Fraction]], Fraction]] = {
    "mean": lambda v: sum(v, Fraction(0)) / len(v),
    "median": lambda v: Fraction(statistics.median(v)),
    "mode": _mode,
    "spread": lambda v: max(v) - min(v),
    "sum_of": lambda v: sum(v, Fraction(0)),
    "product_of": lambda v: math.prod(v, start=Fraction(1)),
    "pvariance": lambda v: _variance(v, len(v)),
    "variance": lambda v: _variance(v, len(v) - 1),
    "pstdev": lambda v: _root(_variance(v, len(v)), 2),
    "stdev": lambda v: _root(_variance(v, len(v) - 1), 2),
    "maximum": lambda v: max(v),
    "minimum": lambda v: min(v),
    "gcd": _gcd,
    "lcm": _lcm,
}


def _variance(values: Sequence[Fraction], divisor: int) -> Fraction:
    mean = sum(values, Fraction(0)) / len(values)
    return sum(((value - mean) ** 2 for value in values), Fraction(0)) / divisor


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
    "sqrt": lambda v: _root(v[0], 2),
    "cbrt": lambda v: _root(v[0], 3),
    "half": lambda v: v[0] / 2,
    "quarter": lambda v: v[0] / 4,
    "quarters": lambda v: v[0] * v[1] / 4,
    "ratio_of": lambda v: v[0] / v[1] * v[2],
    "double": lambda v: v[0] * 2,
    "triple": lambda v: v[0] * 3,
    "reciprocal": lambda v: 1 / v[0],
    "factorial": lambda v: _factorial(v[0]),
    "log10": lambda v: _log(v[0], Fraction(10)),
    "log": lambda v: _log(v[1], v[0]),
    "ln": lambda v: _log(v[0], None),
    "sin_degrees": lambda v: _sine(v[0]),
    "cos_degrees": lambda v: _sine(v[0] + 90),
    "tan_degrees": lambda v: _sine(v[0]) / _sine(v[0] + 90),
    "percent_of": lambda v: v[0] / 100 * v[1],
}


def _by_percent(values: Sequence[Fraction], sign: int) -> Fraction:
    return values[0] * (1 + sign * values[1] / 100)


def _percent_parts(parse: Parse, sign: int) -> Fraction:
    """Base and percent stand in either order ("80 plus 15%", "15% off 80")."""
    parts = [_sub(parse, 1), _sub(parse, 2)]
    parts.sort(key=lambda part: part[0] == "percent")
    return _bounded(_by_percent([evaluate(part) for part in parts], sign))


def _valued(parse: Parse, value: Fraction, unit: str = "") -> Value:
    text = pretty(value) + unit
    return Value(text, f"{render(parse)} = {text}")


def _change(parse: Parse) -> Value:
    before, after = evaluate(_sub(parse, 1)), evaluate(_sub(parse, 2))
    return _valued(parse, (after - before) / abs(before) * 100, "%")


def _round_places(parse: Parse) -> Value:
    places = int(str(parse[2]))
    if places > 30:
        raise NoValue("too many places")
    scale = 10**places
    return _valued(parse, _half_up(evaluate(_sub(parse, 1)) * scale) / scale)


_NEAREST = {
    "ten": "10", "hundred": "100", "thousand": "1000", "million": "1000000", "tenth": "0.1", "10th": "0.1",
    "hundredth": "0.01", "thousandth": "0.001", "cent": "0.01",
}  # fmt: skip


def _round_nearest(parse: Parse) -> Value:
    operand, word = (parse[1], parse[2]) if isinstance(parse[1], list) else (parse[2], parse[1])
    name = str(word)
    step = Fraction(_NEAREST.get(name, name if name.isdigit() else "1"))
    assert isinstance(operand, list)
    return _valued(parse, _half_up(evaluate(operand) / step) * step)


def _half_up(value: Fraction) -> Fraction:
    rounded = Fraction(math.floor(abs(value) + Fraction(1, 2)))
    return -rounded if value < 0 else rounded


def _rebase(parse: Parse) -> Value:
    """Any of the forms of a change of number base; digits are read in the source base."""
    kind = str(parse[0])
    parts = list(parse[1:])
    if kind == "rebase":
        digits, source, target = _text(parts[0]), "decimal", _base(parts[1])
    elif kind == "rebase_of":
        digits, source, target = _text(parts[1]), "decimal", _base(parts[0])
    elif kind == "rebase_from_first":
        digits, source, target = _text(parts[1]), _base(parts[0]), _base(parts[2])
    else:
        digits, source, target = _text(parts[0]), _base(parts[1]), _base(parts[2])
    if digits[:2] in ("0x", "0b"):
        source = {"0x": "hex", "0b": "binary"}[digits[:2]]
    number = int(digits, 0) if digits[:2] in ("0x", "0b") else int(digits, _RADIX[source])
    text = to_base(number, target if target == "roman numerals" else _RADIX[target])
    return Value(text, f"{digits} ({source}) = {text} ({target})")


_RADIX = {"binary": 2, "octal": 8, "decimal": 10, "hex": 16, **{str(n): n for n in range(2, 37)}}


def _text(part: Parse | str) -> str:
    return part if isinstance(part, str) else str(part[1])


def _base(part: Parse | str) -> str:
    if isinstance(part, str):
        raise NoValue(part)
    return {"roman": "roman numerals", "radix": str(part[-1])}.get(str(part[0]), str(part[0]))


def _factors(parse: Parse) -> Value:
    number = _whole(evaluate(_sub(parse, 1)))
    if not 2 <= number <= 10**12:
        raise NoValue("out of range")
    left, found, divisor = number, [], 2
    while divisor * divisor <= left:
        while left % divisor == 0:
            found.append(divisor)
            left //= divisor
        divisor += 1 if divisor == 2 else 2
    text = " * ".join(str(factor) for factor in [*found, *([left] if left > 1 else [])])
    return Value(text, f"{number} = {text}")


_SPECIAL: dict[str, Callable[[Parse], Value]] = {
    "raise_by": lambda parse: _valued(parse, _percent_parts(parse, 1)),
    "lower_by": lambda parse: _valued(parse, _percent_parts(parse, -1)),
    "what_percent": lambda p: _valued(p, evaluate(_sub(p, 2)) / evaluate(_sub(p, 1)) * 100, "%"),
    "as_percent": lambda p: _valued(p, evaluate(_sub(p, 1)) / evaluate(_sub(p, 2)) * 100, "%"),
    "change": _change,
    "round_places": _round_places,
    "round_nearest": _round_nearest,
    "round_first": _round_nearest,
    "rebase": _rebase,
    "rebase_from": _rebase,
    "rebase_from_first": _rebase,
    "rebase_of": _rebase,
    "factors": _factors,
}

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "mod": "mod", "pow": "^", "percent_of": "of"}


def render(parse: Parse | str) -> str:
    """The parse in plain notation."""
    if isinstance(parse, str):
        return parse
    kind, parts = str(parse[0]), parse[1:]
    if kind in ("number", "constant", "digits", "based"):
        return " ".join(render(part) for part in parts)
    if kind == "percent":
        return f"{render(parts[0])}%"
    if kind in _INFIX and len(parts) == 2:
        return " ".join([_operand(parts[0]), _INFIX[kind], _operand(parts[1])])
    if kind == "neg":
        return f"-{_operand(parts[0])}"
    if kind == "list":
        return ", ".join(render(part) for part in parts)
    return f"{kind.replace('_', ' ')}({', '.join(render(part) for part in parts)})"


def _operand(part: Parse | str) -> str:
    text = render(part)
    return f"({text})" if isinstance(part, list) and part[0] in _INFIX else text
