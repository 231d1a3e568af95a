"""Stored events: raw, exactly once, never changed. They are the truth that all usage is computed from.

An event's identity is (source, id); the first one wins and a repeat is dropped, however late it comes.
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from psycopg import Connection, sql
from psycopg.types.json import Jsonb
from sqlalchemy import Index
from sqlalchemy.dialects.postgresql import JSONB, UUID
from sqlalchemy.orm import Mapped, mapped_column

from metering.database import Base, Instant
from metering.event import Event
from metering.ids import event_key

__all__ = ["StoredEvent", "append_events", "append_events_in_a_race", "keyed"]


class StoredEvent(Base):
    """`ingested_at` is when it was received, `stored_at` when it was committed with others."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "type", "subject", "time"),)

    key: Mapped[uuid.UUID] = mapped_column(UUID, primary_key=True)
    id: Mapped[str]
    source: Mapped[str]
    type: Mapped[str]
    subject: Mapped[str]
    time: Mapped[Instant]
    data: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    specversion: Mapped[str]
    dataschema: Mapped[str | None]
    ingested_at: Mapped[Instant]
    stored_at: Mapped[Instant]


_COLUMNS = {
    "key": "uuid",
    "id": "text",
    "source": "text",
    "type": "text",
    "subject": "text",
    "time": "timestamptz",
    "data": "jsonb",
    "specversion": "text",
    "dataschema": "text",
    "ingested_at": "timestamptz",
    "stored_at": "timestamptz",
}
_NAMES = sql.SQL(", ").join(map(sql.Identifier, _COLUMNS))

Batch = Mapping[uuid.UUID, tuple[Event, datetime]]
"""Events by key, each with the instant it was received."""


def keyed(received: Iterable[tuple[Event, datetime]]) -> dict[uuid.UUID, tuple[Event, datetime]]:
    """Events by their key; of two that are the same, the first."""
    batch: dict[uuid.UUID, tuple[Event, datetime]] = {}
    for event, at in received:
        batch.setdefault(event_key(event.source, event.id), (event, at))
    return batch


def append_events(connection: Connection[Any], batch: Batch, *, now: datetime) -> set[uuid.UUID]:
    """Store what is new and return its keys; the caller commits.

    Raises psycopg's UniqueViolation when another transaction stores one of them meanwhile: roll back and
    call append_events_in_a_race.
    """
    known = connection.execute("SELECT key FROM events WHERE key = ANY(%s)", [list(batch)]).fetchall()
    fresh = set(batch) - {key for (key,) in known}
    _copy(connection, sql.Identifier("events"), batch, fresh, now)
    return fresh


def append_events_in_a_race(connection: Connection[Any], batch: Batch, *, now: datetime) -> set[uuid.UUID]:
    """As append_events, but waits for whoever is storing the same events, instead of failing."""
    connection.execute("CREATE TEMPORARY TABLE staged_events (LIKE events) ON COMMIT DROP")
    _copy(connection, sql.Identifier("staged_events"), batch, batch, now)
    insert = sql.SQL(
        "INSERT INTO events ({names}) SELECT {names} FROM staged_events ORDER BY key"
        " ON CONFLICT (key) DO NOTHING RETURNING key"
    ).format(names=_NAMES)
    return {key for (key,) in connection.execute(insert).fetchall()}


def _copy(
    connection: Connection[Any], table: sql.Identifier, batch: Batch, keys: Iterable[uuid.UUID], now: datetime
) -> None:
    """Binary COPY in key order, so that neighbours on disk are written together and locks never cross."""
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(table, _NAMES)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types(list(_COLUMNS.values()))
        for row in _rows(batch, sorted(keys), now):
            copy.write_row(row)


def _rows(batch: Batch, keys: Iterable[uuid.UUID], now: datetime) -> Iterator[tuple[Any, ...]]:
    for key in keys:
        event, at = batch[key]
        yield (
            key,
            event.id,
            event.source,
            event.type,
            event.subject,
            event.time,
            None if event.data is None else Jsonb(event.data, dumps=_as_it_is),
            event.specversion,
            event.dataschema,
            at,
            now,
        )


def _as_it_is(raw: bytes) -> bytes:
    return raw
