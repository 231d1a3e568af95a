"""The billing run: everything that has fallen due, in portions, each one transaction.

Work is found by two indexes, `next_billing_at` of subscriptions and `next_action_at` of invoices, and claimed
by locks on customers that others skip. So any number of workers share a run; whatever a crash interrupts was
never committed, and is found again. Who was down for a while catches up, each customer period by period.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import structlog
from sqlalchemy import func, select, union, union_all
from sqlalchemy.orm import Session, selectinload

from billing.customer import Customer
from billing.invoice import Invoice
from billing.invoice_progress import advance, fire
from billing.invoice_state import OPEN
from billing.invoicing import collect
from billing.pending import PendingLine
from billing.subscriptions import Subscription

__all__ = ["Outcome", "due_at", "run_portion"]

PORTION = 200
"""Customers in one transaction."""
CANDIDATES = 16 * PORTION
"""Looked at for locks that are free: as many workers find something to do."""

log = structlog.get_logger()


@dataclass(slots=True)
class Outcome:
    """What a portion did: ids of invoices, and why customers could not be billed, by id."""

    customers: int = 0
    created: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def run_portion(
    session: Session, *, now: datetime, skip: Collection[str] = (), limit: int = PORTION
) -> Outcome:
    """Bill some of those for whom something is due; nothing was due for nobody. The caller commits.

    `skip`: who failed in this run already. One customer's failure is theirs alone, and is told.
    """
    return _attempt(session, _claim(session, now, skip, limit), now)


def _attempt(session: Session, customers: Sequence[Customer], now: datetime) -> Outcome:
    """Together, and if that fails each by themselves."""
    try:
        with session.begin_nested():
            return _bill(session, customers, now)
    except Exception as error:  # whatever it is, the others are not to blame
        if len(customers) == 1:
            log.exception("customer_not_billed", customer_id=customers[0].id)
            return Outcome(customers=1, failed={customers[0].id: f"{type(error).__name__}: {error}"})
    return _together([_attempt(session, [customer], now) for customer in customers])


def _together(outcomes: Sequence[Outcome]) -> Outcome:
    whole = Outcome()
    for one in outcomes:
        whole.customers += one.customers
        whole.created += one.created
        whole.moved += one.moved
        whole.failed |= one.failed
    return whole


def due_at(session: Session) -> datetime | None:
    """When the next thing falls due."""
    subscription = select(Subscription.next_billing_at).order_by(Subscription.next_billing_at).limit(1)
    invoice = select(Invoice.next_action_at).order_by(Invoice.next_action_at).limit(1)
    pending = select(PendingLine.next_billing_at).order_by(PendingLine.next_billing_at).limit(1)
    earliest = (query.scalar_subquery() for query in (subscription, invoice, pending))
    found = session.execute(select(*earliest)).one()
    return min((at for at in found if at is not None), default=None)


def _claim(session: Session, now: datetime, skip: Collection[str], limit: int) -> Sequence[Customer]:
    """Customers for whom something is due and whom nobody else is working for, locked."""
    signed = select(Subscription.customer_id).where(Subscription.next_billing_at <= now)
    invoiced = select(Invoice.customer_id).where(Invoice.next_action_at <= now)
    added = select(PendingLine.customer_id).where(PendingLine.next_billing_at <= now)
    due = union(
        signed.order_by(Subscription.next_billing_at).limit(CANDIDATES),
        invoiced.order_by(Invoice.next_action_at).limit(CANDIDATES),
        added.order_by(PendingLine.next_billing_at).limit(CANDIDATES),
    )
    claimed = select(Customer).where(Customer.id.in_(due), Customer.id.not_in(skip)).order_by(Customer.id)
    claimed = claimed.options(selectinload(Customer.subjects)).limit(limit)
    return session.scalars(claimed.with_for_update(of=Customer, skip_locked=True)).all()


def _bill(session: Session, customers: Sequence[Customer], now: datetime) -> Outcome:
    """Period by period: each round bills each customer at the next instant at which something was due."""
    outcome = Outcome(customers=len(customers))
    by_id = {customer.id: customer for customer in customers}
    while at := _next(session, by_id, now):
        drafts = collect(session, [by_id[id_] for id_ in at], at=at, now=now)
        advance(session, drafts, now=now)
        outcome.created += [draft.id for draft in drafts]
    waiting = _waiting(session, by_id, now)
    for invoice in waiting:
        if invoice.status in OPEN:
            fire(session, invoice, "payment_overdue", now=now)
    advance(session, waiting, now=now)
    outcome.moved += [invoice.id for invoice in waiting]
    return outcome


def _next(session: Session, customer_ids: Collection[str], now: datetime) -> dict[str, datetime]:
    """When the earliest thing fell due for each customer, of those for whom something did."""
    signed = select(Subscription.customer_id, Subscription.next_billing_at.label("due"))
    added = select(PendingLine.customer_id, PendingLine.next_billing_at.label("due"))
    both = union_all(
        signed.where(Subscription.customer_id.in_(customer_ids), Subscription.next_billing_at <= now),
        added.where(PendingLine.customer_id.in_(customer_ids), PendingLine.next_billing_at <= now),
    ).subquery()
    earliest = select(both.c.customer_id, func.min(both.c.due).label("due")).group_by(both.c.customer_id)
    return {row.customer_id: row.due for row in session.execute(earliest)}


def _waiting(session: Session, customer_ids: Collection[str], now: datetime) -> Sequence[Invoice]:
    query = select(Invoice).options(selectinload(Invoice.lines), selectinload(Invoice.app))
    query = query.where(Invoice.customer_id.in_(customer_ids), Invoice.next_action_at <= now)
    return session.scalars(query.order_by(Invoice.id)).all()
