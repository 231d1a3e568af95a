"""Backtest: what a plan would have billed for the real usage of a past window, against what was billed.

Both sides are priced by the one rater. The plan is taken as if every customer had signed up to it at the
window's start, anchored there. What was billed is what the customer's own subscriptions come to, which voids
and credits by hand don't change. Of both, those charges count whose service period begins in the window.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from operator import attrgetter
from typing import Any, Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from billing.contracts.customer import Customer, customers_by_id
from billing.contracts.edits import ContractSpec, spec_of
from billing.contracts.subscriptions import subscriptions_of
from billing.rating.timeline import Charge, Contract, ContractItem, charges
from billing.reports.priced_charges import CustomerCharge, PricedCharge, priced
from catalog.interval import parse_interval
from catalog.issues import barring
from catalog.plans import Plan, plan_issues, plan_terms
from metering.errors import InvalidError, Issue
from metering.exact import EXACT, total
from metering.period import Period

__all__ = [
    "MAX_CUSTOMERS_NAMED",
    "Backtest",
    "BacktestCustomersError",
    "BacktestOrder",
    "BacktestPart",
    "BacktestPlanError",
    "BacktestRow",
    "BacktestSum",
    "BacktestSummary",
    "BacktestWindowError",
    "backtest",
    "in_order",
]

CUSTOMERS_AT_ONCE = 500
MAX_CUSTOMERS_NAMED = 10_000
MAX_CHARGES = 1000
"""Of the plan, for each customer."""
TICK = datetime.resolution
_LIVING = Customer.deleted_at.is_(None)


class BacktestWindowError(InvalidError):
    pass


class BacktestPlanError(InvalidError):
    pass


class BacktestCustomersError(InvalidError):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class BacktestRow:
    """One customer: `would_bill` in the plan's currency, `billed` in the customer's own.

    `difference` is what the plan would bring more; None where the two currencies differ.
    """

    customer_id: str
    customer_key: str | None
    customer_name: str
    would_bill: Decimal
    billed: Decimal
    billed_currency: str
    difference: Decimal | None


BacktestOrder = Literal["customer", "difference"]


def in_order(by: BacktestOrder, *, descending: bool) -> Callable[[BacktestRow], Any]:
    """A key to sort rows by, from the end if `descending`: those without a difference come last."""

    def by_difference(row: BacktestRow) -> tuple[Any, ...]:
        known = row.difference is not None
        return known is descending, row.difference or Decimal(0), row.customer_id

    return by_difference if by == "difference" else attrgetter("customer_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class BacktestPart:
    """The rows of some customers; `looked_at` counts those with nothing to compare as well."""

    looked_at: int
    rows: tuple[BacktestRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BacktestSum:
    """The sum of all rows that were billed in one currency."""

    customers: int = 0
    would_bill: Decimal = Decimal(0)
    billed: Decimal = Decimal(0)
    difference: Decimal | None = Decimal(0)

    def plus(self, row: BacktestRow) -> "BacktestSum":
        return BacktestSum(
            customers=self.customers + 1,
            would_bill=EXACT.add(self.would_bill, row.would_bill),
            billed=EXACT.add(self.billed, row.billed),
            difference=_sum(self.difference, row.difference),
        )


def _sum(one: Decimal | None, other: Decimal | None) -> Decimal | None:
    return None if one is None or other is None else EXACT.add(one, other)


@dataclass(slots=True, kw_only=True)
class BacktestSummary:
    """Counts and sums of the rows seen so far. Winners would pay less, losers more."""

    winners: int = 0
    losers: int = 0
    unchanged: int = 0
    incomparable: int = 0
    sums: dict[str, BacktestSum] = field(default_factory=dict)

    @property
    def customers(self) -> int:
        return self.winners + self.losers + self.unchanged + self.incomparable

    def add(self, row: BacktestRow) -> None:
        self.sums[row.billed_currency] = self.sums.get(row.billed_currency, BacktestSum()).plus(row)
        match row.difference:
            case None:
                self.incomparable += 1
            case difference if difference < 0:
                self.winners += 1
            case difference if difference > 0:
                self.losers += 1
            case _:
                self.unchanged += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Backtest:
    """A plan's charges in a window, the same for every customer; `of_customers` None means all."""

    plan: Plan
    window: Period
    charges: tuple[Charge, ...]
    of_customers: tuple[str, ...] | None
    customer_count: int

    def parts(self, session: Session) -> Iterator[BacktestPart]:
        """All rows by the customer's id, in parts, so that memory doesn't grow with their number."""
        for ids in self._portions(session):
            customers = customers_by_id(session, ids)
            yield BacktestPart(looked_at=len(ids), rows=tuple(_rows(session, self, customers)))

    def _portions(self, session: Session) -> Iterator[Sequence[str]]:
        if self.of_customers is not None:
            named = sorted(self.of_customers)
            yield from (named[i : i + CUSTOMERS_AT_ONCE] for i in range(0, len(named), CUSTOMERS_AT_ONCE))
            return
        after = ""
        while ids := _ids_after(session, after):
            yield ids
            after = ids[-1]


def backtest(
    session: Session,
    plan: Plan,
    *,
    start: datetime,
    end: datetime,
    customer_ids: Sequence[str] | None = None,
    now: datetime,
) -> Backtest:
    """Check what is asked; `parts` of the answer then computes it.

    None asks for every living customer who had a subscription in the window, or usage of what the plan
    charges for.
    """
    _require_past(start, end, now)
    named = None if customer_ids is None else tuple(dict.fromkeys(customer_ids))
    _require_known(session, named)
    window = Period(start=start, end=end)
    return Backtest(
        plan=plan,
        window=window,
        charges=tuple(_charges_of_plan(plan, window, _feature_ids(session, plan, now))),
        of_customers=named,
        customer_count=_count(session) if named is None else len(named),
    )


# -- What is asked -------------------------------------------------------------------------------------------


def _require_past(start: datetime, end: datetime, now: datetime) -> None:
    if start >= end:
        message = "from must be before to"
        raise BacktestWindowError(message, Issue(code="empty_period", message=message, field="$.to"))
    if end > now:
        message = "a backtest looks at what has been: to lies in the future"
        hint = "Take an instant that is over, for example the start of this month."
        raise BacktestWindowError(
            message, Issue(code="window_not_over", message=message, field="$.to", hint=hint)
        )


def _feature_ids(session: Session, plan: Plan, now: datetime) -> Mapping[str, str]:
    """The features by key: those a published version pins, or that a draft would pin if it were published.

    Raises BacktestPlanError where something bars its publication: a price whose feature has no meter would
    come to nothing, and look like a gift.
    """
    if plan.status(now) == "draft" and (issues := barring(plan_issues(session, plan))):
        raise BacktestPlanError(f"the plan can't be tested: {issues[0].message}", *issues)
    return plan_terms(session, plan, now=now).feature_ids


def _require_known(session: Session, ids: Sequence[str] | None) -> None:
    if ids is None:
        return
    if len(ids) > MAX_CUSTOMERS_NAMED:
        message = f"at most {MAX_CUSTOMERS_NAMED} customers can be named"
        issue = Issue(code="too_many_customers", message=message, field="$.customerIds", hint="Name none.")
        raise BacktestCustomersError(message, issue)
    known = set(session.scalars(select(Customer.id).where(_LIVING, Customer.id.in_(ids))))
    issues = [_unknown(id_, i) for i, id_ in enumerate(ids) if id_ not in known]
    if issues:
        raise BacktestCustomersError(issues[0].message, *issues)


def _unknown(id_: str, position: int) -> Issue:
    return Issue(
        code="customer_not_found",
        message=f"no customer {id_!r}",
        field=f"$.customerIds[{position}]",
        hint="Name customers by id; a deleted one owns no usage.",
    )


def _ids_after(session: Session, after: str) -> Sequence[str]:
    living = select(Customer.id).where(_LIVING, Customer.id > after)
    return session.scalars(living.order_by(Customer.id).limit(CUSTOMERS_AT_ONCE)).all()


def _count(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(Customer).where(_LIVING)) or 0


# -- The plan's side -----------------------------------------------------------------------------------------


def _charges_of_plan(plan: Plan, window: Period, feature_ids: Mapping[str, str]) -> Sequence[Charge]:
    found = _within(window, _contract(plan, window.start, feature_ids))
    if len(found) > MAX_CHARGES:
        message = f"the plan has {len(found)} charges in the window for each customer, at most {MAX_CHARGES}"
        issue = Issue(
            code="too_many_charges", message=message, field="$.to", hint="Look at a shorter window."
        )
        raise BacktestWindowError(message, issue)
    return found


def _within(window: Period, contract: Contract) -> list[Charge]:
    return charges(contract, since=window.start, until=window.end - TICK)


def _contract(plan: Plan, start: datetime, feature_ids: Mapping[str, str]) -> Contract:
    """As if somebody had signed up then."""
    return Contract(
        subscription_id=plan.id,
        currency=plan.currency,
        billing_anchor=start,
        billing_cadence=parse_interval(plan.billing_cadence),
        prorate=plan.pro_rating,
        items=tuple(_items(spec_of(plan.phases, start=start, feature_ids=feature_ids))),
    )


def _items(spec: ContractSpec) -> Iterator[ContractItem]:
    for phase in spec.phases:
        for item in phase.items:
            yield ContractItem(
                id=f"{phase.key}/{item.key}",
                phase_id=phase.key,
                phase_key=phase.key,
                key=item.key,
                version=item.version,
                rate_card=item.rate_card,
                feature_id=item.feature_id,
                start=item.start,
                end=item.end,
            )


# -- Both sides ----------------------------------------------------------------------------------------------


def _rows(session: Session, asked: Backtest, customers: Mapping[str, Customer]) -> Iterator[BacktestRow]:
    """By id. The usage of all of them, for both sides, is asked at once."""
    real: dict[str, list[Charge]] = {id_: [] for id_ in sorted(customers)}
    signed: set[str] = set()
    for subscription in subscriptions_of(session, customers):
        if subscription.active_from < asked.window.end and (
            subscription.active_to is None or subscription.active_to > asked.window.start
        ):
            signed.add(subscription.customer_id)
            real[subscription.customer_id] += _within(asked.window, subscription.contract)
    due = [
        CustomerCharge(customer=customers[id_], charge=charge)
        for id_, own in real.items()
        for charge in (*asked.charges, *own)
    ]
    lines = iter(priced(session, due))
    for id_, own in real.items():
        would = [next(lines) for _ in asked.charges]
        billed = [next(lines) for _ in own]
        if asked.of_customers is not None or id_ in signed or any(line.quantity for line in would):
            yield _row(customers[id_], asked.plan.currency, would, billed)


def _row(
    customer: Customer, currency: str, would: Iterable[PricedCharge], billed: Sequence[PricedCharge]
) -> BacktestRow:
    paid_in = billed[0].charge.currency if billed else currency
    would_bill, was_billed = (total(line.totals.total for line in lines) for lines in (would, billed))
    return BacktestRow(
        customer_id=customer.id,
        customer_key=customer.key,
        customer_name=customer.name,
        would_bill=would_bill,
        billed=was_billed,
        billed_currency=paid_in,
        difference=EXACT.subtract(would_bill, was_billed) if paid_in == currency else None,
    )
