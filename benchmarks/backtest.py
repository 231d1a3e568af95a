"""How long a plan takes to be priced over a month of 10,000 customers, and how much memory it needs."""

import resource
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from psycopg import sql
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from api import clock
from benchmarks.queries import settled
from benchmarks.seed import DAYS, seed
from benchmarks.stage import Server, connect, place, postgres
from benchmarks.traffic import METER, MODELS, subject
from billing.contracts.customer import get_customer
from billing.contracts.customer_changes import CustomerDetails, create_customer
from billing.contracts.subscriptions import create_subscription
from billing.reports.backtest import BacktestSummary, backtest
from catalog.features import create_feature
from catalog.interval import parse_interval
from catalog.plans import Plan, create_plan, publish_plan
from catalog.price import (
    MatrixCell,
    MatrixPrice,
    PriceTier,
    TieredPrice,
    TierUnitPrice,
    UnitPrice,
    UsagePrice,
)
from catalog.rate_card import Phase, UsageBasedRateCard
from metering.period import midnight_of

MONTH = timedelta(days=31)
FEATURE = "tokens"
OWN = "unit"
"""The price that all customers have."""


@dataclass(frozen=True)
class Tested:
    """`events` is how many lie in the month, `growth` how many MB of memory it took at most."""

    price: str
    customers: int
    events: int
    seconds: float
    growth: float
    unchanged: int


def backtests(*, customers: int, events: int) -> list[Tested]:
    """Of the very plan that all have, and of two others: tiers, and a price for each model."""
    with place() as directory, postgres(directory) as url:
        start = midnight_of(clock.now()) - MONTH - timedelta(days=1)
        with Server(url) as server, connect(url) as connection:
            server.add_meter()
            seed(url, count=events * DAYS // MONTH.days, subjects=customers)
            plans = _plans(url, customers, start)
            if not settled(connection, seconds=1200):
                print("  the cubes are not complete: questions are answered from hours or raw events")
            connection.execute("VACUUM (ANALYZE)")
        return [_tested(url, name, plan_id, start) for name, plan_id in plans.items()]


def _tested(url: str, name: str, plan_id: str, start: datetime) -> Tested:
    engine = create_engine(url, connect_args={"options": "-c timezone=UTC"})
    summary, before, began = BacktestSummary(), _peak(), time.perf_counter()
    with Session(engine) as session:
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        plan = session.get_one(Plan, plan_id)
        end = parse_interval("P1M").after(start)
        for part in backtest(session, plan, start=start, end=end, now=clock.now()).parts(session):
            for row in part.rows:
                summary.add(row)
    took = time.perf_counter() - began
    engine.dispose()
    return Tested(
        price=name,
        customers=summary.customers,
        events=_events(url, start, end),
        seconds=took,
        growth=_peak() - before,
        unchanged=summary.unchanged,
    )


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _events(url: str, start: datetime, end: datetime) -> int:
    count = sql.SQL("SELECT count(*) FROM events WHERE time >= {} AND time < {}").format(start, end)
    with connect(url) as connection:
        return int(connection.execute(count).fetchall()[0][0])


# -- Who pays what -------------------------------------------------------------------------------------------


def _plans(url: str, customers: int, start: datetime) -> dict[str, str]:
    """The ids of the plans; every customer has the first one since `start`."""
    engine = create_engine(url, connect_args={"options": "-c timezone=UTC"})
    now = clock.now()
    with Session(engine) as session, session.begin():
        create_feature(session, key=FEATURE, name=FEATURE, meter_slug=METER["slug"], now=start)
        plans = {name: _plan(session, name, price, start) for name, price in _prices().items()}
        details = CustomerDetails(name="Customer", subject_keys=(subject(0),))
        customer = get_customer(session, create_customer(session, details, now=now).id, lock=True)
        create_subscription(session, customer=customer, plan=plans[OWN], active_from=start, now=now)
        ids = {name: plan.id for name, plan in plans.items()}
    engine.dispose()
    with connect(url) as connection:
        for table, changes in _COPIES.items():
            connection.execute(_COPY.format(table=table, changes=changes), {"last": customers - 1})
    return ids


_COPY = """
    INSERT INTO {table} SELECT (jsonb_populate_record(one, jsonb_build_object({changes}))).*
    FROM {table} AS one, generate_series(1, %(last)s) AS number"""


def _numbered(*names: str) -> str:
    return ", ".join(f"'{name}', left(one.{name}, 20) || lpad(number::text, 6, '0')" for name in names)


_COPIES = {
    "customers": _numbered("id"),
    "subject_owners": _numbered("customer_id")
    + ", 'subject_key', left(one.subject_key, 9) || lpad(number::text, 4, '0')",
    "subscriptions": _numbered("id", "customer_id"),
    "subscription_phases": _numbered("id", "subscription_id"),
    "subscription_items": _numbered("id", "phase_id"),
}
"""The first customer becomes many: ids end in a number, and the subjects are those of the events."""


def _plan(session: Session, name: str, price: UsagePrice, start: datetime) -> Plan:
    card = UsageBasedRateCard(
        type="usage_based",
        key=FEATURE,
        name=FEATURE,
        feature_key=FEATURE,
        billing_cadence="P1M",
        price=price,
    )
    phase = Phase(key="main", name="main", rate_cards=(card,))
    draft = create_plan(
        session, key=name, name=name, currency="USD", billing_cadence="P1M", phases=(phase,), now=start
    )
    return publish_plan(session, draft, now=start)


def _prices() -> dict[str, UsagePrice]:
    ends = (100_000, 1_000_000, 10_000_000, None)
    tiers = tuple(
        PriceTier(
            up_to_amount=None if end is None else Decimal(end),
            unit_price=TierUnitPrice(type="unit", amount=Decimal(10 - n).scaleb(-6)),
        )
        for n, end in enumerate(ends)
    )
    cells = tuple(
        MatrixCell(
            values={"provider": provider, "model": model, "type": kind}, amount=Decimal(n + 1).scaleb(-6)
        )
        for n, (provider, model) in enumerate(MODELS)
        for kind in ("request", "response")
    )
    return {
        OWN: UnitPrice(type="unit", amount=Decimal("0.000005")),
        "tiers": TieredPrice(type="tiered", mode="graduated", tiers=tiers),
        "matrix": MatrixPrice(
            type="matrix",
            dimensions=("provider", "model", "type"),
            cells=cells,
            default_amount=Decimal("0.000005"),
        ),
    }
