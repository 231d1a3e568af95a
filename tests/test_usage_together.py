"""Many questions in one statement: each is answered as it is alone, and as the reference fold says."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, get_args

import pytest
from psycopg import Connection
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from metering.cubes.folding import maintain
from metering.event import Event
from metering.filter_string import FilterString
from metering.meter import Aggregation, MeterDefinition, UsageQuery, UsageRow, fold, in_order
from metering.meters import create_meter
from metering.usage import Asked, query_numbers, query_together, query_usage
from tests.builders import START, at, counted_statements, spent, store
from tests.server import seeded

SUBJECTS = ("ada", "bob", "cid")
NOW = at("2026-03-10T12:00:00")
CUTS = ("2026-01-01T00:00:00", "2026-01-15T09:16:54", "2026-02-15T09:16:54", "2026-03-15T09:16:54")
"""Billing periods of one who signed up in the middle of an hour, of a month and of a half."""
GAP = ("2026-02-15T09:16:55", "2026-02-16T00:00:00")


def traffic(count: int, *, seed: int) -> list[Event]:
    """At any second of ten weeks, many of them in the hours that the periods' edges lie in."""
    chance = seeded(seed)
    edges = [at(cut) for cut in (*CUTS, *GAP)]
    times = [START + timedelta(seconds=chance.randrange(70 * 86_400)) for _ in range(count)]
    times += [chance.choice(edges) + timedelta(seconds=chance.randrange(-3600, 3600)) for _ in range(count)]
    return [
        spent(
            chance.choice(SUBJECTS),
            chance.choice(("1", "2.5", "-3", "none")),
            time.isoformat(),
            provider=chance.choice(("openai", "anthropic")),
            model=chance.choice(("gpt-4o", "claude", "")),
        )
        for time in times
    ]


def meters() -> list[MeterDefinition]:
    found = [
        MeterDefinition(
            event_type="llm",
            aggregation=aggregation,
            value_property=None if aggregation == "COUNT" else "$.tokens",
            group_by={"provider": "$.provider", "model": "$.model"},
        )
        for aggregation in get_args(Aggregation)
    ]
    return [*found, replace(found[0], event_from=at("2026-01-20T10:20:30"))]


def asked() -> list[Asked]:
    """Of every meter all periods, by every shape; some follow each other, some don't, some lie ahead."""
    periods = [*pairwise(CUTS), GAP, (CUTS[2], "2026-03-01T00:00:00")]
    queries = [
        UsageQuery(start=at(start), end=at(end), subjects=SUBJECTS[:2], **shape)
        for start, end in reversed(periods)
        for shape in SHAPES
    ]
    both = [Asked("value", meter, query) for meter in meters() for query in queries]
    return both + [Asked("numbers", one.meter, one.query) for one in both if one.meter.aggregation == "SUM"]


OPENAI = {"provider": FilterString(eq="openai")}
SHAPES: tuple[dict[str, Any], ...] = (
    {},
    {"group_by": ("model",)},
    {"group_by": ("subject", "provider", "model")},
    {"conditions": OPENAI},
    {"customers": {"ada": "one", "bob": "one", "cid": "two"}, "group_by": ("customer_id", "provider")},
)


def alone(session: Session, one: Asked) -> list[UsageRow]:
    ask = query_usage if one.kind == "value" else query_numbers
    return ask(session, one.meter, one.query)


@pytest.fixture(scope="module")
def known(shared_engine: Engine) -> list[Event]:
    """Events of which the older ones are in cubes and the later ones are not, yet."""
    old, new = traffic(300, seed=1), traffic(60, seed=2)
    with Session(shared_engine) as session, session.begin():
        for number, definition in enumerate(meters()):
            create_meter(session, slug=f"meter-{number}", definition=definition, now=START)
        store(session, *old)
    fold_all(shared_engine, NOW)
    with Session(shared_engine) as session, session.begin():
        store(session, *new)
    return old + new


def fold_all(engine: Engine, now: datetime) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, Connection)
        while maintain(driver, now=now):
            pass


@pytest.mark.parametrize("at_once", [32, 3])
def test_what_is_asked_together_is_answered_as_it_is_alone(
    session: Session, known: Sequence[Event], monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr("metering.usage.TOGETHER", at_once)
    questions = asked()
    answers = query_together(session, questions)
    assert len(answers) == len(questions) > 200
    for one, rows in zip(questions, answers, strict=True):
        assert in_order(rows) == in_order(alone(session, one))
        if one.kind == "value":
            assert rows == fold(one.meter, one.query, known)
    assert sum(bool(rows) for rows in answers) > 100


@pytest.mark.usefixtures("known")
def test_two_statements_answer_many_and_periods_in_a_row_are_read_once(
    session: Session, shared_engine: Engine
) -> None:
    months = {(at(start), at(end)) for start, end in pairwise(CUTS)}
    sums = [one for one in asked() if one.meter == meters()[0] and one.kind == "value"]
    questions = [one for one in sums if (one.query.start, one.query.end) in months]
    assert len(questions) == len(months) * len(SHAPES)
    session.execute(text("SELECT 1"))  # begins the transaction
    with counted_statements(shared_engine) as sent:
        query_together(session, questions)
    assert len(sent) == 2
    assert sent[1].count("AS question") == len(SHAPES)


def test_nothing_asked_is_nothing_answered(session: Session, shared_engine: Engine) -> None:
    with counted_statements(shared_engine) as sent:
        assert query_together(session, []) == []
    assert sent == []


@pytest.mark.usefixtures("known")
def test_of_many_subjects_as_of_few(session: Session) -> None:
    """Those are added up by series."""
    few = asked()
    others = tuple(f"other-{n}" for n in range(200))
    many = [replace(one, query=replace(one.query, subjects=SUBJECTS[:2] + others)) for one in few]
    plain = [n for n, one in enumerate(few) if one.query.customers is None]
    answers = query_together(session, many)
    found = query_together(session, few)
    assert [in_order(answers[n]) for n in plain] == [in_order(found[n]) for n in plain]


@pytest.mark.usefixtures("known")
def test_how_statements_are_planned_afterwards_is_as_usual(session: Session) -> None:
    for one in asked()[:3]:
        alone(session, one)
        assert session.execute(text("SHOW plan_cache_mode")).scalar_one() == "auto"
