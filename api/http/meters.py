"""Meters: /api/v1/meters; their usage is in api/http/usage.py."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import StringConstraints
from sqlalchemy.orm import Session

from api.http.auth import admin, reader
from api.http.body import RESOURCE, Body, ExactRoute, Instant, Key, Metadata, PageNumber, PageSize
from api.http.session import Now, Transaction
from billing.invoices.meter_changes import update_meter
from catalog import features
from metering import meters
from metering.errors import InvalidError, Issue
from metering.ids import is_ulid
from metering.meter import Aggregation, MeterDefinition
from metering.meters import Meter

__all__ = ["MeterCreate", "create_from", "router"]

router = APIRouter(prefix="/api/v1/meters", tags=["Meters"], route_class=ExactRoute)

Text = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]


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


MeterOrderBy = Literal["key", "name", "aggregation", "createdAt", "updatedAt"]
_ORDER: Mapping[MeterOrderBy, str] = {
    "key": "slug",
    "name": "name",
    "aggregation": "aggregation",
    "createdAt": "created_at",
    "updatedAt": "updated_at",
}


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
    *,
    session: Transaction,
    order: Literal["ASC", "DESC"] = "ASC",
    order_by: Annotated[MeterOrderBy, Query(alias="orderBy")] = "key",
    page: PageNumber | None = None,
    page_size: Annotated[PageSize | None, Query(alias="pageSize", ge=1, le=1000)] = None,
    include_deleted: Annotated[bool, Query(alias="includeDeleted")] = False,
) -> list[MeterBody]:
    """All meters by slug, or one page of them when `page` or `pageSize` is given."""
    found = [_body(meter) for meter in meters.list_meters(session, include_deleted=include_deleted)]
    found.sort(key=lambda body: getattr(body, _ORDER[order_by]), reverse=order == "DESC")
    if page is None and page_size is None:
        return found
    size = page_size or 100
    return found[((page or 1) - 1) * size :][:size]


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
    meter = update_meter(
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
