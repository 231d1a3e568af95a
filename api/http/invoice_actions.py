"""What is done with invoices: /api/v1/billing/invoices/{id}/advance, approve, retry, void and the like."""

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import Field, StringConstraints
from sqlalchemy.orm import Session

from api.http.auth import admin
from api.http.body import Body, ExactRoute, Instant, Metadata
from api.http.invoice_body import InvoiceBody, LineBody, UsageBasedRateCard
from api.http.invoices import bodies_of
from api.http.session import Now, Transaction
from api.http.simulation import PeriodInput, refuse_contradictions, taxed
from api.http.stored_invoice import gathering_body
from billing.contracts.customer import get_customer
from billing.contracts.pending import PendingLine, WantedLine, add_pending_lines
from billing.invoices import actions
from billing.invoices.actions import VoidAction
from billing.invoices.gathering import gathering_invoices
from billing.invoices.invoice import Invoice
from billing.invoices.withdrawal import delete_pending_line
from catalog import rate_card
from catalog.price import Price
from catalog.tax import TaxConfig
from metering.errors import InvalidError, Issue
from metering.period import Period
from metering.wire import Number

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/billing", tags=["Invoices"], route_class=ExactRoute)


class PendingLinesFilter(Body):
    line_ids: Annotated[list[str], Field(min_length=1, max_length=1000)] | None = None


class InvoicePendingLinesAction(Body):
    customer_id: str
    filters: PendingLinesFilter | None = None
    as_of: Instant | None = None
    progressive_billing_override: bool | None = None


def _body(session: Session, invoice: Invoice, now: Now) -> InvoiceBody:
    return bodies_of(session, [invoice], now, lines=True)[0]


@router.post(
    "/invoices/invoice", operation_id="invoicePendingLinesAction", status_code=201, dependencies=[admin]
)
def invoice_pending_lines(
    session: Transaction, now: Now, body: InvoicePendingLinesAction
) -> list[InvoiceBody]:
    """Invoice now what is due, and what was used so far if that is billed progressively."""
    made = actions.invoice_now(
        session,
        body.customer_id,
        line_ids=body.filters.line_ids if body.filters else None,
        as_of=body.as_of,
        progressive=body.progressive_billing_override,
        now=now,
    )
    return bodies_of(session, made, now, lines=True)


@router.post("/invoices/{invoiceId}/advance", operation_id="advanceInvoiceAction", dependencies=[admin])
def advance(session: Transaction, now: Now, invoiceId: str) -> InvoiceBody:  # noqa: N803  the wire's name
    """As far as nothing holds it back."""
    return _body(session, actions.advance_invoice(session, invoiceId, now=now), now)


@router.post("/invoices/{invoiceId}/approve", operation_id="approveInvoiceAction", dependencies=[admin])
def approve(session: Transaction, now: Now, invoiceId: str) -> InvoiceBody:  # noqa: N803  the wire's name
    """Issue a draft without waiting any longer."""
    return _body(session, actions.act(session, invoiceId, "approve", now=now), now)


@router.post("/invoices/{invoiceId}/retry", operation_id="retryInvoiceAction", dependencies=[admin])
def retry(session: Transaction, now: Now, invoiceId: str) -> InvoiceBody:  # noqa: N803  the wire's name
    """Try again what has failed; what was critical is a warning from now on."""
    return _body(session, actions.act(session, invoiceId, "retry", now=now), now)


@router.post(
    "/invoices/{invoiceId}/snapshot-quantities",
    operation_id="snapshotQuantitiesInvoiceAction",
    dependencies=[admin],
)
def snapshot_quantities(session: Transaction, now: Now, invoiceId: str) -> InvoiceBody:  # noqa: N803
    """Take the usage as it is now, without waiting for what comes late."""
    return _body(session, actions.act(session, invoiceId, "snapshot_quantities", now=now), now)


@router.delete("/invoices/{invoiceId}", operation_id="deleteInvoice", status_code=204, dependencies=[admin])
def delete(session: Transaction, now: Now, invoiceId: str) -> None:  # noqa: N803  the wire's name
    """Give up a draft, whose charges are not billed again; what has its number is voided."""
    actions.delete_invoice(session, invoiceId, now=now)


# -- Void ----------------------------------------------------------------------------------------------------


class VoidLineAction(Body):
    type: Literal["discard", "pending"]
    next_invoice_at: Instant | None = None

    @property
    def value(self) -> VoidAction:
        return VoidAction(type=self.type, next_invoice_at=self.next_invoice_at)


class VoidActionBody(Body):
    percentage: Annotated[Number, Field(ge=0, le=100)]
    action: VoidLineAction


class VoidLineOverride(Body):
    line_id: str
    action: VoidActionBody


class VoidInvoiceActionInput(Body):
    action: VoidActionBody
    reason: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    overrides: list[VoidLineOverride] | None = None


@router.post("/invoices/{invoiceId}/void", operation_id="voidInvoiceAction", dependencies=[admin])
def void(session: Transaction, now: Now, invoiceId: str, body: VoidInvoiceActionInput) -> InvoiceBody:  # noqa: N803
    """An issued invoice counts no more; what it billed is given up, or billed again."""
    every = [body.action, *(override.action for override in body.overrides or ())]
    if any(one.percentage != 100 for one in every):
        message = "an invoice is voided whole"
        hint = "Give a part of it back with a credit note."
        raise InvalidError(
            message,
            Issue(code="invoice_void_partial", message=message, field="$.action.percentage", hint=hint),
        )
    voided = actions.void_invoice(
        session,
        invoiceId,
        body.action.action.value,
        overrides={one.line_id: one.action.action.value for one in body.overrides or ()},
        reason=body.reason,
        now=now,
    )
    return _body(session, voided, now)


# -- Pending lines -------------------------------------------------------------------------------------------


class PendingLineCreate(Body):
    """`price`, `featureKey` and `taxConfig` beside the rate card are OpenMeter's older form of it.

    Who sends both sends the same; tax may be said in either place.
    """

    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    description: Annotated[str, StringConstraints(max_length=1024)] | None = None
    metadata: Metadata | None = None
    tax_config: TaxConfig | None = None
    period: PeriodInput
    invoice_at: Instant
    price: Price | None = None
    feature_key: str | None = None
    rate_card: UsageBasedRateCard | None = None

    @property
    def card(self) -> UsageBasedRateCard:
        sent = self.rate_card or UsageBasedRateCard(price=self.price, feature_key=self.feature_key)
        return taxed(sent, self.tax_config)

    @property
    def wanted(self) -> WantedLine:
        card = self.card
        return WantedLine(
            rate_card=rate_card.UsageBasedRateCard(
                type="usage_based",
                key=card.feature_key or "manual",
                name=self.name,
                description=self.description,
                metadata=self.metadata,
                feature_key=card.feature_key,
                tax_config=card.tax_config,
                billing_cadence="P1M",
                price=card.price,
                discounts=card.discounts.value if card.discounts else None,
                unit_config=card.unit_config,
            ),
            period=Period(start=self.period.from_, end=self.period.to),
            invoice_at=self.invoice_at,
        )


class PendingLinesCreate(Body):
    currency: str
    lines: Annotated[list[PendingLineCreate], Field(min_length=1, max_length=1000)]

    @property
    def wanted(self) -> list[WantedLine]:
        """Raises InvalidError if a line says something beside its rate card and otherwise."""
        refuse_contradictions((line, line.card) for line in self.lines)
        return [line.wanted for line in self.lines]


class PendingLinesCreated(Body):
    lines: list[LineBody]
    invoice: InvoiceBody
    is_invoice_new: bool


@router.post(
    "/customers/{customerId}/invoices/pending-lines",
    operation_id="createPendingInvoiceLine",
    status_code=201,
    dependencies=[admin],
)
def create_pending_lines(
    session: Transaction,
    now: Now,
    customerId: str,  # noqa: N803  the wire's name
    body: PendingLinesCreate,
) -> PendingLinesCreated:
    """Add lines by hand to what the customer is billed next."""
    customer = get_customer(session, customerId, lock=True)
    before = gathering_invoices(session, [customer], at=now)
    added = add_pending_lines(session, customer, currency=body.currency, lines=body.wanted, now=now)
    latest = max((line.period_start for line in added), default=now)
    (gathering,) = gathering_invoices(session, [customer], at=max(now, latest))
    invoice = gathering_body(gathering, now, lines=True)
    ids = {_line_id(line) for line in added}
    lines = [line for line in invoice["lines"] if line["id"] in ids]
    return PendingLinesCreated(lines=lines, invoice=invoice, is_invoice_new=not before)


def _line_id(line: PendingLine) -> str:
    return line.billable.line_id


@router.delete(
    "/customers/{customerIdOrKey}/invoices/pending-lines/{lineId}",
    operation_id="deletePendingInvoiceLine",
    status_code=204,
    dependencies=[admin],
)
def delete_pending(
    session: Transaction,
    now: Now,
    customerIdOrKey: str,  # noqa: N803  the wire's name
    lineId: str,  # noqa: N803  the wire's name
) -> None:
    """Take back a line that was added by hand and is on no invoice; an endpoint of our own."""
    delete_pending_line(session, customerIdOrKey, lineId, now=now)
