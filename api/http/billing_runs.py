"""Billing runs: /api/v1/billing/runs. What was billed when, and for whom it failed."""

from collections.abc import Sequence
from datetime import datetime

from fastapi import APIRouter

from api.http.auth import reader
from api.http.body import Body, ExactRoute, Page, PageNumber, PageSize, page_of
from api.http.session import Snapshot
from billing.runs import records
from billing.runs.records import BillingRun, BillingRunFailure

__all__ = ["FailureBody", "router"]

router = APIRouter(prefix="/api/v1/billing/runs", tags=["Billing runs"], route_class=ExactRoute)

MOST_FAILURES = 1000
"""Of one run that are listed; `failed` counts them all."""


class FailureBody(Body):
    customer_id: str
    reason: str


class BillingRunBody(Body):
    """`now`: what was due by then was billed; `amounts` of the issued invoices, by currency."""

    id: str
    now: datetime
    started_at: datetime
    ended_at: datetime | None = None
    customers: int
    created: int
    issued: int
    paid: int
    failed: int
    amounts: dict[str, str]
    failures: list[FailureBody] | None = None


class BillingRunPage(Page):
    items: list[BillingRunBody]


@router.get("", operation_id="listBillingRuns", dependencies=[reader])
def list_all(session: Snapshot, page: PageNumber = 1, page_size: PageSize = 100) -> BillingRunPage:
    """The newest first; without the failures."""
    found, count = records.list_runs(session, **page_of(page, page_size))
    items = [_body(run) for run in found]
    return BillingRunPage(total_count=count, page=page, page_size=page_size, items=items)


@router.get("/{billingRunId}", operation_id="getBillingRun", dependencies=[reader])
def get(session: Snapshot, billingRunId: str) -> BillingRunBody:  # noqa: N803  the wire's name
    run = records.get_run(session, billingRunId)
    return _body(run, records.failures_of(session, run.id, limit=MOST_FAILURES))


def _body(run: BillingRun, failures: Sequence[BillingRunFailure] | None = None) -> BillingRunBody:
    return BillingRunBody(
        id=run.id,
        now=run.now,
        started_at=run.started_at,
        ended_at=run.ended_at,
        customers=run.customers,
        created=run.created,
        issued=run.issued,
        paid=run.paid,
        failed=run.failed,
        amounts=run.amounts,
        failures=None if failures is None else [FailureBody.model_validate(one) for one in failures],
    )
