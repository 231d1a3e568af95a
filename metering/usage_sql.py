"""SQL for one question about usage: from days and hours, raw edges, and what no cube has seen."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache

from metering.cubes.segments import DAY, Segments, segments
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
from metering.meter import UsageQuery
from metering.period import FIRST_INSTANT, Period, hour_of
from metering.usage_question import MANY_DAYS, MERGED, Cube, Known, Question

__all__ = ["NO_TIME", "from_events", "parts_of", "within"]

NO_TIME = "CAST(NULL AS timestamptz)"


def parts_of(
    statement: Statement, question: Question, known: Known, reading: str | None = None
) -> Iterator[str]:
    """Each a SELECT of keys and columns: from days, hours, raw edges, and what the cube has not seen.

    All of that is in the `reading`, if there is one.
    """
    if known.cube is not None and reading is not None:
        yield _from_reading(statement, question, known.cube, reading)
        return
    if known.cube is None:
        yield from_events(statement, question, ALL_EVENTS, [within(statement, question.period)])
        return
    segments_ = _segments(question, known.cube)
    for table, periods in (("usage_days", segments_.days), ("usage_hours", segments_.hours)):
        if periods:
            yield from _from_buckets(statement, question, known.cube, table, periods)
    yield from _from_edges(statement, question, segments_.raw)
    if known.pending:
        yield from_events(
            statement, question, "events", list(_pending(statement, question, known, segments_.raw))
        )


def _from_reading(statement: Statement, question: Question, cube: Cube, reading: str) -> str:
    def dimension(name: str) -> str:
        return f"r.k{2 + cube.paths.index(question.meter.group_by[name])}"

    keys = [_key(statement, question, name, "r.k1", dimension) for name in question.query.group_by]
    named = ["r.k0", *(f"{key} AS k{n}" for n, key in enumerate(keys, start=1))]
    where = " AND ".join(_filters(statement, question, dimension)) or "true"
    return f"SELECT {', '.join([*named, *question.columns])} FROM {reading} AS r WHERE {where}"


def _segments(question: Question, cube: Cube) -> Segments:
    whole = _widened(question, cube)
    # A midnight cuts neither a day nor an hour, and windows of days have many.
    starts = [window.start for window in question.cut if (window.start - FIRST_INSTANT) % DAY]
    inside = [start for start in starts if whole.start < start < whole.end]
    cuts = (whole.start, *inside, whole.end)
    found = _segments_between(cuts, hours_from=cube.hours_from, closed_to=cube.closed_to)
    return replace(found, raw=[part for part in map(question.clipped, found.raw) if part.start < part.end])


_segments_between = lru_cache(maxsize=64)(segments)
"""What is asked together often has the same periods."""


def _widened(question: Question, cube: Cube) -> Period:
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
    statement: Statement, question: Question, cube: Cube, table: str, periods: Sequence[Period]
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
            sums = [f"{MERGED[name]}(b.{name}) AS {name}" for name in question.columns]
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


def _adds_up_first(question: Question, periods: Sequence[Period]) -> bool:
    return (
        not question.of_few
        and question.query.window_size is None
        and _INDEXED.issuperset(question.columns)
        and periods[-1].end - periods[0].start >= MANY_DAYS
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


def _bucket_columns(question: Question, table: str) -> Iterator[tuple[str, list[str]]]:
    """Where the columns are. Buckets say that there were events, and when; their values lie beside them."""
    names = list(question.columns)
    yield table, ["CAST(NULL AS bytea) AS digest" if name == "digest" else f"b.{name}" for name in names]
    if "digest" in names:
        others = f"{NO_TIME} AS"
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


def _from_edges(statement: Statement, question: Question, periods: Sequence[Period]) -> Iterator[str]:
    if len(periods) == 1:
        yield from_events(statement, question, ALL_EVENTS, [within(statement, periods[0])])
    elif periods:
        starts, ends = _bounds(statement, periods)
        edge = from_events(statement, question, ALL_EVENTS, ["e.time >= edge.start", "e.time < edge.end"])
        yield f"""SELECT edges.* FROM unnest({starts}, {ends}) AS edge(start, "end")
            CROSS JOIN LATERAL ({edge}) AS edges"""


def _pending(statement: Statement, question: Question, known: Known, raw: Sequence[Period]) -> Iterator[str]:
    """Numbers as they are: the planner then knows that these are few, and finds their blocks."""
    yield f"e.batch >= {known.pending[0]} AND e.batch <= {known.pending[-1]}"
    yield f"e.batch = ANY({statement.bind(known.pending, 'bigint[]')})"
    yield within(statement, question.period)
    if raw:
        starts, ends = _bounds(statement, raw)
        yield f"coalesce(e.time >= ({ends})[width_bucket(e.time, {starts})], true)"


def within(statement: Statement, period: Period) -> str:
    start, end = statement.bind(period.start, "timestamptz"), statement.bind(period.end, "timestamptz")
    return f"e.time >= {start} AND e.time < {end}"


def from_events(statement: Statement, question: Question, source: str, wheres: list[str]) -> str:
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


def _window(statement: Statement, question: Question, time: str) -> str:
    if question.query.window_size == "MINUTE":
        return f"date_trunc('minute', {time})"
    if question.cut:
        return f"width_bucket({time}, {statement.bind(question.starts, 'timestamptz[]')})"
    return "0"


def _key(
    statement: Statement, question: Question, name: str, subject: str, dimension: Callable[[str], str]
) -> str:
    if name == "subject":
        return subject
    if name == "customer_id" and (customers := question.query.customers) is not None:
        # One that has many members is searched by halving it, an array from its beginning.
        return f"({statement.bind(json.dumps(dict(customers)), 'jsonb')} ->> {subject})"
    return dimension(name)


def _filters(statement: Statement, question: Question, dimension: Callable[[str], str]) -> Iterator[str]:
    for name, allowed in question.query.filters.items():
        yield f"{dimension(name)} = ANY({statement.bind(list(allowed), 'text[]')})"
    for name, condition in question.query.conditions.items():
        yield condition_sql(condition, dimension(name), statement.bind)
