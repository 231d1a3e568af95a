"""What people and apps do with invoices: invoice now, approve, retry, delete, void, and what they list.

Each locks the customer first, as the billing run does, so that nobody bills them meanwhile.
"""

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, func, select, type_coerce
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import InstrumentedAttribute, Session, selectinload

from billing.contracts.customer import get_customer
from billing.contracts.pending import PendingLine
from billing.contracts.subscriptions import Subscription
from billing.invoices.due import Reach, billables_of, payers_of
from billing.invoices.giving_up import require_charged
from billing.invoices.invoice import Invoice, InvoiceLine, InvoiceNotFoundError, get_invoice
from billing.invoices.invoicing import collect
from billing.invoices.payment import payments_of
from billing.invoices.progress import advance, fire
from billing.invoices.provider import facts_of
from billing.invoices.state import DELETABLE, Trigger, after
from metering.errors import InvalidError, Issue
from metering.exact import plain, total

__all__ = [
    "InvoiceFilter",
    "InvoiceOrder",
    "VoidAction",
    "act",
    "advance_invoice",
    "delete_invoice",
    "invoice_now",
    "list_invoices",
    "locked_invoice",
    "void_invoice",
]


def locked_invoice(session: Session, invoice_id: str) -> Invoice:
    """With its lines and its app, and nobody else billing its customer until the transaction ends."""
    customer_id = session.scalar(select(Invoice.customer_id).where(Invoice.id == invoice_id))
    if customer_id is None:
        raise InvoiceNotFoundError(f"no invoice {invoice_id!r}")
    get_customer(session, customer_id, lock=True)
    return get_invoice(session, invoice_id, lock=True)


def invoice_now(
    session: Session,
    customer_id: str,
    *,
    line_ids: Collection[str] | None = None,
    as_of: datetime | None = None,
    progressive: bool | None = None,
    now: datetime,
) -> list[Invoice]:
    """Bill what is due by `as_of`, and, if the profile or `progressive` says so, what was used until then.

    `line_ids` are those of the gathering invoice: only these, or None: all. Raises InvalidError when that is
    nothing.
    """
    customer = get_customer(session, customer_id, lock=True)
    customer.require_living()
    at = as_of or now
    if at > now:
        message = "what will be used can't be invoiced yet"
        raise InvalidError(message, Issue(code="invoice_as_of_in_future", message=message, field="$.asOf"))
    (payer,) = payers_of(session, [customer], {customer.id: at}, now)
    split = payer.profile.workflow.invoicing.progressive_billing if progressive is None else progressive
    named = {one.line_id: one.identity for one in billables_of(payer, at)}
    _require_all_known(line_ids or (), named)
    only = None if line_ids is None else {named[id_] for id_ in line_ids}
    reach: Reach = "used" if split else "due"
    drafts = collect(session, [customer], at={customer.id: at}, now=now, reach=reach, only=only)
    if not drafts:
        message = "nothing is to be invoiced by then"
        raise InvalidError(message, Issue(code="invoice_create_no_lines", message=message, field="$"))
    advance(session, drafts, now=now, rated=True)
    return drafts


def _require_all_known(line_ids: Collection[str], known: Container[str]) -> None:
    issues = [
        Issue(
            code="invoice_lines_not_billable",
            message=f"the gathering invoice has no line {line_id!r}",
            field=f"$.filters.lineIds[{i}]",
            hint="Read it again: its lines are those that can be invoiced.",
        )
        for i, line_id in enumerate(line_ids)
        if line_id not in known
    ]
    if issues:
        raise InvalidError(issues[0].message, *issues)


def advance_invoice(session: Session, invoice_id: str, *, now: datetime) -> Invoice:
    invoice = locked_invoice(session, invoice_id)
    if after(invoice.status, facts_of(invoice, now)) is None:
        message = f"the invoice is {invoice.status} and does not go on by itself now"
        raise InvalidError(message, Issue(code="invoice_cannot_advance", message=message))
    advance(session, [invoice], now=now)
    return invoice


def act(session: Session, invoice_id: str, trigger: Trigger, *, now: datetime) -> Invoice:
    """Approve, retry, snapshot quantities, or tell what became of its payment."""
    invoice = locked_invoice(session, invoice_id)
    fire(session, invoice, trigger, now=now)
    return invoice


def delete_invoice(session: Session, invoice_id: str, *, now: datetime) -> Invoice:
    """Give up a draft. What it would have billed is not billed again: it was decided upon.

    What waits to be issued and has its final number is voided and keeps it, so that numbers have no gap.
    """
    invoice = locked_invoice(session, invoice_id)
    if invoice.status not in DELETABLE:
        message = f"an invoice that is {invoice.status} can't be deleted"
        hint = "Void it, or issue a credit note."
        raise InvalidError(message, Issue(code="invoice_delete_failed", message=message, hint=hint))
    hint = "Let it be issued, and give back what is not owed with a credit note."
    fields = {line.id: "$.invoiceId" for line in invoice.lines}
    require_charged(session, invoice.lines, fields, hint=hint)
    fire(session, invoice, "delete", now=now)
    return invoice


@dataclass(frozen=True, slots=True, kw_only=True)
class VoidAction:
    """discard: what was billed is given up. pending: it is billed again, at `next_invoice_at` or at once."""

    type: Literal["discard", "pending"]
    next_invoice_at: datetime | None = None


def void_invoice(
    session: Session,
    invoice_id: str,
    action: VoidAction,
    *,
    overrides: Mapping[str, VoidAction] | None = None,
    reason: str,
    now: datetime,
) -> Invoice:
    """An issued invoice counts no more. Its number stays taken.

    Raises InvalidError when something was paid of it or given back: that would be about nothing any more.
    """
    invoice = locked_invoice(session, invoice_id)
    overrides = overrides or {}
    _require_lines(invoice, overrides)
    _require_unpaid(session, invoice)
    _require_uncredited(session, invoice)
    hint = "Bill it again instead (pending): what was given back then counts."
    require_charged(session, invoice.lines, _discarded(invoice, action, overrides), hint=hint)
    if any(one.type == "pending" for one in (action, *overrides.values())):
        get_customer(session, invoice.customer_id).require_living()
    fire(session, invoice, "void", now=now)
    invoice.external_ids = invoice.external_ids | {"void-reason": reason}
    released_at = _after_all_who_counted_it(session, invoice, now)
    for line in invoice.lines:
        wanted = overrides.get(line.id, action)
        if wanted.type == "pending":
            line.released_at, line.bill_again_at = released_at, wanted.next_invoice_at or now
            _bill_again(session, line, line.bill_again_at)
    session.flush()
    return invoice


def _require_lines(invoice: Invoice, overrides: Iterable[str]) -> None:
    """What was said of a line that is not there was meant for another one."""
    there = {line.id for line in invoice.lines}
    issues = [
        Issue(
            code="invoice_line_not_found",
            message=f"the invoice has no line {line_id!r}",
            field=f"$.overrides[{i}].lineId",
        )
        for i, line_id in enumerate(overrides)
        if line_id not in there
    ]
    if issues:
        raise InvalidError(issues[0].message, *issues)


def _discarded(invoice: Invoice, action: VoidAction, overrides: Mapping[str, VoidAction]) -> dict[str, str]:
    """Where it was said of a line, by its id, that it is given up."""
    said = {line.id: ("$.action", action) for line in invoice.lines}
    said |= {id_: (f"$.overrides[{i}].action", one) for i, (id_, one) in enumerate(overrides.items())}
    return {id_: f"{where}.action.type" for id_, (where, one) in said.items() if one.type == "discard"}


def _require_unpaid(session: Session, invoice: Invoice) -> None:
    """Somebody's money would belong to nothing that is owed."""
    if payments := payments_of(session, invoice.id):
        paid = plain(total(payment.amount for payment in payments))
        message = f"{paid} {invoice.currency} of the invoice {invoice.number} were paid already"
        hint = "Issue a credit note for what is not owed; what was paid stays with the invoice."
        raise InvalidError(message, Issue(code="invoice_has_payments", message=message, hint=hint))


def _require_uncredited(session: Session, invoice: Invoice) -> None:
    """What was given back of it would be given twice."""
    query = select(Invoice.number).where(Invoice.preceding_id == invoice.id)
    query = query.where(Invoice.deleted_at.is_(None), Invoice.voided_at.is_(None))
    if number := session.scalar(query.order_by(Invoice.id).limit(1)):
        message = f"a part of the invoice was given back already, by {number}"
        hint = "Give the rest back with another credit note."
        raise InvalidError(message, Issue(code="invoice_has_credit_notes", message=message, hint=hint))


def _after_all_who_counted_it(session: Session, invoice: Invoice, now: datetime) -> datetime:
    """Later than the rating of every later line of its charges, also when the clock stands still."""
    identities = [line.identity for line in invoice.lines]
    query = select(func.max(InvoiceLine.rated_at)).where(
        InvoiceLine.identity.in_(identities), InvoiceLine.invoice_id != invoice.id
    )
    latest = session.scalar(query)
    return now if latest is None else max(now, latest + datetime.resolution)


def _bill_again(session: Session, line: InvoiceLine, at: datetime) -> None:
    """Also what was added by hand and then taken off a draft."""
    charged: Subscription | PendingLine | None
    if line.subscription_id:
        charged = session.get(Subscription, line.subscription_id)
    else:
        charged = session.get(PendingLine, line.identity.partition("/")[2])
    if charged is not None:
        charged.next_billing_at = min(at, charged.next_billing_at or at)
    if isinstance(charged, Subscription):
        charged.settled_until = None
    if isinstance(charged, PendingLine):
        charged.deleted_at = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceFilter:
    """Each narrows the list; none of them all."""

    customers: Collection[str] = ()
    statuses: Collection[str] = ()
    extended_statuses: Collection[str] = ()
    issued_after: datetime | None = None
    issued_before: datetime | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    period_start_after: datetime | None = None
    period_start_before: datetime | None = None
    include_deleted: bool = False

    @property
    def bounds(self) -> Iterable[tuple[InstrumentedAttribute[Any], datetime | None, datetime | None]]:
        yield Invoice.issued_at, self.issued_after, self.issued_before
        yield Invoice.created_at, self.created_after, self.created_before
        yield Invoice.period_start, self.period_start_after, self.period_start_before

    @property
    def gathering(self) -> bool:
        """Whether gathering invoices are among what is asked for: they have no instants yet."""
        named = not (self.statuses or self.extended_statuses) or "gathering" in {
            *self.statuses,
            *self.extended_statuses,
        }
        return named and all(after is None and before is None for _, after, before in self.bounds)


InvoiceOrder = Literal["customer", "issued_at", "status", "created_at", "updated_at", "period_start"]


def list_invoices(
    session: Session,
    wanted: InvoiceFilter,
    *,
    order_by: InvoiceOrder = "created_at",
    descending: bool = True,
    offset: int = 0,
    limit: int = 100,
) -> tuple[Sequence[Invoice], int]:
    """One page, and how many there are; in a few statements, however many there are."""
    if set(wanted.statuses) == {"gathering"}:
        return [], 0  # none is stored
    conditions = list(_conditions(wanted))
    count = session.scalar(select(func.count()).select_from(Invoice).where(*conditions)) or 0
    if not limit:
        return [], count
    by: Any = (
        type_coerce(Invoice.customer, JSONB)["name"].astext
        if order_by == "customer"
        else getattr(Invoice, order_by)
    )
    order = (by.desc().nulls_last(), Invoice.id.desc()) if descending else (by.nulls_last(), Invoice.id)
    query = select(Invoice).options(selectinload(Invoice.lines), selectinload(Invoice.app))
    page = query.where(*conditions).order_by(*order).offset(offset).limit(limit)
    return session.scalars(page).all(), count


def _conditions(wanted: InvoiceFilter) -> Iterable[ColumnElement[bool]]:
    if wanted.customers:
        yield Invoice.customer_id.in_(wanted.customers)
    if wanted.statuses:
        yield func.split_part(Invoice.status, ".", 1).in_(wanted.statuses)
    if wanted.extended_statuses:
        yield Invoice.status.in_(wanted.extended_statuses)
    if not wanted.include_deleted:
        yield Invoice.deleted_at.is_(None)
    for column, after_, before in wanted.bounds:
        if after_ is not None:
            yield column >= after_
        if before is not None:
            yield column <= before
