"""What gateways sent that can't be metered: /api/v1/ingest/quarantine."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query

from api.http.auth import reader
from api.http.body import Body, ExactRoute
from api.http.session import Transaction
from metering.quarantine import list_quarantined

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/ingest", tags=["Events"], route_class=ExactRoute)


class QuarantinedBody(Body):
    digest: str
    gateway: str
    request_id: str | None = None
    reason: str
    events: list[dict[str, Any]]
    received_at: datetime


class QuarantineList(Body):
    total_count: int
    items: list[QuarantinedBody]


@router.get("/quarantine", operation_id="listQuarantine", dependencies=[reader])
def list_all(
    session: Transaction,
    gateway: Annotated[str | None, Query(description="the {source} it was sent to")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> QuarantineList:
    """The newest bad log entries, each with its reason."""
    found, count = list_quarantined(session, gateway=gateway, limit=limit)
    items = [
        QuarantinedBody(
            digest=bad.digest.hex(),
            gateway=bad.gateway,
            request_id=bad.request_id,
            reason=bad.reason,
            events=bad.events,
            received_at=bad.received_at,
        )
        for bad in found
    ]
    return QuarantineList(total_count=count, items=items)
