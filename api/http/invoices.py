"""Invoices: /api/v1/billing/invoices in OpenMeter's shape, and our own preview of one customer's.

Until invoices are issued there is one kind: the gathering invoice, computed on the spot.
"""

from datetime import datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query

from api.http.auth import reader
from api.http.body import ExactRoute, Instant, Page, PageNumber, PageSize, page_of
from api.http.invoice_body import (
    BillingDiscounts,
    InvoiceBody,
    LineBody,
    LineSubscription,
    Party,
    RatedLine,
    Reference,
    StatusDetails,
    UsageBasedRateCard,
    Workflow,
    customer_body,
    line_body,
    period_body,
    span,
    totals_body,
)
from api.http.session import Now, Snapshot
from billing.billable import Billable, DueLine
from billing.customer import get_customer
from billing.gathering import GatheringInvoice, gathering_customers, gathering_invoices
from metering.errors import InvalidError, Issue, NotFoundError
from metering.ids import derived_id

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["Invoices"], route_class=ExactRoute)


FURTHEST_AHEAD = timedelta(days=2 * 365)


class InvoicePage(Page):
    items: list[InvoiceBody]


def _line(line: DueLine, now: datetime) -> LineBody:
    one, card = line.billable, line.billable.rate_card
    return line_body(
        RatedLine(
            identity=tuple(one.identity.split("/")),
            name=card.name,
            description=card.description,
            metadata=card.metadata,
            managed_by=one.managed_by,
            currency=one.currency,
            created_at=one.service.start,
            updated_at=now,
            period=line.period,
            invoice_at=one.invoice_at,
            rate_card=UsageBasedRateCard(
                feature_key=card.feature_key,
                tax_config=card.tax_config,
                price=one.price,
                discounts=BillingDiscounts.of(one.terms.discounts),
                unit_config=one.terms.unit_config,
            ),
            metered=None if line.usage is None else line.usage.quantity,
            rating=line.rating,
            subscription=_source(one),
        )
    )


def _source(one: Billable) -> LineSubscription | None:
    if one.subscription_id is None or one.phase_id is None or one.item_id is None:
        return None
    return LineSubscription(
        subscription=Reference(id=one.subscription_id),
        phase=Reference(id=one.phase_id),
        item=Reference(id=one.item_id),
        billing_period=period_body(one.billing),
    )


def _body(invoice: GatheringInvoice, now: datetime, *, lines: bool) -> InvoiceBody:
    customer = invoice.customer
    body = InvoiceBody(
        type="standard",
        id=derived_id("gathering", customer.id, invoice.currency),
        created_at=invoice.since,
        updated_at=now,
        supplier=Party(),
        customer=customer_body(customer),
        number=f"GATHER-{customer.id[-6:]}-{invoice.currency}",
        currency=invoice.currency,
        totals=totals_body(invoice.totals, invoice.currency),
        status="gathering",
        status_details=StatusDetails(extended_status="gathering"),
        workflow=Workflow(),
    )
    if invoice.lines:
        body["period"] = span(line.period for line in invoice.lines)
    if lines:
        body["lines"] = [_line(line, now) for line in invoice.lines]
    return body


Expand = Literal["lines", "preceding", "workflow.apps"]
InvoiceStatus = Literal[
    "gathering",
    "draft",
    "issuing",
    "issued",
    "payment_processing",
    "overdue",
    "paid",
    "uncollectible",
    "voided",
]


@router.get("/billing/invoices", operation_id="listInvoices", dependencies=[reader])
def list_all(
    *,
    session: Snapshot,
    now: Now,
    statuses: Annotated[list[InvoiceStatus] | None, Query()] = None,
    customers: Annotated[list[str] | None, Query()] = None,
    expand: Annotated[list[Expand] | None, Query()] = None,
    page: PageNumber = 1,
    page_size: PageSize = 100,
) -> InvoicePage:
    """Gathering invoices, priced as of now."""
    if statuses and "gathering" not in statuses:
        return InvoicePage(total_count=0, page=page, page_size=page_size, items=[])
    found, count = gathering_customers(
        session, customer_ids=customers or (), at=now, **page_of(page, page_size)
    )
    invoices = gathering_invoices(session, found, at=now)
    items = [_body(invoice, now, lines="lines" in (expand or ())) for invoice in invoices]
    return InvoicePage(total_count=count, page=page, page_size=page_size, items=items)


@router.get(
    "/customers/{customerIdOrKey}/invoice-preview", operation_id="previewInvoice", dependencies=[reader]
)
def preview(
    session: Snapshot,
    now: Now,
    customerIdOrKey: str,  # noqa: N803  the wire's name
    at: Annotated[Instant | None, Query(description="usage counts up to this instant")] = None,
) -> InvoiceBody:
    """What the customer would be billed, as of now or of any other instant."""
    if at is not None and at > now + FURTHEST_AHEAD:
        message = f"at may lie at most {FURTHEST_AHEAD.days // 365} years ahead"
        raise InvalidError(message, Issue(code="too_far_ahead", message=message, field="$.at"))
    customer = get_customer(session, customerIdOrKey, by_subject=True)
    invoices = gathering_invoices(session, [customer], at=at or now, usage_until=at)
    if not invoices:
        message = f"{customer.name!r} has no subscription by then, so there is nothing to bill"
        raise NotFoundError(message, Issue(code="no_subscription", message=message, field="$.at"))
    return _body(invoices[0], now, lines=True)
