"""What a custom invoicing app calls back: in which state, what is kept of it, and what follows."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from decimal import Decimal

import pytest
from sqlalchemy.orm import Session

from billing.apps.app_changes import install_app
from billing.apps.custom_invoicing import (
    DraftSynced,
    draft_synchronized,
    issuing_synchronized,
    payment_status,
)
from billing.invoices import actions
from billing.invoices.invoice import Invoice, InvoiceNotFoundError, get_invoice
from billing.invoices.progress import ActionNotAvailableError, advance
from billing.invoices.state import Status, Trigger, actions_of
from billing.profiles.customer_overrides import pin_profile
from billing.profiles.profile import Party
from billing.profiles.profile_changes import ProfileApps, ProfileDetails, create_profile
from billing.profiles.workflow import InvoicingSettings, Workflow
from billing.proof.audit import audit
from catalog.discount import Discounts, PercentageDiscount
from metering.errors import ConflictError, InvalidError
from metering.ids import derived_id
from tests.billing_clock import bill_until, invoices_of
from tests.builders import START, a_customer, a_plan, fee, phase, sign_up

SANDBOX = "00000000000000000000000003"
UNKNOWN = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
LATER = START.replace(hour=5)


def an_invoice(
    session: Session,
    *,
    draft: bool = False,
    issuing: bool = False,
    app: str | None = None,
    draft_period: str = "P0D",
    times: int = 1,
) -> Invoice:
    """As far as it goes by itself, where these hooks are waited for; the first of several."""
    own = install_app(session, "custom_invoicing", now=START)
    own.draft_sync_hook, own.issuing_sync_hook = draft, issuing
    app_id = app or own.id
    apps = ProfileApps(tax=app_id, invoicing=app_id, payment=app_id)
    workflow = Workflow(invoicing=InvoicingSettings(draft_period=draft_period))
    details = ProfileDetails(name="Own", supplier=Party(name="ACME"), workflow=workflow)
    profile = create_profile(session, details, apps=apps, now=START)
    cut = Discounts(percentage=PercentageDiscount(percentage=Decimal(10)))
    plan = a_plan(session, phase(replace(fee("20"), discounts=cut)), key=own.id.lower())
    for _ in range(times):
        customer = a_customer(session)
        pin_profile(session, customer.id, profile_id=profile.id, now=START)
        sign_up(session, customer, plan)
    bill_until(session, START)
    (first, *_) = (one for one in invoices_of(session) if one.app_id == app_id)
    return get_invoice(session, first.id)


# -- Drafts --------------------------------------------------------------------------------------------------


def test_without_hooks_nothing_is_waited_for_but_the_payment(session: Session) -> None:
    assert an_invoice(session).status == "payment_processing.pending"


def test_a_draft_waits_until_the_app_has_it_and_keeps_what_the_app_says(session: Session) -> None:
    invoice = an_invoice(session, draft=True, draft_period="P1D")
    assert invoice.status == "draft.syncing"
    (line,) = invoice.lines
    detail = derived_id(line.identity, "0", line.details[0].reference)
    discount = derived_id(line.identity, "0", line.details[0].reference, "ratecard_percentage")
    told = DraftSynced(
        number="EXT-1", external_id="ext", lines={line.id: "l-1", detail: "l-2"}, discounts={discount: "d-1"}
    )
    draft_synchronized(session, invoice.id, told, now=LATER)
    session.expire_all()
    (found,) = invoices_of(session)
    assert (found.status, found.number) == ("draft.waiting_auto_approval", "EXT-1")
    assert found.external_ids == {
        "draft-synced-at": LATER.isoformat(),
        "invoicing": "ext",
        "number": "EXT-1",
        f"line/{line.id}": "l-1",
        f"line/{detail}": "l-2",
        f"discount/{discount}": "d-1",
    }


def test_a_number_given_to_the_draft_stays_and_takes_none_of_ours(session: Session) -> None:
    given = an_invoice(session, draft=True, times=2)
    other = invoices_of(session)[1]
    draft_synchronized(session, given.id, DraftSynced(number="EXT-1"), now=LATER)
    draft_synchronized(session, other.id, DraftSynced(), now=LATER)
    assert [one.number for one in invoices_of(session)] == ["EXT-1", "INV-KOAI-1"]
    assert {one.status for one in invoices_of(session)} == {"payment_processing.pending"}
    assert audit(session, now=LATER) == []


def test_a_draft_that_has_changed_is_confirmed_anew(session: Session) -> None:
    invoice = an_invoice(session, draft=True, draft_period="P1D")
    draft_synchronized(session, invoice.id, DraftSynced(external_id="ext"), now=LATER)
    invoice.status = "draft.updating"
    advance(session, [invoice], now=LATER)
    assert (invoice.status, invoice.external_ids) == ("draft.syncing", {"invoicing": "ext"})
    again = draft_synchronized(session, invoice.id, DraftSynced(), now=LATER)
    assert again.status == "draft.waiting_auto_approval"


def test_ids_of_what_is_not_on_the_invoice_are_refused_with_their_places(session: Session) -> None:
    invoice = an_invoice(session, draft=True)
    told = DraftSynced(
        number="EXT-1",
        lines={invoice.lines[0].id: "l-1", UNKNOWN: "l-2"},
        discounts={invoice.lines[0].id: "d-1"},
    )
    with pytest.raises(InvalidError) as error:
        draft_synchronized(session, invoice.id, told, now=LATER)
    assert [(issue.code, issue.field) for issue in error.value.issues] == [
        ("invoice_line_not_found", "$.invoicing.lineExternalIds[1].lineId"),
        ("invoice_line_not_found", "$.invoicing.lineDiscountExternalIds[0].lineDiscountId"),
    ]
    session.expire_all()
    (found,) = invoices_of(session)
    assert (found.status, found.external_ids) == ("draft.syncing", {})
    assert found.number.startswith("DRAFT-")


def test_no_two_invoices_have_one_number(session: Session) -> None:
    first = an_invoice(session, draft=True, times=2)
    second = invoices_of(session)[1]
    draft_synchronized(session, first.id, DraftSynced(number="EXT-1"), now=LATER)
    with pytest.raises(ConflictError) as error, session.begin_nested():
        draft_synchronized(session, second.id, DraftSynced(number="EXT-1"), now=LATER)
    assert [(issue.code, issue.field) for issue in error.value.issues] == [
        ("invoice_number_taken", "$.invoicing.invoiceNumber")
    ]
    assert invoices_of(session)[1].status == "draft.syncing"


RESERVED = ["DRAFT-KOAI-999", "DRAFT-", "DRAFT-X\n", "INV-KOAI-16", "INV-A-1", "CN-KOAI-2"]


@pytest.mark.parametrize("hook", ["draft", "issuing"])
@pytest.mark.parametrize("number", RESERVED)
def test_numbers_like_ours_are_refused(session: Session, hook: str, number: str) -> None:
    """A draft's would stay for ever, and one of our sequences would be given twice."""
    invoice = an_invoice(session, draft=hook == "draft", issuing=hook == "issuing")
    before = (invoice.status, invoice.number, invoice.external_ids)
    draft = DraftSynced(number=number)
    with pytest.raises(InvalidError) as error:
        _ = (
            draft_synchronized(session, invoice.id, draft, now=LATER)
            if hook == "draft"
            else issuing_synchronized(session, invoice.id, number=number, now=LATER)
        )
    assert [(issue.code, issue.field) for issue in error.value.issues] == [
        ("invoice_number_reserved", "$.invoicing.invoiceNumber")
    ]
    session.expire_all()
    (found,) = invoices_of(session)
    assert (found.status, found.number, found.external_ids) == before


@pytest.mark.parametrize("number", ["ACME-2026-0001", "INV-2026-0001", "INV-KONGAIR-1", "inv-koai-1", "17"])
def test_any_other_number_may_be_given(session: Session, number: str) -> None:
    invoice = an_invoice(session, draft=True)
    assert draft_synchronized(session, invoice.id, DraftSynced(number=number), now=LATER).number == number
    assert audit(session, now=LATER) == []


def test_a_draft_whose_own_number_is_repeated_gets_its_final_one(session: Session) -> None:
    invoice = an_invoice(session, draft=True)
    draft_synchronized(session, invoice.id, DraftSynced(number=invoice.number), now=LATER)
    assert (invoice.status, invoice.number) == ("payment_processing.pending", "INV-KOAI-1")
    assert audit(session, now=LATER) == []


def test_what_is_issued_under_the_number_it_has_keeps_it_as_ours(session: Session) -> None:
    invoice = an_invoice(session, issuing=True)
    issuing_synchronized(session, invoice.id, number="INV-KOAI-1", now=LATER)
    assert (invoice.number, set(invoice.external_ids)) == ("INV-KOAI-1", {"finalized-at"})
    assert audit(session, now=LATER) == []


# -- Issuing -------------------------------------------------------------------------------------------------


def test_an_invoice_waits_until_the_app_has_issued_it(session: Session) -> None:
    invoice = an_invoice(session, issuing=True)
    assert (invoice.status, invoice.number) == ("issuing.syncing", "INV-KOAI-1")
    issuing_synchronized(
        session, invoice.id, number="EXT-9", sent_to_customer_at=START, payment_id="pay", now=LATER
    )
    session.expire_all()
    (found,) = invoices_of(session)
    assert (found.status, found.number) == ("payment_processing.pending", "EXT-9")
    assert found.sent_to_customer_at == START
    assert found.external_ids == {
        "finalized-at": LATER.isoformat(),
        "number": "EXT-9",
        "own-number": "INV-KOAI-1",
        "payment": "pay",
    }
    assert audit(session, now=LATER) == [], "the number that was ours before leaves no gap"


def test_an_app_that_says_nothing_of_the_invoice_leaves_it_ours(session: Session) -> None:
    invoice = an_invoice(session, draft=True, issuing=True)
    draft_synchronized(session, invoice.id, DraftSynced(), now=LATER)
    assert invoice.status == "issuing.syncing"
    issuing_synchronized(session, invoice.id, now=LATER)
    assert (invoice.status, invoice.number) == ("payment_processing.pending", "INV-KOAI-1")
    assert invoice.sent_to_customer_at is None


def test_advancing_an_invoice_that_waits_for_its_app_is_refused(session: Session) -> None:
    invoice = an_invoice(session, draft=True)
    with pytest.raises(InvalidError) as error:
        actions.advance_invoice(session, invoice.id, now=LATER)
    assert [issue.code for issue in error.value.issues] == ["invoice_cannot_advance"]


# -- Numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["issuing.syncing", "issuing.failed", "issuing.line_finalization_failed"])
def test_what_has_its_final_number_is_voided_when_it_is_given_up(session: Session, status: Status) -> None:
    """So that whoever counts the numbers finds a document for each."""
    invoice = an_invoice(session, issuing=True)
    invoice.status = status
    assert actions_of(status, invoice.facts(LATER))["delete"] == "voided"
    actions.delete_invoice(session, invoice.id, now=LATER)
    assert (invoice.status, invoice.number, invoice.voided_at) == ("voided", "INV-KOAI-1", LATER)
    assert invoice.deleted_at is None
    assert an_invoice(session, issuing=True).number == "INV-KOAI-2"
    assert audit(session, now=LATER) == []


def test_what_an_app_does_not_let_go_of_is_voided_by_a_retry(session: Session) -> None:
    invoice = an_invoice(session, issuing=True)
    invoice.status = "delete.failed"
    actions.act(session, invoice.id, "retry", now=LATER)
    assert (invoice.status, invoice.number) == ("voided", "INV-KOAI-1")


def test_a_draft_has_no_final_number_and_is_deleted(session: Session) -> None:
    invoice = an_invoice(session, draft=True)
    assert actions_of(invoice.status, invoice.facts(LATER))["delete"] == "deleted"
    actions.delete_invoice(session, invoice.id, now=LATER)
    assert (invoice.status, invoice.deleted_at, invoice.voided_at) == ("deleted", LATER, None)


def test_a_retry_takes_no_second_number_and_is_issued_when_it_was(session: Session) -> None:
    invoice = an_invoice(session, issuing=True)
    before = ("issuing.syncing", invoice.number, invoice.issued_at, invoice.due_at)
    invoice.status = "issuing.line_finalization_failed"
    actions.act(session, invoice.id, "retry", now=LATER)
    assert (invoice.status, invoice.number, invoice.issued_at, invoice.due_at) == before
    issuing_synchronized(session, invoice.id, now=LATER)
    assert (invoice.status, invoice.number) == ("payment_processing.pending", "INV-KOAI-1")
    assert audit(session, now=LATER) == []


# -- Payment -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trigger", "status"),
    [
        ("paid", "paid"),
        ("payment_failed", "payment_processing.failed"),
        ("payment_uncollectible", "uncollectible"),
        ("payment_overdue", "overdue"),
        ("action_required", "payment_processing.action_required"),
        ("void", "voided"),
    ],
)
def test_what_became_of_the_payment(session: Session, trigger: Trigger, status: Status) -> None:
    invoice = an_invoice(session)
    payment_status(session, invoice.id, trigger, now=LATER)
    assert invoice.status == status
    assert (invoice.voided_at == LATER) == (status == "voided")


def test_a_voided_invoice_is_not_billed_again(session: Session) -> None:
    invoice = an_invoice(session)
    payment_status(session, invoice.id, "void", now=LATER)
    bill_until(session, LATER)
    assert [one.status for one in invoices_of(session)] == ["voided"]


# -- Out of turn ---------------------------------------------------------------------------------------------


def _draft(session: Session, invoice_id: str, now: datetime) -> object:
    return draft_synchronized(session, invoice_id, DraftSynced(number="X"), now=now)


def _issued(session: Session, invoice_id: str, now: datetime) -> object:
    return issuing_synchronized(session, invoice_id, number="X", now=now)


def _paid(session: Session, invoice_id: str, now: datetime) -> object:
    return payment_status(session, invoice_id, "paid", now=now)


def _void(session: Session, invoice_id: str, now: datetime) -> object:
    return payment_status(session, invoice_id, "void", now=now)


Callback = Callable[[Session, str, datetime], object]


@pytest.mark.parametrize(
    ("hooks", "call"),
    [
        ({"draft": True}, _issued),
        ({"draft": True}, _paid),
        ({"draft": True}, _void),
        ({"issuing": True}, _draft),
        ({"issuing": True}, _paid),
        ({}, _draft),
        ({}, _issued),
        ({"app": SANDBOX}, _draft),
        ({"app": SANDBOX}, _paid),
    ],
)
def test_what_is_told_out_of_turn_changes_nothing(
    session: Session, hooks: dict[str, bool], call: Callback
) -> None:
    invoice = an_invoice(session, **hooks)  # type: ignore[arg-type]
    before = (invoice.status, invoice.number, invoice.external_ids)
    with pytest.raises(ActionNotAvailableError) as error:
        call(session, invoice.id, LATER)
    assert [issue.code for issue in error.value.issues] == ["invoice_action_not_available"]
    session.expire_all()
    (found,) = invoices_of(session)
    assert (found.status, found.number, found.external_ids) == before


@pytest.mark.parametrize("call", [_draft, _issued, _paid])
def test_what_is_told_of_no_invoice_is_not_found(session: Session, call: Callback) -> None:
    with pytest.raises(InvoiceNotFoundError):
        call(session, UNKNOWN, LATER)


def test_told_twice_the_second_time_is_out_of_turn(session: Session) -> None:
    invoice = an_invoice(session, draft=True)
    _draft(session, invoice.id, LATER)
    with pytest.raises(ActionNotAvailableError):
        _draft(session, invoice.id, LATER)
    assert invoice.status == "payment_processing.pending"
