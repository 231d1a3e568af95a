"""Meters and their usage: /api/v1/meters."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import Field, StringConstraints
from sqlalchemy.orm import Session

from api.http.auth import admin, reader
from api.http.body import RESOURCE, Body, ExactRoute, Instant, Key, Metadata, WireResponse
from api.http.session import Now, Snapshot, Transaction
from catalog import features
from metering import meters
from metering.errors import InvalidError, Issue
from metering.ids import is_ulid
from metering.meter import Aggregation, MeterDefinition, UsageQuery, UsageRow
from metering.meters import Meter
from metering.period import WindowSize
from metering.usage import query_usage

__all__ = ["MeterCreate", "create_from", "router"]

router = APIRouter(prefix="/api/v1/meters", tags=["Meters"], route_class=ExactRoute)

Text = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
MAX_SUBJECTS = 100


class MeterUpdate(Body):
    READ_ONLY = RESOURCE

    name: Name | None = None
    description: Annotated[str, StringConstraints(max_length=1024)] | None = None
    metadata: Metadata | None = None
    group_by: dict[str, str] | None = None


class MeterCreate(MeterUpdate):
    slug: Key
    aggregation: Aggregation
    event_type: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    event_from: Instant | None = None
    value_property: Text | None = None


class MeterBody(MeterCreate):
    READ_ONLY = frozenset()

    event_from: datetime | None = None
    id: str
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None = None


class MeterQueryRequest(Body):
    client_id: Annotated[str, StringConstraints(min_length=1, max_length=36)] | None = None
    from_: Instant | None = Field(None, alias="from")
    to: Instant | None = None
    window_size: WindowSize | None = None
    window_time_zone: str = "UTC"
    subject: Annotated[list[Text], Field(max_length=MAX_SUBJECTS)] | None = None
    filter_group_by: dict[str, list[str]] | None = None
    group_by: Annotated[list[str], Field(max_length=100)] | None = None


class MeterQueryRow(Body):
    """`value` is a JSON number with all its digits."""

    value: Annotated[float, Field(description="exact: read it from its text where a float is too short")]
    window_start: datetime
    window_end: datetime
    subject: str | None
    group_by: dict[str, str | None]


class MeterQueryResult(Body):
    from_: datetime | None = Field(None, alias="from")
    to: datetime | None = None
    window_size: WindowSize | None = None
    data: list[MeterQueryRow]


def _body(meter: Meter) -> MeterBody:
    return MeterBody(
        id=meter.id,
        slug=meter.slug,
        name=meter.name or meter.slug,
        description=meter.description,
        metadata=meter.metadata_,
        aggregation=meter.aggregation,
        event_type=meter.event_type,
        event_from=meter.event_from,
        value_property=meter.value_property,
        group_by=meter.group_by,
        created_at=meter.created_at,
        updated_at=meter.updated_at,
        deleted_at=meter.deleted_at,
    )


@router.get("", operation_id="listMeters", dependencies=[reader])
def list_all(
    session: Transaction, include_deleted: Annotated[bool, Query(alias="includeDeleted")] = False
) -> list[MeterBody]:
    """All meters by slug."""
    return [_body(meter) for meter in meters.list_meters(session, include_deleted=include_deleted)]


@router.post("", operation_id="createMeter", status_code=201, dependencies=[admin])
def create(session: Transaction, now: Now, body: MeterCreate) -> MeterBody:
    return _body(create_from(session, body, now=now))


def create_from(session: Session, body: MeterCreate, *, now: datetime) -> Meter:
    """The new meter that a body describes."""
    if is_ulid(body.slug):
        message = "a slug can't look like an id"
        raise InvalidError(message, Issue(code="invalid_key", message=message, field="$.slug"))
    definition = MeterDefinition(
        event_type=body.event_type,
        aggregation=body.aggregation,
        value_property=body.value_property,
        group_by=body.group_by or {},
        event_from=body.event_from,
    )
    return meters.create_meter(
        session,
        slug=body.slug,
        definition=definition,
        name=body.name,
        description=body.description,
        metadata=body.metadata,
        now=now,
    )


@router.get("/{meterIdOrSlug}", operation_id="getMeter", dependencies=[reader])
def get(session: Transaction, meterIdOrSlug: str) -> MeterBody:  # noqa: N803  the wire's name
    return _body(meters.get_meter(session, meterIdOrSlug))


@router.put("/{meterIdOrSlug}", operation_id="updateMeter", dependencies=[admin])
def update(session: Transaction, now: Now, meterIdOrSlug: str, body: MeterUpdate) -> MeterBody:  # noqa: N803
    """Replace name, description, metadata and dimensions; new dimensions hold for past events too."""
    meter = features.update_meter(
        session,
        meterIdOrSlug,
        name=body.name,
        description=body.description,
        metadata=body.metadata,
        group_by=body.group_by or {},
        now=now,
    )
    return _body(meter)


@router.delete("/{meterIdOrSlug}", operation_id="deleteMeter", status_code=204, dependencies=[admin])
def delete(session: Transaction, now: Now, meterIdOrSlug: str) -> None:  # noqa: N803
    """The events stay; refused while a feature uses the meter."""
    features.delete_meter(session, meterIdOrSlug, now=now)


@router.get(
    "/{meterIdOrSlug}/query",
    operation_id="queryMeter",
    response_model=MeterQueryResult,
    dependencies=[reader],
)
def query_get(
    *,
    request: Request,
    session: Snapshot,
    meterIdOrSlug: str,  # noqa: N803
    from_: Annotated[Instant | None, Query(alias="from")] = None,
    to: Instant | None = None,
    window_size: Annotated[WindowSize | None, Query(alias="windowSize")] = None,
    window_time_zone: Annotated[str, Query(alias="windowTimeZone")] = "UTC",
    subject: Annotated[list[Text] | None, Query(max_length=MAX_SUBJECTS)] = None,
    group_by: Annotated[list[str] | None, Query(alias="groupBy", max_length=100)] = None,
    client_id: Annotated[str | None, Query(alias="clientId", min_length=1, max_length=36)] = None,
) -> WireResponse:
    """Usage. Filter by `filterGroupBy[dimension]=value`, once for each dimension."""
    asked = MeterQueryRequest(
        client_id=client_id,
        from_=from_,
        to=to,
        window_size=window_size,
        window_time_zone=window_time_zone,
        subject=subject,
        filter_group_by=_filters(request.query_params.multi_items()),
        group_by=group_by,
    )
    return _answer(session, meterIdOrSlug, asked)


@router.post(
    "/{meterIdOrSlug}/query",
    operation_id="queryMeterPost",
    response_model=MeterQueryResult,
    dependencies=[reader],
)
def query_post(session: Snapshot, meterIdOrSlug: str, body: MeterQueryRequest) -> WireResponse:  # noqa: N803
    return _answer(session, meterIdOrSlug, body)


def _filters(parameters: list[tuple[str, str]]) -> dict[str, list[str]]:
    """The deepObject filterGroupBy[key]=value."""
    filters: dict[str, list[str]] = {}
    for name, value in parameters:
        if name.startswith("filterGroupBy[") and name.endswith("]"):
            filters.setdefault(name[len("filterGroupBy[") : -1], []).append(value)
    return filters


def _answer(session: Snapshot, id_or_slug: str, asked: MeterQueryRequest) -> WireResponse:
    meter = meters.get_meter(session, id_or_slug)
    rows = query_usage(session, meter.definition, _query(asked))
    return WireResponse(
        {
            "from": asked.from_,
            "to": asked.to,
            "windowSize": asked.window_size,
            "data": [_row(row) for row in rows],
        }
    )


def _query(asked: MeterQueryRequest) -> UsageQuery:
    group_by = tuple(dict.fromkeys(asked.group_by or ()))
    subjects = tuple(asked.subject) if asked.subject else None
    if subjects and len(subjects) > 1 and "subject" not in group_by:
        group_by = ("subject", *group_by)  # as OpenMeter does: several subjects are told apart
    return UsageQuery(
        start=asked.from_,
        end=asked.to,
        window_size=asked.window_size,
        zone=asked.window_time_zone,
        subjects=subjects,
        filters={name: tuple(values) for name, values in (asked.filter_group_by or {}).items()},
        group_by=group_by,
    )


def _row(row: UsageRow) -> Mapping[str, object]:
    dimensions = dict(row.group)
    return {
        "value": row.value,
        "windowStart": row.window.start,
        "windowEnd": row.window.end,
        "subject": dimensions.pop("subject", None),
        "groupBy": dimensions,
    }
