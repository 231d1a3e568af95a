"""The only place that reads the system clock; everything below api/ is told what time it is.

A server with a test clock goes by the time that is stored in its database.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from sqlalchemy import URL, Engine
from sqlalchemy.orm import Session

from api.database import open_database
from billing.runs.test_clock import stored_clock

__all__ = ["SYSTEM", "Clock", "DatabaseClock", "database_clock", "now"]


def now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251  this is where it is allowed


class Clock(Protocol):
    """Called, it tells the time; `read` does so for who may not wait in between."""

    def __call__(self) -> datetime: ...

    async def read(self) -> datetime: ...


class SystemClock:
    def __call__(self) -> datetime:
        return now()

    async def read(self) -> datetime:
        return now()


SYSTEM = SystemClock()


@contextmanager
def database_clock(url: URL) -> Iterator[Clock]:
    """The test clock of a database, over connections of its own."""
    engine = open_database(url, connections=2)
    yield DatabaseClock(engine)
    engine.dispose()


@dataclass(frozen=True, slots=True)
class DatabaseClock:
    """Asked anew each time: another process may have advanced it."""

    engine: Engine

    def __call__(self) -> datetime:
        with Session(self.engine) as session:
            return stored_clock(session) or now()

    async def read(self) -> datetime:
        return await asyncio.to_thread(self)
