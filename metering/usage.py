"""Usage from what is stored: the reference fold of metering/meter.py, said in one SQL statement.

Whole days and hours come from a usage cube. What a window cuts out of an hour, and what has been stored
since the cube was folded, comes from the events themselves. An answer is what is known at one instant.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from operator import itemgetter
from typing import Any, Literal

from sqlalchemy import Row, TextClause, text
from sqlalchemy.orm import Session

from metering.cubes.segments import DAY, Segments, segments
from metering.errors import InvalidError, Issue
from metering.exact import plain
from metering.expressions import (
    ALL_EVENTS,
    NOT_VOIDED,
    Statement,
    digest_of,
    dimension_of,
    number_of,
    value_of,
)
from metering.filter_string import condition_sql
from metering.meter import (
    MeterDefinition,
    UsageQuery,
    UsageRow,
    average,
    check_query,
    empty_answer,
    in_order,
    span,
)
from metering.period import (
    FIRST_INSTANT,
    LAST_INSTANT,
    Period,
    WindowSize,
    hour_of,
    window_of,
    windows,
    zone_of,
)

__all__ = [
    "Asked",
    "TooManyRowsError",
    "query_numbers",
    "query_together",
    "query_usage",
    "query_values",
    "usage_groups",
]

MAX_ROWS = 100_000
ATTEMPTS = 10

_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "COUNT": {"events": "1"},
    "UNIQUE_COUNT": {"digest": "digest"},
    "SUM": {"sum": "number"},
    "AVG": {"sum": "number", "numbers": "CASE WHEN number IS NULL THEN 0 ELSE 1 END"},
    "MIN": {"min": "number"},
    "MAX": {"max": "number"},
    "LATEST": {"latest": "number", "latest_time": "time", "latest_key": "key"},
}
"""What each aggregation needs of a bucket, and the same of a single event."""

_MERGED = {"events": "sum", "numbers": "sum", "sum": "sum", "min": "min", "max": "max"}
"""How columns of several buckets become one; others do not."""

_VALUES: Mapping[str, str] = {
    "COUNT": "CAST(sum(events) AS numeric)",
    "UNIQUE_COUNT": "CAST(count(DISTINCT digest) AS numeric)",
    "SUM": "sum(sum)",
    "AVG": "sum(sum)",
    "MIN": "min(min)",
    "MAX": "max(max)",
    "LATEST": "(array_agg(latest ORDER BY latest_time DESC, latest_key DESC)"
    " FILTER (WHERE latest IS NOT NULL))[1]",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cube:
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
class _Known:
    """What there is to answer from: a cube, if one has what is asked, and the batches it lacks."""

    cube: _Cube | None
    pending: list[int]


_RAW = _Known(None, [])

Found = tuple[Any, ...]
"""Keys, then value, numbers, first and last."""
VALUE, NUMBERS, FIRST, LAST = range(-4, 0)


@dataclass(frozen=True, slots=True)
class _Question:
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
        return subjects is not None and len(subjects) <= _MANY_SUBJECTS

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
            every = {name: of_event for columns in _COLUMNS.values() for name, of_event in columns.items()}
            return {name: every[name] for name in self.merged}
        columns = dict(_COLUMNS[self.meter.aggregation])
        return columns | ({"first": "time", "last": "time"} if self.spanning else {})

    @property
    def narrowed(self) -> bool:
        return bool(self.query.filters or self.query.conditions)

    @property
    def mergeable(self) -> bool:
        """Whether it can be read from what is told apart by subject and every dimension of a cube."""
        return self.of_few and not self.query.window_size and _MERGED.keys() >= self.columns.keys()


def query_usage(session: Session, meter: MeterDefinition, query: UsageQuery) -> list[UsageRow]:
    """The rows that answer `query`, ordered by window and group."""
    check_query(meter, query)
    cut: Sequence[Period] = ()
    if query.window_size and query.window_size != "MINUTE":  # minutes need no calendar
        cut = _calendar(session, meter, query, query.window_size)
        if not cut:
            return []
        # Without a snapshot, the next statement may see events before and behind the calendar.
        query = replace(query, start=query.start or cut[0].start, end=query.end or cut[-1].end)
    question = _Question(meter, query, cut)
    return _value(question, _answer(session, question))


def usage_groups(session: Session, meter: MeterDefinition, query: UsageQuery, name: str) -> list[str]:
    """The values that a dimension (or "subject") has in the events which `query` selects, in order."""
    asked = replace(query, group_by=(name,), window_size=None)
    check_query(meter, asked)
    question = _Question(replace(meter, aggregation="COUNT"), asked)
    return sorted(found[1] for found in _answer(session, question))


def query_values(session: Session, meter: MeterDefinition, query: UsageQuery) -> list[UsageRow]:
    """How many events have each number as their value, which joins the group as "value", in digits.

    No cube knows single values: they are read from the events.
    """
    check_query(meter, query)
    question = _Question(replace(meter, aggregation="SUM"), query)
    statement = Statement()
    events = _from_events(statement, question, ALL_EVENTS, [_within(statement, question.period)])
    keys = ", ".join([*question.keys[1:], "sum"])
    sql = f"""SELECT {keys}, count(*) FROM ({events}) AS events WHERE sum IS NOT NULL
        GROUP BY {keys} LIMIT {MAX_ROWS + 1}"""
    rows = session.execute(_text_of(sql), statement.parameters).all()
    _require_few(rows)
    names, window = query.group_by, question.period
    return in_order(
        UsageRow(
            window=window,
            group=dict(zip((*names, "value"), (*keys, plain(size)), strict=True)),
            value=Decimal(count),
        )
        for *keys, size, count in rows
    )


def query_numbers(session: Session, meter: MeterDefinition, query: UsageQuery) -> list[UsageRow]:
    """How many events have a number as their value, for each group."""
    question = _of_numbers(meter, query)
    return _numbers(question, _answer(session, question))


@dataclass(frozen=True, slots=True)
class Asked:
    """One of many questions: for the value of a meter, or how many events have a number as theirs."""

    kind: Literal["value", "numbers"]
    meter: MeterDefinition
    query: UsageQuery


TOGETHER, MENTIONED = 32, 4096
"""Questions in one statement, and subjects that all of them name."""


def query_together(session: Session, asked: Sequence[Asked]) -> list[list[UsageRow]]:
    """What query_usage and query_numbers answer to each, which must have a start, an end, and no window size.

    Two statements answer many; what is alike but for adjacent periods is read but once.
    """
    answers: list[list[UsageRow]] = [[] for _ in asked]
    for some in _portions(_in_rows(asked)):
        for row, found in zip(some, _answers(session, [row.question for row in some]), strict=True):
            for n, question, its in row.divided(found):
                answers[n] = _value(question, its) if asked[n].kind == "value" else _numbers(question, its)
    return answers


@dataclass(frozen=True, slots=True)
class _Row:
    """Questions whose periods follow each other, by their numbers, as one."""

    members: Mapping[int, _Question]

    @property
    def question(self) -> _Question:
        every = list(self.members.values())
        if len(every) == 1:
            return every[0]
        query = replace(every[0].query, end=every[-1].query.end)
        return _Question(every[0].meter, query, [_asked_period(one) for one in every], in_a_row=True)

    def divided(self, found: Sequence[Found]) -> Iterator[tuple[int, _Question, Sequence[Found]]]:
        if len(self.members) == 1:
            yield from ((n, question, found) for n, question in self.members.items())
            return
        parts: dict[int, list[Found]] = {window: [] for window in range(1, len(self.members) + 1)}
        for one in found:
            parts[one[0]].append(one)
        for (n, question), its in zip(self.members.items(), parts.values(), strict=True):
            yield n, question, its


def _in_rows(asked: Sequence[Asked]) -> Iterator[_Row]:
    """Those of many subjects are added up by series, which can't tell periods apart."""
    alike = defaultdict[tuple[object, ...], list[tuple[int, _Question]]](list)
    for n, one in enumerate(asked):
        of = _of_value if one.kind == "value" else _of_numbers
        alike[_likeness(one)].append((n, of(one.meter, one.query)))
    for every in alike.values():
        members: dict[int, _Question] = {}
        end = None
        for n, question in sorted(every, key=lambda one: _asked_period(one[1]).start):
            period = _asked_period(question)
            if members and (period.start != end or not question.of_few):
                yield _Row(members)
                members = {}
            members[n], end = question, period.end
        yield _Row(members)


def _asked_period(question: _Question) -> Period:
    """Also where the meter counts only from a later instant on."""
    start, end = question.query.start, question.query.end
    return Period(start=start or FIRST_INSTANT, end=end or LAST_INSTANT)


def _portions(rows: Iterable[_Row]) -> Iterator[list[_Row]]:
    portion: list[_Row] = []
    mentioned = 0
    for row in rows:
        subjects = len(row.question.query.counted_subjects or ())
        if portion and (len(portion) == TOGETHER or mentioned + subjects > MENTIONED):
            yield portion
            portion, mentioned = [], 0
        portion.append(row)
        mentioned += subjects
    if portion:
        yield portion


def _likeness(asked: Asked) -> tuple[object, ...]:
    """Equal where nothing differs but the period."""
    meter, query = asked.meter, asked.query
    return (
        asked.kind,
        meter.event_type,
        meter.aggregation,
        meter.value_property,
        meter.event_from,
        tuple(meter.group_by.items()),
        query.subjects,
        None if query.customers is None else tuple(query.customers.items()),
        tuple(query.filters.items()),
        tuple(query.conditions.items()),
        query.group_by,
        query.as_of,
    )


def _of_value(meter: MeterDefinition, query: UsageQuery) -> _Question:
    check_query(meter, query)
    return _Question(meter, query)


def _of_numbers(meter: MeterDefinition, query: UsageQuery) -> _Question:
    check_query(meter, query)
    return _Question(replace(meter, aggregation="AVG"), query)


def _value(question: _Question, found: Sequence[Found]) -> list[UsageRow]:
    return _rows(question, found) or empty_answer(question.meter, question.query)


def _numbers(question: _Question, found: Sequence[Found]) -> list[UsageRow]:
    names = question.query.group_by
    return [
        UsageRow(
            window=question.period,
            group=dict(zip(names, one[1:VALUE], strict=True)),
            value=Decimal(one[NUMBERS]),
        )
        for one in found
        if one[VALUE] is not None
    ]


def _calendar(
    session: Session, meter: MeterDefinition, query: UsageQuery, size: WindowSize
) -> Sequence[Period]:
    """The windows that the answer may have, computed here: PostgreSQL knows other rules for skipped and
    repeated midnights, and maybe another edition of the time zones."""
    start, end = query.start, query.end
    if start is None or end is None:
        everything = replace(query, window_size=None, group_by=())
        rows = _answer(session, _Question(replace(meter, aggregation="COUNT"), everything))
        if not rows:
            return ()
        first, last = rows[0][FIRST], rows[0][LAST]
        start, end = start or first, end or window_of(last, "MINUTE", zone_of("UTC")).end
    return list(windows(Period(start=start, end=end), size, zone_of(query.zone)))


def _answer(session: Session, question: _Question) -> Sequence[Found]:
    """One row for each window and group."""
    return _answers(session, [question])[0]


def _answers(session: Session, questions: Sequence[_Question]) -> list[Sequence[Found]]:
    """Of each question one row for each window and group.

    What is known is read first, so that the statement can be planned for it. Should it have changed when the
    statement is run, the answer would mix two states: ask again, and in the end without a cube.
    """
    for _ in range(ATTEMPTS):
        known = _known(session, questions)
        if (found := _execute(session, questions, known)) is not None:
            return found
    return _execute(session, questions, [_RAW] * len(questions)) or []


def _known(session: Session, questions: Sequence[_Question]) -> list[_Known]:
    """What is known now for each; and how the statement that follows shall be planned.

    For a statement that is run often, PostgreSQL keeps one plan that is right for short periods. All subjects
    over a month take half as long again by it, so that theirs is made anew. For few subjects there is one
    right plan, and to make it takes longer than to run it.
    """
    asked = [_matter(question) if question.from_cubes else None for question in questions]
    matters = list(dict.fromkeys(matter for matter in asked if matter))
    if not matters:
        return [_RAW] * len(questions)
    statement = Statement()
    plans = statement.bind(_plans(questions), "text")
    kinds, columns = ("text[]", "text[]", "timestamptz[]", "timestamptz[]"), zip(*matters, strict=True)
    listed = ", ".join(
        statement.bind(list(column), kind) for column, kind in zip(columns, kinds, strict=True)
    )
    sql = f"""
        SELECT asked.number,
               (SELECT coalesce(array_agg(batch ORDER BY batch), '{{}}') FROM pending_batches) AS pending,
               id, paths, version, hours_from, closed_to, distinct_values, latest_values,
               (SELECT first FROM usage_cube_hours WHERE cube_id = c.id AND start = asked.begin) AS first,
               (SELECT last FROM usage_cube_hours WHERE cube_id = c.id AND start = asked.end) AS last,
               (SELECT d.reltuples > {_DENSE} * s.reltuples FROM pg_class AS d, pg_class AS s WHERE
                d.oid = CAST('usage_days' AS regclass) AND s.oid = CAST('usage_series' AS regclass)) AS dense,
               set_config('plan_cache_mode', {plans}, true)
        FROM unnest({listed}) WITH ORDINALITY AS asked(event_type, value_property, begin, "end", number)
        JOIN usage_cubes AS c ON c.event_type = asked.event_type
             AND c.value_property IS NOT DISTINCT FROM asked.value_property
        WHERE c.built_to IS NULL ORDER BY asked.number, cardinality(paths), id"""
    cubes = defaultdict[_Matter | None, list[Row[Any]]](list)
    for row in session.execute(_text_of(sql), statement.parameters):
        cubes[matters[row.number - 1]].append(row)
    return [
        next((_Known(_cube(row), row.pending) for row in cubes[matter] if _able(row, question)), _RAW)
        for question, matter in zip(questions, asked, strict=True)
    ]


_Matter = tuple[str, str | None, datetime, datetime]


def _matter(question: _Question) -> _Matter:
    """What decides which cubes are looked up, and what is to be known of them."""
    meter, period = question.meter, question.period
    return meter.event_type, meter.value_property, hour_of(period.start), hour_of(period.end)


def _plans(questions: Sequence[_Question]) -> str:
    if any(question.query.counted_subjects is None for question in questions):
        return "force_custom_plan"
    return "force_generic_plan" if all(question.of_few for question in questions) else "auto"


def _able(row: Row[Any], question: _Question) -> bool:
    """Whether the cube has what is asked."""
    meter, query = question.meter, question.query
    named = (*query.group_by, *query.filters, *query.conditions)
    needed = {meter.group_by[name] for name in named if name in meter.group_by}
    able = {"UNIQUE_COUNT": row.distinct_values, "LATEST": row.latest_values}
    return needed.issubset(row.paths) and able.get(meter.aggregation, True)


def _cube(row: Row[Any]) -> _Cube:
    return _Cube(
        id=row.id,
        paths=row.paths,
        version=row.version,
        hours_from=row.hours_from,
        closed_to=row.closed_to,
        first=row.first,
        last=row.last,
        dense=row.dense,
    )


def _execute(
    session: Session, questions: Sequence[_Question], known: Sequence[_Known]
) -> list[Sequence[Found]] | None:
    """The rows of each; None when what was known is so no more.

    What else is asked in the transaction is planned as usual again.
    """
    statement = Statement()
    width = max(len(question.keys) for question in questions)
    tables: dict[str, str] = {}
    shared: dict[int, str] = {}
    for reading in _readings(questions, known):
        if parts := list(_parts(statement, reading.question, reading.known)):
            name = f"reading_{len(tables)}"
            tables[name] = f"{name} AS ({' UNION ALL '.join(parts)})"
            shared |= dict.fromkeys(reading.members, name)
    selects = [
        select
        for n, (question, its) in enumerate(zip(questions, known, strict=True))
        if (select := _select(n, question, _parts(statement, question, its, shared.get(n)), width))
    ]
    answers: list[list[Found]] = [[] for _ in questions]
    if not selects:
        return [*answers]
    sql = f"""
        {"WITH " + ", ".join(tables.values()) if tables else ""}
        SELECT known.holds, answer.* FROM (
            SELECT {_still(statement, known)} AS holds, set_config('plan_cache_mode', 'auto', true)) AS known
        LEFT JOIN ({" UNION ALL ".join(selects)}) AS answer ON true"""
    rows = session.execute(_text_of(sql), statement.parameters).all()
    if not rows[0].holds:
        return None
    keys = [2 + len(question.keys) for question in questions]
    for row in rows if rows[0].question is not None else ():
        answers[row[1]].append((*row[2 : keys[row[1]]], *row[VALUE:]))
    for answer in answers:
        _require_few(answer)
    return [*answers]


_NO_TIME = "CAST(NULL AS timestamptz)"


@dataclass(frozen=True, slots=True)
class _Reading:
    """What several questions, by their numbers, are answered from: read once, told apart as a cube can.

    Its keys are the window, the subject, and a dimension for each of the cube's paths.
    """

    question: _Question
    known: _Known
    members: Sequence[int]


def _readings(questions: Sequence[_Question], known: Sequence[_Known]) -> Iterator[_Reading]:
    """Of those over the same time and the same few subjects, one of which needs all of them anyway."""
    alike = defaultdict[tuple[object, ...], list[int]](list)
    for n, (question, its) in enumerate(zip(questions, known, strict=True)):
        if its.cube and question.mergeable:
            subjects, starts = question.query.counted_subjects, tuple(question.starts)
            alike[its.cube.id, question.period, subjects, starts].append(n)
    for members in alike.values():
        some = [questions[n] for n in members]
        if len(some) > 1 and not all(question.narrowed for question in some):
            yield _reading(some, known[members[0]], members)


def _reading(questions: Sequence[_Question], known: _Known, members: Sequence[int]) -> _Reading:
    one, paths = questions[0], known.cube.paths if known.cube else []
    dimensions = {f"d{n}": path for n, path in enumerate(paths)}
    query = UsageQuery(
        start=one.query.start,
        end=one.query.end,
        subjects=one.query.counted_subjects,
        group_by=("subject", *dimensions),
    )
    columns = dict.fromkeys(name for question in questions for name in question.columns)
    meter = replace(one.meter, group_by=dimensions)
    return _Reading(_Question(meter, query, one.cut, one.in_a_row, tuple(columns)), known, members)


def _select(number: int, question: _Question, found: Iterable[str], width: int) -> str | None:
    """Of one question: its number, keys, as many as the one that has most, and what was found."""
    if not (parts := list(found)):
        return None
    keys = ", ".join(question.keys)
    padding = "".join(f", CAST(NULL AS text) AS k{n}" for n in range(len(question.keys), width))
    first, last = ("min(first)", "max(last)") if question.spanning else [_NO_TIME] * 2
    numbers = "sum(numbers)" if question.meter.aggregation == "AVG" else "CAST(NULL AS numeric)"
    return f"""(
        SELECT {number} AS question, {keys}{padding}, {_VALUES[question.meter.aggregation]} AS value,
               {numbers} AS numbers, {first} AS first, {last} AS last
        FROM ({" UNION ALL ".join(parts)}) AS parts GROUP BY {keys} LIMIT {MAX_ROWS + 1})"""


class TooManyRowsError(InvalidError):
    pass


def _require_few(rows: Sequence[object]) -> None:
    if len(rows) > MAX_ROWS:
        message = f"the answer has more than {MAX_ROWS} rows"
        hint = "Shorten the period, filter, or group by less."
        raise TooManyRowsError(message, Issue(code="too_many_rows", message=message, hint=hint))


@lru_cache(maxsize=64)
def _text_of(sql: str) -> TextClause:
    """Questions of one kind are the same text, which then is searched for its parameters but once."""
    return text(sql)


def _still(statement: Statement, known: Sequence[_Known]) -> str:
    """That the cubes have the versions, and that the batches wait, which were known."""
    cubes = {one.cube.id: (one.cube.version, one.pending) for one in known if one.cube}
    if not cubes:
        return "true"
    ids, versions = list(cubes), [version for version, _ in cubes.values()]
    _, pending = next(iter(cubes.values()))
    return f"""
        (SELECT count(*) FROM usage_cubes AS c JOIN
            unnest({statement.bind(ids, "bigint[]")}, {statement.bind(versions, "bigint[]")})
            AS was(id, version) ON c.id = was.id AND c.version = was.version) = {len(cubes)}
        AND (SELECT coalesce(array_agg(batch ORDER BY batch), '{{}}') FROM pending_batches)
            = {statement.bind(pending, "bigint[]")}"""


def _parts(
    statement: Statement, question: _Question, known: _Known, reading: str | None = None
) -> Iterator[str]:
    """Each a SELECT of keys and columns: from days, hours, raw edges, and what the cube has not seen.

    All of that is in the `reading`, if there is one.
    """
    if known.cube is not None and reading is not None:
        yield _from_reading(statement, question, known.cube, reading)
        return
    if known.cube is None:
        yield _from_events(statement, question, ALL_EVENTS, [_within(statement, question.period)])
        return
    segments_ = _segments(question, known.cube)
    for table, periods in (("usage_days", segments_.days), ("usage_hours", segments_.hours)):
        if periods:
            yield from _from_buckets(statement, question, known.cube, table, periods)
    yield from _from_edges(statement, question, segments_.raw)
    if known.pending:
        yield _from_events(
            statement, question, "events", list(_pending(statement, question, known, segments_.raw))
        )


def _from_reading(statement: Statement, question: _Question, cube: _Cube, reading: str) -> str:
    def dimension(name: str) -> str:
        return f"r.k{2 + cube.paths.index(question.meter.group_by[name])}"

    keys = [_key(statement, question, name, "r.k1", dimension) for name in question.query.group_by]
    named = ["r.k0", *(f"{key} AS k{n}" for n, key in enumerate(keys, start=1))]
    where = " AND ".join(_filters(statement, question, dimension)) or "true"
    return f"SELECT {', '.join([*named, *question.columns])} FROM {reading} AS r WHERE {where}"


def _segments(question: _Question, cube: _Cube) -> Segments:
    whole = _widened(question, cube)
    # A midnight cuts neither a day nor an hour, and windows of days have many.
    starts = [window.start for window in question.cut if (window.start - FIRST_INSTANT) % DAY]
    inside = [start for start in starts if whole.start < start < whole.end]
    cuts = (whole.start, *inside, whole.end)
    found = _segments_between(cuts, hours_from=cube.hours_from, closed_to=cube.closed_to)
    return replace(found, raw=[part for part in map(question.clipped, found.raw) if part.start < part.end])


_segments_between = lru_cache(maxsize=64)(segments)
"""What is asked together often has the same periods."""


def _widened(question: _Question, cube: _Cube) -> Period:
    """The period to whole hours, on each side where the cube has no events in between.

    So usage up to now needs no raw events: the cube holds none that is later.
    """
    period, (earliest, latest) = question.period, question.bounds
    start, end = hour_of(period.start), hour_of(period.end)
    end = end if end == period.end else end + timedelta(hours=1)
    if start < earliest or (cube.first is not None and cube.first < period.start):
        start = period.start
    if end > latest or (cube.last is not None and cube.last >= period.end):
        end = period.end
    return Period(start=start, end=end)


def _from_buckets(
    statement: Statement, question: _Question, cube: _Cube, table: str, periods: Sequence[Period]
) -> Iterator[str]:
    def dimension(name: str) -> str:
        return f"s.dimensions[{cube.paths.index(question.meter.group_by[name]) + 1}]"

    keys = [_window(statement, question, "b.start")]
    keys += [_key(statement, question, name, "s.subject", dimension) for name in question.query.group_by]
    named = [f"{key} AS {name}" for key, name in zip(keys, question.keys, strict=True)]
    series = [f"s.cube_id = {statement.bind(cube.id, 'bigint')}"]
    if (subjects := question.query.counted_subjects) is not None:
        series.append(f"s.subject = ANY({statement.bind(list(subjects), 'text[]')})")
    series += _filters(statement, question, dimension)
    if table == "usage_days" and cube.dense and _adds_up_first(question, periods):
        days = " AND ".join(_in_periods(statement, periods))
        yield _added_up_first(named, list(question.columns), " AND ".join(series), days)
        return
    for source, columns in _bucket_columns(question, table):
        joined = f"FROM usage_series AS s JOIN {source} AS b ON b.series_id = s.id"
        within = list(_in_periods(statement, periods))
        if question.of_few and len(periods) > 1:
            joined, within = _by_period(statement, source, periods), []
        where = " AND ".join([*series, *within])
        if question.merged:
            sums = [f"{_MERGED[name]}(b.{name}) AS {name}" for name in question.columns]
            yield f"SELECT {', '.join(named + sums)} {joined} WHERE {where} GROUP BY s.id, 1"
        else:
            yield f"SELECT {', '.join(named + columns)} {joined} WHERE {where}"


def _by_period(statement: Statement, source: str, periods: Sequence[Period]) -> str:
    """A walk over the index for each series and period; OFFSET 0 keeps PostgreSQL from another way.

    The other way is one walk from the first to the last period, over all that lies in between.
    """
    starts, ends = _bounds(statement, periods)
    return f"""FROM usage_series AS s CROSS JOIN unnest({starts}, {ends}) AS part(start, "end")
        CROSS JOIN LATERAL (SELECT * FROM {source} AS b WHERE b.series_id = s.id
            AND b.start >= part.start AND b.start < part."end" OFFSET 0) AS b"""


_INDEXED = {"events", "numbers", "sum"}
"""What a day's index holds besides series and start."""

_MANY_SUBJECTS, _MANY_DAYS, _DENSE = 100, timedelta(days=7), 7
"""For fewer subjects or days, or fewer of a series, to read the days themselves is faster than by series."""


def _adds_up_first(question: _Question, periods: Sequence[Period]) -> bool:
    return (
        not question.of_few
        and question.query.window_size is None
        and _INDEXED.issuperset(question.columns)
        and periods[-1].end - periods[0].start >= _MANY_DAYS
    )


def _added_up_first(named: Sequence[str], columns: Sequence[str], series: str, within: str) -> str:
    """Each series' days are added up before they meet their subject and dimensions.

    Text is then grouped once for a series, not once for each of its days. An array of all series, in order,
    makes it one walk over the index, which has them in that order and needs no sorting.
    """
    sums = [f"sum(b.{column}) AS {column}" for column in columns]
    return f"""(WITH s AS MATERIALIZED (
            SELECT s.id, s.subject, s.dimensions FROM usage_series AS s WHERE {series})
        SELECT {", ".join([*named, *(f"b.{column}" for column in columns)])}
        FROM s JOIN (
            SELECT b.series_id, {", ".join(sums)} FROM usage_days AS b
            WHERE b.series_id = ANY(ARRAY(SELECT id FROM s)) AND {within} GROUP BY b.series_id
        ) AS b ON b.series_id = s.id)"""


_DISTINCT = {"usage_days": "usage_day_values", "usage_hours": "usage_hour_values"}


def _bucket_columns(question: _Question, table: str) -> Iterator[tuple[str, list[str]]]:
    """Where the columns are. Buckets say that there were events, and when; their values lie beside them."""
    names = list(question.columns)
    yield table, ["CAST(NULL AS bytea) AS digest" if name == "digest" else f"b.{name}" for name in names]
    if "digest" in names:
        others = f"{_NO_TIME} AS"
        yield _DISTINCT[table], [f"b.{n}" if n == "digest" else f"{others} {n}" for n in names]


def _in_periods(statement: Statement, periods: Sequence[Period]) -> Iterator[str]:
    yield f"b.start >= {statement.bind(periods[0].start, 'timestamptz')}"
    yield f"b.start < {statement.bind(periods[-1].end, 'timestamptz')}"
    if len(periods) > 1:
        starts, ends = _bounds(statement, periods)
        yield f"b.start < ({ends})[width_bucket(b.start, {starts})]"


def _bounds(statement: Statement, periods: Sequence[Period]) -> tuple[str, str]:
    return (
        statement.bind([period.start for period in periods], "timestamptz[]"),
        statement.bind([period.end for period in periods], "timestamptz[]"),
    )


def _from_edges(statement: Statement, question: _Question, periods: Sequence[Period]) -> Iterator[str]:
    if len(periods) == 1:
        yield _from_events(statement, question, ALL_EVENTS, [_within(statement, periods[0])])
    elif periods:
        starts, ends = _bounds(statement, periods)
        edge = _from_events(statement, question, ALL_EVENTS, ["e.time >= edge.start", "e.time < edge.end"])
        yield f"""SELECT edges.* FROM unnest({starts}, {ends}) AS edge(start, "end")
            CROSS JOIN LATERAL ({edge}) AS edges"""


def _pending(
    statement: Statement, question: _Question, known: _Known, raw: Sequence[Period]
) -> Iterator[str]:
    """Numbers as they are: the planner then knows that these are few, and finds their blocks."""
    yield f"e.batch >= {known.pending[0]} AND e.batch <= {known.pending[-1]}"
    yield f"e.batch = ANY({statement.bind(known.pending, 'bigint[]')})"
    yield _within(statement, question.period)
    if raw:
        starts, ends = _bounds(statement, raw)
        yield f"coalesce(e.time >= ({ends})[width_bucket(e.time, {starts})], true)"


def _within(statement: Statement, period: Period) -> str:
    start, end = statement.bind(period.start, "timestamptz"), statement.bind(period.end, "timestamptz")
    return f"e.time >= {start} AND e.time < {end}"


def _from_events(statement: Statement, question: _Question, source: str, wheres: list[str]) -> str:
    """OFFSET 0 keeps PostgreSQL from computing a value again wherever it is named."""
    meter, query = question.meter, question.query

    def dimension(name: str) -> str:
        return dimension_of(statement, meter.group_by[name])

    keys = [_window(statement, question, "e.time")]
    keys += [_key(statement, question, name, "e.subject", dimension) for name in query.group_by]
    named = [f"{key} AS {name}" for key, name in zip(keys, question.keys, strict=True)]
    wheres = [f"e.type = {statement.bind(meter.event_type, 'text')}", *wheres, *_known_by(statement, query)]
    if query.counted_subjects is not None:
        wheres.append(_of_subjects(statement, query.counted_subjects))
    wheres += _filters(statement, question, dimension)
    read = digest_of("value") if meter.aggregation == "UNIQUE_COUNT" else number_of("value")
    name = "digest" if meter.aggregation == "UNIQUE_COUNT" else "number"
    columns = [f"{expression} AS {column}" for column, expression in question.columns.items()]
    return f"""
        SELECT {", ".join(question.keys + columns)} FROM (
            SELECT {", ".join(question.keys)}, time, key, {read} AS {name} FROM (
                SELECT {", ".join(named)}, e.time, e.key, {value_of(statement, meter.value_property)} AS value
                FROM {source} AS e WHERE {" AND ".join(wheres)} OFFSET 0
            ) AS selected OFFSET 0
        ) AS counted"""


def _known_by(statement: Statement, query: UsageQuery) -> Iterator[str]:
    if query.as_of is None:
        yield NOT_VOIDED
        return
    as_of = statement.bind(query.as_of, "timestamptz")
    yield f"e.stored_at <= {as_of}"
    yield f"""NOT EXISTS (SELECT FROM voided_events AS v WHERE v.key = e.key AND v.voided_at <= {as_of}
                          AND (v.restored_at IS NULL OR v.restored_at > {as_of}))"""


def _of_subjects(statement: Statement, subjects: Sequence[str]) -> str:
    """By the index, which has a hash of the subject, and by the subject."""
    hashes = [f"hashtextextended({statement.bind(subject, 'text')}, 0)" for subject in subjects]
    listed = f"ARRAY[{', '.join(hashes)}]::bigint[]"
    return f"""hashtextextended(e.subject, 0) = ANY({listed})
        AND e.subject = ANY({statement.bind(list(subjects), "text[]")})"""


def _window(statement: Statement, question: _Question, time: str) -> str:
    if question.query.window_size == "MINUTE":
        return f"date_trunc('minute', {time})"
    if question.cut:
        return f"width_bucket({time}, {statement.bind(question.starts, 'timestamptz[]')})"
    return "0"


def _key(
    statement: Statement, question: _Question, name: str, subject: str, dimension: Callable[[str], str]
) -> str:
    if name == "subject":
        return subject
    if name == "customer_id" and (customers := question.query.customers) is not None:
        # One that has many members is searched by halving it, an array from its beginning.
        return f"({statement.bind(json.dumps(dict(customers)), 'jsonb')} ->> {subject})"
    return dimension(name)


def _filters(statement: Statement, question: _Question, dimension: Callable[[str], str]) -> Iterator[str]:
    for name, allowed in question.query.filters.items():
        yield f"{dimension(name)} = ANY({statement.bind(list(allowed), 'text[]')})"
    for name, condition in question.query.conditions.items():
        yield condition_sql(condition, dimension(name), statement.bind)


def _rows(question: _Question, found: Sequence[Found]) -> list[UsageRow]:
    names = question.query.group_by
    if not question.spanning:  # keys are in the order of windows and groups, and quicker to compare
        found = sorted(found, key=itemgetter(slice(0, VALUE)))
    averaging = question.meter.aggregation == "AVG"
    rows = [
        UsageRow(
            window=_period(question, one),
            group=dict(zip(names, one[1:VALUE], strict=True)),
            value=average(one[VALUE], one[NUMBERS]) if averaging else one[VALUE],
        )
        for one in found
        if one[VALUE] is not None
    ]
    return in_order(rows) if question.spanning else rows


def _period(question: _Question, found: Found) -> Period:
    match question.query.window_size:
        case None:
            return span(question.query, found[FIRST], found[LAST])
        case "MINUTE":
            return window_of(found[0], "MINUTE", zone_of(question.query.zone))
        case _:
            return question.cut[int(found[0]) - 1]
