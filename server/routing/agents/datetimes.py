"""Clock, calendar and time zones, from the context's clock and the IANA data base."""

from __future__ import annotations

import calendar
import re
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from .contract import AgentContext, Parse, Value
from .words import vocabulary

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_HOLIDAYS = {
    "christmas": (12, 25), "christmas_eve": (12, 24), "halloween": (10, 31), "new_years_eve": (12, 31),
    "valentines": (2, 14), "new_years_day": (1, 1),
}  # fmt: skip
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}


def compute(parse: Parse, context: AgentContext) -> Value | None:
    """The date or time asked for, or None where the words name none."""
    try:
        text, working = _answer(str(parse[0]), list(parse[1:]), context.now)
    except (ValueError, OverflowError, KeyError, IndexError):
        return None
    return Value(text, working or f"now is {context.now:%Y-%m-%d %H:%M %Z}")


def _answer(kind: str, parts: list[Any], now: datetime) -> tuple[str, str]:
    name, _, where = kind.partition("_")
    if where in ("now", "in") and name in _NOW:
        zone = _zone(parts[0]) if where == "in" else None
        return _NOW[name](now.astimezone(zone) if zone else now), f"the clock in {zone}" if zone else ""
    if name == "zone":
        return _zones(kind, parts, now)
    if name in ("clock", "noon", "midnight"):
        return _clocks(kind, parts, now)
    if kind == "year_left":
        return _span("until", [*parts, ["year_end"]], now)
    if kind == "age":
        if _yearless(parts[0]):
            raise ValueError("no year of birth")
        return _span("since", ["year", *parts], now)
    if kind in ("until", "since", "between", "between_to"):
        return _span(kind, parts, now)
    return _calendar(kind, parts, now.date())


_NOW = {
    "time": lambda moment: f"{_clock(moment)} {moment:%Z}, {moment:%A}",
    "date": lambda moment: _day(moment.date()),
    "month": lambda moment: f"{moment:%B %Y}",
    "year": lambda moment: f"{moment:%Y}",
    "week": lambda moment: _week(moment.date()),
    "moment": lambda moment: f"{_day(moment.date())}, {moment:%H:%M %Z}",
    "unix": lambda moment: f"{int(moment.timestamp())}",
}


def _day(day: date) -> str:
    return f"{day:%A}, {day.day} {day:%B} {day.year}"


def _week(day: date) -> str:
    return f"week {day.isocalendar().week} of {day.isocalendar().year} (ISO)"


def _clock(moment: datetime) -> str:
    return f"{moment:%H:%M} ({moment:%I:%M %p})"


def _count(number: float, unit: str) -> str:
    return f"{number:.10g} {unit}{'' if number == 1 else 's'}"


def _beside(there: datetime, here: datetime) -> str:
    """How the day of `there` differs from that of `here`, in words."""
    days = (there.date() - here.date()).days
    return {0: "", 1: " the next day", -1: " the day before"}.get(days, f" on {_day(there.date())}")


def _zone(place: Parse) -> ZoneInfo:
    """The zone of a place; "Paris, Texas" names two that differ and so none."""
    (zone,) = {vocabulary("CITY")[tuple(str(name).split())] for name in place[1:]}
    return ZoneInfo(zone)


def _zones(kind: str, parts: list[Any], now: datetime) -> tuple[str, str]:
    if kind == "zone_difference":
        zones = [_zone(part) for part in parts[:2]]
        first, second = (part[1].upper() if len(part[1]) <= 3 else part[1].title() for part in parts[:2])
        offsets = [now.astimezone(zone).utcoffset() or timedelta() for zone in zones]
        hours = (offsets[0] - offsets[1]) / timedelta(hours=1)
        relation = f"{_count(abs(hours), 'hour')} {'ahead of' if hours > 0 else 'behind'}"
        return f"{first} is {relation if hours else 'the same time as'} {second}", f"today: {zones[0]} and {zones[1]}"
    zoned, target = (parts[1], parts[0]) if kind == "zone_convert_to" else (parts[0], parts[1])
    source, goal = _zone(zoned[-1]), _zone(target)
    there = datetime.combine(now.astimezone(source).date(), _time(zoned[1]), source)
    here = there.astimezone(goal)
    working = f"{there:%H:%M %Z}, {source} = {here:%H:%M %Z}, {goal} (on {there:%Y-%m-%d})"
    return f"{_clock(here)} {here:%Z}{_beside(here, there)}", working


def _time(parse: Parse) -> time:
    if parse[0] != "clock":
        return {"noon": time(12), "midnight": time(0)}[str(parse[0])]
    hour, minute = (int(piece) for piece in f"{parse[1]}:0".split(":")[:2])
    if len(parse) == 3:
        if not 1 <= hour <= 12:
            raise ValueError(parse[1])
        hour = hour % 12 + (12 if str(parse[2]).startswith("p") else 0)
    return time(hour, minute)


def _clocks(kind: str, parts: list[Any], now: datetime) -> tuple[str, str]:
    clocks = [datetime.combine(now.date(), _time(part), now.tzinfo) for part in parts if isinstance(part, list)]
    numbers = [int(part) for part in parts if isinstance(part, str) and part.isdigit()]
    periods = [_singular(part) for part in parts if isinstance(part, str) and not part.isdigit()]
    if kind == "clock_between":
        seconds = (clocks[1] - clocks[0]).total_seconds() % 86400
        return _duration(seconds, periods), f"{clocks[0]:%H:%M} to {clocks[1]:%H:%M}"
    if kind == "clock_until":
        target = clocks[0] if clocks[0] >= now else clocks[0] + timedelta(days=1)
        return _duration(_elapsed_s(now, target), periods), f"now is {now:%H:%M:%S}"
    if kind == "clock_form":
        return _clock(clocks[0]), "the same time of day"
    if kind not in ("clock_later", "clock_earlier"):
        raise ValueError("a time of day asks for nothing")
    shift = timedelta(seconds=sum(n * _SECONDS[period] for n, period in zip(numbers, periods, strict=True)))
    sign = -1 if kind == "clock_earlier" else 1
    # A clock time that is named is the face of a clock; from now on, real hours pass, summer time or not.
    start = clocks[0] if clocks else now
    end = start + sign * shift if clocks else (now.astimezone(UTC) + sign * shift).astimezone(now.tzinfo)
    return f"{_clock(end)}{_beside(end, start)}", f"{start:%H:%M} {'-' if sign < 0 else '+'} {shift}"


def _elapsed_s(start: datetime, end: datetime) -> float:
    return (end.astimezone(UTC) - start.astimezone(UTC)).total_seconds()


def _singular(period: str) -> str:
    return {"min": "minute", "hr": "hour"}.get(period.removesuffix("s"), period.removesuffix("s"))


def _duration(seconds: float, periods: list[str]) -> str:
    if periods and periods[0] in _SECONDS:
        return _count(round(seconds / _SECONDS[periods[0]], 2), periods[0])
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{_count(hours, 'hour')} {_count(minutes, 'minute')}"


def _calendar(kind: str, parts: list[Any], today: date) -> tuple[str, str]:
    match kind:
        case "month_days" if parts and str(parts[0]).startswith("feb") and len(parts) == 1:
            return "28 days, 29 in a leap year", ""
        case "month_days":
            month = _MONTHS.index(str(parts[0])[:3]) + 1 if parts else today.month
            year = _year(parts[1], today) if len(parts) > 1 else today.year
            return f"{calendar.monthrange(year, month)[1]} days", f"{calendar.month_name[month]} {year}"
        case "year_days":
            leap = not parts or calendar.isleap(_year(parts[0], today))
            return f"{365 + leap} days", "a leap year has one more than 365"
        case "leap_year":
            year = _year(parts[0], today)
            return ("Yes" if calendar.isleap(year) else "No"), f"{year}: divisible by 4, and by 400 where by 100"
        case "years_between":
            first, last = (_year(part, today) for part in parts)
            return _count(abs(last - first), "year"), f"{first} to {last}"
        case "from_unix":
            moment = datetime.fromtimestamp(int(parts[0]), UTC)
            return f"{_day(moment.date())}, {moment:%H:%M:%S} UTC", "seconds since 1970-01-01 00:00 UTC"
        case "year_day":
            day = _date(parts[0], today)
            return f"day {day:%-j} of {day.year}", str(day)
        case "week_of":
            day = _date(parts[0], today)
            return _week(day), str(day)
        case _:
            return _day(_date([kind, *parts], today)), f"today is {_day(today)}"


def _span(kind: str, parts: list[Any], now: datetime) -> tuple[str, str]:
    period = next((_singular(part) for part in parts if isinstance(part, str)), "day")
    named = [part for part in parts if isinstance(part, list)]
    today = now.date()
    if kind == "since":
        start, end = _near(named[0], today, today, -1), today
    elif kind == "until":
        start, end = today, _near(named[0], today, today, 1)
    else:
        first, last = reversed(named) if kind == "between_to" else named
        if _yearless(first) and not _yearless(last):
            end = _date(last, today)
            start = _near(first, today, end, -1)
        else:
            start = _date(first, today)
            end = _near(last, today, start, 1)
        start, end = min(start, end), max(start, end)
    days = (end - start).days
    if days < 0:
        passed = _count(-days, "day")
        return (f"in {passed}" if kind == "since" else f"{passed} ago"), f"from {start} to {end}"
    whole = _count(days, "day")
    if period in ("month", "year"):
        months = (end.year - start.year) * 12 + end.month - start.month - (end.day < start.day)
        text = f"{_count(months if period == 'month' else months // 12, f'whole {period}')} ({whole})"
    elif period == "week":
        text = f"{days / 7:.4g} weeks ({whole})"
    elif period in ("hour", "minute", "second"):
        seconds = days * 86400.0
        if not kind.startswith("between"):
            midnight = datetime.combine(start if kind == "since" else end, time(), now.tzinfo)
            seconds = max(_elapsed_s(midnight, now) if kind == "since" else _elapsed_s(now, midnight), 0.0)
        text = _duration(seconds, [period])
    elif period == "day":
        text = whole
    else:
        raise ValueError(period)
    return text, f"from {start} to {end}"


def _near(parse: Parse, today: date, anchor: date, step: int) -> date:
    """The named date; a weekday or a day without a year is the first from `anchor` on (`step` 1) or the last (-1)."""
    if parse[0] == "next_weekday":
        ahead = (_DAYS.index(str(parse[1])) - anchor.weekday()) * step % 7
        return anchor + timedelta(days=(ahead or 7) * step)
    if not _yearless(parse):
        return _date(parse, today)
    for year in range(anchor.year, anchor.year + 9 * step, step):
        try:
            day = _date(parse, today, year)
        except ValueError:  # 29 February
            continue
        if (day - anchor).days * step >= 0:
            return day
    raise ValueError(parse)


def _yearless(parse: Any) -> bool:
    if parse[0] == "date" and parse[1][0] not in _HOLIDAYS:
        return _yearless(parse[1])
    return parse[0] in ("date", "month_day") and not any(
        isinstance(part, list) and part[0].endswith("year") for part in parse[1:]
    )


_RELATIVE = {"today": 0, "tomorrow": 1, "yesterday": -1, "after_tomorrow": 2, "before_yesterday": -2}


def _date(parse: Parse, today: date, year: int | None = None) -> date:
    """The date that a parse names; a day without a year is in `year`, or else this year's."""
    kind, parts = str(parse[0]), parse[1:]
    words, named = [part for part in parts if isinstance(part, str)], [part for part in parts if isinstance(part, list)]
    match kind:
        case _ if kind in _RELATIVE:
            return today + timedelta(days=_RELATIVE[kind])
        case "next_weekday" | "last_weekday":
            return _near(["next_weekday", *parts], today, today, 1 if kind == "next_weekday" else -1)
        case "date" if named[0][0] in _HOLIDAYS:
            month, number = _HOLIDAYS[str(named[0][0])]
            return date(_year(named[1], today) if len(named) > 1 else year or today.year, month, number)
        case "date":
            return _date(named[0], today, year)
        case "iso":
            return date(*map(int, words[0].split("-")))
        case "slashed":
            month, number, written = map(int, words[0].split("/"))
            if month <= 12 and number <= 12 and month != number:
                raise ValueError("day and month cannot be told apart")
            return date(written, month, number) if month <= 12 else date(written, number, month)
        case "month_day":
            month = next(_MONTHS.index(word[:3]) + 1 for word in words if word[:3] in _MONTHS)
            number = next(int(re.sub(r"\D", "", word)) for word in words if word[0].isdigit())
            return date(_year(named[0], today) if named else year or today.year, month, number)
        case "new_year":
            return date(_year(named[-1], today) if named else today.year + 1, 1, 1)
        case "year_end":
            return date(_year(named[-1], today) if named else today.year, 12, 31)
        case "later" | "earlier":
            start = _date(named[0], today) if named else today
            count = next((int(word) for word in words if word.isdigit()), 1)
            period = next(_singular(word) for word in words if not word.isdigit())
            return _shifted(start, -count if kind == "earlier" else count, period)
        case _:
            raise ValueError(kind)


def _year(part: Any, today: date) -> int:
    if part[0] == "year":
        year = int(part[1])
        if not 1000 <= year <= 2999:
            raise ValueError("a year has four digits")
        return year
    return today.year + {"this_year": 0, "next_year": 1, "last_year": -1}[part[0]]


def _shifted(start: date, count: int, period: str) -> date:
    """Months and years keep the day of the month, or end with the month."""
    if period in ("month", "year", "decade"):
        months = start.year * 12 + start.month - 1 + count * {"month": 1, "year": 12, "decade": 120}[period]
        year, month = divmod(months, 12)
        return date(year, month + 1, min(start.day, calendar.monthrange(year, month + 1)[1]))
    return start + timedelta(days=count * {"day": 1, "week": 7, "fortnight": 14}[period])
