"""A question about usage, and what there is to answer it from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from metering.meter import MeterDefinition, UsageQuery
from metering.period import FIRST_INSTANT, LAST_INSTANT, Period, hour_of

__all__ = [
    "COLUMNS",
    "DENSE",
    "FIRST",
    "LAST",
    "MANY_DAYS",
    "MANY_SUBJECTS",
    "MERGED",
    "NUMBERS",
    "RAW",
    "VALUE",
    "Cube",
    "Found",
    "Known",
    "Question",
]

COLUMNS: Mapping[str, Mapping[str, str]] = {
    "COUNT": {"events": "1"},
    "UNIQUE_COUNT": {"digest": "digest"},
    "SUM": {"sum": "number"},
    "AVG": {"sum": "number", "numbers": "CASE WHEN number IS NULL THEN 0 ELSE 1 END"},
    "MIN": {"min": "number"},
    "MAX": {"max": "number"},
    "LATEST": {"latest": "number", "latest_time": "time", "latest_key": "key"},
}
"""What each aggregation needs of a bucket, and the same of a single event."""

MERGED = {"events": "sum", "numbers": "sum", "sum": "sum", "min": "min", "max": "max"}
"""How columns of several buckets become one; others do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cube:
    """`first` is the earliest event in the question's first hour, `last` the latest in its last.

    `dense` says that a series has many days, as far as is known.
    """

    id: int
    paths: list[str]
    version: int
    hours_from: datetime
    closed_to: datetime
    first: datetime | None
    last: datetime | None
    dense: bool


@dataclass(frozen=True, slots=True)
class Known:
    """What there is to answer from: a cube, if one has what is asked, and the batches it lacks."""

    cube: Cube | None
    pending: list[int]


RAW = Known(None, [])

Found = tuple[Any, ...]
"""Keys, then value, numbers, first and last."""
VALUE, NUMBERS, FIRST, LAST = range(-4, 0)

MANY_SUBJECTS, MANY_DAYS, DENSE = 100, timedelta(days=7), 7
"""For fewer subjects or days, or fewer of a series, to read the days themselves is faster than by series."""


@dataclass(frozen=True, slots=True)
class Question:
    """`cut` are the windows, where a calendar is needed; `spanning` asks when the events were.

    `in_a_row`: the windows are all that is asked for, whatever lies beside them.
    `merged`: only these columns are wanted, added up for each series, for several questions to be read from.
    """

    meter: MeterDefinition
    query: UsageQuery
    cut: Sequence[Period] = ()
    in_a_row: bool = False
    merged: Sequence[str] = ()

    @property
    def period(self) -> Period:
        starts = [at for at in (self.query.start, self.meter.event_from) if at is not None]
        start = max([FIRST_INSTANT, *starts])
        return Period(start=start, end=max(start, self.query.end or LAST_INSTANT))

    @property
    def bounds(self) -> tuple[datetime, datetime]:
        """Beyond these there is no window."""
        if self.cut and not self.in_a_row:
            return self.cut[0].start, self.cut[-1].end
        return FIRST_INSTANT, LAST_INSTANT

    @property
    def starts(self) -> list[datetime]:
        """Of the windows; the first one has the whole hour that it begins in, where that is read."""
        starts = [window.start for window in self.cut]
        return [hour_of(starts[0]), *starts[1:]] if self.in_a_row else starts

    def clipped(self, part: Period) -> Period:
        start = max(part.start, self.period.start)
        return Period(start=start, end=max(start, min(part.end, self.period.end)))

    @property
    def spanning(self) -> bool:
        return self.query.window_size is None and not (self.query.start and self.query.end)

    @property
    def of_few(self) -> bool:
        """Whether it is of few subjects: what they have is found by walks over indexes."""
        subjects = self.query.counted_subjects
        return subjects is not None and len(subjects) <= MANY_SUBJECTS

    @property
    def from_cubes(self) -> bool:
        """Whether a cube may have what is asked: none knows minutes, nor what was known once."""
        return self.query.window_size != "MINUTE" and self.query.as_of is None

    @property
    def keys(self) -> list[str]:
        return [f"k{i}" for i in range(1 + len(self.query.group_by))]

    @property
    def columns(self) -> dict[str, str]:
        if self.merged:
            every = {name: of_event for columns in COLUMNS.values() for name, of_event in columns.items()}
            return {name: every[name] for name in self.merged}
        columns = dict(COLUMNS[self.meter.aggregation])
        return columns | ({"first": "time", "last": "time"} if self.spanning else {})

    @property
    def paths(self) -> set[str]:
        """What it tells apart, or is narrowed by."""
        named = (*self.query.group_by, *self.query.filters, *self.query.conditions)
        return {self.meter.group_by[name] for name in named if name in self.meter.group_by}

    @property
    def likeness(self) -> tuple[object, ...]:
        """The time and the subjects: what is read for one question has what another of the same asks."""
        return self.period, self.query.counted_subjects, tuple(self.starts)

    @property
    def narrowed(self) -> bool:
        return bool(self.query.filters or self.query.conditions)

    @property
    def mergeable(self) -> bool:
        """Whether it can be read from what is told apart by subject and every dimension of a cube."""
        return self.of_few and not self.query.window_size and MERGED.keys() >= self.columns.keys()
