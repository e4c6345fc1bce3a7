"""Everyday formulas whose inputs are all given: tip, tax, body mass, density, interest, areas, speed."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

from . import calculator
from .contract import Parse, Value
from .numbers import pretty
from .units import quantity, read_quantity, shown, unit_name

_PI = Fraction("3.141592653589793238462643383279502884")
_PERIODS = {"annually": 1, "semiannually": 2, "quarterly": 4, "monthly": 12, "weekly": 52, "daily": 365}


def is_sound(parse: Parse) -> bool:
    """Whether the inputs are of the right kind (a mass and a length for a body mass index) and give a value."""
    return compute(parse) is not None


def compute(parse: Parse) -> Value | None:
    """The formula's value with the formula filled in."""
    kind, parts = str(parse[0]), list(parse[1:])
    try:
        if kind in _MONEY:
            return _MONEY[kind](parts)
        if kind in _SHAPES:
            return _shape(kind, parts)
        return _MEASURED[kind](parts)
    except (calculator.NoValue, ValueError, ArithmeticError, AttributeError, KeyError, TypeError):
        return None


def _number(part: Any) -> Fraction:
    while isinstance(part, list):
        part = part[1]
    return Fraction(part)


def _cash(value: Fraction) -> str:
    return f"{float(round(value, 2)):.2f}"


def _percent_and_money(parts: list[Any]) -> tuple[Fraction, Fraction]:
    money = next(part for part in parts if part[0] == "money")
    percent = next(part for part in parts if part[0] == "percent")
    return _number(percent), _number(money)


def _share(parts: list[Any]) -> Value:
    percent, money = _percent_and_money(parts)
    share = money * percent / 100
    working = f"{pretty(percent)}% of {pretty(money)} = {_cash(share)}; together {_cash(money + share)}"
    return Value(_cash(share), working)


def _with_share(parts: list[Any]) -> Value:
    percent, money = _percent_and_money(parts)
    total = money * (1 + percent / 100)
    return Value(_cash(total), f"{pretty(money)} + {pretty(percent)}% = {_cash(total)}")


def _reduced(parts: list[Any]) -> Value:
    percent, money = _percent_and_money(parts)
    total = money * (1 - percent / 100)
    return Value(_cash(total), f"{pretty(money)} - {pretty(percent)}% = {_cash(total)}")


def _split(parts: list[Any]) -> Value:
    money, people = _number(parts[0]), _number(parts[1])
    return Value(_cash(money / people), f"{pretty(money)} / {pretty(people)} = {_cash(money / people)}")


def _interest(parts: list[Any], compound: bool) -> Value:
    principal, rate, years = _number(parts[0]), _number(parts[1]) / 100, _number(parts[2])
    if parts[2][0] == "months":
        years /= 12
    if not compound:
        earned = principal * rate * years
        return Value(_cash(earned), f"{pretty(principal)} * {pretty(rate)} * {pretty(years)} years = {_cash(earned)}")
    times = _PERIODS[parts[3][0]] if len(parts) > 3 else 1
    count = years * times
    if count.denominator != 1 or count > 1200:
        raise calculator.NoValue("periods")
    growth = (1 + Decimal(rate.numerator) / Decimal(rate.denominator) / times) ** int(count)
    earned = principal * Fraction(growth) - principal
    working = f"{pretty(principal)} * (1 + {pretty(rate)}/{times})^{int(count)} - {pretty(principal)} = {_cash(earned)}"
    return Value(_cash(earned), working)


def _batting(parts: list[Any]) -> Value:
    hits, at_bats = _number(parts[0]), _number(parts[1])
    if hits > at_bats:
        raise calculator.NoValue("more hits than at bats")
    text = f"{float(hits / at_bats):.3f}"
    return Value(text, f"{pretty(hits)} / {pretty(at_bats)} = {text}")


_MONEY: dict[str, Callable[[list[Any]], Value]] = {
    "tip": _share,
    "tip_at": _share,
    "with_tip": _with_share,
    "reduced": _reduced,
    "split": _split,
    "simple_interest": lambda parts: _interest(parts, compound=False),
    "compound_interest": lambda parts: _interest(parts, compound=True),
    "batting": _batting,
}

_SHAPES: dict[str, tuple[Callable[[list[Fraction]], Fraction], int, str]] = {
    "circle_area": (lambda n: _PI * n[0] ** 2, 2, "pi * r^2"),
    "circle_area_diameter": (lambda n: _PI * n[0] ** 2 / 4, 2, "pi * d^2 / 4"),
    "circumference": (lambda n: 2 * _PI * n[0], 1, "2 * pi * r"),
    "circumference_diameter": (lambda n: _PI * n[0], 1, "pi * d"),
    "rectangle_area": (lambda n: n[0] * n[1], 2, "length * width"),
    "rectangle_perimeter": (lambda n: 2 * (n[0] + n[1]), 1, "2 * (length + width)"),
    "square_area": (lambda n: n[0] ** 2, 2, "side^2"),
    "triangle_area": (lambda n: n[0] * n[1] / 2, 2, "base * height / 2"),
    "sphere_volume": (lambda n: 4 * _PI * n[0] ** 3 / 3, 3, "4/3 * pi * r^3"),
    "cube_volume": (lambda n: n[0] ** 3, 3, "side^3"),
    "cylinder_volume": (lambda n: _PI * n[0] ** 2 * n[1], 3, "pi * r^2 * h"),
    "box_volume": (lambda n: n[0] * n[1] * n[2], 3, "length * width * height"),
    "hypotenuse": (
        lambda n: calculator.evaluate(["sqrt", ["number", str(n[0] ** 2 + n[1] ** 2)]]), 1, "sqrt(a^2 + b^2)",
    ),
}  # fmt: skip


def _shape(kind: str, parts: list[Any]) -> Value:
    formula, power, shown_as = _SHAPES[kind]
    units = {unit_name(part) for part in parts if isinstance(part, list)}
    if len(units) > 1 or any(not quantity("1", name).is_compatible_with("meter") for name in units):
        raise calculator.NoValue("mixed units")
    value = formula([_number(part) for part in parts if isinstance(part, str)])
    suffix = f" {shown(units.pop())}{('', '²', '³')[power - 1]}" if units else ""
    text = pretty(value, 10) + suffix
    return Value(text, f"{shown_as} = {text}")


def _ordered(quantities: list[Any], unit: str) -> list[Any]:
    """The two quantities, the one that `unit` measures first: both orders of words are the same question."""
    return sorted(quantities, key=lambda item: not item.is_compatible_with(unit))


def _bmi(parts: list[Any]) -> Value:
    mass, length = _ordered([read_quantity(part[1]) for part in parts], "gram")
    kilograms, meters = mass.to("kilogram").magnitude, length.to("meter").magnitude
    if not (2 < kilograms < 700 and Decimal("0.4") < meters < 3):
        raise calculator.NoValue("no body is like that")
    index = f"{kilograms / meters**2:.1f}"
    return Value(index, f"{kilograms:.4g} kg / ({meters:.4g} m)^2 = {index}")


def _density(parts: list[Any]) -> Value:
    mass, volume = _ordered([read_quantity(part) for part in parts], "gram")
    if not (mass.is_compatible_with("gram") and volume.is_compatible_with("liter")):
        raise calculator.NoValue("not a mass and a volume")
    return _quotient(mass, volume)


def _speed(parts: list[Any]) -> Value:
    distance, time = (read_quantity(part) for part in parts)
    if not (distance.is_compatible_with("meter") and time.is_compatible_with("second")):
        raise calculator.NoValue("not a distance and a time")
    return _quotient(distance, time)


def _economy(parts: list[Any]) -> Value:
    distance, fuel = (read_quantity(part) for part in parts)
    if not (distance.is_compatible_with("meter") and fuel.is_compatible_with("liter")):
        raise calculator.NoValue("not a distance and a volume")
    return _quotient(distance, fuel)


def _quotient(above: Any, below: Any) -> Value:
    result = above / below
    text = f"{pretty(Fraction(result.magnitude), 6)} {shown(result.units)}"
    working = f"{pretty(Fraction(above.magnitude))} {shown(above.units)} / {pretty(Fraction(below.magnitude))}"
    return Value(text, f"{working} {shown(below.units)} = {text}")


_MEASURED: dict[str, Callable[[list[Any]], Value]] = {
    "bmi": _bmi,
    "bmi_length": _bmi,
    "density": _density,
    "density_volume": _density,
    "speed": _speed,
    "economy": _economy,
}
