"""Add-ons of a subscription: what they do to its items, what they cost, what is refused."""

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from billing.contracts.addon_items import BoughtAddon, Quantity, combined, quantity_at, with_addons
from billing.contracts.agreement import CustomPlan
from billing.contracts.edits import AddItem, ContractSpec, spec_of
from billing.contracts.subscription_addons import (
    AddonAttachedError,
    AddonPurchaseError,
    SubscriptionAddon,
    SubscriptionAddonNotFoundError,
    add_addon,
    addons_of,
    get_subscription_addon,
    update_addon_of,
)
from billing.contracts.subscription_changes import (
    cancel_subscription,
    change_subscription,
    delete_subscription,
    edit_subscription,
    migrate_subscription,
    restore_subscription,
    unschedule_cancelation,
)
from billing.contracts.subscription_rules import SubscriptionForbiddenError, Timing
from billing.contracts.subscriptions import Subscription, create_subscription, get_subscription
from billing.rating.pricing import NOTHING
from billing.rating.rater import rate
from billing.rating.timeline import charges
from catalog.addons import Addon, archive_addon
from catalog.discount import Discounts, PercentageDiscount, UsageDiscount
from catalog.plan_addons import create_plan_addon, delete_plan_addon, get_plan_addon
from catalog.plans import Plan, next_plan, plan_terms, publish_plan
from catalog.price import FlatPrice, PaymentTerm
from catalog.rate_card import BooleanEntitlement, MeteredEntitlement, RateCard
from metering.errors import TollgateError
from tests.billing_clock import bill_until, invoices_of, wrong
from tests.builders import (
    START,
    a_customer,
    a_metered_feature,
    a_plan,
    an_addon,
    at,
    at_once,
    fee,
    per_unit,
    phase,
    sign_up,
)

NOW = at("2026-03-15T12:00:00")
APRIL = at("2026-04-01")
DAY = timedelta(days=1)


def offered(
    session: Session, plan: Plan, addon: Addon, *, most: int | None = None, since: str = "main"
) -> Addon:
    create_plan_addon(
        session,
        plan_id=plan.id,
        plan=plan_terms(session, plan, now=START),
        addon_id=addon.id,
        from_plan_phase=since,
        max_quantity=most,
        now=START,
    )
    return addon


def seats(session: Session, *, most: int = 10) -> tuple[Subscription, Addon]:
    """A seat is 31 a month, and 3.10 more for each extra seat."""
    plan = a_plan(session, phase(fee("31")))
    addon = offered(session, plan, an_addon(session, fee("3.10"), instance_type="multiple"), most=most)
    return sign_up(session, a_customer(session), plan), addon


def buy(
    session: Session, one: Subscription, addon: Addon, quantity: int = 1, timing: Timing = "immediate"
) -> SubscriptionAddon:
    return add_addon(session, one.id, addon_id=addon.id, quantity=quantity, timing=timing, now=NOW)


def change(
    session: Session, one: SubscriptionAddon, quantity: int, timing: Timing = "immediate", now: datetime = NOW
) -> SubscriptionAddon:
    return update_addon_of(
        session, one.subscription_id, one.id, quantity=quantity, timing=timing, changes={}, now=now
    )


def rows(session: Session, one: Subscription) -> list[tuple[str, int, str, str, str]]:
    """Key, version, price, first and last day."""
    session.flush()
    session.expire_all()
    return [
        (item.key, item.version, amount(item.rate_card), day(item.active_from), day(item.active_to))
        for each in get_subscription(session, one.id).phases
        for item in each.items
    ]


def amount(card: RateCard | None) -> str:
    assert card is not None
    return f"{card.price.amount}" if isinstance(card.price, FlatPrice) else ""


def day(instant: datetime | None) -> str:
    return "" if instant is None else f"{instant:%m-%d}" + (f"T{instant:%H}" if instant.hour else "")


def codes(error: TollgateError) -> list[tuple[str, str]]:
    return [(issue.code, issue.field) for issue in error.issues]


# -- Cards are added -----------------------------------------------------------------------------------------


def test_flat_prices_are_summed_as_often_as_they_are_bought() -> None:
    assert amount(combined(fee("10"), [(fee("2.5"), 3), (fee("1"), 1)])) == "18.5"
    assert amount(combined(fee(None), [(fee("2.5"), 2)])) == "5.0"
    assert combined(fee("10"), [(fee(None), 7)]) == fee("10")
    assert combined(fee("10"), []) == fee("10")
    assert combined(None, []) is None


def test_a_card_that_the_plan_does_not_have_is_an_item_of_its_own() -> None:
    assert amount(combined(None, [(fee("2.5"), 3)])) == "7.5"
    assert combined(None, [(per_unit("0.5"), 1)]) == per_unit("0.5")


def entitled(card: RateCard, amount: str | None) -> RateCard:
    issued = None if amount is None else Decimal(amount)
    return replace(card, entitlement_template=MeteredEntitlement(type="metered", issue_after_reset=issued))


@pytest.mark.parametrize(
    ("plan", "addon", "both"),
    [("100", "50", "250"), (None, "50", "150"), ("100", None, "100"), (None, None, None)],
)
def test_what_is_issued_is_summed(plan: str | None, addon: str | None, both: str | None) -> None:
    card = combined(entitled(per_unit(), plan), [(entitled(per_unit(), addon), 3)])
    assert card == entitled(per_unit(), both)


def test_an_entitlement_that_the_plan_does_not_give_comes_with_the_addon() -> None:
    right = BooleanEntitlement(type="boolean")
    card = combined(fee("10"), [(replace(fee("1"), entitlement_template=right), 1)])
    assert card is not None
    assert (card.entitlement_template, amount(card)) == (right, "11")
    assert combined(card, [(fee("1"), 1)]) == replace(fee("12"), entitlement_template=right)


def free(card: RateCard, units: str, percent: str | None = None) -> RateCard:
    percentage = PercentageDiscount(percentage=Decimal(percent)) if percent else None
    return replace(
        card, discounts=Discounts(usage=UsageDiscount(quantity=Decimal(units)), percentage=percentage)
    )


def test_free_units_are_summed_and_a_percentage_stays() -> None:
    unpriced = replace(per_unit(), price=None)
    assert combined(per_unit(), [(free(unpriced, "5"), 2)]) == free(per_unit(), "10")
    assert combined(free(per_unit(), "1", "20"), [(free(unpriced, "5"), 2)]) == free(per_unit(), "11", "20")
    only = replace(per_unit(), discounts=Discounts(percentage=PercentageDiscount(percentage=Decimal(20))))
    assert combined(only, [(free(unpriced, "5"), 1)]) == free(per_unit(), "5", "20")
    assert combined(only, [(unpriced, 1)]) == only


BASE = spec_of(
    [phase(fee("10"), key="trial", duration="P1M"), phase(fee("20"), key="main")], start=START, feature_ids={}
)
TIMES = st.lists(
    st.builds(
        lambda days, quantity: Quantity(start=START + days * DAY, quantity=quantity),
        st.integers(0, 90),
        st.integers(0, 3),
    ),
    max_size=4,
    unique_by=lambda each: each.start,
).map(lambda found: tuple(sorted(found, key=lambda each: each.start)))


def bought(*quantities: Quantity, card: RateCard, since: str = "trial") -> BoughtAddon:
    return BoughtAddon(rate_cards=[card], feature_ids={}, from_phase=since, quantities=quantities)


def price_at(spec: ContractSpec, key: str, moment: datetime) -> str:
    found = [item for each in spec.phases for item in each.items if item.key == key and item.sold_at(moment)]
    assert len(found) <= 1
    return amount(found[0].rate_card) if found else ""


@given(TIMES, TIMES)
def test_at_every_instant_the_price_is_that_of_the_plan_and_of_what_is_bought_then(
    seats: tuple[Quantity, ...], extras: tuple[Quantity, ...]
) -> None:
    addons = [bought(*seats, card=fee("1")), bought(*extras, card=fee("5", key="extra"), since="main")]
    spec = with_addons(BASE, BASE, addons, since=START)
    for days in range(100):
        moment = START + days * DAY
        plan = 10 if moment < at("2026-02-01") else 20
        assert price_at(spec, "seat", moment) == str(plan + quantity_at(seats, moment))
        extra = quantity_at(extras, moment) if plan == 20 else 0
        assert price_at(spec, "extra", moment) == (str(5 * extra) if extra else "")


@given(TIMES, st.integers(0, 90))
def test_an_addon_that_is_taken_away_leaves_the_contract_as_it_was(
    quantities: tuple[Quantity, ...], days: int
) -> None:
    since = START + days * DAY
    spec = with_addons(BASE, BASE, [bought(*quantities, card=fee("1"))], since=START)
    gone = with_addons(spec, BASE, [], since=since)
    for later in range(days, 100):
        moment = START + later * DAY
        assert price_at(gone, "seat", moment) == price_at(BASE, "seat", moment)
    for before in range(days):
        moment = START + before * DAY
        assert price_at(gone, "seat", moment) == price_at(spec, "seat", moment)


# -- Bought and changed --------------------------------------------------------------------------------------


def test_from_the_purchase_on_the_next_version_of_the_item_is_sold(session: Session) -> None:
    one, addon = seats(session)
    one.next_billing_at = APRIL
    had = buy(session, one, addon, 2)
    assert rows(session, one) == [
        ("seat", 0, "31", "01-01", "03-15T12"),
        ("seat", 1, "37.20", "03-15T12", ""),
    ]
    assert (had.name, had.quantities) == ("Seats", (Quantity(start=NOW, quantity=2),))
    assert get_subscription(session, one.id).next_billing_at == NOW


def test_each_change_closes_a_version_and_opens_the_next(session: Session) -> None:
    one, addon = seats(session)
    had = buy(session, one, addon, 2)
    change(session, had, 3, now=NOW + DAY)
    change(session, had, 0, timing="next_billing_cycle", now=NOW + 2 * DAY)
    assert rows(session, one) == [
        ("seat", 0, "31", "01-01", "03-15T12"),
        ("seat", 1, "37.20", "03-15T12", "03-16T12"),
        ("seat", 2, "40.30", "03-16T12", "04-01"),
        ("seat", 3, "31", "04-01", ""),
    ]


def test_a_fee_in_advance_is_charged_again_by_its_days(session: Session) -> None:
    one, addon = seats(session)
    buy(session, one, addon, 10, timing=at("2026-03-21"))
    found = charges(get_subscription(session, one.id).contract, since=at("2026-03-01"), until=APRIL)
    assert [str(rate(each.terms, NOTHING).totals.total) for each in found] == ["20.00", "22.00", "62.00"]


def owed(session: Session, one: Subscription, until: datetime) -> Decimal:
    found = charges(get_subscription(session, one.id).contract, until=until)
    return sum((rate(each.terms, NOTHING).totals.total for each in found), Decimal(0))


@pytest.mark.parametrize("term", ["in_advance", "in_arrears"])
@pytest.mark.parametrize("own", [True, False], ids=["on an item", "alone"])
def test_a_fee_that_is_paid_once_is_paid_once_for_each(
    session: Session, term: PaymentTerm, *, own: bool
) -> None:
    """Bought 2, then 5, then 1, then 3: 2 + 3 + 0 + 2 of them, and the plan's own fee once."""
    once = fee("7", key="setup", cadence=None, term=term)
    plan = a_plan(session, phase(fee("0"), once) if own else phase(fee("0")))
    one = sign_up(session, a_customer(session), plan)
    pack = fee("10", key="setup", cadence=None, term=term)
    addon = offered(session, plan, an_addon(session, pack, instance_type="multiple"), most=9)
    had = buy(session, one, addon, 2)
    for days, quantity in ((1, 5), (2, 1), (3, 3)):
        change(session, had, quantity, now=NOW + days * DAY)
    cancel_subscription(session, one.id, now=NOW + 9 * DAY)
    assert owed(session, one, NOW + 10 * DAY) == Decimal(77 if own else 70)


def test_a_fee_paid_once_is_not_paid_again_because_of_another_addon(session: Session) -> None:
    plan = a_plan(session, phase(fee("0"), fee("7", key="setup", cadence=None)))
    one = sign_up(session, a_customer(session), plan)
    buy(session, one, offered(session, plan, an_addon(session, fee("0"))))
    assert [row[:2] for row in rows(session, one)] == [("seat", 0), ("setup", 0)]


def test_a_later_quantity_is_dropped_by_an_earlier_change(session: Session) -> None:
    one, addon = seats(session)
    had = buy(session, one, addon, 2, timing="next_billing_cycle")
    change(session, had, 5)
    assert had.quantities == (Quantity(start=NOW, quantity=5),)
    assert [row[2] for row in rows(session, one)] == ["31", "46.50"]


def test_two_addons_add_to_the_same_item_and_either_can_go(session: Session) -> None:
    plan = a_plan(session, phase(fee("31")))
    one = sign_up(session, a_customer(session), plan)
    first = buy(session, one, offered(session, plan, an_addon(session, fee("1"), key="one")))
    buy(session, one, offered(session, plan, an_addon(session, fee("2"), fee("9", key="extra"), key="two")))
    change(session, first, 0, timing=NOW + DAY)
    assert rows(session, one) == [
        ("seat", 0, "31", "01-01", "03-15T12"),
        ("seat", 2, "34", "03-15T12", "03-16T12"),
        ("seat", 3, "33", "03-16T12", ""),
        ("extra", 0, "9", "03-15T12", ""),
    ]


def test_an_addon_of_usage_brings_its_feature(session: Session) -> None:
    feature = a_metered_feature(session)
    plan = a_plan(session)
    one = sign_up(session, a_customer(session), plan)
    buy(session, one, offered(session, plan, an_addon(session, per_unit("0.5"))))
    item = get_subscription(session, one.id).phases[0].items[1]
    assert (item.rate_card, item.feature_id) == (per_unit("0.5"), feature.id)


def test_what_is_sold_later_in_the_plan_is_raised_there_too(session: Session) -> None:
    trial, paid = phase(fee("10"), key="trial", duration="P3M"), phase(fee("20"))
    plan = a_plan(session, trial, paid)
    one = sign_up(session, a_customer(session), plan)
    addon = offered(session, plan, an_addon(session, fee("1")))
    with pytest.raises(AddonPurchaseError) as caught:
        buy(session, one, addon)
    assert codes(caught.value) == [("addon_not_in_phase", "$.timing")]
    buy(session, one, addon, timing=APRIL)
    assert rows(session, one) == [("seat", 0, "10", "01-01", "04-01"), ("seat", 1, "21", "04-01", "")]


def test_what_it_is_called_changes_and_nothing_else(session: Session) -> None:
    one, addon = seats(session)
    had = buy(session, one, addon)
    before = rows(session, one)
    changes = {"name": "More seats", "description": None, "metadata_": {"a": "b"}}
    update_addon_of(session, one.id, had.id, changes=changes, now=NOW)
    again = get_subscription_addon(session, one.id, had.id)
    assert (again.name, again.metadata_) == ("More seats", {"a": "b"})
    assert rows(session, one) == before


# -- What is refused -----------------------------------------------------------------------------------------


def test_the_same_addon_is_not_bought_twice(session: Session) -> None:
    one, addon = seats(session)
    buy(session, one, addon)
    with pytest.raises(AddonAttachedError) as caught:
        buy(session, one, addon)
    assert codes(caught.value) == [("addon_already_attached", "$.addon.id")]


@pytest.mark.parametrize(
    ("quantity", "code"), [(0, "field_must_be_positive"), (11, "addon_quantity_too_high")]
)
def test_the_quantity_is_what_the_plan_allows(session: Session, quantity: int, code: str) -> None:
    one, addon = seats(session)
    with pytest.raises(AddonPurchaseError) as caught:
        buy(session, one, addon, quantity)
    assert codes(caught.value) == [(code, "$.quantity")]
    assert addons_of(session, one.id) == []
    had = buy(session, one, addon, 10)
    with pytest.raises(AddonPurchaseError):
        change(session, had, 11)


def test_an_addon_that_is_single_is_bought_once(session: Session) -> None:
    plan = a_plan(session)
    one = sign_up(session, a_customer(session), plan)
    with pytest.raises(AddonPurchaseError) as caught:
        buy(session, one, offered(session, plan, an_addon(session)), 2)
    assert codes(caught.value) == [("addon_quantity_too_high", "$.quantity")]


def test_only_what_the_plan_offers_and_what_is_still_sold_is_bought(session: Session) -> None:
    one, addon = seats(session)
    other = an_addon(session, key="other")
    for wanted in (other.id, "unknown", addon.key):
        with pytest.raises(AddonPurchaseError) as caught:
            add_addon(session, one.id, addon_id=wanted, quantity=1, timing="immediate", now=NOW)
        assert codes(caught.value) == [("addon_not_offered", "$.addon.id")]
    archive_addon(session, addon, now=NOW)
    with pytest.raises(AddonPurchaseError) as caught:
        buy(session, one, addon)
    assert codes(caught.value) == [("addon_invalid_status", "$.addon.id")]


def test_what_was_edited_must_still_fit(session: Session) -> None:
    one, addon = seats(session)
    edit_subscription(session, one.id, [add(fee("5", term="in_arrears"))], now=NOW - DAY)
    with pytest.raises(AddonPurchaseError) as caught:
        buy(session, one, addon)
    assert codes(caught.value) == [("rate_card_price_payment_term_mismatch", "$.addon.id")]


def add(card: RateCard) -> AddItem:
    return AddItem(op="add_item", phase_key="main", rate_card=card)


def test_terms_of_ones_own_have_no_addons(session: Session) -> None:
    _, addon = seats(session)
    terms = CustomPlan(name="Ours", currency="USD", billing_cadence="P1M", phases=(phase(fee()),))
    own = create_subscription(session, customer=a_customer(session), plan=terms, active_from=START, now=START)
    with pytest.raises(SubscriptionForbiddenError) as caught:
        buy(session, own, addon)
    assert codes(caught.value) == [("custom_subscription", "$")]


def test_nothing_is_bought_for_what_has_passed(session: Session) -> None:
    one, addon = seats(session)
    with pytest.raises(AddonPurchaseError) as caught:
        buy(session, one, addon, timing=NOW - DAY)
    assert codes(caught.value) == [("timing_in_the_past", "$.timing")]


def test_another_subscriptions_addon_is_not_found(session: Session) -> None:
    one, addon = seats(session)
    had = buy(session, one, addon)
    with pytest.raises(SubscriptionAddonNotFoundError):
        get_subscription_addon(session, "unknown", had.id)
    with pytest.raises(SubscriptionAddonNotFoundError):
        update_addon_of(session, one.id, "unknown", quantity=1, changes={}, now=NOW)


# -- With the other changes ----------------------------------------------------------------------------------


def test_a_subscription_with_addons_is_not_edited_until_they_are_gone(session: Session) -> None:
    one, addon = seats(session)
    had = buy(session, one, addon, 2)
    with pytest.raises(SubscriptionForbiddenError) as caught:
        edit_subscription(session, one.id, [add(fee("5"))], now=NOW)
    assert codes(caught.value) == [("subscription_has_addons", "$")]
    change(session, had, 0, timing=NOW + DAY)
    with pytest.raises(SubscriptionForbiddenError):
        edit_subscription(session, one.id, [add(fee("5"))], now=NOW)
    edit_subscription(session, one.id, [add(fee("50"))], now=NOW + 2 * DAY)
    change(session, had, 1, now=NOW + 3 * DAY)
    assert [row[1:3] for row in rows(session, one)] == [
        (0, "31"),
        (1, "37.20"),
        (2, "31"),
        (3, "50"),
        (4, "53.10"),
    ]


def test_a_canceled_subscription_ends_with_its_addons_and_goes_on_with_them(session: Session) -> None:
    one, addon = seats(session)
    had = buy(session, one, addon, 2)
    before = rows(session, one)
    cancel_subscription(session, one.id, timing=APRIL, now=NOW)
    assert rows(session, one)[-1] == ("seat", 1, "37.20", "03-15T12", "04-01")
    with pytest.raises(SubscriptionForbiddenError):
        change(session, had, 1)
    unschedule_cancelation(session, one.id, now=NOW)
    assert rows(session, one) == before


def test_of_two_purchases_at_once_one_is_made(engine: Engine) -> None:
    with Session(engine, expire_on_commit=False) as session:
        one, addon = seats(session)
        session.commit()
    second = at_once(engine, lambda s: buy(s, one, addon), lambda s: buy(s, one, addon))
    assert isinstance(second.exception(), AddonAttachedError)
    with Session(engine) as session:
        assert [row[1] for row in rows(session, one)] == [0, 1]


# -- Another version of the plan -----------------------------------------------------------------------------


def newer(session: Session, plan: Plan, *cards: RateCard) -> Plan:
    """The plan's next version, with a price of 62."""
    draft = next_plan(session, plan, now=NOW)
    draft.phases = (phase(fee("62"), *cards),)
    return publish_plan(session, draft, now=NOW)


def owned(session: Session, one: Subscription) -> list[tuple[str, int, list[tuple[str, int]]]]:
    return [
        (each.addon.key, each.addon.version, [(day(part.start), part.quantity) for part in each.quantities])
        for each in addons_of(session, one.id)
    ]


def test_who_moves_to_a_newer_version_keeps_the_add_ons(session: Session) -> None:
    one, addon = seats(session)
    change(session, buy(session, one, addon, 2), 4, APRIL + DAY)
    assert one.plan is not None
    newer(session, one.plan)
    _, following = migrate_subscription(session, one.id, timing="next_billing_cycle", now=NOW)
    assert owned(session, following) == [("seats", 1, [("04-01", 2), ("04-02", 4)])]
    assert rows(session, following) == [
        ("seat", 1, "68.20", "04-01", "04-02"),
        ("seat", 2, "74.40", "04-02", ""),
    ]
    assert rows(session, one)[-1][-1] == "04-01"
    change(session, addons_of(session, following.id)[0], 0, APRIL + 2 * DAY, now=APRIL)
    assert rows(session, following)[-1] == ("seat", 3, "62", "04-03", "")


def test_in_the_version_that_is_offered_then_and_what_was_given_back_is_left_behind(
    session: Session,
) -> None:
    one, addon = seats(session)
    assert one.plan is not None
    desks = offered(session, one.plan, an_addon(session, fee("5", key="desk"), key="desks"))
    change(session, buy(session, one, desks), 0, NOW + DAY)
    buy(session, one, addon, 3)
    an_addon(session, fee("1"), instance_type="multiple", now=NOW)
    newer(session, one.plan)
    _, following = migrate_subscription(session, one.id, timing=NOW + 2 * DAY, now=NOW)
    assert owned(session, following) == [("seats", 2, [("03-17T12", 3)])]
    assert rows(session, following) == [("seat", 1, "65", "03-17T12", "")]


def test_without_add_ons_there_is_nothing_to_carry_over(session: Session) -> None:
    one, _ = seats(session)
    assert one.plan is not None
    newer(session, one.plan)
    _, following = migrate_subscription(session, one.id, now=NOW)
    assert (owned(session, following), following.without_addons) == ([], None)


def test_nobody_loses_an_add_on_unawares(session: Session) -> None:
    one, addon = seats(session)
    bought = buy(session, one, addon, 3)
    assert one.plan is not None
    draft = next_plan(session, one.plan, now=NOW)
    offer = get_plan_addon(session, draft.id, addon.id)
    offer.max_quantity = 2
    assert refused_migration(session, one, draft) == ("addon_quantity_too_high", "$.targetVersion")
    delete_plan_addon(session, offer, now=NOW)
    assert refused_migration(session, one, draft) == ("addon_not_offered", "$.targetVersion")
    assert owned(session, one) == [("seats", 1, [("03-15T12", 3)])]
    assert bought.in_force(NOW)


def refused_migration(session: Session, one: Subscription, draft: Plan) -> tuple[str, str | None]:
    with session.begin_nested() as undone:
        publish_plan(session, draft, now=NOW)
        with pytest.raises(AddonPurchaseError, match="seats") as refused:
            migrate_subscription(session, one.id, now=NOW)
        undone.rollback()
    (issue,) = refused.value.issues
    assert issue.hint is not None
    assert "PATCH .../addons/" in issue.hint
    return issue.code, issue.field


def test_who_changes_to_another_plan_begins_without_add_ons(session: Session) -> None:
    one, addon = seats(session)
    buy(session, one, addon, 2)
    other = a_plan(session, phase(fee("5")), key="other")
    offered(session, other, addon, most=5)
    _, following = change_subscription(session, one.id, plan=other, timing="immediate", now=NOW)
    assert owned(session, following) == []


def test_what_was_to_follow_is_forgotten_with_its_add_ons(session: Session) -> None:
    one, addon = seats(session)
    buy(session, one, addon, 2)
    assert one.plan is not None
    newer(session, one.plan)
    _, following = migrate_subscription(session, one.id, timing="next_billing_cycle", now=NOW)
    restore_subscription(session, one.id, now=NOW)
    assert owned(session, following) == []
    assert rows(session, one)[-1] == ("seat", 1, "37.20", "03-15T12", "")
    _, following = migrate_subscription(session, one.id, timing="next_billing_cycle", now=NOW)
    delete_subscription(session, following.id, now=NOW)
    assert owned(session, following) == []


def test_what_is_billed_after_a_migration_is_right(session: Session) -> None:
    """31 and 2 x 3.10 until 15 March at noon, 62 and 2 x 3.10 from then on; March is 31 days."""
    one, addon = seats(session)
    bill_until(session, NOW - DAY)
    buy(session, one, addon, 2)
    assert one.plan is not None
    newer(session, one.plan)
    _, following = migrate_subscription(session, one.id, now=NOW)
    bill_until(session, NOW)
    assert wrong(session, NOW) == []
    (line,) = [
        line for one in invoices_of(session) for line in one.lines if line.subscription_id == following.id
    ]
    assert line.totals.total == Decimal("36.30")
