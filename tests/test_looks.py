"""When billing looks at what again: at usage that came late, at what is billed anew, and at nothing else."""

from dataclasses import replace
from decimal import Decimal

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

from billing.contracts.customer import get_customer
from billing.contracts.pending import WantedLine, add_pending_lines
from billing.contracts.subscription_changes import cancel_subscription
from billing.invoices import invoicing
from billing.invoices.actions import VoidAction, act, delete_invoice, invoice_now, void_invoice
from billing.invoices.due import due_of
from billing.invoices.gathering import gathering_invoices
from billing.profiles.app import SANDBOX_WISH
from billing.profiles.profile import get_profile
from billing.profiles.workflow import InvoicingSettings
from metering.corrections import revert_correction
from metering.meter import UsageQuery
from metering.period import Period
from metering.usage import query_usage
from tests.billing_clock import bill_until, fold, invoices_of, ledger, void_event, wrong
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


@pytest.mark.parametrize(
    ("known", "billed"),
    [("2026-03-05", "2026-03-13"), ("2026-03-20", "2026-04-13"), ("2026-04-05", "2026-04-13")],
)
def test_usage_of_a_contract_that_has_ended_is_billed_if_it_is_known_within_two_months(
    session: Session, known: str, billed: str
) -> None:
    a_metered_feature(session)
    plan = a_plan(session, phase(per_unit("0.01", cadence="P3M")), cadence="P3M")
    signed = sign_up(session, a_customer(session, "ada"), plan)
    cancel_subscription(session, signed.id, timing=at("2026-02-10"), now=at("2026-02-10"))
    bill_until(session, at(known))
    store(session, spent("ada", 700, "2026-02-05"))
    bill_until(session, at("2026-07-01"))
    assert ledger(session)[-1] == f"{billed} paid 7.00: tokens 01-01..02-10 7.00"
    assert wrong(session, at("2026-07-01")) == []


@pytest.mark.parametrize("known", ["2026-07-25", "2026-08-20"])
def test_or_of_a_month_before_two_long_ones(session: Session, known: str) -> None:
    a_metered_feature(session)
    plan = a_plan(session, phase(per_unit("0.01")))
    sign_up(session, a_customer(session, "ada"), plan, start=at("2026-06-01"))
    bill_until(session, at(known))
    store(session, spent("ada", 700, "2026-06-30"))
    bill_until(session, at("2026-10-02"))
    assert sum((one.totals.total for one in invoices_of(session)), Decimal(0)) == 7


@pytest.mark.parametrize("known", ["2026-02-20", "2026-03-20"])
def test_so_is_usage_of_a_line_by_hand(session: Session, known: str) -> None:
    a_metered_feature(session)
    customer = a_customer(session, "ada")
    january = Period(start=START, end=at("2026-02-01"))
    wanted = WantedLine(rate_card=per_unit("0.01"), period=january, invoice_at=at("2026-02-01"))
    add_pending_lines(session, customer, currency="USD", lines=[wanted], now=START)
    store(session, spent("ada", 100, "2026-01-10"))
    bill_until(session, at(known))
    store(session, spent("ada", 700, "2026-01-11"))
    bill_until(session, at("2026-07-01"))
    assert [line.partition(":")[2] for line in ledger(session)] == [
        " tokens 01-01..02-01 1.00",
        " tokens 01-01..02-01 7.00",
    ]
    assert wrong(session, at("2026-07-01")) == []


def test_what_is_voided_is_billed_again_when_it_was_said_and_not_before(session: Session) -> None:
    customer = a_customer(session, "ada")
    customer.metadata_ = {SANDBOX_WISH: "failed"}
    sign_up(session, customer, a_plan(session, phase(fee("31"))))
    bill_until(session, START)
    (first,) = invoices_of(session)
    again = VoidAction(type="pending", next_invoice_at=at("2026-03-10"))
    void_invoice(session, first.id, again, reason="wrong address", now=at("2026-01-05"))
    bill_until(session, at("2026-04-02"))
    assert [line[:10] + line[line.index(":") :] for line in ledger(session)] == [
        "2026-01-01: seat 01-01..02-01 31.00",
        "2026-02-01: seat 02-01..03-01 31.00",
        "2026-03-01: seat 03-01..04-01 31.00",
        "2026-03-10: seat 01-01..02-01 31.00",
        "2026-04-01: seat 04-01..05-01 31.00",
    ]
    assert wrong(session, at("2026-04-02")) == []


def test_the_preview_of_a_past_instant_takes_back_nothing_that_was_billed_since(session: Session) -> None:
    a_metered_feature(session)
    sign_up(session, a_customer(session, "ada"), a_plan(session, phase(per_unit("1"))))
    store(session, spent("ada", 100, "2026-01-20"))
    bill_until(session, at("2026-02-02"))
    past = at("2026-01-10")
    (invoice,) = gathering_invoices(
        session, [get_customer(session, "ada", by_subject=True)], at=past, usage_until=past
    )
    assert invoice.lines == ()


def test_usage_that_changes_while_somebody_invoices_is_charged_once_whatever_becomes_of_the_drafts(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second draft gives back what the first has too much; that is settled, and the second given up."""
    a_metered_feature(session)
    profile = get_profile(session, None)
    profile.workflow = replace(profile.workflow, invoicing=InvoicingSettings(auto_advance=False))
    customer = a_customer(session, "ada")
    sign_up(session, customer, a_plan(session, phase(per_unit("0.01"))))
    gone = spent("ada", 25, "2026-01-02")
    store(session, spent("ada", 1500, "2026-01-02"), gone)
    (first,) = invoice_now(session, customer.id, now=at("2026-01-05"))

    def voided_first(*arguments: object, **named: object) -> object:
        void_event(session, gone, at("2026-01-06"))
        return due_of(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(invoicing, "due_of", voided_first)
    (second,) = invoice_now(session, customer.id, now=at("2026-01-06"))
    monkeypatch.undo()
    assert (first.totals.total, second.totals.total) == (Decimal("15.25"), Decimal("-0.25"))
    act(session, first.id, "snapshot_quantities", now=at("2026-01-06T00:10"))
    act(session, first.id, "approve", now=at("2026-01-06T00:20"))
    delete_invoice(session, second.id, now=at("2026-01-06T00:30"))
    profile.workflow = replace(profile.workflow, invoicing=InvoicingSettings())
    bill_until(session, at("2026-03-01"))
    assert sum((one.totals.total for one in invoices_of(session)), Decimal(0)) == 15, ledger(session)
    assert wrong(session, at("2026-03-01")) == []


def test_an_answer_that_a_revert_overtakes_is_asked_again(engine: Engine) -> None:
    with Session(engine, expire_on_commit=False) as session, session.begin():
        feature = a_metered_feature(session)
        assert feature.meter is not None
        meter = feature.meter.definition
        later = spent("ada", 7, "2026-01-05T10:50")
        store(session, spent("ada", 5, "2026-01-05T10:10"), later)
        correction = void_event(session, later, at("2026-01-06"))
        fold(session, at("2026-01-09"))
    reverted: list[str] = []

    def revert(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "known.holds" in statement and not reverted:
            reverted.append(correction)
            with Session(engine) as other, other.begin():
                revert_correction(other, correction, by="test", now=at("2026-01-09"))

    query = UsageQuery(start=at("2026-01-05"), end=at("2026-01-05T10:30"), subjects=("ada",))
    with Session(engine) as session, session.begin():
        event.listen(engine, "before_cursor_execute", revert)
        (row,) = query_usage(session, meter, query)
        event.remove(engine, "before_cursor_execute", revert)
    assert reverted == [correction]
    assert row.value == 5
