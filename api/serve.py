"""`tollgate serve`: from nothing to an API that answers, and back, leaving nothing behind."""

import gc
import os
import signal
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from types import FrameType
from typing import NoReturn

import structlog
import uvicorn
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from api import clock
from api.billing_worker import advanced, billing
from api.database import check_database, connections_for_each, connector, open_database
from api.http.app import create_app
from api.keys import any_key, create_key
from api.listening import Port, bound, is_loopback, url_of
from api.meters_file import apply_meters_file
from api.migrations import migrate
from api.postgres import EmbeddedPostgres, running_url
from api.settings import Settings
from api.supervisor import Child, follow, supervise
from api.worker import Worker
from billing.runs.test_clock import stored_clock, wind_up
from metering.cubes.folding import maintain
from metering.errors import InvalidError

__all__ = ["database", "serve", "serve_api", "work"]

log = structlog.get_logger()


def serve(settings: Settings) -> None:
    """Run all of it until told to stop. Raises TollgateError or EmbeddedPostgresError when it can't start."""
    _require_safe(settings)
    signal.signal(signal.SIGTERM, _stop)
    with ExitStack() as stack:
        port = stack.enter_context(bound(settings.host, settings.port, processes=settings.workers))
        engine = stack.enter_context(database(settings))
        settings = _prepared(engine, settings)
        announce = partial(_announce, port)
        if settings.workers == 1:
            stack.enter_context(_working(engine, settings))
            announce()
            _answer(settings, port.sockets[0])
        else:
            _unless_told_to_stop()
            _stopped_by(supervise(_children(port), _inherited(settings), port=port, started=announce))


def serve_api(settings: Settings, *, inherited: int | None = None, lifeline: int | None = None) -> None:
    """Run an API process alone: one of a server's, which inherits its port, or one of many machines'."""
    signal.signal(signal.SIGTERM, _stop)
    if inherited is not None and lifeline is not None:
        follow(lifeline)
        _answer(settings, socket.socket(fileno=inherited))
        return
    _require_database_url(settings, "api")
    _require_safe(settings)
    with bound(settings.host, settings.port) as port, database(settings) as engine:
        settings = _prepared(engine, replace(settings, workers=1))
        _announce(port)
        _answer(settings, port.sockets[0])


def work(settings: Settings, *, lifeline: int | None = None) -> None:
    """Run a worker alone: a server's, or one of many machines'."""
    signal.signal(signal.SIGTERM, _stop)
    url = _require_database_url(settings, "worker")
    with ExitStack() as stack:
        if lifeline is not None:
            follow(lifeline)
            engine = open_database(url, connections=1)
        else:
            engine = stack.enter_context(database(settings))
            _migrated(engine)
            _time(engine, settings)
            print("Tollgate's worker is running. Ctrl-C stops it.", flush=True)  # noqa: T201
        stack.enter_context(_working(engine, settings))
        _unless_told_to_stop()
        signal.pause()


def _prepared(engine: Engine, settings: Settings) -> Settings:
    """The schema is there, and a key, and the meters; returns what each API process is to go by."""
    _migrated(engine)
    apply_meters_file(engine, settings.meters_file, now=_time(engine, settings))
    _make_first_key(engine, settings)
    share = connections_for_each(engine, processes=settings.workers, wanted=settings.connections)
    if share < settings.connections:
        log.info("few_connections", each_process=share, wanted=settings.connections)
    engine.dispose()
    url = engine.url.render_as_string(hide_password=False)
    return replace(settings, database_url=url, connections=share)


def _migrated(engine: Engine) -> None:
    if migrate(engine):
        log.info("migrated")


def _time(engine: Engine, settings: Settings) -> datetime:
    """What time it is where we serve. Raises InvalidError where it is told by a test clock, and we have none.

    A test clock that begins later than the one that is there bills what falls due until then.
    """
    sessions = sessionmaker(engine)
    with sessions.begin() as session:
        if settings.test_clock is not None:
            now = wind_up(session, settings.test_clock)
        elif theirs := stored_clock(session):
            raise InvalidError(
                f"this database goes by a test clock, which shows {theirs:%Y-%m-%dT%H:%M:%SZ}; in real time"
                " its invoices would be dated wrongly: serve it with --test-clock (TOLLGATE_TEST_CLOCK),"
                " or use another database"
            )
        else:
            return clock.now()
    deque(advanced(sessions, to=settings.test_clock), maxlen=0)
    now = max(now, settings.test_clock)
    log.warning("test_clock", now=f"{now:%Y-%m-%dT%H:%M:%SZ}", meaning="time stands still until advanced")
    return now


def _announce(port: Port) -> None:
    url = url_of(port)
    print(f"Tollgate is running at {url} (docs: {url}/api/docs). Ctrl-C stops it.", flush=True)  # noqa: T201


def _answer(settings: Settings, listening: socket.socket) -> None:
    """Answer requests, in this process, until a signal comes."""
    assert settings.database_url is not None  # noqa: S101  _prepared put it there
    signal.signal(signal.SIGTERM, _note)  # an app is made in a moment, and not torn while it is
    engine = open_database(settings.database_url, connections=settings.connections)
    config = uvicorn.Config(
        create_app(engine, settings),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,  # longer than Kong's 60 s: the client ends idle connections
        timeout_graceful_shutdown=10,
    )
    server = uvicorn.Server(config)
    _spare_the_garbage_collector()
    # uvicorn hears signals only while it runs, and sends itself again what it heard when it has ended.
    signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
    server.should_exit = bool(_told)
    try:
        server.run(sockets=[listening])
    finally:
        engine.dispose()


def _spare_the_garbage_collector() -> None:
    """What is loaded by now stays for good: no request has to wait while it is looked through again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@contextmanager
def _working(engine: Engine, settings: Settings) -> Iterator[None]:
    step = partial(maintain, retire_after=settings.retire_after)
    with ExitStack() as stack:
        now: clock.Clock = clock.SYSTEM
        if settings.test_clock is not None:
            now = stack.enter_context(clock.database_clock(engine.url))
        elif settings.billing_interval:
            stack.enter_context(billing(engine, every=settings.billing_interval))
        worker = Worker(connector(engine, "tollgate worker"), now, step)
        worker.start()
        stack.callback(worker.stop)
        yield


def _children(port: Port) -> list[Child]:
    """An API process for each socket, and the worker."""
    api = [
        Child(f"api {i}", ("api",), listening, port.another)
        for i, listening in enumerate(port.sockets, start=1)
    ]
    return [*api, Child("worker", ("worker",))]


def _inherited(settings: Settings) -> dict[str, str]:
    """The environment of the children. Not their command lines, which everybody on the machine can read."""
    return {**os.environ, **settings.as_environment()}


def _stopped_by(kind: int) -> NoReturn:
    if kind == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(0)


def _require_database_url(settings: Settings, command: str) -> str:
    if settings.database_url is None:
        raise InvalidError(
            f"`tollgate {command}` needs TOLLGATE_DATABASE_URL, the database that all machines share;"
            " `tollgate serve` brings its own"
        )
    return settings.database_url


_told: list[int] = []
"""The signals that asked this process to stop, for Python drops what is raised while it collects garbage."""


def _note(kind: int, _: FrameType | None) -> None:
    _told.append(kind)


def _stop(kind: int, frame: FrameType | None) -> NoReturn:
    _note(kind, frame)
    raise SystemExit(0)


def _unless_told_to_stop() -> None:
    if _told:
        raise SystemExit(0)


def _require_safe(settings: Settings) -> None:
    if not settings.auth and not is_loopback(settings.host):
        raise InvalidError(
            f"--no-auth lets anybody in, so it works on a loopback address only, not on {settings.host}"
        )
    if not settings.auth:
        log.warning("no_auth", meaning="every request is allowed; anybody on this machine can send one")


@contextmanager
def database(settings: Settings, *, share: bool = False) -> Iterator[Engine]:
    """The configured database, checked; the embedded one runs for as long as the context lasts.

    `share` uses an embedded PostgreSQL that a server is running already, instead of refusing.
    """
    with ExitStack() as stack:
        url = settings.database_url or (running_url(settings.data_dir) if share else None)
        if url is None:
            url = stack.enter_context(EmbeddedPostgres(settings.data_dir)).url
        engine = open_database(url, connections=settings.connections)
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
