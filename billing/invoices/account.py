"""What of an invoice is still open: what it asks for, less what was paid of it and given back by hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import select
from sqlalchemy.orm import Session

from billing.invoices.invoice import Invoice
from billing.invoices.payment import Payment, payments_of
from billing.invoices.state import TRANSITIONS, short
from metering.exact import EXACT, total

__all__ = ["Account", "account_of", "credits_against"]

ZERO = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What was asked for by an invoice, and what became of it.

    `credited` counts at once, also the part `unissued` of it whose credit notes may yet be deleted.
    """

    invoice: Invoice
    payments: Sequence[Payment]
    credited: Decimal
    unissued: Decimal

    @property
    def total(self) -> Decimal:
        return self.invoice.totals.total

    @property
    def paid(self) -> Decimal:
        return total(payment.amount for payment in self.payments)

    @property
    def open(self) -> Decimal:
        """Nothing of what was paid by whatever way, or is not asked for any more."""
        if (self.invoice.status, "paid") not in TRANSITIONS:
            return ZERO
        return max(ZERO, EXACT.subtract(self.total, EXACT.add(self.paid, self.credited)))

    @property
    def even(self) -> bool:
        """Whether nothing is open, and stays so."""
        return not self.open and not self.unissued


def account_of(session: Session, invoice: Invoice) -> Account:
    notes = credits_against(session, invoice.id)
    waiting = [note for note in notes if short(note.status) in ("draft", "issuing", "delete")]
    return Account(
        invoice=invoice,
        payments=payments_of(session, invoice.id),
        credited=total(-note.totals.total for note in notes),
        unissued=total(-note.totals.total for note in waiting),
    )


def credits_against(session: Session, invoice_id: str) -> Sequence[Invoice]:
    """The credit notes made by hand against an invoice that count, without their lines."""
    query = select(Invoice).where(
        Invoice.preceding_id == invoice_id, Invoice.deleted_at.is_(None), Invoice.voided_at.is_(None)
    )
    return session.scalars(query.order_by(Invoice.id)).all()
