"""Stored events: raw, exactly once, never changed. They are the truth that all usage is computed from.

An event's identity is (source, id); the first one wins and a repeat is dropped, however late it comes.
"""

import struct
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, LiteralString

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
    "append_events_in_a_race",
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


_NAMES = "key, ingested_at, id, time, data, source, type, subject, specversion, dataschema, stored_at, batch"
_COPY: Mapping[str, LiteralString] = {
    table: f"COPY {table} ({_NAMES}) FROM STDIN (FORMAT BINARY)" for table in ("events", "staged_events")
}
Batch = Mapping[bytes, bytes]
"""Events by key (16 bytes), each as the beginning of its row: all that is known before it is committed."""


def keyed(received: Iterable[tuple[Event, datetime]]) -> dict[bytes, bytes]:
    """A batch of events, each with the instant it was received; of two that are the same, the first."""
    batch: dict[bytes, bytes] = {}
    for event, at in received:
        key = key_bytes(event.source, event.id)
        if key not in batch:
            batch[key] = _row(key, event, at)
    return batch


def append_events(connection: Connection[Any], batch: Batch, *, now: datetime) -> set[bytes]:
    """Store what is new and return its keys; the caller commits.

    Raises psycopg's UniqueViolation when another transaction stores one of them meanwhile: roll back and
    call append_events_in_a_race.
    """
    number, fresh = _begin(connection, batch, now)
    _copy(connection, "events", batch, fresh, _end_of_row(now, number))
    return fresh


def append_events_in_a_race(connection: Connection[Any], batch: Batch, *, now: datetime) -> set[bytes]:
    """As append_events, but waits for whoever is storing the same events, instead of failing."""
    number, fresh = _begin(connection, batch, now)
    connection.execute("CREATE TEMPORARY TABLE staged_events (LIKE events) ON COMMIT DROP")
    _copy(connection, "staged_events", batch, fresh, _end_of_row(now, number))
    insert = (
        f"INSERT INTO events ({_NAMES}) SELECT {_NAMES} FROM staged_events ORDER BY key"
        " ON CONFLICT (key) DO NOTHING RETURNING key"
    )
    return {key.bytes for (key,) in connection.execute(insert).fetchall()}


_BEGIN = """
    WITH begun AS (INSERT INTO pending_batches (events, stored_at) VALUES (%(size)s, %(now)s) RETURNING batch)
    SELECT batch, ARRAY(SELECT key FROM events WHERE key = ANY(%(keys)s)
                        UNION ALL SELECT key FROM retired_events WHERE key = ANY(%(keys)s)) FROM begun"""


def _begin(connection: Connection[Any], batch: Batch, now: datetime) -> tuple[int, set[bytes]]:
    """The number of this batch, and which of its events are new."""
    parameters = {"size": len(batch), "now": now, "keys": _Keys(sorted(batch))}
    number, known = connection.execute(_BEGIN, parameters, prepare=True).fetchall()[0]
    return number, batch.keys() - {key.bytes for key in known}


# -- PostgreSQL's binary formats -----------------------------------------------------------------------------
# Written by hand, for a generic writer takes longer over a row than everything else together.


class _Keys(list[bytes]):
    """Keys on their way to PostgreSQL as uuid[]."""


class _KeysDumper(Dumper):
    format = Format.BINARY
    oid = postgres.types["uuid"].array_oid

    def dump(self, obj: "_Keys") -> bytes:
        """One dimension (none when it is empty) that starts at 1, without nulls; then each with its size."""
        dimension = _INTEGERS(len(obj), 1) if obj else b""
        kind = _INTEGER(bool(obj)) + _INTEGERS(0, postgres.types["uuid"].oid)
        return kind + dimension + b"".join([_SIZE_OF_KEY + key for key in obj])


adapters.register_dumper(_Keys, _KeysDumper)

_INTEGER = struct.Struct("!i").pack
_INTEGERS = struct.Struct("!ii").pack
_SIZED_INTEGER = struct.Struct("!iq").pack
_NULL = _INTEGER(-1)
_SIZE_OF_KEY = _INTEGER(16)
_BEGINNING_OF_COPY = b"PGCOPY\n\xff\r\n\0" + _INTEGERS(0, 0)
_END_OF_COPY = b"\xff\xff"
_BEGINNING_OF_ROW = b"\0\x0c" + _SIZE_OF_KEY  # twelve columns, the first of them a key
_VERSION_OF_JSONB = b"\x01"


def _row(key: bytes, event: Event, at: datetime) -> bytes:
    """The columns of _NAMES up to `stored_at`."""
    name = event.id.encode()
    data = event.data
    return b"".join(
        (
            _BEGINNING_OF_ROW,
            key,
            _sized_arrival(at),
            _INTEGER(len(name)),
            name,
            _sized_instant(event.time),
            _NULL if data is None else _INTEGER(len(data) + 1) + _VERSION_OF_JSONB + data,
            _texts(event.source, event.type, event.subject, event.specversion, event.dataschema),
        )
    )


def _end_of_row(now: datetime, number: int) -> bytes:
    return _sized_instant(now) + _SIZED_INTEGER(8, number)


@lru_cache(maxsize=4096)
def _texts(*texts: str | None) -> bytes:
    """Remembered, for many events have the same."""
    return b"".join(map(_sized_text, texts))


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


def _copy(connection: Connection[Any], table: str, batch: Batch, keys: Iterable[bytes], end: bytes) -> None:
    """In key order, so that neighbours on disk are written together and locks never cross.

    Written at once: each write may wait for the interpreter's lock.
    """
    rows = [batch[key] + end for key in sorted(keys)]
    with connection.cursor() as cursor, cursor.copy(_COPY[table]) as copy:
        copy.write(b"".join([_BEGINNING_OF_COPY, *rows, _END_OF_COPY]))
