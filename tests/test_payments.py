"""Payments recorded by hand: in parts, never more than is open, and what is paid by them is paid."""

from datetime import datetime
from decimal import Decimal

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from billing.invoices.actions import VoidAction, act, void_invoice
from billing.invoices.credit_notes import CreditLine, CreditNoteDetails, create_credit_note
from billing.invoices.invoice import Invoice, get_invoice
from billing.invoices.payments import Account, PaymentDetails, PaymentTakenError, account_of, record_payment
from billing.profiles.app import SANDBOX_WISH
from metering.errors import InvalidError
from tests.billing_clock import bill_until, invoices_of
from tests.builders import START, a_customer, a_plan, at, at_once, fee, phase, sign_up

NOW = at("2026-01-05")


def unpaid(session: Session, amount: str = "10") -> Invoice:
    """Issued to somebody whose card was refused."""
    customer = a_customer(session)
    customer.metadata_ = {SANDBOX_WISH: "failed"}
    sign_up(session, customer, a_plan(session, phase(fee(amount)), key=customer.id.lower()))
    bill_until(session, START)
    (invoice,) = (one for one in invoices_of(session) if one.customer_id == customer.id)
    return get_invoice(session, invoice.id)


def pay(
    session: Session,
    invoice: Invoice | str,
    amount: str,
    *,
    reference: str | None = None,
    received_at: datetime = NOW,
) -> Account:
    details = PaymentDetails(
        amount=Decimal(amount), received_at=received_at, method="bank transfer", reference=reference
    )
    invoice_id = invoice if isinstance(invoice, str) else invoice.id
    return record_payment(session, invoice_id, details, now=NOW)


def refused(session: Session, invoice: Invoice, amount: str = "1", received_at: datetime = NOW) -> str:
    with pytest.raises(InvalidError) as error:
        pay(session, invoice, amount, received_at=received_at)
    (issue,) = error.value.issues
    return f"{issue.code} {issue.field}"


def test_parts_are_recorded_and_with_the_last_the_invoice_is_paid(session: Session) -> None:
    invoice = unpaid(session)
    assert account_of(session, invoice).open == 10
    account = pay(session, invoice, "3", received_at=at("2026-01-02"))
    assert (account.paid, account.open) == (Decimal(3), Decimal(7))
    assert invoice.status == "payment_processing.failed"
    account = pay(session, invoice, "7")
    assert (account.paid, account.open, invoice.status) == (Decimal(10), Decimal(0), "paid")
    assert [str(payment.amount) for payment in account.payments] == ["3", "7"]
    assert account.payments[0].method == "bank transfer"
    assert refused(session, invoice) == "invoice_not_payable $"


def test_more_than_is_open_less_than_a_cent_and_what_comes_later_are_refused(session: Session) -> None:
    invoice = unpaid(session)
    pay(session, invoice, "4")
    assert refused(session, invoice, "6.01") == "payment_exceeds_open $.amount"
    assert refused(session, invoice, "0.001") == "invalid_payment_amount $.amount"
    assert refused(session, invoice, "0") == "invalid_payment_amount $.amount"
    assert refused(session, invoice, "1e999999") == "invalid_payment_amount $.amount"
    assert refused(session, invoice, "-1") == "invalid_payment_amount $.amount"
    assert refused(session, invoice, "1", at("2026-01-05T00:00:01")) == "payment_in_future $.receivedAt"
    assert account_of(session, invoice).open == 6


def test_drafts_and_voided_invoices_take_no_payments_and_uncollectible_ones_do(session: Session) -> None:
    invoice = unpaid(session)
    act(session, invoice.id, "payment_uncollectible", now=NOW)
    assert pay(session, invoice, "1").open == 9
    invoice.status = "draft.manual_approval_needed"
    assert refused(session, invoice) == "invoice_not_payable $"
    other = unpaid(session)
    void_invoice(session, other.id, VoidAction(type="discard"), reason="wrong", now=NOW)
    assert refused(session, other) == "invoice_not_payable $"
    assert account_of(session, other).open == 0


def test_what_was_paid_in_part_is_credited_and_not_voided(session: Session) -> None:
    invoice = unpaid(session)
    pay(session, invoice, "4")
    with pytest.raises(InvalidError) as error:
        void_invoice(session, invoice.id, VoidAction(type="pending"), reason="wrong", now=NOW)
    (issue,) = error.value.issues
    assert (issue.code, issue.field) == ("invoice_has_payments", "$")
    assert "4" in issue.message
    assert issue.hint is not None
    assert "credit note" in issue.hint
    assert (invoice.status, invoice.voided_at) == ("payment_processing.failed", None)
    assert invoice.lines[0].released_at is None
    line = CreditLine(line_id=invoice.lines[0].id, amount=Decimal(6))
    create_credit_note(session, invoice.id, CreditNoteDetails(reason="wrong", lines=[line]), now=NOW)
    assert invoice.status == "paid"


def test_credit_notes_reduce_what_is_open_and_what_is_left_pays_it(session: Session) -> None:
    invoice = unpaid(session)
    pay(session, invoice, "2")
    line = CreditLine(line_id=invoice.lines[0].id, amount=Decimal(5))
    create_credit_note(session, invoice.id, CreditNoteDetails(reason="late", lines=[line]), now=NOW)
    assert account_of(session, invoice).open == 3
    assert refused(session, invoice, "3.01") == "payment_exceeds_open $.amount"
    pay(session, invoice, "3")
    assert invoice.status == "paid"


def test_a_payment_is_recorded_once_by_its_reference(session: Session) -> None:
    invoice = unpaid(session)
    pay(session, invoice, "2", reference="tx-1")
    with pytest.raises(PaymentTakenError, match="tx-1"), session.begin_nested():
        pay(session, invoice, "2", reference="tx-1")
    pay(session, invoice, "2", reference="tx-2")
    assert account_of(session, invoice).open == 6


def test_of_two_who_pay_the_whole_at_once_one_is_refused(engine: Engine) -> None:
    with Session(engine, expire_on_commit=False) as session, session.begin():
        invoice_id = unpaid(session).id
    second = at_once(
        engine,
        lambda session: pay(session, invoice_id, "10"),
        lambda session: pay(session, invoice_id, "10"),
    )
    error = second.exception()
    assert isinstance(error, InvalidError)
    assert error.issues[0].code == "invoice_not_payable"
    with Session(engine) as session:
        account = account_of(session, get_invoice(session, invoice_id))
        assert (account.paid, account.invoice.status) == (Decimal(10), "paid")
