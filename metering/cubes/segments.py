"""What a question about usage is answered from: whole days, whole hours, and raw events at the edges.

Days and hours are UTC's. A stretch that a boundary of the question cuts can't come from a bucket; it is
read from the events themselves, so that every answer is exact to the microsecond.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from metering.period import FIRST_INSTANT, Period

__all__ = ["DAY", "Segments", "segments"]

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """Disjoint stretches, in order, which together are the question's period."""

    days: Sequence[Period] = ()
    hours: Sequence[Period] = ()
    raw: Sequence[Period] = ()


def segments(cuts: Sequence[datetime], *, hours_from: datetime, closed_to: datetime) -> Segments:
    """Divide the period from the first cut to the last so that no bucket has a cut inside.

    There are hours from `hours_from` on and days up to `closed_to`, both midnights.
    """
    pieces = [_Piece(a, b, hours_from, closed_to) for a, b in pairwise(cuts) if a < b]
    return Segments(
        days=_joined(piece.days for piece in pieces),
        hours=_joined(part for piece in pieces for part in piece.hours()),
        raw=_joined(part for piece in pieces for part in piece.raw()),
    )


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch without a cut inside: raw, hours, days, hours, raw, most of them empty most of the time."""

    start: datetime
    end: datetime
    hours_from: datetime
    closed_to: datetime

    @property
    def days(self) -> Period:
        return _period(_ceil(self.start, DAY), min(_floor(self.end, DAY), self.closed_to))

    def hours(self) -> Iterator[Period]:
        for part in _around(Period(start=self.start, end=self.end), self.days):
            yield self._hours_of(part)

    def raw(self) -> Iterator[Period]:
        for part in _around(Period(start=self.start, end=self.end), self.days):
            yield from _around(part, self._hours_of(part))

    def _hours_of(self, part: Period) -> Period:
        return _period(max(_ceil(part.start, HOUR), self.hours_from), _floor(part.end, HOUR))


def _around(whole: Period, inner: Period) -> Iterator[Period]:
    """What is left of the whole before and after."""
    if inner.start == inner.end:
        yield whole
    else:
        yield _period(whole.start, inner.start)
        yield _period(inner.end, whole.end)


def _period(start: datetime, end: datetime) -> Period:
    return Period(start=start, end=max(start, end))


def _joined(parts: Iterable[Period]) -> list[Period]:
    """In order, without the empty ones, and neighbours as one."""
    joined: list[Period] = []
    for part in sorted(part for part in parts if part.start < part.end):
        if joined and joined[-1].end == part.start:
            joined[-1] = Period(start=joined[-1].start, end=part.end)
        else:
            joined.append(part)
    return joined


def _floor(instant: datetime, size: timedelta) -> datetime:
    return instant - (instant - FIRST_INSTANT) % size


def _ceil(instant: datetime, size: timedelta) -> datetime:
    return instant + (FIRST_INSTANT - instant) % size
