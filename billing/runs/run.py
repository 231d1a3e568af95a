"""The billing run: everything that has fallen due, in portions, each one transaction.

Work is found by two indexes, `next_billing_at` of subscriptions and `next_action_at` of invoices, and claimed
by locks on customers that others skip. So any number of workers share a run; whatever a crash interrupts was
never committed, and is found again. Who was down for a while catches up, each customer period by period.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Self

import structlog
from sqlalchemy import ARRAY, CHAR, ColumnElement, all_, func, literal, select, true, union, union_all
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import InstrumentedAttribute, Session, selectinload

from billing.contracts.customer import Customer
from billing.contracts.pending import PendingLine
from billing.contracts.subscriptions import Subscription
from billing.invoices.invoice import Invoice
from billing.invoices.invoicing import collect
from billing.invoices.progress import advance, fire
from billing.invoices.state import OPEN, Status
from billing.proof.audit import require_sound

__all__ = ["PORTION", "Billed", "Outcome", "due_at", "due_customers", "run_portion"]

PORTION = 200
"""Customers in one transaction."""
CANDIDATES = 16 * PORTION
"""Looked at for locks that are free: as many workers find something to do."""

log = structlog.get_logger()


LONGEST_REASON = 500
"""Characters of an error that are told; the log has all of it."""


class NotAdvancingError(Exception):
    """What was billed at an instant is due at it still: to go on would never end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Billed:
    """An invoice as a portion left it. `lines`: how many, where it was made; `issued`: by this portion."""

    id: str
    customer_id: str
    customer: str
    currency: str
    status: Status
    total: Decimal
    lines: int | None
    issued: bool

    @classmethod
    def of(cls, invoice: Invoice, *, created: bool, issued: bool) -> Self:
        return cls(
            id=invoice.id,
            customer_id=invoice.customer_id,
            customer=invoice.customer.name or invoice.customer_id,
            currency=invoice.currency,
            status=invoice.status,
            total=invoice.totals.total,
            lines=len(invoice.lines) if created else None,
            issued=issued,
        )


@dataclass(slots=True)
class Outcome:
    """What a portion did: for whom, the invoices it made or moved, and why customers could not be billed."""

    customer_ids: list[str] = field(default_factory=list)
    invoices: dict[str, Billed] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def customers(self) -> int:
        return len(self.customer_ids)

    @property
    def created(self) -> int:
        return sum(one.lines is not None for one in self.invoices.values())

    @property
    def issued(self) -> int:
        return sum(one.issued for one in self.invoices.values())

    @property
    def paid(self) -> int:
        """What is paid is not looked at again: so it was paid now."""
        return sum(one.status == "paid" for one in self.invoices.values())

    @property
    def amounts(self) -> Mapping[str, Decimal]:
        """Of what was issued, less what was credited, by currency."""
        sums: dict[str, Decimal] = defaultdict(Decimal)
        for one in self.invoices.values():
            if one.issued:
                sums[one.currency] += one.total
        return sums


def run_portion(
    session: Session,
    *,
    now: datetime,
    skip: Collection[str] = (),
    limit: int = PORTION,
    wait: bool = False,
) -> Outcome:
    """Bill some of those for whom something is due; nothing was due for nobody. The caller commits.

    `skip`: who failed in this run already. One customer's failure is theirs alone, and is told.
    `wait` for those for whom somebody works at the moment, instead of leaving them to him.
    """
    return _attempt(session, _claim(session, now, skip, limit, wait=wait), now)


def _attempt(session: Session, customers: Sequence[Customer], now: datetime) -> Outcome:
    """Together, and if that fails each by themselves."""
    try:
        with session.begin_nested():
            return _bill(session, customers, now)
    except Exception as error:  # whatever it is, the others are not to blame
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            raise  # nor is any customer
        if len(customers) == 1:
            log.exception("customer_not_billed", customer_id=customers[0].id)
            return Outcome(customer_ids=[customers[0].id], failed={customers[0].id: _reason(error)})
    return _together([_attempt(session, [customer], now) for customer in customers])


def _reason(error: Exception) -> str:
    first, *_ = f"{type(error).__name__}: {error}".splitlines()
    return first[:LONGEST_REASON]


def _together(outcomes: Sequence[Outcome]) -> Outcome:
    whole = Outcome()
    for one in outcomes:
        whole.customer_ids += one.customer_ids
        whole.invoices |= one.invoices
        whole.failed |= one.failed
    return whole


def due_at(session: Session, *, skip: Collection[str] = ()) -> datetime | None:
    """When the next thing falls due, for anybody but `skip`."""
    earliest = (
        select(due)
        .where(due.is_not(None), counts, _other_than(whose, skip))
        .order_by(due)
        .limit(1)
        .scalar_subquery()
        for due, whose, counts in _DUE
    )
    found = session.execute(select(*earliest)).one()
    return min((at for at in found if at is not None), default=None)


_DUE: Sequence[
    tuple[InstrumentedAttribute[datetime | None], InstrumentedAttribute[str], ColumnElement[bool]]
] = (
    (Subscription.next_billing_at, Subscription.customer_id, true()),
    (Invoice.next_action_at, Invoice.customer_id, true()),
    (PendingLine.next_billing_at, PendingLine.customer_id, PendingLine.deleted_at.is_(None)),
)
"""What falls due when, whose it is, and whether it counts."""


def due_customers(session: Session, *, now: datetime) -> int:
    """For how many customers something is due."""
    due = union(*(select(whose).where(due <= now, counts) for due, whose, counts in _DUE)).subquery()
    return session.scalar(select(func.count()).select_from(due)) or 0


def _other_than(customer_id: InstrumentedAttribute[str], skip: Collection[str]) -> ColumnElement[bool]:
    """As one array: a statement can't have more than 65,535 parameters."""
    return customer_id != all_(literal(list(skip), ARRAY(CHAR(26))))


def _claim(
    session: Session, now: datetime, skip: Collection[str], limit: int, *, wait: bool
) -> Sequence[Customer]:
    """Customers for whom something is due and whom nobody else is working for, locked."""
    due = union(
        *(
            select(whose).where(due <= now, counts, _other_than(whose, skip)).order_by(due).limit(CANDIDATES)
            for due, whose, counts in _DUE
        )
    )
    claimed = select(Customer).where(Customer.id.in_(due)).order_by(Customer.id)
    claimed = claimed.options(selectinload(Customer.subjects)).limit(limit)
    return session.scalars(claimed.with_for_update(of=Customer, skip_locked=not wait)).all()


def _bill(session: Session, customers: Sequence[Customer], now: datetime) -> Outcome:
    """Period by period: each round bills each customer at the next instant at which something was due."""
    by_id = {customer.id: customer for customer in customers}
    made: list[Invoice] = []
    billed: dict[str, datetime] = {}
    while at := _next(session, by_id, now):
        _require_advance(billed, at)
        billed |= at
        made += collect(session, [by_id[id_] for id_ in at], at=at, now=now, rated=made)
    # at the end: who takes a final number holds up all others who issue
    advance(session, made, now=now, rated=True)
    waiting = _waiting(session, by_id, now)
    issued = {invoice.id for invoice in waiting if invoice.issued_at}
    for invoice in waiting:
        if invoice.status in OPEN:
            fire(session, invoice, "payment_overdue", now=now)
    advance(session, waiting, now=now)
    require_sound(session, [invoice.id for invoice in (*waiting, *made)])
    outcome = Outcome(customer_ids=list(by_id))
    for invoice in waiting:
        newly = invoice.issued_at is not None and invoice.id not in issued
        outcome.invoices[invoice.id] = Billed.of(invoice, created=False, issued=newly)
    for invoice in made:
        newly = invoice.issued_at is not None
        outcome.invoices[invoice.id] = Billed.of(invoice, created=True, issued=newly)
    return outcome


def _require_advance(billed: Mapping[str, datetime], at: Mapping[str, datetime]) -> None:
    for id_, due in at.items():
        if id_ in billed and due <= billed[id_]:
            raise NotAdvancingError(f"what was due on {due:%Y-%m-%d %H:%M:%S} is due again once it is billed")


def _next(session: Session, customer_ids: Collection[str], now: datetime) -> dict[str, datetime]:
    """When the earliest thing fell due for each customer, of those for whom something did."""
    signed = select(Subscription.customer_id, Subscription.next_billing_at.label("due"))
    added = select(PendingLine.customer_id, PendingLine.next_billing_at.label("due"))
    added = added.where(PendingLine.deleted_at.is_(None))
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
