"""Usage for many charges: what a price asks, as the reference fold counts it, in few statements."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, get_args

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from billing.rating.metered import SUBJECTS_AT_ONCE, Demand, Shape, shape_of, usage_of
from billing.rating.pricing import Group, Usage
from catalog.features import Feature, create_feature
from catalog.price import (
    DynamicPrice,
    FlatPrice,
    MatrixCell,
    MatrixPrice,
    PackagePrice,
    PercentagePrice,
    Price,
    PriceTier,
    TieredPrice,
    TierUnitPrice,
    UnitPrice,
)
from metering.cubes.folding import maintain
from metering.errors import InvalidError
from metering.event import Event
from metering.exact import total
from metering.ids import event_key, new_id
from metering.meter import Aggregation, MeterDefinition, UsageQuery, fold
from metering.meters import create_meter
from metering.period import Period
from tests.builders import START, a_feature, a_meter, a_metered_feature, at, counted_statements, spent, store
from tests.server import seeded

JANUARY = Period(start=START, end=at("2026-02-01"))
FEBRUARY = Period(start=at("2026-02-01"), end=at("2026-03-01"))
ONE = Decimal(1)
TIERS = (PriceTier(unit_price=TierUnitPrice(type="unit", amount=ONE)),)

UNIT = UnitPrice(type="unit", amount=ONE)
TIERED = TieredPrice(type="tiered", mode="graduated", tiers=TIERS)
BY_MODEL = replace(TIERED, group_by=("model",))
MATRIX = MatrixPrice(
    type="matrix",
    dimensions=("type", "provider"),
    cells=(MatrixCell(values={"type": "request", "provider": "openai"}, amount=ONE),),
    default_amount=ONE,
)
PERCENTAGE = PercentagePrice(type="percentage", percentage=ONE)
LIMITED = replace(PERCENTAGE, maximum_per_event=Decimal(5))


def demand(
    feature: Feature | None,
    *subjects: str,
    price: Price = UNIT,
    period: Period = JANUARY,
    customer: str = "customer",
) -> Demand:
    return Demand(customer_id=customer, subjects=subjects, feature=feature, price=price, period=period)


def used(session: Session, feature: Feature | None, *subjects: str, **more: Any) -> Usage:
    (usage,) = usage_of(session, [demand(feature, *subjects, **more)])
    return usage


# --- what a price asks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("price", "shape"),
    [
        (FlatPrice(type="flat", amount=ONE), Shape()),
        (UNIT, Shape()),
        (TIERED, Shape()),
        (BY_MODEL, Shape(dimensions=("model",))),
        (PackagePrice(type="package", amount=ONE, quantity_per_package=ONE), Shape()),
        (DynamicPrice(type="dynamic"), Shape()),
        (MATRIX, Shape(dimensions=("type", "provider"))),
        (PERCENTAGE, Shape(events=True)),
        (LIMITED, Shape(events=True, sizes=True)),
        (replace(PERCENTAGE, minimum_per_event=ONE), Shape(events=True, sizes=True)),
    ],
)
def test_the_shape_of_usage_follows_from_the_price(price: Price, shape: Shape) -> None:
    assert shape_of(price) == shape


# --- what is counted ---------------------------------------------------------------------------------------

SUBJECTS = ("ada", "bob", "cid", "dan")
OWNED = {"first": ("ada", "bob"), "second": ("cid",), "third": ("nobody",)}


def traffic() -> list[Event]:
    """Some without a value, some without a model, some on the very edge of a period."""
    chance = seeded(7)
    days = ("2026-01-01", "2026-01-17T10:20:30", "2026-01-31T23:59:59.999999", "2026-02-01", "2026-02-28")
    values = ("1", "1.0", "2.50", "-3", "none", "0", "99999999999999999999.5")
    events = [
        spent(
            chance.choice(SUBJECTS),
            chance.choice(values),
            chance.choice(days),
            provider=chance.choice(("openai", "anthropic")),
            model=chance.choice(("gpt-4o", "claude", "")),
            kind=chance.choice(("request", "response")),
        )
        for _ in range(150)
    ]
    return [*events, Event(id="bare", source="gateway", type="llm", subject="ada", time=START, data=b"{}")]


def metered(session: Session, aggregation: Aggregation) -> Feature:
    definition = MeterDefinition(
        event_type="llm",
        aggregation=aggregation,
        value_property=None if aggregation == "COUNT" else "$.tokens",
        group_by={"provider": "$.provider", "model": "$.model", "type": "$.type"},
    )
    create_meter(session, slug="any", definition=definition, now=START)
    return a_feature(session, "any", meter="any")


def folded(feature: Feature, one: Demand, events: Sequence[Event], *dimensions: str) -> dict[Group, Decimal]:
    assert feature.meter
    query = UsageQuery(start=one.period.start, end=one.period.end, subjects=one.subjects, group_by=dimensions)
    rows = fold(feature.meter.definition, query, events)
    return {tuple(row.group[name] or None for name in dimensions): row.value for row in rows}


@pytest.mark.parametrize("aggregation", get_args(Aggregation))
def test_quantities_and_groups_are_those_of_the_reference_fold(
    session: Session, aggregation: Aggregation
) -> None:
    """A maximum, or distinct values, of groups or of subjects don't add up to those of all."""
    feature, events = metered(session, aggregation), traffic()
    store(session, *events)
    demands = [
        demand(feature, *subjects, customer=customer, price=price, period=period)
        for customer, subjects in OWNED.items()
        for price in (UNIT, BY_MODEL, MATRIX)
        for period in (JANUARY, FEBRUARY)
    ]
    for one, usage in zip(demands, usage_of(session, demands), strict=True):
        expected = folded(feature, one, events)
        assert usage.quantity == expected.get((), 0)
        dimensions = shape_of(one.price).dimensions
        assert usage.groups == (folded(feature, one, events, *dimensions) if dimensions else {})
        assert (usage.events, usage.sizes) == (0, {})


def test_a_percentage_knows_how_many_events_had_each_value(session: Session) -> None:
    feature, events = metered(session, "SUM"), traffic()
    store(session, *events)
    counting = MeterDefinition(event_type="llm", aggregation="SUM", value_property="$.tokens")
    for customer, subjects in OWNED.items():
        for period in (JANUARY, FEBRUARY):
            query = UsageQuery(start=period.start, end=period.end, subjects=subjects)
            values = [row.value for one in events for row in fold(counting, query, [one])]
            plain = used(session, feature, *subjects, customer=customer, price=PERCENTAGE, period=period)
            assert plain == Usage(quantity=total(values), events=len(values))
            limited = used(session, feature, *subjects, customer=customer, price=LIMITED, period=period)
            assert limited == replace(plain, sizes=Counter(values))
            assert bool(values) == (customer != "third")


@pytest.mark.parametrize("price", [UNIT, BY_MODEL, PERCENTAGE, LIMITED])
def test_voided_events_and_those_of_other_features_count_in_no_shape(session: Session, price: Price) -> None:
    a_meter(session)
    feature = create_feature(
        session, key="f", name="f", meter_slug="tokens", meter_group_by_filters={"type": "request"}, now=START
    )
    kept, void, other = (
        spent("ada", n, "2026-01-05", kind=kind) for n, kind in ((1, "request"), (20, "request"), (300, "x"))
    )
    store(session, kept, void, other)
    row = {"key": event_key(void.source, void.id), "correction": new_id(START), "now": START}
    session.execute(text("INSERT INTO voided_events VALUES (:key, :correction, :now, NULL)"), row)
    assert used(session, feature, "ada", price=price) == Usage(
        quantity=ONE,
        groups={("gpt-4o",): ONE} if price is BY_MODEL else {},
        events=1 if price in (PERCENTAGE, LIMITED) else 0,
        sizes={ONE: 1} if price is LIMITED else {},
    )


def test_there_is_no_usage_without_meter_subject_or_time(session: Session) -> None:
    feature = a_metered_feature(session)
    store(session, spent("ada", 1, "2026-01-01"))
    assert used(session, feature, "ada") == Usage(quantity=ONE)
    assert used(session, feature) == Usage()
    assert used(session, None, "ada") == Usage()
    assert used(session, a_feature(session, "boolean"), "ada") == Usage()
    assert used(session, feature, "ada", period=Period(start=START, end=START)) == Usage()
    assert used(session, feature, "ada", price=FlatPrice(type="flat", amount=ONE)) == Usage()


# --- in few statements -------------------------------------------------------------------------------------

EVERY_SHAPE = (UNIT, TIERED, BY_MODEL, MATRIX, PERCENTAGE, LIMITED)


def many(feature: Feature, count: int) -> list[Demand]:
    return [
        demand(feature, f"subject-{n}", f"other-{n}", customer=f"customer-{n:05d}", price=price)
        for n in range(count)
        for price in EVERY_SHAPE
    ]


def test_as_many_statements_for_many_customers_as_for_one(session: Session, shared_engine: Engine) -> None:
    feature = a_metered_feature(session)
    same = create_feature(session, key="same", name="same", meter_slug="tokens", now=START)
    store(session, *(spent(f"subject-{n}", n, "2026-01-05") for n in range(300)))
    with counted_statements(shared_engine) as for_one:
        usage_of(session, [*many(feature, 1), *many(same, 1)])
    with counted_statements(shared_engine) as for_many:
        found = usage_of(session, [*many(feature, 300), *many(same, 300)])
    assert len(for_many) == len(for_one) <= 2 * 5
    assert [one.quantity for one in found[:: len(EVERY_SHAPE)]] == [*range(300), *range(300)]


def test_thousands_of_subjects_are_asked_in_portions(session: Session, shared_engine: Engine) -> None:
    feature = a_metered_feature(session)
    customers = SUBJECTS_AT_ONCE
    store(session, *(spent(f"other-{n}", n, "2026-01-05") for n in range(0, customers, 7)))
    demands = [one for one in many(feature, customers) if one.price is UNIT]
    with counted_statements(shared_engine) as sent:
        found = usage_of(session, demands)
    assert [one.quantity for one in found] == [n if n % 7 == 0 else 0 for n in range(customers)]
    assert len(sent) <= 2 * 2


def test_many_customers_usage_from_cubes_is_that_of_their_events(engine: Engine) -> None:
    """So many subjects that their days are added up first, and so few that they are not."""
    with Session(engine) as session, session.begin():
        feature = a_metered_feature(session)
        chance = seeded(3)
        models = ("a", "b")
        some = [
            spent(f"subject-{n}", chance.randrange(100), f"2026-01-{day:02}", model=models[n % 2])
            for n in range(150)
            for day in range(n % 3 + 1, 32, 2)
        ]
        store(session, *some)
        driver = session.connection().connection.driver_connection
        assert driver is not None
        while maintain(driver, now=at("2026-06-01")):
            pass
        session.execute(text("ANALYZE usage_days, usage_series"))  # that series are dense is known from it
        store(session, spent("subject-7", 1000, "2026-01-09", model="a"))
        demands = [one for one in many(feature, 200) if one.price in (UNIT, BY_MODEL, PERCENTAGE)]
        together = usage_of(session, demands)
        for n in (0, 7, 149, 150):
            assert together[3 * n : 3 * n + 3] == usage_of(session, demands[3 * n : 3 * n + 3])
        assert feature.meter
        events = [*some, spent("subject-7", 1000, "2026-01-09", model="a")]
        for one, usage in zip(demands, together, strict=True):
            assert usage.quantity == folded(feature, one, events).get((), 0)
            if one.price is BY_MODEL:
                assert usage.groups == folded(feature, one, events, "model")


def test_what_is_too_much_for_one_answer_is_asked_for_half_the_customers(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    feature = a_metered_feature(session)
    store(session, *(spent(f"subject-{n}", 1, "2026-01-05", model=f"m{m}") for n in range(5) for m in (1, 2)))
    demands = [one for one in many(feature, 5) if one.price in (BY_MODEL, LIMITED)]
    whole = usage_of(session, demands)
    monkeypatch.setattr("metering.usage_answers.MAX_ROWS", 2)
    assert usage_of(session, demands) == whole
    assert {len(one.groups) for one in whole} == {0, 2}
    monkeypatch.setattr("metering.usage_answers.MAX_ROWS", 1)
    with pytest.raises(InvalidError, match="more than 1 rows"):
        usage_of(session, demands)
