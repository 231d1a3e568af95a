"""Keeps the usage cubes up with the events: folds what is new, builds what is missing, closes days.

Every commit of events is a numbered batch that waits in `pending_batches`. A fold adds the events of some of
them to all cubes and removes them from there, in one transaction: so each event is folded exactly once, in
whatever order commits become visible, and ingest never waits. A query takes what is pending from the events.
One process at a time does this work, by an advisory lock; whoever dies leaves nothing half done.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import structlog
from psycopg import Connection
from psycopg.errors import LockNotAvailable

from metering.cubes.adding import Cube, add_events, cubes, expect_many
from metering.cubes.closing import close_days
from metering.cubes.narrowing import clear_away, narrow
from metering.cubes.plan import CubeSpec, changes, wanted_cubes
from metering.expressions import ALL_EVENTS, Statement
from metering.late_usage import note_late
from metering.meter import MeterDefinition
from metering.period import FIRST_INSTANT
from metering.retention import retire_events

__all__ = ["LOCK", "drop_cubes", "maintain"]

LOCK = 7_305_808_868
"""The advisory lock of whoever changes cubes."""
MAX_FOLD = 100_000
"""Events in one fold, unless a single batch has more."""
MAX_BATCHES = 1_000

log = structlog.get_logger()


def maintain(connection: Connection[Any], *, now: datetime, retire_after: timedelta | None = None) -> bool:
    """One bounded step of all that is due; whether there is more to do at once.

    The connection is in autocommit: each part is a transaction. Does nothing while another process works.
    """
    if not connection.execute("SELECT pg_try_advisory_lock(%s)", [LOCK]).fetchall()[0][0]:
        return False
    try:
        steps = [
            _plan(connection, now),
            _fold_pending(connection, now),
            _build(connection),
            close_days(connection, now),
            clear_away(connection),
            retire_after is not None and retire_events(connection, now, retire_after),
        ]
    finally:
        connection.execute("SELECT pg_advisory_unlock(%s)", [LOCK])
    return any(steps)


def drop_cubes(connection: Connection[Any]) -> None:
    """Have every cube built again from zero; until then usage is read from the events."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        connection.execute("DELETE FROM usage_cubes")


def _plan(connection: Connection[Any], now: datetime) -> bool:
    """Begin the cubes that the meters need and drop the others."""
    with connection.transaction():
        existing = [(cube.id, cube.spec, cube.built_to is None) for cube in cubes(connection)]
        begin, drop = changes(wanted_cubes(_meters(connection)), existing)
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


def _fold_pending(connection: Connection[Any], now: datetime) -> bool:
    """Add the oldest pending batches to every cube. One that is being built gets those it has passed by."""
    with connection.transaction():
        waiting = connection.execute(
            "SELECT batch, events FROM pending_batches ORDER BY batch LIMIT %s", [MAX_BATCHES]
        ).fetchall()
        batches = list(_first(waiting))
        note_late(connection, batches, now=now)
        if not batches:
            return False
        expect_many(connection)
        for cube in cubes(connection):
            mine = [batch for batch in batches if cube.built_to is None or batch <= cube.built_to]
            if mine:
                _fold_batches(connection, cube, mine)
        connection.execute("DELETE FROM pending_batches WHERE batch = ANY(%s)", [batches])
    _describe_new_blocks(connection)
    return len(batches) < len(waiting) or len(waiting) == MAX_BATCHES


_BLOCK_RANGES = ("events_batch_idx", "events_time_idx", "usage_hours_start_idx", "usage_days_start_idx")


def _describe_new_blocks(connection: Connection[Any]) -> None:
    """Every search reads the blocks that no range describes yet.

    It needs a lock that VACUUM holds for as long as it runs, and who waits for that lock ends the VACUUM: so
    it does not wait, and the next fold will do it.
    """
    with suppress(LockNotAvailable), connection.transaction():
        connection.execute("SET LOCAL lock_timeout = '10ms'")
        for index in _BLOCK_RANGES:
            connection.execute("SELECT brin_summarize_new_values(%s::regclass)", [index])


def _first(waiting: Sequence[tuple[int, int]]) -> Iterator[int]:
    """As many as a fold may hold, and one at least."""
    total = 0
    for batch, events in waiting:
        if total and total + events > MAX_FOLD:
            return
        total += events
        yield batch


def _fold_batches(connection: Connection[Any], cube: Cube, batches: Sequence[int]) -> None:
    statement = Statement("%({})s")
    listed = statement.bind(list(batches), "bigint[]")
    where = f"e.batch BETWEEN {min(batches)} AND {max(batches)} AND e.batch = ANY({listed})"
    series = add_events(connection, statement, cube, "events AS e", where)  # none is retired before
    if series:
        narrow(connection, cube)


def _build(connection: Connection[Any]) -> bool:
    """Take the next batches into a cube that is being built, while new ones are folded into the others.

    A batch that is pending, or not yet visible, is folded into this cube too once the cube has passed it.
    """
    with connection.transaction():
        building = cubes(connection, "built_to IS NOT NULL")
        if not building:
            return False
        cube = building[0]
        built_to = cube.built_to or 0
        newest, after = connection.execute(
            "SELECT (SELECT last_value FROM pending_batches_batch_seq), %s::bigint", [built_to]
        ).fetchall()[0]
        upto = _next_stretch(connection, after, newest)
        expect_many(connection)
        statement = Statement("%({})s")
        where = f"""e.batch > {after} AND e.batch <= {upto}
            AND e.batch NOT IN (SELECT batch FROM pending_batches)"""
        add_events(connection, statement, cube, f"{ALL_EVENTS} AS e", where)
        done = upto >= newest
        connection.execute(
            "UPDATE usage_cubes SET built_to = %s, version = version + 1 WHERE id = %s",
            [None if done else upto, cube.id],
        )
        if done:
            connection.execute("ANALYZE usage_series, usage_hours")  # for the first question's plan
            log.info("cube_built", event_type=cube.event_type, value_property=cube.value_property)
        narrow(connection, cube)
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
