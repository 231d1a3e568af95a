"""The gathering invoice: what a customer would be billed, computed whenever somebody asks, never stored.

Live usage goes through the one rater over the contract's timeline, so the preview and the invoice that will
be issued can't disagree.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from billing.customer import Customer, customers_by_id
from billing.pricing import Usage
from billing.rating import DetailedLine, Rating, Totals, add_totals, rate
from billing.subscriptions import Subscription, subscriptions_of
from billing.timeline import Charge, charges
from catalog.features import Feature, features_by_id
from catalog.price import FlatPrice
from metering.meter import UsageQuery
from metering.usage import query_usage

__all__ = ["GatheringInvoice", "GatheringLine", "gathering_customers", "gathering_invoices"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheringLine:
    """A charge with its metered quantity, priced. A fee has no quantity."""

    charge: Charge
    feature: Feature | None
    quantity: Decimal | None
    rating: Rating

    @property
    def details(self) -> tuple[DetailedLine, ...]:
        return self.rating.details

    @property
    def totals(self) -> Totals:
        return self.rating.totals


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheringInvoice:
    """All that one customer would pay: in one currency, which the first priced subscription settles."""

    customer: Customer
    currency: str
    since: datetime
    lines: tuple[GatheringLine, ...]
    totals: Totals


def gathering_customers(
    session: Session, *, customer_ids: Sequence[str], at: datetime, offset: int, limit: int
) -> tuple[list[Customer], int]:
    """One page of the customers who have a gathering invoice at `at`, by id, and how many there are."""
    begun = select(Subscription.customer_id).where(Subscription.active_from <= at).distinct()
    begun = begun.where(Subscription.customer_id.in_(customer_ids)) if customer_ids else begun
    count = session.scalar(select(func.count()).select_from(begun.subquery())) or 0
    page = session.scalars(begun.order_by(Subscription.customer_id).offset(offset).limit(limit)).all()
    found = customers_by_id(session, page)
    return [found[customer_id] for customer_id in page], count


def gathering_invoices(
    session: Session, customers: Iterable[Customer], *, at: datetime, usage_until: datetime | None = None
) -> list[GatheringInvoice]:
    """What each customer would pay for all that has begun by `at`; none without a subscription by then.

    Usage counts up to `usage_until`; None counts all that is known of each period, events that a fast clock
    dated ahead included.
    """
    by_id = {customer.id: customer for customer in customers}
    signed: dict[str, list[Subscription]] = {}
    for subscription in subscriptions_of(session, by_id):
        if subscription.active_from <= at:
            signed.setdefault(subscription.customer_id, []).append(subscription)
    seen = _Seen(session, _features_of(session, signed.values()), at, usage_until)
    return [_invoice(seen, by_id[customer_id], signed[customer_id]) for customer_id in sorted(signed)]


@dataclass(frozen=True, slots=True)
class _Seen:
    """Where and when somebody looks."""

    session: Session
    features: Mapping[str, Feature]
    at: datetime
    usage_until: datetime | None


def _features_of(session: Session, contracts: Iterable[list[Subscription]]) -> dict[str, Feature]:
    items = (
        i for subscriptions in contracts for s in subscriptions for phase in s.phases for i in phase.items
    )
    return features_by_id(session, {item.feature_id for item in items if item.feature_id})


def _invoice(seen: _Seen, customer: Customer, subscriptions: Sequence[Subscription]) -> GatheringInvoice:
    due = [charge for signed in subscriptions for charge in charges(signed.contract, until=seen.at)]
    lines = tuple(_line(seen, customer, charge) for charge in due)
    return GatheringInvoice(
        customer=customer,
        currency=customer.currency or subscriptions[-1].currency,
        since=subscriptions[0].created_at,
        lines=lines,
        totals=add_totals(line.totals for line in lines),
    )


def _line(seen: _Seen, customer: Customer, charge: Charge) -> GatheringLine:
    feature = seen.features[charge.item.feature_id] if charge.item.feature_id else None
    fee = isinstance(charge.price, FlatPrice)
    quantity = None if fee else _usage(seen, customer, charge, feature)
    rating = rate(charge.terms, Usage(quantity=quantity or Decimal(0)))
    return GatheringLine(charge=charge, feature=feature, quantity=quantity, rating=rating)


def _usage(seen: _Seen, customer: Customer, charge: Charge, feature: Feature | None) -> Decimal:
    """The feature's quantity in the charge's period; none of its events is nought."""
    end = min(charge.period.end, seen.usage_until or charge.period.end)
    if feature is None or feature.meter is None or end <= charge.period.start:
        return Decimal(0)
    query = UsageQuery(
        start=charge.period.start, end=end, subjects=customer.usage_subjects, filters=feature.filters
    )
    rows = query_usage(seen.session, feature.meter.definition, query)
    return rows[0].value if rows else Decimal(0)
