"""Credit notes by hand: so much of what was billed is given back, with its tax, and never more."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from billing.apps.app_changes import install_app
from billing.apps.custom_invoicing import issuing_synchronized
from billing.contracts.customer import Address
from billing.contracts.subscription_changes import cancel_subscription
from billing.invoices.actions import VoidAction, delete_invoice, invoice_now, void_invoice
from billing.invoices.credit_notes import (
    CreditLine,
    CreditNoteDetails,
    create_credit_note,
    creditable_of,
    get_credit_note,
    list_credit_notes,
)
from billing.invoices.invoice import Invoice, InvoiceNotFoundError, get_invoice
from billing.invoices.payments import PaymentDetails, account_of, record_payment
from billing.profiles.app import SANDBOX_WISH
from billing.proof.audit import audit
from billing.proof.replay import replay_invoice
from billing.taxes.tax_rates import TaxRateDetails, create_tax_rate
from catalog.rate_card import RateCard
from metering.errors import InvalidError
from metering.exact import total
from tests.billing_clock import bill_until, invoices_of, ledger, void_event
from tests.builders import (
    START,
    a_customer,
    a_metered_feature,
    a_plan,
    at,
    at_once,
    fee,
    per_unit,
    phase,
    sign_up,
    spent,
    store,
)

LATER = at("2026-01-05")


def invoiced(session: Session, *cards: RateCard, wish: str = "paid", percent: str | None = None) -> Invoice:
    """The first invoice of a customer in Germany, who pays, or does not."""
    if percent:
        rate = TaxRateDetails(name="VAT", country="DE", percent=Decimal(percent), valid_from=START)
        create_tax_rate(session, rate, now=START)
    customer = a_customer(session, "ada")
    customer.billing_address = Address(country="DE")
    customer.metadata_ = {SANDBOX_WISH: wish}
    sign_up(session, customer, a_plan(session, phase(*cards)))
    bill_until(session, START)
    (invoice,) = invoices_of(session)
    return get_invoice(session, invoice.id)


def credit(session: Session, invoice: Invoice, *amounts: str, now: datetime = LATER) -> Invoice:
    """So much of each line, in their order; without amounts all that is left."""
    lines = [
        CreditLine(line_id=line.id, amount=Decimal(amount))
        for line, amount in zip(invoice.lines, amounts, strict=False)
    ]
    details = CreditNoteDetails(reason="goodwill", lines=lines or None)
    return create_credit_note(session, invoice.id, details, now=now)


def refused(session: Session, invoice_id: str, *lines: CreditLine) -> list[tuple[str, str]]:
    details = CreditNoteDetails(reason="goodwill", lines=lines)
    with pytest.raises(InvalidError) as error:
        create_credit_note(session, invoice_id, details, now=LATER)
    return [(issue.code, issue.field) for issue in error.value.issues]


def test_a_part_of_a_line_is_given_back_with_its_part_of_the_tax(session: Session) -> None:
    invoice = invoiced(session, fee("10"), fee("5", key="extra"), percent="19")
    note = credit(session, invoice, "4", "5")
    assert [(str(line.totals.amount), str(line.taxes_exclusive)) for line in note.lines] == [
        ("-4.00", "-0.76"),
        ("-5.00", "-0.95"),
    ]
    assert (note.type, note.number, note.status) == ("credit_note", "CN-KOAI-1", "paid")
    assert (note.issued_at, str(note.totals.total)) == (LATER, "-10.71")
    assert note.preceding is not None
    assert (note.preceding_id, note.preceding.number) == (invoice.id, "INV-KOAI-1")
    assert (note.preceding.reason, note.preceding.issued_at) == ("goodwill", invoice.issued_at)
    assert [line.name for line in note.lines] == ["seat", "extra"]
    assert str(invoice.totals.total) == "17.85"


def test_what_is_left_is_credited_when_no_line_is_named_and_no_cent_of_tax_stays(session: Session) -> None:
    invoice = invoiced(session, fee("0.07"), fee("5", key="extra"), percent="19")
    notes = [credit(session, invoice, "0.03"), credit(session, invoice, "0.01"), credit(session, invoice)]
    assert [note.number for note in notes] == ["CN-KOAI-1", "CN-KOAI-2", "CN-KOAI-3"]
    assert total(note.totals.total for note in notes) == -invoice.totals.total
    assert total(note.totals.taxes for note in notes) == -invoice.totals.taxes
    assert set(creditable_of(session, invoice).values()) == {0}
    found, count = list_credit_notes(session, invoice_id=invoice.id)
    assert (set(found), count) == (set(notes), 3)
    assert refused(session, invoice.id) == [("credit_note_empty", "$.lines")]


def test_what_can_not_be_credited_is_refused_with_its_place_and_nothing_is_written(session: Session) -> None:
    invoice = invoiced(session, fee("10"))
    (line,) = invoice.lines
    cases: Sequence[tuple[str, str, str, str]] = [
        (line.id, "10.01", "credit_note_exceeds_billed", "$.lines[0].amount"),
        (line.id, "0", "invalid_credit_amount", "$.lines[0].amount"),
        (line.id, "-1", "invalid_credit_amount", "$.lines[0].amount"),
        (line.id, "1e999999", "invalid_credit_amount", "$.lines[0].amount"),
        (line.id, "0.001", "invalid_credit_amount", "$.lines[0].amount"),
        ("nobody", "1", "invoice_line_not_found", "$.lines[0].lineId"),
    ]
    for line_id, amount, code, field in cases:
        wanted = CreditLine(line_id=line_id, amount=Decimal(amount))
        assert refused(session, invoice.id, wanted) == [(code, field)]
    twice = CreditLine(line_id=line.id, amount=Decimal(1))
    assert {code for code, _ in refused(session, invoice.id, twice, twice)} == {"credit_note_line_repeated"}
    assert list_credit_notes(session)[1] == 0
    with pytest.raises(InvoiceNotFoundError):
        get_credit_note(session, invoice.id)


def test_drafts_voided_invoices_and_credit_notes_are_not_credited(session: Session) -> None:
    invoice = invoiced(session, fee("10"), wish="failed")
    note = credit(session, invoice, "1")
    assert refused(session, note.id) == [("invoice_not_creditable", "$.invoiceId")]
    with pytest.raises(InvalidError, match="given back already, by CN-KOAI-1"):
        void_invoice(session, invoice.id, VoidAction(type="discard"), reason="wrong", now=LATER)
    invoice.status = "voided"
    assert refused(session, invoice.id) == [("invoice_not_creditable", "$.invoiceId")]
    invoice.status = "draft.manual_approval_needed"
    assert refused(session, invoice.id) == [("invoice_not_creditable", "$.invoiceId")]


def test_what_was_credited_is_not_billed_again_and_a_later_credit_is_as_if_it_had_not_been(
    session: Session,
) -> None:
    a_metered_feature(session)
    invoice = invoiced(session, fee("31"), per_unit("0.01"))
    credit(session, invoice, "10")
    store(session, spent("ada", 500, "2026-01-10"))
    bill_until(session, at("2026-02-02"))
    usage = get_invoice(session, invoices_of(session)[-1].id)
    credit(session, usage, "5", now=at("2026-02-03"))
    store(session, spent("ada", 100, "2026-01-20"))
    bill_until(session, at("2026-03-02"))
    assert ledger(session) == [
        "2026-01-01 paid 31.00: seat 01-01..02-01 31.00",
        "2026-01-05 paid -10.00: seat 01-01..02-01 -10.00",
        "2026-02-01 paid 36.00: tokens 01-01..02-01 5.00, seat 02-01..03-01 31.00",
        "2026-02-03 paid -5.00: tokens 01-01..02-01 -5.00",
        "2026-03-01 paid 32.00: tokens 01-01..02-01 1.00, tokens 02-01..03-01 0.00, seat 03-01..04-01 31.00",
    ]


@pytest.mark.parametrize(
    ("credited", "back"), [("31", "0"), ("15", "-16"), ("10", "-21"), ("9.99", "-21")], ids=str
)
def test_billing_itself_gives_back_no_more_than_is_left(session: Session, credited: str, back: str) -> None:
    """Of 31 that were paid the contract's end gives back 21."""
    invoice = invoiced(session, fee("31"), percent="19")
    credit(session, invoice, credited)
    subscription_id = invoice.lines[0].subscription_id
    assert subscription_id is not None
    cancel_subscription(session, subscription_id, now=at("2026-01-11"))
    bill_until(session, at("2026-04-01"))
    automatic = [line for one in invoices_of(session)[2:] for line in one.lines]
    assert sum((line.amount for line in automatic), Decimal(0)) == Decimal(back)
    assert all(replay_invoice(session, one.id).identical for one in invoices_of(session))
    assert [found for found in audit(session, now=at("2026-04-01")) if found.severity == "error"] == []


def test_nor_of_usage_that_was_credited_before_it_was_taken_back(session: Session) -> None:
    """And what is used instead is charged."""
    a_metered_feature(session)
    sign_up(session, a_customer(session, "ada"), a_plan(session, phase(per_unit("0.01"))))
    wrong = spent("ada", 10_000, "2026-01-10")
    store(session, wrong)
    bill_until(session, at("2026-02-02"))
    billed = get_invoice(session, invoices_of(session)[-1].id)
    credit(session, billed, "100", now=at("2026-02-03"))
    void_event(session, wrong, at("2026-02-04"))
    bill_until(session, at("2026-03-02"))
    store(session, spent("ada", 300, "2026-01-10"))
    bill_until(session, at("2026-04-02"))
    amounts = [(line.period_start, line.amount) for one in invoices_of(session) for line in one.lines]
    of_january = [amount for start, amount in amounts if start < at("2026-02-01") and amount]
    assert of_january == [100, -100, 3]


def test_what_billing_itself_gave_back_can_not_be_given_back_by_hand(session: Session) -> None:
    invoice = invoiced(session, fee("31"))
    (line,) = invoice.lines
    assert line.subscription_id is not None
    cancel_subscription(session, line.subscription_id, now=at("2026-01-11"))
    invoice_now(session, invoice.customer_id, now=at("2026-01-11"))
    assert ledger(session)[1] == "2026-01-11 paid -21.00: seat 01-01..01-11 -21.00"
    assert creditable_of(session, invoice) == {line.id: Decimal("10.00")}
    automatic = list_credit_notes(session, customer_id=invoice.customer_id)[0]
    assert [(note.number, note.preceding_id) for note in automatic] == [("CN-KOAI-1", None)]


def test_an_invoice_that_is_credited_whole_is_paid_and_less_is_open_of_one_that_is_not(
    session: Session,
) -> None:
    invoice = invoiced(session, fee("10"), wish="failed", percent="20")
    credit(session, invoice, "4")
    account = account_of(session, invoice)
    assert (invoice.status, account.credited, account.open) == (
        "payment_processing.failed",
        Decimal("4.80"),
        Decimal("7.20"),
    )
    credit(session, invoice)
    assert (invoice.status, account_of(session, invoice).open) == ("paid", Decimal(0))


def test_credit_notes_are_replayed_and_audited_like_any_invoice(session: Session) -> None:
    invoice = invoiced(session, fee("10"), percent="19")
    note = credit(session, invoice, "3.33")
    credit(session, invoice)
    assert replay_invoice(session, note.number).identical
    assert [finding for finding in audit(session, now=at("2026-01-06")) if finding.severity == "error"] == []


def test_of_two_who_credit_the_whole_at_once_one_is_refused(engine: Engine) -> None:
    with Session(engine, expire_on_commit=False) as session, session.begin():
        invoice = invoiced(session, fee("10"))
        invoice_id = invoice.id

    def whole(session: Session) -> Invoice:
        return create_credit_note(session, invoice_id, CreditNoteDetails(reason="both"), now=LATER)

    second = at_once(engine, whole, whole)
    error = second.exception()
    assert isinstance(error, InvalidError)
    assert error.issues[0].code == "credit_note_empty"
    with Session(engine) as session:
        assert list_credit_notes(session)[1] == 1


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    amounts=st.lists(st.integers(1, 800).map(lambda n: Decimal(n).scaleb(-2)), max_size=5),
    percent=st.sampled_from(["7", "8.875", "19"]),
)
def test_never_more_than_was_billed_is_credited_whoever_tries(
    session: Session, amounts: list[Decimal], percent: str
) -> None:
    with session.begin_nested() as attempt:
        invoice = invoiced(session, fee("9.99"), percent=percent)
        (line,) = invoice.lines
        left, notes = Decimal("9.99"), []
        for amount in amounts:
            if amount > left:
                wanted = CreditLine(line_id=line.id, amount=amount)
                assert refused(session, invoice.id, wanted)[0][0] == "credit_note_exceeds_billed"
            else:
                notes.append(credit(session, invoice, str(amount)))
                left -= amount
            assert creditable_of(session, invoice) == {line.id: left}
        notes += [credit(session, invoice)] if left else []
        assert total(note.totals.total for note in notes) == -invoice.totals.total
        assert total(note.totals.taxes for note in notes) == -invoice.totals.taxes
        attempt.rollback()


def test_a_credit_note_waits_for_the_app_that_takes_it_to_the_customer_and_counts_at_once(
    session: Session,
) -> None:
    invoice = invoiced(session, fee("10"))
    app = install_app(session, "custom_invoicing", now=START)
    app.issuing_sync_hook = True
    invoice.app, invoice.app_id = app, app.id
    note = credit(session, invoice, "4")
    assert (note.status, note.number) == ("issuing.syncing", "CN-KOAI-1")
    assert creditable_of(session, invoice) == {invoice.lines[0].id: Decimal("6.00")}
    issuing_synchronized(session, note.id, now=LATER)
    assert note.status == "paid"
    assert refused(session, note.id) == [("invoice_not_creditable", "$.invoiceId")]


def test_an_invoice_is_paid_when_the_note_that_credits_it_is_issued_and_not_when_it_is_deleted(
    session: Session,
) -> None:
    """3 were paid, and 7 are to be credited by a note that its app has yet to issue."""
    invoice = invoiced(session, fee("10"), wish="failed")
    app = install_app(session, "custom_invoicing", now=START)
    app.issuing_sync_hook = True
    invoice.app, invoice.app_id = app, app.id
    waiting = credit(session, invoice, "7")
    record_payment(session, invoice.id, PaymentDetails(amount=Decimal(3), received_at=LATER), now=LATER)
    account = account_of(session, invoice)
    assert (invoice.status, account.open) == ("payment_processing.failed", Decimal(0))
    delete_invoice(session, waiting.id, now=LATER)
    assert (waiting.status, invoice.status) == ("voided", "payment_processing.failed")
    assert account_of(session, invoice).open == 7
    note = credit(session, invoice, "7")
    assert invoice.status == "payment_processing.failed"
    issuing_synchronized(session, note.id, now=LATER)
    assert (note.status, invoice.status) == ("paid", "paid")
