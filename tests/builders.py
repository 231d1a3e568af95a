"""The words that tests of the catalog and of billing are written in: cards, plans, customers, events."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import TypeVar

from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session

from billing.contracts.customer import Customer, get_customer
from billing.contracts.customer_changes import CustomerDetails, create_customer
from billing.contracts.subscriptions import Subscription, create_subscription
from catalog.addons import Addon, create_addon, publish_addon
from catalog.features import Feature, create_feature
from catalog.plans import Plan, create_plan, publish_plan
from catalog.price import FlatPrice, PaymentTerm, UnitPrice
from catalog.rate_card import FlatFeeRateCard, Phase, RateCard, UsageBasedRateCard
from metering.event import Event
from metering.events import append_events, keyed
from metering.meter import MeterDefinition
from metering.meters import Meter, create_meter

T = TypeVar("T")

START = datetime(2026, 1, 1, tzinfo=UTC)
"""When things are created unless a test says otherwise: long before the `now` of the fixtures."""

_numbers = itertools.count(1)


def at(moment: str) -> datetime:
    """An instant from ISO 8601 text; UTC unless it says otherwise."""
    instant = datetime.fromisoformat(moment)
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def fee(
    amount: str | None = "10",
    *,
    key: str = "seat",
    cadence: str | None = "P1M",
    term: PaymentTerm = "in_advance",
    feature: str | None = None,
) -> FlatFeeRateCard:
    """A flat fee; None costs nothing."""
    price = None if amount is None else FlatPrice(type="flat", amount=Decimal(amount), payment_term=term)
    return FlatFeeRateCard(
        type="flat_fee", key=key, name=key, feature_key=feature, billing_cadence=cadence, price=price
    )


def per_unit(amount: str = "0.01", *, feature: str = "tokens", cadence: str = "P1M") -> UsageBasedRateCard:
    """A price for each unit of the feature."""
    return UsageBasedRateCard(
        type="usage_based",
        key=feature,
        name=feature,
        feature_key=feature,
        billing_cadence=cadence,
        price=UnitPrice(type="unit", amount=Decimal(amount)),
    )


def phase(*cards: RateCard, key: str = "main", duration: str | None = None) -> Phase:
    return Phase(key=key, name=key, duration=duration, rate_cards=cards)


def a_meter(session: Session, slug: str = "tokens", aggregation: str = "SUM") -> Meter:
    """Counts the tokens of `spent` events by provider, model and type."""
    definition = MeterDefinition(
        event_type="llm",
        aggregation="MAX" if aggregation == "MAX" else "SUM",
        value_property="$.tokens",
        group_by={"provider": "$.provider", "model": "$.model", "type": "$.type"},
    )
    return create_meter(session, slug=slug, definition=definition, now=START)


def a_feature(
    session: Session,
    key: str = "tokens",
    *,
    meter: str | None = None,
    filters: Mapping[str, str] | None = None,
    now: datetime = START,
) -> Feature:
    return create_feature(
        session, key=key, name=key, meter_slug=meter, meter_group_by_filters=filters, now=now
    )


def a_metered_feature(session: Session, key: str = "tokens") -> Feature:
    """With a meter of its own, of the same name."""
    a_meter(session, key)
    return a_feature(session, key, meter=key)


def a_draft(
    session: Session,
    *phases: Phase,
    key: str = "pro",
    currency: str = "USD",
    cadence: str = "P1M",
    pro_rating: bool = True,
    now: datetime = START,
) -> Plan:
    return create_plan(
        session,
        key=key,
        name=key.capitalize(),
        currency=currency,
        billing_cadence=cadence,
        pro_rating=pro_rating,
        phases=phases or (phase(fee()),),
        now=now,
    )


def a_plan(
    session: Session,
    *phases: Phase,
    key: str = "pro",
    currency: str = "USD",
    cadence: str = "P1M",
    now: datetime = START,
) -> Plan:
    """Published at once."""
    draft = a_draft(session, *phases, key=key, currency=currency, cadence=cadence, now=now)
    return publish_plan(session, draft, now=now)


def an_addon_draft(
    session: Session,
    *cards: RateCard,
    key: str = "seats",
    currency: str = "USD",
    instance_type: str = "single",
    now: datetime = START,
) -> Addon:
    return create_addon(
        session,
        key=key,
        name=key.capitalize(),
        currency=currency,
        instance_type=instance_type,
        rate_cards=cards or (fee(),),
        now=now,
    )


def an_addon(
    session: Session,
    *cards: RateCard,
    key: str = "seats",
    currency: str = "USD",
    instance_type: str = "single",
    now: datetime = START,
) -> Addon:
    """Published at once."""
    draft = an_addon_draft(session, *cards, key=key, currency=currency, instance_type=instance_type, now=now)
    return publish_addon(session, draft, now=now)


def a_customer(
    session: Session, *subjects: str, key: str | None = None, currency: str | None = None
) -> Customer:
    details = CustomerDetails(name="Kong Air", key=key, subject_keys=subjects, currency=currency)
    return create_customer(session, details, now=START)


def sign_up(
    session: Session,
    customer: Customer,
    plan: Plan,
    *,
    start: datetime = START,
    anchor: datetime | None = None,
    now: datetime = START,
) -> Subscription:
    """As a request does: with the customer locked."""
    return create_subscription(
        session,
        customer=get_customer(session, customer.id, lock=True),
        plan=plan,
        active_from=start,
        billing_anchor=anchor,
        now=now,
    )


def spent(
    subject: str,
    tokens: object,
    when: str,
    *,
    provider: str = "openai",
    model: str = "gpt-4o",
    kind: str = "request",
) -> Event:
    """An event of its own id."""
    data = {"tokens": str(tokens), "provider": provider, "model": model, "type": kind}
    return Event(
        id=f"event-{next(_numbers)}",
        source="gateway",
        type="llm",
        subject=subject,
        time=at(when),
        data=json.dumps(data).encode(),
    )


def store(session: Session, *events: Event) -> None:
    connection = session.connection().connection.driver_connection
    assert connection is not None
    append_events(connection, keyed((event, event.time) for event in events), now=START)


def at_once(
    engine: Engine, first: Callable[[Session], object], second: Callable[[Session], T]
) -> "Future[T]":
    """Two transactions: the second works while the first is not yet committed, and may have to wait for it.

    Both have committed, or failed, when this returns; the future tells how the second one fared.
    """
    with ThreadPoolExecutor(1) as pool, Session(engine) as session:
        first(session)
        future = pool.submit(_in_a_transaction, engine, second)
        while not wait([future], timeout=0.005).done and not _somebody_waits(engine):
            pass
        session.commit()
    return future


def _in_a_transaction(engine: Engine, work: Callable[[Session], T]) -> T:
    with Session(engine, expire_on_commit=False) as session, session.begin():
        return work(session)


def _somebody_waits(engine: Engine) -> bool:
    """For a lock, in this database."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with engine.connect() as connection:
        return bool(connection.execute(text(waiting)).scalar_one())


@contextmanager
def counted_statements(engine: Engine) -> Iterator[list[str]]:
    """What is sent to the database while the block runs."""
    sent: list[str] = []

    def note(*arguments: object) -> None:
        sent.append(str(arguments[2]))

    event.listen(engine, "before_cursor_execute", note)
    yield sent
    event.remove(engine, "before_cursor_execute", note)
