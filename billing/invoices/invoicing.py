"""From what is due to draft invoices, for many customers at a time.

The caller holds the customers' locks, so that nobody else bills or changes them meanwhile. A second call at
the same instant finds nothing due.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import dropwhile
from types import MappingProxyType

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from billing.contracts.customer import Customer, customers_by_id
from billing.invoices.due import (
    Earlier,
    Payer,
    Rate,
    Reach,
    billable_of,
    billables_of,
    due_of,
    earlier_of,
    look_ahead,
    payers_of,
    used_by,
)
from billing.invoices.invoice import Invoice, InvoiceLine, lines_by_identity
from billing.invoices.invoice_tax import tax_and_sum_up
from billing.invoices.numbering import draft_numbers, prefix_of
from billing.invoices.state import EDITABLE
from billing.invoices.uncharged import may_be_waived, uncharged_among
from billing.profiles.app import SANDBOX_WISH
from billing.profiles.profile import Party
from billing.profiles.workflow import Workflow, duration_of
from billing.rating.billable import Billable, DueLine, due_line, taken_back, usage_from, waive, wire_of
from billing.rating.pricing import Usage
from metering.ids import new_id

__all__ = ["collect", "draft_until", "line_of", "number_drafts", "recompute"]


def collect(
    session: Session,
    customers: Sequence[Customer],
    *,
    at: Mapping[str, datetime] = MappingProxyType({}),
    now: datetime,
    reach: Reach = "due",
    only: Collection[str] | None = None,
    rated: Collection[Invoice] = (),
) -> list[Invoice]:
    """Make a draft, in each currency, of all that is due from a customer by its `at`, or else by `now`.

    `reach` and `only` as for due_of. `rated`: drafts that need no second look, as this transaction made them.
    """
    recompute(session, _changeable(session, customers, rated), now=now)
    payers = payers_of(session, customers, at, now)
    earlier = earlier_of(session, payers)
    due = due_of(session, payers, earlier, reach=reach, only=only)
    _give_up(session, _drafts(payers, due, now, waived=True), now)
    drafts = _drafts(payers, due, now, waived=False)
    tax_and_sum_up(session, drafts, now=now)
    number_drafts(session, drafts)
    session.add_all(drafts)
    if only is None:  # else what was not asked for stays due
        look_ahead(payers, earlier, _settled(earlier, due))
    session.flush()
    return drafts


def _drafts(
    payers: Sequence[Payer], due: Mapping[str, Sequence[DueLine]], now: datetime, *, waived: bool
) -> list[Invoice]:
    return [
        _draft(payer, currency, lines, now)
        for payer in payers
        for currency, lines in _by_currency(
            [line for line in due.get(payer.customer.id, ()) if line.waived == waived]
        ).items()
    ]


def _give_up(session: Session, invoices: Sequence[Invoice], now: datetime) -> None:
    """What undoes what was given up is given up, too, and nobody sees it."""
    if not invoices:
        return
    for invoice in invoices:
        invoice.status, invoice.deleted_at = "deleted", now
        invoice.description = "Belongs to what was given up"
    tax_and_sum_up(session, invoices, now=now)
    number_drafts(session, invoices)
    session.add_all(invoices)
    session.flush()


def _changeable(
    session: Session, customers: Sequence[Customer], rated: Collection[Invoice]
) -> Sequence[Invoice]:
    """Drafts that follow a contract that may have changed since."""
    query = select(Invoice).options(selectinload(Invoice.lines), selectinload(Invoice.app))
    query = query.where(
        Invoice.customer_id.in_([customer.id for customer in customers]),
        Invoice.status.in_(EDITABLE),
        Invoice.id.not_in([invoice.id for invoice in rated]),
    )
    return session.scalars(query.order_by(Invoice.id)).all()


def _settled(earlier: Earlier, due: Mapping[str, Sequence[DueLine]]) -> set[str]:
    """Charges that have had their last line, by identity."""
    before = (
        name for name, lines in earlier.items() if any(one.last and not one.released_at for one in lines)
    )
    now = (line.billable.identity for lines in due.values() for line in lines if line.last)
    return {*before, *now}


# -- Drafts --------------------------------------------------------------------------------------------------


def _by_currency(lines: Sequence[DueLine]) -> dict[str, list[DueLine]]:
    found: dict[str, list[DueLine]] = {}
    for line in lines:
        found.setdefault(line.billable.currency, []).append(line)
    return found


def _draft(payer: Payer, currency: str, lines: Sequence[DueLine], now: datetime) -> Invoice:
    profile, customer = payer.profile, payer.customer
    invoice = Invoice(
        id=new_id(now),
        type="standard",
        customer_id=customer.id,
        currency=currency,
        status="draft.created",
        supplier=profile.supplier,
        customer=party_of(customer),
        billing_profile_id=profile.id,
        app_id=profile.app_id,
        app=profile.app,
        workflow=profile.workflow,
        metadata_=_wish(customer),
        validation_issues=[],
        external_ids={},
        created_at=now,
        updated_at=now,
        lines=[line_of(line, position, now) for position, line in enumerate(lines)],
    )
    _schedule(invoice, lines)
    return invoice


def _wish(customer: Customer) -> dict[str, str] | None:
    """What the sandbox is to do with the invoice, said of the customer."""
    wish = (customer.metadata_ or {}).get(SANDBOX_WISH)
    return None if wish is None else {SANDBOX_WISH: wish}


def party_of(customer: Customer) -> Party:
    address = customer.billing_address
    return Party(
        id=customer.id, key=customer.key, name=customer.name, addresses=(address,) if address else ()
    )


def line_of(line: DueLine, position: int, now: datetime) -> InvoiceLine:
    one = line.billable
    row = InvoiceLine(
        id=new_id(now),
        position=position,
        identity=one.identity,
        sequence=line.sequence,
        managed_by=one.managed_by,
        subscription_id=one.subscription_id,
        phase_id=one.phase_id,
        taxes=(),
        created_at=now,
        updated_at=now,
    )
    _sell(row, one)
    _rate(row, line, now)
    return row


def _sell(row: InvoiceLine, one: Billable) -> None:
    card = one.rate_card
    row.name, row.description = card.name, card.description
    row.metadata_ = None if card.metadata is None else dict(card.metadata)
    row.item_id, row.feature_id, row.rate_card = one.item_id, one.feature_id, card


def _rate(row: InvoiceLine, line: DueLine, now: datetime) -> None:
    """Everything about a line that a later look at usage and contract may change while it is a draft."""
    rating, one = line.rating, line.billable
    if one.item_id != row.item_id:  # another one is sold in its place, from the same instant on
        _sell(row, one)
    row.share, row.invoice_at = str(one.share), line.invoice_at
    row.service_start, row.service_end = one.service.start, one.service.end
    row.billing_start, row.billing_end = one.billing.start, one.billing.end
    row.period_start, row.period_end = line.period.start, line.period.end
    row.usage, row.last = wire_of(line.usage, line.metered_before), line.last
    row.quantity, row.quantity_before = rating.quantity, rating.quantity_before
    row.usage_discount, row.usage_discount_before = rating.usage_discount, rating.usage_discount_before
    row.details = rating.details
    row.rated_at = max(now, line.released_at or now)  # the clock may stand still, or `now` be older
    row.totals = rating.totals


def _schedule(invoice: Invoice, lines: Sequence[DueLine]) -> None:
    """Metered lines are collected once late usage had its time; a draft then waits its draft period."""
    settings = invoice.workflow
    waiting = [line.invoice_at for line in lines if line.billable.metered and not line.correction]
    if waiting:
        invoice.collection_at = duration_of(settings.collection.interval).after(max(waiting))
    invoice.draft_until = draft_until(invoice, settings)
    invoice.period_start = min(line.period.start for line in lines)
    invoice.period_end = max(line.period.end for line in lines)


def draft_until(invoice: Invoice, settings: Workflow) -> datetime:
    ready = max(invoice.created_at, invoice.collection_at or invoice.created_at)
    return duration_of(settings.invoicing.draft_period).after(ready).replace(microsecond=0)


def number_drafts(session: Session, drafts: Sequence[Invoice]) -> None:
    for draft, number in zip(drafts, draft_numbers(session, len(drafts)), strict=True):
        draft.number = f"DRAFT-{prefix_of(draft.customer.name or '')}-{number}"


# -- Looking again -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Again:
    """A line of a draft, and how it is rated now, after those `before` it. None: its charge is no more."""

    payer: Payer
    invoice: Invoice
    row: InvoiceLine
    rate: Rate | None
    before: Sequence[InvoiceLine]
    newest: bool


def recompute(session: Session, invoices: Sequence[Invoice], *, now: datetime) -> None:
    """Rate the lines of drafts anew, by the usage and the contracts as they are now.

    With them drafts that go on where they end: no line stays that is the difference to another amount.
    """
    if not invoices:
        return
    earlier = lines_by_identity(session, _identities(invoices))
    if going_on := _going_on(session, invoices, earlier):
        invoices = [*invoices, *going_on]
        earlier = lines_by_identity(session, _identities(invoices))
    every = _again(session, invoices, earlier, now)
    for one in every:
        if one.rate is None:
            _remove(session, one)
        else:
            _rate(one.row, one.rate(one.before), now)
    _give_up(session, _waived(session, every, now), now)
    for invoice in invoices:
        if invoice.quantity_snapshotted_at is not None:
            invoice.quantity_snapshotted_at = now
    tax_and_sum_up(session, invoices, now=now)


def _identities(invoices: Iterable[Invoice]) -> set[str]:
    return {row.identity for invoice in invoices for row in invoice.lines}


def _again(session: Session, invoices: Sequence[Invoice], earlier: Earlier, now: datetime) -> list[_Again]:
    """In the order of their numbers: a later line is the difference to the earlier ones."""
    customers = customers_by_id(session, {invoice.customer_id for invoice in invoices})
    payers = {payer.customer.id: payer for payer in payers_of(session, list(customers.values()), {}, now)}
    rows = [(invoice, row) for invoice in invoices for row in invoice.lines]
    rows.sort(key=lambda each: each[1].sequence)
    there = _still_there(payers, rows, now)
    wanted = [
        (payers[invoice.customer_id], there.get(row.identity) or billable_of(row, invoice.currency))
        for invoice, row in rows
    ]
    billed = [usage_from(row.usage) for _, row in rows]
    usage = used_by(session, wanted, [row.period_end for _, row in rows], billed)
    fixed = _fixed(invoices, earlier)
    return [
        _Again(
            payer=payer,
            invoice=invoice,
            row=row,
            rate=_rate_of(row, one, used, sold=row.identity in there, only=len(earlier[row.identity]) == 1),
            before=[line for line in earlier[row.identity] if line.sequence < row.sequence],
            newest=row is earlier[row.identity][-1],
        )
        for (invoice, row), (payer, one), used in zip(rows, wanted, usage, strict=True)
        if row.id not in fixed
    ]


def _rate_of(row: InvoiceLine, one: Billable, used: Usage, *, sold: bool, only: bool) -> Rate | None:
    if sold or row.managed_by == "manual":
        until = min(row.period_end, one.service.end) if one.metered else one.service.end
        return partial(due_line, one, used, until=until, last=until == one.service.end)
    return None if only else partial(taken_back, one)  # the lines of a charge are numbered without a hole


def _remove(session: Session, one: _Again) -> None:
    one.invoice.lines.remove(one.row)
    session.delete(one.row)


def _waived(session: Session, every: Sequence[_Again], now: datetime) -> list[Invoice]:
    """What nobody was charged, apart from what really is charged or given back, which stays on its draft."""
    some = [
        one
        for one in every
        if one.rate and one.newest
        if may_be_waived(one.row.totals.total, metered=one.row.usage is not None)
    ]
    uncharged = uncharged_among(session, [one.before for one in some])
    undone: list[tuple[_Again, DueLine]] = []
    for one in some:
        given_up, credited = uncharged(one.before)
        lines = waive(one.rate, one.before, given_up, credited) if one.rate and (given_up or credited) else []
        undone += [(one, line) for line in lines if line.waived]
        if not (rest := [line for line in lines if not line.waived]) and lines:
            _remove(session, one)
        for line in rest:
            one.row.sequence = line.sequence
            _rate(one.row, line, now)
    session.flush()  # the numbers that are free now are those of what is given up
    return [_draft(one.payer, one.invoice.currency, [line], now) for one, line in undone]


def _going_on(session: Session, invoices: Sequence[Invoice], earlier: Earlier) -> Sequence[Invoice]:
    """Other drafts whose usage is not settled yet, with later lines of the same charges."""
    ids = {invoice.id for invoice in invoices}
    later = {
        line.invoice_id
        for lines in earlier.values()
        for line in dropwhile(lambda line: line.invoice_id not in ids, lines)
    }
    if later <= ids:
        return []
    query = select(Invoice).options(selectinload(Invoice.lines), selectinload(Invoice.app))
    waiting = query.where(Invoice.id.in_(later - ids), Invoice.status.in_(EDITABLE))
    return session.scalars(waiting.where(Invoice.quantity_snapshotted_at.is_(None))).all()


def _fixed(invoices: Sequence[Invoice], earlier: Earlier) -> set[str]:
    """Lines, by id, that a later one is the difference to, which is not rated anew with them."""
    ids = {invoice.id for invoice in invoices}
    return {
        line.id
        for lines in earlier.values()
        for place, line in enumerate(lines)
        if any(other.invoice_id not in ids for other in lines[place + 1 :])
    }


def _still_there(
    payers: Mapping[str, Payer], rows: Iterable[tuple[Invoice, InvoiceLine]], now: datetime
) -> dict[str, Billable]:
    """What the contracts charge of that which the rows bill, and perhaps more, by identity."""
    starts: dict[str, list[datetime]] = {}
    for invoice, row in rows:
        starts.setdefault(invoice.customer_id, []).append(row.service_start)
    return {
        one.identity: one
        for id_, begun in starts.items()
        for one in billables_of(payers[id_], max(now, *begun), since=min(begun))
    }
