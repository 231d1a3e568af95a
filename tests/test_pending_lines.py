"""Lines added by hand: when they can be due, how they are taken back, and that no run goes on for ever."""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy.orm import Session

from billing.contracts.customer import Customer, get_customer
from billing.contracts.pending import PendingLine, WantedLine, add_pending_lines
from billing.invoices.actions import VoidAction, invoice_now, void_invoice
from billing.invoices.gathering import gathering_invoices
from billing.invoices.invoice import Invoice
from billing.invoices.invoicing import collect
from billing.invoices.withdrawal import PendingLineNotFoundError, delete_pending_line
from billing.runs.run import due_at, due_customers, run_portion
from catalog.price import Price, UnitPrice
from metering.errors import InvalidError
from metering.period import Period
from tests.billing_clock import bill_until, ledger, wrong
from tests.builders import START, a_customer, a_metered_feature, a_plan, at, fee, phase, sign_up, spent, store
from tests.test_invoice_update import a_card, flat, kept, refused_lines, update

FEBRUARY = at("2026-02-01")
USAGE = UnitPrice(type="unit", amount=Decimal(1))


def add(
    session: Session,
    customer: Customer,
    price: Price = USAGE,
    *,
    period: tuple[str, str] = ("2026-01-01", "2026-02-01"),
    due: str = "2026-02-01",
    now: str = "2026-01-01",
) -> PendingLine:
    start, end = period
    card = replace(a_card(price, "tokens" if price == USAGE else None), name="by hand")
    line = WantedLine(rate_card=card, period=Period(start=at(start), end=at(end)), invoice_at=at(due))
    (added,) = add_pending_lines(session, customer, currency="USD", lines=[line], now=at(now))
    return added


def refused(session: Session, customer: Customer, price: Price = USAGE, **when: Any) -> tuple[str, str]:
    """The code and what is wrong."""
    with pytest.raises(InvalidError) as error:
        add(session, customer, price, **when)
    (issue,) = error.value.issues
    assert (issue.field, bool(issue.hint)) == ("$.lines[0].invoiceAt", True)
    return issue.code, issue.message


# -- When they can be due ------------------------------------------------------------------------------------


def test_usage_is_due_when_its_period_is_over_or_later(session: Session) -> None:
    a_metered_feature(session)
    customer = a_customer(session, "ada")
    early = ("invoice_at_too_early", "usage can't be due before its period ends")
    for due in ("2025-12-31", "2026-01-10", "2026-01-31T23:59:59"):
        assert refused(session, customer, due=due) == early
    store(session, spent("ada", 5, "2026-01-05"), spent("ada", 700, "2026-01-20"))
    add(session, customer, due="2026-02-01")
    bill_until(session, at("2026-02-02"))
    assert ledger(session) == ["2026-02-01 paid 705.00: by hand 01-01..02-01 705.00"]


def test_what_is_fixed_is_due_when_its_period_begins_or_later(session: Session) -> None:
    customer = a_customer(session)
    early = ("invoice_at_too_early", "a line can't be due before its period begins")
    assert refused(session, customer, flat("5"), due="2025-12-31") == early
    add(session, customer, flat("5"), due="2026-01-01")
    bill_until(session, at("2026-01-02"))
    assert ledger(session) == ["2026-01-01 paid 5.00: by hand 01-01..02-01 5.00"]


def test_nothing_was_due_ages_ago(session: Session) -> None:
    customer = a_customer(session)
    ages: Any = {"period": ("1900-01-01", "1900-02-01"), "now": "2026-01-10"}
    ago = ("too_long_ago", "a line can be due at most 10 years ago")
    assert refused(session, customer, flat("5"), due="1900-02-01", **ages) == ago
    add(session, customer, flat("5"), due="2016-01-20", **ages)


def test_a_part_of_a_line_that_is_sent_back_leaves_it_due_when_it_was(session: Session) -> None:
    a_metered_feature(session)
    customer = a_customer(session, "ada")
    line = add(session, customer)
    store(session, spent("ada", 5, "2026-01-05"), spent("ada", 700, "2026-01-20"))
    (draft,) = invoice_now(session, customer.id, progressive=True, now=at("2026-01-10"))
    (part,) = draft.lines
    update(session, draft, kept(part), now=at("2026-01-10"))
    assert (part.invoice_at, line.invoice_at) == (at("2026-01-10"), FEBRUARY)
    sooner = replace(kept(part), invoice_at=at("2026-01-09"))
    assert refused_lines(session, draft, sooner) == {
        ("cannot_edit_progressively_billed_usagebased_line", "$.lines[0].invoiceAt")
    }
    add(session, customer, flat("1"), due="2026-01-15")
    bill_until(session, at("2026-02-02"))
    assert ledger(session) == [
        "2026-01-10 paid 5.00: by hand 01-01..01-10 5.00",
        "2026-01-15 paid 1.00: by hand 01-01..02-01 1.00",
        "2026-02-01 paid 700.00: by hand 01-10..02-01 700.00",
    ]


def test_a_line_on_a_draft_can_not_become_due_before_it_can_be(session: Session) -> None:
    a_metered_feature(session)
    customer = a_customer(session, "ada")
    add(session, customer)
    (draft,) = invoice_now(session, customer.id, now=FEBRUARY)
    sooner = replace(kept(draft.lines[0]), invoice_at=at("2026-01-10"))
    assert refused_lines(session, draft, sooner) == {("invoice_at_too_early", "$.lines[0].invoiceAt")}


# -- Taking them back ----------------------------------------------------------------------------------------


def test_a_line_that_waits_is_taken_back(session: Session) -> None:
    customer = a_customer(session, key="ada")
    kept_one, line = add(session, customer, flat("5")), add(session, customer, flat("7"))
    delete_pending_line(session, "ada", line.billable.line_id, now=at("2026-01-10"))
    assert (line.deleted_at, line.next_billing_at) == (at("2026-01-10"), None)
    (gathering,) = gathering_invoices(session, [customer], at=at("2026-01-10"))
    assert [one.billable.identity for one in gathering.lines] == [f"manual/{kept_one.id}"]
    with pytest.raises(PendingLineNotFoundError):
        delete_pending_line(session, "ada", line.billable.line_id, now=at("2026-01-10"))
    bill_until(session, at("2026-02-02"))
    assert ledger(session) == ["2026-02-01 paid 5.00: by hand 01-01..02-01 5.00"]
    assert wrong(session, at("2026-02-02")) == []


def test_nobody_takes_back_somebody_elses_line(session: Session) -> None:
    line = add(session, a_customer(session), flat("5"))
    with pytest.raises(PendingLineNotFoundError):
        delete_pending_line(session, a_customer(session).id, line.billable.line_id, now=START)


def test_what_an_invoice_has_is_not_taken_back_not_even_if_it_is_a_part(session: Session) -> None:
    a_metered_feature(session)
    customer = a_customer(session, "ada")
    line = add(session, customer)
    store(session, spent("ada", 5, "2026-01-05"))
    (draft,) = invoice_now(session, customer.id, progressive=True, now=at("2026-01-10"))
    with pytest.raises(InvalidError, match=f"the line is on the invoice {draft.number}") as error:
        delete_pending_line(session, customer.id, line.billable.line_id, now=at("2026-01-10"))
    (issue,) = error.value.issues
    assert issue.code == "pending_line_billed"
    assert issue.hint
    assert line.deleted_at is None


def test_what_was_voided_and_waits_again_is_taken_back(session: Session) -> None:
    customer = a_customer(session)
    line = add(session, customer, flat("5"), due="2026-01-01")
    (invoice,) = invoice_now(session, customer.id, now=START)
    invoice.status = "payment_processing.failed"
    session.flush()
    again = VoidAction(type="pending", next_invoice_at=FEBRUARY)
    void_invoice(session, invoice.id, again, reason="a mistake", now=at("2026-01-10"))
    delete_pending_line(session, customer.id, line.billable.line_id, now=at("2026-01-11"))
    bill_until(session, at("2026-02-02"))
    assert [row[:22] for row in ledger(session)] == ["2026-01-01 voided 5.00"]
    assert wrong(session, at("2026-02-02")) == []


# -- The run -------------------------------------------------------------------------------------------------


def test_a_line_that_was_billed_in_part_and_taken_off_its_draft_is_due_no_more(session: Session) -> None:
    a_metered_feature(session)
    customer = a_customer(session, "ada")
    line = add(session, customer)
    store(session, spent("ada", 5, "2026-01-05"))
    (draft,) = invoice_now(session, customer.id, progressive=True, now=at("2026-01-10"))
    update(session, draft, now=at("2026-01-10"))
    assert (line.next_billing_at, line.deleted_at) == (None, at("2026-01-10"))
    bill_until(session, at("2026-02-02"))
    assert ledger(session) == []
    assert wrong(session, at("2026-02-02")) == []


def test_a_line_that_was_deleted_is_not_looked_for(session: Session) -> None:
    line = add(session, a_customer(session), flat("5"))
    line.deleted_at = START
    session.flush()
    assert line.next_billing_at == FEBRUARY
    assert (due_at(session), due_customers(session, now=FEBRUARY)) == (None, 0)
    assert run_portion(session, now=FEBRUARY).customers == 0
    sign_up(session, get_customer(session, line.customer_id, lock=True), a_plan(session, phase(fee("20"))))
    bill_until(session, FEBRUARY)
    assert [row[:21] for row in ledger(session)] == ["2026-01-01 paid 20.00", "2026-02-01 paid 20.00"]


def test_what_is_still_due_after_it_was_billed_fails_its_customer_and_nobody_else(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = a_plan(session, phase(fee("20")))
    good, bad = (sign_up(session, a_customer(session), plan).customer_id for _ in range(2))

    def collected(session: Session, customers: Sequence[Customer], **more: Any) -> list[Invoice]:
        return collect(session, [one for one in customers if one.id != bad], **more)

    monkeypatch.setattr("billing.runs.run.collect", collected)
    outcome = run_portion(session, now=START)
    again = "what was due on 2026-01-01 00:00:00 is due again once it is billed"
    assert outcome.failed == {bad: f"NotAdvancingError: {again}"}
    assert [invoice.customer_id for invoice in outcome.invoices.values()] == [good]
