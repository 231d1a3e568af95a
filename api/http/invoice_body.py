"""The shape of invoices on the wire, which is OpenMeter's. rated_line.py makes their lines.

What an invoice has hundreds of is a TypedDict, whose members are named as the wire names them: what is made
is what is sent, with nothing in between.
"""

from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired, get_args, get_type_hints

import msgspec
from pydantic import (
    BaseModel,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_serializer,
    with_config,
)
from starlette.responses import Response
from typing_extensions import TypedDict

from api.http.billing_profiles import AppsOrReferences
from api.http.body import Body, Metadata, Page, SpelledAs, present
from billing.contracts.customer import Address, Customer
from billing.profiles.workflow import Workflow
from catalog.discount import Discounts, PercentageDiscount, UsageDiscount
from catalog.price import PaymentTerm, Price
from catalog.tax import TaxBehavior, TaxConfig
from catalog.unit_config import UnitConfig
from metering.period import Period
from metering.wire import WIRE, Number, Numeric

__all__ = [
    "ActionDetails",
    "BillingDiscountUsage",
    "BillingDiscounts",
    "DetailedLineBody",
    "DetailedPrice",
    "DetailedRateCard",
    "ExternalIds",
    "InvoiceBody",
    "InvoiceCustomer",
    "InvoicePage",
    "InvoiceStatus",
    "InvoiceWorkflow",
    "LineAmountDiscount",
    "LineBody",
    "LineDiscounts",
    "LineSubscription",
    "LineTaxBody",
    "LineUsageDiscount",
    "MaximumSpend",
    "Party",
    "PeriodBody",
    "PrecedingBody",
    "RatecardPercentage",
    "RatecardUsage",
    "SpelledTaxConfig",
    "StatusDetails",
    "TotalsBody",
    "Ulid",
    "UsageAttributionBody",
    "UsageBasedRateCard",
    "ValidationIssueBody",
    "customer_body",
    "invoice_response",
    "invoices_response",
    "period_body",
    "price_body",
    "span",
]

Ulid = Annotated[str, Field(pattern=r"^[0-7][0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{25}$")]


PeriodBody = TypedDict("PeriodBody", {"from": datetime, "to": datetime})
with_config(WIRE)(PeriodBody)


def period_body(period: Period) -> PeriodBody:
    return {"from": period.start, "to": period.end}


def span(periods: Iterable[Period]) -> PeriodBody:
    """From the first start to the last end, of one at least."""
    every = list(periods)
    return {"from": min(p.start for p in every), "to": max(p.end for p in every)}


@with_config(WIRE)
class TotalsBody(TypedDict):
    amount: str
    chargesTotal: str
    discountsTotal: str
    creditsTotal: str
    taxesInclusiveTotal: str
    taxesExclusiveTotal: str
    taxesTotal: str
    total: str


@with_config(WIRE)
class LineReference(TypedDict):
    id: str


@with_config(WIRE)
class LineSubscription(TypedDict):
    subscription: LineReference
    phase: LineReference
    item: LineReference
    billingPeriod: PeriodBody


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
    createdAt: datetime
    updatedAt: datetime
    reason: MaximumSpend | RatecardPercentage
    description: str
    amount: str
    externalIds: NotRequired[ExternalIds]


@with_config(WIRE)
class LineUsageDiscount(TypedDict):
    id: str
    createdAt: datetime
    updatedAt: datetime
    reason: RatecardUsage
    quantity: str
    preLinePeriodQuantity: str
    externalIds: NotRequired[ExternalIds]


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
    paymentTerm: PaymentTerm


SpelledTaxConfig = Annotated[dict[str, Any], SpelledAs(TaxConfig)]


@with_config(WIRE)
class DetailedRateCard(TypedDict):
    taxConfig: NotRequired[SpelledTaxConfig]
    price: DetailedPrice
    quantity: str


@with_config(WIRE)
class DetailedLineBody(TypedDict):
    type: Literal["flat_fee"]
    id: str
    name: str
    description: str
    createdAt: datetime
    updatedAt: datetime
    managedBy: Literal["system"]
    status: Literal["detailed"]
    category: Literal["regular", "commitment"]
    currency: str
    period: PeriodBody
    invoiceAt: datetime
    perUnitAmount: str
    quantity: str
    paymentTerm: PaymentTerm
    rateCard: DetailedRateCard
    externalIds: NotRequired[ExternalIds]
    discounts: NotRequired[LineDiscounts]
    totals: TotalsBody


def price_body(price: Price) -> Any:
    return present(_PRICE.dump_python(price, mode="json", by_alias=True))


_PRICE: TypeAdapter[Price] = TypeAdapter(Price)


def _by_type(sent: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """First the one shape whose `type` it is; if it is not that, all seven of them say what is wrong."""
    kind = _PRICES.get(sent["type"]) if isinstance(sent, dict) and isinstance(sent.get("type"), str) else None
    if kind is not None:
        with suppress(ValidationError):
            return kind.validate_python(sent)
    return validate(sent)


_PRICES = {get_args(get_type_hints(kind)["type"])[0]: TypeAdapter(kind) for kind in get_args(Price)}
SentPrice = Annotated[Price, WrapValidator(_by_type), PlainSerializer(price_body, when_used="json")]


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

    config: NotRequired[SpelledTaxConfig]
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
    createdAt: datetime
    updatedAt: datetime
    managedBy: Literal["subscription", "manual"]
    status: Literal["valid"]
    currency: str
    period: PeriodBody
    invoiceAt: datetime
    taxes: NotRequired[list[LineTaxBody]]
    taxConfig: NotRequired[SpelledTaxConfig]
    featureKey: NotRequired[str]
    price: NotRequired[Annotated[dict[str, Any], SpelledAs(SentPrice)]]
    rateCard: Annotated[dict[str, Any], SpelledAs(UsageBasedRateCard)]
    quantity: str
    meteredQuantity: NotRequired[str]
    preLinePeriodQuantity: NotRequired[str]
    meteredPreLinePeriodQuantity: NotRequired[str]
    subscription: NotRequired[LineSubscription]
    children: list[DetailedLineBody]
    externalIds: NotRequired[ExternalIds]
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


class InvoiceWorkflow(Body):
    source_billing_profile_id: str
    workflow: Workflow
    apps: AppsOrReferences | None = None


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
    createdAt: datetime
    updatedAt: datetime
    deletedAt: NotRequired[datetime]
    supplier: Party
    customer: InvoiceCustomer
    number: str
    currency: str
    preceding: NotRequired[list[PrecedingBody]]
    totals: TotalsBody
    status: InvoiceStatus
    statusDetails: StatusDetails
    issuedAt: NotRequired[datetime]
    draftUntil: NotRequired[datetime]
    quantitySnapshotedAt: NotRequired[datetime]
    collectionAt: NotRequired[datetime]
    dueAt: NotRequired[datetime]
    voidedAt: NotRequired[datetime]
    sentToCustomerAt: NotRequired[datetime]
    period: NotRequired[PeriodBody]
    workflow: InvoiceWorkflow
    validationIssues: NotRequired[list[ValidationIssueBody]]
    externalIds: NotRequired[ExternalIds]
    lines: NotRequired[list[LineBody]]


class InvoicePage(Page):
    items: list[InvoiceBody]


def _model(part: object) -> Any:
    """What an invoice has few of is a pydantic model."""
    if isinstance(part, BaseModel):
        return part.model_dump(mode="json", by_alias=True, exclude_none=True)
    raise NotImplementedError(f"{type(part).__name__} is not spelled for the wire")


_encoder = msgspec.json.Encoder(enc_hook=_model, decimal_format="number")


def invoice_response(invoice: InvoiceBody) -> Response:
    """As FastAPI would send it, in a tenth of the time: it has its shape, and is not asked whether it has."""
    return Response(_encoder.encode(invoice), media_type="application/json")


def invoices_response(items: list[InvoiceBody], *, total_count: int, page: int, page_size: int) -> Response:
    content = {"totalCount": total_count, "page": page, "pageSize": page_size, "items": items}
    return Response(_encoder.encode(content), media_type="application/json")


def customer_body(customer: Customer) -> InvoiceCustomer:
    return InvoiceCustomer(
        id=customer.id,
        key=customer.key,
        name=customer.name,
        addresses=[customer.billing_address] if customer.billing_address else None,
        usage_attribution=UsageAttributionBody(subject_keys=customer.subject_keys),
    )
