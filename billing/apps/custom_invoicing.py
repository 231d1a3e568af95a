"""What a custom invoicing app calls back: it has the draft, it has issued the invoice, it was paid.

Each is taken only in the state that waits for it; otherwise nothing changes.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy.orm import Session

from billing.invoices.actions import VoidAction, locked_invoice, void_invoice
from billing.invoices.invoice import Invoice
from billing.invoices.progress import ActionNotAvailableError, advance, fire
from billing.invoices.provider import DRAFT_SYNCED, FINALIZED, GIVEN_NUMBER
from billing.invoices.state import Status, Trigger
from metering.database import translating
from metering.errors import ConflictError, InvalidError, Issue
from metering.ids import derived_id

__all__ = ["DraftSynced", "draft_synchronized", "issuing_synchronized", "payment_status"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftSynced:
    """What the app says of a draft: its number and ids, and those of its lines and discounts, by ours."""

    number: str | None = None
    external_id: str | None = None
    lines: Mapping[str, str] = field(default_factory=dict)
    discounts: Mapping[str, str] = field(default_factory=dict)


def draft_synchronized(session: Session, invoice_id: str, told: DraftSynced, *, now: datetime) -> Invoice:
    """The ids of lines and discounts are kept with the invoice's own, as line/… and discount/…."""
    invoice = _waiting(session, invoice_id, "draft.syncing")
    lines, discounts = _ids_of(invoice)
    issues = [
        *_unknown(told.lines, lines, "lineExternalIds", "lineId"),
        *_unknown(told.discounts, discounts, "lineDiscountExternalIds", "lineDiscountId"),
    ]
    if issues:
        raise InvalidError(issues[0].message, *issues)
    found = {DRAFT_SYNCED: now.isoformat()}
    found |= {} if told.external_id is None else {"invoicing": told.external_id}
    found |= {f"line/{id_}": external for id_, external in told.lines.items()}
    found |= {f"discount/{id_}": external for id_, external in told.discounts.items()}
    return _confirm(session, invoice, found, told.number, now)


def issuing_synchronized(
    session: Session,
    invoice_id: str,
    *,
    number: str | None = None,
    sent_to_customer_at: datetime | None = None,
    payment_id: str | None = None,
    now: datetime,
) -> Invoice:
    invoice = _waiting(session, invoice_id, "issuing.syncing")
    if sent_to_customer_at is not None:
        invoice.sent_to_customer_at = sent_to_customer_at
    found = {FINALIZED: now.isoformat()}
    found |= {} if payment_id is None else {"payment": payment_id}
    return _confirm(session, invoice, found, number, now)


def payment_status(session: Session, invoice_id: str, trigger: Trigger, *, now: datetime) -> Invoice:
    """A voided invoice is given up: what it billed is not billed again."""
    invoice = _of_custom_app(session, invoice_id)
    if trigger == "void":
        discard = VoidAction(type="discard")
        return void_invoice(session, invoice_id, discard, reason="voided by the invoicing app", now=now)
    fire(session, invoice, trigger, now=now)
    return invoice


def _of_custom_app(session: Session, invoice_id: str) -> Invoice:
    invoice = locked_invoice(session, invoice_id)
    if invoice.app.type != "custom_invoicing":
        raise _not_now(f"the invoice's app is {invoice.app.type}, and calls nothing back")
    return invoice


def _waiting(session: Session, invoice_id: str, status: Status) -> Invoice:
    invoice = _of_custom_app(session, invoice_id)
    if invoice.status != status:
        raise _not_now(f"the invoice is {invoice.status}, and this is told of one that is {status}")
    return invoice


def _not_now(message: str) -> ActionNotAvailableError:
    return ActionNotAvailableError(message, Issue(code="invoice_action_not_available", message=message))


def _ids_of(invoice: Invoice) -> tuple[set[str], set[str]]:
    """The ids that an invoice's lines, detailed lines and discounts have on the wire."""
    lines, discounts = {line.id for line in invoice.lines}, set()
    for line in invoice.lines:
        own = (line.identity, str(line.sequence))
        discounts.add(derived_id(*own, "ratecard_usage"))
        for detail in line.details:
            lines.add(derived_id(*own, detail.reference))
            discounts |= {derived_id(*own, detail.reference, one.reason) for one in detail.discounts}
    return lines, discounts


def _unknown(sent: Iterable[str], known: set[str], member: str, name: str) -> Iterator[Issue]:
    for i, id_ in enumerate(sent):
        if id_ not in known:
            message = f"the invoice has no such thing: {id_!r}"
            yield Issue(
                code="invoice_line_not_found", message=message, field=f"$.invoicing.{member}[{i}].{name}"
            )


def _confirm(
    session: Session, invoice: Invoice, found: Mapping[str, str], number: str | None, now: datetime
) -> Invoice:
    """A number of ours that was taken before is remembered, so that our sequences show no gap.

    Who repeats the number that the invoice has gives it none: a draft gets its final one when it is issued.
    """
    if number is not None and number != invoice.number:
        _require_not_ours(number)
        found = {**found, GIVEN_NUMBER: number}
        if invoice.issued_at is not None and GIVEN_NUMBER not in invoice.external_ids:
            found = {**found, "own-number": invoice.number}
        invoice.number = number
    invoice.external_ids = {**invoice.external_ids, **found}
    message = f"another invoice has the number {number!r}"
    issue = Issue(code="invoice_number_taken", message=message, field=_NUMBER)
    with translating({"invoices_number_key": ConflictError(message, issue)}):
        session.flush()
    advance(session, [invoice], now=now)
    return invoice


_NUMBER = "$.invoicing.invoiceNumber"
_OURS = re.compile(r"(INV|CN)-[A-Z0-9]{1,4}-[1-9][0-9]*")
"""The numbers that our sequences give."""


def _require_not_ours(number: str) -> None:
    """No invoice is issued with the number of a draft, and none takes one that another will be given."""
    if number.startswith("DRAFT-") or _OURS.fullmatch(number):
        message = f"{number!r} is reserved: drafts and our own sequences have such numbers"
        hint = "Number invoices otherwise, such as ACME-2026-0001; or leave it out and have one of ours."
        issue = Issue(code="invoice_number_reserved", message=message, field=_NUMBER, hint=hint)
        raise InvalidError(message, issue)
