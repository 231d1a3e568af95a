"""Values in columns: what is read is what was written, and equal ones are decoded once."""

from dataclasses import replace
from decimal import Decimal

from sqlalchemy import select
from sqlalchemy.orm import Session

from billing.contracts.customer import Address, Customer
from billing.contracts.subscriptions import SubscriptionItem
from catalog.price import UnitPrice
from catalog.rate_card import RateCard
from tests.builders import a_customer, a_metered_feature, a_plan, per_unit, phase, sign_up

TINY = Decimal("0.000000000000000000000000000001")


def cards(session: Session) -> list[RateCard]:
    session.flush()
    session.expunge_all()
    return list(session.scalars(select(SubscriptionItem.rate_card).order_by(SubscriptionItem.id)))


def test_customers_of_one_plan_share_its_rate_card(session: Session) -> None:
    a_metered_feature(session)
    card = replace(per_unit(), price=UnitPrice(type="unit", amount=TINY))
    plan = a_plan(session, phase(card))
    for subject in ("ada", "bob"):
        sign_up(session, a_customer(session, subject), plan)
    first, second = cards(session)
    assert first == card
    assert first is second


def test_a_value_that_is_changed_is_read_as_it_is_then(session: Session) -> None:
    customer = a_customer(session)
    seen = []
    for country in ("DE", None, "FR", "DE"):
        customer.billing_address = None if country is None else Address(country=country)
        session.flush()
        session.refresh(customer)
        seen.append(customer.billing_address)
    assert seen == [Address(country="DE"), None, Address(country="FR"), Address(country="DE")]
    assert session.scalar(select(Customer.billing_address)) == seen[-1]
