"""Computes buckets again from their events, after a correction has voided or restored some of them."""

from typing import Any

from psycopg import Connection

from metering.cubes.adding import VALUES, Cube, add_events, cubes, expect_many
from metering.cubes.folding import LOCK
from metering.expressions import ALL_EVENTS, Statement
from metering.late_usage import note_corrected

__all__ = ["refold_voided"]

MANY = 2_000


def refold_voided(connection: Connection[Any], *, correction_id: str) -> None:
    """Compute again the buckets that hold events which this correction has just voided or restored.

    Belongs at the end of the transaction that did so; folds wait until it is over.
    """
    connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
    note_corrected(connection, correction_id=correction_id)
    query = "SELECT count(*) FROM voided_events WHERE correction_id = %s"
    many = connection.execute(query, [correction_id]).fetchall()[0][0] > MANY
    if many:
        expect_many(connection)
    connection.execute(
        f"""UPDATE usage_cubes SET version = version + 1 WHERE event_type IN (
            SELECT e.type FROM voided_events AS v JOIN {ALL_EVENTS} AS e USING (key)
            WHERE v.correction_id = %s)""",
        [correction_id],
    )
    for unit in ("hour", "day"):
        connection.execute(
            f"""CREATE TEMPORARY TABLE affected ON COMMIT DROP AS
                SELECT DISTINCT e.type, e.subject, date_trunc('{unit}', e.time, 'UTC') AS start
                FROM voided_events AS v JOIN {ALL_EVENTS} AS e USING (key) WHERE v.correction_id = %s""",
            [correction_id],
        )
        connection.execute("ANALYZE affected")
        for cube in cubes(connection, "event_type IN (SELECT type FROM affected)"):
            _refold(connection, cube, unit, many=many)
        connection.execute("DROP TABLE affected")


def _refold(connection: Connection[Any], cube: Cube, unit: str, *, many: bool) -> None:
    table = f"usage_{unit}s"
    for buckets in (table, VALUES[table]):
        connection.execute(
            f"""DELETE FROM {buckets} AS b USING usage_series AS s, affected AS a
                WHERE s.cube_id = %s AND a.type = %s AND s.subject = a.subject
                  AND b.series_id = s.id AND b.start = a.start""",
            [cube.id, cube.event_type],
        )
    where = "a.type = e.type AND e.batch NOT IN (SELECT batch FROM pending_batches)"
    where += "" if cube.built_to is None else f" AND e.batch <= {cube.built_to}"
    add_events(connection, Statement("%({})s"), cube, _SOURCES[many].format(unit=unit), where, tables=[table])


_SOURCES = {
    False: f"""affected AS a CROSS JOIN LATERAL (
        SELECT * FROM {ALL_EVENTS} AS e
        WHERE hashtextextended(e.subject, 0) = hashtextextended(a.subject, 0) AND e.subject = a.subject
          AND e.time >= a.start AND e.time < a.start + interval '1 {{unit}}') AS e""",
    True: f"""{ALL_EVENTS} AS e
        JOIN affected AS a ON a.subject = e.subject AND a.start = date_trunc('{{unit}}', e.time, 'UTC')""",
}
"""The events of affected buckets: few are looked up, for many every event is read once."""
