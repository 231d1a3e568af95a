"""Invoices on the wire, in OpenMeter's shape: every line shows what the rater said of it, and why.

The gathering preview and the simulation are rendered here, from the same RatedLine.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from api.http.body import Body, Metadata, decimal_text
from billing.customer import Address, Customer
from billing.rating import AmountDiscount, DetailedLine, Rating, Totals, totals_of
from catalog.discount import Discounts, PercentageDiscount, UsageDiscount
from catalog.money import minor_digits
from catalog.price import FlatPrice, PaymentTerm, Price
from catalog.tax import TaxConfig
from catalog.unit_config import UnitConfig
from metering.ids import derived_id
from metering.period import Period
from metering.wire import Number, Numeric

__all__ = [
    "BillingDiscounts",
    "InvoiceBody",
    "LineBody",
    "LineSubscription",
    "PeriodBody",
    "RatedLine",
    "Reference",
    "StatusDetails",
    "Ulid",
    "UsageBasedRateCard",
    "Workflow",
    "customer_body",
    "line_body",
    "span",
    "totals_body",
]

Ulid = Annotated[str, Field(pattern=r"^[0-7][0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{25}$")]


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


class LineAmountDiscount(Body):
    id: str
    created_at: datetime
    updated_at: datetime
    reason: MaximumSpend | RatecardPercentage
    description: str
    amount: str


class LineUsageDiscount(Body):
    id: str
    created_at: datetime
    updated_at: datetime
    reason: RatecardUsage
    quantity: str
    pre_line_period_quantity: str


class LineDiscounts(Body):
    amount: list[LineAmountDiscount] | None = None
    usage: list[LineUsageDiscount] | None = None


# -- Lines ---------------------------------------------------------------------------------------------------


class DetailedRateCard(Body):
    tax_config: TaxConfig | None = None
    price: FlatPrice | None
    quantity: str


class DetailedLineBody(Body):
    type: Literal["flat_fee"] = "flat_fee"
    id: str
    name: str
    description: str
    created_at: datetime
    updated_at: datetime
    managed_by: Literal["system"] = "system"
    status: Literal["detailed"] = "detailed"
    category: Literal["regular", "commitment"]
    currency: str
    period: PeriodBody
    invoice_at: datetime
    per_unit_amount: str
    quantity: str
    payment_term: PaymentTerm
    rate_card: DetailedRateCard
    discounts: LineDiscounts | None = None
    totals: TotalsBody


class UsageBasedRateCard(Body):
    """`unitConfig` is our own."""

    feature_key: str | None = None
    tax_config: TaxConfig | None = None
    price: Price | None
    discounts: BillingDiscounts | None = None
    unit_config: UnitConfig | None = None


class LineBody(Body):
    type: Literal["usage_based"] = "usage_based"
    id: str
    name: str
    description: str | None = None
    metadata: Metadata | None = None
    created_at: datetime
    updated_at: datetime
    managed_by: Literal["subscription", "manual"]
    status: Literal["valid"] = "valid"
    currency: str
    period: PeriodBody
    invoice_at: datetime
    tax_config: TaxConfig | None = None
    feature_key: str | None = None
    price: Price | None
    rate_card: UsageBasedRateCard
    quantity: str
    metered_quantity: str | None = None
    pre_line_period_quantity: str | None = None
    metered_pre_line_period_quantity: str | None = None
    subscription: LineSubscription | None = None
    children: list[DetailedLineBody]
    discounts: LineDiscounts | None = None
    totals: TotalsBody


# -- Invoices ------------------------------------------------------------------------------------------------


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
    extended_status: Literal["gathering", "draft.created"]
    available_actions: dict[str, str] = Field(default_factory=dict)


class Workflow(Body):
    source_billing_profile_id: str = derived_id("billing-profile", "default")
    workflow: dict[str, str] = Field(default_factory=dict)


class InvoiceBody(Body):
    id: str
    type: Literal["standard"] = "standard"
    created_at: datetime
    updated_at: datetime
    supplier: Party = Party()
    customer: InvoiceCustomer
    number: str
    currency: str
    totals: TotalsBody
    status: Literal["gathering", "draft"]
    status_details: StatusDetails
    period: PeriodBody | None = None
    workflow: Workflow = Workflow()
    lines: list[LineBody] | None = None


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
    card, rating, period = line.rate_card, line.rating, PeriodBody.of(line.period)
    metered = line.metered is not None
    return LineBody(
        id=line.id or derived_id(*line.identity),
        name=line.name,
        description=line.description,
        metadata=None if line.metadata is None else dict(line.metadata),
        created_at=line.created_at,
        updated_at=line.updated_at,
        managed_by=line.managed_by,
        currency=line.currency,
        period=period,
        invoice_at=line.invoice_at,
        tax_config=card.tax_config,
        feature_key=card.feature_key,
        price=card.price,
        rate_card=card,
        quantity="1" if line.fee else decimal_text(rating.quantity),
        metered_quantity=decimal_text(line.metered) if line.metered is not None else None,
        pre_line_period_quantity=decimal_text(rating.quantity_before) if metered else None,
        metered_pre_line_period_quantity=decimal_text(line.metered_before) if metered else None,
        subscription=line.subscription,
        children=[_detail(line, detail, period) for detail in rating.details],
        discounts=_usage_discounts(line),
        totals=totals_body(rating.totals, line.currency),
    )


def _detail(line: RatedLine, detail: DetailedLine, period: PeriodBody) -> DetailedLineBody:
    quantity, term = decimal_text(detail.quantity), line.payment_term
    return DetailedLineBody(
        id=derived_id(*line.identity, detail.reference),
        name=detail.name,
        description=detail.description,
        created_at=line.created_at,
        updated_at=line.updated_at,
        category=detail.category,
        currency=line.currency,
        period=period,
        invoice_at=line.invoice_at,
        per_unit_amount=decimal_text(detail.per_unit_amount),
        quantity=quantity,
        payment_term=term,
        rate_card=DetailedRateCard(
            tax_config=line.rate_card.tax_config,
            price=FlatPrice(type="flat", amount=detail.per_unit_amount, payment_term=term),
            quantity=quantity,
        ),
        discounts=_amount_discounts(line, detail),
        totals=totals_body(totals_of([detail]), line.currency),
    )


def _amount_discounts(line: RatedLine, detail: DetailedLine) -> LineDiscounts | None:
    if not detail.discounts:
        return None
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


def _usage_discounts(line: RatedLine) -> LineDiscounts | None:
    agreed, rating = line.rate_card.discounts, line.rating
    if agreed is None or agreed.usage is None or not (rating.usage_discount or rating.usage_discount_before):
        return None
    found = LineUsageDiscount(
        id=derived_id(*line.identity, "ratecard_usage"),
        created_at=line.created_at,
        updated_at=line.updated_at,
        reason=RatecardUsage(**dict(agreed.usage)),
        quantity=decimal_text(rating.usage_discount),
        pre_line_period_quantity=decimal_text(rating.usage_discount_before),
    )
    return LineDiscounts(usage=[found])


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


def span(periods: Iterable[Period]) -> PeriodBody | None:
    """From the first start to the last end."""
    every = list(periods)
    if not every:
        return None
    return PeriodBody(from_=min(p.start for p in every), to=max(p.end for p in every))
