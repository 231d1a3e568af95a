"""`tollgate cubes check | rebuild`: proves the usage cubes against the events, or builds them from zero.

Both may run beside a server; usage is answered exactly all the while.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from psycopg import Connection
from sqlalchemy import Engine

from api.database import connector
from metering.cubes.adding import cubes
from metering.cubes.checking import check_cubes
from metering.cubes.folding import drop_cubes, maintain

__all__ = ["check", "rebuild"]

PAUSE = 0.2


def check(engine: Engine) -> list[str]:
    """What is wrong, a sentence each."""
    with _patient(engine) as connection:
        return check_cubes(connection)


def rebuild(engine: Engine, *, now: datetime) -> int:
    """Build every cube from zero; how many there are. A server's worker may do part of the work."""
    with _patient(engine) as connection:
        drop_cubes(connection)
        while not _built(connection):
            if not maintain(connection, now=now):
                time.sleep(PAUSE)  # another process is at it
        return len(cubes(connection))


def _built(connection: Connection[Any]) -> bool:
    wanted = connection.execute("SELECT count(*) FROM meters WHERE deleted_at IS NULL").fetchall()[0][0]
    there = cubes(connection)
    return (bool(there) or not wanted) and all(cube.built_to is None for cube in there)


@contextmanager
def _patient(engine: Engine) -> Iterator[Connection[Any]]:
    with connector(engine, "tollgate cubes")() as connection:
        connection.execute("SET statement_timeout = 0")
        yield connection
