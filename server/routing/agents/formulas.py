"""Everyday formulas whose inputs are all given: tip, tax, body mass, density, interest, areas, speed."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

from .calculator import pretty, to_step
from .contract import AgentContext, Parse, Value
from .units import quantity, read_quantity, unit_name, written

_PERIODS = {"annually": 1, "semiannually": 2, "quarterly": 4, "monthly": 12, "weekly": 52, "daily": 365}
_PI = Decimal("3.141592653589793238462643383")


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
        if wanted:
            return None
        return _bmi(parts) if kind == "bmi" else _figure(kind, parts)
    except (ValueError, ArithmeticError, AttributeError, KeyError, TypeError):
        return None


def _figure(kind: str, parts: list[Any]) -> Value:
    """A formula of plain numbers: those without a name first, months as years, a way of compounding as `times`."""
    formula, places, form = _FIGURES[kind]
    plain, given = [Fraction(part) for part in parts if isinstance(part, str)], dict[str, Fraction]()
    for name, *held in (part for part in parts if isinstance(part, list)):
        if not held:
            given["times"] = Fraction(_PERIODS[name])
        elif name == "months":
            given["years"] = _number(held) / 12
        else:
            given[name] = _number(held)
    text = f"{float(to_step(formula(*plain, **given), Fraction(1, 10**places))):.{places}f}"
    working = form.format(*map(pretty, plain), **{"times": "1"} | {name: pretty(each) for name, each in given.items()})
    return Value(text, f"{working} = {text}")


def _number(part: Any) -> Fraction:
    return _number(part[-1]) if isinstance(part, list) else Fraction(part)


def _grown(rate: Fraction, years: Fraction, times: Fraction) -> Fraction:
    """What one unit becomes with interest of `rate` percent a year, compounded so many times a year."""
    count = years * times
    if count.denominator != 1 or count > 1200:
        raise ValueError("periods")
    return (1 + rate / times / 100) ** int(count)


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
    text = written(result.to(wanted or unit) if wanted or unit else result, 6)
    return Value(text, f"{shown_as}, {written(one, 6)} and {written(two, 6)}: {text}")


def _shape(kind: str, parts: list[Any], wanted: str) -> Value:
    formula, shown_as = _SHAPES[kind]
    units = {unit_name(part) for part in parts if isinstance(part, list)} or {""}
    if len(units) > 1 or not (units == {""} or quantity("1", *units).is_compatible_with("meter")):
        raise ValueError("mixed units")
    result = formula(*(quantity(part, *units) for part in parts if isinstance(part, str)))
    text = written(result.to(wanted) if wanted else result)
    return Value(text, f"{shown_as} = {text}")


def _payment(principal: Fraction, rate: Fraction, years: Fraction) -> Fraction:
    """What repays a loan in equal monthly parts."""
    grown = _grown(rate, years, Fraction(12))
    return principal * rate / 1200 * grown / (grown - 1)


_FIGURES: dict[str, tuple[Callable[..., Fraction], int, str]] = {
    "tip": (lambda money, percent: money * percent / 100, 2, "{percent}% of {money}"),
    "with_tip": (lambda money, percent: money * (1 + percent / 100), 2, "{money} + {percent}%"),
    "reduced": (lambda money, percent: money * (1 - percent / 100), 2, "{money} - {percent}%"),
    "split": (lambda shares, money: money / shares, 2, "{money} / {0}"),
    "split_tipped": (
        lambda shares, money, percent: money * (1 + percent / 100) / shares, 2, "({money} + {percent}%) / {0}",
    ),
    "simple_interest": (
        lambda principal, rate, years: principal * rate / 100 * years, 2, "{principal} * {rate}% * {years} years",
    ),
    "compound_interest": (
        lambda principal, rate, years, times=Fraction(1): principal * (_grown(rate, years, times) - 1), 2,
        "{principal} * (1 + {rate}%/{times})^({years} * {times}) - {principal}",
    ),
    "future_value": (
        lambda principal, rate, years, times=Fraction(1): principal * _grown(rate, years, times), 2,
        "{principal} * (1 + {rate}%/{times})^({years} * {times})",
    ),
    "loan_payment": (_payment, 2, "{principal} * r / (1 - (1 + r)^(-12 * {years})), r = {rate}%/12"),
    "batting": (lambda hits, times: hits / times, 3, "{0} / {1}"),
}  # fmt: skip
"""Each with its decimal places, and as it is written."""
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
_SHAPES: dict[str, tuple[Callable[..., Any], str]] = {
    "circle_area": (lambda r: _PI * r**2, "pi * r^2"),
    "circle_area_diameter": (lambda d: _PI * d**2 / 4, "pi * d^2 / 4"),
    "circumference": (lambda r: 2 * _PI * r, "2 * pi * r"),
    "circumference_diameter": (lambda d: _PI * d, "pi * d"),
    "rectangle_area": (lambda a, b: a * b, "length * width"),
    "rectangle_perimeter": (lambda a, b: 2 * (a + b), "2 * (length + width)"),
    "square_area": (lambda a: a**2, "side^2"),
    "triangle_area": (lambda a, h: a * h / 2, "base * height / 2"),
    "sphere_volume": (lambda r: 4 * _PI * r**3 / 3, "4/3 * pi * r^3"),
    "cube_volume": (lambda a: a**3, "side^3"),
    "cylinder_volume": (lambda r, h: _PI * r**2 * h, "pi * r^2 * h"),
    "box_volume": (lambda a, b, c: a * b * c, "length * width * height"),
    "cone_volume": (lambda r, h: _PI * r**2 * h / 3, "pi * r^2 * h / 3"),
    "sphere_surface": (lambda r: 4 * _PI * r**2, "4 * pi * r^2"),
    "cube_surface": (lambda a: 6 * a**2, "6 * side^2"),
    "square_perimeter": (lambda a: 4 * a, "4 * side"),
    "trapezoid_area": (lambda a, b, h: (a + b) / 2 * h, "(a + b) / 2 * h"),
    "hypotenuse": (lambda a, b: quantity((a**2 + b**2).magnitude.sqrt(), a.units), "sqrt(a^2 + b^2)"),
}
