"""Recurring stretches of calendar time, written as ISO 8601 durations: P1M, P2W, PT1H.

The n-th recurrence is always counted from the anchor, never from the one before: the 31st of January plus
one month is the 28th of February, plus two months the 31st of March.
"""

import calendar
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache

from metering.errors import InvalidError, Issue
from metering.period import Period

__all__ = ["Interval", "InvalidIntervalError", "interval_of", "is_negative_interval", "parse_interval"]

_DURATION = re.compile(
    r"P(?:(\d{1,4})Y)?(?:(\d{1,5})M)?(?:(\d{1,5})W)?(?:(\d{1,6})D)?"
    r"(?:T(?=\d)(?:(\d{1,6})H)?(?:(\d{1,6})M)?(?:(\d{1,8})S)?)?",
    re.ASCII,
)


SHORTEST_MONTH = 28
"""Days."""


class InvalidIntervalError(InvalidError):
    pass


@dataclass(frozen=True, slots=True)
class Interval:
    """Whole months plus a fixed time."""

    months: int
    time: timedelta

    def after(self, anchor: datetime, count: int = 1) -> datetime:
        """`anchor` plus `count` intervals, on the anchor's day of the month or the month's last."""
        at = anchor.astimezone(UTC)
        month = at.year * 12 + at.month - 1 + self.months * count
        year, month = month // 12, month % 12 + 1
        day = at.day if at.day <= SHORTEST_MONTH else min(at.day, calendar.monthrange(year, month)[1])
        return at.replace(year=year, month=month, day=day) + self.time * count

    def period_of(self, anchor: datetime, instant: datetime) -> Period:
        """The recurrence that holds `instant`, counting both ways from `anchor`."""
        return _period_of(self, anchor, instant)

    def divides(self, other: "Interval") -> bool:
        """Whether `other` is a whole number of these."""
        if self.months or other.months:
            plain = not self.time and not other.time and self.months > 0
            return plain and other.months % self.months == 0
        return other.time % self.time == timedelta(0)


@lru_cache(maxsize=1024)
def _period_of(interval: Interval, anchor: datetime, instant: datetime) -> Period:
    """Remembered, for what a contract sells is mostly sold for the same periods."""
    length = interval.after(anchor) - anchor
    count = (instant - anchor) // length
    start, end = interval.after(anchor, count), interval.after(anchor, count + 1)
    while start > instant:
        count -= 1
        start, end = interval.after(anchor, count), start
    while end <= instant:
        count += 1
        start, end = end, interval.after(anchor, count + 1)
    return Period(start=start, end=end)


LONGEST = Interval(100 * 12, timedelta(days=36_525))
"""Far beyond any contract, and a few of them still end within the calendar."""


@cache
def parse_interval(text: str) -> Interval:
    """Read an ISO 8601 duration, longer than nothing and no longer than a century."""
    match = _DURATION.fullmatch(text)
    years, months, weeks, days, hours, minutes, seconds = map(int, match.groups("0")) if match else (0,) * 7
    time = timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)
    interval = Interval(years * 12 + months, time)
    too_long = interval.months > LONGEST.months or time > LONGEST.time
    if interval == Interval(0, timedelta(0)) or too_long:
        message = f"{text!r} is not an ISO 8601 duration of at most a century"
        issue = Issue(code="invalid_duration", message=message, hint="Write P1M for a month, P1Y, P2W, PT1H.")
        raise InvalidIntervalError(message, issue)
    return interval


def interval_of(text: str) -> Interval | None:
    """None where parse_interval raises."""
    try:
        return parse_interval(text)
    except InvalidIntervalError:
        return None


def is_negative_interval(text: str) -> bool:
    """Whether it would be a duration without its minus: -P1M, P-1M."""
    return text.count("-") == 1 and interval_of(text.replace("-", "")) is not None
