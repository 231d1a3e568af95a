"""Usage in SQL is the reference fold, whatever gateways send and whatever is asked."""

import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import permutations
from typing import Any, NamedTuple, get_args

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

from metering.errors import InvalidError
from metering.event import Event
from metering.events import append_events, insert_events, keyed
from metering.exact import plain
from metering.ids import event_key
from metering.jsonpath import parse_path, value_at
from metering.meter import Aggregation, MeterDefinition, UsageQuery, UsageRow, fold, text_of
from metering.period import Period
from metering.usage import query_usage

NOW = datetime(2026, 3, 15, 12, tzinfo=UTC)
CLOCK_CHANGES = [
    ("Europe/Berlin", datetime(2026, 3, 29, 1, tzinfo=UTC)),  # 2:00 becomes 3:00
    ("Europe/Berlin", datetime(2026, 10, 25, 1, tzinfo=UTC)),  # 3:00 becomes 2:00
    ("Australia/Lord_Howe", datetime(2026, 4, 4, 15, tzinfo=UTC)),  # 2:00 becomes 1:30
    ("Australia/Lord_Howe", datetime(2026, 10, 3, 15, 30, tzinfo=UTC)),  # 2:00 becomes 2:30
    ("America/Havana", datetime(2026, 3, 8, 5, tzinfo=UTC)),  # midnight is skipped
    ("America/Havana", datetime(2026, 11, 1, 5, tzinfo=UTC)),  # midnight comes twice
    ("America/Sao_Paulo", datetime(2018, 11, 4, 3, tzinfo=UTC)),  # midnight is skipped
    ("America/St_Johns", datetime(2009, 11, 1, 2, 31, tzinfo=UTC)),  # 0:01 becomes 23:01, of another month
    ("Pacific/Apia", datetime(2011, 12, 30, 10, tzinfo=UTC)),  # a whole day is skipped
    ("Asia/Kathmandu", datetime(2026, 1, 31, 18, 15, tzinfo=UTC)),  # nothing but a new month
]
PATHS = [
    "$.v",
    "$.w",
    "$['0']",
    "$[0]",
    "$.v.w",
    "$.v['0']",
    "$.v[0]",
    "$.v[1]",
    "$.v[0][0]",
    "$.v[0].w",
    "$['-1']",
    "$['a \"b']",
    '$["it\'s"]',
    "$['ü%:x']",
]
KEYS = sorted({str(step) for path in PATHS for step in parse_path(path)})

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4)
numbers = st.from_regex(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,2})?", fullmatch=True)
# Nearly a number, or one.
numeric_texts = st.from_regex(
    r"[ \t\r\n]{0,2}[+-]?[0-9]{0,3}\.?[0-9]{0,3}([eE][+-]?[0-9]{0,4})?[ \t\r\n]?", fullmatch=True
)
common = ("0", "1", "1.0", "-0.0", "100", "1e2", "1e60", "-7", "0.1", '"1"', '"x"', '""', '"null"', '"true"')
strange = ("1e999", "-1e-999", "0e5", *map(json.dumps, (
    " 1 ", "1 2", "1_0", "0x1", "NaN", "-Infinity", "+.5", "5.", "1\n", "1\v", "\xa01", "\u0661", "\uff11",
    "1e-999", "1e1000", "9" * 1000, "9" * 1001,
)))  # fmt: skip
scalars = st.one_of(
    st.sampled_from(common),
    st.sampled_from(strange),
    st.sampled_from(("null", "true", "false")),
    numbers,
    numeric_texts.map(json.dumps),
    texts.map(json.dumps),
)


def _array(items: list[str]) -> str:
    return f"[{', '.join(items)}]"


def _object(members: dict[str, str]) -> str:
    return "{" + ", ".join(f"{json.dumps(key)}: {value}" for key, value in members.items()) + "}"


def _objects(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.dictionaries(st.sampled_from(KEYS), values, max_size=3).map(_object)


flat_values = scalars | st.lists(scalars, max_size=2).map(_array) | _objects(scalars)
json_values = scalars | st.lists(flat_values, max_size=2).map(_array) | _objects(flat_values)
data_texts = st.none() | _objects(scalars) | json_values.map(lambda value: _object({"v": value}))
offsets = st.sampled_from([0, 1, -1, 59_999_999, 60_000_000, 1_800_000_000, -1_800_000_000]) | st.integers(
    -130_000_000_000, 130_000_000_000
)


class Happening(NamedTuple):
    """What gateways reported, in batches, within a few days about a clock change; and where it changed."""

    batches: list[list[Event]]
    edges: list[datetime]
    zone: str


@st.composite
def happenings(draw: st.DrawFn) -> Happening:
    zone, middle = draw(st.sampled_from(CLOCK_CHANGES))
    times = [
        middle + timedelta(microseconds=offset)
        for offset in draw(st.lists(offsets, min_size=5, max_size=8, unique=True))
    ]
    events = st.builds(
        Event,
        id=st.sampled_from([*"abcdefgh", "01JQ5ZK7F8M3N2P4R6S8T0V1W3", "01JQ5ZK7F8M3N2P4R6S8T0V1W4"]),
        source=st.sampled_from(["gateway", "ü"]),
        type=st.sampled_from([*["call"] * 5, "other"]),
        subject=st.sampled_from(["ada", "bob", "Ä", "a%:b"]),
        time=st.sampled_from(times),
        data=st.sampled_from(draw(st.lists(data_texts.map(_encoded), min_size=4, max_size=8))),
    )
    return Happening(
        draw(st.lists(st.lists(events, min_size=5, max_size=10), min_size=2, max_size=3)), times, zone
    )


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


class Question(NamedTuple):
    """A query, and the meters that it is put to: one of each aggregation."""

    meters: list[MeterDefinition]
    query: UsageQuery


@st.composite
def questions(draw: st.DrawFn, happening: Happening) -> Question:
    edges = st.sampled_from([*[None] * 8, *happening.edges])
    path = draw(st.sampled_from([*["$.v"] * 8, *PATHS]))
    dimensions = {name: draw(st.sampled_from(PATHS)) for name in draw(st.sampled_from(["", "d", "de"]))}
    event_from = draw(edges)
    start, end = draw(edges), draw(edges)
    if start and end:
        start, end = min(start, end), max(start, end) + timedelta(microseconds=1)
    query = UsageQuery(
        start=start,
        end=end,
        window_size=draw(st.sampled_from([None, "MINUTE", "HOUR", "DAY", "MONTH"])),
        zone=draw(st.sampled_from([*[happening.zone] * 9, "UTC", *(zone for zone, _ in CLOCK_CHANGES)])),
        subjects=draw(st.sampled_from([*[None] * 4, (), ("ada",), ("Ä", "bob", "nobody")])),
        filters={
            name: tuple(draw(st.lists(_texts_at(path, happening), min_size=1, max_size=4)))
            for name, path in dimensions.items()
            if draw(st.integers(0, 3)) == 0
        },
        group_by=draw(st.sampled_from(_groupings(*dimensions))),
    )
    meters = [
        MeterDefinition(
            event_type="call",
            aggregation=aggregation,
            value_property=None if aggregation == "COUNT" else path,
            group_by=dimensions,
            event_from=event_from,
        )
        for aggregation in get_args(Aggregation)
    ]
    return Question(meters, query)


def _groupings(*dimensions: str) -> list[tuple[str, ...]]:
    names = ("subject", *dimensions)
    return [grouping for size in range(len(names) + 1) for grouping in permutations(names, size)]


def _texts_at(path: str, happening: Happening) -> st.SearchStrategy[str]:
    """What a dimension of that path is, and something that it is not."""
    events = [one for batch in happening.batches for one in batch]
    data = [json.loads(one.data or b"{}", parse_float=Decimal) for one in events]
    return st.sampled_from(sorted({"nothing", *(text_of(value_at(each, parse_path(path))) for each in data)}))


@st.composite
def scenarios(draw: st.DrawFn) -> tuple[Happening, list[Question]]:
    happening = draw(happenings())
    return happening, draw(st.lists(questions(happening), min_size=2, max_size=2))


def driver(connection: sqlalchemy.Connection) -> Connection[Any]:
    driver = connection.connection.driver_connection
    assert isinstance(driver, Connection)
    return driver


def store(session: Session, events: Iterable[Event]) -> None:
    append_events(driver(session.connection()), keyed((one, NOW) for one in events), now=NOW)


def theorem(examples: int) -> settings:
    """All examples share one transaction; each undoes what it stored."""
    return settings(max_examples=examples, suppress_health_check=[HealthCheck.function_scoped_fixture])


@theorem(250)
@given(scenario=scenarios())
def test_sql_usage_equals_the_python_fold(
    session: Session, scenario: tuple[Happening, list[Question]]
) -> None:
    happening, asked = scenario
    sent = [one for batch in happening.batches for one in batch]
    first = {event_key(one.source, one.id): one for one in reversed(sent)}
    with session.begin_nested() as savepoint:
        for batch in happening.batches:
            store(session, batch)
        for meters, query in asked:
            for meter in meters:
                rows = fold(meter, query, first.values())
                assert query_usage(session, meter, query) == rows
        savepoint.rollback()


@theorem(100)
@given(scenario=scenarios(), data=st.data())
def test_any_cutting_and_repetition_of_batches_gives_the_same_answers(
    session: Session, scenario: tuple[Happening, list[Question]], data: st.DataObject
) -> None:
    happening, asked = scenario
    batch = keyed((one, NOW) for batch in happening.batches for one in batch)
    keys = st.lists(st.sampled_from(sorted(batch)), min_size=1)
    answers = []
    for parts in [[], data.draw(st.lists(keys, min_size=1, max_size=4))]:
        with session.begin_nested() as savepoint:
            for part in parts:
                append_events(driver(session.connection()), {key: batch[key] for key in part}, now=NOW)
            insert_events(driver(session.connection()), batch, now=NOW)
            answers.append(
                [query_usage(session, meter, query) for meters, query in asked for meter in meters]
            )
            savepoint.rollback()
    assert answers[0] == answers[1]


def call(name: str, at: str, data: str = "{}", subject: str = "ada") -> Event:
    time = datetime.fromisoformat(at).replace(tzinfo=UTC)
    return Event(id=name, source="gateway", type="call", subject=subject, time=time, data=data.encode())


def meter(aggregation: Aggregation, path: str | None = None, **group_by: str) -> MeterDefinition:
    return MeterDefinition(event_type="call", aggregation=aggregation, value_property=path, group_by=group_by)


def values(rows: Iterable[UsageRow]) -> list[str]:
    return [plain(row.value) for row in rows]


def test_decimals_are_summed_to_the_last_digit(session: Session) -> None:
    numbers = ["0.1", '"0.2"', "1e40", "0.0000000000000000000000000000000000000001"]
    store(session, [call(f"{i}", "2026-03-01", f'{{"v": {v}}}') for i, v in enumerate(numbers)])
    assert values(query_usage(session, meter("SUM", "$.v"), UsageQuery())) == [
        "10000000000000000000000000000000000000000.3000000000000000000000000000000000000001"
    ]


def test_an_index_finds_nothing_in_a_value_that_is_no_list(session: Session) -> None:
    data = ['{"v": 1}', '{"v": {"0": 2}}', '{"v": [4]}', '{"v": [[8]]}']
    store(session, [call(f"{i}", "2026-03-01", one) for i, one in enumerate(data)])
    assert values(query_usage(session, meter("SUM", "$.v[0]"), UsageQuery())) == ["4"]
    assert values(query_usage(session, meter("SUM", "$.v[0][0]"), UsageQuery())) == ["8"]


def test_an_average_does_not_depend_on_how_a_number_is_written(session: Session) -> None:
    numbers = ["1e60", "1e60", "5e59"]
    events = [call(f"{i}", "2026-03-01", f'{{"v": {v}}}') for i, v in enumerate(numbers)]
    store(session, events)
    average = meter("AVG", "$.v")
    assert query_usage(session, average, UsageQuery()) == fold(average, UsageQuery(), events)


def test_rows_are_ordered_by_window_before_group(session: Session) -> None:
    store(session, [call("1", "2026-03-01T10:00", subject="bob"), call("2", "2026-03-01T11:00")])
    rows = query_usage(session, meter("COUNT"), UsageQuery(group_by=("subject",)))
    assert [(row.window.start.hour, row.group["subject"]) for row in rows] == [(10, "bob"), (11, "ada")]


def test_nothing_stored_is_counted_as_nought_only_over_a_known_period(session: Session) -> None:
    month = Period(start=datetime(2026, 3, 1, tzinfo=UTC), end=datetime(2026, 4, 1, tzinfo=UTC))
    known = UsageQuery(start=month.start, end=month.end)
    assert query_usage(session, meter("COUNT"), known) == [UsageRow(window=month, group={}, value=Decimal(0))]
    assert query_usage(session, meter("SUM", "$.v"), known) == []
    assert query_usage(session, meter("COUNT"), replace(known, window_size="DAY")) == []
    assert query_usage(session, meter("COUNT"), UsageQuery(window_size="DAY")) == []
    assert query_usage(session, meter("COUNT"), UsageQuery()) == []


def test_too_many_windows_are_refused_and_not_computed(session: Session) -> None:
    long = UsageQuery(
        start=datetime(2000, 1, 1, tzinfo=UTC), end=datetime(2026, 1, 1, tzinfo=UTC), window_size="HOUR"
    )
    with pytest.raises(InvalidError, match="100000 windows"):
        query_usage(session, meter("COUNT"), long)


def test_a_question_that_the_meter_can_not_answer_is_refused(session: Session) -> None:
    with pytest.raises(InvalidError, match="unknown group by: model"):
        query_usage(session, meter("COUNT"), UsageQuery(group_by=("model",)))


@pytest.mark.parametrize("statement", [1, 2, 3, 4])
@pytest.mark.parametrize("late", ["2026-03-01T09:00", "2026-03-20T09:00"])
def test_an_event_stored_while_the_question_is_answered_never_falls_into_a_foreign_window(
    engine: Engine, late: str, statement: int
) -> None:
    """Even without a snapshot, where a statement sees what the one before it did not."""
    with Session(engine) as session, engine.connect() as other:
        store(session, [call("1", "2026-03-10T10:00")])
        session.commit()
        seen: list[int] = []

        def store_another(*_: object) -> None:
            seen.append(1)
            if len(seen) == statement:
                append_events(driver(other), keyed([(call("2", late), NOW)]), now=NOW)
                driver(other).commit()

        event.listen(session.connection(), "after_cursor_execute", store_another)
        rows = query_usage(session, meter("COUNT"), UsageQuery(window_size="DAY"))
    days = {(row.window.start.day, int(row.value)) for row in rows}
    known_in_time = statement == 1
    assert days == ({(10, 1), (datetime.fromisoformat(late).day, 1)} if known_in_time else {(10, 1)})
