"""Taking back what was added by hand, as long as no invoice bills it."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from billing.contracts.customer import get_customer
from billing.contracts.pending import PendingLine, pending_lines_of
from billing.invoices.invoice import Invoice, InvoiceLine
from metering.errors import InvalidError, Issue, NotFoundError

__all__ = ["PendingLineNotFoundError", "delete_pending_line"]


class PendingLineNotFoundError(NotFoundError):
    pass


def delete_pending_line(session: Session, customer: str, line_id: str, *, now: datetime) -> None:
    """`customer`: by id or key; `line_id`: that of the gathering invoice.

    Raises InvalidError when an invoice has it, be it a draft, a part of it, or one that was given up.
    """
    payer = get_customer(session, customer, lock=True)
    found = {line.billable.line_id: line for line in pending_lines_of(session, [payer.id])}
    if line_id not in found:
        raise PendingLineNotFoundError(f"no line {line_id!r} waits for the customer's next invoice")
    if (number := _billed_on(session, found[line_id])) is not None:
        message = f"the line is on the invoice {number}"
        hint = "Take it off that draft; what was issued is voided, or given back with a credit note."
        raise InvalidError(message, Issue(code="pending_line_billed", message=message, hint=hint))
    found[line_id].delete(now)


def _billed_on(session: Session, line: PendingLine) -> str | None:
    """The number of the latest invoice that has it and counts."""
    billed = (InvoiceLine.identity == line.billable.identity, InvoiceLine.released_at.is_(None))
    query = select(Invoice.number).join(InvoiceLine, InvoiceLine.invoice_id == Invoice.id).where(*billed)
    return session.scalar(query.order_by(InvoiceLine.sequence.desc()).limit(1))
