"""Connections to PostgreSQL: one pool for requests, single ones for those that hold one for ever."""

from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import Connection
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from metering.errors import UnavailableError

__all__ = ["OLDEST_POSTGRES", "check_database", "connector", "open_database"]

OLDEST_POSTGRES = 15
_CONNECT_SECONDS = 10
_OPTIONS = "-c timezone=UTC -c statement_timeout=60s"
POOL = 30
"""Connections for requests; as many requests at a time are let in, so that none waits for one for long."""

# A peer that has vanished without a word is given up after half a minute.
_VIGILANCE: dict[str, Any] = {
    "connect_timeout": _CONNECT_SECONDS,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


def open_database(url: str | URL, *, connections: int = POOL) -> Engine:
    """A pool of at most so many; nothing is connected yet."""
    return create_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=_CONNECT_SECONDS,
        pool_pre_ping=True,
        connect_args={
            **_VIGILANCE,
            "application_name": "tollgate",
            "options": _OPTIONS,
        },
    )


def check_database(engine: Engine) -> int:
    """The server's major version; raises UnavailableError in one line when it can't be used."""
    where = engine.url.render_as_string(hide_password=True)
    try:
        with engine.connect() as connection:
            number = int(connection.execute(text("SHOW server_version_num")).scalar_one())
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise UnavailableError(f"can't use the database {where}: {reason}") from None
    if number // 10_000 < OLDEST_POSTGRES:
        found = f"the database {where} is PostgreSQL {number // 10_000}"
        raise UnavailableError(f"{found}; Tollgate needs {OLDEST_POSTGRES} or newer")
    return number // 10_000


def connector(engine: Engine) -> Callable[[], Connection[Any]]:
    """Opens plain psycopg connections to the engine's database, outside its pool."""
    _, theirs = engine.dialect.create_connect_args(engine.url)
    options: dict[str, Any] = {
        **theirs,
        **_VIGILANCE,
        "application_name": "tollgate ingest",
        "options": _OPTIONS,
    }

    def connect() -> Connection[Any]:
        return psycopg.connect(**options, autocommit=True)

    return connect
