"""Why an invoice line bills what it bills: .../lines/{lineId}/explain; and .../replay, the proof of it.

From the sum in words down to the single event: price, detailed lines, the usage of each day, the events.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from api.http.auth import reader
from api.http.body import Body, ExactRoute
from api.http.events import read_cursor, written_cursor
from api.http.invoice_body import PeriodBody, period_body
from api.http.session import Snapshot
from billing.invoices.invoice import InvoiceLine
from billing.proof.explain import Change, EarlierLine, Explanation, Metered, explain_line
from billing.proof.replay import Difference, InvoiceReplay, replay_invoice
from billing.rating.rater import DetailedLine
from catalog.rate_card import RateCard
from metering.event_set import CountedEvent, EventDigest
from metering.exact import plain
from metering.period import Period
from metering.wire import Numeric

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/billing/invoices", tags=["Invoices"], route_class=ExactRoute)


class ExplainedDiscount(Body):
    reason: str
    amount: Numeric
    description: str


class ExplainedDetail(Body):
    """`sum` is the amount in words: `5 x 0.125 = 0.625, rounded to 0.63 (tier 2: above 10)`."""

    reference: str
    name: str
    category: Literal["regular", "commitment"]
    quantity: Numeric
    per_unit_amount: Numeric
    amount: Numeric
    discounts: list[ExplainedDiscount]
    total: Numeric
    sum: str


class ExplainedLine(Body):
    """`period` is what the line covers of `servicePeriod`, `share` the part of a full one that is charged for
    at a flat price. `quantity` is what it charges for, after conversion and usage discount, and
    `quantityBefore` what the lines before it did.
    """

    id: str
    name: str
    identity: str
    sequence: int
    last: bool
    period: PeriodBody
    service_period: PeriodBody
    share: str
    quantity: Numeric
    quantity_before: Numeric
    usage_discount: Numeric
    usage_discount_before: Numeric
    total: Numeric
    taxes: Numeric


class ExplainedEarlier(Body):
    """`counted`: the line is the difference to it; it is not when it was voided before."""

    invoice_id: str
    number: str
    line_id: str
    sequence: int
    period: PeriodBody
    counted: bool
    metered_quantity: Numeric | None = None
    total: Numeric


class UsageWindow(Body):
    from_: datetime = Field(alias="from")
    to: datetime
    value: Numeric


class DigestBody(Body):
    """Equal digests of equally many are the same events, in whatever order."""

    count: int
    digest: str


class ExplainedEvent(Body):
    """`value` is what the meter reads of it, absent where it can use nothing."""

    source: str
    id: str
    subject: str
    time: datetime
    stored_at: datetime
    voided_at: datetime | None = None
    value: str | None = None
    group_by: dict[str, str]


class ExplainedChange(Body):
    """The newest that count now and did not then, and the other way round; at most 100 of each."""

    came: list[ExplainedEvent]
    went: list[ExplainedEvent]


class ExplainedUsage(Body):
    """`quantity` is what was billed by. The events known at `asOf` come to `knownThen`, those of now to
    `knownNow`. `windows` are the days as of then; they sum to it where `addsUp`.
    """

    feature_key: str
    meter: str
    subjects: list[str]
    period: PeriodBody
    as_of: datetime | None = None
    quantity: Numeric
    known_then: Numeric
    known_now: Numeric
    windows: list[UsageWindow]
    adds_up: bool
    billed_events: DigestBody | None = None
    events_then: DigestBody | None = None
    events_now: DigestBody | None = None
    same_events: bool | None = None
    changes: ExplainedChange
    events: list[ExplainedEvent]
    next_cursor: str | None = None


class ExplanationBody(Body):
    invoice_id: str
    number: str
    status: str
    currency: str
    issued_at: datetime | None = None
    line: ExplainedLine
    rate_card: RateCard
    details: list[ExplainedDetail]
    earlier: list[ExplainedEarlier]
    usage: ExplainedUsage | None = None


@router.get("/{invoiceId}/lines/{lineId}/explain", operation_id="explainInvoiceLine", dependencies=[reader])
def explain(
    session: Snapshot,
    invoiceId: str,  # noqa: N803  the wire's name
    lineId: str,  # noqa: N803
    limit: Annotated[int, Query(ge=1, le=1000, description="events on the page")] = 100,
    cursor: Annotated[str | None, Query(description="the nextCursor of the page before")] = None,
) -> ExplanationBody:
    """From the price down to the events, which come a page at a time, the newest first."""
    found = explain_line(session, invoiceId, lineId, after=read_cursor(cursor), limit=limit + 1)
    return _explanation(found, limit)


def _explanation(found: Explanation, limit: int) -> ExplanationBody:
    invoice, line = found.invoice, found.line
    return ExplanationBody(
        invoice_id=invoice.id,
        number=invoice.number,
        status=invoice.status,
        currency=invoice.currency,
        issued_at=invoice.issued_at,
        line=_line(line),
        rate_card=line.rate_card,
        details=[_detail(detail) for detail in line.details],
        earlier=[_earlier(one) for one in found.earlier],
        usage=None if found.metered is None else _usage(found.metered, limit),
    )


def _line(line: InvoiceLine) -> ExplainedLine:
    return ExplainedLine(
        id=line.id,
        name=line.name,
        identity=line.identity,
        sequence=line.sequence,
        last=line.last,
        period=period_body(line.period),
        service_period=period_body(Period(start=line.service_start, end=line.service_end)),
        share=line.share,
        quantity=line.quantity,
        quantity_before=line.quantity_before,
        usage_discount=line.usage_discount,
        usage_discount_before=line.usage_discount_before,
        total=line.totals.total,
        taxes=line.totals.taxes,
    )


def _detail(detail: DetailedLine) -> ExplainedDetail:
    return ExplainedDetail(
        reference=detail.reference,
        name=detail.name,
        category=detail.category,
        quantity=detail.quantity,
        per_unit_amount=detail.per_unit_amount,
        amount=detail.amount,
        discounts=[
            ExplainedDiscount(reason=one.reason, amount=one.amount, description=one.description)
            for one in detail.discounts
        ],
        total=detail.total,
        sum=detail.description,
    )


def _earlier(one: EarlierLine) -> ExplainedEarlier:
    line, usage = one.line, one.line.usage
    return ExplainedEarlier(
        invoice_id=one.invoice.id,
        number=one.invoice.number,
        line_id=line.id,
        sequence=line.sequence,
        period=period_body(line.period),
        counted=one.counted,
        metered_quantity=usage["quantity"] if usage else None,
        total=line.totals.total,
    )


def _usage(found: Metered, limit: int) -> ExplainedUsage:
    page = found.events[:limit]
    return ExplainedUsage(
        feature_key=found.feature.key,
        meter=found.meter,
        subjects=list(found.subjects),
        period=period_body(found.period),
        as_of=found.as_of,
        quantity=found.quantity,
        known_then=found.known_then,
        known_now=found.known_now,
        windows=[
            UsageWindow(from_=row.window.start, to=row.window.end, value=row.value) for row in found.windows
        ],
        adds_up=found.adds_up,
        billed_events=_digest(found.billed),
        events_then=_digest(found.then),
        events_now=_digest(found.now),
        same_events=found.same_events,
        changes=_changes(found.change),
        events=_events(page),
        next_cursor=written_cursor(page[-1].cursor) if len(found.events) > limit else None,
    )


def _digest(found: EventDigest | None) -> DigestBody | None:
    return None if found is None else DigestBody(count=found.count, digest=found.digest)


def _changes(change: Change) -> ExplainedChange:
    return ExplainedChange(came=_events(change.came), went=_events(change.went))


def _events(events: Iterable[CountedEvent]) -> list[ExplainedEvent]:
    return [
        ExplainedEvent(
            source=event.source,
            id=event.id,
            subject=event.subject,
            time=event.time,
            stored_at=event.stored_at,
            voided_at=event.voided_at,
            value=event.value if event.value is None or isinstance(event.value, str) else plain(event.value),
            group_by=dict(event.group),
        )
        for event in events
    ]


# -- Replay --------------------------------------------------------------------------------------------------


class ReplayDifference(Body):
    what: str
    stored: str
    replayed: str


class ReplayedLine(Body):
    line_id: str
    name: str
    identity: str
    sequence: int
    total: Numeric
    identical: bool
    differences: list[ReplayDifference]


class ReplayBody(Body):
    """`identical`: to the last digit, the invoice and each of its lines."""

    invoice_id: str
    number: str
    currency: str
    total: Numeric
    identical: bool
    differences: list[ReplayDifference]
    lines: list[ReplayedLine]


@router.get("/{invoiceId}/replay", operation_id="replayInvoice", dependencies=[reader])
def replay(session: Snapshot, invoiceId: str) -> ReplayBody:  # noqa: N803  the wire's name
    """Compute an issued invoice again from what is stored with its lines, and compare."""
    return _replay(replay_invoice(session, invoiceId))


def _replay(found: InvoiceReplay) -> ReplayBody:
    return ReplayBody(
        invoice_id=found.invoice_id,
        number=found.number,
        currency=found.currency,
        total=found.total,
        identical=found.identical,
        differences=_differences(found.differences),
        lines=[
            ReplayedLine(
                line_id=line.line_id,
                name=line.name,
                identity=line.identity,
                sequence=line.sequence,
                total=line.total,
                identical=line.identical,
                differences=_differences(line.differences),
            )
            for line in found.lines
        ],
    )


def _differences(found: Sequence[Difference]) -> list[ReplayDifference]:
    return [ReplayDifference(what=one.what, stored=one.stored, replayed=one.replayed) for one in found]
