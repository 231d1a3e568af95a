"""/metrics as Prometheus reads it, by Prometheus' own parser."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from psycopg import Connection
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from structlog.testing import capture_logs

from api import metrics
from api.database import connector, open_database
from api.keys import create_key
from api.metrics import NUMBERS, Metrics, Number
from metering.cubes.folding import maintain
from metering.event import Event
from metering.events import append_events, keyed
from tests.server import Server, assert_problem, until
from tests.test_serve import free_port

NOW = datetime(2026, 3, 15, 12, tzinfo=UTC)


def read(answer: bytes) -> dict[str, float]:
    families = text_string_to_metric_families(answer.decode())
    return {sample.name: sample.value for family in families for sample in family.samples}


def numbers(engine: Engine, now: datetime = NOW) -> dict[str, float]:
    return read(Metrics(engine, lambda: now).text())


def store(connection: Connection[Any], name: str, *, at: datetime) -> None:
    event = Event(id=name, source="s", type="t", subject="ada", time=at, data=None)
    with connection.transaction():
        append_events(connection, keyed([(event, at)]), now=at)


def test_what_waits_to_be_folded_and_for_how_long(engine: Engine) -> None:
    with connector(engine)() as connection:
        while maintain(connection, now=NOW):
            pass
        assert numbers(engine)["tollgate_fold_lag_seconds"] == 0
        for minute in range(3):
            store(connection, f"{minute}", at=NOW + timedelta(minutes=minute))
        found = numbers(engine, NOW + timedelta(minutes=5))
        assert found["tollgate_pending_batches"] == 3
        assert found["tollgate_pending_events"] == 3
        assert found["tollgate_fold_lag_seconds"] == 300
        while maintain(connection, now=NOW):
            pass
    until(lambda: numbers(engine)["tollgate_events_stored_total"] == 3)
    found = numbers(engine)
    assert found["tollgate_pending_batches"] == found["tollgate_fold_lag_seconds"] == 0
    assert found["tollgate_database_up"] == 1
    assert found["tollgate_quarantined_entries"] == 0
    assert found["tollgate_database_bytes"] > 1_000_000
    assert found["tollgate_database_connections"] >= 1
    assert set(found) == {number.name for number in NUMBERS} | {"tollgate_database_up"}


def test_a_clock_that_is_behind_makes_no_negative_lag(engine: Engine) -> None:
    with connector(engine)() as connection:
        store(connection, "1", at=NOW)
    assert numbers(engine, NOW - timedelta(hours=1))["tollgate_fold_lag_seconds"] == 0


def test_an_answer_serves_for_some_seconds(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Metrics(engine, lambda: NOW)
    first = kept.text()
    with connector(engine)() as connection:
        store(connection, "1", at=NOW)
    assert kept.text() == first
    monkeypatch.setattr(metrics, "FRESH_SECONDS", 0.0)
    fresh = Metrics(engine, lambda: NOW)
    before = read(fresh.text())["tollgate_pending_events"]
    with connector(engine)() as connection:
        store(connection, "2", at=NOW)
    assert read(fresh.text())["tollgate_pending_events"] == before + 1


def test_a_number_that_takes_too_long_or_fails_is_missing_and_no_other(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "STATEMENT_MS", 50)
    asked = (
        Number("slow", "", "SELECT 1 FROM pg_sleep(60)"),
        Number("wrong", "", "SELECT 1 / 0"),
        Number("seven", "What it says.", "SELECT 7"),
    )
    with capture_logs() as lines:
        found = read(Metrics(engine, lambda: NOW, asked).text())
    assert found == {"tollgate_database_up": 1, "seven": 7}
    assert [(line["event"], line["name"]) for line in lines] == [
        ("metric_missing", "slow"),
        ("metric_missing", "wrong"),
    ]


def test_all_numbers_together_take_a_bounded_time(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "ALL_SECONDS", 0.0)
    assert numbers(engine) == {"tollgate_database_up": 1}


def test_without_a_database_there_is_still_an_answer() -> None:
    nobody = open_database(f"postgresql+psycopg://127.0.0.1:{free_port()}/x", connections=1)
    assert numbers(nobody) == {"tollgate_database_up": 0}


def test_a_scrape_needs_a_key_that_may_read(server: Server, shared_engine: Engine) -> None:
    with Session(shared_engine) as session, session.begin():
        _, reading = create_key(session, name="prometheus", role="read", now=NOW)
        _, reporting = create_key(session, name="gateway", role="ingest", now=NOW)
    with server.client(reading) as client, server.client(reporting) as gateway:
        answer = client.get("/metrics")
        assert_problem(gateway.get("/metrics"), 403)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert read(answer.content)["tollgate_database_up"] == 1
    for key in (None, "tg_wrong"):
        with server.client(key) as stranger:
            assert_problem(stranger.get("/metrics"), 401)


def test_events_that_no_invoice_will_show_are_counted_while_they_are_new(engine: Engine) -> None:
    with connector(engine)() as connection:
        for minutes in (1, 14, 16):
            store(connection, f"{minutes}", at=NOW - timedelta(minutes=minutes))
    assert numbers(engine)["tollgate_unbilled_events"] == 2
