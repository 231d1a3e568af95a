"""Gateway log entries that can't be metered: kept with their reason, where a person finds them.

Kept is what tells the entry from others and what could be read of it, never headers or payloads.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from psycopg import Connection
from psycopg.types.json import Jsonb
from sqlalchemy import LargeBinary, func, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, Session, mapped_column

from metering.database import Base, Instant
from metering.event import Event
from metering.kong import QuarantinedEntry

__all__ = ["Quarantined", "list_quarantined", "quarantine"]


class Quarantined(Base):
    """`digest` identifies the entry: a retry is not kept twice. `events` is what it would count as."""

    __tablename__ = "quarantined_entries"

    digest: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    gateway: Mapped[str]
    request_id: Mapped[str | None]
    reason: Mapped[str]
    events: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    received_at: Mapped[Instant] = mapped_column(index=True)


def quarantine(
    connection: Connection[Any], entries: Iterable[tuple[str, QuarantinedEntry]], *, now: datetime
) -> None:
    """Keep bad entries, each with its gateway; the caller commits."""
    rows = {
        entry.digest: (entry.digest, gateway, entry.request_id, entry.reason, _wire(entry.events), now)
        for gateway, entry in entries
    }
    if rows:
        connection.cursor().executemany(
            "INSERT INTO quarantined_entries (digest, gateway, request_id, reason, events, received_at)"
            " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            [rows[digest] for digest in sorted(rows)],
        )


def _wire(events: Iterable[Event]) -> Jsonb:
    """As CloudEvents, with `data` as text so that its numbers stay exact."""
    return Jsonb(
        [
            {
                "id": event.id,
                "source": event.source,
                "type": event.type,
                "subject": event.subject,
                "time": event.time.isoformat(),
                "data": (event.data or b"null").decode(),
            }
            for event in events
        ]
    )


def list_quarantined(
    session: Session, *, gateway: str | None = None, limit: int = 100
) -> tuple[Sequence[Quarantined], int]:
    """The newest entries, and how many there are."""
    condition = [] if gateway is None else [Quarantined.gateway == gateway]
    count = session.scalar(select(func.count()).select_from(Quarantined).where(*condition)) or 0
    newest = (
        select(Quarantined).where(*condition).order_by(Quarantined.received_at.desc(), Quarantined.digest)
    )
    return session.scalars(newest.limit(limit)).all(), count
