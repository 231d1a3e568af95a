"""Stored events: raw, exactly once, never changed. They are the truth that all usage is computed from.

An event's identity is (source, id); the first one wins and a repeat is dropped, however late it comes.
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from psycopg import Connection, sql
from psycopg.types.json import Jsonb
from sqlalchemy import BigInteger, Index, text
from sqlalchemy.dialects.postgresql import JSONB, UUID
from sqlalchemy.orm import Mapped, mapped_column

from metering.database import Base, Id, Instant
from metering.event import Event
from metering.ids import event_key

__all__ = [
    "RetiredEvent",
    "StoredEvent",
    "VoidedEvent",
    "append_events",
    "append_events_in_a_race",
    "keyed",
]


class _Columns:
    """`ingested_at` is when it was received, `stored_at` when it was committed with others, as `batch`."""

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
    batch: Mapped[int] = mapped_column(BigInteger, server_default="0")


class StoredEvent(_Columns, Base):
    """Looked up by subject and time; the indexes by time and batch are blocks of what came together."""

    __tablename__ = "events"
    __table_args__ = (
        Index("events_subject_time_idx", text("hashtextextended(subject, 0)"), "time"),
        Index(None, "time", postgresql_using="brin"),
        Index(None, "batch", postgresql_using="brin", postgresql_with={"pages_per_range": 32}),
    )


class RetiredEvent(_Columns, Base):
    """An old event out of the way of new ones: it counts as before, and its repeat is still a repeat."""

    __tablename__ = "retired_events"
    __table_args__ = (
        Index("retired_events_subject_time_idx", text("hashtextextended(subject, 0)"), "time"),
        Index(None, "time", postgresql_using="brin"),
    )


class VoidedEvent(Base):
    """An event that a correction has taken out of all usage, until it is restored."""

    __tablename__ = "voided_events"

    key: Mapped[uuid.UUID] = mapped_column(UUID, primary_key=True)
    correction_id: Mapped[Id] = mapped_column(primary_key=True, index=True)
    voided_at: Mapped[Instant]
    restored_at: Mapped[Instant | None]


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
    "batch": "int8",
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
    number, fresh = _begin(connection, batch, now)
    _copy(connection, sql.Identifier("events"), _rows(batch, fresh, now, number))
    return fresh


def append_events_in_a_race(connection: Connection[Any], batch: Batch, *, now: datetime) -> set[uuid.UUID]:
    """As append_events, but waits for whoever is storing the same events, instead of failing."""
    number, fresh = _begin(connection, batch, now)
    connection.execute("CREATE TEMPORARY TABLE staged_events (LIKE events) ON COMMIT DROP")
    _copy(connection, sql.Identifier("staged_events"), _rows(batch, fresh, now, number))
    insert = sql.SQL(
        "INSERT INTO events ({names}) SELECT {names} FROM staged_events ORDER BY key"
        " ON CONFLICT (key) DO NOTHING RETURNING key"
    ).format(names=_NAMES)
    return {key for (key,) in connection.execute(insert).fetchall()}


_BEGIN = """
    WITH begun AS (INSERT INTO pending_batches (events, stored_at) VALUES (%(size)s, %(now)s) RETURNING batch)
    SELECT batch, ARRAY(SELECT key FROM events WHERE key = ANY(%(keys)s)
                        UNION ALL SELECT key FROM retired_events WHERE key = ANY(%(keys)s)) FROM begun"""


def _begin(connection: Connection[Any], batch: Batch, now: datetime) -> tuple[int, set[uuid.UUID]]:
    """The number of this batch, and which of its events are new."""
    keys = list(batch)
    number, known = connection.execute(_BEGIN, {"size": len(keys), "now": now, "keys": keys}).fetchall()[0]
    return number, set(keys).difference(known)


def _copy(connection: Connection[Any], table: sql.Identifier, rows: Iterable[tuple[Any, ...]]) -> None:
    """Binary COPY in key order, so that neighbours on disk are written together and locks never cross."""
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(table, _NAMES)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types(list(_COLUMNS.values()))
        for row in rows:
            copy.write_row(row)


def _rows(batch: Batch, keys: Iterable[uuid.UUID], now: datetime, number: int) -> Iterator[tuple[Any, ...]]:
    for key in sorted(keys):
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
            number,
        )


def _as_it_is(raw: bytes) -> bytes:
    return raw
