"""Connections to PostgreSQL: one pool for requests, single ones for those that hold one for ever."""

import select
from collections.abc import Callable
from typing import Any

import msgspec
import psycopg
from psycopg import Connection
from sqlalchemy import URL, Engine, create_engine, event, text
from sqlalchemy.exc import DisconnectionError, SQLAlchemyError

from metering.errors import UnavailableError

__all__ = ["OLDEST_POSTGRES", "check_database", "connections_for_each", "connector", "open_database"]

OLDEST_POSTGRES = 15
_CONNECT_SECONDS = 10
_OPTIONS = "-c timezone=UTC -c statement_timeout=60s"
BESIDE_THE_POOL = 3
"""Connections of an API process that requests don't share: one for ingest, two for keys and health."""
_SPARE = 7
"""Connections left for the worker, for `tollgate doctor` and for people."""
_FEWEST = 2

# A peer that has vanished without a word is given up after half a minute.
_VIGILANCE: dict[str, Any] = {
    "connect_timeout": _CONNECT_SECONDS,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


def open_database(url: str | URL, *, connections: int) -> Engine:
    """A pool of at most so many; nothing is connected yet.

    As many requests at a time are let in, so that none waits for a connection for long.
    """
    engine = create_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=_CONNECT_SECONDS,
        json_deserializer=msgspec.json.decode,  # in a quarter of the time
        connect_args={
            **_VIGILANCE,
            "application_name": "tollgate",
            "options": _OPTIONS,
        },
    )
    event.listen(engine, "checkout", _require_quiet)
    return engine


def _require_quiet(connection: Connection[Any], *_: object) -> None:
    """Let the pool connect again where the server has hung up: to be asked it would take a round trip.

    It says so, or ends the connection; nothing else is there to be read while nobody asks.
    """
    watch = select.poll()
    if not connection.closed:
        watch.register(connection.fileno(), select.POLLIN)
    if connection.closed or watch.poll(0):
        raise DisconnectionError


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


def connections_for_each(engine: Engine, *, processes: int, wanted: int) -> int:
    """How many connections each of so many API processes may pool, at most `wanted`.

    Raises UnavailableError when the database allows too few for them all. What others connect is not seen.
    """
    with engine.connect() as connection:
        most, reserved = connection.execute(text(_CONNECTIONS)).one()
    share = int(most - reserved - _SPARE) // processes - BESIDE_THE_POOL
    if share < _FEWEST:
        raise UnavailableError(
            f"the database allows {most} connections (max_connections), too few for {processes} API"
            f" processes: use fewer --workers, or allow {reserved + _SPARE + processes * 10} and more"
        )
    return min(share, wanted)


_CONNECTIONS = """
    SELECT current_setting('max_connections')::int, coalesce(sum(setting::int), 0)
    FROM pg_settings WHERE name IN ('superuser_reserved_connections', 'reserved_connections')"""


def connector(engine: Engine, name: str = "tollgate ingest") -> Callable[[], Connection[Any]]:
    """Opens plain psycopg connections to the engine's database, outside its pool; `name` is for people."""
    _, theirs = engine.dialect.create_connect_args(engine.url)
    options: dict[str, Any] = {
        **theirs,
        **_VIGILANCE,
        "application_name": name,
        "options": _OPTIONS,
    }

    def connect() -> Connection[Any]:
        return psycopg.connect(**options, autocommit=True)

    return connect
