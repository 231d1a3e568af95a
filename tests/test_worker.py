"""The worker's loop on a real PostgreSQL: it outlives outages and failures, and stops when it is told to."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from sqlalchemy import Engine
from structlog.testing import capture_logs

from api import worker as loop
from api.database import connector
from api.worker import Work, Worker
from tests.server import until

NOW = datetime(2026, 3, 15, 12, tzinfo=UTC)


@contextmanager
def running(connect: Callable[[], Connection[Any]], work: Work) -> Iterator[Worker]:
    worker = Worker(connect, lambda: NOW, work)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


@dataclass
class Counting:
    """Work that counts its steps; there is more to do until there were `busy`."""

    busy: int = 0
    steps: int = 0
    backends: list[int] = field(default_factory=list)
    failing: Exception | None = None

    def __call__(self, connection: Connection[Any], /, *, now: datetime) -> bool:
        assert now == NOW
        self.steps += 1
        if self.failing is not None:
            raise self.failing
        backend = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert backend is not None
        if backend[0] not in self.backends:
            self.backends.append(backend[0])
        return self.steps < self.busy


def test_it_works_without_a_pause_while_there_is_more_to_do_and_then_rests(engine: Engine) -> None:
    work = Counting(busy=200)
    began = time.monotonic()
    with running(connector(engine), work):
        until(lambda: work.steps >= 200)
        seconds = time.monotonic() - began
        assert seconds < 200 * loop.IDLE_SECONDS / 4
        until(lambda: work.steps >= 202)
    assert len(work.backends) == 1
    assert work.steps <= 200 + 2 + (time.monotonic() - began) / loop.IDLE_SECONDS


def test_a_stop_ends_a_rest_at_once_and_closes_the_connection(engine: Engine) -> None:
    work = Counting()
    with running(connector(engine), work) as worker:
        until(lambda: work.steps > 0)
        began = time.monotonic()
        worker.stop()
        assert time.monotonic() - began < loop.IDLE_SECONDS / 2
    with connector(engine)() as connection:
        until(lambda: not backend_lives(connection, work.backends[0]))


def backend_lives(connection: Connection[Any], pid: int) -> bool:
    row = connection.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [pid])
    return row.rowcount == 1


def test_a_stop_waits_for_a_step_and_breaks_off_one_that_takes_too_long(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, ended = threading.Event(), []

    def hang(connection: Connection[Any], /, *, now: datetime) -> bool:  # noqa: ARG001
        began.set()
        try:
            connection.execute("SELECT pg_sleep(60)")
        except psycopg.errors.QueryCanceled as error:
            ended.append(error)
            raise
        return False

    monkeypatch.setattr(loop, "STEP_SECONDS", 0.5)
    with running(connector(engine), hang) as worker, capture_logs() as lines:
        assert began.wait(20)
        worker.stop()
    assert len(ended) == 1
    assert lines == []


def test_it_reconnects_after_its_connection_was_ended_and_says_so_once(engine: Engine) -> None:
    work = Counting()
    with running(connector(engine), work), connector(engine)() as connection, capture_logs() as lines:
        until(lambda: len(work.backends) == 1)
        connection.execute("SELECT pg_terminate_backend(%s)", [work.backends[0]])
        until(lambda: len(work.backends) == 2)
        until(lambda: len(lines) == 2)
    assert [line["event"] for line in lines] == ["work_interrupted", "work_goes_on"]


def test_an_outage_is_one_line_however_often_it_tries(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def connect() -> Connection[Any]:
        tries.append(1)
        if len(tries) <= 4:
            raise psycopg.OperationalError("connection refused\nis it running?")
        return connector(engine)()

    monkeypatch.setattr(loop, "FIRST_PAUSE", 0.01)
    work = Counting()
    with capture_logs() as lines, running(connect, work):
        until(lambda: work.steps > 0)
        until(lambda: len(lines) == 2)
    assert lines[0] == {
        "event": "work_interrupted",
        "error": "connection refused",
        "log_level": "warning",
    }
    assert lines[1] == {"event": "work_goes_on", "failures": 4, "log_level": "info"}


def test_a_failure_is_logged_whole_and_tried_again_ever_more_seldom(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "FIRST_PAUSE", 0.05)
    work = Counting(failing=ZeroDivisionError("a bug"))
    began = time.monotonic()
    with capture_logs() as lines, running(connector(engine), work):
        until(lambda: work.steps >= 4)
        assert time.monotonic() - began > 0.05 + 0.1 + 0.2
        failed = [line for line in lines if line["event"] == "work_failed"]
        assert [line["exc_info"] for line in failed] == [work.failing] * len(failed)
        assert len(failed) >= 3
        work.failing = None
        until(lambda: lines[-1]["event"] == "work_goes_on")
        resumed = work.steps
        until(lambda: work.steps > resumed)


def test_a_stop_does_not_wait_for_a_pause_after_a_failure(engine: Engine) -> None:
    work = Counting(failing=RuntimeError())
    with running(connector(engine), work) as worker:
        until(lambda: work.steps > 0)
        began = time.monotonic()
        worker.stop()
        assert time.monotonic() - began < loop.FIRST_PAUSE / 2


def test_a_refused_statement_is_a_failure_not_an_outage(engine: Engine) -> None:
    """The connection lives, so the reason is the work itself; it goes on over another connection."""
    refused = threading.Event()

    def once(connection: Connection[Any], /, *, now: datetime) -> bool:  # noqa: ARG001
        if not refused.is_set():
            refused.set()
            connection.execute("SELECT 1 / 0")
        return False

    with capture_logs() as lines, running(connector(engine), once):
        until(lambda: len(lines) == 2)
    assert [line["event"] for line in lines] == ["work_failed", "work_goes_on"]
