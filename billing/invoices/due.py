"""What is due from customers: what they owe by an instant, less what was billed."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from functools import partial
from typing import Literal

from sqlalchemy import or_, select
from sqlalchemy.orm import Session, load_only

from billing.contracts.customer import Customer
from billing.contracts.pending import PendingLine, pending_lines_of
from billing.contracts.subscriptions import Subscription, subscriptions_of
from billing.invoices.invoice import InvoiceLine
from billing.invoices.uncharged import may_be_waived, uncharged_among
from billing.profiles.profile import BillingProfile, profiles_of
from billing.profiles.workflow import AnchoredAlignment, Workflow
from billing.rating.billable import Billable, BilledLine, DueLine, due_line, taken_back, usage_from, waive
from billing.rating.metered import Demand, usage_of
from billing.rating.pricing import Usage
from billing.rating.timeline import charges
from catalog.features import features_by_id
from catalog.interval import parse_interval
from metering.database import among
from metering.period import Period

__all__ = [
    "Earlier",
    "Payer",
    "Rate",
    "Reach",
    "billable_of",
    "billables_of",
    "collected_at",
    "due_of",
    "earlier_of",
    "look_ahead",
    "payers_of",
    "used_by",
]

WAIT = timedelta(days=31)
"""How long usage that came late waits for something else to be invoiced."""
TWO_MONTHS = (timedelta(days=59), timedelta(days=62))
"""The shortest and the longest: one look at late usage comes between them."""
LATE = timedelta(days=64)
"""How long after a service period usage of it is still looked for at each billing."""

Earlier = Mapping[str, Sequence[InvoiceLine]]
"""The lines of each charge, by its identity, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payer:
    """A customer with all that decides what is due from them `at` an instant."""

    at: datetime
    customer: Customer
    profile: BillingProfile
    subscriptions: Sequence[Subscription]
    pending: Sequence[PendingLine]


def payers_of(
    session: Session, customers: Sequence[Customer], at: Mapping[str, datetime], now: datetime
) -> list[Payer]:
    ids = [customer.id for customer in customers]
    signed, pending = defaultdict[str, list[Subscription]](list), defaultdict[str, list[PendingLine]](list)
    for subscription in subscriptions_of(session, ids):
        signed[subscription.customer_id].append(subscription)
    for line in pending_lines_of(session, ids):
        pending[line.customer_id].append(line)
    profiles = profiles_of(session, ids)
    return [
        Payer(
            at=at.get(one.id, now),
            customer=one,
            profile=profiles[one.id],
            subscriptions=signed[one.id],
            pending=pending[one.id],
        )
        for one in customers
    ]


Reach = Literal["due", "used", "begun"]
"""What has fallen due; also what was used so far of open periods; all that has begun, as if it ended now."""


def due_of(
    session: Session,
    payers: Sequence[Payer],
    earlier: Earlier,
    *,
    reach: Reach = "due",
    only: Collection[str] | None = None,
    usage_until: datetime | None = None,
) -> dict[str, list[DueLine]]:
    """The lines that each customer is to be billed, by id; `only` these charges, if it is given.

    Usage counts up to each payer's `at`; of all that has begun, up to `usage_until` or the period's end.
    """
    begun = [(payer, one) for payer in payers for one in billables_of(payer, payer.at)]
    wanted = [
        (payer, one)
        for payer, one in begun
        if only is None or one.identity in only
        if _asked(payer, one, earlier.get(one.identity, ()), reach)
    ]
    until = [
        one.service.end
        if reach == "begun" and usage_until is None
        else _looked_at(usage_until or payer.at, earlier.get(one.identity, ()))
        for payer, one in wanted
    ]
    changed = _changed(session, wanted, until, earlier, whole=reach == "begun")
    gone = _gone(payers, earlier, {one.identity for _, one in begun}) if only is None else []
    _load_details(session, [line for _, _, lines in [*changed, *gone] for line in lines])
    taken = [
        (payer, partial(taken_back, billable_of(lines[-1], currency)), lines)
        for payer, currency, lines in gone
    ]
    due: dict[str, list[DueLine]] = {payer.customer.id: [] for payer in payers}
    for payer, line in _charged(session, [*changed, *taken]):
        if line.first or line.rating.details:
            due[payer.customer.id].append(line)
    return due if reach != "due" else {one.customer.id: _ripe(one, due[one.customer.id]) for one in payers}


Rate = Callable[[Sequence[BilledLine]], DueLine]
"""What a charge comes to now, after its earlier lines."""


def _changed(
    session: Session,
    wanted: Sequence[tuple[Payer, Billable]],
    until: Sequence[datetime],
    earlier: Earlier,
    *,
    whole: bool,
) -> list[tuple[Payer, Rate, Sequence[InvoiceLine]]]:
    """Of those that are not billed as they are. `whole`: as if their periods were over."""
    billed = [_billed_by(earlier.get(one.identity, ())) for _, one in wanted]
    usage = used_by(session, wanted, until, billed)
    changed: list[tuple[Payer, Rate, Sequence[InvoiceLine]]] = []
    for (payer, one), used, before, end in zip(wanted, usage, billed, until, strict=True):
        lines = earlier.get(one.identity, ())
        if used != before or not _is_final(one, lines):
            last = whole or not one.metered or one.service.end <= end
            upto = one.service.end if last else end
            changed.append((payer, partial(due_line, one, used, until=upto, last=last), lines))
    return changed


def _looked_at(at: datetime, earlier: Sequence[InvoiceLine]) -> datetime:
    """No less is looked at than was billed: a late or backdated look takes nothing back."""
    counted = (line for line in earlier if line.released_at is None and line.share != "0")
    return max([at, *(line.period_end for line in counted)])


def _ripe(payer: Payer, lines: Sequence[DueLine]) -> list[DueLine]:
    """Nothing, unless something doesn't wait; what is waived is no reason for an invoice."""
    charged = [line for line in lines if not line.waived]
    if all(line.waits and _can_wait(payer, line) for line in charged) and _is_due_soon(payer):
        return [line for line in lines if line.waived]
    return list(lines)


def _can_wait(payer: Payer, line: DueLine) -> bool:
    """It is still looked for when the wait is over."""
    return line.billable.service.end + LATE > payer.at + WAIT


def _is_due_soon(payer: Payer) -> bool:
    """Whether something follows with which what came late can be invoiced."""
    return any(
        payer.at < collected_at(one.invoice_at, payer.profile.workflow) <= payer.at + WAIT
        for signed in payer.subscriptions
        for one in charges(signed.contract, since=signed.settled_until, until=payer.at + WAIT)
    )


def _charged(
    session: Session, rated: Iterable[tuple[Payer, Rate, Sequence[InvoiceLine]]]
) -> Iterable[tuple[Payer, DueLine]]:
    """Each with what nobody was charged apart: nothing is given back of invoices that were given up."""
    lines = [(payer, rate, before, rate(before)) for payer, rate, before in rated]
    some = [
        before
        for _, _, before, line in lines
        if may_be_waived(line.totals.total, metered=line.billable.metered)
    ]
    uncharged = uncharged_among(session, some)
    for payer, rate, before, line in lines:
        given_up, credited = uncharged(before)
        for one in waive(rate, before, given_up, credited) if given_up or credited else [line]:
            yield payer, one


def earlier_of(session: Session, payers: Sequence[Payer]) -> Earlier:
    """Those that were billed before what is settled are left out: however long the history, these are few."""
    ids = [subscription.id for payer in payers for subscription in payer.subscriptions]
    lines = list(session.scalars(_UNSETTLED, {"ids": ids}))
    if manual := [line.billable.identity for payer in payers for line in payer.pending]:
        lines += session.scalars(select(InvoiceLine).where(InvoiceLine.identity.in_(manual)))
    found: dict[str, list[InvoiceLine]] = {}
    for line in sorted(lines, key=lambda line: (line.identity, line.sequence)):
        found.setdefault(line.identity, []).append(line)
    return found


_UNSETTLED = (
    select(InvoiceLine)
    .options(
        load_only(
            InvoiceLine.invoice_id,
            InvoiceLine.identity,
            InvoiceLine.sequence,
            InvoiceLine.subscription_id,
            InvoiceLine.phase_id,
            InvoiceLine.item_id,
            InvoiceLine.feature_id,
            InvoiceLine.share,
            InvoiceLine.period_end,
            InvoiceLine.service_start,
            InvoiceLine.service_end,
            InvoiceLine.billing_start,
            InvoiceLine.billing_end,
            InvoiceLine.invoice_at,
            InvoiceLine.usage,
            InvoiceLine.last,
            InvoiceLine.released_at,
            InvoiceLine.bill_again_at,
        )
    )
    .join(Subscription, InvoiceLine.subscription_id == Subscription.id)
    .where(
        among(Subscription.id, "ids"),
        or_(Subscription.settled_until.is_(None), InvoiceLine.service_start >= Subscription.settled_until),
    )
)


def _load_details(session: Session, lines: Sequence[InvoiceLine]) -> None:
    """What their charges came to, which most earlier lines are never asked."""
    if lines:
        session.scalars(_DETAILS, {"ids": [line.id for line in lines]}).all()


_DETAILS = (
    select(InvoiceLine)
    .options(load_only(InvoiceLine.details, InvoiceLine.taxes, InvoiceLine.rate_card))
    .where(among(InvoiceLine.id, "ids"))
)


def billables_of(payer: Payer, until: datetime, *, since: datetime | None = None) -> Iterable[Billable]:
    """All that begins from `since` to `until`; without `since`, all that is not settled."""
    for subscription in payer.subscriptions:
        for charge in charges(subscription.contract, since=since or subscription.settled_until, until=until):
            yield Billable.of(charge)
    yield from (line.billable for line in payer.pending)


def _asked(payer: Payer, one: Billable, earlier: Sequence[InvoiceLine], reach: Reach) -> bool:
    """Whether there may be something to bill: it is due, it is taken early, or it may have changed since."""
    if reach != "begun" and any(at > payer.at for at in _again(earlier)):
        return False
    counted = [line for line in earlier if line.released_at is None]
    if any(line.last for line in counted):
        late = one.metered and one.service.end <= payer.at - LATE
        return not late or len(counted) < len(earlier) or _is_cut_anew(one, counted[-1])
    if reach == "begun":
        return min(one.service.start, one.invoice_at) <= payer.at
    if reach == "used" and one.metered and one.service.start < payer.at:
        return True
    return collected_at(one.invoice_at, payer.profile.workflow) <= payer.at


def _again(earlier: Sequence[InvoiceLine]) -> list[datetime]:
    """From when on what was voided is billed again."""
    return [line.bill_again_at for line in earlier if line.bill_again_at is not None]


def _billed_by(lines: Sequence[InvoiceLine]) -> Usage | None:
    """What the last one was rated by."""
    return usage_from(lines[-1].usage) if lines else None


def _is_final(one: Billable, lines: Sequence[InvoiceLine]) -> bool:
    """Whether the last line said it all, as most do that are looked at again, if usage is what it was."""
    if not lines or not lines[-1].last or _is_cut_anew(one, lines[-1]):
        return False
    return all(line.released_at is None for line in lines)


def _is_cut_anew(one: Billable, billed: InvoiceLine) -> bool:
    """Whether the contract has changed since, so that it charges for another time, or sells another item
    from the same instant on."""
    return (one.service.end, str(one.share), one.item_id) != (
        billed.service_end,
        billed.share,
        billed.item_id,
    )


def collected_at(invoice_at: datetime, workflow: Workflow) -> datetime:
    """When a line that is due is collected: at once, or with the next recurrence of the profile's anchor."""
    alignment = workflow.collection.alignment
    if not isinstance(alignment, AnchoredAlignment):
        return invoice_at
    every = parse_interval(alignment.recurring_period.interval)
    period = every.period_of(alignment.recurring_period.anchor, invoice_at)
    return invoice_at if period.start == invoice_at else period.end


def _gone(
    payers: Sequence[Payer], earlier: Earlier, begun: Collection[str]
) -> list[tuple[Payer, str, Sequence[InvoiceLine]]]:
    """What was billed, and in which currency, for charges that the contract has no more, such as a period
    after it was cancelled."""
    signed = {
        subscription.id: (payer, subscription) for payer in payers for subscription in payer.subscriptions
    }
    gone = []
    for identity, lines in earlier.items():
        line = lines[-1]
        if identity in begun or line.subscription_id is None:
            continue
        payer, subscription = signed[line.subscription_id]
        if line.service_start <= payer.at or not _is_to_come(subscription, line):
            gone.append((payer, subscription.currency, lines))
    return gone


def _is_to_come(subscription: Subscription, line: InvoiceLine) -> bool:
    """What it bills lies ahead, and the contract still has it."""
    ahead = charges(subscription.contract, since=line.service_start, until=line.service_start)
    return any(one.identity == line.identity for one in ahead)


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


def used_by(
    session: Session,
    wanted: Sequence[tuple[Payer, Billable]],
    until: Sequence[datetime],
    billed: Sequence[Usage | None],
) -> list[Usage]:
    """What each used until then; `billed` is what the last line of each was rated by."""
    ids = {one.feature_id for _, one in wanted if one.feature_id}
    features = features_by_id(session, ids)
    demands = [
        Demand(
            customer_id=payer.customer.id,
            subjects=payer.customer.usage_subjects,
            feature=features[one.feature_id] if one.feature_id else None,
            price=one.price,
            period=_so_far(one.service, end),
            known=known,
        )
        for (payer, one), end, known in zip(wanted, until, billed, strict=True)
    ]
    return usage_of(session, demands)


def _so_far(service: Period, now: datetime) -> Period:
    return Period(start=service.start, end=max(service.start, min(service.end, now)))


def look_ahead(payers: Sequence[Payer], earlier: Earlier, billed: Collection[str]) -> None:
    """Note when each is to be looked at again, and from where on.

    `billed` charges have had their last line.
    """
    again = defaultdict[str | None, list[datetime]](list)
    for lines in earlier.values():
        again[lines[-1].subscription_id or lines[-1].identity] += _again(lines)
    for payer in payers:
        for signed in payer.subscriptions:
            _look_at_contract(signed, payer, billed, again[signed.id])
        for line in payer.pending:
            if line.next_billing_at is not None:
                line.next_billing_at = _next_look(payer, line.billable, again[line.billable.identity])


def _look_at_contract(
    subscription: Subscription, payer: Payer, billed: Collection[str], again: Iterable[datetime]
) -> None:
    now, contract = payer.at, subscription.contract
    horizon = contract.billing_cadence.after(now, 2)
    ahead = charges(contract, since=subscription.settled_until, until=horizon)
    unsettled = [one for one in ahead if one.period.end > now - LATE or one.identity not in billed]
    subscription.settled_until = min((one.period.start for one in unsettled), default=now)
    looks = [collected_at(one.invoice_at, payer.profile.workflow) for one in ahead]
    looks += again
    looks += [_late_look(one.period.end, now) for one in unsettled if one.metered and one.identity in billed]
    if subscription.status(now) != "inactive":
        looks.append(horizon)
    subscription.next_billing_at = min((at for at in looks if at > now), default=None)


def _next_look(payer: Payer, one: Billable, again: Iterable[datetime]) -> datetime | None:
    """At what was added by hand."""
    looks = [collected_at(one.invoice_at, payer.profile.workflow), *again]
    if one.metered:
        looks.append(_late_look(one.service.end, payer.at))
    return min((at for at in looks if at > payer.at), default=None)


def _late_look(end: datetime, now: datetime) -> datetime:
    """At usage of what ended then; not after `now` if there was a look two months later."""
    shortest, longest = TWO_MONTHS
    return now if now >= end + shortest else min(now + WAIT, end + longest)
