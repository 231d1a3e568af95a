"""Proves the cubes: each hour and day is what its events add up to, and none is missing or left over.

Both sides are read in one statement, so it may run beside ingest and folding.
"""

from typing import Any

from psycopg import Connection

from metering.cubes.adding import VALUES, Cube, cubes, folded, read_events
from metering.expressions import ALL_EVENTS, Statement

__all__ = ["check_cubes"]

_FACTS = "events, numbers, sum, min, max, latest, latest_time, latest_key, first, last"


def check_cubes(connection: Connection[Any]) -> list[str]:
    """A sentence for each table of a cube that is wrong; none when all is well.

    Reads every event. A cube that is being built is passed over.
    """
    wrong = []
    for cube in cubes(connection, "built_to IS NULL"):
        for table, values in VALUES.items():
            checks = [(table, _FACTS)] + ([(values, "digest")] if cube.distinct_values else [])
            for checked, columns in checks:
                if count := _differences(connection, cube, table, checked, columns):
                    what = f"{count} rows of {checked} differ from the events"
                    wrong.append(f"{what}: {cube.event_type}, {cube.value_property or 'counted'}")
    return wrong


def _differences(connection: Connection[Any], cube: Cube, table: str, checked: str, columns: str) -> int:
    """Rows that only the cube has, or only the events."""
    statement = Statement("%({})s")
    unit, kept = ("hour", ">= c.hours_from") if table == "usage_hours" else ("day", "< c.closed_to")
    start = f"date_trunc('{unit}', start, 'UTC')"
    folded_already = "e.batch NOT IN (SELECT batch FROM pending_batches)"
    bucket = f"subject, dimensions, {start}"
    if columns == "digest":
        events = f"SELECT DISTINCT {bucket}, value_digest FROM read WHERE value_digest IS NOT NULL"
    else:
        events = f"SELECT {bucket}, {folded(cube)} FROM read GROUP BY {bucket}"
    sql = f"""
        WITH {read_events(statement, cube, f"{ALL_EVENTS} AS e", folded_already)},
        c AS (SELECT * FROM usage_cubes WHERE id = {cube.id}),
        expected (subject, dimensions, start, {columns}) AS MATERIALIZED ({events}),
        due AS (SELECT expected.* FROM expected, c WHERE start {kept}),
        found AS MATERIALIZED (
            SELECT s.subject, s.dimensions, b.start, {", ".join(f"b.{name}" for name in columns.split(", "))}
            FROM usage_series AS s JOIN {checked} AS b ON b.series_id = s.id WHERE s.cube_id = {cube.id})
        SELECT (SELECT count(*) FROM (TABLE due EXCEPT TABLE found) AS missing)
             + (SELECT count(*) FROM (TABLE found EXCEPT TABLE due) AS left_over) FROM c"""
    rows = connection.execute(sql, statement.parameters).fetchall()
    return int(rows[0][0]) if rows else 0
