"""What never reaches an invoice: SQL says the same as the pure decision, and both the same as the invoice."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import NamedTuple

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, insert, text
from sqlalchemy.orm import Session

from billing.contracts.customer import Customer, SubjectOwner, customers_by_id
from billing.contracts.subscriptions import Subscription, SubscriptionItem, SubscriptionPhase
from billing.invoices.gathering import gathering_invoices
from billing.proof.disposition import REASONS, UNBILLED, Disposition
from billing.proof.dispositions import dispositions_of
from billing.proof.unbilled import (
    UnbilledGroup,
    UnbilledQuery,
    WindowTooLongError,
    count_unbilled,
    list_unbilled,
)
from catalog.features import Feature, features_by_id
from catalog.plans import Plan
from catalog.rate_card import RateCard
from metering.event import Event
from metering.events import VoidedEvent, append_events, keyed
from metering.filter_string import FilterString
from metering.ids import event_key, new_id
from metering.meter import MeterDefinition
from metering.meters import Meter, create_meter
from metering.period import Period
from tests.builders import START, a_customer, a_metered_feature, a_plan, fee, per_unit, phase, sign_up, spent
from tests.builders import at as instant
from tests.builders import store as store_spent

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
TICK = timedelta(microseconds=1)
BORDERS = [NOON + timedelta(hours=6 * n) for n in range(-3, 4)]
CUSTOMERS = {"C" * 26: ("ada", "bob"), "D" * 26: ("eve",)}
DEFINITIONS = (
    MeterDefinition(event_type="call", aggregation="COUNT", group_by={"model": "$.model"}),
    MeterDefinition(
        event_type="call",
        aggregation="SUM",
        value_property="$.n",
        group_by={"model": "$.model", "zone": "$.at.zone"},
    ),
    MeterDefinition(event_type="call", aggregation="UNIQUE_COUNT", value_property="$.n"),
    MeterDefinition(event_type="call", aggregation="COUNT", event_from=NOON),
    MeterDefinition(
        event_type="chat", aggregation="MAX", value_property="$.n", group_by={"model": "$.model"}
    ),
    MeterDefinition(event_type="chat", aggregation="COUNT", event_from=NOON),
)
VALUES = ("1", "2.5", '"3"', '"x"', "null", "true", "[1]")
FREE: RateCard = per_unit().__class__(type="usage_based", key="tokens", name="tokens", billing_cadence="P1M")
CARDS: tuple[RateCard, ...] = (per_unit(), per_unit("0"), fee("10"), fee(None), FREE)

borders = st.sampled_from(BORDERS)
starts = st.sampled_from([BORDERS[0]] * 4 + BORDERS)
ends = st.sampled_from([None] * 6 + BORDERS[1:])


class Item(NamedTuple):
    feature: int | None
    card: RateCard
    start: datetime
    end: datetime | None


class Contract(NamedTuple):
    customer: str
    start: datetime
    end: datetime | None
    items: list[Item]


class Narrowed(NamedTuple):
    """A feature: its meter, and one or the other kind of filters."""

    meter: int | None
    filters: dict[str, str] | None
    advanced: dict[str, FilterString] | None


class World(NamedTuple):
    deleted: list[bool]
    features: list[Narrowed]
    contracts: list[Contract]
    events: list[Event]
    voided: dict[int, bool]
    retired: set[int]
    period: Period


items = st.builds(Item, st.sampled_from([None, 0, 0, 0, 1, 1, 2, 3]), st.sampled_from(CARDS), starts, ends)
contracts = st.builds(
    Contract, st.sampled_from([*CUSTOMERS]), starts, ends, st.lists(items, min_size=2, max_size=4)
)


values = st.sampled_from(["a", "b", "", "null"])
equal = st.builds(FilterString, eq=values)
conditions = (
    st.builds(FilterString, nin=st.tuples(values))
    | st.builds(FilterString, like=st.sampled_from(["%", "_", "n%"]), ne=values)
    | st.builds(FilterString, or_=st.tuples(equal, st.just(FilterString(gt="a"))))
)


@st.composite
def features(draw: st.DrawFn) -> Narrowed:
    number = draw(st.sampled_from([None, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 5]))
    dimensions = [] if number is None else sorted(DEFINITIONS[number].group_by)
    narrowed = [name for name in dimensions if draw(st.integers(0, 2)) == 0]
    if draw(st.booleans()):
        return Narrowed(number, {name: draw(values) for name in narrowed}, None)
    return Narrowed(number, None, {name: draw(conditions) for name in narrowed})


@st.composite
def events(draw: st.DrawFn) -> list[Event]:
    drawn = []
    for number in range(draw(st.integers(4, 9))):
        members = {"n": draw(st.sampled_from(VALUES)), "model": draw(st.sampled_from(['"a"', '"b"', "null"]))}
        members["at"] = draw(st.sampled_from(['{"zone": "a"}', '{"zone": 1}', "[]"]))
        kept = [f'"{name}": {value}' for name, value in members.items() if draw(st.integers(0, 4))]
        drawn.append(
            Event(
                id=f"{number}",
                source="s",
                type=draw(st.sampled_from(["call"] * 6 + ["chat", "chat", "dark"])),
                subject=draw(st.sampled_from(["ada", "ada", "bob", "eve", "eve", "zoe"])),
                time=draw(borders) + draw(st.sampled_from([-TICK, TICK - TICK, TICK])),
                data=draw(st.sampled_from([f"{{{', '.join(kept)}}}".encode()] * 5 + [None])),
            )
        )
    return drawn


@st.composite
def worlds(draw: st.DrawFn) -> World:
    happened = draw(events())
    numbers = st.integers(0, len(happened) - 1)
    start, end = draw(st.sampled_from([(BORDERS[0], BORDERS[-1])] * 2 + [*combinations(BORDERS, 2)]))
    open_ended: set[str] = set()
    agreed = []
    for contract in draw(st.lists(contracts, min_size=2, max_size=4)):
        if contract.end is not None or contract.customer not in open_ended:
            agreed.append(contract)
            open_ended |= {contract.customer} if contract.end is None else set()
    return World(
        deleted=[draw(st.integers(0, 3)) == 0 for _ in DEFINITIONS],
        features=draw(st.lists(features(), min_size=4, max_size=4)),
        contracts=agreed,
        events=happened,
        voided=draw(st.dictionaries(numbers, st.booleans(), max_size=2)),
        retired=draw(st.sets(numbers, max_size=2)),
        period=Period(start=start, end=end),
    )


def driver(session: Session) -> "psycopg.Connection[tuple[object, ...]]":
    connection = session.connection().connection.driver_connection
    assert isinstance(connection, psycopg.Connection)
    return connection


def build(session: Session, world: World, plan: Plan) -> None:
    """Rows as they could be, though not all of them by way of today's operations."""
    stamps = {"created_at": START, "updated_at": START}
    meters = [
        Meter(
            id=new_id(START),
            slug=f"m{number}",
            aggregation=definition.aggregation,
            event_type=definition.event_type,
            event_from=definition.event_from,
            value_property=definition.value_property,
            group_by=dict(definition.group_by),
            deleted_at=START if deleted else None,
            **stamps,
        )
        for number, (definition, deleted) in enumerate(zip(DEFINITIONS, world.deleted, strict=True))
    ]
    session.add_all(meters)
    made = [
        Feature(
            id=new_id(START),
            key=f"f{number}",
            name="F",
            meter=None if one.meter is None else meters[one.meter],
            meter_group_by_filters=one.filters,
            advanced_meter_group_by_filters=one.advanced,
            **stamps,
        )
        for number, one in enumerate(world.features)
    ]
    session.add_all(made)
    for customer, subjects in CUSTOMERS.items():
        owned = [SubjectOwner(subject_key=subject, position=n) for n, subject in enumerate(subjects)]
        session.add(Customer(id=customer, name="C", subjects=owned, **stamps))
    session.flush()
    for contract in world.contracts:
        session.add(signed(contract, made, plan))
    session.flush()
    append_events(driver(session), keyed((event, event.time) for event in world.events), now=START)
    put_aside(session, world)
    session.expire_all()


def signed(contract: Contract, made: Sequence[Feature], plan: Plan) -> Subscription:
    stamps = {"created_at": START, "updated_at": START}
    sold = [
        SubscriptionItem(
            id=new_id(START),
            position=number,
            key=item.card.key,
            version=number,
            rate_card=item.card,
            feature_id=None if item.feature is None else made[item.feature].id,
            active_from=item.start,
            active_to=item.end,
            **stamps,
        )
        for number, item in enumerate(contract.items)
    ]
    whole = SubscriptionPhase(
        id=new_id(START),
        position=0,
        key="main",
        name="Main",
        active_from=contract.start,
        items=sold,
        **stamps,
    )
    return Subscription(
        id=new_id(START),
        customer_id=contract.customer,
        plan_id=plan.id,
        name="Pro",
        currency="USD",
        billing_cadence="P1M",
        billing_anchor=BORDERS[0],
        pro_rating=True,
        active_from=contract.start,
        active_to=contract.end,
        phases=[whole],
        **stamps,
    )


def put_aside(session: Session, world: World) -> None:
    """Void some events, and restore some of these; retire some."""
    for number, restored in world.voided.items():
        event = world.events[number]
        session.execute(
            insert(VoidedEvent).values(
                key=event_key(event.source, event.id),
                correction_id=new_id(START),
                voided_at=START,
                restored_at=START if restored else None,
            )
        )
    old = [event_key("s", world.events[number].id) for number in world.retired]
    session.execute(
        text(
            "WITH old AS (DELETE FROM events WHERE key = ANY(:old) RETURNING *)"
            " INSERT INTO retired_events SELECT * FROM old"
        ),
        {"old": old},
    )


def theorem(examples: int) -> settings:
    """All examples share one transaction; each undoes what it stored."""
    return settings(max_examples=examples, suppress_health_check=[HealthCheck.function_scoped_fixture])


def grouped(judged: Sequence[tuple[Event, Disposition]]) -> list[UnbilledGroup]:
    """What list_unbilled should answer."""
    groups: dict[tuple[str, str, str], list[tuple[Event, Disposition]]] = {}
    for event, found in judged:
        if found.reason is not None:
            groups.setdefault((found.reason, event.type, event.subject), []).append((event, found))
    answer = []
    for members in groups.values():
        event, found = min(members, key=lambda member: event_key(member[0].source, member[0].id).hex)
        assert found.reason is not None
        answer.append(
            UnbilledGroup(
                reason=found.reason,
                type=event.type,
                subject=event.subject,
                customer_id=found.customer_id,
                events=len(members),
                first=min(one.time for one, _ in members),
                last=max(one.time for one, _ in members),
                sample_source=event.source,
                sample_id=event.id,
            )
        )
    return sorted(answer, key=lambda group: (-group.events, group.reason, group.type, group.subject))


@theorem(150)
@given(world=worlds())
def test_sql_groups_are_those_of_the_pure_decision(session: Session, world: World) -> None:
    plan = a_plan(session)
    with session.begin_nested() as savepoint:
        build(session, world, plan)
        inside = [event for event in world.events if event.time in world.period]
        expected = grouped(list(zip(inside, dispositions_of(session, inside), strict=True)))
        query = UnbilledQuery(period=world.period, reasons=REASONS)
        found = list_unbilled(session, query)
        assert found.groups == expected
        assert (found.count, found.events) == (len(expected), sum(group.events for group in expected))
        counts = Counter({group.reason: 0 for group in expected})
        for group in expected:
            counts[group.reason] += group.events
        assert count_unbilled(session, query) == {reason: counts[reason] for reason in REASONS}
        savepoint.rollback()
    session.delete(plan)


@theorem(60)
@given(world=worlds())
def test_an_event_is_billed_by_an_item_just_when_the_invoice_counts_it_there(
    session: Session, world: World
) -> None:
    """Where the meter counts events, an item's quantity is the number of those it bills."""
    plan = a_plan(session)
    with session.begin_nested() as savepoint:
        build(session, world, plan)
        billed = Counter(
            term.item_id
            for found in dispositions_of(session, world.events)
            for term in found.billed_by
            if term.meter is not None and term.meter.aggregation == "COUNT"
        )
        invoiced: Counter[str | None] = Counter()
        customers = customers_by_id(session, CUSTOMERS).values()
        invoices = gathering_invoices(session, customers, at=BORDERS[-1] + timedelta(days=40))
        lines = [line for invoice in invoices for line in invoice.lines]
        features = features_by_id(session, [line.billable.feature_id or "" for line in lines])
        for line in lines:
            feature = features.get(line.billable.feature_id or "")
            if feature and feature.meter and feature.meter.aggregation == "COUNT" and line.quantity:
                invoiced[line.billable.item_id] += int(line.quantity)
        assert invoiced == billed
        savepoint.rollback()
    session.delete(plan)


DAY = Period(start=instant("2026-03-01"), end=instant("2026-03-02"))


def leaking(session: Session) -> None:
    """Three groups of 3, 2 and 1 events, two that are paid for, and one outside the day."""
    a_metered_feature(session)
    plan = a_plan(session, phase(per_unit()))
    sign_up(session, a_customer(session, "ada"), plan)
    moments = [f"2026-03-01T0{hour}:00" for hour in range(6)]
    store_spent(
        session,
        *(spent("zoe", 1, when) for when in moments[:3]),
        *(spent("yan", 1, when) for when in moments[3:5]),
        spent("ada", "none", moments[5]),
        spent("ada", 1, moments[0]),
        spent("ada", 2, moments[1]),
        spent("zoe", 1, "2026-03-02"),
    )


def summary(groups: Sequence[UnbilledGroup]) -> list[tuple[str, str, int]]:
    return [(group.reason, group.subject, group.events) for group in groups]


def test_the_largest_group_comes_first_and_pages_go_on_where_the_last_one_ended(session: Session) -> None:
    leaking(session)
    query = UnbilledQuery(period=DAY)
    whole = [("no_customer", "zoe", 3), ("no_customer", "yan", 2), ("invalid_value", "ada", 1)]
    assert summary(list_unbilled(session, query).groups) == whole
    pages = [list_unbilled(session, query, offset=n, limit=2) for n in (0, 2, 4)]
    assert [summary(page.groups) for page in pages] == [whole[:2], whole[2:], []]
    assert {(page.count, page.events) for page in pages} == {(3, 6)}


def test_groups_are_narrowed_by_reason_type_and_subject(session: Session) -> None:
    leaking(session)
    for query, expected in [
        (UnbilledQuery(period=DAY, reasons=("invalid_value",)), ["ada"]),
        (UnbilledQuery(period=DAY, subject="yan"), ["yan"]),
        (UnbilledQuery(period=DAY, event_type="llm", subject="zoe"), ["zoe"]),
        (UnbilledQuery(period=DAY, event_type="chat"), []),
    ]:
        found = list_unbilled(session, query)
        assert [group.subject for group in found.groups] == expected
        assert found.count == len(expected)


def test_a_value_that_one_meter_can_use_and_the_priced_one_can_not_is_invalid(session: Session) -> None:
    a_metered_feature(session)
    calls = MeterDefinition(event_type="llm", aggregation="COUNT")
    create_meter(session, slug="calls", definition=calls, now=START)
    sign_up(session, a_customer(session, "ada"), a_plan(session, phase(per_unit())))
    store_spent(session, spent("ada", "none", "2026-03-01"))
    assert summary(list_unbilled(session, UnbilledQuery(period=DAY)).groups) == [("invalid_value", "ada", 1)]


def test_an_empty_period_has_nothing_unbilled(session: Session) -> None:
    found = list_unbilled(session, UnbilledQuery(period=DAY))
    assert (found.groups, found.count, found.events) == ([], 0, 0)
    assert count_unbilled(session, UnbilledQuery(period=DAY)) == dict.fromkeys(UNBILLED, 0)


def test_what_takes_too_long_is_refused_with_what_to_do(session: Session, shared_engine: Engine) -> None:
    """It waits for somebody who keeps the events for himself."""
    with shared_engine.begin() as other:
        other.execute(text("LOCK TABLE events"))
        with pytest.raises(WindowTooLongError, match="shorten the window"):
            count_unbilled(session, UnbilledQuery(period=DAY), seconds=0.05)
