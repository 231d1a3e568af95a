"""Usage cubes change no answer: whatever is folded, built, closed, voided, restored or retired, and when."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import Connection
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

from metering.cubes import narrowing
from metering.cubes.checking import check_cubes
from metering.cubes.folding import drop_cubes, maintain
from metering.cubes.refolding import refold_voided
from metering.event import Event
from metering.events import append_events, keyed
from metering.ids import event_key
from metering.meter import MeterDefinition, UsageQuery, fold
from metering.usage import query_usage, usage_groups
from tests.test_usage import NOW, Happening, Question, call, driver, meter, scenarios, store, theorem, values

LATER = NOW + timedelta(days=3000)
CORRECTIONS = ("C" * 26, "D" * 26)


def declare(connection: Connection[Any], meters: Iterable[MeterDefinition]) -> None:
    """Store these meters and no others, also such as nobody would be allowed to create."""
    connection.execute("DELETE FROM meters")
    for number, one in enumerate(meters):
        connection.execute(
            "INSERT INTO meters (id, slug, aggregation, event_type, value_property, group_by,"
            " created_at, updated_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            [
                f"test{number:022}",
                f"meter_{number}",
                one.aggregation,
                one.event_type,
                one.value_property,
                json.dumps(dict(one.group_by)),
                NOW,
                NOW,
            ],
        )


def settle(connection: Connection[Any], now: datetime = LATER) -> None:
    while maintain(connection, now=now):
        pass


class World:
    """A database, and beside it what should count in it."""

    def __init__(self, session: Session, happening: Happening) -> None:
        self.session = session
        self.connection = driver(session.connection())
        self.waiting = list(happening.batches)
        self.stored: dict[Any, Event] = {}
        self.voided: dict[str, set[Any]] = {name: set() for name in CORRECTIONS}

    def store(self) -> None:
        if self.waiting:
            batch = self.waiting.pop(0)
            store(self.session, batch)
            for one in batch:
                self.stored.setdefault(event_key(one.source, one.id), one)

    def maintain(self, now: datetime, retire_after: timedelta | None = None) -> None:
        maintain(self.connection, now=now, retire_after=retire_after)

    def void(self, correction: str, chosen: int) -> None:
        keys = {key for i, key in enumerate(sorted(self.stored)) if chosen >> i & 1} - self.voided[correction]
        self.voided[correction] |= keys
        for key in keys:
            self.connection.execute(
                "INSERT INTO voided_events VALUES (%s, %s, %s)"
                " ON CONFLICT (key, correction_id) DO UPDATE SET restored_at = NULL",
                [key, correction, NOW],
            )
        refold_voided(self.connection, correction_id=correction)

    def restore(self, correction: str) -> None:
        self.voided[correction] = set()
        self.connection.execute(
            "UPDATE voided_events SET restored_at = %s WHERE correction_id = %s", [NOW, correction]
        )
        refold_voided(self.connection, correction_id=correction)

    @property
    def counting(self) -> list[Event]:
        void = set().union(*self.voided.values())
        return [one for key, one in self.stored.items() if key not in void]

    def check(self, asked: Iterable[Question]) -> None:
        for meters, query in asked:
            for one in meters:
                assert query_usage(self.session, one, query) == fold(one, query, self.counting)


def happenings_in(world: World) -> st.SearchStrategy[Callable[[], None]]:
    """Anything that can happen to a database, in any order."""
    days = st.integers(-10, 10).map(lambda days: datetime(2026, 3, 29, tzinfo=UTC) + timedelta(days=days))
    moments = days | st.sampled_from([LATER, NOW - timedelta(days=6000)])
    ages = st.sampled_from([timedelta(0), timedelta(days=5), timedelta(days=2000)])
    corrections = st.sampled_from(CORRECTIONS)
    return st.one_of(
        st.just(world.store),
        st.just(world.store),
        moments.map(lambda now: lambda: world.maintain(now)),
        moments.map(lambda now: lambda: settle(world.connection, now)),
        st.tuples(moments, ages).map(lambda both: lambda: world.maintain(both[0], both[1])),
        st.just(lambda: drop_cubes(world.connection)),
        st.tuples(corrections, st.integers(0, 2**16)).map(lambda both: lambda: world.void(*both)),
        corrections.map(lambda correction: lambda: world.restore(correction)),
    )


@theorem(60)
@given(scenario=scenarios(), data=st.data())
def test_no_fold_build_close_correction_or_retirement_changes_an_answer(
    session: Session, scenario: tuple[Happening, list[Question]], data: st.DataObject
) -> None:
    happening, asked = scenario
    with session.begin_nested() as savepoint:
        world = World(session, happening)
        declare(world.connection, (meter for question in asked for meter in question.meters))
        world.store()
        settle(world.connection)
        for happen in data.draw(st.lists(happenings_in(world), min_size=4, max_size=10)):
            happen()
        world.check(asked)
        while world.waiting:
            world.store()
        settle(world.connection)
        world.check(asked)
        assert check_cubes(world.connection) == []
        savepoint.rollback()


def test_a_cube_that_does_not_say_what_its_events_say_is_found(
    connections: Callable[[], Connection[Any]],
) -> None:
    worker = connections()
    declare(worker, [TOKENS, replace(meter("UNIQUE_COUNT", "$.v"), group_by=TOKENS.group_by)])
    append(worker, used("1", "2026-03-01T10:00", 5), used("2", "2026-03-02T10:00", 7))
    settle(worker, NOW)
    assert check_cubes(worker) == []
    worker.execute("UPDATE usage_hours SET sum = sum + 1 WHERE sum = 5")
    worker.execute("DELETE FROM usage_days WHERE sum = 7")
    worker.execute("DELETE FROM usage_day_values WHERE start = '2026-03-01'")
    assert check_cubes(worker) == [
        "2 rows of usage_hours differ from the events: call, $.v",
        "1 rows of usage_days differ from the events: call, $.v",
        "1 rows of usage_day_values differ from the events: call, $.v",
    ]
    drop_cubes(worker)
    settle(worker, NOW)
    assert check_cubes(worker) == []


TOKENS = replace(meter("SUM", "$.v"), group_by={"model": "$.model"})
EVERYTHING = UsageQuery()


@pytest.fixture
def connections(engine: Engine) -> Iterator[Callable[[], Connection[Any]]]:
    """Opens connections in autocommit, as the worker has them."""
    opened: list[Connection[Any]] = []

    def connect() -> Connection[Any]:
        url = engine.url.render_as_string(hide_password=False).replace("+psycopg", "")
        opened.append(psycopg.connect(url, options="-c timezone=UTC", autocommit=True))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


def used(name: str, at: str, tokens: int, *, model: str = "a", subject: str = "ada") -> Event:
    return call(name, at, json.dumps({"v": tokens, "model": model}), subject)


def append(connection: Connection[Any], *events: Event) -> None:
    with connection.transaction():
        append_events(connection, keyed((one, NOW) for one in events), now=NOW)


def asked(engine: Engine, query: UsageQuery = EVERYTHING, definition: MeterDefinition = TOKENS) -> list[str]:
    with Session(engine) as session:
        return values(query_usage(session, definition, query))


def void(connection: Connection[Any], name: str) -> None:
    with connection.transaction():
        connection.execute(
            "INSERT INTO voided_events VALUES (%s, %s, %s)", [event_key("gateway", name), CORRECTIONS[0], NOW]
        )
        refold_voided(connection, correction_id=CORRECTIONS[0])


def test_whole_days_are_answered_without_the_events(
    engine: Engine, connections: Callable[[], Connection[Any]]
) -> None:
    worker = connections()
    declare(worker, [TOKENS])
    append(worker, used("1", "2026-03-01T10:00", 5), used("2", "2026-03-02T11:00", 7, model="b"))
    settle(worker, NOW)
    worker.execute("TRUNCATE events")
    assert asked(engine) == ["12"]
    assert asked(engine, UsageQuery(window_size="DAY")) == ["5", "7"]
    assert asked(engine, UsageQuery(window_size="HOUR", filters={"model": ("b",)})) == ["7"]
    with Session(engine) as session:
        assert usage_groups(session, TOKENS, EVERYTHING, "model") == ["a", "b"]
        assert usage_groups(session, TOKENS, EVERYTHING, "subject") == ["ada"]


def test_an_hour_that_is_cut_beside_its_events_is_answered_without_them(
    engine: Engine, connections: Callable[[], Connection[Any]]
) -> None:
    """Usage up to now: nothing is later."""
    worker = connections()
    declare(worker, [TOKENS])
    append(worker, used("1", "2026-03-01T10:10", 5), used("2", "2026-03-01T10:20", 7))
    settle(worker, NOW)
    morning = datetime(2026, 3, 1, 10, tzinfo=UTC)
    beside = UsageQuery(start=morning + timedelta(minutes=10), end=morning + timedelta(minutes=21))
    among = replace(beside, end=morning + timedelta(minutes=20))
    assert (asked(engine, beside), asked(engine, among)) == (["12"], ["5"])
    append(worker, used("3", "2026-03-01T10:05", 9), used("4", "2026-03-01T10:15", 1))
    assert (asked(engine, beside), asked(engine, among)) == (["13"], ["6"])
    worker.execute("TRUNCATE events")
    assert (asked(engine, beside), asked(engine, among)) == (["12"], [])


def test_a_batch_that_becomes_visible_after_later_ones_were_folded_is_folded_too(
    engine: Engine, connections: Callable[[], Connection[Any]]
) -> None:
    """Its number is lower than those that cubes already hold, in one that is built as in one being built."""
    worker, slow, fast = connections(), connections(), connections()
    declare(worker, [TOKENS])
    settle(worker)
    with slow.transaction():
        append(slow, used("slow", "2026-03-01T10:00", 1))
        append(fast, used("fast", "2026-03-01T10:00", 2))
        settle(worker)
        drop_cubes(worker)
        settle(worker)
        assert asked(engine) == ["2"]
    assert asked(engine) == ["3"]
    settle(worker)
    worker.execute("TRUNCATE events")
    assert asked(engine) == ["3"]


def test_voiding_recomputes_what_is_folded_and_leaves_what_is_pending_to_the_fold(
    engine: Engine, connections: Callable[[], Connection[Any]]
) -> None:
    worker = connections()
    declare(worker, [TOKENS])
    append(worker, used("1", "2026-03-01T10:00", 1), used("2", "2026-03-01T10:01", 2))
    settle(worker)
    append(worker, used("3", "2026-03-01T10:02", 4), used("4", "2026-03-01T10:03", 8))
    void(worker, "1")
    assert asked(engine) == ["14"]
    settle(worker)
    assert asked(engine) == ["14"]
    worker.execute("TRUNCATE events")
    assert asked(engine) == ["14"]


def test_several_workers_fold_each_event_once_while_others_store_more(
    engine: Engine, connections: Callable[[], Connection[Any]]
) -> None:
    declare(connections(), [TOKENS])
    gateways, workers = [connections() for _ in range(2)], [connections() for _ in range(3)]

    def report(number: int) -> None:
        for i in range(60):
            append(gateways[number], *(used(f"{number}-{i}-{j}", "2026-03-01T10:00", 1) for j in range(5)))

    def work(connection: Connection[Any]) -> None:
        for _ in range(40):
            maintain(connection, now=LATER)

    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(report, number) for number in range(2)]
        answers += [threads.submit(work, connection) for connection in workers]
        seen = [threads.submit(lambda: [asked(engine) for _ in range(30)])]
        for one in answers:
            one.result(timeout=120)
        growing = [Decimal(value) for answer in seen[0].result(timeout=120) for value in answer]
    assert growing == sorted(growing)
    settle(workers[0])
    assert asked(engine) == ["600"]
    workers[0].execute("TRUNCATE events")
    assert asked(engine) == ["600"]


def test_answers_do_not_change_while_cubes_are_rebuilt_and_events_retired(
    engine: Engine, connections: Callable[[], Connection[Any]]
) -> None:
    worker = connections()
    counted = replace(meter("UNIQUE_COUNT", "$.v"), group_by=TOKENS.group_by)
    declare(worker, [TOKENS, counted])
    for day in range(1, 11):
        append(
            worker,
            *(used(f"{day}-{i}", f"2026-03-{day:02}T{i:02}:30", i, model="ab"[i % 2]) for i in range(24)),
        )
    queries = [EVERYTHING, UsageQuery(window_size="DAY", zone="Asia/Kolkata", group_by=("model",))]

    def answers() -> list[list[str]]:
        return [asked(engine, query, one) for query in queries for one in (TOKENS, counted)]

    expected = answers()
    done = threading.Event()

    def disturb() -> None:
        for age in (30, 8, 6, 4):
            drop_cubes(worker)
            while maintain(worker, now=NOW + timedelta(hours=2), retire_after=timedelta(days=age)):
                pass
        done.set()

    with ThreadPoolExecutor(1) as thread:
        disturbing = thread.submit(disturb)
        seen = [answers()]
        while not done.is_set() and not disturbing.done():
            seen.append(answers())
        disturbing.result(timeout=60)
    assert [one for one in seen if one != expected] == []
    assert worker.execute("SELECT count(*) > 100 FROM retired_events").fetchall() == [(True,)]


def test_a_fold_that_dies_leaves_nothing_half_done(
    engine: Engine, connections: Callable[[], Connection[Any]]
) -> None:
    worker, other = connections(), connections()
    declare(worker, [TOKENS, replace(meter("COUNT"), group_by={})])
    settle(worker)
    append(worker, used("1", "2026-03-01T10:00", 5))
    with other.transaction():
        other.execute("LOCK TABLE usage_hours IN ACCESS EXCLUSIVE MODE")
        worker.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            maintain(worker, now=LATER)
    assert asked(engine) == ["5"]
    worker.execute("SET lock_timeout = 0")
    settle(worker)
    worker.execute("TRUNCATE events")
    assert asked(engine) == ["5"]


def test_a_dimension_with_too_many_values_is_given_up_and_still_answered(
    engine: Engine, connections: Callable[[], Connection[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narrowing, "MAX_SERIES", 20)
    monkeypatch.setattr(narrowing, "MAX_VALUES", 10)
    worker = connections()
    wide = replace(TOKENS, group_by={"model": "$.model", "request": "$.request"})
    counted = replace(meter("UNIQUE_COUNT", "$.v"), group_by=wide.group_by)
    declare(worker, [wide, counted])
    settle(worker)
    for i in range(30):
        data = json.dumps({"v": i % 7, "model": "ab"[i % 2], "request": f"r{i}"})
        append(worker, call(f"{i}", f"2026-03-{1 + i % 3:02}T10:00", data))
        maintain(worker, now=LATER)
    settle(worker)
    (cube,) = worker.execute("SELECT paths, too_wide FROM usage_cubes").fetchall()
    assert cube == (["$.model"], ["$.request"])
    by_model = UsageQuery(group_by=("model",))
    assert asked(engine, by_model, wide) == ["42", "43"]
    assert asked(engine, by_model, counted) == ["7", "7"]
    assert asked(engine, UsageQuery(filters={"request": ("r8",)}), wide) == ["1"]
    worker.execute("TRUNCATE events")
    assert asked(engine, by_model, wide) == ["42", "43"]
    assert asked(engine, by_model, counted) == ["7", "7"]
    assert asked(engine, UsageQuery(filters={"request": ("r8",)}), wide) == []
    settle(worker)
    assert worker.execute("SELECT count(*) FROM usage_series").fetchall() == [(2,)]


def test_hours_are_dropped_when_they_are_old_and_the_answers_stay(
    engine: Engine, connections: Callable[[], Connection[Any]]
) -> None:
    worker = connections()
    declare(worker, [TOKENS])
    events = [
        used(f"{day}-{hour}", f"2026-01-{day:02}T{hour:02}:30", day)
        for day in range(1, 29)
        for hour in (0, 12)
    ]
    append(worker, *events)
    by_day = UsageQuery(window_size="DAY", zone="Asia/Kolkata")
    expected = [fold(TOKENS, query, events) for query in (EVERYTHING, by_day)]
    for now in (datetime(2026, 2, 1, tzinfo=UTC), LATER):
        settle(worker, now)
        with Session(engine) as session:
            assert [query_usage(session, TOKENS, query) for query in (EVERYTHING, by_day)] == expected
    assert worker.execute("SELECT count(*) FROM usage_hours").fetchall() == [(0,)]
    append(worker, used("late", "2026-01-05T06:00", 1000))
    settle(worker)
    worker.execute("TRUNCATE events")
    assert asked(engine) == ["1812"]


def test_old_events_move_out_of_the_way_and_are_still_repeats(
    engine: Engine, connections: Callable[[], Connection[Any]]
) -> None:
    worker = connections()
    declare(worker, [TOKENS])
    append(worker, used("1", "2026-03-01T10:00", 5), used("2", "2026-03-20T10:00", 7))
    later = NOW + timedelta(days=20)
    while maintain(worker, now=later, retire_after=timedelta(days=30)):
        pass
    assert worker.execute("SELECT id FROM events").fetchall() == [("2",)]
    assert worker.execute("SELECT id FROM retired_events").fetchall() == [("1",)]
    append(worker, used("1", "2026-03-01T10:00", 5), used("3", "2026-03-01T10:20", 9))
    minutes = UsageQuery(window_size="MINUTE")
    assert asked(engine, minutes) == ["5", "9", "7"]
    assert asked(engine, UsageQuery(end=datetime(2026, 3, 1, 10, 10, tzinfo=UTC))) == ["5"]
    void(worker, "1")
    assert asked(engine) == ["16"]


@pytest.mark.parametrize("analyzed", [True, False])
def test_all_subjects_month_is_added_up_by_series_first_where_series_have_many_days(
    engine: Engine, connections: Callable[[], Connection[Any]], *, analyzed: bool
) -> None:
    """Both ways give the same, over days, hours, and what no cube has seen."""
    worker = connections()
    counts = [replace(TOKENS, aggregation="AVG"), replace(TOKENS, aggregation="COUNT"), TOKENS]
    declare(worker, [TOKENS])
    events = [
        used(f"{day} {model} {subject}", f"2026-02-{day:02}T10:30", day, model=model, subject=subject)
        for day in range(1, 27)
        for model, subject in (("a", "ada"), ("b", "ada"), ("b", "bob"))
    ] + [used("now", f"{NOW:%Y-%m-%d}T03:00", 70)]
    append(worker, *events)
    settle(worker, NOW)
    late = used("late", "2026-02-03T04:05", 900, subject="bob")
    append(worker, late)
    if analyzed:
        worker.execute("ANALYZE usage_series, usage_days")
    else:  # as when every series has but one day
        worker.execute("UPDATE pg_class SET reltuples = 78 WHERE relname IN ('usage_series', 'usage_days')")
    month = UsageQuery(start=datetime(2026, 2, 1, tzinfo=UTC), end=NOW)
    queries = [
        replace(month, **more)
        for more in ({}, {"group_by": ("subject",)}, {"filters": {"model": ("b",)}, "group_by": ("model",)})
    ]
    statements: list[str] = []
    with Session(engine) as session:
        event.listen(
            session.connection(), "before_cursor_execute", lambda *given: statements.append(given[2])
        )
        for one in counts:
            for query in queries:
                assert query_usage(session, one, query) == fold(one, query, [*events, late])
    assert sum("GROUP BY b.series_id" in statement for statement in statements) == (9 if analyzed else 0)
