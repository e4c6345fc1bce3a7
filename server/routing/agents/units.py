"""Conversion of units through pint, in decimals."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Any

from .calculator import pretty
from .contract import AgentContext, Parse, Value
from .words import vocabulary

_INTERNATIONAL = ("acre = 43560 * foot ** 2", "furlong = 660 * foot", "fathom = 6 * foot")
"""Pint measures these in the US survey foot, retired in 2022. Source: NIST SP 811, appendix B.6, note on the foot."""


@cache
def registry() -> Any:
    """Pint's units, with decimal factors; loaded once, at the first conversion."""
    import pint

    units = pint.UnitRegistry(non_int_type=Decimal, cache_folder=None, on_redefinition="ignore")
    for definition in _INTERNATIONAL:
        units.define(definition)
    return units


def quantity(number: str | Decimal, unit: str) -> Any:
    return registry().Quantity(Decimal(number), unit)


def compute(parse: Parse, context: AgentContext | None = None) -> Value | None:
    """The quantity in the unit asked for; None where the two do not measure the same thing, or are the same unit."""
    try:
        if parse[0] in ("percent_of", "plus", "minus"):
            return _combined(parse)
        if parse[0] == "feet_inches":
            return _feet_inches(read_quantity(list(parse[1])))
        source, target = _sides(parse)
        if source.units == registry().Unit(target):
            return None
        converted = source.to(target)
    except (ValueError, ArithmeticError, AttributeError, TypeError):
        return None
    text = written(converted)
    return Value(text, f"{written(source)} = {text}")


def _combined(parse: Parse) -> Value:
    """A share, a sum or a difference, in the first quantity's unit where no other is asked for."""
    first, *others = (part for part in parse[1:] if isinstance(part, list))
    left = read_quantity(first)
    if parse[0] == "percent_of":
        working, result = f"{parse[1]}% of {written(left)}", left * (Decimal(str(parse[1])) / 100)
    else:
        right = read_quantity(others[0])
        working = f"{written(left)} {'+' if parse[0] == 'plus' else '-'} {written(right)}"
        result = left + right if parse[0] == "plus" else left - right
    if others and others[-1][0] == "unit":
        result = result.to(unit_name(others[-1]))
    text = written(result)
    return Value(text, f"{working} = {text}")


def _feet_inches(source: Any) -> Value:
    feet, inches = divmod(Fraction(source.to("inch").magnitude), 12)
    if source.units == registry().Unit("foot") and not inches:
        raise ValueError("nothing to convert")
    text = f"{feet} ft {pretty(inches, 6)} in"
    return Value(text, f"{written(source)} = {text}")


def written(value: Any, digits: int = 10) -> str:
    """A quantity with up to so many significant digits and its unit's symbol."""
    return f"{pretty(Fraction(value.magnitude), digits)} {shown(value.units)}".rstrip()


def shown(unit: Any) -> str:
    """The unit's symbol, as in "km" or "mi/h"."""
    return {"floz": "fl oz", "cp": "cup", "daa": "decades"}.get(symbol := f"{registry().Unit(str(unit)):~P}", symbol)


def _sides(parse: Parse) -> tuple[Any, str]:
    """The source as a quantity and the target's name. An ounce is a fluid ounce where the other side is a volume."""
    parts = [part for part in parse[1:] if isinstance(part, list)]
    if parse[0] == "convert_from":
        return quantity(str(parts[2][1]), unit_name(parts[0])), unit_name(parts[1])
    given, wanted = (parts[-1], parts[0]) if parse[0] == "convert_to" else (parts[0], parts[-1])
    source, target = read_quantity(given), unit_name(wanted)
    if not source.is_compatible_with(target):
        if target == "ounce":
            target = "fluid_ounce"
        elif source.units == registry().Unit("ounce"):
            source = quantity(source.magnitude, "fluid_ounce")
    return source, target


def unit_name(parse: Parse) -> str:
    return vocabulary("UNIT")[tuple(str(parse[-1]).split())]


def read_quantity(parse: Parse) -> Any:
    """A parsed quantity in pint: plain, compound ("5 ft 10 in"), a half, a fraction or a single unit."""
    kind, parts = str(parse[0]), parse[1:]
    if kind == "quantity" and isinstance(parts[0], list):
        return read_quantity(parts[0])
    units = [unit_name(part) for part in parts if isinstance(part, list)]
    numbers = [Decimal(part) for part in parts if isinstance(part, str)]
    if kind == "compound":
        if units[0] == units[1]:
            raise ValueError("not a compound quantity")
        return quantity(numbers[0], units[0]) + quantity(numbers[1], units[1])
    if kind in ("feet_inches", "compound_short"):
        if units not in ([], ["foot"]):
            raise ValueError("only feet are followed by bare inches")
        return quantity(numbers[0] * 12 + numbers[1], "inch")
    return quantity(_AMOUNTS[kind](*numbers), units[0])


_AMOUNTS: dict[str, Callable[..., Decimal]] = {
    "quantity": Decimal,
    "single": lambda: Decimal(1),
    "half_unit": lambda: Decimal("0.5"),
    "quarter_unit": lambda: Decimal("0.25"),
    "and_half": lambda number: number + Decimal("0.5"),
    "minus_unit": lambda number: -number,
    "quarters_unit": lambda number: number / 4,
    "fraction_unit": lambda above, below: above / below,
    "mixed_unit": lambda whole, above, below: whole + above / below,
}
"""How many of its unit each kind of quantity is."""
