"""Simulation: /api/v1/billing/customers/{id}/invoices/simulate, what given quantities would cost.

OpenMeter's shape; `groups`, `events` and the rate card's `unitConfig` are our own. Nothing is stored, and no
feature or meter is asked: the caller brings the quantities.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Self

from fastapi import APIRouter
from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from api.http.auth import reader
from api.http.body import Body, ExactRoute, Instant, Metadata
from api.http.invoice_body import (
    InvoiceBody,
    StatusDetails,
    Ulid,
    UsageBasedRateCard,
    customer_body,
    invoice_response,
    span,
)
from api.http.rated_line import RatedLine, line_body, totals_body
from api.http.session import Now, Transaction
from api.http.stored_invoice import party_body, workflow_body
from billing.contracts.customer import Customer, get_customer
from billing.profiles.profile import BillingProfile, profiles_of
from billing.rating.rater import NO_DISCOUNTS, Rating
from billing.rating.simulation import EventUsage, GroupUsage, InvalidSimulationError, SimulatedLine, simulate
from catalog.price import Price
from catalog.tax import TaxConfig
from metering.errors import InvalidError, Issue
from metering.ids import derived_id
from metering.period import Period
from metering.wire import Numeric, camel

__all__ = ["PeriodInput", "refuse_contradictions", "router", "taxed"]

router = APIRouter(prefix="/api/v1/billing/customers", tags=["Invoices"], route_class=ExactRoute)

NUMBER = "SIMULATION"
DEPRECATED = ("price", "feature_key", "tax_config")
"""Members of a line that its rate card has, too."""


class PeriodInput(Body):
    from_: Instant
    to: Instant

    @model_validator(mode="after")
    def _forwards(self) -> Self:
        if self.from_ > self.to:
            raise PydanticCustomError("period_invalid", "a period can't end before it starts")
        return self

    @property
    def value(self) -> Period:
        return Period(start=self.from_, end=self.to)


class GroupInput(Body):
    dimensions: dict[str, str | None]
    quantity: Numeric


class EventInput(Body):
    value: Numeric
    count: Annotated[int, Field(ge=1, le=10**18)] = 1


class InvoiceSimulationLine(Body):
    """Only one line of the service period, or one after `preLinePeriodQuantity`; always its last.

    `price`, `featureKey` and `taxConfig` beside the rate card are deprecated. Who sends both sends the same.
    """

    id: Ulid | None = None
    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    description: Annotated[str, StringConstraints(max_length=1024)] | None = None
    metadata: Metadata | None = None
    period: PeriodInput
    invoice_at: Instant
    quantity: Numeric
    pre_line_period_quantity: Numeric | None = None
    rate_card: UsageBasedRateCard | None = None
    price: Annotated[Price | None, Field(deprecated=True)] = None
    feature_key: Annotated[str | None, Field(deprecated=True)] = None
    tax_config: Annotated[TaxConfig | None, Field(deprecated=True)] = None
    groups: Annotated[
        list[GroupInput] | None,
        Field(description="what the quantity is made of, for a matrix and for tiers with groupBy"),
    ] = None
    events: Annotated[
        list[EventInput] | None,
        Field(description="the values that the quantity is made of, for a percentage of each"),
    ] = None


class InvoiceSimulationInput(Body):
    number: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    currency: str
    lines: list[InvoiceSimulationLine]


@router.post(
    "/{customerId}/invoices/simulate",
    operation_id="simulateInvoice",
    dependencies=[reader],
    response_model=InvoiceBody,
)
def simulate_invoice(
    session: Transaction,
    now: Now,
    customerId: str,  # noqa: N803  the wire's name
    body: InvoiceSimulationInput,
) -> Response:
    """What the customer would be billed for these lines."""
    customer = get_customer(session, customerId)
    customer.require_living()
    if issues := [issue for i, line in enumerate(body.lines) for issue in _issues(line, f"$.lines[{i}]")]:
        raise InvalidSimulationError(issues[0].message, *issues)
    profile = profiles_of(session, [customer.id])[customer.id]
    return invoice_response(_invoice(customer, profile, body, now))


def _invoice(
    customer: Customer, profile: BillingProfile, body: InvoiceSimulationInput, now: datetime
) -> InvoiceBody:
    cards = [_card(line) for line in body.lines]
    lines = [_simulated(line, card) for line, card in zip(body.lines, cards, strict=True)]
    found = simulate(currency=body.currency, lines=lines)
    rated = [
        _rated(
            line, card, rating, identity=(customer.id, "simulation", str(i)), currency=body.currency, now=now
        )
        for i, (line, card, rating) in enumerate(zip(body.lines, cards, found.ratings, strict=True))
    ]
    return {
        "type": "standard",
        "id": derived_id(customer.id, "simulation"),
        "createdAt": now,
        "updatedAt": now,
        "supplier": party_body(profile.supplier),
        "customer": customer_body(customer),
        "number": body.number or NUMBER,
        "currency": body.currency,
        "totals": totals_body(found.totals, body.currency),
        "status": "draft",
        "statusDetails": StatusDetails(extended_status="draft.created"),
        "period": span(line.period for line in rated),
        "workflow": workflow_body(profile.id, profile.app_id, profile.workflow),
        "lines": [line_body(line) for line in rated],
    }


def _issues(line: InvoiceSimulationLine, path: str) -> Iterator[Issue]:
    if line.rate_card is not None:
        yield from _contradictions(line, line.rate_card, path)
    elif line.price is None:
        hint = "Its price may be null, which is free."
        yield Issue(code="field_required", message="this is required", field=f"{path}.rateCard", hint=hint)


def _contradictions(line: Body, card: UsageBasedRateCard, path: str) -> Iterator[Issue]:
    """What a line says beside its rate card, and otherwise: to follow one would be to ignore the other."""
    for field in DEPRECATED:
        if field not in line.model_fields_set:
            continue
        beside, name = getattr(line, field), camel(field)
        if beside is not None and beside != getattr(card, field):
            message = f"{name} is not what the rate card says"
            hint = f"It is deprecated here: say it in rateCard.{name} only."
            yield Issue(code="rate_card_contradicted", message=message, field=f"{path}.{name}", hint=hint)


def refuse_contradictions(lines: Iterable[tuple[Body, UsageBasedRateCard | None]]) -> None:
    """Of the lines of a body, each with its rate card: for those that are to be written."""
    issues = [
        issue
        for i, (line, card) in enumerate(lines)
        if card is not None
        for issue in _contradictions(line, card, f"$.lines[{i}]")
    ]
    if issues:
        raise InvalidError(issues[0].message, *issues)


def taxed(card: UsageBasedRateCard, beside: TaxConfig | None) -> UsageBasedRateCard:
    """With the tax that its line says beside it, unless it says one itself."""
    return card.model_copy(update={"tax_config": card.tax_config or beside})


def _card(line: InvoiceSimulationLine) -> UsageBasedRateCard:
    return line.rate_card or UsageBasedRateCard(
        feature_key=line.feature_key, tax_config=line.tax_config, price=line.price
    )


def _simulated(line: InvoiceSimulationLine, card: UsageBasedRateCard) -> SimulatedLine:
    return SimulatedLine(
        id=line.id,
        name=line.name,
        price=card.price,
        price_path="price" if line.rate_card is None else "rateCard.price",
        discounts=card.discounts.value if card.discounts else NO_DISCOUNTS,
        unit_config=card.unit_config,
        quantity=line.quantity,
        quantity_before=line.pre_line_period_quantity or Decimal(0),
        groups=[GroupUsage(dimensions=g.dimensions, quantity=g.quantity) for g in line.groups or ()],
        events=[EventUsage(value=event.value, count=event.count) for event in line.events or ()],
    )


def _rated(
    line: InvoiceSimulationLine,
    card: UsageBasedRateCard,
    rating: Rating,
    *,
    identity: tuple[str, ...],
    currency: str,
    now: datetime,
) -> RatedLine:
    return RatedLine(
        identity=identity,
        id=line.id,
        name=line.name,
        description=line.description,
        metadata=line.metadata,
        managed_by="manual",
        currency=currency,
        created_at=now,
        updated_at=now,
        period=line.period.value,
        invoice_at=line.invoice_at,
        rate_card=card,
        metered=line.quantity,
        metered_before=line.pre_line_period_quantity or Decimal(0),
        rating=rating,
    )
