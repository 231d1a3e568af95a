"""Gives up dimensions that have too many values for a cube (a request's id), and clears away old cubes."""

from collections.abc import Sequence
from typing import Any

import structlog
from psycopg import Connection

from metering.cubes.adding import COLUMNS, MERGED, SERIES_DIGEST, VALUES, Cube

__all__ = ["clear_away", "narrow"]

MAX_SERIES = 20_000
MAX_VALUES = 1_000
"""In a cube of more than MAX_SERIES series, a dimension with more values than this is given up."""

log = structlog.get_logger()


def narrow(connection: Connection[Any], cube: Cube) -> None:
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


def _give_up(connection: Connection[Any], cube: Cube, wide: Sequence[str]) -> None:
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
    _map_series(connection, cube, kept, new)
    _add_up(connection, new)
    connection.execute(
        """INSERT INTO usage_cube_hours (cube_id, start, first, last)
           SELECT %s, start, first, last FROM usage_cube_hours WHERE cube_id = %s""",
        [new, cube.id],
    )
    connection.execute("DROP TABLE narrowed")
    connection.execute("DELETE FROM usage_cubes WHERE id = %s", [cube.id])


def _map_series(connection: Connection[Any], cube: Cube, kept: Sequence[str], new: int) -> None:
    """Every old series with the digest of the new one that takes it in; and the new ones."""
    kept_values = ", ".join(f"dimensions[{cube.paths.index(path) + 1}]" for path in kept)
    connection.execute(
        f"""CREATE TEMPORARY TABLE narrowed ON COMMIT DROP AS
            SELECT id, subject, dimensions,
                   {SERIES_DIGEST} AS digest
            FROM (SELECT id, subject, CAST(ARRAY[{kept_values}] AS text[]) AS dimensions
                  FROM usage_series WHERE cube_id = %s) AS s""",
        [cube.id],
    )
    connection.execute(
        """INSERT INTO usage_series (cube_id, digest, subject, dimensions)
           SELECT DISTINCT ON (digest) %s, digest, subject, dimensions FROM narrowed ORDER BY digest""",
        [new],
    )


def _add_up(connection: Connection[Any], new: int) -> None:
    mapped = f"""JOIN narrowed AS n ON n.id = b.series_id
        JOIN usage_series AS s ON s.digest = n.digest AND s.cube_id = {new}"""
    for table, values in VALUES.items():
        connection.execute(
            f"""INSERT INTO {table} (series_id, start, {COLUMNS})
                SELECT s.id, start, {MERGED} FROM {table} AS b {mapped} GROUP BY s.id, start"""
        )
        connection.execute(
            f"""INSERT INTO {values} (series_id, start, digest)
                SELECT DISTINCT s.id, start, b.digest FROM {values} AS b {mapped}"""
        )


def clear_away(connection: Connection[Any]) -> bool:
    """Remove what is left of dropped cubes, some series at a time."""
    with connection.transaction():
        orphans = [
            series
            for (series,) in connection.execute(
                "SELECT id FROM usage_series WHERE cube_id NOT IN (SELECT id FROM usage_cubes) LIMIT 1000"
            )
        ]
        if not orphans:
            return False
        for table in (*VALUES, *VALUES.values()):
            connection.execute(f"DELETE FROM {table} WHERE series_id = ANY(%s)", [orphans])
        connection.execute("DELETE FROM usage_series WHERE id = ANY(%s)", [orphans])
        connection.execute("DELETE FROM usage_cube_hours WHERE cube_id NOT IN (SELECT id FROM usage_cubes)")
    return True
