"""The test clock: a time of one's own, which stands still until somebody advances it.

It is stored beside all else, so that every process that serves this database tells the same time.
"""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import CheckConstraint, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from billing.runs.run import Outcome, due_at, run_portion
from metering.database import Base, Instant
from metering.errors import ConflictError

__all__ = ["step", "stored_clock", "wind_up"]


class StoredClock(Base):
    """One row at most."""

    __tablename__ = "test_clock"
    __table_args__ = (CheckConstraint("id", name="single"),)

    id: Mapped[bool] = mapped_column(primary_key=True)
    now: Mapped[Instant]


class RealTimeError(ConflictError):
    pass


def stored_clock(session: Session) -> datetime | None:
    return session.scalar(select(StoredClock.now))


def wind_up(session: Session, now: datetime) -> datetime:
    """Have a test clock from now on; one that is there already stays as it is. Returns what it shows.

    Raises RealTimeError where something happened in real time before: to mix the two would date invoices
    wrongly for ever.
    """
    if (stored := stored_clock(session)) is not None:
        return stored
    used = "SELECT EXISTS (SELECT FROM customers) OR EXISTS (SELECT FROM events)"
    if session.scalar(text(used)):
        raise RealTimeError(
            "this database has customers or usage from real time, so it can't have a test clock;"
            " use another database or --data-dir"
        )
    session.execute(insert(StoredClock).values(id=True, now=now).on_conflict_do_nothing())
    return stored_clock(session) or now


def step(session: Session, *, to: datetime, skip: Collection[str] = ()) -> tuple[datetime, Outcome | None]:
    """Advance to when the next thing falls due and bill it, or to the end if nothing does before.

    Returns what the clock shows then, and what was billed; None: it has arrived. Who fails is to be skipped.
    """
    clock = session.scalars(select(StoredClock).with_for_update()).one()
    at = due_at(session, skip=skip)
    if at is None or at > to:
        clock.now = max(clock.now, to)
        return clock.now, None
    clock.now = max(clock.now, at)
    return clock.now, run_portion(session, now=clock.now, skip=skip, wait=True)
