"""Billing profiles and who is invoiced by them: rules, the one default, pins, and what that does to bills."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from billing.apps.app_changes import install_app
from billing.contracts.customer import Address, Customer, get_customer
from billing.contracts.customer_changes import CustomerDetails, create_customer, delete_customer
from billing.contracts.pending import WantedLine, add_pending_lines
from billing.contracts.subscriptions import get_subscription
from billing.profiles.app import get_app
from billing.profiles.customer_overrides import (
    OverrideFilter,
    OverrideNotFoundError,
    OverrideOrder,
    list_overrides,
    pin_profile,
    profile_of,
    unpin_profile,
)
from billing.profiles.profile import (
    BillingProfile,
    CustomerOverride,
    Party,
    ProfileNotFoundError,
    TaxIdentity,
    get_profile,
    list_profiles,
    profiles_of,
)
from billing.profiles.profile_changes import (
    ProfileApps,
    ProfileDetails,
    create_profile,
    delete_profile,
    update_profile,
)
from billing.profiles.profile_rules import check_supplier, check_workflow
from billing.profiles.workflow import (
    AnchoredAlignment,
    CollectionSettings,
    InvoicingSettings,
    PaymentSettings,
    RecurringPeriod,
    TaxSettings,
    Workflow,
)
from billing.runs.run import due_at, run_portion
from catalog.price import FlatPrice
from catalog.rate_card import UsageBasedRateCard
from catalog.tax import StripeTaxConfig, TaxConfig
from metering.errors import ConflictError, InvalidError, TollgateError
from metering.period import Period
from tests.billing_clock import bill_until, invoices_of, ledger
from tests.builders import START, a_customer, a_plan, at, at_once, counted_statements, fee, phase, sign_up

SANDBOX = "00000000000000000000000003"
DEFAULT = "00000000000000000000000004"
UNKNOWN = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
USUAL = Workflow()


def apps(invoicing: str = SANDBOX, *, tax: str | None = None) -> ProfileApps:
    return ProfileApps(tax=tax or invoicing, invoicing=invoicing, payment=invoicing)


def details(name: str = "Europe", *, workflow: Workflow = USUAL, default: bool = False) -> ProfileDetails:
    return ProfileDetails(name=name, supplier=Party(name="ACME"), workflow=workflow, default=default)


def a_profile(
    session: Session, name: str = "Europe", *, workflow: Workflow = USUAL, default: bool = False
) -> BillingProfile:
    wanted = details(name, workflow=workflow, default=default)
    return create_profile(session, wanted, apps=apps(), now=START)


def anchored(interval: str = "P1M", anchor: datetime = START + timedelta(days=14)) -> Workflow:
    period = RecurringPeriod(interval=interval, anchor=anchor)
    alignment = AnchoredAlignment(type="anchored", recurring_period=period)
    return Workflow(collection=CollectionSettings(alignment=alignment))


def invoicing(**settings: Any) -> Workflow:
    return Workflow(invoicing=replace(InvoicingSettings(), **settings))


def codes(error: TollgateError) -> list[tuple[str, str]]:
    return [(issue.code, issue.field) for issue in error.issues]


# -- Rules ---------------------------------------------------------------------------------------------------


def test_the_workflow_of_openmeter_breaks_no_rule() -> None:
    assert not list(check_workflow(Workflow()))
    assert not list(check_workflow(anchored("MONTH")))
    assert not list(check_workflow(invoicing(draft_period="P0D", due_after="PT0S")))


@pytest.mark.parametrize(
    ("workflow", "code", "place"),
    [
        (
            Workflow(collection=CollectionSettings(interval="-PT1H")),
            "field_must_be_positive_or_zero",
            "collection.interval",
        ),
        (Workflow(collection=CollectionSettings(interval="soon")), "invalid_duration", "collection.interval"),
        (invoicing(draft_period="P-1D"), "field_must_be_positive_or_zero", "invoicing.draftPeriod"),
        (invoicing(due_after="30"), "invalid_duration", "invoicing.dueAfter"),
        (
            anchored("P0D"),
            "field_must_be_positive",
            "collection.alignment.recurringPeriod.interval",
        ),
        (anchored("-P1M"), "field_must_be_positive", "collection.alignment.recurringPeriod.interval"),
        (anchored("FORTNIGHT"), "field_must_be_positive", "collection.alignment.recurringPeriod.interval"),
        (
            anchored(anchor=datetime(2026, 1, 1)),  # noqa: DTZ001  without a time zone on purpose
            "invalid_anchor",
            "collection.alignment.recurringPeriod.anchor",
        ),
        (
            anchored(anchor=datetime(1, 1, 1, tzinfo=UTC)),
            "invalid_anchor",
            "collection.alignment.recurringPeriod.anchor",
        ),
        (
            invoicing(default_tax_config=TaxConfig(stripe=StripeTaxConfig(code="books"))),
            "tax_config_invalid_stripe_code",
            "invoicing.defaultTaxConfig.stripe.code",
        ),
        (
            invoicing(subscription_end_proration_mode="bill_full_period"),
            "proration_mode_not_supported",
            "invoicing.subscriptionEndProrationMode",
        ),
    ],
)
def test_a_setting_that_can_not_be_is_refused_with_its_place(
    workflow: Workflow, code: str, place: str
) -> None:
    assert [(found.code, found.field) for found in check_workflow(workflow)] == [
        (code, f"$.workflow.{place}")
    ]


@pytest.mark.parametrize(
    ("supplier", "code", "place"),
    [
        (Party(), "field_required", "name"),
        (Party(name=""), "field_required", "name"),
        (Party(name="x" * 257), "invalid_length", "name"),
        (Party(name="ACME", key=""), "invalid_length", "key"),
        (Party(name="ACME", tax_id=TaxIdentity(code="9" * 33)), "invalid_length", "taxId.code"),
        (Party(name="ACME", addresses=(Address(), Address())), "too_many_addresses", "addresses"),
        (
            Party(name="ACME", addresses=(Address(country="Germany"),)),
            "invalid_country",
            "addresses[0].country",
        ),
    ],
)
def test_a_supplier_that_no_invoice_can_name_is_refused(supplier: Party, code: str, place: str) -> None:
    assert [(found.code, found.field) for found in check_supplier(supplier)] == [
        (code, f"$.supplier.{place}")
    ]


def test_everything_that_is_wrong_is_said_at_once(session: Session) -> None:
    wrong = replace(details(workflow=invoicing(due_after="x", draft_period="y")), supplier=Party())
    with pytest.raises(InvalidError) as error:
        create_profile(session, wrong, apps=apps(), now=START)
    assert codes(error.value) == [
        ("field_required", "$.supplier.name"),
        ("invalid_duration", "$.workflow.invoicing.draftPeriod"),
        ("invalid_duration", "$.workflow.invoicing.dueAfter"),
    ]
    assert list_profiles(session)[1] == 1


# -- Profiles ------------------------------------------------------------------------------------------------


def test_a_profile_comes_back_as_it_was_given(session: Session) -> None:
    workflow = Workflow(
        collection=anchored("P1M").collection,
        invoicing=InvoicingSettings(
            auto_advance=False,
            draft_period="P1D",
            due_after="P14D",
            progressive_billing=False,
            subscription_end_proration_mode="bill_actual_period",
            default_tax_config=TaxConfig(behavior="inclusive"),
        ),
        payment=PaymentSettings(collection_method="send_invoice"),
        tax=TaxSettings(enabled=True, enforced=True),
    )
    supplier = Party(
        key="acme", name="ACME", tax_id=TaxIdentity(code="DE1"), addresses=(Address(country="DE"),)
    )
    wanted = ProfileDetails(
        name="Europe", description="EU", metadata={"a": "b"}, supplier=supplier, workflow=workflow
    )
    made = create_profile(session, wanted, apps=apps(), now=START)
    session.expire_all()
    found = get_profile(session, made.id)
    assert (found.name, found.description, found.metadata_) == ("Europe", "EU", {"a": "b"})
    assert (found.supplier, found.workflow, found.app_id) == (supplier, workflow, SANDBOX)
    assert (found.is_default, found.created_at, found.deleted_at) == (False, START, None)


def test_a_recurrence_in_words_is_kept_as_a_duration_and_its_anchor_in_utc(session: Session) -> None:
    east = datetime(2026, 1, 1, 9, tzinfo=timezone(timedelta(hours=9)))
    alignment = a_profile(session, workflow=anchored("MONTH", east)).workflow.collection.alignment
    assert isinstance(alignment, AnchoredAlignment)
    assert alignment.recurring_period == RecurringPeriod(interval="P1M", anchor=START)


def test_the_three_apps_of_a_profile_are_one_that_is_installed(session: Session) -> None:
    other = install_app(session, "custom_invoicing", now=START)
    for wrong, expected in (
        (apps(SANDBOX, tax=other.id), ("profile_apps_differ", "$.apps")),
        (apps(UNKNOWN), ("app_not_found", "$.apps.invoicing")),
    ):
        with pytest.raises(InvalidError) as error:
            create_profile(session, details(), apps=wrong, now=START)
        assert codes(error.value) == [expected]
    get_app(session, other.id).deleted_at = START
    with pytest.raises(InvalidError) as error:
        create_profile(session, details(), apps=apps(other.id), now=START)
    assert codes(error.value) == [("app_not_found", "$.apps.invoicing")]


def test_who_becomes_the_default_takes_it_from_the_one_before(session: Session, now: datetime) -> None:
    first = get_profile(session, None)
    second = a_profile(session, default=True)
    assert (first.is_default, get_profile(session, None).id) == (False, second.id)
    update_profile(session, first.id, details("First", default=True), now=now)
    assert (second.is_default, get_profile(session, None).id) == (False, first.id)
    assert second.updated_at == now


def test_the_default_can_neither_be_unset_nor_deleted(session: Session, now: datetime) -> None:
    with pytest.raises(InvalidError) as error:
        update_profile(session, DEFAULT, details(default=False), now=now)
    assert codes(error.value) == [("default_profile_cannot_be_unset", "$.default")]
    with pytest.raises(InvalidError) as error:
        delete_profile(session, DEFAULT, now=now)
    assert codes(error.value) == [("default_profile_cannot_be_deleted", "$")]
    session.expire_all()
    assert (get_profile(session, DEFAULT).name, get_profile(session, DEFAULT).is_default) == ("Default", True)


def test_of_two_who_become_the_default_one_after_the_other_the_second_is(engine: Engine) -> None:
    """They wait for each other, for both lock the app."""
    second = at_once(
        engine,
        lambda session: a_profile(session, "one", default=True),
        lambda session: a_profile(session, "two", default=True),
    )
    assert second.result().is_default
    with Session(engine) as session:
        assert [(one.name, one.is_default) for one in list_profiles(session, order_by="name")[0]] == [
            ("Default", False),
            ("one", False),
            ("two", True),
        ]


def test_of_two_who_become_the_default_at_once_the_second_is_told_so(engine: Engine, now: datetime) -> None:
    with Session(engine) as session, session.begin():
        ids = [a_profile(session, name).id for name in ("one", "two")]
    first, second = (
        lambda session, id_=id_: update_profile(session, id_, details(default=True), now=now) for id_ in ids
    )
    error = at_once(engine, first, second).exception()
    assert isinstance(error, ConflictError)
    assert codes(error) == [("default_profile_taken", "$.default")]
    with Session(engine) as session:
        assert get_profile(session, None).id == ids[0]


def test_a_deleted_profile_is_found_by_id_and_changes_no_more(session: Session, now: datetime) -> None:
    profile = a_profile(session)
    delete_profile(session, profile.id, now=now)
    assert get_profile(session, profile.id).deleted_at == now
    for change in (
        lambda: delete_profile(session, profile.id, now=now),
        lambda: update_profile(session, profile.id, details(), now=now),
    ):
        with pytest.raises(InvalidError) as error:
            change()
        assert codes(error.value) == [("profile_already_deleted", "$")]
    assert [one.id for one in list_profiles(session)[0]] == [DEFAULT]
    assert list_profiles(session, include_archived=True)[1] == 2
    with pytest.raises(ProfileNotFoundError):
        get_profile(session, UNKNOWN)


def test_profiles_are_listed_in_any_order_and_in_pages(session: Session) -> None:
    for name in ("B", "A", "C"):
        a_profile(session, name)
    names = [one.name for one in list_profiles(session, order_by="name")[0]]
    assert names == ["A", "B", "C", "Default"]
    found, count = list_profiles(session, order_by="name", descending=True, offset=1, limit=2)
    assert ([one.name for one in found], count) == (["C", "B"], 4)
    assert list_profiles(session, order_by="default", descending=True)[0][0].id == DEFAULT
    assert list_profiles(session, order_by="createdAt")[0][-1].id == DEFAULT


# -- Customers -----------------------------------------------------------------------------------------------


def test_a_customer_has_the_default_profile_until_pinned_and_again_after(
    session: Session, now: datetime
) -> None:
    customer, profile = a_customer(session), a_profile(session)
    assert profile_of(session, customer.id).profile.id == DEFAULT
    pinned = pin_profile(session, customer.id, profile_id=profile.id, now=now)
    assert pinned.override is not None
    assert (pinned.profile.id, pinned.override.billing_profile_id) == (profile.id, profile.id)
    always_default = pin_profile(session, customer.id, profile_id=None, now=now)
    assert always_default.override is not None
    assert (always_default.profile.id, always_default.override.billing_profile_id) == (DEFAULT, None)
    unpin_profile(session, customer.id, now=now)
    assert profile_of(session, customer.id).override is None
    with pytest.raises(OverrideNotFoundError):
        unpin_profile(session, customer.id, now=now)


def test_nobody_is_pinned_to_a_profile_that_is_not_there(session: Session, now: datetime) -> None:
    customer, gone = a_customer(session), a_profile(session)
    delete_profile(session, gone.id, now=now)
    for profile_id, code in ((UNKNOWN, "profile_not_found"), (gone.id, "profile_already_deleted")):
        with pytest.raises(InvalidError) as error:
            pin_profile(session, customer.id, profile_id=profile_id, now=now)
        assert codes(error.value) == [(code, "$.billingProfileId")]
    assert session.scalar(select(func.count()).select_from(CustomerOverride)) == 0


def test_a_deleted_customer_is_not_pinned(session: Session, now: datetime) -> None:
    customer = a_customer(session)
    delete_customer(session, customer, now=now)
    with pytest.raises(ConflictError):
        pin_profile(session, customer.id, profile_id=None, now=now)


def test_a_profile_stays_while_customers_are_pinned_to_it(session: Session, now: datetime) -> None:
    customer, profile = a_customer(session), a_profile(session)
    pin_profile(session, customer.id, profile_id=profile.id, now=now)
    with pytest.raises(InvalidError) as error:
        delete_profile(session, profile.id, now=now)
    assert codes(error.value) == [("profile_referenced", "$")]
    delete_customer(session, customer, now=now)
    delete_profile(session, profile.id, now=now)
    assert profile.deleted_at == now


def test_nobody_is_pinned_to_a_profile_while_it_is_deleted(engine: Engine, now: datetime) -> None:
    with Session(engine) as session, session.begin():
        customer_id, profile_id = a_customer(session).id, a_profile(session).id
    pinned = at_once(
        engine,
        lambda session: delete_profile(session, profile_id, now=now),
        lambda session: pin_profile(session, customer_id, profile_id=profile_id, now=now),
    )
    assert isinstance(pinned.exception(), InvalidError)


def _named(session: Session, name: str, key: str) -> Customer:
    email = f"{key}@example.com"
    return create_customer(session, CustomerDetails(name=name, key=key, primary_email=email), now=START)


def test_customers_are_listed_with_the_profile_they_are_invoiced_by(session: Session, now: datetime) -> None:
    ada, bob, eve = _named(session, "Ada", "a1"), _named(session, "Bob", "b2"), _named(session, "Eve", "e3")
    europe = a_profile(session)
    pin_profile(session, ada.id, profile_id=europe.id, now=now)
    pin_profile(session, bob.id, profile_id=None, now=now)
    delete_customer(session, _named(session, "Gone", "g4"), now=now)

    def listed(order_by: OverrideOrder = "customerName", **wanted: object) -> list[str]:
        found, count = list_overrides(session, OverrideFilter(**wanted), order_by=order_by)  # type: ignore[arg-type]
        assert count == len(found)
        return [one.customer.name for one in found]

    assert listed() == ["Ada", "Bob", "Eve"]
    assert listed(everybody=False) == ["Ada", "Bob"]
    assert listed(unpinned=True) == listed(unpinned=True, everybody=False) == ["Bob", "Eve"]
    assert listed(profiles=[europe.id]) == ["Ada"]
    assert listed(profiles=[DEFAULT]) == ["Bob", "Eve"]
    assert listed(profiles=[DEFAULT, europe.id]) == ["Ada", "Bob", "Eve"]
    assert listed(profiles=[DEFAULT], everybody=False) == ["Bob"]
    assert listed(customers=[ada.id, eve.id]) == ["Ada", "Eve"]
    assert listed(name="a") == listed(key="A1") == listed(primary_email="A1@EX") == ["Ada"]
    for order_by in ("customerId", "customerKey", "customerPrimaryEmail", "customerCreatedAt"):
        assert listed(order_by) == ["Ada", "Bob", "Eve"]
    found, count = list_overrides(
        session, OverrideFilter(), order_by="customerName", descending=True, offset=1, limit=1
    )
    assert ([one.customer.name for one in found], count) == (["Bob"], 3)


def test_many_customers_of_many_profiles_take_a_constant_number_of_questions(
    session: Session, shared_engine: Engine, now: datetime
) -> None:
    def asked(wanted: int) -> int:
        with counted_statements(shared_engine) as sent:
            session.expire_all()
            found, _ = list_overrides(session, OverrideFilter(), limit=wanted)
        assert len(found) == wanted
        return len(sent)

    for number in range(9):
        profile = a_profile(session, f"Profile {number}")
        pin_profile(session, a_customer(session).id, profile_id=profile.id, now=now)
    assert asked(1) == asked(9) <= 6


def test_without_any_default_profile_who_is_pinned_has_a_profile_all_the_same(
    session: Session, now: datetime
) -> None:
    pinned, other, profile = a_customer(session), a_customer(session), a_profile(session)
    pin_profile(session, pinned.id, profile_id=profile.id, now=now)
    get_profile(session, None).is_default = False
    session.flush()
    assert profiles_of(session, [pinned.id]) == {pinned.id: profile}
    with pytest.raises(ProfileNotFoundError) as error:
        profiles_of(session, [pinned.id, other.id])
    assert codes(error.value) == [("default_profile_not_found", "$")]


# -- Bills ---------------------------------------------------------------------------------------------------


def test_an_invoice_is_made_by_the_profile_of_its_day_and_keeps_it(session: Session) -> None:
    customer = a_customer(session)
    sign_up(session, customer, a_plan(session, phase(fee("20"))))
    europe = a_profile(session, workflow=invoicing(due_after="P14D"))
    bill_until(session, at("2026-01-15"))
    pin_profile(session, customer.id, profile_id=europe.id, now=at("2026-01-15"))
    bill_until(session, at("2026-02-02"))
    wanted = replace(details(workflow=invoicing(due_after="P7D")), supplier=Party(name="Other"))
    update_profile(session, europe.id, wanted, now=at("2026-02-02"))
    january, february = invoices_of(session)
    assert [one.billing_profile_id for one in (january, february)] == [DEFAULT, europe.id]
    assert [one.due_at for one in (january, february)] == [at("2026-01-31"), at("2026-02-15")]
    assert [one.supplier.name for one in (january, february)] == ["Your company", "ACME"]


def test_anchored_lines_are_collected_on_the_anchor(session: Session) -> None:
    sign_up(session, a_customer(session), a_plan(session, phase(fee("20"))))
    update_profile(session, DEFAULT, details(workflow=anchored(), default=True), now=START)
    bill_until(session, at("2026-02-20"))
    assert ledger(session) == [
        "2026-01-15 paid 20.00: seat 01-01..02-01 20.00",
        "2026-02-15 paid 20.00: seat 02-01..03-01 20.00",
    ]


def test_what_was_added_by_hand_waits_for_the_anchor_too(session: Session) -> None:
    customer = a_customer(session)
    update_profile(session, DEFAULT, details(workflow=anchored(), default=True), now=START)
    card = UsageBasedRateCard(
        type="usage_based",
        key="setup",
        name="setup",
        billing_cadence="P1M",
        price=FlatPrice(type="flat", amount=Decimal(7)),
    )
    once = Period(start=START, end=at("2026-01-02"))
    line = WantedLine(rate_card=card, period=once, invoice_at=at("2026-01-03"))
    add_pending_lines(session, customer, currency="USD", lines=[line], now=START)
    run_portion(session, now=at("2026-01-03"))
    assert due_at(session) == at("2026-01-15")
    bill_until(session, at("2026-01-15"))
    assert ledger(session) == ["2026-01-15 paid 7.00: setup 01-01..01-02 7.00"]


def test_what_waits_for_an_anchor_that_is_no_more_is_due_at_once(session: Session) -> None:
    sign_up(session, a_customer(session), a_plan(session, phase(fee("20"))))
    update_profile(session, DEFAULT, details(workflow=anchored(), default=True), now=START)
    bill_until(session, at("2026-02-03"))
    assert due_at(session) == at("2026-02-15")
    update_profile(session, DEFAULT, details(default=True), now=at("2026-02-03"))
    bill_until(session, at("2026-02-03"))
    assert ledger(session)[1:] == ["2026-02-03 paid 20.00: seat 02-01..03-01 20.00"]
    assert due_at(session) == at("2026-03-01")


def test_only_customers_whose_collection_changes_are_looked_at_again(session: Session) -> None:
    plan = a_plan(session, phase(fee("20")))
    pinned, other = (sign_up(session, a_customer(session), plan) for _ in range(2))
    monthly = a_profile(session, workflow=anchored())
    bill_until(session, at("2026-01-15"))
    pin_profile(session, pinned.customer_id, profile_id=monthly.id, now=at("2026-01-20"))
    session.expire_all()
    assert (pinned.next_billing_at, other.next_billing_at) == (at("2026-01-20"), at("2026-02-01"))
    bill_until(session, at("2026-01-20"))
    assert (pinned.next_billing_at, other.next_billing_at) == (at("2026-02-15"), at("2026-02-01"))
    update_profile(session, monthly.id, details(workflow=anchored("P1W")), now=at("2026-01-21"))
    session.expire_all()
    assert (pinned.next_billing_at, other.next_billing_at) == (at("2026-01-21"), at("2026-02-01"))
    a_default = details("New", workflow=anchored("P1W"), default=True)
    create_profile(session, a_default, apps=apps(), now=at("2026-01-22"))
    session.expire_all()
    assert (pinned.next_billing_at, other.next_billing_at) == (at("2026-01-21"), at("2026-01-22"))
    unpin_profile(session, pinned.customer_id, now=at("2026-01-23"))
    assert len(invoices_of(session)) == 2


def test_who_bills_a_customer_meanwhile_does_not_undo_that_they_are_looked_at_again(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        signed = sign_up(session, a_customer(session), a_plan(session, phase(fee("20"))))
        subscription_id, customer_id = signed.id, signed.customer_id

    def bill(session: Session) -> None:
        """Written when it commits, by the profile as it was."""
        get_customer(session, customer_id, lock=True)
        get_subscription(session, subscription_id).next_billing_at = at("2026-02-01")

    wanted = details(workflow=anchored(), default=True)
    changed = at_once(
        engine, bill, lambda session: update_profile(session, DEFAULT, wanted, now=at("2026-01-20"))
    )
    assert changed.exception() is None
    with Session(engine) as session:
        assert get_subscription(session, subscription_id).next_billing_at == at("2026-01-20")


def test_nobody_waits_for_who_changes_a_profile_to_bill_by_it(engine: Engine, now: datetime) -> None:
    with Session(engine) as session, session.begin():
        sign_up(session, a_customer(session), a_plan(session, phase(fee("20"))))
    with Session(engine) as changing, Session(engine) as billing:
        update_profile(changing, DEFAULT, details(default=True), now=now)
        billing.execute(text("SET LOCAL lock_timeout = '1s'"))
        outcome = run_portion(billing, now=START)
        assert (outcome.created, outcome.failed) == (1, {})
        billing.commit()
        changing.commit()
