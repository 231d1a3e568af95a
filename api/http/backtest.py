"""Backtest: /api/v1/plans/{planId}/backtest, what a plan would have billed for the real usage of the past.

An extension of Tollgate. A table is written to a temporary file before its first byte is sent: so an error is
a status and not half a table, and a slow client holds no transaction.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime
from tempfile import SpooledTemporaryFile
from typing import IO, Annotated, Any, Literal, cast

from fastapi import APIRouter
from pydantic import Field, StringConstraints
from sqlalchemy.orm import Session
from starlette.responses import Response, StreamingResponse

from api.http.auth import reader
from api.http.backtest_csv import money_text, write_backtest
from api.http.body import Body, ExactRoute, Instant, WireResponse
from api.http.progress import ClientId, announce
from api.http.session import Now, Snapshot
from api.http.usage import Accept
from api.http.usage_csv import MEDIA_TYPE, wants_csv
from billing.reports.backtest import (
    MAX_CUSTOMERS_NAMED,
    Backtest,
    BacktestOrder,
    BacktestRow,
    BacktestSum,
    BacktestSummary,
    backtest,
    in_order,
)
from catalog.plans import get_plan

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/plans", tags=["Plans"], route_class=ExactRoute)

IN_MEMORY = 1_000_000
PIECE = 65_536


class BacktestRequest(Body):
    """The plan is priced as if each customer had signed up at `from`, with that as its anchor.

    Charges count whose service period begins in [from, to). `customerIds` left out means everybody who had a
    subscription in the window, or usage that the plan charges for.
    """

    client_id: ClientId | None = Field(None, description="GET /api/v1/info/progress/{clientId} while it runs")
    from_: Instant = Field(alias="from")
    to: Instant = Field(description="not in the future")
    customer_ids: (
        Annotated[
            list[Annotated[str, StringConstraints(min_length=1, max_length=64)]],
            Field(min_length=1, max_length=MAX_CUSTOMERS_NAMED),
        ]
        | None
    ) = None
    order_by: BacktestOrder = "customer"
    order: Literal["ASC", "DESC"] = "ASC"
    limit: Annotated[int, Field(ge=0, le=1000, description="rows in JSON; CSV has all")] = 100


class BacktestItem(Body):
    """`difference` is what the plan would bring more; absent where the customer pays in another currency."""

    customer_id: str
    customer_key: str | None = None
    customer_name: str
    would_bill: str
    billed: str
    billed_currency: str
    difference: str | None = None


class BacktestTotal(Body):
    """All customers, listed or not, who were billed in one currency; `wouldBill` is in the plan's."""

    billed_currency: str
    customers: int
    would_bill: str
    billed: str
    difference: str | None = None


class BacktestResult(Body):
    """Winners would pay less, losers more; incomparable are those who pay in another currency."""

    plan_id: str
    plan_key: str
    plan_version: int
    currency: str
    from_: datetime = Field(alias="from")
    to: datetime
    customers: int
    winners: int
    losers: int
    unchanged: int
    incomparable: int
    totals: list[BacktestTotal]
    items: list[BacktestItem]

    @classmethod
    def of(cls, asked: Backtest, summary: BacktestSummary, rows: Iterable[BacktestRow]) -> "BacktestResult":
        plan = asked.plan
        return cls(
            plan_id=plan.id,
            plan_key=plan.key,
            plan_version=plan.version,
            currency=plan.currency,
            from_=asked.window.start,
            to=asked.window.end,
            customers=summary.customers,
            winners=summary.winners,
            losers=summary.losers,
            unchanged=summary.unchanged,
            incomparable=summary.incomparable,
            totals=[_total(plan.currency, *found) for found in sorted(summary.sums.items())],
            items=[_item(plan.currency, row) for row in rows],
        )


def _total(currency: str, billed_currency: str, found: BacktestSum) -> BacktestTotal:
    return BacktestTotal(
        billed_currency=billed_currency,
        customers=found.customers,
        would_bill=money_text(found.would_bill, currency),
        billed=money_text(found.billed, billed_currency),
        difference=None if found.difference is None else money_text(found.difference, currency),
    )


_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "`billed` is what the customer's own subscriptions come to, for charges whose service"
        " period begins in the window, through the same rater; voids and credits by hand are not in it.",
        "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
    }
}


@router.post(
    "/{planId}/backtest",
    operation_id="backtestPlan",
    response_model=BacktestResult,
    responses=_RESPONSES,
    dependencies=[reader],
)
def backtest_plan(
    session: Snapshot,
    now: Now,
    planId: str,  # noqa: N803  the wire's name
    body: BacktestRequest,
    accept: Accept = "",
) -> Response:
    """Price a plan, a draft too, over the real usage of a past window, against what was billed."""
    announce(session, body.client_id)
    plan = get_plan(session, planId, include_latest=True)
    asked = backtest(session, plan, start=body.from_, end=body.to, customer_ids=body.customer_ids, now=now)
    summary = BacktestSummary()
    rows = _rows(session, asked, summary, body.client_id)
    return _csv(asked, rows, body) if wants_csv(accept) else _json(asked, rows, summary, body)


def _rows(
    session: Session, asked: Backtest, summary: BacktestSummary, client_id: str | None
) -> Iterator[BacktestRow]:
    """Counted, and summed up, as they are passed on."""
    done = 0
    announce(session, client_id, done=done, total=asked.customer_count)
    for part in asked.parts(session):
        for row in part.rows:
            summary.add(row)
            yield row
        done += part.looked_at
        announce(session, client_id, done=done, total=asked.customer_count)


def _json(
    asked: Backtest, rows: Iterator[BacktestRow], summary: BacktestSummary, body: BacktestRequest
) -> Response:
    """As many rows as are asked for are kept, whatever their order, and no more."""
    descending = body.order == "DESC"
    first = heapq.nlargest if descending else heapq.nsmallest
    items = first(body.limit, rows, key=in_order(body.order_by, descending=descending))
    deque(rows, maxlen=0)  # where no rows are asked for, they are summed up all the same
    answer = BacktestResult.of(asked, summary, items)
    return WireResponse(answer.model_dump(by_alias=True), headers={"Vary": "Accept"})


def _item(currency: str, row: BacktestRow) -> BacktestItem:
    return BacktestItem(
        customer_id=row.customer_id,
        customer_key=row.customer_key,
        customer_name=row.customer_name,
        would_bill=money_text(row.would_bill, currency),
        billed=money_text(row.billed, row.billed_currency),
        billed_currency=row.billed_currency,
        difference=None if row.difference is None else money_text(row.difference, currency),
    )


# -- As a table ----------------------------------------------------------------------------------------------


def _csv(asked: Backtest, rows: Iterator[BacktestRow], body: BacktestRequest) -> Response:
    """As they come, which is by customer; any other order needs all of them at once."""
    file = cast("IO[str]", SpooledTemporaryFile(IN_MEMORY, "w+", encoding="utf-8", newline=""))  # noqa: SIM115  closed by _pieces
    descending = body.order == "DESC"
    as_they_come = body.order_by == "customer" and not descending
    key = in_order(body.order_by, descending=descending)
    ordered = rows if as_they_come else sorted(rows, key=key, reverse=descending)
    write_backtest(file, ordered, currency=asked.plan.currency)
    file.seek(0)
    name = f"backtest-{asked.plan.key}-{asked.plan.version}.csv"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Vary": "Accept"}
    return StreamingResponse(_pieces(file), headers=headers, media_type=MEDIA_TYPE)


def _pieces(file: IO[str]) -> Iterator[str]:
    with file:
        while piece := file.read(PIECE):
            yield piece
