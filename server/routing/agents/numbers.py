"""Numbers in and out: exact fractions from text, readable text from fractions, other bases."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction

_SHOWN_DIGITS = 12
_MAX_SHOWN = 400
_ROMAN = (
    (1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"),
    (9, "IX"), (5, "V"), (4, "IV"), (1, "I"),
)  # fmt: skip


def to_fraction(text: str) -> Fraction:
    """A decimal numeral as a fraction.

    Raises:
        ValueError: its exponent is out of reach.
    """
    _, _, exponent = text.partition("e")
    if exponent and abs(int(exponent)) > 300:
        raise ValueError(f"exponent {exponent} of {text} exceeds 300")
    return Fraction(text)


def integer_of(value: Fraction) -> int | None:
    return value.numerator if value.denominator == 1 else None


def pretty(value: Fraction, digits: int = _SHOWN_DIGITS) -> str:
    """Whole numbers in full; else up to `digits` significant digits without trailing zeros.

    Raises:
        ValueError: the number has more than 400 digits.
    """
    if value.denominator == 1:
        text = str(value.numerator)
        if len(text) > _MAX_SHOWN:
            raise ValueError("too many digits to show")
        return text
    context = Context(prec=digits, rounding=ROUND_HALF_EVEN)
    number = context.divide(Decimal(value.numerator), Decimal(value.denominator))
    text = f"{number:f}" if -8 < number.adjusted() < 16 else f"{number}"
    return text.rstrip("0").rstrip(".") if "." in text and "E" not in text else text


def to_base(number: int, base: int | str) -> str:
    """A whole number in base 2 to 36, or in Roman numerals (1 to 3999).

    Raises:
        ValueError: there is no such numeral.
    """
    if isinstance(base, str):
        return _roman(number)
    if number == 0:
        return "0"
    digits, left = "", abs(number)
    while left:
        left, digit = divmod(left, base)
        digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"[digit] + digits
    return ("-" if number < 0 else "") + digits


def _roman(number: int) -> str:
    if not 0 < number < 4000:
        raise ValueError(f"{number} has no Roman numeral")
    text = ""
    for value, sign in _ROMAN:
        count, number = divmod(number, value)
        text += sign * count
    return text
