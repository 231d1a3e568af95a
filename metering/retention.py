"""Moves old events out of the table that new ones go into; they count, and their repeats are repeats."""

from datetime import datetime, timedelta
from typing import Any

from psycopg import Connection

from metering.period import midnight_of

__all__ = ["retire_events"]

AT_ONCE = 20_000
STORED_LONG_AGO = timedelta(hours=1)


def retire_events(connection: Connection[Any], now: datetime, age: timedelta) -> bool:
    """Move old events of closed days out of the hot table. Nothing that can be asked changes."""
    before = midnight_of(now - age)
    with connection.transaction():
        moved = connection.execute(
            """WITH old AS (
                   SELECT key FROM events WHERE time < %s AND stored_at < %s
                     AND batch NOT IN (SELECT batch FROM pending_batches) LIMIT %s
               ), moved AS (DELETE FROM events USING old WHERE events.key = old.key RETURNING events.*)
               INSERT INTO retired_events SELECT * FROM moved""",
            [before, now - STORED_LONG_AGO, AT_ONCE],
        ).rowcount
    return moved == AT_ONCE
