"""How long an invoice preview takes over HTTP, for a customer of some months and one of two years."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from http.client import HTTPConnection
from urllib.parse import urlencode

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from api import clock
from benchmarks.load import percentile
from benchmarks.queries import settled
from benchmarks.seed import seed
from benchmarks.stage import KEY, Server, connect, place, postgres, processes
from benchmarks.traffic import EVENT_TYPE, METER, MODELS, TYPES, subject
from billing.contracts.customer import Address, get_customer
from billing.contracts.customer_changes import CustomerDetails, create_customer
from billing.contracts.subscriptions import create_subscription
from billing.runs.run import run_portion
from billing.taxes.tax_rates import TaxRateDetails, create_tax_rate
from catalog.features import create_feature
from catalog.interval import parse_interval
from catalog.plans import Plan, create_plan, publish_plan
from catalog.price import (
    FlatPrice,
    MatrixCell,
    MatrixPrice,
    PackagePrice,
    PercentagePrice,
    PriceTier,
    TieredPrice,
    TierUnitPrice,
    UnitPrice,
    UsagePrice,
)
from catalog.rate_card import FlatFeeRateCard, Phase, RateCard, UsageBasedRateCard
from metering.meter import MeterDefinition
from metering.meters import create_meter

MONTHS = (3, 24)
"""For how long each customer was invoiced, each for two subjects."""
INTO_THE_MONTH = timedelta(days=12)
WARMING_UP = 20
TOKENS = str(METER["slug"])


@dataclass(frozen=True)
class Previewed:
    """Of one customer: latencies in milliseconds; `cpu`: of the server's own process, for each preview.

    `listed`: their gathering invoice in the list of invoices, with its lines. `meter`: a question to a meter
    over the same connection, for one subject's month: what HTTP and one look into the cubes take anyway.
    """

    months: int
    stored: int
    invoices: int
    lines: int
    p50: float
    p99: float
    cpu: float
    listed_p50: float
    listed_p99: float
    meter_p50: float


def previews(*, events: int, repeat: int) -> list[Previewed]:
    with place() as directory, postgres(directory) as url:
        start = clock.now().replace(microsecond=0) - INTO_THE_MONTH
        with Server(url) as server, connect(url) as connection:
            _in_a_transaction(url, _for_sale, start)
            seed(url, count=events)
            if not settled(connection, seconds=1200):
                print("  the cubes are not complete: questions are answered from hours or raw events")
            _in_a_transaction(url, _sign_up, start)
            _bill(url)
            connection.execute("VACUUM (ANALYZE)")
            return [_previewed(server, months, events, repeat) for months in MONTHS]


def _previewed(server: Server, months: int, stored: int, repeat: int) -> Previewed:
    customer = server.ask("GET", f"/api/v1/customers/{_key(months)}")
    preview = f"/api/v1/customers/{_key(months)}/invoice-preview"
    one = {"customers": customer["id"], "expand": "lines"}
    invoices = server.ask("GET", f"/api/v1/billing/invoices?{urlencode(one)}")
    gathering = f"/api/v1/billing/invoices?{urlencode({**one, 'statuses': 'gathering'})}"
    assert invoices["totalCount"] == months + 2  # with that of the first fee, and the gathering one
    lines = server.ask("GET", preview)["lines"]
    assert len(lines) == len(_prices())  # and none for the fee, which was invoiced as the month began
    assert all(Decimal(line["totals"]["total"]) > 0 for line in lines)
    times, list_times, meter_times = _in_turn(server, (preview, gathering, _month()), repeat)
    return Previewed(
        months=months,
        stored=stored,
        invoices=invoices["totalCount"] - 1,
        lines=len(lines),
        p50=percentile(times, 50),
        p99=percentile(times, 99),
        cpu=_cpu_of(server, preview, repeat),
        listed_p50=percentile(list_times, 50),
        listed_p99=percentile(list_times, 99),
        meter_p50=percentile(meter_times, 50),
    )


def _month() -> str:
    end = clock.now().replace(hour=0, minute=0, second=0, microsecond=0)
    spans = {"from": end - timedelta(days=30), "to": end}
    members = {name: f"{instant:%Y-%m-%dT%H:%M:%SZ}" for name, instant in spans.items()}
    return f"/api/v1/meters/{TOKENS}/query?{urlencode({**members, 'subject': subject(0)})}"


def _in_turn(server: Server, paths: Sequence[str], repeat: int) -> list[list[float]]:
    """The latencies of each, in order; on one connection, of which the first answers don't count.

    One after the other, so that whatever else the machine does meanwhile, it does to all of them.
    """
    connection = server.client()
    for path in [*paths] * WARMING_UP:
        _timed(connection, path)
    times = [[_timed(connection, path) for path in paths] for _ in range(repeat)]
    connection.close()
    return [sorted(one) for one in zip(*times, strict=True)]


def _cpu_of(server: Server, path: str, repeat: int) -> float:
    """Milliseconds for each answer of the process that gives them; PostgreSQL's are not in it."""
    connection, before = server.client(), _cpu(server)
    for _ in range(repeat):
        _timed(connection, path)
    connection.close()
    return (_cpu(server) - before) / repeat * 1000


def _timed(connection: HTTPConnection, path: str) -> float:
    """What a client does with the answer is its own."""
    began = time.perf_counter()
    connection.request("GET", path, headers={"Authorization": f"Bearer {KEY}"})
    answer = connection.getresponse()
    answer.read()
    took = time.perf_counter() - began
    assert answer.status == 200, answer.status
    return took * 1000


def _cpu(server: Server) -> float:
    """Seconds so far."""
    return sum(used.cpu for used in processes(server.process.pid).values() if used.name in ("api", "serve"))


# -- Who pays what -------------------------------------------------------------------------------------------


def _in_a_transaction(url: str, work: Callable[[Session, datetime], object], start: datetime) -> None:
    engine = create_engine(url, connect_args={"options": "-c timezone=UTC"})
    with Session(engine) as session, session.begin():
        work(session, start)
    engine.dispose()


def _for_sale(session: Session, start: datetime) -> None:
    """Three meters of the same events, what is sold of them, and a tax."""
    began = start - timedelta(days=4 * 365)
    for slug, definition in _meters().items():
        create_meter(session, slug=slug, definition=definition, now=began)
    for key, (_, slug, filters) in _prices().items():
        create_feature(session, key=key, name=key, meter_slug=slug, meter_group_by_filters=filters, now=began)
    rate = TaxRateDetails(name="VAT", country="DE", percent=Decimal(19), valid_from=began)
    create_tax_rate(session, rate, now=began)


def _sign_up(session: Session, start: datetime) -> None:
    plan = _plan(session, start - timedelta(days=4 * 365))
    for number, months in enumerate(MONTHS):
        details = CustomerDetails(
            name="Kong Air",
            key=_key(months),
            subject_keys=(subject(2 * number), subject(2 * number + 1)),
            billing_address=Address(country="DE"),
        )
        begin = parse_interval("P1M").after(start, -months)
        customer = get_customer(session, create_customer(session, details, now=begin).id, lock=True)
        create_subscription(session, customer=customer, plan=plan, active_from=begin, now=begin)


def _key(months: int) -> str:
    return f"customer-of-{months}-months"


def _bill(url: str) -> None:
    """All that is due by now, month by month."""
    engine = create_engine(url, connect_args={"options": "-c timezone=UTC"})
    billed = True
    while billed:
        with Session(engine) as session, session.begin():
            billed = bool(run_portion(session, now=clock.now(), wait=True).customers)
    engine.dispose()


def _meters() -> dict[str, MeterDefinition]:
    dimensions = {name: f"$.{name}" for name in ("provider", "model", "type")}
    tokens = MeterDefinition(
        event_type=EVENT_TYPE, aggregation="SUM", value_property="$.tokens", group_by=dimensions
    )
    calls = MeterDefinition(event_type=EVENT_TYPE, aggregation="COUNT")
    value = MeterDefinition(event_type=EVENT_TYPE, aggregation="SUM", value_property="$.cost")
    return {TOKENS: tokens, "calls": calls, "value": value}


def _plan(session: Session, now: datetime) -> Plan:
    fee = FlatPrice(type="flat", amount=Decimal(49))
    cards: list[RateCard] = [
        FlatFeeRateCard(type="flat_fee", key="platform", name="Platform", billing_cadence="P1M", price=fee)
    ]
    cards += [
        UsageBasedRateCard(
            type="usage_based", key=key, name=key, feature_key=key, billing_cadence="P1M", price=price
        )
        for key, (price, _, _) in _prices().items()
    ]
    phase = Phase(key="main", name="main", rate_cards=tuple(cards))
    draft = create_plan(
        session,
        key="gateway",
        name="Gateway",
        currency="USD",
        billing_cadence="P1M",
        phases=(phase,),
        now=now,
    )
    return publish_plan(session, draft, now=now)


def _prices() -> dict[str, tuple[UsagePrice, str, dict[str, str]]]:
    """Of each feature the price, the meter, and what of the meter it is."""
    millionth = Decimal("0.000001")
    cells = tuple(
        MatrixCell(values={"provider": provider, "model": model, "type": kind}, amount=n * millionth)
        for n, (provider, model) in enumerate(MODELS, start=1)
        for kind in TYPES
    )
    return {
        "api-calls": (_tiers(Decimal("0.001")), "calls", {}),
        "logs": (
            PackagePrice(type="package", amount=Decimal(1), quantity_per_package=Decimal(100)),
            "calls",
            {},
        ),
        "openai-in": (
            UnitPrice(type="unit", amount=3 * millionth),
            TOKENS,
            {"provider": "openai", "type": "request"},
        ),
        "openai-out": (_tiers(9 * millionth), TOKENS, {"provider": "openai", "type": "response"}),
        "anthropic": (_tiers(5 * millionth, "model"), TOKENS, {"provider": "anthropic"}),
        "models": (
            MatrixPrice(
                type="matrix",
                dimensions=("provider", "model", "type"),
                cells=cells,
                default_amount=5 * millionth,
            ),
            TOKENS,
            {},
        ),
        "share": (
            PercentagePrice(type="percentage", percentage=Decimal("2.9"), fixed_amount=Decimal("0.0001")),
            "value",
            {},
        ),
    }


def _tiers(unit: Decimal, *group_by: str) -> TieredPrice:
    """Four, each a tenth cheaper than the one before."""
    ends = (Decimal(1_000), Decimal(100_000), Decimal(10_000_000), None)
    return TieredPrice(
        type="tiered",
        mode="graduated",
        tiers=tuple(
            PriceTier(up_to_amount=end, unit_price=TierUnitPrice(type="unit", amount=unit * (10 - n) / 10))
            for n, end in enumerate(ends)
        ),
        group_by=group_by,
    )
