"""A meter loses no dimension that somebody's price is told apart by; all that stands in the way is named."""

from datetime import datetime
from decimal import Decimal

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from billing.contracts.pending import WantedLine, add_pending_lines
from billing.contracts.subscription_changes import cancel_subscription
from billing.contracts.subscriptions import Subscription
from billing.invoices.actions import delete_invoice, invoice_now
from billing.invoices.due import LATE
from billing.invoices.meter_changes import update_meter
from billing.profiles.profile import get_profile
from billing.profiles.workflow import InvoicingSettings, Workflow
from catalog.addons import archive_addon, delete_addon
from catalog.features import MeterInUseError
from catalog.plans import Plan, archive_plan, delete_plan, publish_plan
from catalog.price import MatrixCell, MatrixPrice, Price, PriceTier, TieredPrice, TierUnitPrice
from catalog.rate_card import UsageBasedRateCard
from metering.errors import InvalidError
from metering.meters import get_meter
from metering.period import Period
from tests.billing_clock import bill_until, invoices_of
from tests.builders import (
    START,
    a_customer,
    a_draft,
    a_feature,
    a_metered_feature,
    a_plan,
    an_addon,
    an_addon_draft,
    at,
    at_once,
    per_unit,
    phase,
    sign_up,
    spent,
    store,
)

NOW = at("2026-02-10")
WITHOUT_TYPE = {"provider": "$.provider", "model": "$.model"}
MATRIX = MatrixPrice(
    type="matrix",
    dimensions=("provider", "type"),
    cells=(MatrixCell(values={"provider": "openai", "type": "request"}, amount=Decimal(1)),),
    default_amount=Decimal(2),
)
LADDERS = TieredPrice(
    type="tiered",
    mode="graduated",
    tiers=(PriceTier(unit_price=TierUnitPrice(type="unit", amount=Decimal(1))),),
    group_by=("type",),
)


def told_apart(price: Price = MATRIX, feature: str = "tokens") -> UsageBasedRateCard:
    return UsageBasedRateCard(
        type="usage_based", key=feature, name=feature, feature_key=feature, billing_cadence="P1M", price=price
    )


def drop_type(session: Session, group_by: dict[str, str] = WITHOUT_TYPE, now: datetime = NOW) -> None:
    meter = get_meter(session, "tokens")
    update_meter(
        session, "tokens", name=meter.name, description=None, metadata=None, group_by=group_by, now=now
    )


def in_the_way(session: Session, group_by: dict[str, str] = WITHOUT_TYPE, now: datetime = NOW) -> list[str]:
    with pytest.raises(MeterInUseError) as error:
        drop_type(session, group_by, now)
    assert "type" in get_meter(session, "tokens").group_by
    assert {(issue.code, issue.field) for issue in error.value.issues} == {("meter_in_use", "$.groupBy")}
    assert all(issue.hint for issue in error.value.issues)
    return [issue.message.split(" is told apart")[0] for issue in error.value.issues]


def gone(session: Session, plan: Plan) -> None:
    """What nobody can buy any more, nor move to."""
    archive_plan(session, plan, now=START)
    delete_plan(session, plan, now=START)


@pytest.mark.parametrize("price", [MATRIX, LADDERS])
def test_a_dimension_that_a_plan_sells_by_stays_until_nobody_can_have_the_plan(
    session: Session, price: Price
) -> None:
    a_metered_feature(session)
    plan = a_plan(session, phase(told_apart(price)))
    assert in_the_way(session) == ["a price of the plan 'pro' version 1"]
    archive_plan(session, plan, now=START)
    assert in_the_way(session) == ["a price of the plan 'pro' version 1"]
    delete_plan(session, plan, now=START)
    drop_type(session)
    assert get_meter(session, "tokens").group_by == WITHOUT_TYPE


def test_to_read_it_from_elsewhere_is_as_bad_as_to_drop_it(session: Session) -> None:
    a_metered_feature(session)
    a_plan(session, phase(told_apart()))
    elsewhere = {**WITHOUT_TYPE, "type": "$.kind"}
    assert in_the_way(session, elsewhere) == ["a price of the plan 'pro' version 1"]
    drop_type(session, {"provider": "$.provider", "type": "$.type", "region": "$.region"})


def test_nor_goes_one_that_an_add_on_sells_by(session: Session) -> None:
    a_metered_feature(session)
    addon = an_addon(session, told_apart())
    assert in_the_way(session) == ["a price of the add-on 'seats' version 1"]
    archive_addon(session, addon, now=START)
    delete_addon(session, addon, now=START)
    drop_type(session)


def test_a_draft_of_a_plan_is_no_hindrance_and_is_not_published_without_it(session: Session) -> None:
    a_metered_feature(session)
    an_addon_draft(session, told_apart())
    draft = a_draft(session, phase(told_apart()))
    drop_type(session)
    with pytest.raises(InvalidError, match="'type'"):
        publish_plan(session, draft, now=NOW)


def test_another_meter_and_other_prices_are_no_hindrance(session: Session) -> None:
    a_metered_feature(session)
    a_metered_feature(session, "others")
    a_feature(session, "all", meter="tokens")
    a_plan(session, phase(told_apart(feature="others"), per_unit(feature="all")))
    drop_type(session)


def subscribed(session: Session) -> Subscription:
    """To a plan that is gone, so that only the contract is left."""
    a_metered_feature(session)
    customer, plan = a_customer(session, "ada"), a_plan(session, phase(told_apart()))
    subscription = sign_up(session, customer, plan)
    gone(session, plan)
    return subscription


def test_a_running_contract_keeps_it_and_an_ended_one_as_long_as_late_usage_is_billed(
    session: Session,
) -> None:
    subscription = subscribed(session)
    assert in_the_way(session) == [f"a price of the subscription {subscription.id}"]
    bill_until(session, START)
    cancel_subscription(session, subscription.id, now=at("2026-01-20"))
    last_day = at("2026-01-20") + LATE
    bill_until(session, last_day)
    assert in_the_way(session, now=at("2026-01-21")) == [f"a price of the subscription {subscription.id}"]
    drop_type(session, now=last_day)


def test_a_line_by_hand_keeps_it_as_long_as_its_usage_is_looked_for(session: Session) -> None:
    a_metered_feature(session)
    month = Period(start=START, end=at("2026-02-01"))
    wanted = WantedLine(rate_card=told_apart(), period=month, invoice_at=at("2026-02-01"))
    customer = a_customer(session, "ada")
    store(session, spent("ada", 7, "2026-01-08"))
    (line,) = add_pending_lines(session, customer, currency="USD", lines=[wanted], now=START)
    for today in ("2026-01-02", "2026-02-02", "2026-04-02"):
        bill_until(session, at(today))
        assert in_the_way(session) == [f"the price of the line {line.id}, which was added by hand,"]
    bill_until(session, at("2026-04-05"))
    drop_type(session)


def test_a_draft_keeps_it_until_it_is_given_up(session: Session) -> None:
    a_metered_feature(session)
    profile = get_profile(session, None)
    profile.workflow = Workflow(invoicing=InvoicingSettings(auto_advance=False))
    month = Period(start=START, end=at("2026-02-01"))
    wanted = WantedLine(rate_card=told_apart(), period=month, invoice_at=at("2026-02-01"))
    customer = a_customer(session, "ada")
    (line,) = add_pending_lines(session, customer, currency="USD", lines=[wanted], now=START)
    invoice_now(session, customer.id, now=NOW)
    (draft,) = invoices_of(session)
    by_hand = f"the price of the line {line.id}, which was added by hand,"
    assert in_the_way(session) == [by_hand, f"a price on the draft {draft.number}"]
    delete_invoice(session, draft.id, now=NOW)
    assert in_the_way(session) == [by_hand]
    bill_until(session, at("2026-04-05"))
    drop_type(session)


def test_a_plan_that_is_written_meanwhile_is_checked_against_what_the_meter_has_become(
    engine: Engine,
) -> None:
    with Session(engine, expire_on_commit=False) as session, session.begin():
        a_metered_feature(session)
    second = at_once(engine, drop_type, lambda session: a_plan(session, phase(told_apart())))
    error = second.exception()
    assert isinstance(error, InvalidError)
    assert "'type'" in error.detail


def test_a_dimension_is_not_dropped_while_a_plan_is_written_that_needs_it(engine: Engine) -> None:
    with Session(engine, expire_on_commit=False) as session, session.begin():
        a_metered_feature(session)
    second = at_once(engine, lambda session: a_plan(session, phase(told_apart())), drop_type)
    assert isinstance(second.exception(), MeterInUseError)
