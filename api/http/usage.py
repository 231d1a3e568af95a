"""Usage of a meter: /api/v1/meters/{idOrSlug}/query, and what it may be grouped by."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from pydantic import Field, PlainValidator, StringConstraints
from sqlalchemy.orm import Session
from starlette.responses import Response

from api.http.auth import reader
from api.http.body import Body, ExactRoute, Instant, WireResponse
from api.http.progress import ClientId, announce
from api.http.session import Now, Snapshot
from api.http.usage_csv import MEDIA_TYPE, usage_csv, wants_csv
from billing.contracts.customer import customers_by_id
from metering import meters
from metering.errors import InvalidError, Issue
from metering.filter_string import FilterString, parse_filters
from metering.meter import UsageQuery, UsageRow
from metering.meters import Meter
from metering.period import WindowSize
from metering.usage import query_usage, usage_groups

__all__ = ["Accept", "Conditions", "MeterQueryRequest", "query_of", "router"]

router = APIRouter(prefix="/api/v1/meters", tags=["Meters"], route_class=ExactRoute)

Text = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
MOST = 100
"""Subjects, customers and dimensions that one query may name."""
VALUES_PERIOD = timedelta(days=1)
ADVANCED = "$.advancedMeterGroupByFilters"


class FilterStringBody(Body):
    """All operators that are there must hold; `{}` holds always."""

    eq: str | None = Field(None, alias="$eq")
    ne: str | None = Field(None, alias="$ne")
    in_: list[str] | None = Field(None, alias="$in")
    nin: list[str] | None = Field(None, alias="$nin")
    like: str | None = Field(None, alias="$like", description="% is any text, _ any character, \\ escapes")
    nlike: str | None = Field(None, alias="$nlike")
    ilike: str | None = Field(None, alias="$ilike", description="like $like, A-Z and a-z being the same")
    nilike: str | None = Field(None, alias="$nilike")
    gt: str | None = Field(None, alias="$gt", description="by code point")
    gte: str | None = Field(None, alias="$gte")
    lt: str | None = Field(None, alias="$lt")
    lte: str | None = Field(None, alias="$lte")
    and_: list["FilterStringBody"] | None = Field(None, alias="$and")
    or_: list["FilterStringBody"] | None = Field(None, alias="$or")


def _conditions(sent: Any) -> dict[str, FilterString] | None:
    return None if sent is None else parse_filters(sent, ADVANCED)


Conditions = Annotated[
    dict[str, FilterString] | None,
    PlainValidator(_conditions, json_schema_input_type=dict[str, FilterStringBody] | None),
]


class MeterQueryRequest(Body):
    client_id: ClientId | None = None
    from_: Instant | None = Field(None, alias="from")
    to: Instant | None = None
    window_size: WindowSize | None = None
    window_time_zone: str = "UTC"
    subject: Annotated[list[Text], Field(max_length=MOST)] | None = None
    filter_customer_id: Annotated[list[Text], Field(max_length=MOST)] | None = None
    filter_group_by: dict[str, list[str]] | None = None
    advanced_meter_group_by_filters: Conditions = None
    group_by: Annotated[list[str], Field(max_length=MOST)] | None = None
    as_of: Instant | None = Field(None, description="what was known then; an extension of Tollgate")


class MeterQueryRow(Body):
    """`value` is a JSON number with all its digits."""

    value: Annotated[float, Field(description="exact: read it from its text where a float is too short")]
    window_start: datetime
    window_end: datetime
    subject: str | None
    customer_id: str | None = None
    group_by: dict[str, str | None]


class MeterQueryResult(Body):
    from_: datetime | None = Field(None, alias="from")
    to: datetime | None = None
    window_size: WindowSize | None = None
    data: list[MeterQueryRow]


_JSON_OR_CSV: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Usage. In CSV, an apostrophe stands before what a spreadsheet would run.",
        "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
    }
}
Accept = Annotated[str, Header(include_in_schema=False)]


@router.get(
    "/{meterIdOrSlug}/query",
    operation_id="queryMeter",
    response_model=MeterQueryResult,
    responses=_JSON_OR_CSV,
    dependencies=[reader],
)
def query_get(
    *,
    request: Request,
    session: Snapshot,
    meterIdOrSlug: str,  # noqa: N803  the wire's name
    accept: Accept = "",
    from_: Annotated[Instant | None, Query(alias="from")] = None,
    to: Instant | None = None,
    window_size: Annotated[WindowSize | None, Query(alias="windowSize")] = None,
    window_time_zone: Annotated[str, Query(alias="windowTimeZone")] = "UTC",
    subject: Annotated[list[Text] | None, Query(max_length=MOST)] = None,
    filter_customer_id: Annotated[list[Text] | None, Query(alias="filterCustomerId", max_length=MOST)] = None,
    advanced: Annotated[
        str | None,
        Query(alias="advancedMeterGroupByFilters", description="JSON: a FilterString for each dimension"),
    ] = None,
    group_by: Annotated[list[str] | None, Query(alias="groupBy", max_length=MOST)] = None,
    as_of: Annotated[Instant | None, Query(alias="asOf", description="what was known then")] = None,
    client_id: Annotated[ClientId | None, Query(alias="clientId")] = None,
) -> Response:
    """Usage, as JSON or CSV. Filter by `filterGroupBy[dimension]=value`, once for each value."""
    asked = MeterQueryRequest(
        client_id=client_id,
        from_=from_,
        to=to,
        window_size=window_size,
        window_time_zone=window_time_zone,
        subject=subject,
        filter_customer_id=filter_customer_id,
        filter_group_by=_filters(request.query_params.multi_items()),
        advanced_meter_group_by_filters=_decoded(advanced),
        group_by=group_by,
        as_of=as_of,
    )
    return _answer(session, meterIdOrSlug, asked, csv=wants_csv(accept))


@router.post(
    "/{meterIdOrSlug}/query",
    operation_id="queryMeterPost",
    response_model=MeterQueryResult,
    responses=_JSON_OR_CSV,
    dependencies=[reader],
)
def query_post(
    session: Snapshot,
    meterIdOrSlug: str,  # noqa: N803
    body: MeterQueryRequest | None = None,
    accept: Accept = "",
) -> Response:
    return _answer(session, meterIdOrSlug, body or MeterQueryRequest(), csv=wants_csv(accept))


@router.get("/{meterIdOrSlug}/subjects", operation_id="listMeterSubjects", dependencies=[reader])
def subjects(
    session: Snapshot,
    meterIdOrSlug: str,  # noqa: N803
    from_: Annotated[Instant | None, Query(alias="from")] = None,
    to: Instant | None = None,
) -> list[str]:
    """The subjects that have usage in the period, or ever."""
    meter = meters.get_meter(session, meterIdOrSlug)
    return usage_groups(session, meter.definition, UsageQuery(start=from_, end=to), "subject")


@router.get(
    "/{meterIdOrSlug}/group-by/{groupByKey}/values",
    operation_id="listMeterGroupByValues",
    dependencies=[reader],
)
def group_by_values(
    *,
    session: Snapshot,
    now: Now,
    meterIdOrSlug: str,  # noqa: N803
    groupByKey: str,  # noqa: N803
    from_: Annotated[Instant | None, Query(alias="from")] = None,
    to: Instant | None = None,
) -> list[str]:
    """The values that a dimension has in a period of any length and age; without `from`, in its last day."""
    meter = meters.get_meter(session, meterIdOrSlug)
    if groupByKey not in meter.group_by:
        raise _unknown_dimension(meter, groupByKey)
    period = UsageQuery(start=from_ or (to or now) - VALUES_PERIOD, end=to)
    return usage_groups(session, meter.definition, period, groupByKey)


def _unknown_dimension(meter: Meter, name: str) -> InvalidError:
    message = f"unknown group by: {name}"
    hint = f"This meter's dimensions: {', '.join(sorted(meter.group_by)) or 'none'}."
    return InvalidError(
        message, Issue(code="unknown_group_by", message=message, field="$.groupByKey", hint=hint)
    )


def _filters(parameters: list[tuple[str, str]]) -> dict[str, list[str]]:
    """The deepObject filterGroupBy[key]=value."""
    filters: dict[str, list[str]] = {}
    for name, value in parameters:
        if name.startswith("filterGroupBy[") and name.endswith("]"):
            filters.setdefault(name[len("filterGroupBy[") : -1], []).append(value)
    return filters


def _decoded(filters: str | None) -> Any:
    """The JSON in a parameter of the URL."""
    try:
        return None if filters is None else json.loads(filters)
    except (ValueError, RecursionError) as error:
        message = f"this is not JSON: {error}"
        hint = 'For example {"model":{"$like":"gpt-%"}}, percent-encoded.'
        issue = Issue(code="malformed_json", message=message, field=ADVANCED, hint=hint)
        raise InvalidError(f"{ADVANCED} is not JSON: {error}", issue) from None


def _answer(session: Session, id_or_slug: str, asked: MeterQueryRequest, *, csv: bool) -> Response:
    meter = meters.get_meter(session, id_or_slug)
    query = query_of(session, asked)
    announce(session, asked.client_id)
    rows = query_usage(session, meter.definition, query)
    return _csv(meter, query, rows) if csv else _json(asked, rows)


def query_of(session: Session, asked: MeterQueryRequest) -> UsageQuery:
    """The question that is asked, its customers as they are now."""
    _require_one_kind_of_filter(asked)
    customers = _owners(session, asked.filter_customer_id or ())
    return UsageQuery(
        start=asked.from_,
        end=asked.to,
        window_size=asked.window_size,
        zone=asked.window_time_zone,
        subjects=tuple(asked.subject) if asked.subject else None,
        filters={name: tuple(values) for name, values in (asked.filter_group_by or {}).items()},
        conditions=asked.advanced_meter_group_by_filters or {},
        customers=customers,
        group_by=_group_by(asked, customers),
        as_of=asked.as_of,
    )


def _require_one_kind_of_filter(asked: MeterQueryRequest) -> None:
    if asked.filter_group_by and asked.advanced_meter_group_by_filters:
        message = "filterGroupBy and advancedMeterGroupByFilters can't be used together"
        hint = "Say it all in advancedMeterGroupByFilters: filterGroupBy is an $in."
        raise InvalidError(
            message, Issue(code="exclusive_filters", message=message, field=ADVANCED, hint=hint)
        )


def _owners(session: Session, ids: Sequence[str]) -> dict[str, str] | None:
    """The subjects of these customers, as they are now, and whose each is; None when none is asked for."""
    if not ids:
        return None
    found = {id_: one for id_, one in customers_by_id(session, ids).items() if one.deleted_at is None}
    issues = [
        Issue(
            code="customer_not_found",
            message=f"no customer {id_!r}",
            field=f"$.filterCustomerId[{i}]",
            hint="Name customers by id; a deleted one owns no subjects.",
        )
        for i, id_ in enumerate(ids)
        if id_ not in found
    ]
    if issues:
        raise InvalidError(issues[0].message, *issues)
    return {subject: one.id for one in found.values() for subject in one.usage_subjects}


def _group_by(asked: MeterQueryRequest, customers: Mapping[str, str] | None) -> tuple[str, ...]:
    """Customers, and several subjects, are told apart even where it is not said, as OpenMeter does."""
    names = tuple(dict.fromkeys(asked.group_by or ()))
    if customers is None and "customer_id" in names:
        message = "grouping by customer_id needs filterCustomerId"
        hint = "Say which customers, at most 100; or group by subject."
        raise InvalidError(
            message, Issue(code="customers_required", message=message, field="$.groupBy", hint=hint)
        )
    if customers is not None and "customer_id" not in names:
        names = ("customer_id", *names)
    if len(asked.subject or ()) > 1 and "subject" not in names:
        names = ("subject", *names)
    return names


def _json(asked: MeterQueryRequest, rows: Sequence[UsageRow]) -> Response:
    answer = {
        "from": asked.from_,
        "to": asked.to,
        "windowSize": asked.window_size,
        "data": [_row(row) for row in rows],
    }
    return WireResponse(answer, headers={"Vary": "Accept"})


def _row(row: UsageRow) -> Mapping[str, object]:
    dimensions = dict(row.group)
    return {
        "value": row.value,
        "windowStart": row.window.start,
        "windowEnd": row.window.end,
        "subject": dimensions.pop("subject", None),
        "customerId": dimensions.pop("customer_id", None),
        "groupBy": dimensions,
    }


def _csv(meter: Meter, query: UsageQuery, rows: Sequence[UsageRow]) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{meter.slug}.csv"', "Vary": "Accept"}
    return Response(usage_csv(rows, query.group_by), headers=headers, media_type=MEDIA_TYPE)
