"""Payments that were recorded by hand, whole or in part, and what of an invoice is still open.

Credit notes against an invoice reduce what is open of it. When nothing is open any more, it is paid.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import select
from sqlalchemy.orm import Session

from billing.invoices.actions import locked_invoice
from billing.invoices.invoice import Invoice
from billing.invoices.payment import Payment, payments_of
from billing.invoices.progress import fire
from billing.invoices.state import TRANSITIONS
from catalog.money import round_money
from catalog.price import in_range
from metering.database import translating
from metering.errors import ConflictError, InvalidError, Issue
from metering.exact import EXACT, plain, total
from metering.ids import new_id

__all__ = [
    "Account",
    "PaymentDetails",
    "PaymentTakenError",
    "account_of",
    "credits_against",
    "is_amount",
    "record_payment",
    "settle_if_even",
]

ZERO = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentDetails:
    """`reference`: what the payer or the bank calls it; of one invoice it is recorded once."""

    amount: Decimal
    received_at: datetime
    method: str | None = None
    reference: str | None = None
    note: str | None = None


class PaymentTakenError(ConflictError):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What was asked for by an invoice, and what became of it."""

    invoice: Invoice
    payments: Sequence[Payment]
    credited: Decimal

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


def account_of(session: Session, invoice: Invoice) -> Account:
    credited = total(-note.totals.total for note in credits_against(session, invoice.id))
    return Account(invoice=invoice, payments=payments_of(session, invoice.id), credited=credited)


def credits_against(session: Session, invoice_id: str) -> Sequence[Invoice]:
    """The credit notes made by hand against an invoice that count, without their lines."""
    query = select(Invoice).where(
        Invoice.preceding_id == invoice_id, Invoice.deleted_at.is_(None), Invoice.voided_at.is_(None)
    )
    return session.scalars(query.order_by(Invoice.id)).all()


def record_payment(session: Session, invoice_id: str, details: PaymentDetails, *, now: datetime) -> Account:
    """Raises InvalidError for more than is open; what pays the rest makes the invoice paid."""
    invoice = locked_invoice(session, invoice_id)
    if (invoice.status, "paid") not in TRANSITIONS:
        message = f"an invoice that is {invoice.status} takes no payments"
        hint = "Only what was issued and is not paid yet does."
        raise InvalidError(message, Issue(code="invoice_not_payable", message=message, hint=hint))
    if issues := list(_issues(details, account_of(session, invoice), now)):
        raise InvalidError(issues[0].message, *issues)
    payment = Payment(
        id=new_id(now),
        invoice_id=invoice.id,
        amount=details.amount,
        received_at=details.received_at,
        method=details.method,
        reference=details.reference,
        note=details.note,
        created_at=now,
    )
    session.add(payment)
    with translating({"payments_reference_key": _taken(details)}):
        session.flush()
    settle_if_even(session, invoice, now=now)
    return account_of(session, invoice)


def settle_if_even(session: Session, invoice: Invoice, *, now: datetime) -> None:
    """Paid, when payments and credit notes have come to all of it."""
    if (invoice.status, "paid") in TRANSITIONS and not account_of(session, invoice).open:
        fire(session, invoice, "paid", now=now)


def _issues(details: PaymentDetails, account: Account, now: datetime) -> Iterable[Issue]:
    currency = account.invoice.currency
    if details.received_at > now:
        message = "what was received lies in the past"
        yield Issue(code="payment_in_future", message=message, field="$.receivedAt")
    if not is_amount(details.amount, currency):
        message = f"a payment is more than nothing, in whole minor units of {currency}"
        yield Issue(code="invalid_payment_amount", message=message, field="$.amount")
    elif details.amount > account.open:
        message = f"{plain(details.amount)} is more than what is open, {plain(account.open)}"
        hint = "Record what pays this invoice, and the rest where it belongs."
        yield Issue(code="payment_exceeds_open", message=message, field="$.amount", hint=hint)


def is_amount(amount: Decimal, currency: str) -> bool:
    """More than nothing, and to be paid in coins."""
    return amount > 0 and in_range(amount) and round_money(amount, currency) == amount


def _taken(details: PaymentDetails) -> PaymentTakenError:
    message = f"the payment {details.reference!r} of this invoice is recorded already"
    return PaymentTakenError(
        message, Issue(code="payment_reference_taken", message=message, field="$.reference")
    )
