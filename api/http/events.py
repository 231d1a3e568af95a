"""Events as they are stored: /api/v1/events and, by cursor and with filters, /api/v2/events.

What can't be used is listed like any other event, and says why in `validationError`, a line for each reason.
"""

import base64
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query
from pydantic import StringConstraints
from sqlalchemy.orm import Session

from api.http.auth import reader
from api.http.body import Body, ExactRoute, Instant, WireResponse
from api.http.progress import announce
from api.http.session import Now, Snapshot
from billing.contracts.customer import customers_by_id, owners_of
from metering.errors import InvalidError, Issue
from metering.event_list import EventCursor, EventQuery, ListedEvent, list_events
from metering.filter_string import parse_filter
from metering.filter_time import FilterTime, parse_time_filter
from metering.meter import MeterDefinition
from metering.meters import list_meters
from metering.validation import data_of, problems_of

__all__ = ["read_cursor", "router", "written_cursor"]

router = APIRouter(tags=["Events"], route_class=ExactRoute)

Text = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
ClientId = Annotated[str | None, Query(alias="clientId", min_length=1, max_length=36)]
Limit = Annotated[int, Query(ge=1, le=100)]
MOST = 100
SHOWN = timedelta(days=32)
"""How far back the list of v1 goes unless it is told from when."""


class CloudEvent(Body):
    id: str
    source: str
    specversion: str
    type: str
    subject: str
    time: datetime
    dataschema: str | None = None
    data: dict[str, Any] | None = None


class IngestedEvent(Body):
    """`customerId` is who owns the subject now; `validationError` says why the event can't be billed."""

    event: CloudEvent
    customer_id: str | None = None
    validation_error: str | None = None
    ingested_at: datetime
    stored_at: datetime


class IngestedEventPage(Body):
    items: list[IngestedEvent]
    next_cursor: str | None = None


@router.get(
    "/api/v1/events", operation_id="listEvents", response_model=list[IngestedEvent], dependencies=[reader]
)
def list_v1(
    *,
    session: Snapshot,
    now: Now,
    client_id: ClientId = None,
    ingested_at_from: Annotated[Instant | None, Query(alias="ingestedAtFrom")] = None,
    ingested_at_to: Annotated[Instant | None, Query(alias="ingestedAtTo")] = None,
    id: Text | None = None,  # noqa: A002  the wire's name
    subject: Text | None = None,
    customer_id: Annotated[list[Text] | None, Query(alias="customerId", max_length=MOST)] = None,
    from_: Annotated[Instant | None, Query(alias="from")] = None,
    to: Instant | None = None,
    limit: Limit = 100,
) -> WireResponse:
    """The newest events by their time, of the last 32 days unless `from` says otherwise.

    `id` is a part of the id, `subject` all of it; a customer's events are those of its subjects and key.
    """
    announce(session, client_id)
    start = from_ or min(now, to or now) - SHOWN
    _require_order(start, to, "$.to")
    _require_order(ingested_at_from, ingested_at_to, "$.ingestedAtTo")
    named = None if subject is None else (subject,)
    query = EventQuery(
        limit=limit,
        id_part=id,
        subjects=_both(named, _subjects_of(session, customer_id or None, "$.customerId")),
        time=FilterTime(gte=start, lt=to),
        ingested_at=FilterTime(gte=ingested_at_from, lt=ingested_at_to),
    )
    return WireResponse(_items(session, list_events(session, query, now=now)))


@router.get(
    "/api/v2/events", operation_id="listEventsV2", response_model=IngestedEventPage, dependencies=[reader]
)
def list_v2(
    *,
    session: Snapshot,
    now: Now,
    client_id: ClientId = None,
    cursor: Annotated[str | None, Query(description="the nextCursor of the page before")] = None,
    limit: Limit = 100,
    filter: Annotated[str | None, Query(description="a JSON object, by field")] = None,  # noqa: A002
) -> WireResponse:
    """The newest events by their time, page by page.

    `filter` may hold `id`, `source`, `subject` and `type` (`{"$eq": ...}`, `$in`, `$like` and so on),
    `customerId` (`$in`), and `time` and `ingestedAt` (`$gt`, `$gte`, `$lt`, `$lte`, `$and`, `$or`).
    """
    announce(session, client_id)
    asked = replace(_filtered(session, filter), limit=limit + 1, after=read_cursor(cursor))
    found = list_events(session, asked, now=now)
    page = found[:limit]
    following = written_cursor(page[-1].cursor) if len(found) > limit else None
    return WireResponse({"items": _items(session, page), "nextCursor": following})


def _require_order(start: datetime | None, end: datetime | None, field: str) -> None:
    if start is not None and end is not None and start >= end:
        message = "from must be before to"
        raise InvalidError(message, Issue(code="empty_period", message=message, field=field))


def _both(first: tuple[str, ...] | None, second: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """What passes two filters by subject, of which each may be absent."""
    if first is None or second is None:
        return second if first is None else first
    return tuple(subject for subject in first if subject in second)


def _subjects_of(session: Session, customers: Sequence[str] | None, field: str) -> tuple[str, ...] | None:
    """The subjects of these customers, as they are now; None when none is asked for."""
    if customers is None:
        return None
    found = {id_: one for id_, one in customers_by_id(session, customers).items() if one.deleted_at is None}
    hint = "Name customers by id; a deleted one owns no subjects."
    issues = [
        Issue(code="customer_not_found", message=f"no customer {id_!r}", field=f"{field}[{i}]", hint=hint)
        for i, id_ in enumerate(customers)
        if id_ not in found
    ]
    if issues:
        raise InvalidError(issues[0].message, *issues)
    return tuple(subject for one in found.values() for subject in one.usage_subjects)


# -- The filter and the cursor of v2 -------------------------------------------------------------------------


_TEXTS, _TIMES = ("id", "source", "subject", "type"), ("time", "ingestedAt")


def _filtered(session: Session, sent: str | None) -> EventQuery:
    fields = _decoded_filter(sent)
    customers = fields.pop("customerId", None)
    ids = None if customers is None else _customer_ids(customers, "$.filter.customerId")
    texts = {name: parse_filter(_or_any(fields.pop(name, None)), f"$.filter.{name}") for name in _TEXTS}
    times = {name: parse_time_filter(_or_any(fields.pop(name, None)), f"$.filter.{name}") for name in _TIMES}
    if unknown := [name for name, value in fields.items() if value is not None]:
        raise _invalid_filter(f"{unknown[0]!r} is not a field to filter by", f"$.filter.{unknown[0]}")
    subjects = _subjects_of(session, ids, "$.filter.customerId.$in")
    return EventQuery(
        limit=MOST,
        subjects=subjects,
        id=texts["id"],
        source=texts["source"],
        subject=texts["subject"],
        type=texts["type"],
        time=times["time"],
        ingested_at=times["ingestedAt"],
    )


def _or_any(filter_: object) -> object:
    return {} if filter_ is None else filter_


def _decoded_filter(sent: str | None) -> dict[str, Any]:
    try:
        fields = json.loads(sent or "{}")
    except (ValueError, RecursionError) as error:
        raise _invalid_filter(f"this is not JSON: {error}", "$.filter") from None
    if not isinstance(fields, dict):
        raise _invalid_filter("a filter must be an object", "$.filter")
    return fields


def _customer_ids(sent: object, field: str) -> tuple[str, ...] | None:
    if not isinstance(sent, dict) or set(sent) - {"$in"}:
        raise _invalid_filter("customers are filtered by $in", field)
    ids = sent.get("$in")
    if ids is None:
        return None
    if not isinstance(ids, list) or len(ids) > MOST or not all(_is_id(one) for one in ids):
        raise _invalid_filter(f"this must be an array of at most {MOST} ids", f"{field}.$in")
    return tuple(ids)


def _is_id(sent: object) -> bool:
    return isinstance(sent, str) and re.fullmatch("[0-9A-Za-z]{1,64}", sent) is not None


def _invalid_filter(message: str, field: str) -> InvalidError:
    hint = 'For example {"subject": {"$eq": "kong-air"}}.'
    issue = Issue(code="invalid_filter", message=message, field=field, hint=hint)
    return InvalidError(f"{message} at {field}", issue)


def written_cursor(cursor: EventCursor) -> str:
    text = f"{cursor.time.astimezone(UTC).isoformat()},{cursor.key}"
    return base64.urlsafe_b64encode(text.encode()).decode()


def read_cursor(sent: str | None) -> EventCursor | None:
    """As written_cursor wrote it: what does not come out as it went in was made up."""
    if sent is None:
        return None
    try:
        time, _, key = base64.urlsafe_b64decode(sent).decode().partition(",")
        cursor = EventCursor(datetime.fromisoformat(time), uuid.UUID(key))
        if written_cursor(cursor) == sent:
            return cursor
    except (ValueError, OverflowError):
        pass
    message = "this is not a cursor that was given out"
    hint = "Send the nextCursor of the page before, or none for the first page."
    raise InvalidError(message, Issue(code="invalid_cursor", message=message, field="$.cursor", hint=hint))


# -- Answers -------------------------------------------------------------------------------------------------


def _items(session: Session, events: Sequence[ListedEvent]) -> list[Mapping[str, object]]:
    """With the customers and the meters of all of them read at once."""
    owners = owners_of(session, {event.subject for event in events})
    meters = [meter.definition for meter in list_meters(session)] if events else []
    return [_item(event, owners.get(event.subject), meters) for event in events]


def _item(
    event: ListedEvent, customer_id: str | None, meters: Sequence[MeterDefinition]
) -> Mapping[str, object]:
    errors = [problem.message for problem in problems_of(event.type, data_of(event.data), meters)]
    if customer_id is None:
        errors.append(f"no customer found for event subject: {event.subject}")
    if event.voided_at is not None:
        errors.append(f"the event is void since {event.voided_at.astimezone(UTC).isoformat()}")
    return {
        "event": {
            "id": event.id,
            "source": event.source,
            "specversion": event.specversion,
            "type": event.type,
            "subject": event.subject,
            "time": event.time,
            "dataschema": event.dataschema,
            "data": None if event.data is None else msgspec.Raw(event.data.encode()),
        },
        "customerId": customer_id,
        "validationError": "\n".join(dict.fromkeys(errors)) or None,
        "ingestedAt": event.ingested_at,
        "storedAt": event.stored_at,
    }
