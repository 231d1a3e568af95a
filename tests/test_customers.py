from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from billing.contracts.customer import (
    Address,
    Customer,
    CustomerDeletedError,
    CustomerNotFoundError,
    customers_by_id,
    get_customer,
    list_customers,
)
from billing.contracts.customer_changes import (
    CustomerDetails,
    CustomerInUseError,
    SubjectTakenError,
    create_customer,
    delete_customer,
    update_customer,
)
from billing.contracts.pending import PendingLine, WantedLine, add_pending_lines
from billing.contracts.subscriptions import create_subscription
from catalog.price import FlatPrice
from catalog.rate_card import UsageBasedRateCard
from metering.errors import InvalidError
from metering.period import Period
from tests.billing_clock import bill_until
from tests.builders import (
    START,
    a_customer,
    a_metered_feature,
    a_plan,
    at_once,
    fee,
    per_unit,
    phase,
    sign_up,
)

ACME = CustomerDetails(name="Acme", key="acme", subject_keys=("gateway-1", "gateway-2"))


def subscribed(session: Session, details: CustomerDetails = ACME) -> Customer:
    """To a plan that costs dollars."""
    customer = create_customer(session, details, now=START)
    sign_up(session, customer, a_plan(session))
    return customer


def update(session: Session, customer: Customer, details: CustomerDetails, now: datetime) -> Customer:
    """As a request does: with the customer locked."""
    return update_customer(session, get_customer(session, customer.id, lock=True), details, now=now)


def reread(session: Session, customer: Customer) -> Customer:
    session.flush()
    session.expire_all()
    return get_customer(session, customer.id)


def test_a_customer_is_read_back_as_it_was_written(session: Session, now: datetime) -> None:
    details = CustomerDetails(
        name="Acme",
        key="acme",
        description="the first one",
        metadata={"crm": "17"},
        subject_keys=("b", "a"),
        primary_email="pay@acme.test",
        currency="EUR",
        billing_address=Address(country="DE", city="Köln", postal_code="50667"),
    )
    customer = reread(session, create_customer(session, details, now=now))
    assert (customer.name, customer.key, customer.description) == ("Acme", "acme", "the first one")
    assert (customer.metadata_, customer.primary_email) == ({"crm": "17"}, "pay@acme.test")
    assert (customer.currency, customer.billing_address) == ("EUR", details.billing_address)
    assert (customer.created_at, customer.updated_at, customer.deleted_at) == (now, now, None)
    assert customer.subject_keys == ["b", "a"]


def test_a_customer_pays_for_its_subjects_and_for_its_own_key(session: Session) -> None:
    customer = create_customer(session, ACME, now=START)
    assert customer.subject_keys == ["gateway-1", "gateway-2"]
    assert sorted(customer.usage_subjects) == ["acme", "gateway-1", "gateway-2"]


def test_a_customer_may_own_nothing(session: Session) -> None:
    customer = create_customer(session, CustomerDetails(name="Acme"), now=START)
    assert (customer.subject_keys, customer.usage_subjects) == ([], ())


def test_a_key_that_is_also_given_as_a_subject_is_owned_once_and_stays_in_its_place(session: Session) -> None:
    details = CustomerDetails(name="Acme", key="b", subject_keys=("a", "b", "c"))
    customer = create_customer(session, details, now=START)
    assert customer.subject_keys == ["a", "b", "c"]
    assert sorted(customer.usage_subjects) == ["a", "b", "c"]
    assert reread(session, customer).subject_keys == ["a", "b", "c"]


def test_all_that_is_wrong_with_a_customer_is_reported_at_once(session: Session) -> None:
    details = CustomerDetails(
        name="Acme",
        key="01HZY3V5KQWZ8M4T6R9BNC2XDE",
        currency="XXX",
        subject_keys=("a", "b", "a"),
        billing_address=Address(city="x" * 256, postal_code="1" * 257, phone_number="0" * 1000),
    )
    with pytest.raises(InvalidError) as caught:
        create_customer(session, details, now=START)
    assert [(issue.code, issue.field) for issue in caught.value.issues] == [
        ("currency_invalid", "$.currency"),
        ("invalid_key", "$.key"),
        ("invalid_length", "$.billingAddress.postalCode"),
        ("invalid_length", "$.billingAddress.phoneNumber"),
        ("duplicate_subject", "$.usageAttribution.subjectKeys[2]"),
    ]


def test_a_subject_of_another_customer_is_refused_with_its_path_and_its_owner(session: Session) -> None:
    owner = create_customer(session, ACME, now=START)
    with pytest.raises(SubjectTakenError) as caught:
        a_customer(session, "free", "gateway-2")
    (issue,) = caught.value.issues
    assert (issue.code, issue.field) == ("subject_taken", "$.usageAttribution.subjectKeys[1]")
    assert owner.id in issue.message
    assert "'gateway-2'" in issue.message


def test_every_subject_that_is_taken_is_reported_in_one_go(session: Session) -> None:
    create_customer(session, ACME, now=START)
    other = a_customer(session, "z")
    with pytest.raises(SubjectTakenError) as caught:
        a_customer(session, "z", "gateway-1")
    assert [issue.field for issue in caught.value.issues] == [
        "$.usageAttribution.subjectKeys[1]",
        "$.usageAttribution.subjectKeys[0]",
    ]
    assert other.id in caught.value.issues[1].message


@pytest.mark.parametrize("key", ["acme", "gateway-1"])
def test_a_key_is_refused_when_it_is_anothers_key_or_subject(session: Session, key: str) -> None:
    create_customer(session, ACME, now=START)
    with pytest.raises(SubjectTakenError) as caught:
        a_customer(session, key=key)
    assert [issue.field for issue in caught.value.issues] == ["$.key"]


def test_a_subject_is_refused_when_it_is_anothers_key(session: Session) -> None:
    create_customer(session, ACME, now=START)
    with pytest.raises(SubjectTakenError) as caught:
        a_customer(session, "acme")
    assert [issue.field for issue in caught.value.issues] == ["$.usageAttribution.subjectKeys[0]"]


def test_an_update_replaces_everything(session: Session, now: datetime) -> None:
    full = replace(
        ACME,
        description="d",
        metadata={"a": "b"},
        primary_email="a@b.test",
        billing_address=Address(city="Rome"),
    )
    customer = create_customer(session, full, now=START)
    update(session, customer, CustomerDetails(name="New"), now)
    changed = reread(session, customer)
    assert (changed.name, changed.key, changed.description, changed.metadata_) == ("New", None, None, None)
    assert (changed.primary_email, changed.billing_address) == (None, None)
    assert changed.usage_subjects == ()
    assert (changed.created_at, changed.updated_at) == (START, now)


@pytest.mark.parametrize(
    ("key", "before", "after"),
    [
        (None, ("a", "b", "c"), ("c", "b", "a")),
        (None, ("a", "b"), ("c", "b", "d", "a")),
        (None, ("a", "b", "c"), ("c", "a")),
        ("k", ("a", "b"), ("b", "k", "a")),
        ("k", ("k", "a"), ("a",)),
    ],
)
def test_an_update_puts_the_subjects_in_the_order_given(
    session: Session, now: datetime, key: str | None, before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    customer = a_customer(session, *before, key=key)
    details = CustomerDetails(name="Acme", key=key, subject_keys=after)
    answered = update(session, customer, details, now)
    assert answered.subject_keys == list(after)
    assert reread(session, customer).subject_keys == list(after)


def test_an_update_frees_the_subjects_it_leaves_out(session: Session, now: datetime) -> None:
    customer = create_customer(session, ACME, now=START)
    update(session, customer, replace(ACME, subject_keys=("gateway-2",)), now)
    other = a_customer(session, "gateway-1")
    assert get_customer(session, "gateway-1", by_subject=True) is other


def test_an_update_is_refused_a_subject_of_another(session: Session, now: datetime) -> None:
    create_customer(session, ACME, now=START)
    other = a_customer(session, "mine")
    with pytest.raises(SubjectTakenError) as caught:
        update(session, other, CustomerDetails(name="B", subject_keys=("mine", "gateway-1")), now)
    assert [issue.field for issue in caught.value.issues] == ["$.usageAttribution.subjectKeys[1]"]
    assert reread(session, other).subject_keys == ["mine"]


def test_an_update_without_a_currency_keeps_it(session: Session, now: datetime) -> None:
    customer = create_customer(session, replace(ACME, currency="EUR"), now=START)
    assert update(session, customer, ACME, now).currency == "EUR"
    assert update(session, customer, replace(ACME, currency="USD"), now).currency == "USD"


def a_line_by_hand(session: Session, customer: Customer) -> PendingLine:
    price = FlatPrice(type="flat", amount=Decimal(100))
    card = UsageBasedRateCard(
        type="usage_based", key="setup", name="setup", billing_cadence="P1M", price=price
    )
    line = WantedLine(rate_card=card, period=Period(start=START, end=START), invoice_at=START)
    locked = get_customer(session, customer.id, lock=True)
    (added,) = add_pending_lines(session, locked, currency="USD", lines=[line], now=START)
    return added


@pytest.mark.parametrize("billed", [False, True])
def test_the_currency_stays_once_a_line_was_added_by_hand(
    session: Session, now: datetime, billed: bool
) -> None:
    customer = create_customer(session, ACME, now=START)
    line = a_line_by_hand(session, customer)
    if billed:
        bill_until(session, now)
        assert line.next_billing_at is None
    with pytest.raises(CustomerInUseError) as caught:
        update(session, customer, replace(ACME, currency="EUR"), now)
    assert [(issue.code, issue.field) for issue in caught.value.issues] == [
        ("currency_mismatch", "$.currency")
    ]
    assert caught.value.issues[0].hint
    assert update(session, customer, replace(ACME, currency="USD"), now).currency == "USD"


def test_the_currency_is_free_again_when_the_line_was_taken_back(session: Session, now: datetime) -> None:
    customer = create_customer(session, ACME, now=START)
    a_line_by_hand(session, customer).delete(now)
    assert update(session, customer, replace(ACME, currency="EUR"), now).currency == "EUR"


def test_a_subscribed_customer_may_gain_subjects_and_change_their_order(
    session: Session, now: datetime
) -> None:
    customer = subscribed(session)
    more = replace(ACME, name="Acme Inc", subject_keys=("gateway-3", "gateway-2", "gateway-1"))
    update(session, customer, more, now)
    assert reread(session, customer).subject_keys == ["gateway-3", "gateway-2", "gateway-1"]
    assert customer.name == "Acme Inc"


def test_a_subscribed_customer_keeps_its_subjects_its_key_and_its_currency(
    session: Session, now: datetime
) -> None:
    customer = subscribed(session)
    with pytest.raises(CustomerInUseError) as caught:
        update(session, customer, CustomerDetails(name="A", subject_keys=("gateway-2",), currency="EUR"), now)
    assert [(issue.code, issue.field) for issue in caught.value.issues] == [
        ("subject_in_use", "$.usageAttribution.subjectKeys"),
        ("subject_in_use", "$.key"),
        ("currency_mismatch", "$.currency"),
    ]
    kept = reread(session, customer)
    assert (kept.subject_keys, kept.key, kept.currency) == (["gateway-1", "gateway-2"], "acme", "USD")


def test_a_key_may_become_a_subject_and_a_subject_the_key_while_subscribed(
    session: Session, now: datetime
) -> None:
    customer = subscribed(session)
    swapped = replace(ACME, key="gateway-1", subject_keys=("acme", "gateway-2"))
    update(session, customer, swapped, now)
    kept = reread(session, customer)
    assert (kept.key, kept.subject_keys) == ("gateway-1", ["acme", "gateway-2"])
    assert sorted(kept.usage_subjects) == ["acme", "gateway-1", "gateway-2"]


@pytest.mark.parametrize("looked_at", [True, False])
def test_once_usage_of_a_subscription_is_looked_for_no_more_subjects_may_go(
    session: Session, now: datetime, looked_at: bool
) -> None:
    a_metered_feature(session)
    customer = create_customer(session, ACME, now=START)
    signed = sign_up(session, customer, a_plan(session, phase(per_unit())))
    signed.active_to, signed.next_billing_at = now, now if looked_at else None
    if looked_at:
        with pytest.raises(CustomerInUseError):
            update(session, customer, replace(ACME, subject_keys=()), now)
    else:
        update(session, customer, replace(ACME, subject_keys=()), now)
    assert reread(session, customer).subject_keys == (["gateway-1", "gateway-2"] if looked_at else [])


def test_deleting_a_customer_frees_its_subjects_and_its_key(session: Session, now: datetime) -> None:
    customer = create_customer(session, ACME, now=START)
    delete_customer(session, customer, now=now)
    successor = create_customer(session, ACME, now=now)
    assert get_customer(session, "acme") is successor
    assert get_customer(session, "gateway-1", by_subject=True) is successor
    gone = reread(session, customer)
    assert (gone.deleted_at, gone.usage_subjects, gone.name) == (now, (), "Acme")


def test_deleting_a_customer_twice_keeps_the_first_instant(session: Session, now: datetime) -> None:
    customer = create_customer(session, ACME, now=START)
    delete_customer(session, customer, now=now)
    delete_customer(session, customer, now=now + timedelta(days=1))
    assert reread(session, customer).deleted_at == now


def test_a_subscribed_customer_is_not_deleted(session: Session, now: datetime) -> None:
    customer = subscribed(session)
    with pytest.raises(CustomerInUseError) as caught:
        delete_customer(session, customer, now=now)
    assert caught.value.issues[0].code == "customer_in_use"
    assert reread(session, customer).deleted_at is None


def test_a_deleted_customer_is_neither_changed_nor_signed_up(session: Session, now: datetime) -> None:
    plan = a_plan(session)
    customer = create_customer(session, ACME, now=START)
    delete_customer(session, customer, now=now)
    with pytest.raises(CustomerDeletedError):
        update(session, customer, ACME, now)
    with pytest.raises(CustomerDeletedError):
        create_subscription(session, customer=customer, plan=plan, active_from=now, now=now)
    assert reread(session, customer).usage_subjects == ()


def test_a_customer_is_found_by_id_key_or_subject(session: Session) -> None:
    customer = create_customer(session, ACME, now=START)
    a_customer(session, "other", key="another")
    for name in (customer.id, "acme", "gateway-1", "gateway-2"):
        assert get_customer(session, name, by_subject=True) is customer
    with pytest.raises(CustomerNotFoundError):
        get_customer(session, "gateway-3", by_subject=True)


def test_a_subject_does_not_name_the_customer_that_is_to_be_changed(session: Session) -> None:
    customer = create_customer(session, ACME, now=START)
    for name in (customer.id, "acme"):
        assert get_customer(session, name, lock=True) is customer
    with pytest.raises(CustomerNotFoundError):
        get_customer(session, "gateway-1", lock=True)


def test_a_deleted_customer_is_found_by_its_id_alone(session: Session, now: datetime) -> None:
    customer = create_customer(session, ACME, now=START)
    delete_customer(session, customer, now=now)
    assert get_customer(session, customer.id) is customer
    for name in ("acme", "gateway-1"):
        with pytest.raises(CustomerNotFoundError):
            get_customer(session, name, by_subject=True)


def names(page: tuple[object, int]) -> list[str]:
    customers, count = page
    assert isinstance(customers, list)
    assert count == len(customers)
    return sorted(customer.name for customer in customers)


def test_customers_are_listed_by_what_their_texts_contain(session: Session, now: datetime) -> None:
    create_customer(session, replace(ACME, primary_email="Pay@acme.test"), now=START)
    create_customer(
        session, CustomerDetails(name="Bravo 100%", key="bravo", subject_keys=("b_1",)), now=START
    )
    gone = create_customer(session, CustomerDetails(name="Gone"), now=START)
    delete_customer(session, gone, now=now)
    assert names(list_customers(session)) == ["Acme", "Bravo 100%"]
    assert names(list_customers(session, include_deleted=True)) == ["Acme", "Bravo 100%", "Gone"]
    assert names(list_customers(session, name="ACM")) == ["Acme"]
    assert names(list_customers(session, name="%")) == ["Bravo 100%"]
    assert names(list_customers(session, key="RAV")) == ["Bravo 100%"]
    assert names(list_customers(session, primary_email="pay@")) == ["Acme"]
    assert names(list_customers(session, subject="WAY-2")) == ["Acme"]
    assert names(list_customers(session, subject="_1")) == ["Bravo 100%"]
    assert names(list_customers(session, subject="acme")) == ["Acme"]
    assert names(list_customers(session, name="acme", subject="b_1")) == []


def test_a_page_says_how_many_customers_there_are(session: Session) -> None:
    first, second = sorted(a_customer(session).id for _ in range(2))
    page, count = list_customers(session, offset=1, limit=1)
    assert ([customer.id for customer in page], count) == ([second], 2)
    assert list(customers_by_id(session, [first, "unknown"])) == [first]


def test_of_two_who_give_one_subject_to_two_customers_at_once_one_wins(engine: Engine) -> None:
    second = at_once(
        engine, lambda session: a_customer(session, "a", "s"), lambda session: a_customer(session, "s", "b")
    )
    error = second.exception()
    assert isinstance(error, SubjectTakenError)
    assert error.issues[0].code == "subject_taken"
    with Session(engine) as session:
        assert get_customer(session, "s", by_subject=True).subject_keys == ["a", "s"]
        assert list_customers(session)[1] == 1


def test_subjects_are_claimed_in_one_order_so_that_two_who_claim_many_never_deadlock(
    session: Session, now: datetime
) -> None:
    in_order_of_writing = text(
        "SELECT subject_key FROM subject_owners ORDER BY CAST(CAST(cmin AS text) AS int)"
    )
    customer = a_customer(session, "d", "c", "e", key="b")
    assert session.scalars(in_order_of_writing).all() == ["b", "c", "d", "e"]
    session.execute(text("DELETE FROM subject_owners"))
    session.expire_all()
    update(session, customer, CustomerDetails(name="A", key="a", subject_keys=("g", "f")), now)
    assert session.scalars(in_order_of_writing).all() == ["a", "f", "g"]


def test_of_two_who_use_one_text_as_key_and_as_subject_at_once_one_wins(engine: Engine) -> None:
    second = at_once(
        engine, lambda session: a_customer(session, key="s"), lambda session: a_customer(session, "s")
    )
    assert isinstance(second.exception(), SubjectTakenError)


def test_of_two_updates_that_take_one_subject_at_once_one_wins(engine: Engine, now: datetime) -> None:
    with Session(engine, expire_on_commit=False) as session:
        one, other = a_customer(session, "one"), a_customer(session, "other")
        session.commit()
    second = at_once(
        engine,
        lambda session: update(session, one, CustomerDetails(name="1", subject_keys=("one", "s")), now),
        lambda session: update(session, other, CustomerDetails(name="2", subject_keys=("other", "s")), now),
    )
    assert isinstance(second.exception(), SubjectTakenError)
    with Session(engine) as session:
        assert get_customer(session, "s", by_subject=True).id == one.id
        assert get_customer(session, other.id).subject_keys == ["other"]


def test_of_two_updates_of_one_customer_at_once_the_later_one_stands_alone(
    engine: Engine, now: datetime
) -> None:
    with Session(engine, expire_on_commit=False) as session:
        customer = a_customer(session, "a", "b")
        session.commit()
    second = at_once(
        engine,
        lambda session: update(session, customer, CustomerDetails(name="1", subject_keys=("b", "c")), now),
        lambda session: update(session, customer, CustomerDetails(name="2", subject_keys=("d", "b")), now),
    )
    assert second.exception() is None
    with Session(engine) as session:
        found = get_customer(session, customer.id)
        assert (found.name, found.subject_keys) == ("2", ["d", "b"])


def test_a_customer_is_not_deleted_while_it_is_being_signed_up(engine: Engine, now: datetime) -> None:
    with Session(engine, expire_on_commit=False) as session:
        customer, plan = a_customer(session, "s"), a_plan(session, phase(fee()))
        session.commit()
    second = at_once(
        engine,
        lambda session: sign_up(session, customer, session.merge(plan)),
        lambda session: delete_customer(session, get_customer(session, customer.id, lock=True), now=now),
    )
    assert isinstance(second.exception(), CustomerInUseError)
