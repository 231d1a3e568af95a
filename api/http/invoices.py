"""Invoices: /api/v1/billing/invoices in OpenMeter's shape, and our own preview of one customer's.

Until invoices are issued there is one kind: the gathering invoice, computed on the spot.
"""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Literal

from fastapi import APIRouter, Query

from api.http.auth import reader
from api.http.body import (
    Body,
    ExactRoute,
    Instant,
    Metadata,
    Page,
    PageNumber,
    PageSize,
    decimal_text,
    page_of,
)
from api.http.session import Now, Snapshot
from billing.customer import Address, get_customer
from billing.gathering import GatheringInvoice, GatheringLine, gathering_customers, gathering_invoices
from billing.rating import DetailedLine, Totals
from billing.timeline import Charge
from catalog.money import minor_digits
from catalog.price import FlatPrice, Price
from metering.errors import InvalidError, Issue, NotFoundError
from metering.ids import derived_id
from metering.period import Period

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["Invoices"], route_class=ExactRoute)


FURTHEST_AHEAD = timedelta(days=2 * 365)


class PeriodBody(Body):
    from_: datetime
    to: datetime

    @staticmethod
    def of(period: Period) -> "PeriodBody":
        return PeriodBody(from_=period.start, to=period.end)


class TotalsBody(Body):
    amount: str
    charges_total: str
    discounts_total: str
    credits_total: str
    taxes_inclusive_total: str
    taxes_exclusive_total: str
    taxes_total: str
    total: str


class Reference(Body):
    id: str


class LineSubscription(Body):
    subscription: Reference
    phase: Reference
    item: Reference
    billing_period: PeriodBody


class DetailedRateCard(Body):
    price: FlatPrice | None
    quantity: str


class DetailedLineBody(Body):
    type: Literal["flat_fee"] = "flat_fee"
    id: str
    name: str
    created_at: datetime
    updated_at: datetime
    managed_by: Literal["system"] = "system"
    status: Literal["detailed"] = "detailed"
    category: Literal["regular"] = "regular"
    currency: str
    period: PeriodBody
    invoice_at: datetime
    per_unit_amount: str
    quantity: str
    payment_term: Literal["in_advance", "in_arrears"]
    rate_card: DetailedRateCard
    totals: TotalsBody


class UsageBasedRateCard(Body):
    feature_key: str | None = None
    price: Price | None


class LineBody(Body):
    type: Literal["usage_based"] = "usage_based"
    id: str
    name: str
    description: str | None = None
    metadata: Metadata | None = None
    created_at: datetime
    updated_at: datetime
    managed_by: Literal["subscription"] = "subscription"
    status: Literal["valid"] = "valid"
    currency: str
    period: PeriodBody
    invoice_at: datetime
    feature_key: str | None = None
    price: Price | None
    rate_card: UsageBasedRateCard
    quantity: str
    metered_quantity: str | None = None
    pre_line_period_quantity: str | None = None
    metered_pre_line_period_quantity: str | None = None
    subscription: LineSubscription
    children: list[DetailedLineBody]
    totals: TotalsBody


class Party(Body):
    id: str | None = None
    key: str | None = None
    name: str | None = None
    addresses: list[Address] | None = None


class UsageAttributionBody(Body):
    subject_keys: list[str]


class InvoiceCustomer(Party):
    usage_attribution: UsageAttributionBody


class StatusDetails(Body):
    immutable: bool = False
    failed: bool = False
    extended_status: Literal["gathering"] = "gathering"
    available_actions: dict[str, str]


class Workflow(Body):
    source_billing_profile_id: str
    workflow: dict[str, str]


class InvoiceBody(Body):
    id: str
    type: Literal["standard"] = "standard"
    created_at: datetime
    updated_at: datetime
    supplier: Party
    customer: InvoiceCustomer
    number: str
    currency: str
    totals: TotalsBody
    status: Literal["gathering"] = "gathering"
    status_details: StatusDetails
    period: PeriodBody | None = None
    workflow: Workflow
    lines: list[LineBody] | None = None


class InvoicePage(Page):
    items: list[InvoiceBody]


def _money(amount: Decimal, currency: str) -> str:
    """With the digits of the currency's minor unit: 2.50 in USD, 3 in JPY."""
    return f"{amount:.{minor_digits(currency)}f}"


def _totals(totals: Totals, currency: str) -> TotalsBody:
    return TotalsBody(
        amount=_money(totals.amount, currency),
        charges_total=_money(totals.charges, currency),
        discounts_total=_money(totals.discounts, currency),
        credits_total=_money(totals.credits, currency),
        taxes_inclusive_total=_money(totals.taxes_inclusive, currency),
        taxes_exclusive_total=_money(totals.taxes_exclusive, currency),
        taxes_total=_money(totals.taxes, currency),
        total=_money(totals.total, currency),
    )


def _detail(line: GatheringLine, detail: DetailedLine, now: datetime) -> DetailedLineBody:
    charge = line.charge
    in_advance = isinstance(charge.price, FlatPrice) and charge.price.payment_term == "in_advance"
    term: Literal["in_advance", "in_arrears"] = "in_advance" if in_advance else "in_arrears"
    quantity = decimal_text(detail.quantity)
    return DetailedLineBody(
        id=derived_id(*charge.identity, detail.reference),
        name=detail.name,
        created_at=charge.period.start,
        updated_at=now,
        currency=charge.currency,
        period=PeriodBody.of(charge.period),
        invoice_at=charge.invoice_at,
        per_unit_amount=decimal_text(detail.per_unit_amount),
        quantity=quantity,
        payment_term=term,
        rate_card=DetailedRateCard(
            price=FlatPrice(type="flat", amount=detail.per_unit_amount, payment_term=term), quantity=quantity
        ),
        totals=_totals(Totals(amount=detail.amount), charge.currency),
    )


def _line(line: GatheringLine, now: datetime) -> LineBody:
    charge, card = line.charge, line.charge.item.rate_card
    metered = None if line.quantity is None else decimal_text(line.quantity)
    return LineBody(
        id=derived_id(*charge.identity),
        name=card.name,
        description=card.description,
        metadata=None if card.metadata is None else dict(card.metadata),
        created_at=charge.period.start,
        updated_at=now,
        currency=charge.currency,
        period=PeriodBody.of(charge.period),
        invoice_at=charge.invoice_at,
        feature_key=card.feature_key,
        price=charge.price,
        rate_card=UsageBasedRateCard(feature_key=card.feature_key, price=charge.price),
        quantity=metered or "1",
        metered_quantity=metered,
        pre_line_period_quantity=None if metered is None else "0",
        metered_pre_line_period_quantity=None if metered is None else "0",
        subscription=_source(charge),
        children=[_detail(line, detail, now) for detail in line.details],
        totals=_totals(line.totals, charge.currency),
    )


def _source(charge: Charge) -> LineSubscription:
    return LineSubscription(
        subscription=Reference(id=charge.subscription_id),
        phase=Reference(id=charge.item.phase_id),
        item=Reference(id=charge.item.id),
        billing_period=PeriodBody.of(charge.billing_period),
    )


def _body(invoice: GatheringInvoice, now: datetime, *, lines: bool) -> InvoiceBody:
    customer = invoice.customer
    period = _span([line.charge.period for line in invoice.lines])
    return InvoiceBody(
        id=derived_id("gathering", customer.id, invoice.currency),
        created_at=invoice.since,
        updated_at=now,
        supplier=Party(),
        customer=InvoiceCustomer(
            id=customer.id,
            key=customer.key,
            name=customer.name,
            addresses=[customer.billing_address] if customer.billing_address else None,
            usage_attribution=UsageAttributionBody(subject_keys=customer.subject_keys),
        ),
        number=f"GATHER-{customer.id[-6:]}-{invoice.currency}",
        currency=invoice.currency,
        totals=_totals(invoice.totals, invoice.currency),
        period=PeriodBody.of(period) if period else None,
        status_details=StatusDetails(available_actions={}),
        workflow=Workflow(source_billing_profile_id=derived_id("billing-profile", "default"), workflow={}),
        lines=[_line(line, now) for line in invoice.lines] if lines else None,
    )


def _span(periods: list[Period]) -> Period | None:
    if not periods:
        return None
    return Period(start=min(p.start for p in periods), end=max(p.end for p in periods))


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
