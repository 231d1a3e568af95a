"""Connections to PostgreSQL: one pool for requests, single ones for those that hold one for ever."""

from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import Connection
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from metering.errors import UnavailableError

__all__ = ["OLDEST_POSTGRES", "check_database", "connector", "open_database"]

OLDEST_POSTGRES = 15
_CONNECT_SECONDS = 10
_POOL = 20


def open_database(url: str) -> Engine:
    """A pool; nothing is connected yet."""
    return create_engine(
        url,
        pool_size=_POOL,
        max_overflow=_POOL,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": _CONNECT_SECONDS,
            "application_name": "tollgate",
            "options": "-c timezone=UTC",
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
    arguments, options = engine.dialect.create_connect_args(engine.url)

    def connect() -> Connection[Any]:
        return psycopg.connect(
            *arguments,
            **options,
            connect_timeout=_CONNECT_SECONDS,
            application_name="tollgate ingest",
            options="-c timezone=UTC",
            autocommit=True,
        )

    return connect
