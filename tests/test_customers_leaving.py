"""Whoever leaves pays for what they used: deleting a customer, or moving a subject, rewrites no bill."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from billing.contracts.customer import Customer, CustomerDeletedError, get_customer
from billing.contracts.customer_changes import CustomerDetails, CustomerInUseError, SubjectTakenError
from billing.contracts.pending import PendingLine, WantedLine, add_pending_lines
from billing.contracts.subscription_changes import cancel_subscription
from billing.contracts.subscriptions import Subscription
from billing.invoices.actions import act, delete_invoice, invoice_now
from billing.invoices.customer_changes import delete_customer, update_customer
from billing.invoices.gathering import gathering_invoices
from billing.invoices.withdrawal import delete_pending_line
from billing.profiles.app import SANDBOX_WISH
from billing.profiles.profile import get_profile
from billing.profiles.workflow import InvoicingSettings, Workflow
from billing.runs.run import due_at
from catalog.plans import Plan
from catalog.price import FlatPrice, UnitPrice
from catalog.rate_card import UsageBasedRateCard
from metering.errors import InvalidError, Issue
from metering.period import Period
from tests.billing_clock import bill_until, invoices_of, ledger, wrong
from tests.builders import (
    START,
    a_customer,
    a_metered_feature,
    a_plan,
    at,
    fee,
    per_unit,
    phase,
    sign_up,
    spent,
    store,
)

END = at("2026-02-10")
BILLED = [
    "2026-02-01 paid 100.00: tokens 01-01..02-01 100.00",
    "2026-02-10 paid 30.00: tokens 02-01..02-10 30.00",
]


@dataclass(frozen=True)
class Left:
    """Used 100 tokens in January and 30 in February at 1 each, and cancelled on the 10th."""

    customer: Customer
    plan: Plan


@pytest.fixture
def left(session: Session) -> Left:
    a_metered_feature(session)
    customer = a_customer(session, "ada", key="kong-air")
    plan = a_plan(session, phase(per_unit("1")))
    signed = sign_up(session, customer, plan)
    store(session, spent("ada", 60, "2026-01-10"), spent("kong-air", 40, "2026-01-10"))
    store(session, spent("ada", 30, "2026-02-05"))
    bill_until(session, END - timedelta(days=1))
    cancel_subscription(session, signed.id, now=END)
    return Left(customer, plan)


def issues_of(error: InvalidError) -> list[tuple[str, str]]:
    return [(issue.code, issue.field) for issue in error.issues]


def deleted(session: Session, customer: Customer, now: datetime) -> None:
    delete_customer(session, get_customer(session, customer.id, lock=True), now=now)


def refused_to_delete(session: Session, customer: Customer, now: datetime) -> Sequence[Issue]:
    with pytest.raises(CustomerInUseError) as caught:
        deleted(session, customer, now)
    assert {issue.code for issue in caught.value.issues} == {"customer_in_use"}
    assert all(issue.hint for issue in caught.value.issues)
    assert customer.deleted_at is None
    return caught.value.issues


def keep(session: Session, customer: Customer, now: datetime, *subjects: str, key: str | None = None) -> None:
    details = CustomerDetails(name="Kong Air", key=key, subject_keys=subjects)
    update_customer(session, get_customer(session, customer.id, lock=True), details, now=now)


# -- Deleting ------------------------------------------------------------------------------------------------


def test_who_is_deleted_once_all_is_paid_gets_nothing_back(session: Session, left: Left) -> None:
    bill_until(session, at("2026-02-11"))
    deleted(session, left.customer, at("2026-02-11"))
    assert due_at(session) is None
    bill_until(session, at("2026-06-01"))
    assert ledger(session) == BILLED
    assert wrong(session, at("2026-06-01")) == []


def test_nothing_is_gathered_for_who_was_deleted(session: Session, left: Left) -> None:
    bill_until(session, at("2026-02-11"))
    deleted(session, left.customer, at("2026-02-11"))
    (gathering,) = gathering_invoices(session, [left.customer], at=at("2026-02-12"))
    assert gathering.lines == ()
    with pytest.raises(CustomerDeletedError):
        invoice_now(session, left.customer.id, now=at("2026-02-12"))


def test_nobody_is_deleted_before_the_last_usage_is_billed(session: Session, left: Left) -> None:
    (issue,) = refused_to_delete(session, left.customer, END)
    assert "gathering" in issue.message


def test_nobody_is_deleted_while_a_draft_waits_for_late_usage(session: Session, left: Left) -> None:
    within_the_hour = END + timedelta(minutes=10)
    bill_until(session, within_the_hour)
    (issue,) = refused_to_delete(session, left.customer, within_the_hour)
    assert "DRAFT-" in issue.message
    bill_until(session, at("2026-02-11"))
    assert ledger(session) == BILLED


def test_nobody_is_deleted_while_usage_that_came_late_is_to_be_billed(session: Session, left: Left) -> None:
    bill_until(session, at("2026-02-11"))
    store(session, spent("ada", 5, "2026-02-06"))
    refused_to_delete(session, left.customer, at("2026-02-12"))
    bill_until(session, at("2026-03-20"))
    deleted(session, left.customer, at("2026-03-20"))


def test_nobody_is_deleted_while_an_invoice_is_open(session: Session, left: Left) -> None:
    left.customer.metadata_ = {SANDBOX_WISH: "failed"}
    bill_until(session, at("2026-02-11"))
    (issue,) = refused_to_delete(session, left.customer, at("2026-02-11"))
    last = invoices_of(session)[-1]
    assert last.number in issue.message
    act(session, last.id, "paid", now=at("2026-02-12"))
    deleted(session, left.customer, at("2026-02-12"))


def by_hand(
    session: Session, customer: Customer, *, metered: bool = False, start: str = "2026-01-01"
) -> PendingLine:
    """Due at once, whenever its period is."""
    flat = FlatPrice(type="flat", amount=Decimal(7))
    card = UsageBasedRateCard(
        type="usage_based",
        key="extra",
        name="extra",
        feature_key="tokens" if metered else None,
        billing_cadence="P1M",
        price=UnitPrice(type="unit", amount=Decimal(1)) if metered else flat,
    )
    period = Period(start=at(start), end=at(start) + timedelta(days=9))
    due = max(START, period.end) if metered else at(start)
    line = WantedLine(rate_card=card, period=period, invoice_at=due)
    locked = get_customer(session, customer.id, lock=True)
    (added,) = add_pending_lines(session, locked, currency="USD", lines=[line], now=START)
    return added


@pytest.mark.parametrize("start", ["2026-01-01", "2026-08-01"])
def test_nobody_is_deleted_while_a_line_added_by_hand_waits(session: Session, start: str) -> None:
    customer = a_customer(session, "ada")
    by_hand(session, customer, start=start)
    refused_to_delete(session, customer, START)
    bill_until(session, at(start))
    assert [invoice.status for invoice in invoices_of(session)] == ["paid"]
    deleted(session, customer, at(start))


def test_who_takes_back_what_was_added_by_hand_may_be_deleted(session: Session) -> None:
    customer = a_customer(session, "ada")
    line = by_hand(session, customer, start="2026-08-01")
    delete_pending_line(session, customer.id, line.billable.line_id, now=START)
    deleted(session, customer, START)
    assert customer.deleted_at == START


def test_usage_of_a_line_added_by_hand_is_not_given_back_when_its_customer_is_deleted(
    session: Session,
) -> None:
    a_metered_feature(session)
    customer = a_customer(session, "ada")
    line = by_hand(session, customer, metered=True)
    store(session, spent("ada", 100, "2026-01-05"))
    bill_until(session, at("2026-01-11"))
    deleted(session, customer, at("2026-01-11"))
    assert line.next_billing_at is None
    bill_until(session, at("2026-06-01"))
    assert ledger(session) == ["2026-01-10 paid 100.00: extra 01-01..01-10 100.00"]


# -- Taking subjects away ------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["2026-02-10", "2026-02-10T00:10", "2026-02-11", "2026-03-20", "2026-04-08"])
def test_subjects_and_key_stay_while_late_usage_is_looked_for(
    session: Session, left: Left, when: str
) -> None:
    bill_until(session, at(when))
    for subjects, key, field in (
        ((), "kong-air", "$.usageAttribution.subjectKeys"),
        (("ada",), None, "$.key"),
        (("ada",), "kong", "$.key"),
    ):
        with pytest.raises(CustomerInUseError) as caught:
            keep(session, left.customer, at(when), *subjects, key=key)
        assert issues_of(caught.value) == [("subject_in_use", field)]
        assert "2026-02-10" in str(caught.value.issues[0].hint)
    keep(session, left.customer, at(when), "ada", "kong-air", "more")


def test_subjects_and_key_may_go_when_it_is_looked_for_no_more(session: Session, left: Left) -> None:
    later = at("2026-05-20")
    bill_until(session, later)
    assert session.scalars(select(Subscription.next_billing_at)).all() == [None]
    keep(session, left.customer, later)
    bill_until(session, at("2026-09-01"))
    assert ledger(session) == BILLED
    assert wrong(session, at("2026-09-01")) == []


def test_a_subject_that_moves_is_paid_for_once(session: Session, left: Left) -> None:
    """By whoever had it, also where the other one's contract ran all the time."""
    other = a_customer(session, "other")
    sign_up(session, other, left.plan)
    bill_until(session, at("2026-02-11"))
    with pytest.raises(SubjectTakenError):
        keep(session, other, at("2026-02-11"), "other", "ada")
    later = at("2026-05-20")
    bill_until(session, later)
    keep(session, left.customer, later)
    keep(session, other, later, "other", "ada")
    bill_until(session, at("2026-09-02"))
    paid = [one.totals.total for one in invoices_of(session) if one.customer_id == other.id]
    assert paid == [0] * 8


def test_where_no_usage_is_billed_subjects_may_go_with_the_contract(session: Session) -> None:
    customer = a_customer(session, "ada")
    signed = sign_up(session, customer, a_plan(session, phase(fee())))
    bill_until(session, START)
    cancel_subscription(session, signed.id, now=END)
    bill_until(session, END)
    keep(session, customer, END)
    assert customer.usage_subjects == ()


def test_subjects_stay_until_the_draft_with_their_usage_is_issued(session: Session, left: Left) -> None:
    """Also when it waits for months."""
    by_people = Workflow(invoicing=InvoicingSettings(auto_advance=False))
    get_profile(session, None).workflow = by_people
    later = at("2026-05-20")
    bill_until(session, later)
    draft = invoices_of(session)[-1]
    assert draft.status == "draft.manual_approval_needed"
    with pytest.raises(CustomerInUseError) as caught:
        keep(session, left.customer, later)
    assert draft.number in str(caught.value.issues[0].hint)
    keep(session, left.customer, later, "ada", key="kong-air")
    delete_invoice(session, draft.id, now=later)
    keep(session, left.customer, later)


def test_a_line_added_by_hand_keeps_the_subjects_whose_usage_it_bills(session: Session) -> None:
    a_metered_feature(session)
    customer = a_customer(session, "ada")
    by_hand(session, customer, metered=True, start="2026-01-05")
    with pytest.raises(CustomerInUseError) as caught:
        keep(session, customer, START)
    assert "2026-01-14" in str(caught.value.issues[0].hint)
