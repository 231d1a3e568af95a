"""The auditor sees what was never billed, and what was given back beyond what was billed."""

from datetime import datetime
from decimal import Decimal

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from billing.contracts.customer import Customer, get_customer
from billing.contracts.customer_changes import delete_customer
from billing.contracts.pending import WantedLine, add_pending_lines
from billing.contracts.subscription_changes import cancel_subscription
from billing.contracts.subscriptions import Subscription
from billing.invoices.actions import VoidAction, invoice_now, void_invoice
from billing.invoices.credit_notes import CreditLine, CreditNoteDetails, create_credit_note
from billing.invoices.invoice import Invoice, InvoiceLine
from billing.profiles.app import SANDBOX_WISH
from billing.proof.audit import Finding, audit, audit_after_run
from catalog.price import UnitPrice
from catalog.rate_card import RateCard, UsageBasedRateCard
from metering.period import Period
from tests.billed_world import graduated, invoice_of, known_at, voided_at
from tests.billing_clock import bill_until, wrong
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
)


def codes(found: list[Finding]) -> list[str]:
    return [finding.code for finding in found]


def signed(session: Session, *cards: RateCard, unpaid: bool = False) -> tuple[Customer, Subscription]:
    ada = a_customer(session, "ada")
    ada.metadata_ = {SANDBOX_WISH: "failed"} if unpaid else None
    a_metered_feature(session)
    return ada, sign_up(session, ada, a_plan(session, phase(*cards)))


def change(session: Session, sql: str, **named: object) -> None:
    session.execute(text(sql), named)
    session.expire_all()


NEVER = "UPDATE subscriptions SET next_billing_at = NULL"
LATE = "UPDATE subscriptions SET next_billing_at = '2026-02-20Z'"


# -- Contracts that nobody looks at --------------------------------------------------------------------------


def test_a_contract_that_runs_and_that_nobody_looks_at_again(session: Session) -> None:
    signed(session, fee("20"))
    bill_until(session, at("2026-01-05"))
    change(session, NEVER)
    (forgotten,) = wrong(session, at("2026-01-05"))
    assert forgotten.code == "contract_forgotten"
    assert forgotten.message == (
        "the subscription is active and not billed to its end, and no billing run looks at it again"
    )
    bill_until(session, at("2026-06-01"))
    found = wrong(session, at("2026-06-01"))
    assert codes(found) == ["contract_forgotten", *["charge_not_billed"] * 5]
    assert "was due on 2026-02-01, and no invoice has it" in found[1].message


def test_a_contract_that_ended_and_was_not_billed_to_its_end(session: Session) -> None:
    _, contract = signed(session, fee("20"), per_unit())
    bill_until(session, at("2026-01-05"))
    cancel_subscription(session, contract.id, timing=at("2026-02-10"), now=at("2026-01-05"))
    bill_until(session, at("2026-01-20"))
    change(session, NEVER)
    assert codes(wrong(session, at("2026-01-20"))) == ["contract_forgotten"]
    assert codes(wrong(session, at("2026-03-20"))) == ["contract_forgotten", *["charge_not_billed"] * 3]


def test_a_contract_that_ended_and_was_billed_is_looked_at_no_more(session: Session) -> None:
    _, contract = signed(session, fee("20"), per_unit())
    cancel_subscription(session, contract.id, timing=at("2026-02-10"), now=START)
    bill_until(session, at("2026-07-01"))
    assert contract.next_billing_at is None
    assert audit(session, now=at("2026-07-01")) == []


def test_what_a_customer_owed_who_was_deleted_is_told_but_no_error(session: Session) -> None:
    ada, contract = signed(session, fee("20"), per_unit())
    bill_until(session, at("2026-01-05"))
    cancel_subscription(session, contract.id, timing=at("2026-01-10"), now=at("2026-01-05"))
    bill_until(session, at("2026-01-05"))
    change(session, NEVER)
    delete_customer(session, get_customer(session, ada.id, lock=True), now=at("2026-01-10"))
    found = audit(session, now=at("2026-01-11"))
    assert [(one.severity, one.code) for one in found] == [("info", "charge_not_billed")]


# -- What was voided, and is to be billed again --------------------------------------------------------------


def voided(session: Session, *, again: datetime | None) -> Invoice:
    ada, _ = signed(session, fee("20"), unpaid=True)
    bill_until(session, at("2026-01-02"))
    invoice = invoice_of(session, ada, 0)
    action = VoidAction(type="pending", next_invoice_at=again)
    return void_invoice(session, invoice.id, action, reason="a test", now=at("2026-01-02"))


def test_what_was_voided_to_be_billed_again_and_never_was(session: Session) -> None:
    voided(session, again=None)
    assert wrong(session, at("2026-01-02")) == [], "the next run bills it"
    change(session, "UPDATE subscriptions SET next_billing_at = '2026-02-01Z'")
    (missing,) = wrong(session, at("2026-01-20"))
    assert missing.code == "charge_not_billed"
    bill_until(session, at("2026-02-01"))
    assert wrong(session, at("2026-02-01")) == []


def test_what_is_billed_again_later_is_rightly_not_billed_until_then(session: Session) -> None:
    voided(session, again=at("2026-01-25"))
    change(session, "UPDATE invoice_lines SET bill_again_at = '2026-01-25Z'")
    change(session, "UPDATE subscriptions SET next_billing_at = '2026-02-01Z'")
    assert wrong(session, at("2026-01-20")) == []
    assert codes(wrong(session, at("2026-01-25"))) == ["charge_not_billed"]


def test_what_was_added_by_hand_and_voided_and_is_not_billed_again(session: Session) -> None:
    ada = by_hand(session, due="2026-02-01")
    ada.metadata_ = {SANDBOX_WISH: "failed"}
    bill_until(session, at("2026-02-02"))
    invoice = invoice_of(session, ada, 0)
    void_invoice(session, invoice.id, VoidAction(type="pending"), reason="a test", now=at("2026-02-02"))
    assert wrong(session, at("2026-02-02")) == []
    change(session, "UPDATE pending_lines SET next_billing_at = NULL")
    assert codes(wrong(session, at("2026-02-02"))) == ["charge_not_billed"]
    change(session, "UPDATE invoice_lines SET bill_again_at = '2026-02-20Z'")
    assert wrong(session, at("2026-02-02")) == []
    assert codes(wrong(session, at("2026-02-20"))) == ["charge_not_billed"]


# -- What was billed in part, and not to its end -------------------------------------------------------------


def billed_in_part(session: Session, card: RateCard, *, more: int) -> Customer:
    """5 used and invoiced, and then so many more, in January."""
    ada, _ = signed(session, card)
    bill_until(session, START)
    known_at(session, "2026-01-10", spent("ada", 5, "2026-01-10"))
    invoice_now(session, ada.id, progressive=True, now=at("2026-01-15"))
    if more:
        known_at(session, "2026-01-20", spent("ada", more, "2026-01-20"))
    bill_until(session, at("2026-01-30"))
    return ada


@pytest.mark.parametrize(("card", "more"), [(per_unit(), 100), (graduated(), 100), (graduated(), 0)])
def test_the_rest_of_a_period_that_was_never_billed(session: Session, card: RateCard, more: int) -> None:
    """Its usage, or what it costs at least."""
    billed_in_part(session, card, more=more)
    change(session, LATE)
    assert wrong(session, at("2026-01-30")) == []
    (found,) = wrong(session, at("2026-02-05"))
    assert found.code == "charge_not_billed"
    assert found.message.endswith(" was billed in part, and not to its end on 2026-02-01")
    bill_until(session, at("2026-02-20"))
    assert wrong(session, at("2026-02-20")) == []


def test_a_period_in_which_nothing_more_was_used_needs_no_last_line(session: Session) -> None:
    """Usage that comes late is no omission before somebody looks, nor what is voided."""
    ada = billed_in_part(session, per_unit(), more=0)
    bill_until(session, at("2026-02-05"))
    assert [line.last for line in invoice_of(session, ada, -1).lines] == [False]
    assert wrong(session, at("2026-02-05")) == []
    late = spent("ada", 70, "2026-01-25")
    known_at(session, "2026-02-06", late)
    assert wrong(session, at("2026-02-07")) == []
    voided_at(session, "2026-02-08", late)
    assert wrong(session, at("2026-02-09")) == []
    bill_until(session, at("2026-05-01"))
    assert wrong(session, at("2026-05-01")) == []


def by_hand(session: Session, *, due: str) -> Customer:
    """Tokens of January, at 1 each."""
    ada = a_customer(session, "ada")
    a_metered_feature(session)
    card = UsageBasedRateCard(
        type="usage_based",
        key="tokens",
        name="tokens",
        feature_key="tokens",
        billing_cadence="P1M",
        price=UnitPrice(type="unit", amount=Decimal(1)),
    )
    january = Period(start=START, end=at("2026-02-01"))
    wanted = WantedLine(rate_card=card, period=january, invoice_at=at(due))
    add_pending_lines(session, ada, currency="USD", lines=[wanted], now=START)
    known_at(session, "2026-01-05", spent("ada", 5, "2026-01-05"))
    return ada


@pytest.mark.parametrize("more", [0, 700])
def test_what_was_added_by_hand_and_was_not_billed_to_its_end(session: Session, more: int) -> None:
    ada = by_hand(session, due="2026-02-01")
    invoice_now(session, ada.id, progressive=True, now=at("2026-01-10"))
    bill_until(session, at("2026-01-11"))
    if more:
        known_at(session, "2026-01-20", spent("ada", more, "2026-01-20"))
    change(session, "UPDATE pending_lines SET next_billing_at = NULL")
    assert wrong(session, at("2026-01-31")) == []
    assert codes(wrong(session, at("2026-02-01"))) == ["charge_not_billed"] * bool(more)


# -- What is given back --------------------------------------------------------------------------------------


def cut_short(session: Session) -> tuple[Customer, Invoice, Invoice]:
    """31 for January, of which 21 come back."""
    ada, contract = signed(session, fee("31"), unpaid=True)
    bill_until(session, at("2026-01-05"))
    cancel_subscription(session, contract.id, timing=at("2026-01-11"), now=at("2026-01-11"))
    bill_until(session, at("2026-01-12"))
    billed, back = (invoice_of(session, ada, place) for place in (0, 1))
    assert [billed.totals.total, back.totals.total] == [31, -21]
    return ada, billed, back


def test_what_was_given_up_is_not_given_back(session: Session) -> None:
    _, billed, back = cut_short(session)
    assert wrong(session, at("2026-01-12")) == []
    change(session, "UPDATE invoices SET voided_at = '2026-01-12Z' WHERE id = :id", id=billed.id)
    (found,) = wrong(session, at("2026-01-12"))
    assert found.code == "more_given_back_than_billed"
    assert found.message.endswith(
        "/2026-01-01T00:00:00+00:00 -21.00 was billed in all, and 0 was given back of that by hand"
    )
    assert codes(audit_after_run(session, [back.id])) == ["more_given_back_than_billed"]
    change(session, "UPDATE invoices SET issued_at = NULL WHERE id = :id", id=back.id)
    assert "more_given_back_than_billed" not in codes(wrong(session, at("2026-01-12")))


def test_what_was_voided_is_not_judged_before_it_is_billed_again(session: Session) -> None:
    _, billed, _ = cut_short(session)
    void_invoice(session, billed.id, VoidAction(type="pending"), reason="a test", now=at("2026-01-12"))
    assert wrong(session, at("2026-01-12")) == []
    bill_until(session, at("2026-01-13"))
    assert wrong(session, at("2026-01-13")) == []


def test_a_credit_by_hand_and_a_difference_are_no_more_than_was_billed(session: Session) -> None:
    _, billed, back = cut_short(session)
    (line,) = billed.lines
    credit = CreditNoteDetails(reason="a test", lines=[CreditLine(line_id=line.id, amount=Decimal(10))])
    note = create_credit_note(session, billed.id, credit, now=at("2026-01-12"))
    assert wrong(session, at("2026-01-12")) == []
    rows: list[Invoice | InvoiceLine] = [note, *note.lines]
    for row in rows:
        row.amount -= 1
    session.flush()
    found = {one.code: one.message for one in wrong(session, at("2026-01-12"))}
    assert found["more_given_back_than_billed"].endswith(
        " 10.00 was billed in all, and 11.00 was given back of that by hand"
    )
    assert "more_given_back_than_billed" in codes(audit_after_run(session, [note.id]))
    assert "more_given_back_than_billed" in codes(audit_after_run(session, [back.id]))


def test_usage_of_less_than_nothing_gives_back_without_a_bill(session: Session) -> None:
    ada, _ = signed(session, per_unit())
    known_at(session, "2026-01-10", spent("ada", -500, "2026-01-10"))
    bill_until(session, at("2026-02-05"))
    assert invoice_of(session, ada, -1).totals.total == -5
    assert wrong(session, at("2026-02-05")) == []
