"""Each change of a subscription as it is stored: dated rows, what may be done when, one at a time."""

import runpy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise

import pytest
from sqlalchemy import Engine, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from billing.contracts.agreement import CustomPlan, PlanNotActiveError
from billing.contracts.customer import Customer, get_customer
from billing.contracts.edits import AddItem, ContractEdit, RemoveItem, StretchPhase
from billing.contracts.subscription_changes import (
    InvalidEditError,
    InvalidTimingError,
    MigrationError,
    cancel_subscription,
    change_subscription,
    delete_subscription,
    edit_subscription,
    migrate_subscription,
    restore_subscription,
    unschedule_cancelation,
)
from billing.contracts.subscription_rules import SubscriptionForbiddenError
from billing.contracts.subscriptions import (
    OneSubscriptionAtATimeError,
    Subscription,
    SubscriptionNotFoundError,
    SubscriptionPhase,
    billing_period,
    create_subscription,
    get_subscription,
    subscriptions_of,
)
from billing.rating.pricing import NOTHING
from billing.rating.rater import rate
from billing.rating.timeline import charges
from billing.runs.run import run_portion
from catalog.plans import Plan, archive_plan, get_plan
from catalog.rate_card import RateCard
from metering.errors import ConflictError, InvalidError, TollgateError
from metering.period import Period
from tests.billing_clock import bill_until, ledger, wrong
from tests.builders import (
    START,
    a_customer,
    a_metered_feature,
    a_plan,
    at,
    at_once,
    fee,
    per_unit,
    phase,
    sign_up,
)
from tests.server import ROOT

DAY = timedelta(days=1)
FEBRUARY, MARCH, APRIL = at("2026-02-01"), at("2026-03-01"), at("2026-04-01")
NOW = at("2026-03-15T12:00:00")


def signed(session: Session, *phases: object, start: datetime = START, **more: datetime) -> Subscription:
    plan = a_plan(session, *phases)  # type: ignore[arg-type]  # phases
    return sign_up(session, a_customer(session), plan, start=start, now=START, **more)


def stored(session: Session, subscription: Subscription) -> Subscription:
    session.flush()
    session.expire_all()
    return get_subscription(session, subscription.id)


def rows(subscription: Subscription) -> list[tuple[str, str, int, str, str]]:
    return [
        (one.key, item.key, item.version, day(item.active_from), day(item.active_to))
        for one in subscription.phases
        for item in one.items
    ]


def day(instant: datetime | None) -> str:
    return "" if instant is None else f"{instant:%m-%d}" + (f"T{instant:%H}" if instant.hour else "")


def add(card: RateCard, key: str = "main") -> AddItem:
    return AddItem(op="add_item", phase_key=key, rate_card=card)


def codes(error: TollgateError) -> list[tuple[str, str]]:
    return [(issue.code, issue.field) for issue in error.issues]


def owed(subscription: Subscription, until: datetime) -> Decimal:
    found = charges(subscription.contract, until=until)
    return sum((rate(one.terms, NOTHING).totals.total for one in found), Decimal(0))


# -- Cancel --------------------------------------------------------------------------------------------------


def test_canceled_at_once_it_has_ended_and_sells_nothing_more(session: Session) -> None:
    one = signed(session, phase(fee("31"), key="trial", duration="P3M"), phase(fee("99"), key="paid"))
    cancel_subscription(session, one.id, now=NOW)
    one = stored(session, one)
    assert (one.status(NOW), one.active_to, one.before_cancelation) == ("inactive", NOW, None)
    assert rows(one) == [("trial", "seat", 0, "01-01", "03-15T12")]
    assert one.next_billing_at == START  # was never billed; else it would be now
    assert owed(one, until=at("2027-01-01")) == Decimal("76.50")  # two months, and 14.5 of 31 days


@pytest.mark.parametrize(
    ("timing", "end"),
    [("next_billing_cycle", APRIL), (at("2026-03-20T06:30:00.5"), at("2026-03-20T06:30:00")), (MARCH, MARCH)],
    ids=["with the cycle", "at an instant", "in the past"],
)
def test_it_may_end_at_any_instant_of_its_life(
    session: Session, timing: datetime | str, end: datetime
) -> None:
    one = signed(session)
    one.next_billing_at = APRIL
    cancel_subscription(session, one.id, timing=timing, now=NOW)  # type: ignore[arg-type]
    one = stored(session, one)
    assert (one.active_to, one.phases[0].active_to, one.phases[0].items[0].active_to) == (end, end, end)
    assert one.status(NOW) == ("inactive" if end <= NOW else "canceled")
    assert one.next_billing_at == NOW


def test_the_cycle_ends_with_the_phase(session: Session) -> None:
    one = signed(session, phase(fee(), key="trial", duration="P80D"), phase(fee(), key="paid"))
    assert (
        cancel_subscription(session, one.id, timing="next_billing_cycle", now=NOW).active_to
        == START + 80 * DAY
    )


def test_it_can_not_end_before_it_begins(session: Session) -> None:
    one = signed(session)
    with pytest.raises(InvalidTimingError) as caught:
        cancel_subscription(session, one.id, timing=START - DAY, now=NOW)
    assert codes(caught.value) == [("timing_before_start", "$.timing")]
    assert stored(session, one).active_to is None


def test_ended_in_the_second_in_which_it_began_it_never_sold_anything(session: Session) -> None:
    one = signed(session, phase(fee(cadence=None)))
    cancel_subscription(session, one.id, now=START + timedelta(microseconds=1))
    assert charges(stored(session, one).contract, until=NOW) == []
    sign_up(session, get_customer(session, one.customer_id), get_plan(session, "pro"), start=START - DAY)


def test_a_cancelation_is_unscheduled_and_it_goes_on_as_agreed(session: Session) -> None:
    one = signed(session, phase(fee(), key="trial", duration="P4M"), phase(fee("9"), key="paid"))
    before = (rows(one), one.contract)
    cancel_subscription(session, one.id, timing=NOW + DAY, now=NOW)
    assert rows(stored(session, one)) == [("trial", "seat", 0, "01-01", "03-16T12")]
    unschedule_cancelation(session, one.id, now=NOW)
    again = stored(session, one)
    assert (again.active_to, again.before_cancelation, again.status(NOW)) == (None, None, "active")
    assert (rows(again), again.contract) == before


# -- Change and migrate --------------------------------------------------------------------------------------


def test_a_change_ends_one_and_begins_the_other_at_the_same_instant(session: Session) -> None:
    one = signed(session, phase(fee("31")))
    bigger = a_plan(session, phase(fee("62")), key="bigger")
    current, following = change_subscription(session, one.id, plan=bigger, timing="immediate", now=NOW)
    assert (current.active_to, current.status(NOW)) == (NOW, "inactive")
    assert (following.active_from, following.billing_anchor, following.status(NOW)) == (NOW, START, "active")
    assert (following.plan, following.name) == (bigger, "Bigger")
    assert owed(stored(session, current), APRIL - DAY) == Decimal("76.50")
    assert owed(stored(session, following), APRIL - DAY) == Decimal("33.00")


def test_a_change_may_wait_for_the_cycle_and_say_more(session: Session) -> None:
    one = signed(session)
    bigger = a_plan(
        session, phase(fee(), key="trial", duration="P1M"), phase(fee("62"), key="paid"), key="bigger"
    )
    current, following = change_subscription(
        session,
        one.id,
        plan=bigger,
        timing="next_billing_cycle",
        billing_anchor=at("2026-04-05"),
        starting_phase="paid",
        name="Ours",
        description="more",
        metadata={"a": "b"},
        now=NOW,
    )
    assert (current.status(NOW), current.active_to) == ("canceled", APRIL)
    assert (following.status(NOW), following.active_from) == ("scheduled", APRIL)
    assert following.billing_anchor == at("2026-04-05")
    assert (following.name, following.description, following.metadata_) == ("Ours", "more", {"a": "b"})
    assert rows(following) == [("paid", "seat", 0, "04-01", "")]


def test_one_that_is_canceled_may_change_before_it_ends_and_not_after(session: Session) -> None:
    one = signed(session)
    bigger = a_plan(session, key="bigger")
    cancel_subscription(session, one.id, timing=APRIL, now=NOW)
    with pytest.raises(InvalidTimingError) as caught:
        change_subscription(session, one.id, plan=bigger, timing=APRIL + DAY, now=NOW)
    assert codes(caught.value) == [("timing_after_end", "$.timing")]
    current, following = change_subscription(session, one.id, plan=bigger, timing=NOW + DAY, now=NOW)
    assert current.active_to == following.active_from == NOW + DAY
    with pytest.raises(OneSubscriptionAtATimeError):
        change_subscription(session, one.id, plan=bigger, timing=NOW, now=NOW)


def test_a_change_to_a_plan_that_is_not_sold_changes_nothing(session: Session) -> None:
    one = signed(session)
    old = a_plan(session, key="old")
    archive_plan(session, old, now=NOW)
    with pytest.raises(PlanNotActiveError):
        change_subscription(session, one.id, plan=old, timing="immediate", now=NOW)
    assert stored(session, one).active_to is None


def test_a_migration_takes_the_newest_version_or_the_one_that_is_named(session: Session) -> None:
    one = signed(session)
    second, third = a_plan(session, phase(fee("20"))), a_plan(session, phase(fee("30")))
    current, following = migrate_subscription(session, one.id, target_version=2, now=NOW)
    assert (following.plan, current.active_to, following.active_from) == (second, NOW, NOW)
    _, last = migrate_subscription(session, following.id, timing="next_billing_cycle", now=NOW)
    assert (last.plan, last.active_from, last.billing_anchor) == (third, APRIL, START)


def test_a_migration_goes_forward_only(session: Session) -> None:
    one = signed(session)
    with pytest.raises(MigrationError) as caught:
        migrate_subscription(session, one.id, now=NOW)
    assert codes(caught.value) == [("plan_version_not_newer", "$.targetVersion")]
    assert stored(session, one).active_to is None


def test_terms_of_ones_own_have_no_versions(session: Session) -> None:
    one = create_subscription(
        session, customer=a_customer(session), plan=CUSTOM, active_from=START, now=START
    )
    with pytest.raises(MigrationError) as caught:
        migrate_subscription(session, one.id, now=NOW)
    assert codes(caught.value) == [("custom_subscription", "$")]


# -- Restore and delete --------------------------------------------------------------------------------------


def test_restored_it_goes_on_and_what_was_to_follow_is_gone(session: Session) -> None:
    one = signed(session)
    before = one.contract
    _, following = change_subscription(
        session, one.id, plan=a_plan(session, key="bigger"), timing="next_billing_cycle", now=NOW
    )
    restore_subscription(session, one.id, now=NOW)
    again = stored(session, one)
    assert (again.status(NOW), again.contract) == ("active", before)
    with pytest.raises(SubscriptionNotFoundError):
        get_subscription(session, following.id)
    assert stored(session, restore_subscription(session, one.id, now=NOW)).contract == before


def test_a_cancelation_stays_while_another_subscription_follows(session: Session) -> None:
    one = signed(session)
    change_subscription(
        session, one.id, plan=a_plan(session, key="bigger"), timing="next_billing_cycle", now=NOW
    )
    with pytest.raises(OneSubscriptionAtATimeError):
        unschedule_cancelation(session, one.id, now=NOW)
    assert stored(session, one).active_to == APRIL


def test_after_a_cancelation_another_may_be_scheduled_where_it_ends(session: Session) -> None:
    one = signed(session)
    customer, plan = get_customer(session, one.customer_id), get_plan(session, "pro")
    cancel_subscription(session, one.id, timing=APRIL, now=NOW)
    with pytest.raises(OneSubscriptionAtATimeError):
        sign_up(session, customer, plan, start=APRIL - DAY, now=NOW)
    assert sign_up(session, customer, plan, start=APRIL, now=NOW).status(NOW) == "scheduled"


def test_one_that_has_not_begun_is_deleted_with_all_its_rows(session: Session) -> None:
    one = signed(session, start=NOW + DAY)
    delete_subscription(session, one.id, now=NOW)
    assert subscriptions_of(session, [one.customer_id]) == []
    with pytest.raises(SubscriptionNotFoundError):
        delete_subscription(session, one.id, now=NOW)


@pytest.mark.parametrize(
    ("how", "error", "hint"),
    [("delete", SubscriptionForbiddenError, "Cancel"), ("restore", ConflictError, "again")],
)
def test_what_began_and_was_billed_while_somebody_waited_to_delete_it_stays(
    engine: Engine, how: str, error: type[TollgateError], hint: str
) -> None:
    with Session(engine, expire_on_commit=False) as session, session.begin():
        one = signed(session, phase(fee("31")))
        bigger = a_plan(session, phase(fee("100")), key="bigger")
        _, following = change_subscription(session, one.id, plan=bigger, timing=APRIL, now=NOW)
        bill_until(session, NOW)
    before = APRIL - timedelta(seconds=1)

    def late(session: Session) -> None:
        if how == "delete":
            delete_subscription(session, following.id, now=before)
        else:
            restore_subscription(session, one.id, now=before)

    refused = at_once(engine, lambda session: run_portion(session, now=APRIL), late).exception()
    assert isinstance(refused, error)
    assert [issue.code for issue in refused.issues] == ["subscription_action_not_allowed"]
    assert hint in str(refused.issues[0].hint)
    with Session(engine) as session:
        assert len(subscriptions_of(session, [one.customer_id])) == 2
        bill_until(session, APRIL + DAY)
        assert ledger(session)[-1] == "2026-04-01 paid 100.00: seat 04-01..05-01 100.00"
        assert wrong(session, APRIL + DAY) == []


# -- Edits ---------------------------------------------------------------------------------------------------


def test_an_edit_is_written_as_dated_rows(session: Session) -> None:
    a_metered_feature(session)
    one = signed(session, phase(fee("10"), fee(key="x")))
    one.next_billing_at = APRIL
    ids = [item.id for item in one.phases[0].items]
    edits: list[ContractEdit] = [
        add(fee("20")),
        RemoveItem(op="remove_item", phase_key="main", item_key="x"),
        add(per_unit()),
    ]
    edit_subscription(session, one.id, edits, now=NOW)
    one = stored(session, one)
    assert rows(one) == [
        ("main", "seat", 0, "01-01", "03-15T12"),
        ("main", "seat", 1, "03-15T12", ""),
        ("main", "x", 0, "01-01", "03-15T12"),
        ("main", "tokens", 0, "03-15T12", ""),
    ]
    items = one.phases[0].items
    assert [items[0].id, items[2].id] == ids
    assert items[3].feature_id is not None
    assert (items[0].created_at, items[0].updated_at, items[1].created_at) == (START, NOW, NOW)
    assert one.next_billing_at == NOW


def test_what_a_phase_sells_depends_on_when_it_is_asked(session: Session) -> None:
    one = signed(session, phase(fee("10"), key="trial", duration="P3M"), phase(fee("9"), key="paid"))
    edit_subscription(session, one.id, [add(fee("20"), "trial")], now=NOW)
    trial, paid = stored(session, one).phases
    asked = [START - DAY, START, NOW - DAY, NOW, APRIL, APRIL + 99 * DAY]
    assert [[item.version for item in trial.items_at(moment)] for moment in asked] == [[0]] * 3 + [[1]] * 3
    assert [[item.version for item in paid.items_at(moment)] for moment in asked] == [[0]] * 6


def test_a_billing_period_stays_within_its_phase_and_the_contract(session: Session) -> None:
    one = signed(session, phase(fee(), key="trial", duration="P80D"), phase(fee(), key="paid"))
    change = START + 80 * DAY
    assert billing_period(one, START - DAY) is None
    assert billing_period(one, START) == Period(start=START, end=FEBRUARY)
    assert billing_period(one, NOW) == Period(start=MARCH, end=change)
    assert billing_period(one, change) == Period(start=change, end=APRIL)
    cancel_subscription(session, one.id, timing=APRIL - DAY, now=NOW)
    assert billing_period(one, change) == Period(start=change, end=APRIL - DAY)
    assert billing_period(one, APRIL) is None


def test_an_edit_may_wait_for_the_cycle(session: Session) -> None:
    one = signed(session)
    edit_subscription(session, one.id, [add(fee("20"))], timing="next_billing_cycle", now=NOW)
    assert rows(stored(session, one)) == [
        ("main", "seat", 0, "01-01", "04-01"),
        ("main", "seat", 1, "04-01", ""),
    ]


def test_an_edit_in_another_phase_than_the_one_that_runs_is_refused(session: Session) -> None:
    one = signed(session, phase(fee(), key="trial", duration="P80D"), phase(fee(), key="paid"))
    for timing, code in (
        ("next_billing_cycle", "timing_in_another_phase"),
        (START + 80 * DAY, "timing_in_another_phase"),
        (NOW - DAY, "timing_in_the_past"),
    ):
        with pytest.raises(InvalidTimingError) as caught:
            edit_subscription(session, one.id, [add(fee("2"), "paid")], timing=timing, now=NOW)  # type: ignore[arg-type]
        assert codes(caught.value) == [(code, "$.timing")]


def test_of_edits_that_can_not_all_be_made_none_is(session: Session) -> None:
    one = signed(session)
    before = rows(one)
    stretch = StretchPhase(op="stretch_phase", phase_key="main", extend_by="P1M")
    with pytest.raises(InvalidEditError) as caught:
        edit_subscription(session, one.id, [add(fee("20")), stretch], now=NOW)
    assert codes(caught.value) == [("last_phase_has_no_end", "$.customizations[1].phaseKey")]
    assert rows(stored(session, one)) == before


def test_an_edit_names_features_that_exist(session: Session) -> None:
    one = signed(session)
    with pytest.raises(InvalidEditError) as caught:
        edit_subscription(session, one.id, [add(per_unit(feature="nothing"))], now=NOW)
    assert codes(caught.value) == [("rate_card_feature_not_found", "$.customizations[0].rateCard.featureKey")]


# -- Terms of one's own --------------------------------------------------------------------------------------

CUSTOM = CustomPlan(
    name="Ours",
    currency="USD",
    billing_cadence="P1M",
    phases=(phase(fee("12"), key="only"),),
    metadata={"a": "b"},
)


def test_terms_of_ones_own_are_agreed_without_a_plan(session: Session) -> None:
    a_metered_feature(session)
    terms = replace(CUSTOM, phases=(phase(fee("12"), per_unit(), key="only"),), pro_rating=False)
    made = create_subscription(
        session, customer=a_customer(session), plan=terms, active_from=START, now=START
    )
    one = stored(session, made)
    assert (one.plan, one.plan_id, one.name, one.metadata_) == (None, None, "Ours", {"a": "b"})
    assert (one.currency, one.billing_cadence, one.pro_rating) == ("USD", "P1M", False)
    assert rows(one) == [("only", "seat", 0, "01-01", ""), ("only", "tokens", 0, "01-01", "")]
    assert one.phases[0].items[1].feature_id is not None
    assert get_customer(session, one.customer_id).currency == "USD"


@pytest.mark.parametrize(
    ("terms", "code", "field"),
    [
        (replace(CUSTOM, currency="EURO"), "currency_invalid", "$.customPlan.currency"),
        (
            replace(CUSTOM, billing_cadence="P5D"),
            "billing_cadence_invalid_value",
            "$.customPlan.billingCadence",
        ),
        (
            replace(CUSTOM, phases=(phase(fee(), duration="P1M"),)),
            "plan_has_last_phase_with_duration",
            "$.customPlan.phases[0].duration",
        ),
        (
            replace(CUSTOM, phases=(phase(per_unit(feature="nothing")),)),
            "rate_card_feature_not_found",
            "$.customPlan.phases[0].rateCards[0].featureKey",
        ),
        (replace(CUSTOM, currency="EUR"), "currency_mismatch", "$.customPlan.currency"),
    ],
)
def test_terms_of_ones_own_keep_the_rules_of_a_plan(
    session: Session, terms: CustomPlan, code: str, field: str
) -> None:
    customer = a_customer(session, currency="USD")
    with pytest.raises(InvalidError) as caught:
        create_subscription(session, customer=customer, plan=terms, active_from=START, now=START)
    assert (code, field) in codes(caught.value)
    assert subscriptions_of(session, [customer.id]) == []


# -- What may be done when -----------------------------------------------------------------------------------

Change = Callable[[Session, str, Plan], object]
CHANGES: dict[str, Change] = {
    "edit": lambda session, id_, _: edit_subscription(session, id_, [add(fee("2"))], now=NOW),
    "cancel": lambda session, id_, _: cancel_subscription(session, id_, now=NOW),
    "change": lambda session, id_, plan: change_subscription(
        session, id_, plan=plan, timing="immediate", now=NOW
    ),
    "migrate": lambda session, id_, _: migrate_subscription(session, id_, now=NOW),
    "unschedule": lambda session, id_, _: unschedule_cancelation(session, id_, now=NOW),
    "restore": lambda session, id_, _: restore_subscription(session, id_, now=NOW),
    "delete": lambda session, id_, _: delete_subscription(session, id_, now=NOW),
}
ALLOWED = {
    "scheduled": {"delete"},
    "active": {"edit", "cancel", "change", "migrate", "restore"},
    "canceled": {"change", "migrate", "unschedule", "restore"},
    "inactive": set[str](),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("status", ALLOWED)
def test_what_may_be_done_depends_on_the_status(session: Session, status: str, change: str) -> None:
    one = signed(session, start=NOW + DAY if status == "scheduled" else START)
    if status in ("canceled", "inactive"):
        cancel_subscription(session, one.id, timing=NOW + DAY if status == "canceled" else NOW, now=NOW)
    newer = a_plan(session)
    assert one.status(NOW) == status
    if change in ALLOWED[status]:
        CHANGES[change](session, one.id, newer)
        return
    before = (rows(one), one.active_to)
    with pytest.raises(SubscriptionForbiddenError, match=status) as caught:
        CHANGES[change](session, one.id, newer)
    assert codes(caught.value) == [("subscription_action_not_allowed", "$")]
    again = stored(session, one)
    assert (rows(again), again.active_to) == before


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_exist_is_not_changed(session: Session, change: str) -> None:
    with pytest.raises(SubscriptionNotFoundError):
        CHANGES[change](session, "unknown", a_plan(session))


# -- Several at once -----------------------------------------------------------------------------------------


def ready(engine: Engine) -> tuple[Customer, Subscription]:
    with Session(engine, expire_on_commit=False) as session:
        customer = a_customer(session)
        one = sign_up(session, customer, a_plan(session))
        a_plan(session, key="bigger")
        session.commit()
        return customer, one


def test_of_two_changes_at_once_the_second_sees_the_first(engine: Engine) -> None:
    _, one = ready(engine)

    def change(session: Session) -> object:
        return change_subscription(
            session, one.id, plan=get_plan(session, "bigger"), timing="immediate", now=NOW
        )

    second = at_once(engine, lambda session: cancel_subscription(session, one.id, now=NOW), change)
    assert isinstance(second.exception(), SubscriptionForbiddenError)


def test_two_edits_at_once_are_both_made(engine: Engine) -> None:
    _, one = ready(engine)

    def adding(key: str) -> Callable[[Session], object]:
        return lambda session: edit_subscription(session, one.id, [add(fee(key=key))], now=NOW)

    assert at_once(engine, adding("a"), adding("b")).exception() is None
    with Session(engine) as session:
        found = [item.key for item in get_subscription(session, one.id).phases[0].items]
    assert found == ["seat", "a", "b"]


def test_eight_clients_at_once_leave_one_subscription(engine: Engine) -> None:
    customer, one = ready(engine)

    def client(number: int) -> str:
        """Even ones change what there is; odd ones end it and sign up anew."""
        try:
            with Session(engine) as session, session.begin():
                current = subscriptions_of(session, [customer.id])[-1].id
                if number % 2:
                    cancel_subscription(session, current, now=NOW)
                    sign_up(session, customer, get_plan(session, "pro"), start=NOW, now=NOW)
                else:
                    plan = get_plan(session, "bigger")
                    change_subscription(session, current, plan=plan, timing="immediate", now=NOW)
        except (SubscriptionForbiddenError, OneSubscriptionAtATimeError) as error:
            return type(error).__name__
        return "done"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(client, range(8)))
    assert "done" in outcomes
    with Session(engine) as session:
        found = subscriptions_of(session, [customer.id])
        assert one.id in [each.id for each in found]
        assert [each.active_to for each in found].count(None) == 1
        lasting = [each for each in found if each.active_to is None or each.active_to > each.active_from]
        spans = sorted((each.active_from, each.active_to or at("9999-01-01")) for each in lasting)
        assert all(one[1] <= other[0] for one, other in pairwise(spans))


def test_of_eight_who_sign_a_customer_up_at_once_one_wins(engine: Engine) -> None:
    with Session(engine, expire_on_commit=False) as session:
        customer = a_customer(session)
        a_plan(session)
        session.commit()

    def client(number: int) -> bool:
        try:
            with Session(engine) as session, session.begin():
                sign_up(session, customer, get_plan(session, "pro"), start=NOW + number * DAY, now=NOW)
        except OneSubscriptionAtATimeError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(client, range(8))) == 1
    with Session(engine) as session:
        assert len(subscriptions_of(session, [customer.id])) == 1


def test_the_database_itself_lets_a_customer_have_one_without_an_end(session: Session) -> None:
    """Should the lock ever be forgotten."""
    one = signed(session)
    cancel_subscription(session, one.id, timing=APRIL, now=NOW)
    sign_up(session, get_customer(session, one.customer_id), get_plan(session, "pro"), start=APRIL, now=NOW)
    with pytest.raises(IntegrityError, match="subscriptions_open_ended_key"), session.begin_nested():
        session.execute(update(Subscription).where(Subscription.id == one.id).values(active_to=None))


def test_phases_of_before_their_durations_were_kept_get_exact_ones(session: Session) -> None:
    migration = runpy.run_path(str(ROOT / "alembic/versions/0007_billing.py"))
    one = signed(
        session,
        phase(fee(), key="a", duration="P14D"),
        phase(fee(), key="b", duration="P1MT30S"),
        phase(fee(), key="c"),
    )
    session.execute(update(SubscriptionPhase).values(duration=None))
    session.execute(text(migration["EXACT_DURATIONS"]))
    again = stored(session, one)
    assert [each.duration for each in again.phases] == ["P14DT0S", "P31DT30S", None]
    stretch = StretchPhase(op="stretch_phase", phase_key="a", extend_by="P1D")
    edit_subscription(session, one.id, [stretch], now=START)
    assert [day(each.active_from) for each in stored(session, one).phases] == ["01-01", "01-16", "02-16"]
