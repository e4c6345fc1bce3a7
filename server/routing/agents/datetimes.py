"""Clock, calendar and time zones, from the context's clock and the IANA data base."""

from __future__ import annotations

import calendar
import re
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from .contract import AgentContext, Parse, Value
from .vocabulary import meaning

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_HOLIDAYS = {
    "christmas": (12, 25), "christmas_eve": (12, 24), "halloween": (10, 31), "new_years_eve": (12, 31),
    "valentines": (2, 14), "new_years_day": (1, 1),
}  # fmt: skip


class NoDate(Exception):
    """The words name no date or time that exists."""


@dataclass(frozen=True, slots=True)
class _Now:
    moment: datetime

    @property
    def today(self) -> date:
        return self.moment.date()


def compute(parse: Parse, context: AgentContext) -> Value | None:
    """The date or time asked for, or None where the words name none."""
    zone = context.timezone or context.now.tzinfo
    now = _Now(context.now.astimezone(zone))
    try:
        text, working = _answer(str(parse[0]), list(parse[1:]), now)
    except (NoDate, ValueError, OverflowError, KeyError, IndexError):
        return None
    return Value(text, working or f"now is {now.moment:%Y-%m-%d %H:%M %Z}")


def is_sound(parse: Parse) -> bool:
    """Whether all dates and times in the parse exist: no 31 February, no 25 o'clock. A fixed day stands for today."""
    probe = _Now(datetime(2024, 1, 1, 12, tzinfo=ZoneInfo("UTC")))
    try:
        _answer(str(parse[0]), list(parse[1:]), probe)
    except (NoDate, ValueError, OverflowError, KeyError, IndexError):
        return False
    return True


def _answer(kind: str, parts: list[Any], now: _Now) -> tuple[str, str]:
    if kind.endswith(("_now", "_in")) and kind.partition("_")[0] in _NOW:
        zone = _zone(parts[0]) if parts and isinstance(parts[0], list) and parts[0][0] == "place" else None
        moment = now.moment.astimezone(zone) if zone else now.moment
        if kind not in ("weekday_in", "clock_in"):
            return _NOW[kind.partition("_")[0]](moment), f"the clock in {zone}" if zone else ""
    if kind.startswith("zone"):
        return _zones(kind, parts, now)
    if kind.startswith("clock") or kind in ("noon", "midnight"):
        return _clocks(kind, parts, now)
    return _dates(kind, parts, now)


_NOW = {
    "time": lambda moment: f"{moment:%H:%M} ({moment:%I:%M %p}) {moment:%Z}, {moment:%A}",
    "date": lambda moment: f"{moment:%A}, {_long(moment.date())}",
    "day": lambda moment: f"{moment:%A}, {_long(moment.date())}",
    "month": lambda moment: f"{moment:%B %Y}",
    "year": lambda moment: f"{moment:%Y}",
    "week": lambda moment: f"week {moment.isocalendar().week} of {moment.isocalendar().year} (ISO)",
    "moment": lambda moment: f"{moment:%A}, {_long(moment.date())}, {moment:%H:%M %Z}",
}


def _long(day: date) -> str:
    return f"{day.day} {calendar.month_name[day.month]} {day.year}"


def _zone(place: Parse) -> ZoneInfo:
    return ZoneInfo(meaning("CITY", str(place[1])))


def _zones(kind: str, parts: list[Any], now: _Now) -> tuple[str, str]:
    if kind == "zone_difference":
        first, second = _zone(parts[0]), _zone(parts[1])
        offsets = [now.moment.astimezone(zone).utcoffset() or timedelta() for zone in (first, second)]
        hours = (offsets[0] - offsets[1]) / timedelta(hours=1)
        relation = "the same time as" if hours == 0 else f"{abs(hours):g} hours {'ahead of' if hours > 0 else 'behind'}"
        return f"{parts[0][1].title()} is {relation} {parts[1][1].title()}", f"today: {first} and {second}"
    zoned, target = (parts[1], parts[0]) if kind == "zone_convert_to" else (parts[0], parts[1])
    source, goal = _zone(zoned[-1]), _zone(target)
    there = datetime.combine(now.moment.astimezone(source).date(), _time(zoned[1]), source)
    here = there.astimezone(goal)
    shift = (here.date() - there.date()).days
    suffix = {0: "", 1: " the next day", -1: " the day before"}[shift]
    return f"{here:%H:%M} ({here:%I:%M %p}) {here:%Z}{suffix}", f"{there:%H:%M} {source} = {here:%H:%M} {goal}"


def _time(parse: Parse) -> time:
    if parse[0] in ("noon", "midnight"):
        return time(12 if parse[0] == "noon" else 0)
    if parse[0] != "clock":
        raise NoDate(parse[0])
    pieces = [int(piece) for piece in str(parse[1]).split(":")]
    if len(parse) == 3:
        if not 1 <= pieces[0] <= 12:
            raise NoDate(parse[1])
        pieces[0] = pieces[0] % 12 + (12 if str(parse[2]).startswith("p") else 0)
    return time(pieces[0], pieces[1] if len(pieces) > 1 else 0)


def _clocks(kind: str, parts: list[Any], now: _Now) -> tuple[str, str]:
    periods, numbers = _periods(parts)
    clocks = [part for part in parts if isinstance(part, list)]
    if kind == "clock_between":
        start, end = (_minutes(part) for part in clocks)
        minutes = (end - start) % (24 * 60)
        return _duration(minutes, periods), f"{_time(clocks[0]):%H:%M} to {_time(clocks[1]):%H:%M}"
    if kind == "clock_until":
        target = _minutes(clocks[0])
        minutes = (target - now.moment.hour * 60 - now.moment.minute) % (24 * 60)
        return _duration(minutes, periods), f"now is {now.moment:%H:%M}"
    if not numbers:
        raise NoDate(kind)
    seconds = sum(number * _SECONDS[_singular(period)] for number, period in zip(numbers, periods, strict=True))
    shift = timedelta(seconds=-seconds if kind in ("clock_ago", "clock_before", "clock_minus") else seconds)
    start_at = datetime.combine(now.today, _time(clocks[0])) if clocks else now.moment
    end_at = start_at + shift
    days = (end_at.date() - start_at.date()).days
    day = {0: "", 1: " the next day", -1: " the day before"}.get(days, f" on {_long(end_at.date())}")
    sign = "+" if shift >= timedelta() else "-"
    return f"{end_at:%H:%M} ({end_at:%I:%M %p}){day}", f"{start_at:%H:%M} {sign} {abs(shift)}"


_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}


def _singular(period: str) -> str:
    return {"min": "minute", "hr": "hour"}.get(period.removesuffix("s"), period.removesuffix("s"))


def _minutes(parse: Parse) -> int:
    moment = _time(parse)
    return moment.hour * 60 + moment.minute


def _periods(parts: list[Any]) -> tuple[list[str], list[int]]:
    words = [part for part in parts if isinstance(part, str)]
    return [word for word in words if not word.isdigit()], [int(word) for word in words if word.isdigit()]


def _duration(minutes: int, periods: list[str]) -> str:
    asked = _singular(periods[0]) if periods else ""
    if asked in _SECONDS:
        return f"{minutes * 60 / _SECONDS[asked]:g} {asked}s"
    return f"{minutes // 60} hours {minutes % 60} minutes"


def _dates(kind: str, parts: list[Any], now: _Now) -> tuple[str, str]:
    if kind in ("until", "since", "between", "between_to", "until_named"):
        return _span(kind, parts, now)
    if kind == "month_days":
        year = _year(parts[1], now) if len(parts) > 1 else now.today.year
        month = _MONTHS.index(str(parts[0])[:3]) + 1
        if month == 2 and len(parts) == 1:
            return "28 days, 29 in a leap year", ""
        return f"{calendar.monthrange(year, month)[1]} days", f"{calendar.month_name[month]} {year}"
    if kind == "leap_year":
        year = _year(parts[0], now)
        return ("Yes" if calendar.isleap(year) else "No"), f"{year}: divisible by 4, and by 400 where by 100"
    if kind == "weekday_in":
        day = _shift(now.today, int(parts[0]), parts[1])
        return f"{day:%A}, {_long(day)}", f"{parts[0]} {parts[1]} after {now.today}"
    if kind in ("date_shift", "weekday_shift", "date_of", "weekday"):
        day = _date(parts[0], now)
        return f"{day:%A}, {_long(day)}", f"today is {now.today}"
    if kind == "week_of":
        day = _date(parts[0], now)
        return f"week {day.isocalendar().week} of {day.isocalendar().year} (ISO)", str(day)
    day = _date([kind, *parts], now)
    return f"{day:%A}, {_long(day)}", f"today is {now.today}"


def _span(kind: str, parts: list[Any], now: _Now) -> tuple[str, str]:
    period = next((_singular(part) for part in parts if isinstance(part, str)), "day")
    dates = [_date(part, now) for part in parts if isinstance(part, list)]
    if kind in ("until", "until_named"):
        start, end = now.today, dates[0]
    elif kind == "since":
        start, end = dates[0], now.today
    else:
        start, end = (dates[1], dates[0]) if kind == "between_to" else (dates[0], dates[1])
    days = (end - start).days
    if kind == "between":
        days = abs(days)
    whole = f"{days} days" if abs(days) != 1 else f"{days} day"
    if period in ("month", "year"):
        months = (end.year - start.year) * 12 + end.month - start.month - (end.day < start.day)
        text = f"{months} whole months ({whole})" if period == "month" else f"{months // 12} whole years ({whole})"
    elif period == "week":
        text = f"{days / 7:.4g} weeks ({whole})"
    elif period in ("hour", "minute", "second"):
        text = f"{days * 86400 // _SECONDS[period]} {period}s ({whole})"
    elif period == "day":
        text = whole
    else:
        raise NoDate(period)
    return text, f"from {start} to {end}"


def _date(parse: Parse, now: _Now) -> date:
    """The date that a parse names; a day without a year is this year's."""
    kind, today = str(parse[0]), now.today
    parts: list[Any] = list(parse[1:])
    if kind in _RELATIVE:
        return today + timedelta(days=_RELATIVE[kind])
    if kind in ("next_weekday", "last_weekday"):
        ahead = (_DAYS.index(str(parts[0])) - today.weekday()) % 7
        return today + timedelta(days=(ahead or 7) if kind == "next_weekday" else (ahead - 7))
    if kind == "date":
        inner: Parse = parts[0]
        return _holiday(parts, now) if inner[0] in _HOLIDAYS else _date(inner, now)
    if kind == "iso":
        return date(*(int(piece) for piece in str(parts[0]).split("-")))
    if kind == "slashed":
        month, day, year = (int(piece) for piece in str(parts[0]).split("/"))
        if month <= 12 and day <= 12 and month != day:
            raise NoDate("day and month cannot be told apart")
        return date(year, month, day) if month <= 12 else date(year, day, month)
    if kind in ("month_day", "day_month", "named_month_day"):
        return _month_day(parts, now)
    if kind in ("new_year", "year_end"):
        year = _year(parts[-1], now) if parts else today.year + (kind == "new_year")
        return date(year, 1, 1) if kind == "new_year" else date(year, 12, 31)
    return _shifted(kind, parts, now)


_RELATIVE = {"today": 0, "tomorrow": 1, "yesterday": -1, "after_tomorrow": 2, "before_yesterday": -2}


def _holiday(parts: list[Any], now: _Now) -> date:
    month, day = _HOLIDAYS[str(parts[0][0])]
    return date(_year(parts[1], now) if len(parts) > 1 else now.today.year, month, day)


def _month_day(parts: list[Any], now: _Now) -> date:
    words = [part for part in parts if isinstance(part, str)]
    month = next(_MONTHS.index(word[:3]) + 1 for word in words if word[:3] in _MONTHS)
    day = next(int(re.sub(r"\D", "", word)) for word in words if word[0].isdigit())
    year = next((_year(part, now) for part in parts if isinstance(part, list)), now.today.year)
    return date(year, month, day)


def _year(part: Parse | str, now: _Now) -> int:
    kind = part[0]
    if kind == "year":
        year = int(str(part[1]))
        if not 1000 <= year <= 2999:
            raise NoDate("a year has four digits")
        return year
    return now.today.year + {"this_year": 0, "next_year": 1, "last_year": -1}[str(kind)]


def _shifted(kind: str, parts: list[Any], now: _Now) -> date:
    if kind == "date_shift":
        return _date(parts[0], now)
    start = next((_date(part, now) for part in parts if isinstance(part, list)), now.today)
    numbers = [int(part) for part in parts if isinstance(part, str) and part.isdigit()] or [1]
    period = next(part for part in parts if isinstance(part, str) and not part.isdigit())
    backwards = kind.startswith(("before", "one_before")) or kind == "date_before"
    return _shift(start, -numbers[0] if backwards else numbers[0], period)


def _shift(start: date, count: int, period: str) -> date:
    name = _singular(period)
    if name in ("month", "year", "decade"):
        months = start.year * 12 + start.month - 1 + count * {"month": 1, "year": 12, "decade": 120}[name]
        year, month = divmod(months, 12)
        return date(year, month + 1, min(start.day, calendar.monthrange(year, month + 1)[1]))
    if name not in ("day", "week", "fortnight"):
        raise NoDate(period)
    return start + timedelta(days=count * {"day": 1, "week": 7, "fortnight": 14}[name])
