"""Invoices on the wire, in OpenMeter's shape: every line shows what the rater said of it, and why.

The gathering preview and the simulation are rendered here, from the same RatedLine.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, Literal, NotRequired

from pydantic import (
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    model_serializer,
    with_config,
)
from starlette.responses import Response
from typing_extensions import TypedDict

from api.http.body import Body, Metadata, decimal_text, present
from billing.contracts.customer import Address, Customer
from billing.profiles.workflow import Workflow
from billing.rating.rater import AmountDiscount, DetailedLine, Rating, Totals
from billing.taxes.tax import LineTax
from catalog.discount import Discounts, PercentageDiscount, UsageDiscount
from catalog.money import minor_digits
from catalog.price import FlatPrice, PaymentTerm, Price
from catalog.tax import TaxBehavior, TaxConfig
from catalog.unit_config import UnitConfig
from metering.ids import derived_id
from metering.period import Period
from metering.wire import WIRE, Number, Numeric

__all__ = [
    "ActionDetails",
    "AppReferences",
    "BillingDiscounts",
    "DetailedLineBody",
    "ExternalIds",
    "InvoiceBody",
    "InvoiceCustomer",
    "InvoiceStatus",
    "InvoiceWorkflow",
    "LineBody",
    "LineDiscounts",
    "LineSubscription",
    "LineTaxBody",
    "Party",
    "PeriodBody",
    "PrecedingBody",
    "RatedLine",
    "Reference",
    "StatusDetails",
    "Ulid",
    "UsageAttributionBody",
    "UsageBasedRateCard",
    "ValidationIssueBody",
    "customer_body",
    "invoice_response",
    "line_body",
    "period_body",
    "span",
    "tax_body",
    "totals_body",
]

Ulid = Annotated[str, Field(pattern=r"^[0-7][0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{25}$")]


@with_config(WIRE)
class PeriodBody(TypedDict):
    from_: datetime
    to: datetime


def period_body(period: Period) -> PeriodBody:
    return PeriodBody(from_=period.start, to=period.end)


@with_config(WIRE)
class TotalsBody(TypedDict):
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


class ExternalIds(Body):
    """What something is called in the system that invoices, and in the one that collects."""

    invoicing: str | None = None
    tax: str | None = None
    payment: str | None = None


# -- Discounts -----------------------------------------------------------------------------------------------


class BillingDiscountPercentage(Body):
    percentage: Number
    correlation_id: Ulid | None = None


class BillingDiscountUsage(Body):
    quantity: Numeric
    correlation_id: Ulid | None = None


class BillingDiscounts(Body):
    """What a rate card's discounts are on an invoice: with ids that follow them from line to line."""

    percentage: BillingDiscountPercentage | None = None
    usage: BillingDiscountUsage | None = None

    @staticmethod
    def of(discounts: Discounts | None) -> "BillingDiscounts | None":
        if discounts is None or discounts == Discounts():
            return None
        percentage, usage = discounts.percentage, discounts.usage
        return BillingDiscounts(
            percentage=percentage and BillingDiscountPercentage(percentage=percentage.percentage),
            usage=usage and BillingDiscountUsage(quantity=usage.quantity),
        )

    @property
    def value(self) -> Discounts:
        percentage, usage = self.percentage, self.usage
        return Discounts(
            percentage=None if percentage is None else PercentageDiscount(percentage=percentage.percentage),
            usage=None if usage is None else UsageDiscount(quantity=usage.quantity),
        )


class MaximumSpend(Body):
    type: Literal["maximum_spend"] = "maximum_spend"


class RatecardPercentage(BillingDiscountPercentage):
    type: Literal["ratecard_percentage"] = "ratecard_percentage"


class RatecardUsage(BillingDiscountUsage):
    type: Literal["ratecard_usage"] = "ratecard_usage"


@with_config(WIRE)
class LineAmountDiscount(TypedDict):
    id: str
    created_at: datetime
    updated_at: datetime
    reason: MaximumSpend | RatecardPercentage
    description: str
    amount: str
    external_ids: NotRequired[ExternalIds]


@with_config(WIRE)
class LineUsageDiscount(TypedDict):
    id: str
    created_at: datetime
    updated_at: datetime
    reason: RatecardUsage
    quantity: str
    pre_line_period_quantity: str
    external_ids: NotRequired[ExternalIds]


@with_config(WIRE)
class LineDiscounts(TypedDict):
    amount: NotRequired[list[LineAmountDiscount]]
    usage: NotRequired[list[LineUsageDiscount]]


# -- Lines ---------------------------------------------------------------------------------------------------


@with_config(WIRE)
class DetailedPrice(TypedDict):
    """What each unit of a detailed line costs, whatever the price of the line is."""

    type: Literal["flat"]
    amount: str
    payment_term: PaymentTerm


@with_config(WIRE)
class DetailedRateCard(TypedDict):
    tax_config: NotRequired[TaxConfig]
    price: DetailedPrice
    quantity: str


@with_config(WIRE)
class DetailedLineBody(TypedDict):
    type: Literal["flat_fee"]
    id: str
    name: str
    description: str
    created_at: datetime
    updated_at: datetime
    managed_by: Literal["system"]
    status: Literal["detailed"]
    category: Literal["regular", "commitment"]
    currency: str
    period: PeriodBody
    invoice_at: datetime
    per_unit_amount: str
    quantity: str
    payment_term: PaymentTerm
    rate_card: DetailedRateCard
    external_ids: NotRequired[ExternalIds]
    discounts: NotRequired[LineDiscounts]
    totals: TotalsBody


def _price_json(price: Price) -> Any:
    return present(_PRICE.dump_python(price, mode="json", by_alias=True))


_PRICE: TypeAdapter[Price] = TypeAdapter(Price)
SentPrice = Annotated[Price, PlainSerializer(_price_json, when_used="json")]


class UsageBasedRateCard(Body):
    """A price of null is free, and is sent as null. `unitConfig` is our own."""

    feature_key: str | None = None
    tax_config: TaxConfig | None = None
    price: SentPrice | None
    discounts: BillingDiscounts | None = None
    unit_config: UnitConfig | None = None

    @model_serializer(mode="wrap")
    def _with_price(self, serialize: SerializerFunctionWrapHandler) -> Any:
        found = serialize(self)
        return found if self.price is not None else {**found, "price": None}


@with_config(WIRE)
class LineTaxBody(TypedDict):
    """`code`, `base` and `amount` are our own: which rate, on how much, and what it comes to."""

    config: NotRequired[TaxConfig]
    percent: Number
    behavior: TaxBehavior
    code: NotRequired[str]
    base: str
    amount: str


@with_config(WIRE)
class LineBody(TypedDict):
    type: Literal["usage_based"]
    id: str
    name: str
    description: NotRequired[str]
    metadata: NotRequired[Metadata]
    created_at: datetime
    updated_at: datetime
    managed_by: Literal["subscription", "manual"]
    status: Literal["valid"]
    currency: str
    period: PeriodBody
    invoice_at: datetime
    taxes: NotRequired[list[LineTaxBody]]
    tax_config: NotRequired[TaxConfig]
    feature_key: NotRequired[str]
    price: NotRequired[SentPrice]
    rate_card: UsageBasedRateCard
    quantity: str
    metered_quantity: NotRequired[str]
    pre_line_period_quantity: NotRequired[str]
    metered_pre_line_period_quantity: NotRequired[str]
    subscription: NotRequired[LineSubscription]
    children: list[DetailedLineBody]
    external_ids: NotRequired[ExternalIds]
    discounts: NotRequired[LineDiscounts]
    totals: TotalsBody


# -- Invoices ------------------------------------------------------------------------------------------------


class TaxIdentityBody(Body):
    code: str | None = None


class Party(Body):
    id: str | None = None
    key: str | None = None
    name: str | None = None
    tax_id: TaxIdentityBody | None = None
    addresses: list[Address] | None = None


class UsageAttributionBody(Body):
    subject_keys: list[str]


class InvoiceCustomer(Party):
    usage_attribution: UsageAttributionBody


class ActionDetails(Body):
    """Where the action leads; a gathering invoice's leads to another invoice, and says nothing."""

    resulting_state: str | None = None


class StatusDetails(Body):
    """`immutable`: nothing of it can be changed any more. Each available action by its name."""

    immutable: bool = False
    failed: bool = False
    extended_status: str
    available_actions: dict[str, ActionDetails] = Field(default_factory=dict)


class AppReferences(Body):
    """The one app that does all three."""

    tax: Reference
    invoicing: Reference
    payment: Reference


class InvoiceWorkflow(Body):
    source_billing_profile_id: str
    workflow: Workflow
    apps: AppReferences | None = None


class ValidationIssueBody(Body):
    id: str
    created_at: datetime
    updated_at: datetime
    severity: Literal["critical", "warning"]
    component: str
    code: str | None = None
    field: str | None = None
    message: str


class PrecedingBody(Body):
    """The invoice that a credit note is against."""

    type: Literal["credit_note_original_invoice"] = "credit_note_original_invoice"
    reason: str
    issued_at: datetime
    number: str
    url: str


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
    "delete",
    "deleted",
]


@with_config(WIRE)
class InvoiceBody(TypedDict):
    id: str
    type: Literal["standard", "credit_note"]
    description: NotRequired[str]
    metadata: NotRequired[Metadata]
    created_at: datetime
    updated_at: datetime
    deleted_at: NotRequired[datetime]
    supplier: Party
    customer: InvoiceCustomer
    number: str
    currency: str
    preceding: NotRequired[list[PrecedingBody]]
    totals: TotalsBody
    status: InvoiceStatus
    status_details: StatusDetails
    issued_at: NotRequired[datetime]
    draft_until: NotRequired[datetime]
    quantity_snapshoted_at: NotRequired[datetime]
    collection_at: NotRequired[datetime]
    due_at: NotRequired[datetime]
    voided_at: NotRequired[datetime]
    sent_to_customer_at: NotRequired[datetime]
    period: NotRequired[PeriodBody]
    workflow: InvoiceWorkflow
    validation_issues: NotRequired[list[ValidationIssueBody]]
    external_ids: NotRequired[ExternalIds]
    lines: NotRequired[list[LineBody]]


_INVOICE = TypeAdapter(InvoiceBody)


def invoice_response(invoice: InvoiceBody) -> Response:
    """As FastAPI would send it, in a third of the time: it has its shape, and is not asked whether it has."""
    content = _INVOICE.dump_json(invoice, by_alias=True, exclude_none=True)
    return Response(content, media_type="application/json")


# -- Rendering -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RatedLine:
    """What a line is shown from. `identity` is what ids are derived from, its own too unless it has one.

    `metered` is the quantity as it was metered, before conversion and usage discount, and None for a fee.
    """

    identity: tuple[str, ...]
    id: str | None = None
    name: str
    description: str | None = None
    metadata: Mapping[str, str] | None = None
    managed_by: Literal["subscription", "manual"]
    currency: str
    created_at: datetime
    updated_at: datetime
    period: Period
    invoice_at: datetime
    rate_card: UsageBasedRateCard
    metered: Decimal | None
    metered_before: Decimal = Decimal(0)
    rating: Rating
    subscription: LineSubscription | None = None

    @property
    def fee(self) -> bool:
        return isinstance(self.rate_card.price, FlatPrice)

    @property
    def payment_term(self) -> PaymentTerm:
        price = self.rate_card.price
        return price.payment_term if isinstance(price, FlatPrice) else "in_arrears"


def line_body(line: RatedLine) -> LineBody:
    card, period = line.rate_card, period_body(line.period)
    body = LineBody(
        type="usage_based",
        id=line.id or derived_id(*line.identity),
        name=line.name,
        created_at=line.created_at,
        updated_at=line.updated_at,
        managed_by=line.managed_by,
        status="valid",
        currency=line.currency,
        period=period,
        invoice_at=line.invoice_at,
        rate_card=card,
        quantity="1" if line.fee else decimal_text(line.rating.quantity),
        children=[_detail(line, detail, period) for detail in line.rating.details],
        totals=totals_body(line.rating.totals, line.currency),
    )
    _add_words(body, line)
    _add_quantities(body, line)
    return body


def _add_words(body: LineBody, line: RatedLine) -> None:
    """What was said of the line, as far as something was."""
    if line.description is not None:
        body["description"] = line.description
    if line.metadata is not None:
        body["metadata"] = dict(line.metadata)
    if line.rate_card.price is not None:
        body["price"] = line.rate_card.price
    if line.rate_card.tax_config is not None:
        body["tax_config"] = line.rate_card.tax_config
    if line.rate_card.feature_key is not None:
        body["feature_key"] = line.rate_card.feature_key
    if line.subscription is not None:
        body["subscription"] = line.subscription


def _add_quantities(body: LineBody, line: RatedLine) -> None:
    if line.metered is None:
        return
    body["metered_quantity"] = decimal_text(line.metered)
    body["pre_line_period_quantity"] = decimal_text(line.rating.quantity_before)
    body["metered_pre_line_period_quantity"] = decimal_text(line.metered_before)
    agreed, rating = line.rate_card.discounts, line.rating
    if agreed and agreed.usage and (rating.usage_discount or rating.usage_discount_before):
        body["discounts"] = LineDiscounts(usage=[_usage_discount(line, agreed.usage)])


def _detail(line: RatedLine, detail: DetailedLine, period: PeriodBody) -> DetailedLineBody:
    quantity, amount = decimal_text(detail.quantity), decimal_text(detail.per_unit_amount)
    term = line.payment_term
    price: DetailedPrice = {"type": "flat", "amount": amount, "payment_term": term}
    card: DetailedRateCard = {"price": price, "quantity": quantity}
    if line.rate_card.tax_config is not None:
        card["tax_config"] = line.rate_card.tax_config
    body: DetailedLineBody = {  # not by its name, which takes longer: there are hundreds
        "type": "flat_fee",
        "id": derived_id(*line.identity, detail.reference),
        "name": detail.name,
        "description": detail.description,
        "created_at": line.created_at,
        "updated_at": line.updated_at,
        "managed_by": "system",
        "status": "detailed",
        "category": detail.category,
        "currency": line.currency,
        "period": period,
        "invoice_at": line.invoice_at,
        "per_unit_amount": amount,
        "quantity": quantity,
        "payment_term": term,
        "rate_card": card,
        "totals": _detail_totals(detail, line.currency),
    }
    if detail.discounts:
        body["discounts"] = _amount_discounts(line, detail)
    return body


def _detail_totals(detail: DetailedLine, currency: str) -> TotalsBody:
    amount, nothing = _money(detail.amount, currency), _nothing(currency)
    regular = detail.category == "regular"
    return {
        "amount": amount if regular else nothing,
        "charges_total": nothing if regular else amount,
        "discounts_total": _money(detail.discounted, currency) if detail.discounts else nothing,
        "credits_total": nothing,
        "taxes_inclusive_total": nothing,
        "taxes_exclusive_total": nothing,
        "taxes_total": nothing,
        "total": _money(detail.total, currency) if detail.discounts else amount,
    }


def _amount_discounts(line: RatedLine, detail: DetailedLine) -> LineDiscounts:
    found = [
        LineAmountDiscount(
            id=derived_id(*line.identity, detail.reference, discount.reason),
            created_at=line.created_at,
            updated_at=line.updated_at,
            reason=_reason(line, discount),
            description=discount.description,
            amount=_money(discount.amount, line.currency),
        )
        for discount in detail.discounts
    ]
    return LineDiscounts(amount=found)


def _reason(line: RatedLine, discount: AmountDiscount) -> MaximumSpend | RatecardPercentage:
    agreed = line.rate_card.discounts
    if discount.reason == "maximum_spend" or agreed is None or agreed.percentage is None:
        return MaximumSpend()
    return RatecardPercentage(**dict(agreed.percentage))


def _usage_discount(line: RatedLine, agreed: BillingDiscountUsage) -> LineUsageDiscount:
    return LineUsageDiscount(
        id=derived_id(*line.identity, "ratecard_usage"),
        created_at=line.created_at,
        updated_at=line.updated_at,
        reason=RatecardUsage(**dict(agreed)),
        quantity=decimal_text(line.rating.usage_discount),
        pre_line_period_quantity=decimal_text(line.rating.usage_discount_before),
    )


def tax_body(tax: LineTax, currency: str) -> LineTaxBody:
    body = LineTaxBody(
        percent=tax.percent,
        behavior=tax.behavior,
        base=_money(tax.base, currency),
        amount=_money(tax.amount, currency),
    )
    if tax.config is not None:
        body["config"] = tax.config
    if tax.code is not None:
        body["code"] = tax.code
    return body


def totals_body(totals: Totals, currency: str) -> TotalsBody:
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


@cache
def _nothing(currency: str) -> str:
    return _money(Decimal(0), currency)


def _money(amount: Decimal, currency: str) -> str:
    """With the digits of the currency's minor unit: 2.50 in USD, 3 in JPY."""
    return f"{amount:.{minor_digits(currency)}f}"


def customer_body(customer: Customer) -> InvoiceCustomer:
    return InvoiceCustomer(
        id=customer.id,
        key=customer.key,
        name=customer.name,
        addresses=[customer.billing_address] if customer.billing_address else None,
        usage_attribution=UsageAttributionBody(subject_keys=customer.subject_keys),
    )


def span(periods: Iterable[Period]) -> PeriodBody:
    """From the first start to the last end, of one at least."""
    every = list(periods)
    return PeriodBody(from_=min(p.start for p in every), to=max(p.end for p in every))
