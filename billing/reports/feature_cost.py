"""What the usage of a feature cost, what it brought in, and the difference: computed when asked, exactly.

Usage is that of a meter query, narrowed to the feature. Where dimensions tell the price, it is asked by these
too and summed up again; where a price changes inside a window, it is cut there.

Revenue is what the rater makes of each customer's charges of this feature: what they had come to at the end
of the period, less what they had come to at its beginning. So it is given for whole customers over one
period, and not for windows, subjects or dimensions, which share tiers and minimums with others.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from itertools import pairwise

from sqlalchemy.orm import Session

from billing.contracts.customer import Customer, customers_by_id
from billing.contracts.subscriptions import subscriptions_of
from billing.rating.timeline import Charge, charges
from billing.reports.priced_charges import CustomerCharge, priced
from catalog.features import Feature
from catalog.llm_prices import prices_of
from catalog.unit_cost import CostRow, Part, Pricer, UnitCost, cost_rows, cuts, model_of
from metering.errors import InvalidError, Issue
from metering.exact import EXACT, total
from metering.filter_string import FilterString
from metering.meter import MeterDefinition, UsageQuery, UsageRow
from metering.period import Period
from metering.usage import query_usage

__all__ = ["CURRENCY", "FeatureCost", "NoUnitCostError", "Revenue", "feature_costs", "has_revenue"]

CURRENCY = "USD"
"""All costs are in it: it is what providers of models charge."""
MAX_CUTS = 100


class NoUnitCostError(InvalidError):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Revenue:
    """In the customer's currency, without taxes."""

    amount: Decimal
    currency: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureCost:
    """A row of usage with its cost, and for a whole customer with the revenue."""

    row: CostRow
    revenue: Revenue | None = None

    @property
    def margin(self) -> Decimal | None:
        """None where one of the two is unknown, or they are in two currencies."""
        if self.row.cost is None or self.revenue is None or self.revenue.currency != CURRENCY:
            return None
        return EXACT.subtract(self.revenue.amount, self.row.cost)


def feature_costs(
    session: Session, feature: Feature, query: UsageQuery, *, customer_ids: Sequence[str] = ()
) -> list[FeatureCost]:
    """The rows of a meter query, each with what it cost; `customer_ids` are those whose usage it is about.

    Raises NoUnitCostError where there is nothing to compute it by.
    """
    meter, cost = _measure(feature)
    rows = _cost_rows(session, meter, cost, _narrowed(query, feature.conditions))
    if not has_revenue(query):
        return [FeatureCost(row=row) for row in rows]
    return list(_with_revenue(session, feature, query, rows, customers_by_id(session, customer_ids)))


def _measure(feature: Feature) -> tuple[MeterDefinition, UnitCost]:
    if feature.meter is None or feature.unit_cost is None:
        message = f"the feature {feature.key!r} has no unit cost"
        hint = "Create the feature with unitCost, or set it: PATCH /api/v1/features/{featureId}."
        raise NoUnitCostError(message, Issue(code="no_unit_cost", message=message, hint=hint))
    return feature.meter.definition, feature.unit_cost


def _narrowed(query: UsageQuery, conditions: Mapping[str, FilterString]) -> UsageQuery:
    """Both what is asked and what makes the feature must hold."""
    both = dict(query.conditions)
    for name, condition in conditions.items():
        both[name] = FilterString(and_=(condition, both[name])) if name in both else condition
    return replace(query, conditions=both)


def _cost_rows(session: Session, meter: MeterDefinition, cost: UnitCost, query: UsageQuery) -> list[CostRow]:
    rows = query_usage(session, meter, query)
    told_by = [name for name in Pricer(cost).properties if name not in query.group_by]
    fine = replace(query, group_by=(*query.group_by, *told_by))
    fine_rows = query_usage(session, meter, fine) if told_by else rows
    pricer = Pricer(cost, prices_of(session, {model_of(cost, row.group) for row in fine_rows}))
    at = _cuts(pricer, query, fine_rows)
    parts = list(_cut(session, meter, fine, at)) if at else _parts(fine_rows, query.start)
    return cost_rows(pricer, rows, parts, windowed=query.window_size is not None)


def _cuts(pricer: Pricer, query: UsageQuery, rows: Iterable[UsageRow]) -> list[datetime]:
    """Windows may reach beyond what is asked; there, no usage is to be cut."""
    found = [
        at
        for at in cuts(pricer, rows)
        if (query.start is None or query.start < at) and (query.end is None or at < query.end)
    ]
    if len(found) > MAX_CUTS:
        message = f"prices change at more than {MAX_CUTS} instants inside windows of this period"
        hint = "Shorten the period, or take a windowSize such that prices change between windows."
        issue = Issue(code="too_many_price_changes", message=message, field="$.from", hint=hint)
        raise InvalidError(message, issue)
    return found


def _cut(
    session: Session, meter: MeterDefinition, query: UsageQuery, at: Iterable[datetime]
) -> Iterator[Part]:
    for start, end in pairwise([query.start, *at, query.end]):
        yield from _parts(query_usage(session, meter, replace(query, start=start, end=end)), start)


def _parts(rows: Iterable[UsageRow], start: datetime | None) -> list[Part]:
    """With the first instant of each: a window may have begun before what is asked."""
    return [Part(row=row, at=max(start or row.window.start, row.window.start)) for row in rows]


# -- Revenue -------------------------------------------------------------------------------------------------


def has_revenue(query: UsageQuery) -> bool:
    """Whether the rows are whole customers over one period."""
    whole = query.start is not None and query.end is not None and query.window_size is None
    narrowed = query.filters or query.conditions or query.subjects is not None or query.as_of is not None
    return whole and not narrowed and query.customers is not None and query.group_by == ("customer_id",)


def _with_revenue(
    session: Session,
    feature: Feature,
    query: UsageQuery,
    rows: Sequence[CostRow],
    customers: Mapping[str, Customer],
) -> Iterator[FeatureCost]:
    """Also of customers who paid and used nothing."""
    if query.start is None or query.end is None:
        return
    period = Period(start=query.start, end=query.end)
    found = _revenues(session, feature, customers, period)
    by_customer = {row.usage.group["customer_id"]: row for row in rows}
    for customer_id in sorted(by_customer.keys() | found.keys()):
        unused = UsageRow(window=period, group={"customer_id": customer_id}, value=Decimal(0))
        row = by_customer.get(customer_id) or CostRow(usage=unused, cost=Decimal(0))
        yield FeatureCost(row=row, revenue=found.get(customer_id))


def _revenues(
    session: Session, feature: Feature, customers: Mapping[str, Customer], period: Period
) -> dict[str, Revenue]:
    """Of those who have had the feature in the period for a price."""
    due = [
        CustomerCharge(customer=customers[signed.customer_id], charge=charge)
        for signed in subscriptions_of(session, customers)
        for charge in charges(signed.contract, until=period.end - datetime.resolution)
        if charge.item.feature_id == feature.id and _falls_in(charge, period)
    ]
    begun = [one for one in due if one.charge.period.start < period.start]
    now, before = _amounts(session, due, period.end), _amounts(session, begun, period.start)
    currencies = {one.customer.id: one.charge.currency for one in due}
    return {
        customer_id: Revenue(
            amount=EXACT.subtract(total(now[customer_id]), total(before.get(customer_id, ()))),
            currency=currency,
        )
        for customer_id, currency in currencies.items()
    }


def _falls_in(charge: Charge, period: Period) -> bool:
    """What ended before came to the same at both ends of the period."""
    return charge.period.end > period.start or charge.period.start >= period.start


def _amounts(session: Session, due: Sequence[CustomerCharge], until: datetime) -> dict[str, list[Decimal]]:
    amounts: dict[str, list[Decimal]] = {}
    for one, line in zip(due, priced(session, due, usage_until=until), strict=True):
        net = EXACT.subtract(line.totals.total, line.totals.taxes_exclusive)
        amounts.setdefault(one.customer.id, []).append(net)
    return amounts
