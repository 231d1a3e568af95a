from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from billing.contracts.customer import CustomerDeletedError, get_customer
from billing.contracts.customer_changes import delete_customer
from billing.contracts.subscriptions import (
    OneSubscriptionAtATimeError,
    PlanNotActiveError,
    Subscription,
    SubscriptionNotFoundError,
    create_subscription,
    get_subscription,
    has_subscription,
    subscriptions_of,
)
from billing.rating.timeline import charges
from catalog.features import archive_feature
from catalog.interval import parse_interval
from catalog.plans import get_plan
from metering.errors import InvalidError
from tests.builders import (
    START,
    a_customer,
    a_draft,
    a_feature,
    a_metered_feature,
    a_plan,
    at,
    at_once,
    fee,
    per_unit,
    phase,
    sign_up,
)

DAY = timedelta(days=1)


def reread(session: Session, subscription: Subscription) -> Subscription:
    session.flush()
    session.expire_all()
    return get_subscription(session, subscription.id)


def dated(subscription: Subscription) -> list[tuple[str, str, str | None]]:
    """Key, first and last day of each phase."""
    return [
        (one.key, f"{one.active_from:%Y-%m-%d}", f"{one.active_to:%Y-%m-%d}" if one.active_to else None)
        for one in subscription.phases
    ]


def test_a_subscription_copies_what_the_plan_says(session: Session, now: datetime) -> None:
    a_metered_feature(session)
    plan = a_plan(session, phase(fee("20"), per_unit("0.1")), currency="EUR", cadence="P3M")
    signed = reread(session, sign_up(session, a_customer(session), plan, start=now, now=now))
    assert (signed.plan, signed.name, signed.description) == (plan, "Pro", None)
    assert (signed.currency, signed.billing_cadence, signed.pro_rating) == ("EUR", "P3M", True)
    assert (signed.active_from, signed.active_to, signed.billing_anchor) == (now, None, now)
    (only,) = signed.phases
    assert (only.key, only.name, only.active_from, only.active_to) == ("main", "main", now, None)
    assert [(item.key, item.version, item.active_from, item.active_to) for item in only.items] == [
        ("seat", 0, now, None),
        ("tokens", 0, now, None),
    ]
    assert tuple(item.rate_card for item in only.items) == plan.phases[0].rate_cards
    assert [item.feature_id for item in only.items] == [None, plan.feature_ids["tokens"]]


def test_the_contract_on_the_timeline_is_the_subscription(session: Session, now: datetime) -> None:
    a_metered_feature(session)
    plan = a_plan(session, phase(fee(None), key="trial", duration="P14D"), phase(fee("20"), per_unit()))
    signed = sign_up(session, a_customer(session), plan, start=now, anchor=at("2026-01-01"), now=now)
    before = signed.contract
    contract = reread(session, signed).contract
    assert contract == before
    assert (contract.subscription_id, contract.currency, contract.prorate) == (signed.id, "USD", True)
    assert contract.billing_anchor == at("2026-01-01")
    assert contract.billing_cadence == parse_interval("P1M")
    told = [(item.phase_key, item.key, item.start, item.end) for item in contract.items]
    assert told == [
        ("trial", "seat", now, now + 14 * DAY),
        ("main", "seat", now + 14 * DAY, None),
        ("main", "tokens", now + 14 * DAY, None),
    ]
    assert [item.phase_id for item in contract.items] == [
        signed.phases[0].id,
        signed.phases[1].id,
        signed.phases[1].id,
    ]
    assert contract.items[2].feature_id == plan.feature_ids["tokens"]
    assert contract.items[1].id == signed.phases[1].items[0].id


def test_without_prorating_in_the_plan_there_is_none_in_the_contract(session: Session, now: datetime) -> None:
    plan = a_draft(session, pro_rating=False)
    plan.effective_from = START
    signed = sign_up(session, a_customer(session), plan, now=now)
    assert not reread(session, signed).contract.prorate


def test_what_the_subscriber_says_stands_before_what_the_plan_says(session: Session, now: datetime) -> None:
    plan = a_plan(session)
    plan.description = "for teams"
    first = sign_up(session, a_customer(session), plan, now=now)
    assert (first.name, first.description, first.metadata_) == ("Pro", "for teams", None)
    second = create_subscription(
        session,
        customer=a_customer(session),
        plan=plan,
        active_from=now,
        name="Ours",
        description="",
        metadata={"po": "1"},
        now=now,
    )
    assert (second.name, second.description, second.metadata_) == ("Ours", "", {"po": "1"})


def test_instants_are_cut_to_whole_seconds(session: Session, now: datetime) -> None:
    fraction = timedelta(microseconds=999_999)
    signed = sign_up(
        session, a_customer(session), a_plan(session), start=now + fraction, anchor=START + fraction, now=now
    )
    assert (signed.active_from, signed.billing_anchor) == (now, START)


def test_a_subscription_may_begin_in_the_past_or_in_the_future(session: Session, now: datetime) -> None:
    plan = a_plan(session, now=now)
    past = sign_up(session, a_customer(session), plan, start=at("2024-02-29"), now=now)
    future = sign_up(session, a_customer(session), plan, start=now + DAY, now=now)
    assert (past.status(now), future.status(now)) == ("active", "scheduled")
    assert len(charges(past.contract, until=now)) == 25
    assert charges(future.contract, until=now) == []


@pytest.mark.parametrize(
    ("ends", "when", "status"),
    [
        (None, -1, "scheduled"),
        (None, 0, "active"),
        (10, 9, "canceled"),
        (10, 10, "inactive"),
        (10, -1, "scheduled"),
    ],
)
def test_the_status_follows_from_the_instants(
    session: Session, ends: int | None, when: int, status: str
) -> None:
    signed = sign_up(session, a_customer(session), a_plan(session))
    signed.active_to = None if ends is None else START + ends * DAY
    assert signed.status(START + when * DAY) == status


# --- phases ------------------------------------------------------------------------------------------------


def test_phases_follow_one_another_without_gap(session: Session) -> None:
    plan = a_plan(
        session,
        phase(fee(None), key="trial", duration="P14D"),
        phase(fee("5"), key="ramp", duration="P2M"),
        phase(fee("10"), key="full"),
    )
    signed = sign_up(session, a_customer(session), plan, start=at("2026-01-20"))
    assert dated(reread(session, signed)) == [
        ("trial", "2026-01-20", "2026-02-03"),
        ("ramp", "2026-02-03", "2026-04-03"),
        ("full", "2026-04-03", None),
    ]


def test_months_of_several_phases_are_counted_from_one_day_and_do_not_drift(session: Session) -> None:
    plan = a_plan(
        session,
        phase(fee("1"), key="first", duration="P1M"),
        phase(fee("2"), key="second", duration="P1M"),
        phase(fee("3"), key="third", duration="P1Y"),
        phase(fee("4"), key="rest"),
    )
    signed = sign_up(session, a_customer(session), plan, start=at("2026-01-31"))
    assert dated(reread(session, signed)) == [
        ("first", "2026-01-31", "2026-02-28"),
        ("second", "2026-02-28", "2026-03-31"),
        ("third", "2026-03-31", "2027-03-31"),
        ("rest", "2027-03-31", None),
    ]
    assert [charge.share for charge in charges(signed.contract, until=at("2026-04-15"))] == [1, 1, 1]


def test_months_after_a_fixed_time_are_counted_from_its_end(session: Session) -> None:
    plan = a_plan(
        session,
        phase(fee("1"), key="month", duration="P1M"),
        phase(fee("2"), key="days", duration="P3D"),
        phase(fee("3"), key="mixed", duration="P1M1D"),
        phase(fee("4"), key="again", duration="P1M"),
        phase(fee("5"), key="rest"),
    )
    signed = sign_up(session, a_customer(session), plan, start=at("2026-01-31"))
    assert dated(signed) == [
        ("month", "2026-01-31", "2026-02-28"),
        ("days", "2026-02-28", "2026-03-03"),
        ("mixed", "2026-03-03", "2026-04-04"),
        ("again", "2026-04-04", "2026-05-04"),
        ("rest", "2026-05-04", None),
    ]


def test_a_starting_phase_leaves_out_those_before_it(session: Session, now: datetime) -> None:
    plan = a_plan(
        session,
        phase(fee(None), key="trial", duration="P14D"),
        phase(fee("5"), key="ramp", duration="P1M"),
        phase(fee("10"), key="full"),
    )
    signed = create_subscription(
        session,
        customer=a_customer(session),
        plan=plan,
        active_from=at("2026-01-20"),
        starting_phase="ramp",
        now=now,
    )
    assert dated(reread(session, signed)) == [
        ("ramp", "2026-01-20", "2026-02-20"),
        ("full", "2026-02-20", None),
    ]


def test_a_starting_phase_that_the_plan_does_not_have_is_refused_with_its_path(
    session: Session, now: datetime
) -> None:
    customer, plan = a_customer(session), a_plan(session)
    with pytest.raises(InvalidError) as caught:
        create_subscription(
            session, customer=customer, plan=plan, active_from=now, starting_phase="trial", now=now
        )
    assert [(issue.code, issue.field) for issue in caught.value.issues] == [
        ("unknown_phase", "$.startingPhase")
    ]
    assert not has_subscription(session, customer.id, since=now)


# --- what is sold ------------------------------------------------------------------------------------------


def test_a_draft_is_not_sold(session: Session, now: datetime) -> None:
    customer, draft = a_customer(session), a_draft(session)
    with pytest.raises(PlanNotActiveError, match="is draft") as caught:
        sign_up(session, customer, draft, now=now)
    assert [(issue.code, issue.field) for issue in caught.value.issues] == [("plan_invalid_status", "$.plan")]


def test_an_archived_version_is_not_sold_nor_one_that_is_not_yet_active(
    session: Session, now: datetime
) -> None:
    customer, old = a_customer(session), a_plan(session)
    new = a_plan(session, now=now)
    with pytest.raises(PlanNotActiveError, match="version 1 is archived"):
        sign_up(session, customer, old, now=now)
    with pytest.raises(PlanNotActiveError, match="version 2 is scheduled"):
        sign_up(session, customer, new, now=now - DAY)
    assert sign_up(session, customer, new, now=now).plan is new


def test_what_happens_to_the_plan_later_does_not_reach_the_contract(session: Session, now: datetime) -> None:
    old = a_metered_feature(session)
    signed = sign_up(session, a_customer(session), a_plan(session, phase(fee("20"), per_unit())))
    contract = signed.contract
    archive_feature(session, old, now=now)
    new = a_feature(session, "tokens", meter="tokens", filters={"provider": "openai"}, now=now)
    second = a_plan(session, phase(fee("99"), per_unit("7")), now=now)
    assert second.feature_ids == {"tokens": new.id}
    assert reread(session, signed).contract == contract
    assert contract.items[1].feature_id == old.id


# --- one at a time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [START, START + 30 * DAY], ids=["running", "scheduled"])
def test_a_customer_has_one_subscription_at_a_time(session: Session, start: datetime) -> None:
    customer, plan = a_customer(session), a_plan(session)
    first = sign_up(session, customer, plan, start=start)
    with pytest.raises(OneSubscriptionAtATimeError) as caught:
        sign_up(session, customer, plan)
    (issue,) = caught.value.issues
    assert issue.code == "only_single_subscription_allowed_per_customer_at_a_time"
    assert issue.field == "$.customerId"
    assert [each.id for each in subscriptions_of(session, [customer.id])] == [first.id]


def test_another_customer_may_have_the_same_plan(session: Session) -> None:
    plan = a_plan(session)
    sign_up(session, a_customer(session), plan)
    other = a_customer(session)
    sign_up(session, other, plan)
    assert has_subscription(session, other.id, since=START)


def test_the_next_subscription_may_begin_where_the_last_one_ended(session: Session, now: datetime) -> None:
    customer, plan = a_customer(session), a_plan(session)
    first = sign_up(session, customer, plan)
    first.active_to = now
    assert not has_subscription(session, customer.id, since=now)
    assert has_subscription(session, customer.id, since=now - DAY)
    second = sign_up(session, customer, plan, start=now, now=now)
    session.expire_all()
    signed = subscriptions_of(session, [customer.id, "unknown"])
    assert [each.id for each in signed] == [first.id, second.id]


def test_a_backdated_subscription_never_overlaps_one_that_has_ended(session: Session, now: datetime) -> None:
    customer, plan = a_customer(session), a_plan(session)
    sign_up(session, customer, plan).active_to = now - DAY
    with pytest.raises(OneSubscriptionAtATimeError):
        sign_up(session, customer, plan, start=now - 2 * DAY, now=now)
    sign_up(session, customer, plan, start=now - DAY, now=now)


def test_of_two_who_sign_a_customer_up_at_once_one_wins(engine: Engine) -> None:
    with Session(engine, expire_on_commit=False) as session:
        customer = a_customer(session)
        a_plan(session)
        session.commit()

    def sign(session: Session) -> Subscription:
        return sign_up(session, customer, get_plan(session, "pro"))

    assert isinstance(at_once(engine, sign, sign).exception(), OneSubscriptionAtATimeError)
    with Session(engine) as session:
        assert len(subscriptions_of(session, [customer.id])) == 1


def test_a_customer_that_is_being_deleted_is_not_signed_up(engine: Engine) -> None:
    with Session(engine, expire_on_commit=False) as session:
        customer = a_customer(session, "s")
        a_plan(session)
        session.commit()
    second = at_once(
        engine,
        lambda session: delete_customer(session, get_customer(session, customer.id, lock=True), now=START),
        lambda session: sign_up(session, customer, get_plan(session, "pro")),
    )
    assert isinstance(second.exception(), CustomerDeletedError)
    with Session(engine) as session:
        assert subscriptions_of(session, [customer.id]) == []


# --- currency ----------------------------------------------------------------------------------------------


def test_the_first_priced_subscription_settles_the_customers_currency(session: Session) -> None:
    customer = a_customer(session)
    sign_up(session, customer, a_plan(session, currency="EUR"))
    session.flush()
    session.expire_all()
    assert get_customer(session, customer.id).currency == "EUR"


def test_a_plan_in_another_currency_is_refused(session: Session, now: datetime) -> None:
    customer = a_customer(session, currency="EUR")
    with pytest.raises(InvalidError) as caught:
        sign_up(session, customer, a_plan(session, currency="USD"), now=now)
    assert [(issue.code, issue.field) for issue in caught.value.issues] == [("currency_mismatch", "$.plan")]
    assert not has_subscription(session, customer.id, since=now)
    assert customer.currency == "EUR"


def test_a_plan_in_the_customers_currency_is_taken(session: Session) -> None:
    customer = a_customer(session, currency="EUR")
    assert sign_up(session, customer, a_plan(session, currency="EUR")).currency == "EUR"


@pytest.mark.parametrize("currency", [None, "EUR"])
def test_a_free_plan_settles_no_currency_and_needs_none(session: Session, currency: str | None) -> None:
    customer = a_customer(session, currency=currency)
    sign_up(session, customer, a_plan(session, phase(fee(None)), currency="USD"))
    assert customer.currency == currency


def test_a_price_in_any_phase_settles_the_currency(session: Session) -> None:
    customer = a_customer(session)
    plan = a_plan(
        session, phase(fee(None), key="trial", duration="P1M"), phase(fee(None, key="sso"), fee(), key="paid")
    )
    sign_up(session, customer, plan)
    assert customer.currency == "USD"


# --- zones and lookup --------------------------------------------------------------------------------------


def test_a_start_in_another_zone_is_the_same_instant_and_the_same_charges(
    session: Session, now: datetime
) -> None:
    in_berlin = at("2026-01-31T23:30:00").astimezone(timezone(timedelta(hours=1)))
    signed = sign_up(session, a_customer(session), a_plan(session), start=in_berlin)
    before = [charge.identity for charge in charges(signed.contract, until=now)]
    after = [charge.identity for charge in charges(reread(session, signed).contract, until=now)]
    assert after == before
    assert signed.active_from == at("2026-01-31T23:30:00")


def test_what_does_not_exist_is_not_found(session: Session) -> None:
    with pytest.raises(SubscriptionNotFoundError):
        get_subscription(session, "unknown")


def test_items_and_phases_come_back_in_the_order_of_the_plan(session: Session) -> None:
    cards = [fee(key=key) for key in ("z", "a", "m")]
    phases = [replace(phase(*cards, key=key), duration="P1M") for key in ("second", "first")]
    plan = a_plan(session, *phases, phase(*cards, key="a-last"))
    signed = reread(session, sign_up(session, a_customer(session), plan))
    assert [one.key for one in signed.phases] == ["second", "first", "a-last"]
    assert [[item.key for item in one.items] for one in signed.phases] == [["z", "a", "m"]] * 3
