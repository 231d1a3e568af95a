"""How fast questions are answered: warm and cold, in the database and over HTTP."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from psycopg import Connection
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from api import clock
from benchmarks.load import percentile
from benchmarks.seed import seed
from benchmarks.stage import Server, ask, connect, drop_page_cache, postgres
from benchmarks.traffic import EVENT_TYPE, METER, SUBJECTS, subject
from metering.meter import MeterDefinition, UsageQuery
from metering.period import midnight_of
from metering.usage import query_usage

DEFINITION = MeterDefinition(
    event_type=EVENT_TYPE,
    aggregation="SUM",
    value_property="$.tokens",
    group_by={name: f"$.{name}" for name in ("provider", "model", "type")},
)
MOST_SECONDS = 8.0
Question = Callable[[random.Random, datetime], UsageQuery]


def _one_subject(chance: random.Random, now: datetime) -> UsageQuery:
    return replace(_month(now), subjects=(subject(chance.randrange(SUBJECTS)),))


def _until_now(chance: random.Random, now: datetime) -> UsageQuery:
    """To this very second: days, hours and what is not yet in any cube."""
    return replace(_one_subject(chance, now), end=now)


def _by_day(chance: random.Random, now: datetime) -> UsageQuery:
    return replace(_one_subject(chance, now), group_by=("model", "type"), window_size="DAY")


def _all_subjects(_: random.Random, now: datetime) -> UsageQuery:
    return replace(_month(now), group_by=("subject",))


def _month(now: datetime) -> UsageQuery:
    """The last 30 days that are over, which is what an invoice asks for."""
    end = midnight_of(now - timedelta(hours=2))
    return UsageQuery(start=end - timedelta(days=30), end=end)


QUESTIONS: dict[str, Question] = {
    "a subject's month": _one_subject,
    "a subject's 30 days until now": _until_now,
    "a subject's month by day, model and type": _by_day,
    "all subjects' month": _all_subjects,
}


@dataclass(frozen=True)
class Asked:
    """Latencies in milliseconds; cold is the median of first questions after PostgreSQL started anew."""

    question: str
    stored: int
    p50: float
    p99: float
    http_p50: float
    cold: float
    page_cache_dropped: bool


def queries(directory: Path, *, total: int, there: int, repeat: int, restarts: int) -> list[Asked]:
    """The questions over `total` events, of which some are there already."""
    with _caught_up(directory, add=total - there) as (url, server):
        warm = {name: _warm(url, question, repeat) for name, question in QUESTIONS.items()}
        http = {name: _over_http(server, question, repeat) for name, question in QUESTIONS.items()}
    cold = {
        name: [_cold(directory, question, i) for i in range(restarts)] for name, question in QUESTIONS.items()
    }
    return [
        Asked(
            question=name,
            stored=total,
            p50=percentile(warm[name], 50),
            p99=percentile(warm[name], 99),
            http_p50=percentile(http[name], 50),
            cold=percentile(sorted(took for took, _ in cold[name]), 50),
            page_cache_dropped=all(dropped for _, dropped in cold[name]),
        )
        for name in QUESTIONS
    ]


@contextmanager
def _caught_up(directory: Path, *, add: int) -> Iterator[tuple[str, Server]]:
    with postgres(directory) as url, Server(url) as server, connect(url) as connection:
        server.add_meter()
        seed(url, count=add)
        if not settled(connection, seconds=600):
            print("  the cubes are not complete: questions are answered from hours or raw events")
        connection.execute("VACUUM (ANALYZE)")  # or autovacuum would do so while the questions are asked
        yield url, server


_UNSETTLED = """
    SELECT EXISTS (SELECT FROM pending_batches) OR NOT EXISTS (SELECT FROM usage_cubes) OR EXISTS (
        SELECT FROM usage_cubes
        WHERE built_to IS NOT NULL OR closed_to < date_trunc('day', now() - interval '2 hours'))"""


def settled(connection: Connection[Any], *, seconds: float) -> bool:
    """Whether, within so many seconds, all events are in the cubes and all days that are over are closed."""
    deadline = time.monotonic() + seconds
    while connection.execute(_UNSETTLED).fetchall()[0][0]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _warm(url: str, question: Question, repeat: int) -> list[float]:
    engine = create_engine(url, connect_args={"options": "-c timezone=UTC"})
    chance = random.Random(1)
    with Session(engine) as session:
        times = _repeated(lambda: _timed(session, question, chance), repeat)
    engine.dispose()
    return times


def _repeated(ask_once: Callable[[], float], repeat: int) -> list[float]:
    """The latencies in order; of slow questions as many as fit into some seconds."""
    times: list[float] = []
    while len(times) < repeat and sum(times) < MOST_SECONDS * 1000:
        times.append(ask_once())
    return sorted(times)


def _timed(session: Session, question: Question, chance: random.Random) -> float:
    asked = question(chance, clock.now())
    began = time.perf_counter()
    rows = query_usage(session, DEFINITION, asked)
    took = time.perf_counter() - began
    assert rows
    return took * 1000


def _over_http(server: Server, question: Question, repeat: int) -> list[float]:
    chance, connection = random.Random(2), server.client()

    def ask_once() -> float:
        path = _path(question(chance, clock.now()))
        began = time.perf_counter()
        ask(connection, "GET", path)
        return (time.perf_counter() - began) * 1000

    times = _repeated(ask_once, repeat)
    connection.close()
    return times


def _path(asked: UsageQuery) -> str:
    assert asked.start
    assert asked.end
    to = asked.end.replace(microsecond=0)
    members = [("from", _wire(asked.start)), ("to", _wire(to))]
    members += [("subject", one) for one in asked.subjects or ()] + [
        ("groupBy", one) for one in asked.group_by
    ]
    members += [("windowSize", asked.window_size)] if asked.window_size else []
    return f"/api/v1/meters/{METER['slug']}/query?{urlencode(members)}"


def _wire(instant: datetime) -> str:
    return instant.isoformat().replace("+00:00", "Z")


def _cold(directory: Path, question: Question, number: int) -> tuple[float, bool]:
    """The first question of a PostgreSQL just started, from a connection just opened."""
    dropped = drop_page_cache()
    with postgres(directory) as url:
        engine = create_engine(url, connect_args={"options": "-c timezone=UTC"})
        with Session(engine) as session:
            session.connection()
            took = _timed(session, question, random.Random(number))
        engine.dispose()
    return took, dropped
