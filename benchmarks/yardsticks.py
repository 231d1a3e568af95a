"""What this machine can do at best, measured beside what Tollgate does."""

import time
from typing import Any

from psycopg import Connection

from api import clock
from benchmarks.traffic import Requests
from metering.event import decode_events
from metering.events import append_events, keyed

_COPY = "COPY yardstick FROM STDIN (FORMAT BINARY)"


def y1(connection: Connection[Any], *, rows: int, commits: int, repeat: int = 5) -> float:
    """Rows a second of a COPY, encoded ahead, into a table whose only index is that of its 16-byte key.

    The rows have the columns of `events` and are sorted by key; `rows` of them are in each commit. The median
    of so many tries, each into an empty table.
    """
    connection.execute("CREATE TABLE yardstick (LIKE events INCLUDING STORAGE, UNIQUE (key))")
    connection.execute("CREATE TEMPORARY TABLE events (LIKE events)")  # hides the real one
    chunks = [_encoded(connection, rows, seed) for seed in range(commits)]
    rates = []
    for _ in range(repeat):
        connection.execute("TRUNCATE yardstick")
        began = time.perf_counter()
        for chunk in chunks:
            with connection.cursor() as cursor, cursor.copy(_COPY) as copy:
                copy.write(chunk)
        rates.append(rows * commits / (time.perf_counter() - began))
    connection.execute("DROP TABLE yardstick, pg_temp.events")
    return sorted(rates)[len(rates) // 2]


def _encoded(connection: Connection[Any], rows: int, seed: int) -> bytes:
    """Rows as PostgreSQL itself writes them, of events that nobody has seen."""
    now = clock.now()
    request = next(iter(Requests(rows, "", seed, templates=1)))
    events = decode_events(request.partition(b"\r\n\r\n")[2], content="either", now=now)
    with connection.transaction(force_rollback=True), connection.cursor() as cursor:
        append_events(connection, keyed((event, now) for event in events), now=now)
        with cursor.copy("COPY (SELECT * FROM events ORDER BY key) TO STDOUT (FORMAT BINARY)") as copy:
            return b"".join(bytes(part) for part in copy)
