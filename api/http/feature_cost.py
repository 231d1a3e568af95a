"""What usage of a feature cost: /api/v1/features/{featureId}/cost/query."""

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from api.http.auth import reader
from api.http.body import Body, ExactRoute, WireResponse, decimal_text
from api.http.progress import announce
from api.http.session import Snapshot
from api.http.usage import Accept, MeterQueryRequest, query_of
from api.http.usage_csv import MEDIA_TYPE, harmless, instant_text, wants_csv
from billing.reports.feature_cost import CURRENCY, FeatureCost, feature_costs
from catalog.features import get_feature
from metering.period import WindowSize
from metering.wire import Numeric

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/features", tags=["Features"], route_class=ExactRoute)


class FeatureCostQueryRow(Body):
    """`detail` says why a cost is not known. Revenue is without taxes, in `revenueCurrency`."""

    usage: Numeric
    cost: Numeric | None
    currency: str
    detail: str | None = None
    revenue: Numeric | None = None
    revenue_currency: str | None = None
    margin: Numeric | None = Field(None, description="revenue less cost, where both are in one currency")
    from_: datetime = Field(alias="from")
    to: datetime
    dimensions: dict[str, str]


class FeatureCostQueryResult(Body):
    from_: datetime | None = Field(None, alias="from")
    to: datetime | None = None
    window_size: WindowSize | None = None
    data: list[FeatureCostQueryRow]


_JSON_OR_CSV: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Costs. In CSV, an apostrophe stands before what a spreadsheet would run.",
        "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
    }
}


@router.post(
    "/{featureId}/cost/query",
    operation_id="queryFeatureCost",
    response_model=FeatureCostQueryResult,
    responses=_JSON_OR_CSV,
    dependencies=[reader],
)
def query(
    session: Snapshot,
    featureId: str,  # noqa: N803  the wire's name
    body: MeterQueryRequest | None = None,
    accept: Accept = "",
) -> Response:
    """Usage as in a meter query, and what it cost, exact and not rounded.

    With customers in `filterCustomerId`, both `from` and `to`, and nothing else that narrows or cuts, also
    what each customer's charges of the feature came to in the period, and the margin.
    """
    asked = body or MeterQueryRequest()
    feature = get_feature(session, featureId)
    question = query_of(session, asked)
    announce(session, asked.client_id)
    rows = feature_costs(session, feature, question, customer_ids=asked.filter_customer_id or ())
    if wants_csv(accept):
        headers = {"Content-Disposition": f'attachment; filename="{feature.key}-cost.csv"', "Vary": "Accept"}
        table = _csv([_row(row) for row in rows], question.group_by)
        return Response(table, headers=headers, media_type=MEDIA_TYPE)
    answer = {"from": asked.from_, "to": asked.to, "windowSize": asked.window_size}
    return WireResponse(answer | {"data": [_row(row) for row in rows]}, headers={"Vary": "Accept"})


def _row(found: FeatureCost) -> dict[str, Any]:
    usage, revenue = found.row.usage, found.revenue
    return {
        "usage": decimal_text(usage.value),
        "cost": None if found.row.cost is None else decimal_text(found.row.cost),
        "currency": CURRENCY,
        "detail": found.row.detail,
        "revenue": None if revenue is None else decimal_text(revenue.amount),
        "revenueCurrency": None if revenue is None else revenue.currency,
        "margin": None if found.margin is None else decimal_text(found.margin),
        "from": usage.window.start,
        "to": usage.window.end,
        "dimensions": dict(usage.group),
    }


_AMOUNTS = ("usage", "cost", "currency", "revenue", "revenueCurrency", "margin")
_COLUMNS = ("usage", "cost", "currency", "revenue", "revenue_currency", "margin")


def _csv(rows: Sequence[Mapping[str, Any]], group_by: Sequence[str]) -> str:
    """RFC 4180, with a header; what is not known is empty."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["from", "to", *group_by, *_COLUMNS, "detail"])
    for row in rows:
        period = [instant_text(row["from"]), instant_text(row["to"])]
        groups = [harmless(row["dimensions"][name]) for name in group_by]
        amounts = ["" if row[name] is None else row[name] for name in _AMOUNTS]
        writer.writerow([*period, *groups, *amounts, harmless(row["detail"] or "")])
    return table.getvalue()
