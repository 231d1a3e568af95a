"""The progress of a query that carries a clientId: /api/v1/info/progress.

A query is one SQL statement, so it is running or it is not. Any API process sees it, because the transaction
that asks bears a name made of the clientId for as long as it lasts: nothing is stored, and nothing is left
behind by a query that fails or by a process that is killed. How a query ended, its own answer says.
"""

from datetime import datetime
from hashlib import blake2b
from typing import Annotated

from fastapi import APIRouter
from pydantic import StringConstraints
from sqlalchemy import text
from sqlalchemy.orm import Session

from api.http.auth import reader
from api.http.body import Body, ExactRoute
from api.http.session import Transaction
from metering.errors import NotFoundError

__all__ = ["ClientId", "announce", "router"]

router = APIRouter(prefix="/api/v1/info", tags=["Info"], route_class=ExactRoute)

ClientId = Annotated[str, StringConstraints(min_length=1, max_length=36)]


class Progress(Body):
    """Running queries: `total` of them, none ended."""

    success: int
    failed: int
    total: int
    updated_at: datetime


def announce(session: Session, client_id: str | None) -> None:
    """Until its end, this transaction is found by that clientId."""
    if client_id is not None:
        sql = "SELECT set_config('application_name', :name, true)"
        session.execute(text(sql), {"name": _name(client_id)})


@router.get("/progress/{id}", operation_id="getProgress", dependencies=[reader])
def progress(session: Transaction, id: ClientId) -> Progress:  # noqa: A002  the wire's name
    """Whether a query with that clientId is running; 404 when none is, before it and after it."""
    sql = """
        SELECT count(*) AS running, max(xact_start) AS since FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = :name"""
    found = session.execute(text(sql), {"name": _name(id)}).one()
    if not found.running:
        raise NotFoundError(f"no query with the clientId {id!r} is running")
    return Progress(success=0, failed=0, total=found.running, updated_at=found.since)


def _name(client_id: str) -> str:
    """PostgreSQL cuts names at 63 bytes and keeps ASCII only."""
    return f"tollgate query {blake2b(client_id.encode(), digest_size=16).hexdigest()}"
