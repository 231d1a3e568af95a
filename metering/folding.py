"""Keeps the usage cubes up with the events: folds what is new, builds what is missing, closes days.

Every commit of events is a numbered batch that waits in `pending_batches`. A fold adds the events of some of
them to all cubes and removes them from there, in one transaction: so each event is folded exactly once, in
whatever order commits become visible, and ingest never waits. A query takes what is pending from the events.
One process at a time does this work, by an advisory lock; whoever dies leaves nothing half done.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from psycopg import Connection
from psycopg.rows import class_row

from metering.cube_plan import CubeSpec, changes, wanted_cubes
from metering.expressions import (
    ALL_EVENTS,
    NOT_VOIDED,
    Statement,
    day_of,
    digest_of,
    hour_of,
    number_of,
    text_of,
    value_of,
)
from metering.meter import MeterDefinition
from metering.period import FIRST_INSTANT
from metering.segments import day_before

__all__ = ["drop_cubes", "maintain", "refold_voided"]

LOCK = 7_305_808_868
"""The advisory lock of whoever changes cubes."""
MAX_FOLD = 100_000
"""Events in one fold, unless a single batch has more."""
MAX_BATCHES = 1_000
CLOSING = timedelta(hours=1)
"""A day is closed this long after its end; what comes later is added to it all the same."""
DAYS_A_STEP = timedelta(days=31)
HOURS_KEPT = timedelta(days=100)
"""Hours older than that are dropped: then a window that cuts a day reads its events."""
MAX_SERIES = 20_000
MAX_VALUES = 1_000
"""In a cube of more than MAX_SERIES series, a dimension with more values than this is given up."""
RETIRE_AT_ONCE = 20_000
STORED_LONG_AGO = timedelta(hours=1)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cube:
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


def maintain(connection: Connection[Any], *, now: datetime, retire_after: timedelta | None = None) -> bool:
    """One bounded step of all that is due; whether there is more to do at once.

    The connection is in autocommit: each part is a transaction. Does nothing while another process works.
    """
    if not connection.execute("SELECT pg_try_advisory_lock(%s)", [LOCK]).fetchall()[0][0]:
        return False
    try:
        steps = [
            _plan(connection, now),
            _fold_pending(connection),
            _build(connection),
            _close_days(connection, now),
            _clean(connection),
            retire_after is not None and _retire(connection, now, retire_after),
        ]
    finally:
        connection.execute("SELECT pg_advisory_unlock(%s)", [LOCK])
    return any(steps)


def drop_cubes(connection: Connection[Any]) -> None:
    """Have every cube built again from zero; until then usage is read from the events."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        connection.execute("DELETE FROM usage_cubes")


def _cubes(connection: Connection[Any], where: str = "true") -> list[_Cube]:
    with connection.cursor(row_factory=class_row(_Cube)) as cursor:
        return cursor.execute(
            "SELECT id, event_type, value_property, paths, too_wide, distinct_values, latest_values,"
            f" built_to, hours_from, closed_to FROM usage_cubes WHERE {where} ORDER BY id"
        ).fetchall()


# -- which cubes there are -----------------------------------------------------------------------------------


def _plan(connection: Connection[Any], now: datetime) -> bool:
    """Begin the cubes that the meters need and drop the others."""
    with connection.transaction():
        cubes = [(cube.id, cube.spec, cube.built_to is None) for cube in _cubes(connection)]
        begin, drop = changes(wanted_cubes(_meters(connection)), cubes)
        for spec in begin:
            _begin(connection, spec, now)
        if drop:
            connection.execute("DELETE FROM usage_cubes WHERE id = ANY(%s)", [drop])
    return bool(begin)


def _meters(connection: Connection[Any]) -> Iterator[MeterDefinition]:
    rows = connection.execute(
        "SELECT event_type, aggregation, value_property, group_by FROM meters WHERE deleted_at IS NULL"
    )
    for event_type, aggregation, value_property, group_by in rows:
        yield MeterDefinition(
            event_type=event_type,
            aggregation=aggregation,
            value_property=value_property,
            group_by=group_by,
        )


def _begin(connection: Connection[Any], spec: CubeSpec, now: datetime) -> None:
    connection.execute(
        """INSERT INTO usage_cubes (event_type, value_property, paths, too_wide, distinct_values,
               latest_values, built_to, hours_from, closed_to, version, created_at)
           VALUES (%s, %s, %s, %s, %s, %s, 0, %s, %s, 0, %s)""",
        [
            spec.event_type,
            spec.value_property,
            sorted(spec.paths),
            sorted(spec.too_wide),
            spec.distinct_values,
            spec.latest_values,
            FIRST_INSTANT,
            FIRST_INSTANT,
            now,
        ],
    )


# -- folding -------------------------------------------------------------------------------------------------


def _fold_pending(connection: Connection[Any]) -> bool:
    """Add the oldest pending batches to every cube. One that is being built gets those it has passed by."""
    with connection.transaction():
        waiting = connection.execute(
            "SELECT batch, events FROM pending_batches ORDER BY batch LIMIT %s", [MAX_BATCHES]
        ).fetchall()
        batches = list(_first(waiting))
        if not batches:
            return False
        for cube in _cubes(connection):
            mine = [batch for batch in batches if cube.built_to is None or batch <= cube.built_to]
            if mine:
                _fold_batches(connection, cube, mine)
        connection.execute("DELETE FROM pending_batches WHERE batch = ANY(%s)", [batches])
    # Blocks that no range describes yet are read by every search for a batch.
    connection.execute("SELECT brin_summarize_new_values('events_batch_idx'::regclass)")
    connection.execute("SELECT brin_summarize_new_values('events_time_idx'::regclass)")
    return len(batches) < len(waiting) or len(waiting) == MAX_BATCHES


def _first(waiting: Sequence[tuple[int, int]]) -> Iterator[int]:
    """As many as a fold may hold, and one at least."""
    total = 0
    for batch, events in waiting:
        if total and total + events > MAX_FOLD:
            return
        total += events
        yield batch


def _fold_batches(connection: Connection[Any], cube: _Cube, batches: Sequence[int]) -> None:
    statement = Statement("%({})s")
    listed = statement.bind(list(batches), "bigint[]")
    where = f"e.batch BETWEEN {min(batches)} AND {max(batches)} AND e.batch = ANY({listed})"
    series = _add(connection, statement, cube, f"{ALL_EVENTS} AS e", where)
    if series:
        _narrow(connection, cube)


def _add(
    connection: Connection[Any],
    statement: Statement,
    cube: _Cube,
    source: str,
    where: str,
    *,
    tables: Sequence[str] = ("usage_hours", "usage_days"),
) -> int:
    """Add the selected events to the cube's hours and closed days; how many series are new."""
    sql = f"""
        WITH {_read(statement, cube, source, where)},
        grouped AS MATERIALIZED (
            SELECT subject, dimensions, start, {_folded(cube)} FROM read GROUP BY subject, dimensions, start
        ), named AS MATERIALIZED (
            SELECT *, sha256(convert_to(CAST(array_prepend(subject, dimensions) AS text), 'UTF8')) AS digest
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
    connection.execute(_PLAIN_PLANS)
    return int(connection.execute(sql, statement.parameters).fetchall()[0][0])


_PLAIN_PLANS = """SELECT set_config('enable_nestloop', 'off', true), set_config('enable_sort', 'off', true),
    set_config('work_mem', '64MB', true)"""
"""The planner expects a handful of rows of a batch it has no statistics of, and would then join thousands of
series by trying every pair. Until the end of the transaction."""


def _read(statement: Statement, cube: _Cube, source: str, where: str) -> str:
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


def _folded(cube: _Cube) -> str:
    latest = _latest("number", "time", "key") if cube.latest_values else _NO_LATEST
    return f"""count(*) AS events, count(number) AS numbers, sum(number) AS sum, min(number) AS min,
        max(number) AS max, {latest}, min(time) AS first, max(time) AS last"""


_NO_LATEST = """CAST(NULL AS numeric) AS latest, CAST(NULL AS timestamptz) AS latest_time,
    CAST(NULL AS uuid) AS latest_key"""


def _latest(value: str, time: str, key: str) -> str:
    """The last number with its place in time."""
    last = f"ORDER BY {time} DESC, {key} DESC) FILTER (WHERE {value} IS NOT NULL))[1]"
    return f"""(array_agg({value} {last} AS latest, (array_agg({time} {last} AS latest_time,
        (array_agg({key} {last} AS latest_key"""


_MERGED = f"""sum(events) AS events, sum(numbers) AS numbers, sum(sum) AS sum,
    min(min) AS min, max(max) AS max,
    {_latest("latest", "latest_time", "latest_key")}, min(first) AS first, max(last) AS last"""
"""What several buckets of a series add up to."""

_COLUMNS = "events, numbers, sum, min, max, latest, latest_time, latest_key, first, last"


def _writes(statement: Statement, cube: _Cube, tables: Sequence[str]) -> Iterator[str]:
    """Hours from `hours_from` on, days before `closed_to`."""
    hours_from = statement.bind(cube.hours_from, "timestamptz")
    closed_to = statement.bind(cube.closed_to, "timestamptz")
    joined = "FROM named JOIN series USING (digest)"
    if "usage_hours" in tables:
        rows = f"SELECT id, start, {_COLUMNS} {joined} WHERE start >= {hours_from}"
        yield f", hours AS ({_upsert('usage_hours', rows)})"
    if "usage_days" in tables:
        day = day_of("start")
        rows = f"SELECT id, {day}, {_MERGED} {joined} WHERE start < {closed_to} GROUP BY id, {day}"
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
    return f"""INSERT INTO {table} AS b (series_id, start, {_COLUMNS}) {rows}
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


# -- building from zero --------------------------------------------------------------------------------------


def _build(connection: Connection[Any]) -> bool:
    """Take the next batches into a cube that is being built, while new ones are folded into the others.

    A batch that is pending, or not yet visible, is folded into this cube too once the cube has passed it.
    """
    with connection.transaction():
        building = _cubes(connection, "built_to IS NOT NULL")
        if not building:
            return False
        cube = building[0]
        built_to = cube.built_to or 0
        newest, after = connection.execute(
            "SELECT (SELECT last_value FROM pending_batches_batch_seq), %s::bigint", [built_to]
        ).fetchall()[0]
        upto = _next_stretch(connection, after, newest)
        statement = Statement("%({})s")
        where = f"""e.batch > {after} AND e.batch <= {upto}
            AND e.batch NOT IN (SELECT batch FROM pending_batches)"""
        _add(connection, statement, cube, f"{ALL_EVENTS} AS e", where)
        done = upto >= newest
        connection.execute(
            "UPDATE usage_cubes SET built_to = %s, version = version + 1 WHERE id = %s",
            [None if done else upto, cube.id],
        )
        if done:
            log.info("cube_built", event_type=cube.event_type, value_property=cube.value_property)
        _narrow(connection, cube)
    return True


def _next_stretch(connection: Connection[Any], after: int, newest: int) -> int:
    """The last batch of a stretch that holds about MAX_FOLD events."""
    width = 64
    while True:
        upto = min(after + width, newest)
        count = connection.execute(
            f"SELECT count(*) FROM {ALL_EVENTS} AS e WHERE batch > %s AND batch <= %s",
            [after, upto],
        ).fetchall()[0][0]
        if upto >= newest or count * 2 > MAX_FOLD:
            return upto
        width *= 2 if count else 16


# -- closing days --------------------------------------------------------------------------------------------


def _close_days(connection: Connection[Any], now: datetime) -> bool:
    """Add up the hours of days that are over, and drop hours that nobody asks for any more."""
    today = day_before(now - CLOSING)
    more = False
    for cube in _cubes(connection, "built_to IS NULL"):
        if cube.closed_to < today:
            with connection.transaction():
                more |= _close(connection, cube, today)
    return more


def _close(connection: Connection[Any], cube: _Cube, today: datetime) -> bool:
    of_cube = "series_id IN (SELECT id FROM usage_series WHERE cube_id = %(cube)s)"
    oldest = connection.execute(
        f"SELECT min(start) FROM usage_hours WHERE start >= %(from)s AND start < %(to)s AND {of_cube}",
        {"cube": cube.id, "from": cube.closed_to, "to": today},
    ).fetchall()[0][0]
    upto = min(today, day_before(oldest) + DAYS_A_STEP) if oldest else today
    span = {"cube": cube.id, "from": cube.closed_to, "to": upto}
    within = f"start >= %(from)s AND start < %(to)s AND {of_cube}"
    day = day_of("start")
    connection.execute(
        f"""INSERT INTO usage_days (series_id, start, {_COLUMNS})
            SELECT series_id, {day}, {_MERGED} FROM usage_hours WHERE {within} GROUP BY series_id, {day}""",
        span,
    )
    connection.execute(
        f"""INSERT INTO usage_day_values (series_id, start, digest)
            SELECT DISTINCT series_id, {day}, digest FROM usage_hour_values WHERE {within}""",
        span,
    )
    hours_from = max(cube.hours_from, upto - HOURS_KEPT)
    for table in ("usage_hours", "usage_hour_values"):
        connection.execute(
            f"DELETE FROM {table} WHERE start < %s AND series_id IN"
            " (SELECT id FROM usage_series WHERE cube_id = %s)",
            [hours_from, cube.id],
        )
    connection.execute(
        "UPDATE usage_cubes SET closed_to = %s, hours_from = %s, version = version + 1 WHERE id = %s",
        [upto, hours_from, cube.id],
    )
    return upto < today


# -- dimensions with too many values -------------------------------------------------------------------------


def _narrow(connection: Connection[Any], cube: _Cube) -> None:
    """Give up dimensions that have too many values; usage by them is read from the events from then on."""
    many = connection.execute(
        "SELECT count(*) FROM (SELECT FROM usage_series WHERE cube_id = %s LIMIT %s) AS series",
        [cube.id, MAX_SERIES + 1],
    ).fetchall()[0][0]
    if many <= MAX_SERIES or not cube.paths:
        return
    counts = ", ".join(f"count(DISTINCT dimensions[{i + 1}])" for i in range(len(cube.paths)))
    values = connection.execute(
        f"SELECT {counts} FROM usage_series WHERE cube_id = %s",
        [cube.id],
    ).fetchall()[0]
    wide = [path for path, count in zip(cube.paths, values, strict=True) if count > MAX_VALUES]
    if wide:
        log.warning("dimensions_too_wide", event_type=cube.event_type, dimensions=wide, values=max(values))
        _give_up(connection, cube, wide)


def _give_up(connection: Connection[Any], cube: _Cube, wide: Sequence[str]) -> None:
    """A new cube without them, added up from the old one."""
    kept = [path for path in cube.paths if path not in wide]
    (new,) = connection.execute(
        """INSERT INTO usage_cubes (event_type, value_property, paths, too_wide, distinct_values,
               latest_values, built_to, hours_from, closed_to, version, created_at)
           SELECT event_type, value_property, %s, too_wide || %s::text[], distinct_values,
               latest_values, built_to, hours_from, closed_to, version, created_at
           FROM usage_cubes WHERE id = %s RETURNING id""",
        [kept, list(wide), cube.id],
    ).fetchall()[0]
    kept_values = ", ".join(f"dimensions[{cube.paths.index(path) + 1}]" for path in kept)
    connection.execute(
        f"""CREATE TEMPORARY TABLE narrowed ON COMMIT DROP AS
            SELECT id, subject, dimensions,
                   sha256(convert_to(CAST(array_prepend(subject, dimensions) AS text), 'UTF8')) AS digest
            FROM (SELECT id, subject, CAST(ARRAY[{kept_values}] AS text[]) AS dimensions
                  FROM usage_series WHERE cube_id = %s) AS s""",
        [cube.id],
    )
    connection.execute(
        """INSERT INTO usage_series (cube_id, digest, subject, dimensions)
           SELECT DISTINCT ON (digest) %s, digest, subject, dimensions FROM narrowed ORDER BY digest""",
        [new],
    )
    mapped = f"""JOIN narrowed AS n ON n.id = b.series_id
        JOIN usage_series AS s ON s.digest = n.digest AND s.cube_id = {new}"""
    for table in ("usage_hours", "usage_days"):
        connection.execute(
            f"""INSERT INTO {table} (series_id, start, {_COLUMNS})
                SELECT s.id, start, {_MERGED} FROM {table} AS b {mapped} GROUP BY s.id, start"""
        )
    for table in ("usage_hour_values", "usage_day_values"):
        connection.execute(
            f"""INSERT INTO {table} (series_id, start, digest)
                SELECT DISTINCT s.id, start, b.digest FROM {table} AS b {mapped}"""
        )
    connection.execute("DROP TABLE narrowed")
    connection.execute("DELETE FROM usage_cubes WHERE id = %s", [cube.id])


def _clean(connection: Connection[Any]) -> bool:
    """Remove what is left of dropped cubes, some series at a time."""
    with connection.transaction():
        orphans = [
            series
            for (series,) in connection.execute(
                "SELECT id FROM usage_series WHERE cube_id NOT IN (SELECT id FROM usage_cubes) LIMIT 1000"
            )
        ]
        for table in ("usage_hours", "usage_days", "usage_hour_values", "usage_day_values"):
            if orphans:
                connection.execute(f"DELETE FROM {table} WHERE series_id = ANY(%s)", [orphans])
        if orphans:
            connection.execute("DELETE FROM usage_series WHERE id = ANY(%s)", [orphans])
    return bool(orphans)


# -- corrections ---------------------------------------------------------------------------------------------


def refold_voided(connection: Connection[Any], *, correction_id: str) -> None:
    """Compute again the buckets that hold events which this correction has just voided or restored.

    Belongs into the transaction that did so; folds wait until it ends.
    """
    connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
    for size, tables in ((hour_of, ["usage_hours"]), (day_of, ["usage_days"])):
        connection.execute("DROP TABLE IF EXISTS affected")
        connection.execute(
            f"""CREATE TEMPORARY TABLE affected ON COMMIT DROP AS
                SELECT DISTINCT e.type, e.subject, {size("e.time")} AS start
                FROM voided_events AS v JOIN {ALL_EVENTS} AS e USING (key) WHERE v.correction_id = %s""",
            [correction_id],
        )
        connection.execute("ANALYZE affected")
        for cube in _cubes(connection, "event_type IN (SELECT type FROM affected)"):
            _refold(connection, cube, tables[0], timedelta(hours=1) if size is hour_of else timedelta(days=1))
    connection.execute("DROP TABLE affected")


def _refold(connection: Connection[Any], cube: _Cube, table: str, size: timedelta) -> None:
    for bucket in (table, {"usage_hours": "usage_hour_values", "usage_days": "usage_day_values"}[table]):
        connection.execute(
            f"""DELETE FROM {bucket} AS b USING usage_series AS s, affected AS a
                WHERE s.cube_id = %s AND a.type = %s AND s.subject = a.subject
                  AND b.series_id = s.id AND b.start = a.start""",
            [cube.id, cube.event_type],
        )
    statement = Statement("%({})s")
    length = statement.bind(size, "interval")
    source = f"""affected AS a CROSS JOIN LATERAL (
        SELECT * FROM {ALL_EVENTS} AS e WHERE hashtextextended(e.subject, 0) = hashtextextended(a.subject, 0)
          AND e.subject = a.subject AND e.time >= a.start AND e.time < a.start + {length}) AS e"""
    where = "a.type = e.type AND e.batch NOT IN (SELECT batch FROM pending_batches)"
    where += "" if cube.built_to is None else f" AND e.batch <= {cube.built_to}"
    _add(connection, statement, cube, source, where, tables=[table])


# -- retention -----------------------------------------------------------------------------------------------


def _retire(connection: Connection[Any], now: datetime, age: timedelta) -> bool:
    """Move old events of closed days out of the hot table. Nothing that can be asked changes."""
    before = day_before(now - age)
    with connection.transaction():
        moved = connection.execute(
            """WITH old AS (
                   SELECT key FROM events WHERE time < %s AND stored_at < %s
                     AND batch NOT IN (SELECT batch FROM pending_batches) LIMIT %s
               ), moved AS (DELETE FROM events USING old WHERE events.key = old.key RETURNING events.*)
               INSERT INTO retired_events SELECT * FROM moved""",
            [before, now - STORED_LONG_AGO, RETIRE_AT_ONCE],
        ).rowcount
    return moved == RETIRE_AT_ONCE
