"""What tokens of language models cost: list prices that come with this release, and prices set by hand.

List prices are facts in llm_price_facts.py and are not stored: a database of any age has those of the release
that runs on it. Prices set by hand (overrides) are rows. Of several that hold at an instant, one set by hand
goes first, and among those the one that began last, so that a newer one cuts an older; two can't begin at the
same instant, which a unique constraint sees to.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cache

from sqlalchemy import CheckConstraint, UniqueConstraint, select, tuple_
from sqlalchemy.orm import Mapped, Session, mapped_column

from catalog.llm_price_facts import FACTS, STATED_AT
from catalog.unit_cost import (
    LlmPrice,
    LlmPricing,
    LlmUnitCost,
    Pricer,
    PriceSource,
    UnitCost,
    check_amounts,
    model_id,
    model_of,
    provider_id,
)
from metering.database import Base, Id, Instant, ValueType, translating
from metering.errors import ConflictError, InvalidError, Issue, NotFoundError
from metering.ids import derived_id, new_id

__all__ = [
    "PriceExistsError",
    "PriceNotFoundError",
    "create_override",
    "delete_override",
    "get_price",
    "list_prices",
    "prices_of",
    "pricing_of",
    "system_prices",
]

MAX_NAME_LENGTH = 256


class Override(Base):
    __tablename__ = "llm_cost_overrides"
    __table_args__ = (
        UniqueConstraint("provider", "model", "effective_from"),
        CheckConstraint("effective_from < effective_to", name="period"),
    )

    id: Mapped[Id] = mapped_column(primary_key=True)
    provider: Mapped[str]
    model: Mapped[str]
    model_name: Mapped[str]
    pricing: Mapped[LlmPricing] = mapped_column(ValueType(LlmPricing))
    effective_from: Mapped[Instant]
    effective_to: Mapped[Instant | None]
    created_at: Mapped[Instant]
    updated_at: Mapped[Instant]

    @property
    def price(self) -> LlmPrice:
        return LlmPrice(
            id=self.id,
            provider=self.provider,
            model=self.model,
            model_name=self.model_name,
            pricing=self.pricing,
            source="manual",
            effective_from=self.effective_from,
            effective_to=self.effective_to,
            created_at=self.created_at,
            updated_at=self.updated_at,
        )


class PriceNotFoundError(NotFoundError):
    pass


class PriceExistsError(ConflictError):
    pass


@cache
def system_prices() -> tuple[LlmPrice, ...]:
    """The list prices of this release."""
    return tuple(
        LlmPrice(
            id=derived_id("llm-price", fact.provider, model, fact.since.isoformat()),
            provider=fact.provider,
            model=model,
            model_name=model,
            pricing=fact.pricing,
            source="system",
            effective_from=fact.since,
            effective_to=fact.until,
            created_at=STATED_AT,
            updated_at=STATED_AT,
        )
        for fact in FACTS
        for model in fact.models
    )


def prices_of(session: Session, models: Iterable[tuple[str, str]]) -> list[LlmPrice]:
    """All prices of these models, whenever they hold; each is named as unit_cost.model_of does."""
    asked = set(models)
    rows = session.scalars(select(Override).where(tuple_(Override.provider, Override.model).in_(asked)))
    listed = (price for price in system_prices() if (price.provider, price.model) in asked)
    return [*(row.price for row in rows), *listed]


def pricing_of(
    session: Session, costs: Mapping[str, UnitCost | None], *, at: datetime
) -> dict[str, LlmPricing]:
    """The pricing at that instant of each unit cost whose provider and model are fixed and known."""
    fixed = {
        name: cost
        for name, cost in costs.items()
        if isinstance(cost, LlmUnitCost) and cost.provider is not None and cost.model is not None
    }
    prices = prices_of(session, (model_of(cost, {}) for cost in fixed.values())) if fixed else []
    found = {name: Pricer(cost, prices).price({}, at) for name, cost in fixed.items()}
    return {name: price.pricing for name, price in found.items() if price is not None}


def list_prices(
    session: Session,
    *,
    provider: str | None = None,
    model: str | None = None,
    source: PriceSource | None = None,
    at: datetime | None = None,
) -> list[LlmPrice]:
    """By provider, model and beginning. With `at`, only the one price of each model that applies then."""
    rows = session.scalars(select(Override)) if source != "system" else ()
    found = [*(row.price for row in rows), *(system_prices() if source != "manual" else ())]
    if provider is not None:
        found = [price for price in found if price.provider == provider_id(provider)]
    if model is not None:
        found = [price for price in found if price.model == model_id(price.provider, model)]
    if at is not None:
        found = _applying(found, at)
    return sorted(found, key=lambda price: (price.provider, price.model, price.effective_from, price.source))


def _applying(prices: Iterable[LlmPrice], at: datetime) -> list[LlmPrice]:
    holding = sorted((price for price in prices if price.holds(at)), key=lambda price: price.rank)
    return list({(price.provider, price.model): price for price in holding}.values())


def get_price(session: Session, price_id: str) -> LlmPrice:
    """Listed, or set by hand."""
    if row := session.get(Override, price_id):
        return row.price
    for price in system_prices():
        if price.id == price_id:
            return price
    raise PriceNotFoundError(f"no price {price_id!r}")


def create_override(
    session: Session,
    *,
    provider: str,
    model: str,
    model_name: str | None = None,
    pricing: LlmPricing,
    currency: str,
    effective_from: datetime,
    effective_to: datetime | None = None,
    now: datetime,
) -> LlmPrice:
    """From `effective_from` on, also in the past: what usage cost then is another amount when next asked."""
    issues = [
        *_name_issues({"$.provider": provider, "$.modelId": model}),
        *check_amounts(pricing, "$.pricing"),
        *_currency_issues(currency),
        *_period_issues(effective_from, effective_to),
    ]
    if issues:
        raise InvalidError(issues[0].message, *issues)
    row = Override(
        id=new_id(now),
        provider=provider_id(provider),
        model=model_id(provider, model),
        model_name=model_name or model,
        pricing=pricing,
        effective_from=effective_from,
        effective_to=effective_to,
        created_at=now,
        updated_at=now,
    )
    message = f"a price of {row.model!r} of {row.provider!r} begins at that instant already"
    hint = "Delete it first (DELETE /api/v1/llm-cost/overrides/{id}), or begin at another instant."
    taken = Issue(code="llm_price_exists", message=message, field="$.effectiveFrom", hint=hint)
    session.add(row)
    name = "llm_cost_overrides_provider_model_effective_from_key"
    with translating({name: PriceExistsError(message, taken)}):
        session.flush()
    return row.price


def _name_issues(names: dict[str, str]) -> Iterable[Issue]:
    for where, name in names.items():
        if not 0 < len(name.strip()) <= MAX_NAME_LENGTH:
            message = f"a name has 1 to {MAX_NAME_LENGTH} characters"
            hint = "Name it as events do: the text in the meter's dimension."
            yield Issue(code="invalid_name", message=message, field=where, hint=hint)


def _currency_issues(currency: str) -> Iterable[Issue]:
    if currency != "USD":
        message = f"costs are kept in USD, not in {currency!r}"
        yield Issue(code="currency_invalid", message=message, field="$.currency", hint="Convert the amounts.")


def _period_issues(start: datetime, end: datetime | None) -> Iterable[Issue]:
    if end is not None and end <= start:
        message = "effectiveTo must be after effectiveFrom"
        hint = "Leave it out for a price that holds until further notice."
        yield Issue(code="empty_period", message=message, field="$.effectiveTo", hint=hint)


def delete_override(session: Session, price_id: str) -> None:
    """As if it had never been: what it covered holds again."""
    row = session.get(Override, price_id)
    if row is None:
        raise PriceNotFoundError(f"no price {price_id!r} was set by hand")
    session.delete(row)
    session.flush()
