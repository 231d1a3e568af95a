"""Stored events as a list: newest first, a page at a time, those out of the hot table among them.

No index sorts all events by time: it would cost every event that comes in. A list of some subjects reads the
index of each. Any other list walks back from the newest: it asks for what lies in a window, and each window
is longer than the one before until the page is full. Blocks hold what came together, so PostgreSQL's block
ranges by time (BRIN) skip what lies outside. A window that holds too much is cut before it is sorted. So a
page costs about what it shows, whether events come by the second or ended a year ago; only a filter that few
events pass must read on until enough have passed.

Measured with 1,000 subjects: a window takes 0.15 to 0.5 ms in the database, one subject's page 0.5 ms. Over 2
million events of 30 days a page takes 4 or 5 windows, 25 when the last event is 200 days old; on two cores
that were busy with other work those were 12 and 66 ms. An id that is nowhere reads everything: 0.4 s.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import RowMapping, text
from sqlalchemy.orm import Session

from metering.expressions import Statement
from metering.filter_string import FilterString, condition_sql
from metering.filter_time import TICK, FilterTime, bounds_of, instant_sql
from metering.ids import event_key
from metering.period import FIRST_INSTANT, LAST_INSTANT

__all__ = ["EventCursor", "EventQuery", "ListedEvent", "list_events"]

SHORTEST = timedelta(seconds=1)
"""The first window of a walk, and one that is not cut further."""
GROWTH, PARTS = 8, 4
ANY_TEXT, ANY_TIME = FilterString(), FilterTime()
CROWD = 2000
"""So many events in a window are too many to sort, as long as it can be cut."""


_BY_BLOCKS = {
    "enable_seqscan": "off",
    "enable_indexscan": "off",
    "cpu_operator_cost": "1",
    "max_parallel_workers_per_gather": "0",
}
"""To read the table from its beginning, or the times of each subject, looks cheap to PostgreSQL when only a
few rows are asked for. It must take the block ranges: an index is searched a thousand times for a thousand
subjects, and each search costs operations. Parallel workers take longer to start than it all takes."""
_IN_ORDER = {"enable_seqscan": "off", "enable_bitmapscan": "off", "enable_sort": "off"}
"""PostgreSQL believes that a subject has few events, and would read and sort them all."""


@contextmanager
def _planning(session: Session, settings: Mapping[str, str]) -> Iterator[None]:
    """How statements in the block are planned."""
    session.execute(text(";".join(f"SET LOCAL {name} = {value}" for name, value in settings.items())))
    yield
    session.execute(text(";".join(f"RESET {name}" for name in settings)))


@dataclass(frozen=True, slots=True, order=True)
class EventCursor:
    """A place in the order of the list."""

    time: datetime
    key: uuid.UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class EventQuery:
    """Which events: those that pass every filter, after (that is, older than) `after`.

    `subjects` None means every subject, empty means none; `id_part` is a part of the id.
    """

    limit: int
    after: EventCursor | None = None
    subjects: tuple[str, ...] | None = None
    id_part: str | None = None
    id: FilterString = ANY_TEXT
    source: FilterString = ANY_TEXT
    subject: FilterString = ANY_TEXT
    type: FilterString = ANY_TEXT
    time: FilterTime = ANY_TIME
    ingested_at: FilterTime = ANY_TIME


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedEvent:
    """`data` is JSON text with every digit; `voided_at` is None unless the event is void now."""

    key: uuid.UUID
    id: str
    source: str
    type: str
    subject: str
    time: datetime
    data: str | None
    specversion: str
    dataschema: str | None
    ingested_at: datetime
    stored_at: datetime
    voided_at: datetime | None

    @property
    def cursor(self) -> EventCursor:
        return EventCursor(self.time, self.key)


@dataclass(frozen=True, slots=True)
class _Window:
    start: datetime
    end: datetime

    @property
    def length(self) -> timedelta:
        return self.end - self.start


def list_events(
    session: Session, query: EventQuery, *, now: datetime, crowd: int = CROWD
) -> list[ListedEvent]:
    """At most `limit` events by (time, key), the newest first; `now` is where most lists begin."""
    window, subjects = _window(query), _subjects(query)
    if window.start >= window.end or subjects == ():
        return []
    if subjects is not None:
        with _planning(session, _IN_ORDER):
            return _of_subjects(session, query, window, subjects)
    if _key(query):
        return _page(session, query, window)[0]
    with _planning(session, _BY_BLOCKS):
        return _walk(session, query, _receding(window, now), crowd)


def _window(query: EventQuery) -> _Window:
    start, end = bounds_of(query.time)
    after = query.after.time + TICK if query.after else LAST_INSTANT
    return _Window(max(start or FIRST_INSTANT, FIRST_INSTANT), min(end or LAST_INSTANT, after, LAST_INSTANT))


def _subjects(query: EventQuery) -> tuple[str, ...] | None:
    """The only subjects that can pass, None if they are not known by name."""
    named = [set(query.subjects)] if query.subjects is not None else []
    named += [{query.subject.eq}] if query.subject.eq is not None else []
    named += [set(query.subject.in_)] if query.subject.in_ is not None else []
    return tuple(sorted(set.intersection(*named))) if named else None


def _key(query: EventQuery) -> uuid.UUID | None:
    """The key of the one event that is named by its identity."""
    if query.id.eq is None or query.source.eq is None:
        return None
    return event_key(query.source.eq, query.id.eq)


def _receding(window: _Window, now: datetime) -> Iterator[_Window]:
    """What cuts the window, the newest first: all that is in the future, then ever longer stretches."""
    end, length = window.end, SHORTEST
    if window.start < now < window.end:
        yield _Window(now, window.end)
        end = now
    while end > window.start:
        start = end - length if end - window.start > length else window.start
        yield _Window(start, end)
        end, length = start, length * GROWTH


def _walk(session: Session, query: EventQuery, windows: Iterator[_Window], crowd: int) -> list[ListedEvent]:
    found: list[ListedEvent] = []
    for window in windows:
        found += _newest(session, replace(query, limit=query.limit - len(found)), window, crowd)
        if len(found) == query.limit:
            break
    return found


def _newest(session: Session, query: EventQuery, window: _Window, crowd: int) -> list[ListedEvent]:
    """The newest events in a window, cut as often as it holds a crowd."""
    if window.length <= SHORTEST:
        return _page(session, query, window)[0]
    found, complete = _page(session, query, window, crowd)
    return found if complete else _walk(session, query, _parts(window), crowd)


def _parts(window: _Window) -> Iterator[_Window]:
    step, end = window.length / PARTS, window.end
    for i in reversed(range(PARTS)):
        start = window.start + i * step
        yield _Window(start, end)
        end = start


def _page(
    session: Session, query: EventQuery, window: _Window, crowd: int | None = None
) -> tuple[list[ListedEvent], bool]:
    """The newest of at most `crowd` events in the window, and whether those were all."""
    statement = Statement()
    conditions = _conditions(statement, query, window)
    limit = f"LIMIT {crowd}" if crowd else ""
    tables = " UNION ALL ".join(
        f"(SELECT {_COLUMNS} FROM {table} WHERE {conditions} {limit})" for table in _TABLES
    )
    rows = (
        session.execute(text(_outer(f"({tables}) AS found", query.limit)), statement.parameters)
        .mappings()
        .all()
    )
    complete = not crowd or not rows or rows[0]["candidates"] < crowd
    return [_listed(row) for row in rows], complete


def _of_subjects(
    session: Session, query: EventQuery, window: _Window, subjects: Sequence[str]
) -> list[ListedEvent]:
    """The newest of each subject by its index, and of those the newest."""
    statement = Statement()
    conditions = _conditions(statement, query, window)
    names = statement.bind(list(subjects), "text[]")
    tables = " UNION ALL ".join(
        f"(SELECT {_COLUMNS} FROM {table} WHERE hashtextextended(subject, 0) = hashtextextended(name, 0)"
        f" AND subject = name AND {conditions} ORDER BY time DESC, key DESC LIMIT {query.limit})"
        for table in _TABLES
    )
    found = f"unnest({names}) AS name CROSS JOIN LATERAL ({tables}) AS found"
    rows = session.execute(text(_outer(found, query.limit)), statement.parameters).mappings().all()
    return [_listed(row) for row in rows]


def _conditions(statement: Statement, query: EventQuery, window: _Window) -> str:
    bind = statement.bind
    conditions = [
        f"time >= {bind(window.start, 'timestamptz')} AND time < {bind(window.end, 'timestamptz')}",
        condition_sql(query.id, "id", bind),
        condition_sql(query.source, "source", bind),
        condition_sql(query.subject, "subject", bind),
        condition_sql(query.type, "type", bind),
        instant_sql(query.time, "time", bind),
        instant_sql(query.ingested_at, "ingested_at", bind),
    ]
    if query.after:
        after = f"{bind(query.after.time, 'timestamptz')}, {bind(query.after.key, 'uuid')}"
        conditions.append(f"(time, key) < ({after})")
    if query.id_part:
        conditions.append(f"strpos(id, {bind(query.id_part, 'text')}) > 0")
    if key := _key(query):
        conditions.append(f"key = {bind(key, 'uuid')}")
    return " AND ".join(condition for condition in conditions if condition != "true")


_TABLES = ("events", "retired_events")
_COLUMNS = "key, id, source, type, subject, time, data, specversion, dataschema, ingested_at, stored_at"


def _outer(found: str, limit: int) -> str:
    """The newest of what was found, how many that were, and what only those on the page need."""
    return f"""
        SELECT {_COLUMNS.replace("data,", "CAST(data AS text) AS data,")}, candidates,
               (SELECT min(voided_at) FROM voided_events AS v
                WHERE v.key = page.key AND v.restored_at IS NULL) AS voided_at
        FROM (SELECT found.*, count(*) OVER () AS candidates FROM {found}
              ORDER BY time DESC, key DESC LIMIT {limit}) AS page
        ORDER BY time DESC, key DESC"""


def _listed(row: RowMapping) -> ListedEvent:
    return ListedEvent(**{name: value for name, value in row.items() if name != "candidates"})
