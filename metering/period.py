"""Half-open stretches of time, and the calendar windows that usage is cut into.

Windows of one size in one zone tile time without gap or overlap, over clock changes too: a day may have 23
or 25 hours, and each instant lies in exactly one window.
"""

import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Literal

from metering.errors import InvalidError, Issue

__all__ = [
    "FIRST_INSTANT",
    "LAST_INSTANT",
    "Period",
    "WindowSize",
    "hour_of",
    "midnight_of",
    "window_of",
    "windows",
    "zone_of",
]

FIRST_INSTANT, LAST_INSTANT = datetime(1970, 1, 1, tzinfo=UTC), datetime(9990, 1, 1, tzinfo=UTC)
"""No event is earlier than the one, nor as late as the other."""

WindowSize = Literal["MINUTE", "HOUR", "DAY", "MONTH"]

MAX_WINDOWS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Period:
    """From `start` (included) to `end` (excluded), both aware."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        if self.start.tzinfo is None or self.end.tzinfo is None:
            raise ValueError("a period needs aware instants")
        if self.start > self.end:
            raise ValueError(f"a period can't end before it starts: {self.start} > {self.end}")

    def __contains__(self, instant: datetime) -> bool:
        return self.start <= instant < self.end

    @property
    def length(self) -> timedelta:
        return self.end - self.start


def zone_of(name: str, field: str = "$.windowTimeZone") -> tzinfo:
    """The IANA time zone of that name."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        issue = Issue(
            code="invalid_time_zone",
            message=f"{name!r} is not an IANA time zone",
            field=field,
            hint="Use a name such as UTC, Europe/Berlin or America/New_York.",
        )
        raise InvalidError(issue.message, issue) from None


def midnight_of(instant: datetime) -> datetime:
    """The last midnight (UTC) at or before it."""
    return instant.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def hour_of(instant: datetime) -> datetime:
    """The last full hour (UTC) at or before it."""
    return instant.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def windows(period: Period, size: WindowSize, zone: tzinfo) -> Iterator[Period]:
    """The windows that touch `period`, in order, uncut.

    Raises InvalidError beyond MAX_WINDOWS of them.
    """
    at, count = period.start, 0
    while at < period.end:
        window = window_of(at, size, zone)
        yield window
        at, count = window.end, count + 1
        if count > MAX_WINDOWS:
            issue = Issue(
                code="too_many_windows",
                message=f"the period has more than {MAX_WINDOWS} windows of size {size}",
                field="$.windowSize",
                hint="Shorten the period or take a larger windowSize.",
            )
            raise InvalidError(issue.message, issue)


def window_of(instant: datetime, size: WindowSize, zone: tzinfo) -> Period:
    """The window that holds `instant`, as UTC instants.

    A minute is a minute of UTC: zones are offset by whole minutes.
    """
    match size:
        case "MINUTE":
            start = instant.astimezone(UTC).replace(second=0, microsecond=0)
            return Period(start=start, end=start + timedelta(minutes=1))
        case "HOUR":
            return _hour_of(instant, zone)
        case "DAY":
            day = instant.astimezone(zone).date()
            following = day + timedelta(days=1)
        case "MONTH":
            day = instant.astimezone(zone).date().replace(day=1)
            following = (day + timedelta(days=31)).replace(day=1)
    end = _start_of(following, zone)
    if instant >= end:  # the clock was put back over midnight, and shows the old day after the new one began
        return window_of(end, size, zone)
    return Period(start=_start_of(day, zone), end=end)


def _hour_of(instant: datetime, zone: tzinfo) -> Period:
    """The hour on the wall clock, cut where the clock itself is changed by less than an hour."""
    local = instant.astimezone(zone)
    into = timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
    at = instant.astimezone(UTC)
    start, end = at - into, at - into + timedelta(hours=1)
    if start.astimezone(zone).utcoffset() != local.utcoffset():
        start = _transition(start, at, zone)
    if (end - timedelta(microseconds=1)).astimezone(zone).utcoffset() != local.utcoffset():
        end = _transition(at, end, zone)
    return Period(start=start, end=end)


def _start_of(day: date, zone: tzinfo) -> datetime:
    """The first instant of a local day, even where its midnight is skipped or comes twice."""
    midnight = datetime.combine(day, time(), zone)
    first = midnight.astimezone(UTC)
    if first.astimezone(zone).replace(tzinfo=None) == midnight.replace(tzinfo=None):
        return first
    return _transition(midnight.replace(fold=1).astimezone(UTC), first, zone)


def _transition(before: datetime, after: datetime, zone: tzinfo) -> datetime:
    """The instant in (before, after] from which on the zone has the offset it has at `after`."""
    offset = after.astimezone(zone).utcoffset()
    while after - before > timedelta(seconds=1):
        middle = (before + (after - before) / 2).replace(microsecond=0)
        if middle <= before:
            middle = before + timedelta(seconds=1)
        if middle.astimezone(zone).utcoffset() == offset:
            after = middle
        else:
            before = middle
    return after.replace(microsecond=0)
