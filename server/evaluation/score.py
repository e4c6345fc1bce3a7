"""What a suite says: one figure, how sure it is, what a trivial answerer gets, and whether the target is met."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError, field_validator

from rolecall.config.profile import Frozen

from ..errors import BadRequest
from .intervals import Interval

M = TypeVar("M", bound=Frozen)
T = TypeVar("T")

OnStep = Callable[[dict[str, Any]], None]
"""Progress: `words`, with `done` of `total` where they are known."""

DIGITS = 4


class Verdict(StrEnum):
    MET = "met"
    NOT_MET = "not met"
    NOT_PROVEN = "not proven"


class _Figures(Frozen):
    """Holds every float at four digits."""

    @field_validator("*", mode="before")
    @classmethod
    def _at_four_digits(cls, value: Any) -> Any:
        return rounded(value)


class Control(_Figures):
    """What needs no skill, on the same items."""

    name: str
    score: float


class Score(_Figures):
    """A suite's outcome over `n` items; `interval` is the score's (95%), `detail` the suite's own figures."""

    suite: str
    n: int
    score: float
    interval: Interval
    control: Control
    verdict: Verdict
    detail: dict[str, Any]


def verdict(score: float, interval: Interval, target: float, missed: Sequence[str] = ()) -> Verdict:
    """Not met where the score is under its target or a further bound is `missed`; met where the whole interval is at or
    over the target; else not proven."""
    if score < target or missed:
        return Verdict.NOT_MET
    return Verdict.MET if interval[0] >= target else Verdict.NOT_PROVEN


def parsed(file: Path, parse: Callable[[bytes], T], advice: str) -> T:
    """What `parse` makes of the file. Raises BadRequest for one that it cannot read."""
    try:
        return parse(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BadRequest(f"{file.name} cannot be read.", found=f"{file}: {error}"[:300], advice=advice) from None


def items_of(shape: type[M], rows: Iterable[Any], advice: str) -> list[M]:
    """The rows as `shape`. Raises BadRequest naming the first that is none, or where there are no rows."""
    found = list[M]()
    for number, row in enumerate(rows, 1):
        try:
            found.append(shape.model_validate(row))
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            what = f"item {number}, {'.'.join(map(str, first['loc'])) or 'whole'}: {first['msg']}"
            raise BadRequest("An item of the data has the wrong shape.", found=what, advice=advice) from None
    if not found:
        raise BadRequest("The data holds no items.", advice=advice)
    return found


def evenly(items: Sequence[T], limit: int) -> list[T]:
    """`limit` of the items, at equal distances; 0: all."""
    count = min(limit or len(items), len(items))
    return [items[number * len(items) // count] for number in range(count)]


def rounded(value: Any) -> Any:
    """The same with every float at four digits, for a report."""
    if isinstance(value, dict):
        return {str(key): rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(each) for each in value]
    return round(float(value), DIGITS) if isinstance(value, float) else value
