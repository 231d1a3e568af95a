"""Closes days: once a day is over its hours are added up, and old hours are dropped.

A late event is added to its closed day like to any hour. Where a window cuts a day whose hours are gone, the
events themselves are read.
"""

from datetime import datetime, timedelta
from typing import Any

from psycopg import Connection

from metering.cubes.adding import COLUMNS, MERGED, VALUES, Cube, cubes
from metering.expressions import day_of
from metering.period import midnight_of

__all__ = ["close_days"]

CLOSING = timedelta(hours=1)
"""How long after its end a day is closed."""
DAY = timedelta(days=1)
HOURS_KEPT = timedelta(days=100)


def close_days(connection: Connection[Any], now: datetime) -> bool:
    """Add up the hours of days that are over, and drop hours that nobody asks for any more."""
    today = midnight_of(now - CLOSING)
    more = False
    for cube in cubes(connection, "built_to IS NULL"):
        if cube.closed_to < today:
            with connection.transaction():
                more |= _close(connection, cube, today)
    return more


def _close(connection: Connection[Any], cube: Cube, today: datetime) -> bool:
    """A day at a time, from the first that has events: a long history is no long transaction."""
    oldest = connection.execute(
        "SELECT min(start) FROM usage_cube_hours WHERE cube_id = %s AND start >= %s AND start < %s",
        [cube.id, cube.closed_to, today],
    ).fetchall()[0][0]
    upto = midnight_of(oldest) + DAY if oldest else today
    of_cube = "series_id IN (SELECT id FROM usage_series WHERE cube_id = %(cube)s)"
    span = {"cube": cube.id, "from": cube.closed_to, "to": upto}
    within = f"start >= %(from)s AND start < %(to)s AND {of_cube}"
    day = day_of("start")
    connection.execute(
        f"""INSERT INTO usage_days (series_id, start, {COLUMNS})
            SELECT series_id, {day}, {MERGED} FROM usage_hours WHERE {within} GROUP BY series_id, {day}""",
        span,
    )
    connection.execute(
        f"""INSERT INTO usage_day_values (series_id, start, digest)
            SELECT DISTINCT series_id, {day}, digest FROM usage_hour_values WHERE {within}""",
        span,
    )
    if upto == today:
        connection.execute("ANALYZE usage_days")
    hours_from = max(cube.hours_from, upto - HOURS_KEPT)
    for table in ("usage_hours", VALUES["usage_hours"]):
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
