"""Payments that were recorded by hand, whole or in part.

Credit notes against an invoice reduce what is open of it. When nothing is open any more, it is paid.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy.orm import Session

from billing.invoices.account import Account, account_of
from billing.invoices.actions import locked_invoice
from billing.invoices.payment import Payment
from billing.invoices.progress import settle_if_even
from billing.invoices.state import TRANSITIONS
from catalog.money import round_money
from catalog.price import in_range
from metering.database import translating
from metering.errors import ConflictError, InvalidError, Issue
from metering.exact import plain
from metering.ids import new_id

__all__ = [
    "Account",
    "PaymentDetails",
    "PaymentTakenError",
    "account_of",
    "is_amount",
    "record_payment",
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
