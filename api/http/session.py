"""One request, one transaction: opened here, committed here, and only then is the answer sent."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

__all__ = ["Now", "Snapshot", "Transaction", "snapshot"]


def _transaction(request: Request) -> Iterator[Session]:
    with request.app.state.sessions.begin() as session:
        yield session


def _snapshot(request: Request) -> Iterator[Session]:
    """Everything that is read in it was true at one instant."""
    with request.app.state.sessions.begin() as session:
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        yield session


async def _now(request: Request) -> datetime:
    """Asynchronous, so that reading the system's clock takes no thread."""
    now: datetime = await request.app.state.clock.read()
    return now


# FastAPI ends a plain dependency after the answer has been sent, when it is too late to report a failed
# commit; scope="function" ends it before.
Transaction = Annotated[Session, Depends(_transaction, scope="function")]
Snapshot = Annotated[Session, Depends(_snapshot, scope="function")]
Now = Annotated[datetime, Depends(_now)]

snapshot = contextmanager(_snapshot)
"""For a handler that has long to do with what it has read: nothing of the database is held meanwhile."""
