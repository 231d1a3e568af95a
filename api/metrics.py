"""Numbers for Prometheus, read from the database when it asks: the same whichever process is asked.

Numbers of one process are left out: of several processes behind one port a scrape reaches any, and a counter
that jumps between theirs says nothing. What a gauge asks may take a second, all of them three, and an answer
serves whoever asks within the next five. What took too long is missing from the answer, and the log says so.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from billing.proof.unbilled import UnbilledQuery, WindowTooLongError, count_unbilled
from billing.runs.run import due_at
from metering.period import Period

__all__ = ["CONTENT_TYPE", "NUMBERS", "Metrics", "Number"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
FRESH_SECONDS = 5.0
STATEMENT_MS = 1000
ALL_SECONDS = 3.0

log = structlog.get_logger()

Family = GaugeMetricFamily | CounterMetricFamily


@dataclass(frozen=True, slots=True)
class Number:
    """`query` answers one number and may use :now, or is a function; a counter's name ends in _total."""

    name: str
    help: str
    query: str | Callable[[Connection, datetime], float]
    type: Literal["gauge", "counter"] = "gauge"

    def family(self, value: float) -> Family:
        family = GaugeMetricFamily if self.type == "gauge" else CounterMetricFamily
        return family(self.name, self.help, value=value)


UNBILLED_WINDOW = timedelta(minutes=15)


def _unbilled(connection: Connection, now: datetime) -> float:
    query = UnbilledQuery(period=Period(start=now - UNBILLED_WINDOW, end=now))
    with Session(connection) as session:
        return sum(count_unbilled(session, query, seconds=STATEMENT_MS / 1000).values())


def _billing_lag(connection: Connection, now: datetime) -> float:
    with Session(connection) as session:
        at = due_at(session)
    return 0.0 if at is None else max(0.0, (now - at).total_seconds())


NUMBERS = (
    Number(
        "tollgate_pending_batches",
        "Commits of usage that no cube has seen.",
        "SELECT count(*) FROM pending_batches",
    ),
    Number(
        "tollgate_pending_events",
        "Events in those commits.",
        "SELECT coalesce(sum(events), 0) FROM pending_batches",
    ),
    Number(
        "tollgate_fold_lag_seconds",
        "Age of the oldest commit that no cube has seen; growing when the worker does not work.",
        "SELECT coalesce(extract(epoch FROM greatest(:now - min(stored_at), interval '0')), 0)"
        " FROM pending_batches",
    ),
    Number(
        "tollgate_events_stored_total",
        "Events stored since PostgreSQL's statistics began, and the few whose commit failed.",
        "SELECT n_tup_ins FROM pg_stat_user_tables WHERE relid = 'events'::regclass",
        "counter",
    ),
    Number(
        "tollgate_quarantined_entries",
        "Gateway log entries that can't be metered.",
        "SELECT count(*) FROM quarantined_entries",
    ),
    Number(
        "tollgate_billing_lag_seconds",
        "Since when the oldest thing to bill is due; growing when the worker does not bill, or can't.",
        _billing_lag,
    ),
    Number(
        "tollgate_billing_failed_customers",
        "Whom the last billing run could not bill; GET /api/v1/billing/runs says why.",
        "SELECT coalesce((SELECT failed FROM billing_runs ORDER BY id DESC LIMIT 1), 0)",
    ),
    Number(
        "tollgate_database_bytes",
        "Size of the database on its disk.",
        "SELECT pg_database_size(current_database())",
    ),
    Number(
        "tollgate_database_connections",
        "Connections to the database, of all its users.",
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()",
    ),
    Number(
        "tollgate_unbilled_events",
        "Events of the last 15 minutes that no invoice will show; GET /api/v1/events/unbilled says why.",
        _unbilled,
    ),
)
UP = Number("tollgate_database_up", "Whether the database answers.", "SELECT 1")


@dataclass(slots=True)
class Metrics:
    """`now` tells the time. Whoever asks while the numbers are being read waits for that reading."""

    engine: Engine
    now: Callable[[], datetime]
    numbers: Sequence[Number] = NUMBERS
    _answer: bytes = b""
    _until: float = 0.0
    _reading: threading.Lock = field(default_factory=threading.Lock)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        with self._reading:
            if time.monotonic() >= self._until:
                registry = CollectorRegistry()
                registry.register(_Collected([*self._read()]))
                self._answer = generate_latest(registry)
                self._until = time.monotonic() + FRESH_SECONDS
            return self._answer

    def _read(self) -> Iterator[Family]:
        """Each number in a transaction of its own, so that a slow one takes no other with it."""
        until = time.monotonic() + ALL_SECONDS
        try:
            with self.engine.connect() as connection:
                yield UP.family(_asked(connection, UP, self.now()))
                for number in self.numbers:
                    if time.monotonic() < until:
                        with suppress(_MissingError):
                            yield number.family(_asked(connection, number, self.now()))
        except (SQLAlchemyError, _MissingError):
            yield UP.family(0)


class _MissingError(Exception):
    pass


@dataclass(slots=True, eq=False)
class _Collected(Collector):
    families: Sequence[Family]

    def collect(self) -> Iterator[Family]:
        yield from self.families


def _asked(connection: Connection, number: Number, now: datetime) -> float:
    try:
        with connection.begin():
            connection.execute(text(f"SET LOCAL statement_timeout = {STATEMENT_MS}"))
            if callable(number.query):
                return number.query(connection, now)
            values = {"now": now} if ":now" in number.query else {}
            return float(connection.execute(text(number.query), values).scalar_one())
    except (SQLAlchemyError, WindowTooLongError) as error:
        if connection.invalidated:
            raise
        log.warning("metric_missing", name=number.name, error=str(getattr(error, "orig", error)).strip())
        raise _MissingError from error
