"""`tollgate serve`: from nothing to an API that answers, and back, leaving nothing behind."""

import ipaddress
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import NoReturn

import structlog
import uvicorn
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from api import clock
from api.database import check_database, open_database
from api.http.app import create_app
from api.keys import any_key, create_key
from api.migrations import migrate
from api.postgres import EmbeddedPostgres, running_url
from api.settings import Settings
from metering.errors import ConflictError, InvalidError

__all__ = ["database", "serve"]

log = structlog.get_logger()


def serve(settings: Settings) -> None:
    """Run until told to stop. Raises TollgateError or EmbeddedPostgresError when it can't start."""
    _require_safe(settings)
    signal.signal(signal.SIGTERM, _stop)
    with ExitStack() as stack:
        listening = stack.enter_context(_bound(settings))
        engine = stack.enter_context(database(settings))
        if migrate(engine):
            log.info("migrated")
        _make_first_key(engine, settings)
        host, port = listening.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(engine, settings),
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=75,  # longer than Kong's 60 s: the client ends idle connections
                timeout_graceful_shutdown=10,
            )
        )
        print(f"Tollgate is running at {url} (docs: {url}/api/docs). Ctrl-C stops it.", flush=True)  # noqa: T201
        server.run(sockets=[listening])


def _stop(_: int, __: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def _require_safe(settings: Settings) -> None:
    if not settings.auth and not _is_loopback(settings.host):
        raise InvalidError(
            f"--no-auth lets anybody in, so it works on a loopback address only, not on {settings.host}"
        )
    if not settings.auth:
        log.warning("no_auth", meaning="every request is allowed; anybody on this machine can send one")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def _bound(settings: Settings) -> Iterator[socket.socket]:
    """The port, taken before anything else is started; whoever connects early waits until all is ready."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InvalidError(f"can't listen on {settings.host}: {error.strerror or error}") from None
    with listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
            listening.listen(0)
        except OSError as error:
            raise ConflictError(
                f"can't listen on {settings.host}:{settings.port}: {error.strerror};"
                " stop what uses it or choose another --port"
            ) from None
        yield listening


@contextmanager
def database(settings: Settings, *, share: bool = False) -> Iterator[Engine]:
    """The configured database, checked; the embedded one runs for as long as the context lasts.

    `share` uses an embedded PostgreSQL that a server is running already, instead of refusing.
    """
    with ExitStack() as stack:
        url = settings.database_url or (running_url(settings.data_dir) if share else None)
        if url is None:
            url = stack.enter_context(EmbeddedPostgres(settings.data_dir)).url
        engine = open_database(url)
        stack.callback(engine.dispose)
        check_database(engine)
        yield engine


def _make_first_key(engine: Engine, settings: Settings) -> None:
    """On a database without any key: an admin key, printed this once."""
    if settings.api_key or not settings.auth:
        return
    with Session(engine) as session, session.begin():
        if not any_key(session):
            _, text = create_key(session, name="first", role="admin", now=clock.now())
            print(f"Your admin key, shown only this once: {text}", flush=True)  # noqa: T201
