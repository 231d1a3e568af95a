"""Who looked at the clock first need not come first: the books are right in whichever order they come."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import TypeVar

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from billing.contracts.customer import Customer, get_customer
from billing.contracts.subscription_changes import cancel_subscription
from billing.invoices.actions import VoidAction, act, invoice_now, void_invoice
from billing.invoices.numbering import SCOPES, final_numbers
from billing.profiles.app import SANDBOX_WISH, get_app
from billing.profiles.customer_apps import CustomerAppDetails, save_customer_apps
from billing.runs.run import run_portion
from metering.errors import InvalidError
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
from tests.server import until

T = TypeVar("T")
SANDBOX = "00000000000000000000000003"


def a_consumer(session: Session) -> Customer:
    """One token is 1."""
    a_metered_feature(session)
    customer = a_customer(session, "ada")
    sign_up(session, customer, a_plan(session, phase(per_unit("1"))))
    return customer


def charged(session: Session) -> Decimal:
    return sum((invoice.totals.total for invoice in invoices_of(session)), Decimal(0))


def test_who_invoices_as_of_the_past_takes_back_nothing_that_was_billed_since(session: Session) -> None:
    customer = a_consumer(session)
    store(session, spent("ada", 5, "2026-01-10"), spent("ada", 7, "2026-01-20"))
    bill_until(session, at("2026-02-02"))
    with pytest.raises(InvalidError, match="nothing is to be invoiced"):
        invoice_now(session, customer.id, as_of=at("2026-01-15"), now=at("2026-02-03"))
    store(session, spent("ada", 1, "2026-01-30"))
    invoice_now(session, customer.id, as_of=at("2026-01-15"), now=at("2026-02-03"))
    assert ledger(session) == [
        "2026-02-01 paid 12.00: tokens 01-01..02-01 12.00",
        "2026-02-03 paid 1.00: tokens 01-01..02-01 1.00",
    ]
    assert wrong(session, at("2026-02-03")) == []


def test_a_run_that_began_before_somebody_invoiced_takes_nothing_back(session: Session) -> None:
    customer = a_consumer(session)
    store(session, spent("ada", 5, "2026-01-10"), spent("ada", 7, "2026-01-20"))
    invoice_now(session, customer.id, now=at("2026-01-21"))
    (signed,) = {line.subscription_id for invoice in invoices_of(session) for line in invoice.lines}
    assert signed is not None
    cancel_subscription(session, signed, timing=at("2026-03-01"), now=at("2026-01-15"))
    run_portion(session, now=at("2026-01-15"))
    assert charged(session) == 12
    bill_until(session, at("2026-02-02"))
    assert charged(session) == 12
    assert wrong(session, at("2026-02-02")) == []


def test_a_contract_that_is_cut_to_before_what_was_billed_is_billed_all_again(session: Session) -> None:
    customer = a_consumer(session)
    store(session, spent("ada", 5, "2026-01-10"), spent("ada", 7, "2026-01-18"))
    (early,) = invoice_now(session, customer.id, now=at("2026-01-20"))
    (line,) = early.lines
    assert line.subscription_id is not None
    bill_until(session, at("2026-01-21"))
    cancel_subscription(session, line.subscription_id, timing=at("2026-01-15"), now=at("2026-01-22"))
    bill_until(session, at("2026-01-23"))
    assert ledger(session) == [
        "2026-01-20 paid 12.00: tokens 01-01..01-20 12.00",
        "2026-01-22 paid -7.00: tokens 01-01..01-15 -7.00",
    ]
    assert wrong(session, at("2026-01-23")) == []


def test_a_draft_stays_as_the_next_line_that_was_issued_knew_it(session: Session) -> None:
    """Usage that comes late for it is billed after both."""
    customer = a_consumer(session)
    store(session, spent("ada", 5, "2026-01-09"))
    invoice_now(session, customer.id, now=at("2026-01-10"))
    store(session, spent("ada", 2, "2026-01-10T00:15"))
    (second,) = invoice_now(session, customer.id, now=at("2026-01-10T00:30"))
    act(session, second.id, "snapshot_quantities", now=at("2026-01-10T00:30"))
    assert [invoice.issued_at is None for invoice in invoices_of(session)] == [True, False]
    store(session, spent("ada", 3, "2026-01-09T12:00"))
    bill_until(session, at("2026-01-11"))
    assert charged(session) == 7
    assert wrong(session, at("2026-01-11")) == []
    bill_until(session, at("2026-02-02"))
    assert charged(session) == 10
    assert wrong(session, at("2026-02-02")) == []


def test_a_draft_that_stays_counted_what_was_voided_since(session: Session) -> None:
    """Its quantities are snapshotted after the void, its line was rated before."""
    customer = a_consumer(session)
    customer.metadata_ = {SANDBOX_WISH: "failed"}
    store(session, spent("ada", 5, "2026-01-07"))
    (first,) = invoice_now(session, customer.id, now=at("2026-01-08"))
    act(session, first.id, "snapshot_quantities", now=at("2026-01-08"))
    store(session, spent("ada", 3, "2026-01-09"))
    invoice_now(session, customer.id, now=at("2026-01-10"))
    store(session, spent("ada", 2, "2026-01-10T00:15"))
    (third,) = invoice_now(session, customer.id, now=at("2026-01-10T00:30"))
    act(session, third.id, "snapshot_quantities", now=at("2026-01-10T00:30"))
    void_invoice(session, first.id, VoidAction(type="pending"), reason="wrong", now=at("2026-01-10T00:40"))
    bill_until(session, at("2026-02-02"))
    assert wrong(session, at("2026-02-02")) == []
    assert sum(one.totals.total for one in invoices_of(session) if one.voided_at is None) == 10


@pytest.mark.parametrize("when", ["2026-01-11T12:00", "2026-01-12", "2026-01-12T12:00"])
@pytest.mark.parametrize("again", ["2026-01-12", "2026-01-13"])
def test_what_is_voided_while_somebody_bills_is_computed_again_as_it_was(
    session: Session, when: str, again: str
) -> None:
    """The contract was cut on the 11th, which was billed on the 12th; who voids or bills may be slow."""
    customer = a_customer(session)
    customer.metadata_ = {SANDBOX_WISH: "failed"}
    signed = sign_up(session, customer, a_plan(session, phase(fee("31"))))
    bill_until(session, at("2026-01-01"))
    cancel_subscription(session, signed.id, now=at("2026-01-11"))
    run_portion(session, now=at("2026-01-12"))
    first, note = invoices_of(session)
    assert [one.totals.total for one in (first, note)] == [31, -21]
    void_invoice(session, first.id, VoidAction(type="pending"), reason="wrong", now=at(when))
    run_portion(session, now=max(at(again), at(when)))
    assert [invoice.totals.total for invoice in invoices_of(session)[2:]] == [31]
    assert wrong(session, at("2026-01-14")) == []


def crossing(
    engine: Engine,
    other: Callable[[Session], T],
    *,
    before: Callable[[Session], object],
    after: Callable[[Session], object],
) -> T:
    """One transaction does something before and something after another came; returns what that one did."""
    with ThreadPoolExecutor(1) as pool, Session(engine) as session, session.begin():
        before(session)
        future = pool.submit(_alone, engine, other)
        until(lambda: future.done() or _waits(engine))
        after(session)
        session.commit()
        return future.result()


def _alone(engine: Engine, work: Callable[[Session], T]) -> T:
    with Session(engine, expire_on_commit=False) as session, session.begin():
        return work(session)


def test_two_who_need_numbers_of_both_sequences_do_not_wait_for_each_other(engine: Engine) -> None:
    """Each issues credit notes and invoices, one the ones first, the other the others."""
    credit_notes, invoices = SCOPES
    given = crossing(
        engine,
        lambda session: (final_numbers(session, invoices, 2), final_numbers(session, credit_notes, 2)),
        before=lambda session: final_numbers(session, credit_notes, 1),
        after=lambda session: final_numbers(session, invoices, 1),
    )
    assert given == ([2, 3], [2, 3])


def test_what_apps_know_of_a_customer_does_not_wait_for_who_makes_a_default_profile(engine: Engine) -> None:
    """They lock the app, and then every customer whose collection changes."""
    with Session(engine) as session, session.begin():
        customer_id = a_customer(session).id
    known = CustomerAppDetails(type="sandbox", app_id=SANDBOX, data={})
    (saved,) = crossing(
        engine,
        lambda session: save_customer_apps(session, customer_id, [known], now=START),
        before=lambda session: get_app(session, SANDBOX, lock=True),
        after=lambda session: get_customer(session, customer_id, lock=True),
    )
    assert saved.app_id == SANDBOX


def _waits(engine: Engine) -> bool:
    """Somebody, for a lock in this database."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with engine.connect() as connection:
        return bool(connection.exec_driver_sql(waiting).scalar_one())
