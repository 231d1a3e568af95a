"""What was given up was never charged: nothing of it is given back, whatever becomes of the contract."""

from dataclasses import replace
from decimal import Decimal

import pytest
from sqlalchemy.orm import Session

from billing.contracts.customer import get_customer
from billing.contracts.subscription_changes import cancel_subscription, unschedule_cancelation
from billing.contracts.subscriptions import Subscription
from billing.invoices.actions import VoidAction, act, delete_invoice, invoice_now, void_invoice
from billing.invoices.credit_notes import creditable_of
from billing.invoices.gathering import gathering_invoices
from billing.invoices.invoice import Invoice, get_invoice
from billing.profiles.app import SANDBOX_WISH
from billing.profiles.profile import get_profile
from billing.profiles.workflow import InvoicingSettings
from billing.proof.audit import audit
from metering.errors import InvalidError
from tests.billing_clock import bill_until, invoices_of, ledger
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


def by_hand(session: Session) -> None:
    profile = get_profile(session, None)
    profile.workflow = replace(profile.workflow, invoicing=InvoicingSettings(auto_advance=False))
    session.flush()


def last(session: Session) -> Invoice:
    return get_invoice(session, invoices_of(session)[-1].id)


def approved(session: Session, when: str) -> Invoice:
    invoice = last(session)
    act(session, invoice.id, "approve", now=at(when))
    return invoice


def errors(session: Session, when: str) -> list[str]:
    return [found.message for found in audit(session, now=at(when)) if found.severity == "error"]


def signed(session: Session, wish: str = "paid") -> Subscription:
    customer = a_customer(session, "ada")
    customer.metadata_ = {SANDBOX_WISH: wish}
    return sign_up(session, customer, a_plan(session, phase(fee("31"))))


def test_who_cancels_gets_nothing_back_of_a_fee_on_a_deleted_draft(session: Session) -> None:
    by_hand(session)
    subscription = signed(session)
    bill_until(session, START)
    delete_invoice(session, last(session).id, now=START)
    cancel_subscription(session, subscription.id, now=at("2026-01-11"))
    with pytest.raises(InvalidError, match="nothing is to be invoiced"), session.begin_nested():
        invoice_now(session, subscription.customer_id, now=at("2026-01-11"))
    bill_until(session, at("2026-04-01"))
    assert ledger(session) == []
    assert errors(session, "2026-04-01") == []


def test_nor_of_one_that_was_voided_for_good_and_the_preview_says_so(session: Session) -> None:
    subscription = signed(session, "failed")
    bill_until(session, START)
    void_invoice(session, last(session).id, VoidAction(type="discard"), reason="gift", now=START)
    cancel_subscription(session, subscription.id, now=at("2026-01-11"))
    customer = get_customer(session, subscription.customer_id)
    (preview,) = gathering_invoices(session, [customer], at=at("2026-01-12"))
    assert preview.lines == ()
    bill_until(session, at("2026-04-01"))
    assert ledger(session) == ["2026-01-01 voided 31.00: seat 01-01..02-01 31.00"]
    assert errors(session, "2026-04-01") == []


def test_what_was_charged_is_given_back_and_what_was_given_up_is_not(session: Session) -> None:
    """7 charged, 3 given up; of 10 in all only 2 were used in the end: 5 come back."""
    by_hand(session)
    a_metered_feature(session)
    customer = a_customer(session, "ada")
    sign_up(session, customer, a_plan(session, phase(per_unit("1"))))
    store(session, spent("ada", 7, "2026-01-02"))
    invoice_now(session, customer.id, progressive=True, now=at("2026-01-05"))
    bill_until(session, at("2026-01-06"))
    approved(session, "2026-01-06")
    store(session, spent("ada", 3, "2026-01-07"))
    invoice_now(session, customer.id, progressive=True, now=at("2026-01-08"))
    delete_invoice(session, last(session).id, now=at("2026-01-08"))
    store(session, spent("ada", -8, "2026-01-09"))
    (preview,) = gathering_invoices(session, [customer], at=at("2026-01-10"))
    assert [str(line.totals.total) for line in preview.lines] == ["-5.00"]
    bill_until(session, at("2026-02-02"))
    credit = approved(session, "2026-02-03")
    assert (credit.type, credit.totals.total) == ("credit_note", Decimal(-5))
    charged = next(one for one in invoices_of(session) if one.totals.total == 7)
    assert list(creditable_of(session, get_invoice(session, charged.id)).values()) == [2]
    assert errors(session, "2026-02-04") == []


def test_as_long_as_what_was_charged_is_owed_nothing_comes_back_and_more_is_billed(session: Session) -> None:
    """4 charged, 6 given up; of 10 in all 5 were used in the end, and then 9 more."""
    by_hand(session)
    a_metered_feature(session)
    customer = a_customer(session, "ada")
    sign_up(session, customer, a_plan(session, phase(per_unit("1"))))
    store(session, spent("ada", 4, "2026-01-02"))
    invoice_now(session, customer.id, progressive=True, now=at("2026-01-05"))
    bill_until(session, at("2026-01-06"))
    approved(session, "2026-01-06")
    store(session, spent("ada", 6, "2026-01-07"))
    invoice_now(session, customer.id, progressive=True, now=at("2026-01-08"))
    delete_invoice(session, last(session).id, now=at("2026-01-08"))
    store(session, spent("ada", -5, "2026-01-09"))
    bill_until(session, at("2026-02-02"))
    assert [line.partition(":")[0] for line in ledger(session)] == ["2026-01-05 paid 4.00"]
    store(session, spent("ada", 9, "2026-01-20"))
    bill_until(session, at("2026-03-02"))
    assert ledger(session)[1].endswith("tokens 01-01..02-01 9.00, tokens 02-01..03-01 0.00")
    assert errors(session, "2026-03-02") == []


def test_a_fee_that_was_given_up_and_went_does_not_come_back_as_a_charge(session: Session) -> None:
    by_hand(session)
    subscription = signed(session)
    bill_until(session, START)
    delete_invoice(session, last(session).id, now=START)
    cancel_subscription(session, subscription.id, timing=at("2026-01-21"), now=at("2026-01-11"))
    bill_until(session, at("2026-01-12"))
    unschedule_cancelation(session, subscription.id, now=at("2026-01-13"))
    bill_until(session, at("2026-01-20"))
    assert ledger(session) == []
    assert errors(session, "2026-01-20") == []


@pytest.mark.parametrize("again", [False, True])
def test_nor_does_a_fee_that_was_paid_once_what_was_to_be_given_back_of_it_was_given_up(
    session: Session, again: bool
) -> None:
    by_hand(session)
    subscription = signed(session)
    bill_until(session, START)
    approved(session, "2026-01-01")
    for day in (11, 15) if again else (11,):
        cancel_subscription(session, subscription.id, timing=at("2026-01-21"), now=at(f"2026-01-{day}"))
        bill_until(session, at(f"2026-01-{day + 1}"))
        if (draft := last(session)).status.startswith("draft"):
            assert draft.totals.total == -11
            delete_invoice(session, draft.id, now=at(f"2026-01-{day + 1}"))
        unschedule_cancelation(session, subscription.id, now=at(f"2026-01-{day + 2}"))
        bill_until(session, at(f"2026-01-{day + 2}"))
    assert ledger(session)[0] == "2026-01-01 paid 31.00: seat 01-01..02-01 31.00"
    assert sum((one.totals.total for one in invoices_of(session)), Decimal(0)) == 31, ledger(session)
    assert errors(session, "2026-01-20") == []
