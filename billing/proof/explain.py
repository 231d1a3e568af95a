"""Why a line bills what it bills: its price, the usage by days, the events behind it, the lines before it.

The digest that each metered line was given when its invoice was issued says whether today's events are those
that were billed; and which have come or gone since is listed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

from sqlalchemy import select
from sqlalchemy.orm import Session

from billing.contracts.customer import customers_by_id
from billing.invoices.invoice import Invoice, InvoiceLine, get_invoice, lines_by_identity
from billing.invoices.pinned_events import asked_of
from billing.proof.replay import counted_before
from billing.rating.billable import usage_from
from billing.rating.metered import ADDITIVE
from catalog.features import Feature, features_by_id
from metering.errors import NotFoundError
from metering.event_list import EventCursor
from metering.event_set import Asked, CountedEvent, EventDigest, changed_events, counted_events, digests_of
from metering.exact import total
from metering.meter import UsageQuery, UsageRow
from metering.period import Period, WindowSize
from metering.usage import query_usage

__all__ = [
    "Change",
    "EarlierLine",
    "Explanation",
    "LineNotFoundError",
    "Metered",
    "explain_line",
]

CHANGES = 100
"""Events that came, and as many that went, are told one by one."""


class LineNotFoundError(NotFoundError):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierLine:
    """A line of the same charge; `counted`: the explained one is the difference to it."""

    line: InvoiceLine
    invoice: Invoice
    counted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is counted now and was not then, and the other way round; the newest, at most CHANGES of each."""

    came: Sequence[CountedEvent]
    went: Sequence[CountedEvent]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    """The usage of `period`, as it was known at `as_of` (None: as it is known now, of a draft).

    `quantity` is what the line was rated by, `known_then` what the events of then come to, `known_now` those
    of now. `windows` are the days of then; they `add_up` unless the meter takes a maximum or the like.
    `billed` is the digest that was stored when the invoice was issued.
    """

    feature: Feature
    meter: str
    subjects: Sequence[str]
    period: Period
    as_of: datetime | None
    quantity: Decimal
    known_then: Decimal
    known_now: Decimal
    windows: Sequence[UsageRow]
    adds_up: bool
    billed: EventDigest | None
    then: EventDigest | None
    now: EventDigest | None
    change: Change
    events: Sequence[CountedEvent]

    @property
    def same_events(self) -> bool | None:
        """Whether today's events are those that were billed; None: nothing was stored to tell it by."""
        return None if self.billed is None or self.now is None else self.billed == self.now


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    invoice: Invoice
    line: InvoiceLine
    earlier: Sequence[EarlierLine]
    metered: Metered | None


def explain_line(
    session: Session, invoice_id: str, line_id: str, *, after: EventCursor | None = None, limit: int = 100
) -> Explanation:
    """`limit` events at most, the newest first; `after` goes on behind that place."""
    invoice = get_invoice(session, invoice_id)
    line = next((one for one in invoice.lines if one.id == line_id), None)
    if line is None:
        raise LineNotFoundError(f"invoice {invoice.number} has no line {line_id!r}")
    return Explanation(
        invoice=invoice,
        line=line,
        earlier=_earlier(session, line),
        metered=_metered(session, invoice, line, after, limit),
    )


def _earlier(session: Session, line: InvoiceLine) -> list[EarlierLine]:
    siblings = lines_by_identity(session, [line.identity])[line.identity]
    counted = {one.id for one in counted_before(line, siblings)}
    before = [one for one in siblings if one.sequence < line.sequence]
    found = session.scalars(select(Invoice).where(Invoice.id.in_({one.invoice_id for one in before})))
    invoices = {one.id: one for one in found}
    return [
        EarlierLine(line=one, invoice=invoices[one.invoice_id], counted=one.id in counted) for one in before
    ]


# -- Usage and events ----------------------------------------------------------------------------------------


def _metered(
    session: Session, invoice: Invoice, line: InvoiceLine, after: EventCursor | None, limit: int
) -> Metered | None:
    customer = customers_by_id(session, [invoice.customer_id])[invoice.customer_id]
    features = features_by_id(session, [line.feature_id] if line.feature_id else [])
    asked = asked_of(invoice, line, customer, features)
    if asked is None or line.feature_id is None:
        return None
    then, now = digests_of(session, [asked, _as_of_now(asked)])
    aggregation = asked.meter.aggregation
    return Metered(
        feature=features[line.feature_id],
        meter=_slug(features[line.feature_id]),
        subjects=asked.subjects,
        period=asked.period,
        as_of=asked.as_of,
        quantity=usage_from(line.usage).quantity,
        known_then=total(row.value for row in _usage(session, asked)),
        known_now=total(row.value for row in _usage(session, _as_of_now(asked))),
        windows=_usage(session, asked, "DAY"),
        adds_up=aggregation in ADDITIVE,
        billed=line.billed_events,
        then=then,
        now=now,
        change=_change(session, asked),
        events=counted_events(session, asked, after=after, limit=limit),
    )


def _slug(feature: Feature) -> str:
    assert feature.meter is not None  # noqa: S101  it is metered
    return feature.meter.slug


def _as_of_now(asked: Asked) -> Asked:
    return replace(asked, as_of=None)


def _usage(session: Session, asked: Asked, window_size: WindowSize | None = None) -> list[UsageRow]:
    """Without windows one row at most."""
    query = UsageQuery(
        start=asked.period.start,
        end=asked.period.end,
        window_size=window_size,
        subjects=asked.subjects,
        conditions=asked.conditions,
        as_of=asked.as_of,
    )
    return query_usage(session, asked.meter, query) if asked.period.length else []


def _change(session: Session, asked: Asked) -> Change:
    """Nothing has changed since now."""
    if asked.as_of is None:
        return Change(came=(), went=())
    return Change(
        came=changed_events(session, asked, limit=CHANGES, came=True),
        went=changed_events(session, asked, limit=CHANGES, came=False),
    )
