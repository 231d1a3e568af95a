"""A customer stays until all is billed and settled, and keeps its subjects as long as their usage is rated.

Subscriptions and lines that wait are looked at by billing/contracts/customer_changes.py; here, invoices are.
"""

from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import Select, exists, func, select
from sqlalchemy.orm import Session

from billing.contracts import customer_changes
from billing.contracts.customer import Customer
from billing.contracts.customer_changes import CustomerDetails, CustomerInUseError, taken_away, why_kept
from billing.contracts.pending import PendingLine
from billing.contracts.subscriptions import has_subscription
from billing.invoices.gathering import gathering_invoices
from billing.invoices.invoice import Invoice, InvoiceLine
from billing.invoices.state import FINAL
from metering.errors import Issue

__all__ = ["delete_customer", "update_customer"]


def update_customer(
    session: Session, customer: Customer, details: CustomerDetails, *, now: datetime
) -> Customer:
    """Replace everything; the customer must have been loaded with a lock.

    A draft is rated anew until it is issued: until then the subjects stay, too.
    """
    number = session.scalar(_draft_of_usage(customer))
    if number is not None and why_kept(session, customer, now) is None:
        hint = f"Its usage is on the draft {number}: let that be issued, or delete it."
        if issues := taken_away(customer, details, hint=hint):
            raise CustomerInUseError(issues[0].message, *issues)
    return customer_changes.update_customer(session, customer, details, now=now)


def _draft_of_usage(customer: Customer) -> Select[str]:
    drafts = select(Invoice.number).join(InvoiceLine, InvoiceLine.invoice_id == Invoice.id)
    drafts = drafts.where(Invoice.customer_id == customer.id, InvoiceLine.feature_id.is_not(None))
    drafts = drafts.where(Invoice.issued_at.is_(None), Invoice.deleted_at.is_(None))
    return drafts.order_by(Invoice.id).limit(1)


def delete_customer(session: Session, customer: Customer, *, now: datetime) -> None:
    """Refused while a subscription runs, something is not billed yet, or an invoice is not final.

    The customer must have been loaded with a lock.
    """
    ended = not has_subscription(session, customer.id, since=now)
    living = customer.deleted_at is None
    if living and ended and (issues := list(_unfinished(session, customer, now))):
        raise CustomerInUseError(issues[0].message, *issues)
    customer_changes.delete_customer(session, customer, now=now)


def _unfinished(session: Session, customer: Customer, now: datetime) -> Iterator[Issue]:
    gathering = gathering_invoices(session, [customer], at=now)
    if any(invoice.lines for invoice in gathering) or session.scalar(_waits(customer)):
        hint = "Wait for the billing run, or invoice it now; what was added by hand can be taken back."
        yield _in_use("something is on the customer's gathering invoice", hint)
    open_ = select(Invoice.number).where(Invoice.customer_id == customer.id, Invoice.status.not_in(FINAL))
    for number in session.scalars(open_.order_by(Invoice.id).limit(1)):
        hint = "Let it be paid, or void it; a draft can be deleted."
        yield _in_use(f"the invoice {number} is not final", hint)


def _in_use(message: str, hint: str) -> Issue:
    return Issue(code="customer_in_use", message=message, hint=hint)


def _waits(customer: Customer) -> Select[bool]:
    """Whether a line added by hand is on no invoice, also one whose period is still to come."""
    identity = func.concat("manual/", PendingLine.id)
    due = (PendingLine.next_billing_at.is_not(None), PendingLine.deleted_at.is_(None))
    billed = exists().where(InvoiceLine.identity == identity, InvoiceLine.released_at.is_(None))
    return select(exists().where(PendingLine.customer_id == customer.id, *due, ~billed))
