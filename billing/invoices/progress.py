"""Takes invoices from state to state, many at a time, as far as they go by themselves.

What a state is entered for is done before it is left: quantities are snapshotted, the invoice is checked,
its app is told, its number is given, its payment asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from billing.invoices.account import account_of
from billing.invoices.invoice import Invoice, get_invoice
from billing.invoices.invoice_tax import RATE_MISSING, tax_and_sum_up
from billing.invoices.invoicing import draft_until, recompute
from billing.invoices.numbering import Scope, final_numbers, prefix_of
from billing.invoices.pinned_events import pin_events
from billing.invoices.provider import GIVEN_NUMBER, facts_of, provider_of
from billing.invoices.state import OPEN, TRANSITIONS, Status, Trigger, actions_of, after
from billing.profiles.workflow import duration_of
from metering.errors import InvalidError, Issue

__all__ = ["ActionNotAvailableError", "advance", "fire", "settle_if_even"]


class ActionNotAvailableError(InvalidError):
    pass


def advance(session: Session, invoices: Sequence[Invoice], *, now: datetime, rated: bool = False) -> None:
    """As far as nothing holds them back; loaded with locks, their lines and apps.

    `rated`: this transaction has just made them, so that their quantities are those of now.
    """
    entering = _ENTERED | {"draft.collecting": _snapshotted} if rated else _ENTERED
    while moving := _moving(invoices, now):
        for status, some in moving.items():
            for invoice in some:
                invoice.status = status
                invoice.updated_at = now
            if entered := entering.get(status):
                entered(session, some, now)
    for invoice in invoices:
        invoice.next_action_at = _next_action_at(invoice)
    session.flush()


def _moving(invoices: Sequence[Invoice], now: datetime) -> dict[Status, list[Invoice]]:
    moving: dict[Status, list[Invoice]] = {}
    for invoice in invoices:
        following = after(invoice.status, facts_of(invoice, now))
        if following is not None:
            moving.setdefault(following, []).append(invoice)
    return moving


def fire(session: Session, invoice: Invoice, trigger: Trigger, *, now: datetime) -> None:
    """Something from outside happens to the invoice; then it goes on by itself."""
    following = TRANSITIONS.get((invoice.status, trigger))
    if following is None:
        message = f"an invoice that is {invoice.status} can't be treated so: {trigger}"
        can = ", ".join(actions_of(invoice.status, facts_of(invoice, now))) or "nothing"
        code = "invoice_action_not_available"
        raise ActionNotAvailableError(
            message, Issue(code=code, message=message, hint=f"Possible now: {can}.")
        )
    invoice.status = following
    invoice.updated_at = now
    if trigger == "retry":
        invoice.validation_issues = [issue | {"severity": "warning"} for issue in invoice.validation_issues]
    if entered := _ENTERED.get(following):
        entered(session, [invoice], now)
    advance(session, [invoice], now=now)


def settle_if_even(session: Session, invoice: Invoice, *, now: datetime) -> None:
    """Paid, when payments and credit notes that were issued have come to all of it."""
    if (invoice.status, "paid") in TRANSITIONS and account_of(session, invoice).even:
        fire(session, invoice, "paid", now=now)


def _next_action_at(invoice: Invoice) -> datetime | None:
    """When it is to be looked at again, should nothing happen before."""
    match invoice.status:
        case "draft.waiting_for_collection":
            return invoice.collection_at
        case "draft.waiting_auto_approval":
            return invoice.draft_until
        case status if status in OPEN:
            return invoice.due_at
    return None


# -- What a state is entered for -----------------------------------------------------------------------------


def _snapshot(session: Session, invoices: Sequence[Invoice], now: datetime) -> None:
    recompute(session, invoices, now=now)
    _snapshotted(session, invoices, now)


def _snapshotted(_: Session, invoices: Sequence[Invoice], now: datetime) -> None:
    """Who does not wait for the collection has a draft that is ready as much earlier."""
    for invoice in invoices:
        invoice.quantity_snapshotted_at = now
        if invoice.collection_at is not None and now < invoice.collection_at:
            invoice.collection_at = now
            invoice.draft_until = draft_until(invoice, invoice.workflow)


def _update(session: Session, invoices: Sequence[Invoice], now: datetime) -> None:
    """Somebody has changed it."""
    recompute(session, invoices, now=now)


def _tax_again(session: Session, invoices: Sequence[Invoice], now: datetime) -> None:
    """Perhaps what was missing is there by now. Where taxes are enforced, nobody can retry past them."""
    untaxed = [one for one in invoices if any(i["code"] == RATE_MISSING for i in one.validation_issues)]
    if untaxed:
        tax_and_sum_up(session, untaxed, now=now)


def _upsert_draft(session: Session, invoices: Sequence[Invoice], now: datetime) -> None:
    for invoice in invoices:
        provider_of(invoice).upsert_draft(session, invoice, now=now)


def _issue(session: Session, invoices: Sequence[Invoice], now: datetime) -> None:
    """From here on nothing of it changes. What gives more back than it charges is a credit note.

    What comes here again, because its app could not finish it, has its number and its dates.
    """
    unissued = [invoice for invoice in invoices if invoice.issued_at is None]
    pin_events(session, unissued)
    for invoice in unissued:
        invoice.type = "credit_note" if invoice.totals.total < 0 else "standard"
        invoice.issued_at = now
        due_after = duration_of(invoice.workflow.invoicing.due_after)
        invoice.due_at = due_after.after(now).replace(microsecond=0)
    unnumbered = [invoice for invoice in unissued if GIVEN_NUMBER not in invoice.external_ids]
    for kind, (scope, letters) in _SEQUENCES.items():
        some = [invoice for invoice in unnumbered if invoice.type == kind]
        for invoice, number in zip(some, final_numbers(session, scope, len(some)), strict=True):
            invoice.number = f"{letters}-{prefix_of(invoice.customer.name or '')}-{number}"


_SEQUENCES: Mapping[str, tuple[Scope, str]] = {
    "standard": ("invoices", "INV"),
    "credit_note": ("credit_notes", "CN"),
}


def _finalize(session: Session, invoices: Sequence[Invoice], now: datetime) -> None:
    for invoice in invoices:
        provider_of(invoice).finalize(session, invoice, now=now)


def _settle_what_they_credit(session: Session, invoices: Sequence[Invoice], now: datetime) -> None:
    for invoice in invoices:
        if invoice.preceding_id is not None:
            settle_if_even(session, get_invoice(session, invoice.preceding_id, lock=True), now=now)


def _ask_for_payment(session: Session, invoices: Sequence[Invoice], now: datetime) -> None:
    """Where nothing is to be paid, that is paid, whoever would collect it."""
    for invoice in invoices:
        owed = invoice.totals.total > 0
        told = provider_of(invoice).collect_payment(session, invoice, now=now) if owed else "paid"
        if told is not None:
            invoice.status = TRANSITIONS[invoice.status, told]
            invoice.updated_at = now


def _take_back(session: Session, invoices: Sequence[Invoice], now: datetime) -> None:
    for invoice in invoices:
        provider_of(invoice).delete(session, invoice, now=now)


def _void(_: Session, invoices: Sequence[Invoice], now: datetime) -> None:
    for invoice in invoices:
        invoice.voided_at = now


def _delete(_: Session, invoices: Sequence[Invoice], now: datetime) -> None:
    for invoice in invoices:
        invoice.deleted_at = now


_ENTERED: dict[Status, Callable[[Session, Sequence[Invoice], datetime], None]] = {
    "draft.updating": _update,
    "draft.collecting": _snapshot,
    "draft.validating": _tax_again,
    "draft.syncing": _upsert_draft,
    "issuing.line_finalization": _issue,
    "issuing.syncing": _finalize,
    "issued": _settle_what_they_credit,
    "payment_processing.pending": _ask_for_payment,
    "delete.syncing": _take_back,
    "deleted": _delete,
    "voided": _void,
}
