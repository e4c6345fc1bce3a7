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
    kind, parts = str(parse[0]), list[Any](parse[1:])
    try:
        if kind == "in_unit":
            kind, parts = str(parts[0][0]), [*parts[0][1:], parts[1]]
        wanted = next((unit_name(part[1]) for part in parts if part[0] == "wanted"), "")
        parts = [part for part in parts if part[0] != "wanted"]
        if kind == "motion":
            timed = any(read_quantity(part).is_compatible_with("second") for part in parts)
            kind = "distance" if timed else "travel_time"
        if kind in _MEASURES:
            return _measure(kind, parts, wanted)
        if kind in _SHAPES:
            return _shape(kind, parts, wanted)
        return None if wanted else _FORMULAS[kind](parts)
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


def _split(parts: list[Any]) -> Value:
    """A bill in equal shares, a tip added to it where one is named."""
    shares = next(_number(part) for part in parts if isinstance(part, str))
    given = {str(part[0]): _number(part) for part in parts if isinstance(part, list)}
    total = given["money"] * (1 + given.get("percent", Fraction(0)) / 100)
    return Value(text := _cash(total / shares), f"{_cash(total)} / {pretty(shares)} = {text}")


def _interest(parts: list[Any], compound: bool, kept: bool = False, paid: bool = False) -> Value:
    """Interest earned; with `kept` the principal too; or the monthly payment (`paid`) that repays a loan."""
    given = {str(part[0]): part for part in parts}
    principal, rate = _number(given["principal"]), _number(given["rate"]) / 100
    years = _number(given["years"]) if "years" in given else _number(given["months"]) / 12
    if compound:
        times = 12 if paid else next((_PERIODS[kind] for kind in given if kind in _PERIODS), 1)
        count = years * times
        if count.denominator != 1 or count > 1200:
            raise ValueError("periods")
        grown = (1 + rate / times) ** int(count)
        earned = principal * (grown if kept else grown - 1)
        formula = (
            f"{pretty(principal)} * (1 + {pretty(rate)}/{times})^{count}{'' if kept else f' - {pretty(principal)}'}"
        )
        if paid:
            earned = principal * rate / times * grown / (grown - 1)
            formula = f"{pretty(principal)} * r / (1 - (1 + r)^-{count}), r = {pretty(rate)}/12"
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


def _measure(kind: str, parts: list[Any], wanted: str) -> Value:
    first, second, formula, shown_as, unit = _MEASURES[kind]
    one, two = _ordered(parts, first, second)
    result = formula(one, two)
    result = result.to(wanted or unit) if wanted or unit else result
    working = f"{shown_as}, {_written(one)} and {_written(two)}"
    return Value(text := _written(result), f"{working}: {text}")


def _written(value: Any) -> str:
    return f"{pretty(Fraction(value.magnitude), 6)} {shown(value.units)}"


_FORMULAS: dict[str, Callable[[list[Any]], Value]] = {
    "tip": _share,
    "with_tip": partial(_share, keep=1),
    "reduced": partial(_share, keep=1, sign=-1),
    "split": _split,
    "split_tipped": _split,
    "simple_interest": partial(_interest, compound=False),
    "compound_interest": partial(_interest, compound=True),
    "future_value": partial(_interest, compound=True, kept=True),
    "loan_payment": partial(_interest, compound=True, paid=True),
    "batting": partial(_quotient, places=3),
    "bmi": _bmi,
}
_MEASURES: dict[str, tuple[str, str, Callable[[Any, Any], Any], str, str]] = {
    "density": ("gram", "liter", lambda mass, volume: mass / volume, "mass / volume", ""),
    "speed": ("meter", "second", lambda way, time: way / time, "distance / time", ""),
    "pace": ("second", "meter", lambda time, way: time / way, "time / distance", ""),
    "economy": ("meter", "liter", lambda way, fuel: way / fuel, "distance / fuel", ""),
    "travel_time": ("meter", "meter / second", lambda way, v: (way / v).to_reduced_units(), "distance / speed", ""),
    "distance": ("meter / second", "second", lambda v, time: (v * time).to_reduced_units(), "speed * time", ""),
    "kinetic_energy": ("gram", "meter / second", lambda mass, v: mass * v**2 / 2, "m * v^2 / 2", "joule"),
    "force": ("gram", "meter / second ** 2", lambda mass, a: mass * a, "m * a", "newton"),
    "energy": ("watt", "second", lambda power, time: power * time, "power * time", "kilowatt_hour"),
    "power": ("volt", "ampere", lambda volts, amps: volts * amps, "U * I", "watt"),
    "voltage": ("ampere", "ohm", lambda amps, ohms: amps * ohms, "I * R", "volt"),
    "current": ("volt", "ohm", lambda volts, ohms: volts / ohms, "U / R", "ampere"),
    "resistance": ("volt", "ampere", lambda volts, amps: volts / amps, "U / I", "ohm"),
}
"""Each with the kinds of its two quantities, said in either order, and the result's unit where it is not theirs."""
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
    "cone_volume": (lambda n: PI * n[0] ** 2 * n[1] / 3, "³", "pi * r^2 * h / 3"),
    "sphere_surface": (lambda n: 4 * PI * n[0] ** 2, "²", "4 * pi * r^2"),
    "cube_surface": (lambda n: 6 * n[0] ** 2, "²", "6 * side^2"),
    "square_perimeter": (lambda n: 4 * n[0], "", "4 * side"),
    "trapezoid_area": (lambda n: (n[0] + n[1]) / 2 * n[2], "²", "(a + b) / 2 * h"),
    "hypotenuse": (lambda n: root(n[0] ** 2 + n[1] ** 2), "", "sqrt(a^2 + b^2)"),
}


def _shape(kind: str, parts: list[Any], wanted: str) -> Value:
    formula, power, shown_as = _SHAPES[kind]
    units = {unit_name(part) for part in parts if isinstance(part, list)}
    if len(units) > 1 or any(not quantity("1", name).is_compatible_with("meter") for name in units):
        raise ValueError("mixed units")
    value = formula([_number(part) for part in parts if isinstance(part, str)])
    text = pretty(value, 10)
    if wanted:
        name = f"({units.pop()}) ** {' ²³'.index(power or ' ') + 1}"
        text = _written(quantity(Decimal(value.numerator) / Decimal(value.denominator), name).to(wanted))
    elif units:
        text += f" {shown(units.pop())}{power}"
    return Value(text, f"{shown_as} = {text}")
