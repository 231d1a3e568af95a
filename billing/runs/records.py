"""What billing runs did, for people: when, for how many, which amounts, and who could not be billed and why.

A record grows in the transaction of each portion: it says exactly what was committed, whatever happened to
the process. One that was never ended was interrupted; what it left undone was done by a later run.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal

from sqlalchemy import ForeignKey, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from billing.runs.run import Outcome
from metering.database import Base, Id, Instant
from metering.errors import NotFoundError
from metering.ids import new_id

__all__ = [
    "BillingRun",
    "BillingRunFailure",
    "BillingRunNotFoundError",
    "end_run",
    "failures_of",
    "get_run",
    "list_runs",
    "record",
]


class BillingRun(Base):
    """One process's share of the work. `now`: what was due by then was billed; `amounts` of what was issued.

    Counts are of customers looked at, of invoices, and of customers who could not be billed.
    """

    __tablename__ = "billing_runs"

    id: Mapped[Id] = mapped_column(primary_key=True)
    now: Mapped[Instant]
    started_at: Mapped[Instant]
    ended_at: Mapped[Instant | None]
    customers: Mapped[int]
    created: Mapped[int]
    issued: Mapped[int]
    paid: Mapped[int]
    failed: Mapped[int]
    amounts: Mapped[dict[str, str]]


class BillingRunFailure(Base):
    __tablename__ = "billing_run_failures"

    run_id: Mapped[Id] = mapped_column(ForeignKey("billing_runs.id", ondelete="CASCADE"), primary_key=True)
    customer_id: Mapped[Id] = mapped_column(primary_key=True)
    reason: Mapped[str]


class BillingRunNotFoundError(NotFoundError):
    pass


def record(
    session: Session, run_id: str | None, outcome: Outcome, *, now: datetime, started_at: datetime
) -> str:
    """Add what a portion did to the record of its run; None begins one. Returns its id."""
    run = session.get_one(BillingRun, run_id) if run_id else _begun(session, started_at)
    run.now = now
    run.customers += outcome.customers
    run.created += outcome.created
    run.issued += outcome.issued
    run.paid += outcome.paid
    run.failed += len(outcome.failed)
    run.amounts = _sum(run.amounts, outcome.amounts)
    session.flush()
    session.add_all(
        BillingRunFailure(run_id=run.id, customer_id=customer_id, reason=reason)
        for customer_id, reason in outcome.failed.items()
    )
    return run.id


def _begun(session: Session, started_at: datetime) -> BillingRun:
    run = BillingRun(
        id=new_id(started_at),
        started_at=started_at,
        customers=0,
        created=0,
        issued=0,
        paid=0,
        failed=0,
        amounts={},
    )
    session.add(run)
    return run


def _sum(so_far: Mapping[str, str], more: Mapping[str, Decimal]) -> dict[str, str]:
    sums = {currency: Decimal(amount) for currency, amount in so_far.items()}
    for currency, amount in more.items():
        sums[currency] = sums.get(currency, Decimal(0)) + amount
    return {currency: str(amount) for currency, amount in sorted(sums.items())}


def end_run(session: Session, run_id: str, *, ended_at: datetime) -> None:
    """A run in which nothing happened but the failures of the run before takes the place of its record.

    Else somebody who can't be billed would fill the table, with a record a minute.
    """
    run = session.get_one(BillingRun, run_id)
    run.ended_at = ended_at
    before = session.scalars(
        select(BillingRun).where(BillingRun.id < run_id).order_by(BillingRun.id.desc()).limit(1)
    ).first()
    if before is None or before.ended_at is None:
        return
    if run.customers == run.failed == before.failed == before.customers and _same(session, run, before):
        session.delete(before)


def _same(session: Session, run: BillingRun, before: BillingRun) -> bool:
    mine, theirs = failures_of(session, run.id), failures_of(session, before.id)
    return [one.customer_id for one in mine] == [one.customer_id for one in theirs]


def failures_of(session: Session, run_id: str, *, limit: int | None = None) -> Sequence[BillingRunFailure]:
    query = select(BillingRunFailure).where(BillingRunFailure.run_id == run_id)
    return session.scalars(query.order_by(BillingRunFailure.customer_id).limit(limit)).all()


def get_run(session: Session, run_id: str) -> BillingRun:
    if run := session.get(BillingRun, run_id):
        return run
    raise BillingRunNotFoundError(f"no billing run {run_id!r}")


def list_runs(session: Session, *, offset: int, limit: int) -> tuple[Sequence[BillingRun], int]:
    """One page, the newest first, and how many there are."""
    count = session.scalar(select(func.count()).select_from(BillingRun)) or 0
    page = select(BillingRun).order_by(BillingRun.id.desc()).offset(offset).limit(limit)
    return session.scalars(page).all(), count
