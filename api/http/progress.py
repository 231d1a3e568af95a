"""The progress of a query that carries a clientId: /api/v1/info/progress.

A query is one SQL statement, so it is running or it is not; a backtest is many, and counts the customers that
it is done with. Any API process sees it, because the transaction that asks bears a name made of the clientId
for as long as it lasts: nothing is stored, and nothing is left behind by a query that fails or by a process
that is killed. How a query ended, its own answer says.
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
    """Of running queries, `total` of them and none ended; of a backtest, customers."""

    success: int
    failed: int
    total: int
    updated_at: datetime


def announce(session: Session, client_id: str | None, *, done: int = 0, total: int = 1) -> None:
    """Until its end, this transaction is found by that clientId, having done so much of all it has to do."""
    if client_id is not None:
        sql = "SELECT set_config('application_name', :name, true)"
        session.execute(text(sql), {"name": f"{_name(client_id)} {done:x}/{total:x}"})


@router.get("/progress/{id}", operation_id="getProgress", dependencies=[reader])
def progress(session: Transaction, id: ClientId) -> Progress:  # noqa: A002  the wire's name
    """Whether a query with that clientId is running; 404 when none is, before it and after it."""
    sql = """
        SELECT substr(application_name, length(:name) + 2) AS steps, query_start FROM pg_stat_activity
        WHERE datname = current_database() AND starts_with(application_name, :name)"""
    found = session.execute(text(sql), {"name": _name(id)}).all()
    if not found:
        raise NotFoundError(f"no query with the clientId {id!r} is running")
    steps = [[int(number, 16) for number in one.steps.split("/")] for one in found]
    return Progress(
        success=sum(done for done, _ in steps),
        failed=0,
        total=sum(total for _, total in steps),
        updated_at=max(one.query_start for one in found),
    )


def _name(client_id: str) -> str:
    """PostgreSQL cuts names at 63 bytes and keeps ASCII only: of steps, 7 hexadecimal digits each."""
    return f"tollgate query {blake2b(client_id.encode(), digest_size=16).hexdigest()}"
