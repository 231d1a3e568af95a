"""Voiding, deleting: nothing is given back of what nobody was charged; what is wanted is billed again."""

from dataclasses import replace
from decimal import Decimal

import pytest
from sqlalchemy.orm import Session

from billing.apps.app_changes import install_app
from billing.contracts.customer import CustomerDeletedError, get_customer
from billing.contracts.pending import WantedLine, add_pending_lines
from billing.contracts.subscription_changes import cancel_subscription
from billing.contracts.subscriptions import Subscription
from billing.invoices.actions import VoidAction, act, delete_invoice, invoice_now, void_invoice
from billing.invoices.credit_notes import CreditNoteDetails, create_credit_note
from billing.invoices.customer_changes import delete_customer
from billing.invoices.invoice import Invoice, get_invoice
from billing.invoices.update import InvoiceUpdate, update_invoice
from billing.profiles.app import SANDBOX_WISH
from billing.profiles.profile import get_profile
from billing.profiles.workflow import InvoicingSettings
from catalog.price import UnitPrice
from catalog.rate_card import RateCard, UsageBasedRateCard
from metering.errors import InvalidError
from metering.exact import total
from metering.period import Period
from tests.billing_clock import bill_until, invoices_of, wrong
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

DISCARD, PENDING = VoidAction(type="discard"), VoidAction(type="pending")
"""Of 31 for January 10 are owed when the contract ends on the 11th."""


def signed(session: Session, *cards: RateCard) -> Subscription:
    """By somebody whose payments fail."""
    customer = a_customer(session, "ada")
    customer.metadata_ = {SANDBOX_WISH: "failed"}
    return sign_up(session, customer, a_plan(session, phase(*cards)))


def invoicing(session: Session, settings: InvoicingSettings) -> None:
    profile = get_profile(session, None)
    profile.workflow = replace(profile.workflow, invoicing=settings)
    session.flush()


def canceled(session: Session, *, draft_period: str = "P0D") -> Invoice:
    """The first invoice of a contract that ended on 11 January, and was credited."""
    subscription = signed(session, fee("31"))
    bill_until(session, START)
    invoicing(session, InvoicingSettings(draft_period=draft_period))
    cancel_subscription(session, subscription.id, now=at("2026-01-11"))
    bill_until(session, at("2026-01-11"))
    assert [invoice.totals.total for invoice in invoices_of(session)] == [31, -21]
    return numbered(session, 0)


def numbered(session: Session, place: int) -> Invoice:
    return get_invoice(session, invoices_of(session)[place].id)


def charged(session: Session) -> Decimal:
    return total(invoice.totals.total for invoice in invoices_of(session) if invoice.voided_at is None)


def refusal(error: InvalidError) -> tuple[str, str | None, bool]:
    (issue,) = error.issues
    return issue.code, issue.field, issue.hint is not None


def without_lines(draft: Invoice) -> InvoiceUpdate:
    return InvoiceUpdate(
        description=None,
        metadata=None,
        supplier=draft.supplier,
        customer=draft.customer,
        workflow=draft.workflow,
        lines=[],
    )


@pytest.mark.parametrize("draft_period", ["P0D", "P1D"])
def test_what_was_given_back_in_part_is_not_given_up_but_billed_again(
    session: Session, draft_period: str
) -> None:
    """Whether the credit is issued or still a draft."""
    invoice = canceled(session, draft_period=draft_period)
    with pytest.raises(InvalidError, match=r"'seat' 21\.00 more would be given back") as refused:
        void_invoice(session, invoice.id, DISCARD, reason="gift", now=at("2026-01-11T01:00"))
    assert refusal(refused.value) == ("invoice_line_given_back", "$.action.action.type", True)
    assert invoice.voided_at is None
    void_invoice(session, invoice.id, PENDING, reason="wrong", now=at("2026-01-11T02:00"))
    bill_until(session, at("2026-03-01"))
    assert charged(session) == 10
    assert wrong(session, at("2026-03-01")) == []


def test_the_place_of_a_refusal_is_where_it_was_said(session: Session) -> None:
    invoice = canceled(session)
    overrides = {invoice.lines[0].id: DISCARD}
    with pytest.raises(InvalidError) as refused:
        void_invoice(
            session, invoice.id, PENDING, overrides=overrides, reason="gift", now=at("2026-01-11T01:00")
        )
    assert refusal(refused.value)[1] == "$.overrides[0].action.action.type"


def test_a_part_of_what_was_charged_is_given_up_as_long_as_the_rest_covers_what_was_given_back(
    session: Session,
) -> None:
    """40 and 30 charged and 20 given back: without the 30, 20 stay, and without the 40, 10."""
    a_metered_feature(session)
    customer = signed(session, per_unit("1")).customer_id
    for tokens, day in [(40, "05"), (30, "10"), (-20, "15")]:
        store(session, spent("ada", tokens, f"2026-01-{day}"))
        invoice_now(session, customer, progressive=True, now=at(f"2026-01-{day}T01:00"))
        bill_until(session, at(f"2026-01-{day}T03:00"))
    first, second, back = invoices_of(session)
    assert [one.totals.total for one in (first, second, back)] == [40, 30, -20]
    void_invoice(session, second.id, DISCARD, reason="gift", now=at("2026-01-16"))
    assert charged(session) == 20
    with pytest.raises(InvalidError, match=r"20\.00 more would be given back"):
        void_invoice(session, first.id, DISCARD, reason="gift", now=at("2026-01-16"))


def test_what_was_credited_by_hand_counts_as_given_back(session: Session) -> None:
    """5 and 3 charged, 5 credited by hand, and 2 more taken back: without the 3 that were -2."""
    a_metered_feature(session)
    customer = signed(session, per_unit("1")).customer_id
    for tokens, day in [(5, "05"), (3, "10")]:
        store(session, spent("ada", tokens, f"2026-01-{day}"))
        invoice_now(session, customer, progressive=True, now=at(f"2026-01-{day}T01:00"))
        bill_until(session, at(f"2026-01-{day}T03:00"))
    first, second = invoices_of(session)
    create_credit_note(session, first.id, CreditNoteDetails(reason="gift"), now=at("2026-01-11"))
    store(session, spent("ada", -2, "2026-01-15"))
    invoice_now(session, customer, progressive=True, now=at("2026-01-15T01:00"))
    bill_until(session, at("2026-01-15T03:00"))
    with pytest.raises(InvalidError, match=r"2\.00 more would be given back"):
        void_invoice(session, second.id, DISCARD, reason="gift", now=at("2026-01-16"))


def test_a_draft_of_which_a_part_was_given_back_is_issued_and_not_deleted(session: Session) -> None:
    a_metered_feature(session)
    invoicing(session, InvoicingSettings(auto_advance=False))
    customer = signed(session, per_unit("1")).customer_id
    for tokens, day in [(10, "05"), (-4, "10")]:
        store(session, spent("ada", tokens, f"2026-01-{day}"))
        invoice_now(session, customer, progressive=True, now=at(f"2026-01-{day}T01:00"))
        bill_until(session, at(f"2026-01-{day}T03:00"))
    draft, back = drafts = [get_invoice(session, one.id) for one in invoices_of(session)]
    assert [one.totals.total for one in drafts] == [10, -4]
    act(session, back.id, "approve", now=at("2026-01-11"))
    with pytest.raises(InvalidError, match=r"4\.00 more would be given back") as refused:
        delete_invoice(session, draft.id, now=at("2026-01-12"))
    assert refusal(refused.value) == ("invoice_line_given_back", "$.invoiceId", True)
    with pytest.raises(InvalidError, match=r"4\.00 more would be given back") as refused:
        update_invoice(session, draft.id, without_lines(draft), now=at("2026-01-12"))
    assert refusal(refused.value) == ("invoice_line_given_back", "$.lines", True)
    act(session, draft.id, "approve", now=at("2026-01-12"))
    assert charged(session) == 6
    assert wrong(session, at("2026-01-13")) == []


def test_nor_is_what_its_app_still_issues(session: Session) -> None:
    app = install_app(session, "custom_invoicing", now=START)
    app.issuing_sync_hook = True
    profile = get_profile(session, None)
    profile.app, profile.app_id = app, app.id
    subscription = signed(session, fee("31"))
    bill_until(session, START)
    invoice = numbered(session, 0)
    assert invoice.status == "issuing.syncing"
    cancel_subscription(session, subscription.id, now=at("2026-01-11"))
    bill_until(session, at("2026-01-11"))
    assert charged(session) == 10
    with pytest.raises(InvalidError, match=r"21\.00 more would be given back"):
        delete_invoice(session, invoice.id, now=at("2026-01-12"))
    delete_invoice(session, numbered(session, 1).id, now=at("2026-01-12"))
    delete_invoice(session, invoice.id, now=at("2026-01-12"))
    assert charged(session) == 0


# -- Billed again --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "noted"), [("2026-03-15", "2026-03-15"), (None, "2026-01-02")])
def test_what_is_billed_again_knows_from_when_on(session: Session, wanted: str | None, noted: str) -> None:
    subscription = signed(session, fee("31"), fee("10", key="extra"))
    bill_until(session, START)
    invoice = numbered(session, 0)
    again = VoidAction(type="pending", next_invoice_at=at(wanted) if wanted else None)
    seat, extra = sorted(invoice.lines, key=lambda line: line.name, reverse=True)
    void_invoice(
        session, invoice.id, again, overrides={extra.id: DISCARD}, reason="wrong", now=at("2026-01-02")
    )
    assert (seat.bill_again_at, seat.released_at) == (at(noted), at("2026-01-02"))
    assert (extra.bill_again_at, extra.released_at) == (None, None)
    assert subscription.next_billing_at == min(at(noted), at("2026-02-01"))


def test_a_line_by_hand_that_was_taken_off_a_later_draft_is_billed_again_all_the_same(
    session: Session,
) -> None:
    """5 were voided; the 3 that came later were given up, and stay so."""
    a_metered_feature(session)
    customer = a_customer(session, "ada")
    customer.metadata_ = {SANDBOX_WISH: "failed"}
    card = UsageBasedRateCard(
        type="usage_based",
        key="tokens",
        name="tokens",
        feature_key="tokens",
        billing_cadence="P1M",
        price=UnitPrice(type="unit", amount=Decimal(1)),
    )
    january = Period(start=START, end=at("2026-02-01"))
    wanted = WantedLine(rate_card=card, period=january, invoice_at=january.end)
    (pending,) = add_pending_lines(session, customer, currency="USD", lines=[wanted], now=START)
    store(session, spent("ada", 5, "2026-01-05"))
    invoice_now(session, customer.id, progressive=True, now=at("2026-01-10"))
    bill_until(session, at("2026-01-10T02:00"))
    store(session, spent("ada", 3, "2026-01-11"))
    bill_until(session, at("2026-02-01T00:10"))
    first, draft = numbered(session, 0), numbered(session, 1)
    update_invoice(session, draft.id, without_lines(draft), now=at("2026-02-01T00:10"))
    void_invoice(session, first.id, PENDING, reason="wrong", now=at("2026-02-01T00:20"))
    assert (pending.deleted_at, pending.next_billing_at) == (None, at("2026-02-01T00:20"))
    bill_until(session, at("2026-02-03"))
    assert charged(session) == 5
    assert wrong(session, at("2026-02-03")) == []


def test_nothing_is_billed_again_to_who_was_deleted(session: Session) -> None:
    a_metered_feature(session)
    subscription = signed(session, per_unit("1"))
    store(session, spent("ada", 5, "2026-01-05"))
    cancel_subscription(session, subscription.id, now=at("2026-01-11"))
    bill_until(session, at("2026-01-11T02:00"))
    invoice = numbered(session, 0)
    act(session, invoice.id, "payment_uncollectible", now=at("2026-01-12"))
    customer = get_customer(session, invoice.customer_id, lock=True)
    delete_customer(session, customer, now=at("2026-01-13"))
    with pytest.raises(CustomerDeletedError):
        void_invoice(session, invoice.id, PENDING, reason="wrong", now=at("2026-01-14"))
    with pytest.raises(CustomerDeletedError):
        invoice_now(session, customer.id, now=at("2026-01-14"))
    void_invoice(session, invoice.id, DISCARD, reason="gone", now=at("2026-01-14"))
    bill_until(session, at("2026-06-01"))
    assert charged(session) == 0
