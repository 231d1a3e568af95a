"""Charges as a whole, whatever was billed of them: what reports compare."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy.orm import Session

from billing.contracts.customer import Customer
from billing.rating.metered import Demand, usage_of
from billing.rating.pricing import NOTHING, Usage
from billing.rating.rater import Rating, Totals, rate
from billing.rating.timeline import Charge
from catalog.features import Feature, features_by_id
from catalog.price import FlatPrice
from metering.period import Period

__all__ = ["CustomerCharge", "PricedCharge", "priced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerCharge:
    """A charge and who pays it."""

    customer: Customer
    charge: Charge


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedCharge:
    """A charge with its metered quantity, priced. A fee has no quantity."""

    charge: Charge
    feature: Feature | None
    quantity: Decimal | None
    rating: Rating

    @property
    def totals(self) -> Totals:
        return self.rating.totals


def priced(
    session: Session, charges: Sequence[CustomerCharge], *, usage_until: datetime | None = None
) -> list[PricedCharge]:
    """What each comes to as a whole, whatever was billed of it; an open period as if it ended now.

    Its usage counts as far as it is known, and before `usage_until`.
    """
    named = (one.charge.item.feature_id for one in charges)
    features = features_by_id(session, {feature_id for feature_id in named if feature_id})
    usage = usage_of(session, [_demand(one, features, usage_until) for one in charges])
    return [_priced(one.charge, features, used) for one, used in zip(charges, usage, strict=True)]


def _demand(one: CustomerCharge, features: Mapping[str, Feature], usage_until: datetime | None) -> Demand:
    start, end = one.charge.period.start, one.charge.period.end
    return Demand(
        customer_id=one.customer.id,
        subjects=one.customer.usage_subjects,
        feature=_feature(one.charge, features),
        price=one.charge.price,
        period=Period(start=start, end=end if usage_until is None else max(start, min(end, usage_until))),
    )


def _feature(charge: Charge, features: Mapping[str, Feature]) -> Feature | None:
    return features[charge.item.feature_id] if charge.item.feature_id else None


def _priced(charge: Charge, features: Mapping[str, Feature], usage: Usage) -> PricedCharge:
    fee = isinstance(charge.price, FlatPrice)
    return PricedCharge(
        charge=charge,
        feature=_feature(charge, features),
        quantity=None if fee else usage.quantity,
        rating=rate(charge.terms, NOTHING if fee else usage),
    )
