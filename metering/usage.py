"""Usage from what is stored: the reference fold of metering/meter.py, said in one SQL statement.

Whole days and hours come from a usage cube. What a window cuts out of an hour, and what has been stored
since the cube was folded, comes from the events themselves. An answer is what is known at one instant.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from operator import itemgetter
from typing import Any

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

__all__ = ["query_numbers", "query_usage", "query_values", "usage_groups"]

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


@dataclass(frozen=True, slots=True)
class _Question:
    """`cut` are the windows, where a calendar is needed; `spanning` asks when the events were."""

    meter: MeterDefinition
    query: UsageQuery
    cut: Sequence[Period] = ()

    @property
    def period(self) -> Period:
        starts = [at for at in (self.query.start, self.meter.event_from) if at is not None]
        start = max([FIRST_INSTANT, *starts])
        return Period(start=start, end=max(start, self.query.end or LAST_INSTANT))

    @property
    def bounds(self) -> tuple[datetime, datetime]:
        """Beyond these there is no window."""
        return (self.cut[0].start, self.cut[-1].end) if self.cut else (FIRST_INSTANT, LAST_INSTANT)

    def clipped(self, part: Period) -> Period:
        start = max(part.start, self.period.start)
        return Period(start=start, end=max(start, min(part.end, self.period.end)))

    @property
    def spanning(self) -> bool:
        return self.query.window_size is None and not (self.query.start and self.query.end)

    @property
    def keys(self) -> list[str]:
        return [f"k{i}" for i in range(1 + len(self.query.group_by))]

    @property
    def columns(self) -> dict[str, str]:
        columns = dict(_COLUMNS[self.meter.aggregation])
        return columns | ({"first": "time", "last": "time"} if self.spanning else {})


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
    return _rows(question, _answer(session, question)) or empty_answer(meter, query)


def usage_groups(session: Session, meter: MeterDefinition, query: UsageQuery, name: str) -> list[str]:
    """The values that a dimension (or "subject") has in the events which `query` selects, in order."""
    asked = replace(query, group_by=(name,), window_size=None)
    check_query(meter, asked)
    question = _Question(replace(meter, aggregation="COUNT"), asked)
    return sorted(row.k1 for row in _answer(session, question))


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
    check_query(meter, query)
    question = _Question(replace(meter, aggregation="AVG"), query)
    return [
        UsageRow(
            window=question.period,
            group=dict(zip(query.group_by, found[2:-5], strict=True)),
            value=Decimal(found.numbers),
        )
        for found in _answer(session, question)
        if found.value is not None
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
        start, end = start or rows[0].first, end or window_of(rows[0].last, "MINUTE", zone_of("UTC")).end
    return list(windows(Period(start=start, end=end), size, zone_of(query.zone)))


def _answer(session: Session, question: _Question) -> Sequence[Row[Any]]:
    """One row for each window and group.

    What is known is read first, so that the statement can be planned for it. Should it have changed when the
    statement is run, the answer would mix two states: ask again, and in the end without a cube.
    """
    for _ in range(ATTEMPTS):
        known = _known(session, question)
        if (rows := _execute(session, question, known)) is not None:
            return rows
    return _execute(session, question, _RAW) or ()


def _known(session: Session, question: _Question) -> _Known:
    """What is known now; and how the statement that follows shall be planned.

    For a statement that is run often, PostgreSQL keeps one plan that is right for short periods. All subjects
    over a month take half as long again by it, so that theirs is made anew.
    """
    meter, query = question.meter, question.query
    if query.window_size == "MINUTE" or query.as_of is not None:
        return _RAW
    statement = Statement()
    plans = statement.bind("force_custom_plan" if query.counted_subjects is None else "auto", "text")
    value = statement.bind(meter.value_property, "text")
    begin = statement.bind(hour_of(question.period.start), "timestamptz")
    end = statement.bind(hour_of(question.period.end), "timestamptz")
    sql = f"""
        SELECT (SELECT coalesce(array_agg(batch ORDER BY batch), '{{}}') FROM pending_batches) AS pending,
               id, paths, version, hours_from, closed_to, distinct_values, latest_values,
               (SELECT first FROM usage_cube_hours WHERE cube_id = c.id AND start = {begin}) AS first,
               (SELECT last FROM usage_cube_hours WHERE cube_id = c.id AND start = {end}) AS last,
               (SELECT d.reltuples > {_DENSE} * s.reltuples FROM pg_class AS d, pg_class AS s WHERE
                d.oid = CAST('usage_days' AS regclass) AND s.oid = CAST('usage_series' AS regclass)) AS dense,
               set_config('plan_cache_mode', {plans}, true)
        FROM usage_cubes AS c WHERE built_to IS NULL AND value_property IS NOT DISTINCT FROM {value}
          AND event_type = {statement.bind(meter.event_type, "text")} ORDER BY cardinality(paths), id"""
    named = (*query.group_by, *query.filters, *query.conditions)
    needed = {meter.group_by[name] for name in named if name in meter.group_by}
    for row in session.execute(_text_of(sql), statement.parameters):
        able = {"UNIQUE_COUNT": row.distinct_values, "LATEST": row.latest_values}
        if needed.issubset(row.paths) and able.get(meter.aggregation, True):
            cube = _Cube(
                id=row.id,
                paths=row.paths,
                version=row.version,
                hours_from=row.hours_from,
                closed_to=row.closed_to,
                first=row.first,
                last=row.last,
                dense=row.dense,
            )
            return _Known(cube, row.pending)
    return _RAW


def _execute(session: Session, question: _Question, known: _Known) -> Sequence[Row[Any]] | None:
    """The rows; None when what was known is so no more."""
    statement = Statement()
    parts = list(_parts(statement, question, known))
    if not parts:
        return ()
    keys = ", ".join(question.keys)
    spans = "min(first) AS first, max(last) AS last" if question.spanning else "NULL AS first, NULL AS last"
    numbers = "sum(numbers)" if question.meter.aggregation == "AVG" else "NULL"
    sql = f"""
        SELECT known.holds, answer.* FROM (SELECT {_still(statement, known)} AS holds) AS known LEFT JOIN (
            SELECT {keys}, {_VALUES[question.meter.aggregation]} AS value, {numbers} AS numbers, {spans},
                   true AS found
            FROM ({" UNION ALL ".join(parts)}) AS parts GROUP BY {keys} LIMIT {MAX_ROWS + 1}
        ) AS answer ON true"""
    rows = session.execute(_text_of(sql), statement.parameters).all()
    if not rows[0].holds:
        return None
    _require_few(rows)
    return rows if rows[0].found else ()


def _require_few(rows: Sequence[Row[Any]]) -> None:
    if len(rows) > MAX_ROWS:
        message = f"the answer has more than {MAX_ROWS} rows"
        hint = "Shorten the period, filter, or group by less."
        raise InvalidError(message, Issue(code="too_many_rows", message=message, hint=hint))


@lru_cache(maxsize=64)
def _text_of(sql: str) -> TextClause:
    """Questions of one kind are the same text, which then is searched for its parameters but once."""
    return text(sql)


def _still(statement: Statement, known: _Known) -> str:
    if known.cube is None:
        return "true"
    return f"""
        coalesce((SELECT version FROM usage_cubes WHERE id = {statement.bind(known.cube.id, "bigint")})
                 = {statement.bind(known.cube.version, "bigint")}, false)
        AND (SELECT coalesce(array_agg(batch ORDER BY batch), '{{}}') FROM pending_batches)
            = {statement.bind(known.pending, "bigint[]")}"""


def _parts(statement: Statement, question: _Question, known: _Known) -> Iterator[str]:
    """Each a SELECT of keys and columns: from days, hours, raw edges, and what the cube has not seen."""
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


def _segments(question: _Question, cube: _Cube) -> Segments:
    whole = _widened(question, cube)
    # A midnight cuts neither a day nor an hour, and windows of days have many.
    starts = [window.start for window in question.cut if (window.start - FIRST_INSTANT) % DAY]
    inside = [start for start in starts if whole.start < start < whole.end]
    found = segments([whole.start, *inside, whole.end], hours_from=cube.hours_from, closed_to=cube.closed_to)
    return replace(found, raw=[part for part in map(question.clipped, found.raw) if part.start < part.end])


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
    within = _in_periods(statement, periods)
    if table == "usage_days" and cube.dense and _adds_up_first(question, periods):
        yield _added_up_first(named, list(question.columns), " AND ".join(series), " AND ".join(within))
        return
    where = " AND ".join([*series, *within])
    for source, columns in _bucket_columns(question, table):
        yield f"""SELECT {", ".join(named + columns)}
            FROM usage_series AS s JOIN {source} AS b ON b.series_id = s.id WHERE {where}"""


_INDEXED = {"events", "numbers", "sum"}
"""What a day's index holds besides series and start."""

_MANY_SUBJECTS, _MANY_DAYS, _DENSE = 100, timedelta(days=7), 7
"""For fewer subjects or days, or fewer of a series, to read the days themselves is faster than by series."""


def _adds_up_first(question: _Question, periods: Sequence[Period]) -> bool:
    subjects = question.query.counted_subjects
    many = subjects is None or len(subjects) > _MANY_SUBJECTS
    return (
        many
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
        others = "CAST(NULL AS timestamptz) AS"
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
    match question.query.window_size:
        case None:
            return "0"
        case "MINUTE":
            return f"date_trunc('minute', {time})"
        case _:
            starts = statement.bind([window.start for window in question.cut], "timestamptz[]")
            return f"width_bucket({time}, {starts})"


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


def _rows(question: _Question, found: Sequence[Row[Any]]) -> list[UsageRow]:
    """By position, as _execute selects them, for there may be many: `holds`, keys, value, numbers, span."""
    names = question.query.group_by
    value = 2 + len(names)
    if not question.spanning:  # keys are in the order of windows and groups, and quicker to compare
        found = sorted(found, key=itemgetter(slice(1, value)))
    averaging = question.meter.aggregation == "AVG"
    rows = [
        UsageRow(
            window=_period(question, one),
            group=dict(zip(names, one[2:value], strict=True)),
            value=average(one[value], one[value + 1]) if averaging else one[value],
        )
        for one in found
        if one[value] is not None
    ]
    return in_order(rows) if question.spanning else rows


def _period(question: _Question, found: Sequence[Any]) -> Period:
    match question.query.window_size:
        case None:
            return span(question.query, found[-3], found[-2])
        case "MINUTE":
            return window_of(found[1], "MINUTE", zone_of(question.query.zone))
        case _:
            return question.cut[int(found[1]) - 1]
