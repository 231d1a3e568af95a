"""What is invoiced, and when: a contract and its usage in, a ledger out."""

from sqlalchemy.orm import Session

from billing.runs.run import due_at, run_portion
from tests.billing_clock import bill_until, invoices_of, ledger
from tests.builders import (
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


def test_a_month_is_billed_with_its_fee_in_advance_and_its_usage_in_arrears(session: Session) -> None:
    a_metered_feature(session)
    plan = a_plan(session, phase(fee("20"), per_unit("0.01")))
    sign_up(session, a_customer(session, "ada"), plan)
    store(session, spent("ada", 500, "2026-01-10"), spent("ada", 1000, "2026-02-10"))
    bill_until(session, at("2026-03-02"))
    assert ledger(session) == [
        "2026-01-01 paid 20.00: seat 01-01..02-01 20.00",
        "2026-02-01 paid 25.00: tokens 01-01..02-01 5.00, seat 02-01..03-01 20.00",
        "2026-03-01 paid 30.00: tokens 02-01..03-01 10.00, seat 03-01..04-01 20.00",
    ]
    assert due_at(session) == at("2026-04-01")


def test_late_usage_is_on_the_invoice_while_that_waits_and_a_line_of_its_own_after(session: Session) -> None:
    a_metered_feature(session)
    sign_up(session, a_customer(session, "ada"), a_plan(session, phase(per_unit("0.01"))))
    store(session, spent("ada", 500, "2026-01-10"))
    run_portion(session, now=at("2026-02-01T00:00"))
    store(session, spent("ada", 100, "2026-01-31T23:59"))
    bill_until(session, at("2026-02-02"))
    store(session, spent("ada", 30, "2026-01-20"), spent("ada", 1000, "2026-02-10"))
    bill_until(session, at("2026-03-02"))
    assert ledger(session) == [
        "2026-02-01 paid 6.00: tokens 01-01..02-01 6.00",
        "2026-03-01 paid 10.30: tokens 01-01..02-01 0.30, tokens 02-01..03-01 10.00",
    ]


def test_nothing_is_billed_twice_however_often_the_run_is_made(session: Session) -> None:
    a_metered_feature(session)
    sign_up(session, a_customer(session, "ada"), a_plan(session, phase(fee("20"), per_unit())))
    bill_until(session, at("2026-01-15"))
    before = ledger(session)
    for _ in range(3):
        assert run_portion(session, now=at("2026-01-15")).customers == 0
    assert ledger(session) == before


def test_who_was_down_for_months_catches_up_month_by_month(session: Session) -> None:
    a_metered_feature(session)
    sign_up(session, a_customer(session, "ada"), a_plan(session, phase(fee("20"), per_unit("0.01"))))
    store(session, spent("ada", 500, "2026-01-10"), spent("ada", 1000, "2026-02-10"))
    outcome = run_portion(session, now=at("2026-03-09"))
    assert outcome.failed == {}
    assert ledger(session) == [
        "2026-03-09 paid 20.00: seat 01-01..02-01 20.00",
        "2026-03-09 paid 25.00: tokens 01-01..02-01 5.00, seat 02-01..03-01 20.00",
        "2026-03-09 paid 30.00: tokens 02-01..03-01 10.00, seat 03-01..04-01 20.00",
    ]
    assert run_portion(session, now=at("2026-03-09")).customers == 0


def test_final_numbers_have_no_gap_and_drafts_have_their_own(session: Session) -> None:
    plan = a_plan(session, phase(fee("20")))
    for _ in range(3):
        sign_up(session, a_customer(session), plan)
    bill_until(session, at("2026-01-01"))
    assert [invoice.number for invoice in invoices_of(session)] == [f"INV-KOAI-{n}" for n in (1, 2, 3)]


def test_one_customers_failure_is_theirs_alone(session: Session) -> None:
    plan = a_plan(session, phase(fee("20")))
    good, bad, other = (sign_up(session, a_customer(session), plan) for _ in range(3))
    bad.billing_cadence = "P0M"
    session.flush()
    outcome = run_portion(session, now=at("2026-01-01"))
    assert set(outcome.failed) == {bad.customer_id}
    assert {invoice.customer_id for invoice in invoices_of(session)} == {good.customer_id, other.customer_id}
    assert run_portion(session, now=at("2026-01-01"), skip=outcome.failed).customers == 0
