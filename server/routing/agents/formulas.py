"""Everyday formulas whose inputs are all given: tip, tax, body mass, density, interest, areas, speed."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any

from .calculator import PI, pretty, root, to_step
from .contract import AgentContext, Parse, Value
from .units import quantity, read_quantity, shown, unit_name

_PERIODS = {"annually": 1, "semiannually": 2, "quarterly": 4, "monthly": 12, "weekly": 52, "daily": 365}


def compute(parse: Parse, context: AgentContext | None = None) -> Value | None:
    """The formula's value with the formula filled in; None where the inputs are not of its kind or give none."""
    kind, parts = str(parse[0]), list(parse[1:])
    try:
        return _FORMULAS[kind](parts) if kind in _FORMULAS else _shape(kind, parts)
    except (ValueError, ArithmeticError, AttributeError, KeyError, TypeError):
        return None


def _number(part: Any) -> Fraction:
    while isinstance(part, list):
        part = part[1]
    return Fraction(part)


def _cash(value: Fraction) -> str:
    return f"{float(to_step(value, Fraction(1, 100))):.2f}"


def _share(parts: list[Any], keep: int = 0, sign: int = 1) -> Value:
    """A percentage of an amount; with `keep` the amount too, the percentage added or (`sign` -1) taken off."""
    given = {str(part[0]): _number(part) for part in parts}
    money, share = given["money"], given["money"] * given["percent"] / 100
    working = f"{pretty(given['percent'])}% of {pretty(money)} = {_cash(share)}"
    total = _cash(money + sign * share)
    return Value(total if keep else _cash(share), f"{working}; {'less it' if sign < 0 else 'together'} {total}")


def _quotient(parts: list[Any], places: int) -> Value:
    first, second = _number(parts[0]), _number(parts[1])
    text = f"{float(to_step(first / second, Fraction(1, 10**places))):.{places}f}"
    return Value(text, f"{pretty(first)} / {pretty(second)} = {text}")


def _interest(parts: list[Any], compound: bool) -> Value:
    principal, rate, years = _number(parts[0]), _number(parts[1]) / 100, _number(parts[2])
    years /= 12 if parts[2][0] == "months" else 1
    if compound:
        times = _PERIODS[parts[3][0]] if len(parts) > 3 else 1
        count = years * times
        if count.denominator != 1 or count > 1200:
            raise ValueError("periods")
        earned = principal * (1 + rate / times) ** int(count) - principal
        formula = f"{pretty(principal)} * (1 + {pretty(rate)}/{times})^{count} - {pretty(principal)}"
    else:
        earned = principal * rate * years
        formula = f"simple interest: {pretty(principal)} * {pretty(rate)} * {pretty(years)} years"
    return Value(_cash(earned), f"{formula} = {_cash(earned)}")


def _ordered(parts: list[Any], first: str, second: str) -> list[Any]:
    """The two quantities in this order, whichever was said first; a quantity of another kind is refused."""
    found = [read_quantity(part[1] if part[0] in ("mass", "length") else part) for part in parts]
    found.sort(key=lambda item: not item.is_compatible_with(first))
    if not (found[0].is_compatible_with(first) and found[1].is_compatible_with(second)):
        raise ValueError("not quantities of these kinds")
    return found


def _bmi(parts: list[Any]) -> Value:
    mass, length = _ordered(parts, "gram", "meter")
    kilograms, meters = mass.to("kilogram").magnitude, length.to("meter").magnitude
    if not (2 < kilograms < 700 and Decimal("0.4") < meters < 3):
        raise ValueError("no body is like that")
    index = f"{kilograms / meters**2:.1f}"
    return Value(index, f"{kilograms:.4g} kg / ({meters:.4g} m)^2 = {index}")


def _ratio(parts: list[Any], first: str, second: str) -> Value:
    above, below = _ordered(parts, first, second)
    result = above / below
    text = f"{pretty(Fraction(result.magnitude), 6)} {shown(result.units)}"
    working = f"{pretty(Fraction(above.magnitude))} {shown(above.units)} / {pretty(Fraction(below.magnitude))}"
    return Value(text, f"{working} {shown(below.units)} = {text}")


_FORMULAS: dict[str, Callable[[list[Any]], Value]] = {
    "tip": _share,
    "with_tip": partial(_share, keep=1),
    "reduced": partial(_share, keep=1, sign=-1),
    "split": partial(_quotient, places=2),
    "simple_interest": partial(_interest, compound=False),
    "compound_interest": partial(_interest, compound=True),
    "batting": partial(_quotient, places=3),
    "bmi": _bmi,
    "density": partial(_ratio, first="gram", second="liter"),
    "speed": partial(_ratio, first="meter", second="second"),
    "economy": partial(_ratio, first="meter", second="liter"),
}
_SHAPES: dict[str, tuple[Callable[[list[Fraction]], Fraction], str, str]] = {
    "circle_area": (lambda n: PI * n[0] ** 2, "²", "pi * r^2"),
    "circle_area_diameter": (lambda n: PI * n[0] ** 2 / 4, "²", "pi * d^2 / 4"),
    "circumference": (lambda n: 2 * PI * n[0], "", "2 * pi * r"),
    "circumference_diameter": (lambda n: PI * n[0], "", "pi * d"),
    "rectangle_area": (lambda n: n[0] * n[1], "²", "length * width"),
    "rectangle_perimeter": (lambda n: 2 * (n[0] + n[1]), "", "2 * (length + width)"),
    "square_area": (lambda n: n[0] ** 2, "²", "side^2"),
    "triangle_area": (lambda n: n[0] * n[1] / 2, "²", "base * height / 2"),
    "sphere_volume": (lambda n: 4 * PI * n[0] ** 3 / 3, "³", "4/3 * pi * r^3"),
    "cube_volume": (lambda n: n[0] ** 3, "³", "side^3"),
    "cylinder_volume": (lambda n: PI * n[0] ** 2 * n[1], "³", "pi * r^2 * h"),
    "box_volume": (lambda n: n[0] * n[1] * n[2], "³", "length * width * height"),
    "hypotenuse": (lambda n: root(n[0] ** 2 + n[1] ** 2), "", "sqrt(a^2 + b^2)"),
}


def _shape(kind: str, parts: list[Any]) -> Value:
    formula, power, shown_as = _SHAPES[kind]
    units = {unit_name(part) for part in parts if isinstance(part, list)}
    if len(units) > 1 or any(not quantity("1", name).is_compatible_with("meter") for name in units):
        raise ValueError("mixed units")
    value = formula([_number(part) for part in parts if isinstance(part, str)])
    text = pretty(value, 10) + (f" {shown(units.pop())}{power}" if units else "")
    return Value(text, f"{shown_as} = {text}")
