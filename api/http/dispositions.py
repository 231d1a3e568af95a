"""What becomes of events: /api/v1/events/disposition for one, /api/v1/events/unbilled for all that leak."""

from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field, StringConstraints

from api.http.auth import reader
from api.http.body import Body, ExactRoute, Instant, Page, PageNumber, PageSize, page_of
from api.http.session import Now, Snapshot
from billing.proof.disposition import UNBILLED, Disposition, Reason, Term
from billing.proof.dispositions import disposition_of
from billing.proof.unbilled import UnbilledGroup, UnbilledQuery, list_unbilled
from metering.errors import InvalidError, Issue
from metering.period import Period

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/events", tags=["Events"], route_class=ExactRoute)

Name = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
LAST = timedelta(days=1)


class BilledBy(Body):
    subscription_id: str
    subscription_item_id: str
    feature_key: str


class DispositionBody(Body):
    """`reason` is there when the event is on no invoice, `billedBy` is empty then."""

    source: str
    id: str
    meters: list[str]
    customer_id: str | None = None
    billed_by: list[BilledBy]
    reason: Reason | None = None


class Sample(Body):
    source: str
    id: str


class UnbilledEvents(Body):
    reason: Reason
    type: str
    subject: str
    customer_id: str | None = None
    events: int
    first_time: datetime
    last_time: datetime
    sample: Sample


class UnbilledPage(Page):
    """`totalCount` counts the groups, `totalEvents` the events in them."""

    from_: datetime = Field(alias="from")
    to: datetime
    total_events: int
    items: list[UnbilledEvents]


@router.get("/disposition", operation_id="getEventDisposition", dependencies=[reader])
def get(session: Snapshot, source: Name, id: Name) -> DispositionBody:  # noqa: A002  the wire's name
    """Which meters count one event, who owns its subject, what charges for it, or why nothing does."""
    found = disposition_of(session, source=source, event_id=id)
    return _disposition(source, id, found)


def _disposition(source: str, event_id: str, found: Disposition) -> DispositionBody:
    return DispositionBody(
        source=source,
        id=event_id,
        meters=list(found.meters),
        customer_id=found.customer_id,
        billed_by=[_billed_by(term) for term in found.billed_by],
        reason=found.reason,
    )


def _billed_by(term: Term) -> BilledBy:
    return BilledBy(
        subscription_id=term.subscription_id,
        subscription_item_id=term.item_id or "",
        feature_key=term.feature_key or "",
    )


@router.get("/unbilled", operation_id="listUnbilledEvents", dependencies=[reader])
def list_all(
    *,
    session: Snapshot,
    now: Now,
    from_: Annotated[Instant | None, Query(alias="from")] = None,
    to: Instant | None = None,
    reason: Annotated[list[Reason] | None, Query()] = None,
    type: Name | None = None,  # noqa: A002  the wire's name
    subject: Name | None = None,
    page: PageNumber = 1,
    page_size: PageSize = 100,
) -> UnbilledPage:
    """Events whose time lies between `from` and `to` (the last 24 hours) that no invoice will show.

    They are grouped by reason, type and subject, most events first. What was decided on purpose (`voided`
    events, and usage `included` in a free or flat rate card) is listed only when its reason is asked for.
    """
    period = _period(from_, to, now)
    query = UnbilledQuery(
        period=period, reasons=tuple(reason) if reason else UNBILLED, event_type=type, subject=subject
    )
    found = list_unbilled(session, query, **page_of(page, page_size))
    return UnbilledPage(
        from_=period.start,
        to=period.end,
        total_events=found.events,
        total_count=found.count,
        page=page,
        page_size=page_size,
        items=[_group(group) for group in found.groups],
    )


def _period(start: datetime | None, end: datetime | None, now: datetime) -> Period:
    end = end or now
    start = start or end - LAST
    if start >= end:
        message = "from must be before to"
        raise InvalidError(message, Issue(code="empty_period", message=message, field="$.to"))
    return Period(start=start, end=end)


def _group(group: UnbilledGroup) -> UnbilledEvents:
    return UnbilledEvents(
        reason=group.reason,
        type=group.type,
        subject=group.subject,
        customer_id=group.customer_id,
        events=group.events,
        first_time=group.first,
        last_time=group.last,
        sample=Sample(source=group.sample_source, id=group.sample_id),
    )
