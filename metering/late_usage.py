"""Whose usage has changed behind the present, so that what was settled need not be read again to know it.

A fold notes the subjects of events that came late: from before `settled_until`, which follows the present
some minutes behind. A correction notes those whose events it takes out or puts back. Each such step has a
number. Usage of a period that was settled when it was read, as of step n, is the same as long as none of its
subjects has a note above n and none of their events is waiting to be folded.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from psycopg import Connection
from sqlalchemy import BigInteger, text
from sqlalchemy.orm import Mapped, Session, mapped_column

from metering.database import Base, Instant
from metering.expressions import ALL_EVENTS
from metering.period import FIRST_INSTANT

__all__ = ["Arrivals", "LateSubject", "UsageSettled", "arrivals_of", "note_corrected", "note_late"]

BEHIND = timedelta(minutes=5)
"""How far behind the present usage is settled: what comes later than that is late."""
IDLE = timedelta(minutes=15)
"""While nothing comes, usage is settled in steps of this size."""


class UsageSettled(Base):
    """One row: how many steps there were, and until when usage is settled."""

    __tablename__ = "usage_settled"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(BigInteger)
    settled_until: Mapped[Instant]


class LateSubject(Base):
    """The last step at which settled usage of a subject may have changed; by its hash, for it may be long."""

    __tablename__ = "late_subjects"

    hash: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(BigInteger)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """What is known of some subjects after `number` steps.

    `late`: the last step that each is noted for. `waiting`: the first of its events that are not folded yet.
    """

    number: int = 0
    settled_until: datetime = FIRST_INSTANT
    late: Mapping[str, int] = field(default_factory=dict)
    waiting: Mapping[str, datetime] = field(default_factory=dict)

    def same_since(self, number: int, subjects: Collection[str], before: datetime) -> bool:
        """Whether their usage before an instant, which was settled at that number, is still the same."""
        return all(
            self.late.get(subject, 0) <= number and before <= self.waiting.get(subject, before)
            for subject in subjects
        )


def arrivals_of(session: Session, subjects: Collection[str]) -> Arrivals:
    """What is read of their usage afterwards is no older than this."""
    row = session.execute(_ARRIVALS, {"subjects": list(subjects)}).first()
    if row is None:
        return Arrivals()
    number, settled_until, late, pending = row
    waiting = _waiting(session, subjects, pending, number) if pending and subjects else {}
    return Arrivals(number=number, settled_until=settled_until, late=late or {}, waiting=waiting)


_ARRIVALS = text("""
    SELECT number, settled_until, (
        SELECT json_object_agg(s.subject, l.number) FROM unnest(CAST(:subjects AS text[])) AS s(subject)
        JOIN late_subjects AS l ON l.hash = hashtextextended(s.subject, 0)) AS late,
        (SELECT array_agg(batch) FROM pending_batches) AS pending
    FROM usage_settled""")


def _waiting(
    session: Session, subjects: Collection[str], pending: Sequence[int], number: int
) -> Mapping[str, datetime]:
    """Numbers as they are, so that PostgreSQL knows that these are few, and finds their blocks.

    Should a fold have taken them in since, they may be anywhere, and nothing is known.
    """
    query = f"""
        SELECT s.number, e.subject, e.first FROM usage_settled AS s LEFT JOIN (
            SELECT subject, min(time) AS first FROM events
            WHERE batch BETWEEN {min(pending)} AND {max(pending)} AND batch = ANY(:pending)
              AND subject = ANY(:subjects) GROUP BY subject) AS e ON true"""
    rows = session.execute(text(query), {"pending": list(pending), "subjects": list(subjects)}).all()
    if any(row.number != number for row in rows):
        return dict.fromkeys(subjects, FIRST_INSTANT)
    return {row.subject: row.first for row in rows if row.subject is not None}


def note_late(connection: Connection[Any], batches: Sequence[int], *, now: datetime) -> None:
    """The step of a fold, in its transaction. Without `batches` there is none, unless it is time for one.

    None of their events is retired before.
    """
    number, settled_until = _settled(connection)
    if not batches and settled_until >= now - BEHIND - IDLE:
        return
    if batches:
        connection.execute(
            f"""INSERT INTO late_subjects (hash, number)
                SELECT DISTINCT hashtextextended(subject, 0), {number + 1} FROM events
                WHERE batch BETWEEN {min(batches)} AND {max(batches)} AND batch = ANY(%s) AND time < %s
                ON CONFLICT (hash) DO UPDATE SET number = excluded.number""",
            [list(batches), settled_until],
        )
    _step(connection, max(settled_until, now - BEHIND))


def note_corrected(connection: Connection[Any], *, correction_id: str) -> None:
    """The step of a correction that has just voided or restored events; folds wait until it is over."""
    number, settled_until = _settled(connection)
    connection.execute(
        f"""INSERT INTO late_subjects (hash, number)
            SELECT DISTINCT hashtextextended(e.subject, 0), {number + 1}
            FROM voided_events AS v JOIN {ALL_EVENTS} AS e USING (key) WHERE v.correction_id = %s
            ON CONFLICT (hash) DO UPDATE SET number = excluded.number""",
        [correction_id],
    )
    _step(connection, settled_until)


def _settled(connection: Connection[Any]) -> tuple[int, datetime]:
    row = connection.execute("SELECT number, settled_until FROM usage_settled").fetchone()
    return row or (0, FIRST_INSTANT)


def _step(connection: Connection[Any], settled_until: datetime) -> None:
    connection.execute(
        """INSERT INTO usage_settled AS s (id, number, settled_until) VALUES (1, 1, %s)
           ON CONFLICT (id) DO UPDATE SET number = s.number + 1, settled_until = excluded.settled_until""",
        [settled_until],
    )
