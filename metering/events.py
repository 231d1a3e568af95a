"""Stored events: raw, exactly once, never changed. They are the truth that all usage is computed from.

An event's identity is (source, id); the first one wins and a repeat is dropped, however late it comes.
"""

import struct
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from psycopg import Connection, adapters, postgres
from psycopg.adapt import Dumper
from psycopg.pq import Format
from sqlalchemy import BigInteger, Index, text
from sqlalchemy.dialects.postgresql import JSONB, UUID
from sqlalchemy.orm import Mapped, mapped_column

from metering.database import Base, Id, Instant
from metering.event import Event
from metering.ids import key_bytes

__all__ = [
    "Batch",
    "RetiredEvent",
    "StoredEvent",
    "VoidedEvent",
    "append_events",
    "insert_events",
    "keyed",
]


class _Columns:
    """`ingested_at` is when it was received, `stored_at` when it was committed with others, as `batch`."""

    key: Mapped[uuid.UUID] = mapped_column(UUID, primary_key=True)
    batch: Mapped[int] = mapped_column(BigInteger, server_default="0")
    time: Mapped[Instant]
    ingested_at: Mapped[Instant]
    stored_at: Mapped[Instant]
    type: Mapped[str]
    subject: Mapped[str]
    data: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    source: Mapped[str]
    id: Mapped[str]
    specversion: Mapped[str]
    dataschema: Mapped[str | None]


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


Row = tuple[bytes, ...]
"""What is known of an event before it is committed: the columns of _NAMES, as PostgreSQL sends them."""
Batch = Mapping[bytes, Row]
"""Events by key (16 bytes)."""


def keyed(received: Iterable[tuple[Event, datetime]]) -> dict[bytes, Row]:
    """A batch of events, each with the instant it was received; of two that are the same, the first."""
    batch: dict[bytes, Row] = {}
    for event, at in received:
        key = key_bytes(event.source, event.id)
        if key not in batch:
            batch[key] = _row(key, event, at)
    return batch


def append_events(connection: Connection[Any], batch: Batch, *, now: datetime) -> set[bytes]:
    """Store what is new and return its keys, the fastest way for many; the caller commits.

    Raises psycopg's UniqueViolation when another transaction stores one of them meanwhile: roll back and
    call insert_events.
    """
    keys = sorted(batch)  # neighbours on disk are written together, and locks never cross
    parameters = {"size": len(batch), "now": now, "keys": _Keys(batch[key][0] for key in keys)}
    number, found = connection.execute(_BEGIN, parameters, prepare=True).fetchall()[0]
    known = {key.bytes for key in found}
    end = _sized_instant(now) + _SIZED_INTEGER(8, number)
    _copy(connection, (batch[key] for key in keys if key not in known), end)
    return batch.keys() - known


def insert_events(connection: Connection[Any], batch: Batch, *, now: datetime) -> set[bytes]:
    """As append_events, in one statement, and waits for whoever is storing the same events meanwhile.

    It may be a transaction by itself, and is the faster way for a few.
    """
    columns = zip(*batch.values(), strict=True) if batch else [()] * len(_COLUMNS)
    sent = [column(values) for column, values in zip(_COLUMNS.values(), columns, strict=True)]
    found = connection.execute(_INSERT, [len(batch), now, *sent], prepare=True)
    return {key.bytes for (key,) in found.fetchall()}


# -- PostgreSQL's binary formats -----------------------------------------------------------------------------
# Written by hand, for a generic writer takes longer over a row than everything else together.


def _column(kind: str) -> type[list[bytes]]:
    """A list of values, each with its size before it, that goes to PostgreSQL as an array of this type."""

    class Column(list[bytes]):
        pass

    class ColumnDumper(Dumper):
        format = Format.BINARY
        oid = postgres.types[kind].array_oid

        def dump(self, obj: Column) -> bytes:
            dimension = _INTEGERS(len(obj), 1) if obj else b""
            return _INTEGERS(bool(obj), 1) + _INTEGER(postgres.types[kind].oid) + dimension + b"".join(obj)

    adapters.register_dumper(Column, ColumnDumper)
    return Column


_INTEGER = struct.Struct("!i").pack
_INTEGERS = struct.Struct("!ii").pack
_SIZED_INTEGER = struct.Struct("!iq").pack
_NULL = _INTEGER(-1)
_SIZE_OF_KEY = _INTEGER(16)
_BEGINNING_OF_COPY = b"PGCOPY\n\xff\r\n\0" + _INTEGERS(0, 0)
_END_OF_COPY = b"\xff\xff"
_BEGINNING_OF_ROW = b"\0\x0c"  # twelve columns
_VERSION_OF_JSONB = b"\x01"

_Keys = _column("uuid")
_Instants = _column("timestamptz")
_Texts = _column("text")
_COLUMNS = {
    "key": _Keys,
    "ingested_at": _Instants,
    "id": _Texts,
    "time": _Instants,
    "data": _column("jsonb"),
    "source": _Texts,
    "type": _Texts,
    "subject": _Texts,
    "specversion": _Texts,
    "dataschema": _Texts,
}
_NAMES = ", ".join(_COLUMNS)


def _row(key: bytes, event: Event, at: datetime) -> Row:
    data = event.data
    return (
        _SIZE_OF_KEY + key,
        _sized_arrival(at),
        _sized_text(event.id),
        _sized_instant(event.time),
        _NULL if data is None else _INTEGER(len(data) + 1) + _VERSION_OF_JSONB + data,
        *_texts(event.source, event.type, event.subject, event.specversion, event.dataschema),
    )


@lru_cache(maxsize=4096)
def _texts(*texts: str | None) -> Row:
    """Remembered, for many events have the same."""
    return tuple(map(_sized_text, texts))


def _sized_text(text: str | None) -> bytes:
    if text is None:
        return _NULL
    encoded = text.encode()
    return _INTEGER(len(encoded)) + encoded


_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


def _sized_instant(instant: datetime) -> bytes:
    """Microseconds since PostgreSQL's epoch, exactly."""
    since = instant - _EPOCH
    return _SIZED_INTEGER(8, (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


_sized_arrival = lru_cache(maxsize=16)(_sized_instant)  # one for all events of a request


# -- Statements ----------------------------------------------------------------------------------------------

_BEGIN = """
    WITH begun AS (INSERT INTO pending_batches (events, stored_at) VALUES (%(size)s, %(now)s) RETURNING batch)
    SELECT batch, ARRAY(SELECT key FROM events WHERE key = ANY(%(keys)s)
                        UNION ALL SELECT key FROM retired_events WHERE key = ANY(%(keys)s)) FROM begun"""

_COPY = f"COPY events ({_NAMES}, stored_at, batch) FROM STDIN (FORMAT BINARY)"

# Sorted, so that locks never cross. An event that was there at the beginning may be retired meanwhile.
_INSERT = f"""
    WITH begun AS (
        INSERT INTO pending_batches (events, stored_at) VALUES (%s, %s) RETURNING stored_at, batch
    ), sent AS (
        SELECT * FROM ROWS FROM ({", ".join(["unnest(%s)"] * len(_COLUMNS))}) AS sent ({_NAMES})
    )
    INSERT INTO events ({_NAMES}, stored_at, batch)
    SELECT sent.*, begun.* FROM begun, sent
    WHERE NOT EXISTS (SELECT FROM events WHERE key = sent.key)
      AND NOT EXISTS (SELECT FROM retired_events WHERE key = sent.key)
    ORDER BY sent.key ON CONFLICT (key) DO NOTHING RETURNING key"""


def _copy(connection: Connection[Any], rows: Iterable[Row], end: bytes) -> None:
    """All written at once: each write may wait for the interpreter's lock."""
    encoded = [b"".join((_BEGINNING_OF_ROW, *row, end)) for row in rows]
    with connection.cursor() as cursor, cursor.copy(_COPY) as copy:
        copy.write(b"".join([_BEGINNING_OF_COPY, *encoded, _END_OF_COPY]))
