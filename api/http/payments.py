"""Payments recorded by hand: /api/v1/billing/invoices/{id}/payments, an endpoint of our own."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter
from pydantic import StringConstraints

from api.http.auth import admin, reader
from api.http.body import Body, ExactRoute, Instant, decimal_text
from api.http.session import Now, Snapshot, Transaction
from billing.invoices.invoice import get_invoice
from billing.invoices.payment import Payment
from billing.invoices.payments import Account, PaymentDetails, account_of, record_payment
from metering.wire import Numeric

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/billing/invoices", tags=["Payments"], route_class=ExactRoute)

Word = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class _PaymentFields(Body):
    """`reference`: what the bank or the payer calls it; the same one twice is refused."""

    amount: Numeric
    method: Word | None = None
    reference: Word | None = None
    note: Annotated[str, StringConstraints(max_length=1024)] | None = None


class PaymentCreate(_PaymentFields):
    received_at: Instant


class PaymentBody(_PaymentFields):
    id: str
    received_at: datetime
    created_at: datetime


class InvoicePayments(Body):
    """`open` is what is still to be paid: the total less what was paid and what was credited since."""

    invoice_id: str
    currency: str
    status: str
    total: str
    paid: str
    credited: str
    open: str
    items: list[PaymentBody]


def _payment(payment: Payment) -> PaymentBody:
    return PaymentBody.model_validate(payment)


def _body(account: Account) -> InvoicePayments:
    return InvoicePayments(
        invoice_id=account.invoice.id,
        currency=account.invoice.currency,
        status=account.invoice.status,
        total=decimal_text(account.total),
        paid=decimal_text(account.paid),
        credited=decimal_text(account.credited),
        open=decimal_text(account.open),
        items=list(map(_payment, account.payments)),
    )


@router.get("/{invoiceId}/payments", operation_id="listInvoicePayments", dependencies=[reader])
def list_all(session: Snapshot, invoiceId: str) -> InvoicePayments:  # noqa: N803  the wire's name
    """What was recorded, and what is open. An app may have been paid otherwise: then nothing is open."""
    return _body(account_of(session, get_invoice(session, invoiceId)))


@router.post(
    "/{invoiceId}/payments", operation_id="createInvoicePayment", status_code=201, dependencies=[admin]
)
def create(session: Transaction, now: Now, invoiceId: str, body: PaymentCreate) -> InvoicePayments:  # noqa: N803
    """Record a payment, whole or in part. With the last part the invoice is paid."""
    account = record_payment(session, invoiceId, PaymentDetails(**dict(body)), now=now)
    return _body(account)
