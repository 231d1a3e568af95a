"""From what is owed to draft invoices: what is due, less what was billed, for many customers at a time.

The caller holds the customers' locks, so that nobody else bills or changes them meanwhile. A second call at
the same instant finds nothing due.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from types import MappingProxyType

from sqlalchemy import select
from sqlalchemy.orm import Session

from billing.app import SANDBOX_WISH
from billing.billable import Billable, DueLine, due_line, taken_back, wire_of
from billing.customer import Customer, customers_by_id
from billing.invoice import Invoice, InvoiceLine
from billing.metered import Demand, usage_of
from billing.numbering import draft_numbers, prefix_of
from billing.pricing import Usage
from billing.profile import BillingProfile, Party, profiles_of
from billing.rating import Totals, add_totals
from billing.subscriptions import Subscription, subscriptions_of
from billing.timeline import charges
from billing.workflow import AnchoredAlignment, Workflow, duration_of
from catalog.features import features_by_id
from catalog.interval import parse_interval
from metering.ids import new_id
from metering.period import Period

__all__ = ["collect", "due_of", "recompute"]

LATE = timedelta(days=62)
"""How long after a service period usage of it is still looked for at each billing; two months."""

Earlier = Mapping[str, Sequence[InvoiceLine]]
"""The lines of each charge, by its identity, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payer:
    """A customer with all that decides what is due from them `at` an instant."""

    at: datetime
    customer: Customer
    profile: BillingProfile
    subscriptions: Sequence[Subscription]


def collect(
    session: Session,
    customers: Sequence[Customer],
    *,
    at: Mapping[str, datetime] = MappingProxyType({}),
    now: datetime,
    progressive: bool = False,
) -> list[Invoice]:
    """Make a draft, in each currency, of all that is due from a customer by its `at`, or else by `now`.

    `progressive` bills what has been used so far of periods that are still open, too.
    """
    payers = _payers(session, customers, at, now)
    due = due_of(session, payers, progressive=progressive)
    drafts = [
        _draft(payer, currency, lines, now)
        for payer in payers
        for currency, lines in _by_currency(due.get(payer.customer.id, ())).items()
    ]
    _number(session, drafts)
    session.add_all(drafts)
    for payer in payers:
        for subscription in payer.subscriptions:
            subscription.next_billing_at = next_billing_at(subscription, payer.profile.workflow, payer.at)
    session.flush()
    return drafts


def _payers(
    session: Session, customers: Sequence[Customer], at: Mapping[str, datetime], now: datetime
) -> list[Payer]:
    ids = [customer.id for customer in customers]
    signed: dict[str, list[Subscription]] = {}
    for subscription in subscriptions_of(session, ids):
        signed.setdefault(subscription.customer_id, []).append(subscription)
    profiles = profiles_of(session, ids)
    return [
        Payer(
            at=at.get(one.id, now),
            customer=one,
            profile=profiles[one.id],
            subscriptions=signed.get(one.id, ()),
        )
        for one in customers
    ]


# -- What is due ---------------------------------------------------------------------------------------------


def due_of(
    session: Session, payers: Sequence[Payer], *, progressive: bool = False
) -> dict[str, list[DueLine]]:
    """The lines that each customer is to be billed, by id."""
    earlier = _earlier(session, payers)
    wanted = [
        (payer, one)
        for payer in payers
        for one in _billables(payer, payer.at)
        if _asked(payer, one, earlier.get(one.identity, ()), progressive=progressive)
    ]
    usage = _usage(session, wanted, [payer.at for payer, _ in wanted])
    due: dict[str, list[DueLine]] = {payer.customer.id: [] for payer in payers}
    for (payer, one), used in zip(wanted, usage, strict=True):
        last = not one.metered or one.service.end <= payer.at
        until = one.service.end if last else payer.at
        line = due_line(one, used, earlier.get(one.identity, ()), until=until, last=last)
        if not line.sequence or line.rating.details:
            due[payer.customer.id].append(line)
    for payer in payers:
        due[payer.customer.id] += _gone(payer, earlier)
    return {customer_id: lines for customer_id, lines in due.items() if not all(one.waits for one in lines)}


def _earlier(session: Session, payers: Sequence[Payer]) -> Earlier:
    ids = [subscription.id for payer in payers for subscription in payer.subscriptions]
    query = select(InvoiceLine).where(InvoiceLine.subscription_id.in_(ids), InvoiceLine.released_at.is_(None))
    found: dict[str, list[InvoiceLine]] = {}
    for line in session.scalars(query.order_by(InvoiceLine.identity, InvoiceLine.sequence)):
        found.setdefault(line.identity, []).append(line)
    return found


def _billables(payer: Payer, now: datetime) -> Iterable[Billable]:
    for subscription in payer.subscriptions:
        for charge in charges(subscription.contract, until=now):
            yield Billable.of(charge)


def _asked(payer: Payer, one: Billable, earlier: Sequence[InvoiceLine], *, progressive: bool) -> bool:
    """Whether there may be something to bill: it is due, it is taken early, or it may have changed since."""
    if any(line.last for line in earlier):
        return one.service.end > payer.at - LATE
    if progressive and one.metered and one.service.start < payer.at:
        return True
    return collected_at(one.invoice_at, payer.profile.workflow) <= payer.at


def collected_at(invoice_at: datetime, workflow: Workflow) -> datetime:
    """When a line that is due is collected: at once, or with the next recurrence of the profile's anchor."""
    alignment = workflow.collection.alignment
    if not isinstance(alignment, AnchoredAlignment):
        return invoice_at
    every = parse_interval(alignment.recurring_period.interval)
    period = every.period_of(alignment.recurring_period.anchor, invoice_at)
    return invoice_at if period.start == invoice_at else period.end


def _gone(payer: Payer, earlier: Earlier) -> Iterable[DueLine]:
    """What was billed for charges that the contract has no more, such as a period after it was cancelled."""
    for subscription in payer.subscriptions:
        theirs = {
            name: lines for name, lines in earlier.items() if lines[0].subscription_id == subscription.id
        }
        latest = max((line.service_start for lines in theirs.values() for line in lines), default=payer.at)
        until = max(payer.at, latest)
        there = {Billable.of(one).identity for one in charges(subscription.contract, until=until)}
        for name, lines in theirs.items():
            if name not in there:
                line = taken_back(billable_of(lines[-1], subscription.currency), lines)
                if line.rating.details:
                    yield line


def billable_of(line: InvoiceLine, currency: str) -> Billable:
    """What the line billed, as it was then."""
    return Billable(
        identity=line.identity,
        currency=currency,
        rate_card=line.rate_card,
        feature_id=line.feature_id,
        service=Period(start=line.service_start, end=line.service_end),
        billing=Period(start=line.billing_start, end=line.billing_end),
        invoice_at=line.invoice_at,
        share=Fraction(line.share),
        subscription_id=line.subscription_id,
        phase_id=line.phase_id,
        item_id=line.item_id,
    )


def _usage(
    session: Session, wanted: Sequence[tuple[Payer, Billable]], until: Sequence[datetime]
) -> list[Usage]:
    ids = {one.feature_id for _, one in wanted if one.feature_id}
    features = features_by_id(session, ids)
    demands = [
        Demand(
            customer_id=payer.customer.id,
            subjects=payer.customer.usage_subjects,
            feature=features[one.feature_id] if one.feature_id else None,
            price=one.price,
            period=_so_far(one.service, end),
        )
        for (payer, one), end in zip(wanted, until, strict=True)
    ]
    return usage_of(session, demands)


def _so_far(service: Period, now: datetime) -> Period:
    return Period(start=service.start, end=max(service.start, min(service.end, now)))


def next_billing_at(subscription: Subscription, workflow: Workflow, now: datetime) -> datetime | None:
    """When something new falls due after `now`; a year after its end nothing does any more."""
    contract = subscription.contract
    horizon = contract.billing_cadence.after(now, 2)
    ahead = [collected_at(one.invoice_at, workflow) for one in charges(contract, until=horizon)]
    if later := [at for at in ahead if at > now]:
        return min(later)
    end = subscription.active_to
    if end is None:
        return horizon
    following = contract.billing_cadence.after(max(now, end))
    return following if following < end + FOLLOWED else None


FOLLOWED = timedelta(days=366)


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
        lines=[_line(line, position, now) for position, line in enumerate(lines)],
    )
    _schedule(invoice, lines)
    _sum_up(invoice)
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


def _line(line: DueLine, position: int, now: datetime) -> InvoiceLine:
    one = line.billable
    row = InvoiceLine(
        id=new_id(now),
        position=position,
        identity=one.identity,
        sequence=line.sequence,
        managed_by=one.managed_by,
        name=one.rate_card.name,
        description=one.rate_card.description,
        metadata_=None if one.rate_card.metadata is None else dict(one.rate_card.metadata),
        subscription_id=one.subscription_id,
        phase_id=one.phase_id,
        item_id=one.item_id,
        feature_id=one.feature_id,
        rate_card=one.rate_card,
        service_start=one.service.start,
        service_end=one.service.end,
        billing_start=one.billing.start,
        billing_end=one.billing.end,
        invoice_at=one.invoice_at,
        taxes=[],
        created_at=now,
        updated_at=now,
    )
    _rate(row, line)
    return row


def _rate(row: InvoiceLine, line: DueLine) -> None:
    """Everything about a line that a later look at usage and contract may change while it is a draft."""
    rating = line.rating
    row.share = str(line.billable.share)
    row.period_start, row.period_end = line.period.start, line.period.end
    row.usage, row.last = wire_of(line.usage), line.last
    row.quantity, row.quantity_before = rating.quantity, rating.quantity_before
    row.usage_discount, row.usage_discount_before = rating.usage_discount, rating.usage_discount_before
    row.details = rating.details
    row.totals = rating.totals


def _schedule(invoice: Invoice, lines: Sequence[DueLine]) -> None:
    """Metered lines are collected once late usage had its time; a draft then waits its draft period."""
    settings = invoice.workflow
    waiting = [line.billable.invoice_at for line in lines if line.billable.metered and not line.correction]
    if waiting:
        invoice.collection_at = duration_of(settings.collection.interval).after(max(waiting))
    ready = max(invoice.created_at, invoice.collection_at or invoice.created_at)
    invoice.draft_until = duration_of(settings.invoicing.draft_period).after(ready).replace(microsecond=0)
    invoice.period_start = min(line.period.start for line in lines)
    invoice.period_end = max(line.period.end for line in lines)


def _sum_up(invoice: Invoice) -> None:
    invoice.totals = add_totals(line.totals for line in invoice.lines) if invoice.lines else Totals()


def _number(session: Session, drafts: Sequence[Invoice]) -> None:
    for draft, number in zip(drafts, draft_numbers(session, len(drafts)), strict=True):
        draft.number = f"DRAFT-{prefix_of(draft.customer.name or '')}-{number}"


# -- Looking again -------------------------------------------------------------------------------------------


def recompute(session: Session, invoices: Sequence[Invoice], *, now: datetime) -> None:
    """Rate the lines of drafts anew, by the usage and the contracts as they are now."""
    customers = customers_by_id(session, {invoice.customer_id for invoice in invoices})
    payers = {payer.customer.id: payer for payer in _payers(session, list(customers.values()), {}, now)}
    earlier = _earlier(session, list(payers.values()))
    rows = [(invoice, row) for invoice in invoices for row in invoice.lines]
    latest = max((row.service_start for _, row in rows), default=now)
    there = {one.identity: one for payer in payers.values() for one in _billables(payer, max(now, latest))}
    wanted = [
        (payers[invoice.customer_id], there.get(row.identity) or billable_of(row, invoice.currency))
        for invoice, row in rows
    ]
    usage = _usage(session, wanted, [row.period_end for _, row in rows])
    for (invoice, row), (_, one), used in zip(rows, wanted, usage, strict=True):
        before = [line for line in earlier.get(row.identity, ()) if line.sequence < row.sequence]
        if row.identity in there or row.managed_by == "manual":
            until = min(row.period_end, one.service.end)
            last = not one.metered or until == one.service.end
            _rate(row, due_line(one, used, before, until=until, last=last))
        elif before:
            _rate(row, taken_back(one, before))
        else:
            invoice.lines.remove(row)
            session.delete(row)
    for invoice in invoices:
        _sum_up(invoice)
