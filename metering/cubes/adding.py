"""Adds events to a cube in one statement: each read once, added up by series and hour, merged in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import Connection
from psycopg.rows import class_row

from metering.cubes.plan import CubeSpec
from metering.expressions import (
    NOT_VOIDED,
    Statement,
    day_of,
    digest_of,
    hour_of,
    number_of,
    text_of,
    value_of,
)

__all__ = [
    "COLUMNS",
    "MERGED",
    "SERIES_DIGEST",
    "VALUES",
    "Cube",
    "add_events",
    "cubes",
    "expect_many",
    "folded",
    "read_events",
]

SERIES_DIGEST = "sha256(convert_to(CAST(array_prepend(subject, dimensions) AS text), 'UTF8'))"
"""What a series is known by: a hash of subject and dimensions, which may be too long for an index."""
VALUES = {"usage_hours": "usage_hour_values", "usage_days": "usage_day_values"}
"""Where the distinct values of hours and days are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cube:
    id: int
    event_type: str
    value_property: str | None
    paths: list[str]
    too_wide: list[str]
    distinct_values: bool
    latest_values: bool
    built_to: int | None
    hours_from: datetime
    closed_to: datetime

    @property
    def spec(self) -> CubeSpec:
        return CubeSpec(
            event_type=self.event_type,
            value_property=self.value_property,
            paths=frozenset(self.paths),
            too_wide=frozenset(self.too_wide),
            distinct_values=self.distinct_values,
            latest_values=self.latest_values,
        )


def cubes(connection: Connection[Any], where: str = "true") -> list[Cube]:
    with connection.cursor(row_factory=class_row(Cube)) as cursor:
        return cursor.execute(
            "SELECT id, event_type, value_property, paths, too_wide, distinct_values, latest_values,"
            f" built_to, hours_from, closed_to FROM usage_cubes WHERE {where} ORDER BY id"
        ).fetchall()


def add_events(
    connection: Connection[Any],
    statement: Statement,
    cube: Cube,
    source: str,
    where: str,
    *,
    tables: Sequence[str] = ("usage_hours", "usage_days"),
) -> int:
    """Add the selected events to the cube's hours and closed days; how many series are new.

    Where they may be many, say `expect_many` first.
    """
    sql = f"""
        WITH {read_events(statement, cube, source, where)},
        grouped AS MATERIALIZED (
            SELECT subject, dimensions, start, {folded(cube)} FROM read GROUP BY subject, dimensions, start
        ), named AS MATERIALIZED (
            SELECT *, {SERIES_DIGEST} AS digest
            FROM grouped
        ), known AS MATERIALIZED (
            SELECT id, digest FROM usage_series
            WHERE cube_id = {cube.id} AND digest = ANY(ARRAY(SELECT digest FROM named))
        ), new AS (
            INSERT INTO usage_series (cube_id, digest, subject, dimensions)
            SELECT DISTINCT ON (digest) {cube.id}, digest, subject, dimensions FROM named
            WHERE digest NOT IN (SELECT digest FROM known) ORDER BY digest RETURNING id, digest
        ), series AS MATERIALIZED (SELECT id, digest FROM known UNION ALL SELECT id, digest FROM new)
        {"".join(_writes(statement, cube, tables))}
        SELECT count(*) FROM new"""
    return int(connection.execute(sql, statement.parameters).fetchall()[0][0])


def expect_many(connection: Connection[Any]) -> None:
    """Until the end of the transaction, no join tries every pair.

    PostgreSQL has no statistics of a batch that has just come; it expects a handful of rows, and would join
    thousands of series one by one: 148 µs an event instead of 5.
    """
    connection.execute(
        "SELECT set_config('enable_nestloop', 'off', true), set_config('enable_sort', 'off', true),"
        " set_config('work_mem', '64MB', true)"
    )


def read_events(statement: Statement, cube: Cube, source: str, where: str) -> str:
    """The CTE `read`: subject, dimensions, hour and value of each event, each computed once (OFFSET 0)."""
    values = [f"{value_of(statement, path)} AS d{i}" for i, path in enumerate(cube.paths)]
    values.append(f"{value_of(statement, cube.value_property)} AS value")
    dimensions = ", ".join(text_of(f"d{i}") for i in range(len(cube.paths)))
    distinct = f", {digest_of('value')} AS value_digest" if cube.distinct_values else ""
    return f"""read AS {"MATERIALIZED" if cube.distinct_values else "NOT MATERIALIZED"} (
        SELECT subject, CAST(ARRAY[{dimensions}] AS text[]) AS dimensions, {hour_of("time")} AS start,
               time, key, {number_of("value")} AS number{distinct}
        FROM (SELECT e.subject, e.time, e.key, {", ".join(values)} FROM {source}
              WHERE e.type = {statement.bind(cube.event_type, "text")} AND {where} AND {NOT_VOIDED}
              OFFSET 0) AS e OFFSET 0
    )"""


def folded(cube: Cube) -> str:
    latest = latest_of("number", "time", "key") if cube.latest_values else _NO_LATEST
    return f"""count(*) AS events, count(number) AS numbers, sum(number) AS sum, min(number) AS min,
        max(number) AS max, {latest}, min(time) AS first, max(time) AS last"""


_NO_LATEST = """CAST(NULL AS numeric) AS latest, CAST(NULL AS timestamptz) AS latest_time,
    CAST(NULL AS uuid) AS latest_key"""


def latest_of(value: str, time: str, key: str) -> str:
    """The last number with its place in time."""
    last = f"ORDER BY {time} DESC, {key} DESC) FILTER (WHERE {value} IS NOT NULL))[1]"
    return f"""(array_agg({value} {last} AS latest, (array_agg({time} {last} AS latest_time,
        (array_agg({key} {last} AS latest_key"""


MERGED = f"""sum(events) AS events, sum(numbers) AS numbers, sum(sum) AS sum,
    min(min) AS min, max(max) AS max,
    {latest_of("latest", "latest_time", "latest_key")}, min(first) AS first, max(last) AS last"""
"""What several buckets of a series add up to."""

COLUMNS = "events, numbers, sum, min, max, latest, latest_time, latest_key, first, last"


def _writes(statement: Statement, cube: Cube, tables: Sequence[str]) -> Iterator[str]:
    """Hours from `hours_from` on, days before `closed_to`."""
    hours_from = statement.bind(cube.hours_from, "timestamptz")
    closed_to = statement.bind(cube.closed_to, "timestamptz")
    yield f""", hours_of_cube AS (
        INSERT INTO usage_cube_hours AS h (cube_id, start, first, last)
        SELECT {cube.id}, start, min(first), max(last) FROM named GROUP BY start
        ON CONFLICT (cube_id, start) DO UPDATE
            SET first = least(h.first, excluded.first), last = greatest(h.last, excluded.last))"""
    joined = "FROM named JOIN series USING (digest)"
    if "usage_hours" in tables:
        rows = f"SELECT id, start, {COLUMNS} {joined} WHERE start >= {hours_from}"
        yield f", hours AS ({_upsert('usage_hours', rows)})"
    if "usage_days" in tables:
        day = day_of("start")
        rows = f"SELECT id, {day}, {MERGED} {joined} WHERE start < {closed_to} GROUP BY id, {day}"
        yield f", days AS ({_upsert('usage_days', rows)})"
    if not cube.distinct_values:
        return
    joined = """FROM (SELECT DISTINCT subject, dimensions, start, value_digest FROM read
                      WHERE value_digest IS NOT NULL) AS v
                JOIN named USING (subject, dimensions, start) JOIN series USING (digest)"""
    if "usage_hours" in tables:
        rows = f"SELECT id, start, value_digest {joined} WHERE start >= {hours_from}"
        yield f", hour_values AS (INSERT INTO usage_hour_values {rows} ON CONFLICT DO NOTHING)"
    if "usage_days" in tables:
        rows = f"SELECT DISTINCT id, {day_of('start')}, value_digest {joined} WHERE start < {closed_to}"
        yield f", day_values AS (INSERT INTO usage_day_values {rows} ON CONFLICT DO NOTHING)"


def _upsert(table: str, rows: str) -> str:
    return f"""INSERT INTO {table} AS b (series_id, start, {COLUMNS}) {rows}
        ON CONFLICT (series_id, start) DO UPDATE SET
            events = b.events + excluded.events, numbers = b.numbers + excluded.numbers,
            sum = coalesce(b.sum + excluded.sum, b.sum, excluded.sum),
            min = least(b.min, excluded.min), max = greatest(b.max, excluded.max),
            latest = CASE WHEN {_LATER} THEN excluded.latest ELSE b.latest END,
            latest_key = CASE WHEN {_LATER} THEN excluded.latest_key ELSE b.latest_key END,
            latest_time = CASE WHEN {_LATER} THEN excluded.latest_time ELSE b.latest_time END,
            first = least(b.first, excluded.first), last = greatest(b.last, excluded.last)"""


_LATER = """(b.latest_time IS NULL
    OR (excluded.latest_time, excluded.latest_key) > (b.latest_time, b.latest_key))"""
