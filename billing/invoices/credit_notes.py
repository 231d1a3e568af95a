"""Credit notes made by hand: so much of what an invoice billed is given back, for a reason.

A credit note is an invoice of that type, with a number of its own sequence, and issued at once. Its lines
name the lines that they give back of, and take back their taxes in the same part. They bill no charge: what a
charge comes to later is still the difference to what was billed for it, so nothing credited is billed again.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction

from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from billing.invoices.actions import locked_invoice
from billing.invoices.invoice import (
    Invoice,
    InvoiceLine,
    InvoiceNotFoundError,
    Preceding,
    get_invoice,
    lines_by_identity,
)
from billing.invoices.invoice_tax import tax_as, taxed_amounts
from billing.invoices.invoicing import line_of, number_drafts
from billing.invoices.payments import is_amount
from billing.invoices.progress import advance
from billing.invoices.state import TRANSITIONS, Status
from billing.invoices.uncharged import credits_by_hand
from billing.rating.billable import Billable, due_line
from billing.rating.pricing import NOTHING
from billing.rating.rater import add_totals
from catalog.price import FlatPrice
from catalog.rate_card import FlatFeeRateCard
from metering.errors import InvalidError, Issue
from metering.exact import EXACT, plain, total
from metering.ids import new_id
from metering.period import Period

__all__ = [
    "CREDITABLE",
    "CreditLine",
    "CreditNoteDetails",
    "create_credit_note",
    "creditable_of",
    "get_credit_note",
    "list_credit_notes",
]

ZERO = Decimal(0)
CREDITABLE: frozenset[Status] = frozenset(
    {"paid", *(status for status, trigger in TRANSITIONS if trigger == "paid")}
)
"""Issued, and neither voided nor taken back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditLine:
    """So much of a line, before the tax that comes on top of it."""

    line_id: str
    amount: Decimal
    description: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditNoteDetails:
    """Without `lines`: all that is left of each."""

    reason: str
    lines: Sequence[CreditLine] | None = None
    description: str | None = None
    metadata: Mapping[str, str] | None = None


def create_credit_note(
    session: Session, invoice_id: str, details: CreditNoteDetails, *, now: datetime
) -> Invoice:
    """Never more than what was billed. What is open of the invoice is less by it, and perhaps nothing."""
    invoice = locked_invoice(session, invoice_id)
    _require_creditable(invoice)
    credited = credits_by_hand(session, (line.id for line in invoice.lines))
    left = _left(session, invoice, credited)
    wanted = details.lines
    if wanted is None:
        wanted = [
            CreditLine(line_id=line.id, amount=left[line.id]) for line in invoice.lines if left[line.id]
        ]
    if issues := list(_issues(wanted, left, invoice)):
        raise InvalidError(issues[0].message, *issues)
    note = _note(invoice, details, now)
    by_id = {line.id: line for line in invoice.lines}
    for position, one in enumerate(wanted):
        line = by_id[one.line_id]
        billable = _billable(line, one, note.currency, now)
        note.lines.append(_line(billable, line, credited.get(line.id, ()), position=position, now=now))
    _sum_up(note)
    number_drafts(session, [note])
    session.add(note)
    session.flush()
    advance(session, [note], now=now)
    return note


def _require_creditable(invoice: Invoice) -> None:
    if invoice.type == "credit_note" or invoice.status not in CREDITABLE:
        what = "a credit note" if invoice.type == "credit_note" else f"an invoice that is {invoice.status}"
        message = f"nothing can be credited of {what}"
        hint = "Credit an invoice that was issued and is not voided; a draft can be changed or deleted."
        issue = Issue(code="invoice_not_creditable", message=message, field="$.invoiceId", hint=hint)
        raise InvalidError(message, issue)


# -- What is left --------------------------------------------------------------------------------------------


def creditable_of(session: Session, invoice: Invoice) -> Mapping[str, Decimal]:
    """What of each line may still be credited, by its id, before exclusive tax."""
    return _left(session, invoice, credits_by_hand(session, (line.id for line in invoice.lines)))


def _left(
    session: Session, invoice: Invoice, credited: Mapping[str, Sequence[InvoiceLine]]
) -> dict[str, Decimal]:
    """What the line billed less what was credited of it; no more than its charge was billed in all."""
    siblings = lines_by_identity(session, {line.identity for line in invoice.lines})
    others = credits_by_hand(session, (line.id for lines in siblings.values() for line in lines))
    given_up, drafts = _uncharged(session, siblings)
    left = {}
    for line in invoice.lines:
        counted = [
            one
            for one in siblings[line.identity]
            if one.released_at is None and one.invoice_id not in given_up
            if one.invoice_id not in drafts or _amount(one) < 0
        ]
        whole = [*counted, *(note for one in siblings[line.identity] for note in others.get(one.id, ()))]
        mine = [line, *credited.get(line.id, ())]
        left[line.id] = max(ZERO, min(total(map(_amount, mine)), total(map(_amount, whole))))
    return left


def _uncharged(session: Session, siblings: Mapping[str, Sequence[InvoiceLine]]) -> tuple[set[str], set[str]]:
    """The invoices among theirs that were deleted or voided; and drafts, which may yet give back."""
    ids = {line.invoice_id for lines in siblings.values() for line in lines}
    query = select(Invoice.id, Invoice.issued_at, Invoice.deleted_at, Invoice.voided_at)
    rows = session.execute(query.where(Invoice.id.in_(ids))).all()
    given_up = {row.id for row in rows if row.deleted_at or row.voided_at}
    return given_up, {row.id for row in rows if row.issued_at is None} - given_up


def _amount(line: InvoiceLine) -> Decimal:
    """After discounts, before exclusive tax."""
    return EXACT.subtract(line.totals.total, line.taxes_exclusive)


def _issues(wanted: Sequence[CreditLine], left: Mapping[str, Decimal], invoice: Invoice) -> Iterable[Issue]:
    if not wanted:
        message = "nothing is left to be credited" if not any(left.values()) else "a credit note needs a line"
        yield Issue(code="credit_note_empty", message=message, field="$.lines")
    times = Counter(one.line_id for one in wanted)
    for i, one in enumerate(wanted):
        where = f"$.lines[{i}]"
        if one.line_id not in left:
            message = f"the invoice {invoice.number} has no line {one.line_id!r}"
            yield Issue(code="invoice_line_not_found", message=message, field=f"{where}.lineId")
        elif times[one.line_id] > 1:
            message = "a credit note gives back of a line once"
            yield Issue(code="credit_note_line_repeated", message=message, field=f"{where}.lineId")
        elif not is_amount(one.amount, invoice.currency):
            message = f"a credit is more than nothing, in whole minor units of {invoice.currency}"
            yield Issue(code="invalid_credit_amount", message=message, field=f"{where}.amount")
        elif one.amount > left[one.line_id]:
            message = f"{plain(one.amount)} is more than what is left of the line, {plain(left[one.line_id])}"
            code, hint = "credit_note_exceeds_billed", f"Credit at most {plain(left[one.line_id])}."
            yield Issue(code=code, message=message, field=f"{where}.amount", hint=hint)


# -- The note ------------------------------------------------------------------------------------------------


def _note(invoice: Invoice, details: CreditNoteDetails, now: datetime) -> Invoice:
    """Ready to be issued: from, to and by whom the invoice was."""
    assert invoice.issued_at is not None  # noqa: S101  creditable is what was issued
    return Invoice(
        id=new_id(now),
        type="credit_note",
        customer_id=invoice.customer_id,
        currency=invoice.currency,
        status="draft.ready_to_issue",
        description=details.description,
        metadata_=None if details.metadata is None else dict(details.metadata),
        supplier=invoice.supplier,
        customer=invoice.customer,
        billing_profile_id=invoice.billing_profile_id,
        app_id=invoice.app_id,
        app=invoice.app,
        workflow=invoice.workflow,
        validation_issues=[],
        external_ids={},
        preceding_id=invoice.id,
        preceding=Preceding(number=invoice.number, issued_at=invoice.issued_at, reason=details.reason),
        created_at=now,
        updated_at=now,
    )


def _line(
    billable: Billable, line: InvoiceLine, credited: Sequence[InvoiceLine], *, position: int, now: datetime
) -> InvoiceLine:
    due = due_line(billable, NOTHING, (), until=billable.service.end, last=True)
    row = line_of(due, position, now)
    row.credited_line_id = line.id
    tax_as(row, None, taxed_amounts([line, *credited]), billable.currency)
    return row


def _billable(line: InvoiceLine, one: CreditLine, currency: str, now: datetime) -> Billable:
    """A fee of less than nothing, of no contract."""
    period = Period(start=line.period_start, end=line.period_end)
    card = FlatFeeRateCard(
        type="flat_fee",
        key=line.rate_card.key,
        name=line.name,
        description=one.description,
        feature_key=line.rate_card.feature_key,
        tax_config=line.rate_card.tax_config,
        price=FlatPrice(type="flat", amount=-one.amount, payment_term="in_arrears"),
    )
    return Billable(
        identity=f"credit/{new_id(now)}",
        currency=currency,
        rate_card=card,
        feature_id=line.feature_id,
        service=period,
        billing=period,
        invoice_at=now,
        share=Fraction(1),
        managed_by="manual",
    )


def _sum_up(note: Invoice) -> None:
    note.totals = add_totals(line.totals for line in note.lines)
    note.period_start = min(line.period_start for line in note.lines)
    note.period_end = max(line.period_end for line in note.lines)


# -- Looking -------------------------------------------------------------------------------------------------


def get_credit_note(session: Session, note_id: str) -> Invoice:
    """One made by hand, or an invoice that gives back more than it charges."""
    note = get_invoice(session, note_id)
    if note.type != "credit_note":
        raise InvoiceNotFoundError(f"no credit note {note_id!r}")
    return note


def list_credit_notes(
    session: Session,
    *,
    invoice_id: str | None = None,
    customer_id: str | None = None,
    offset: int = 0,
    limit: int = 100,
) -> tuple[Sequence[Invoice], int]:
    """One page, the newest first, and how many there are."""
    conditions = [Invoice.type == "credit_note", Invoice.deleted_at.is_(None)]
    conditions += [] if invoice_id is None else [Invoice.preceding_id == invoice_id]
    conditions += [] if customer_id is None else [Invoice.customer_id == customer_id]
    count = session.scalar(select(func.count()).select_from(Invoice).where(*conditions)) or 0
    query = select(Invoice).options(selectinload(Invoice.lines), selectinload(Invoice.app))
    page = query.where(*conditions).order_by(Invoice.created_at.desc(), Invoice.id.desc())
    return session.scalars(page.offset(offset).limit(limit)).all(), count
