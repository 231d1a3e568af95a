"""The store: once each, the first one wins, and whatever was accepted can be kept."""

import json
import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import Connection
from psycopg.errors import UniqueViolation
from sqlalchemy.orm import Session

from metering.event import Event, InvalidEventError, decode_events
from metering.events import Batch, StoredEvent, append_events, insert_events, keyed
from metering.ids import event_key, key_bytes
from tests.server import until

Append = Callable[..., set[bytes]]

NOW = datetime(2026, 3, 15, 12, tzinfo=UTC)
GOOD = ("id", "source", "type", "subject")
RECEIVED = NOW - timedelta(seconds=1)


def call(name: str, *, subject: str = "ada", data: bytes | None = None, source: str = "gateway") -> Event:
    return Event(id=name, source=source, type="call", subject=subject, time=NOW, data=data)


def batch(*events: Event) -> Batch:
    return keyed((event, RECEIVED) for event in events)


def keys(*names: str) -> set[bytes]:
    return {key_bytes("gateway", name) for name in names}


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection[Any]]:
    with connected(database_url) as connection:
        yield connection


def connected(url: str) -> Connection[Any]:
    return psycopg.connect(url.replace("+psycopg", ""), options="-c timezone=UTC")


def stored(connection: Connection[Any]) -> dict[str, str]:
    """The subject of each event, by its id."""
    return dict(connection.execute("SELECT id, subject FROM events").fetchall())


def test_of_two_events_with_one_identity_in_a_batch_the_first_counts() -> None:
    twice = [(call("1", subject="first"), RECEIVED), (call("1", subject="second"), NOW)]
    assert keyed(twice) == keyed(twice[:1])
    assert keyed(twice) != keyed(twice[1:])
    assert len(batch(call("1"), call("1", source="another"), call("2"))) == 3


def test_what_is_new_is_stored_and_named(connection: Connection[Any]) -> None:
    assert append_events(connection, batch(call("1"), call("2")), now=NOW) == keys("1", "2")
    assert append_events(connection, batch(call("2"), call("3")), now=NOW) == keys("3")
    assert append_events(connection, batch(call("1"), call("3")), now=NOW) == set()
    assert stored(connection).keys() == {"1", "2", "3"}


def test_nothing_at_all_can_be_stored(connection: Connection[Any]) -> None:
    assert append_events(connection, {}, now=NOW) == set()
    assert insert_events(connection, {}, now=NOW) == set()


@pytest.mark.parametrize("append", [append_events, insert_events])
def test_the_first_event_wins_however_late_another_one_comes(
    connection: Connection[Any], append: Append
) -> None:
    append_events(connection, batch(call("1", subject="first")), now=NOW)
    later = NOW + timedelta(days=400)
    assert append(connection, batch(call("1", subject="second"), call("2")), now=later) == keys("2")
    assert stored(connection) == {"1": "first", "2": "ada"}


@pytest.mark.parametrize("append", [append_events, insert_events])
def test_every_attribute_comes_back(session: Session, append: Append) -> None:
    driver = session.connection().connection.driver_connection
    event = Event(
        id="1",
        source="//gateway/1",
        type="call",
        subject="Ä",
        time=datetime.fromisoformat("2026-03-01T10:00:00.123456+02:00"),
        data=b'{"tokens": 12.50, "model": "gpt"}',
        specversion="1.1",
        dataschema="urn:x",
    )
    append(driver, batch(event, call("2")), now=NOW)
    found = session.get_one(StoredEvent, event_key("//gateway/1", "1"))
    assert (found.id, found.source, found.type, found.subject) == ("1", "//gateway/1", "call", "Ä")
    assert found.time == datetime(2026, 3, 1, 8, 0, 0, 123456, tzinfo=UTC)
    assert found.data == {"tokens": 12.5, "model": "gpt"}
    assert (found.specversion, found.dataschema) == ("1.1", "urn:x")
    assert (found.ingested_at, found.stored_at) == (RECEIVED, NOW)
    bare = session.get_one(StoredEvent, event_key("gateway", "2"))
    assert (bare.data, bare.dataschema, bare.specversion) == (None, None, "1.0")


def test_what_is_rolled_back_was_never_stored(connection: Connection[Any]) -> None:
    append_events(connection, batch(call("1")), now=NOW)
    connection.rollback()
    assert append_events(connection, batch(call("1")), now=NOW) == keys("1")


@pytest.fixture
def other(database_url: str) -> Iterator[Connection[Any]]:
    with connected(database_url) as connection:
        yield connection


@contextmanager
def appending(
    append: Append, connection: Connection[Any], events: Batch, *, held_by: Connection[Any]
) -> Iterator["Future[set[bytes]]"]:
    """Append in a thread; the block begins when that waits for what `held_by` has not yet committed."""
    pid = connection.info.backend_pid
    waits = "SELECT FROM pg_locks WHERE pid = %s AND NOT granted"
    with ThreadPoolExecutor(1) as thread:
        try:
            answer = thread.submit(append, connection, events, now=NOW)
            until(lambda: answer.done() or held_by.execute(waits, [pid]).rowcount > 0)
            assert not answer.done(), "it should wait"
            yield answer
        finally:
            held_by.rollback()


def test_whoever_comes_second_is_told_so_and_then_stores_nothing_twice(
    connection: Connection[Any], other: Connection[Any]
) -> None:
    append_events(connection, batch(call("1", subject="first"), call("2")), now=NOW)
    events = batch(call("0"), call("1", subject="second"), call("3"))
    with appending(append_events, other, events, held_by=connection) as answer:
        connection.commit()
        with pytest.raises(UniqueViolation):
            answer.result()
    other.rollback()
    assert insert_events(other, events, now=NOW) == keys("0", "3")
    other.commit()
    assert stored(connection) == {"0": "ada", "1": "first", "2": "ada", "3": "ada"}


def test_in_a_race_the_second_waits_for_the_first_to_commit(
    connection: Connection[Any], other: Connection[Any]
) -> None:
    append_events(connection, batch(call("1", subject="first"), call("2")), now=NOW)
    events = batch(call("0"), call("1", subject="second"), call("3"))
    with appending(insert_events, other, events, held_by=connection) as answer:
        connection.commit()
        assert answer.result() == keys("0", "3")
    other.commit()
    assert stored(connection) == {"0": "ada", "1": "first", "2": "ada", "3": "ada"}


@pytest.mark.parametrize("append", [append_events, insert_events])
def test_when_the_first_gives_up_the_second_has_it(
    connection: Connection[Any], other: Connection[Any], append: Append
) -> None:
    append_events(connection, batch(call("1", subject="first")), now=NOW)
    events = batch(call("1", subject="second"), call("3"))
    with appending(append, other, events, held_by=connection) as answer:
        connection.rollback()
        assert answer.result() == keys("1", "3")
    other.commit()
    assert stored(connection) == {"1": "second", "3": "ada"}


@pytest.mark.parametrize(("append", "refusal"), [(append_events, UniqueViolation), (insert_events, None)])
def test_batches_that_overlap_in_any_order_never_wait_for_each_other_in_a_circle(
    connection: Connection[Any], other: Connection[Any], append: Append, refusal: type[Exception] | None
) -> None:
    """Both write in the order of the keys, so that who waits holds nothing that the other still needs."""
    calls = [call(f"{i}") for i in range(50)]
    first = min(calls, key=lambda event: event_key(event.source, event.id))
    append_events(connection, batch(first), now=NOW)
    with appending(append, other, batch(*calls), held_by=connection) as answer:
        append_events(connection, batch(*reversed(calls)), now=NOW)
        connection.commit()
        assert type(answer.exception()) is (refusal or type(None))


# What decode_events lets through, PostgreSQL can hold.

texts = st.text(st.characters(codec="utf-8"), max_size=20)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
times = st.integers(-10, 253_000_000_000).map(
    lambda seconds: NOW - timedelta(seconds=NOW.timestamp() - seconds)
)
json_numbers = st.from_regex(r"-?(0|[1-9][0-9]{0,50})(\.[0-9]{1,50})?([eE][+-]?[0-9]{1,4})?", fullmatch=True)
json_scalars = st.sampled_from(["null", "true", "false", "-0", "-0.0", "1e999", "1e-999"]) | json_numbers
json_texts = st.recursive(
    json_scalars | texts.map(json.dumps) | texts.map(lambda text: json.dumps(text, ensure_ascii=False)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(st.tuples(texts.map(json.dumps), inner), max_size=3).map(
            lambda members: "{" + ", ".join(f"{name}: {value}" for name, value in members) + "}"
        ),
    ),
    max_leaves=6,
)


@st.composite
def nearly_json(draw: st.DrawFn) -> str:
    """JSON, or JSON with a slip in it."""
    text = draw(json_texts)
    cut = draw(st.integers(0, len(text)))
    slip = draw(
        st.sampled_from(
            ["", "", "\\", '"', "\n", "\x01", "\0", "\\u0000", "\\ud800", "e9", "-", ".", "0", ",", " "]
        )
    )
    return text[:cut] + slip + text[cut:]


wires = st.fixed_dictionaries(
    dict.fromkeys(GOOD, names),
    optional={
        "time": st.tuples(times, st.timezones() | st.just(UTC)).map(
            lambda both: both[0].astimezone(both[1]).isoformat()
        ),
        "specversion": names,
        "dataschema": names,
    },
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wire=wires, data=nearly_json())
@example(wire=dict.fromkeys(GOOD, "x"), data="9" * 1000)
def test_what_is_accepted_can_be_stored_and_comes_back_exactly(
    connection: Connection[Any], wire: dict[str, str], data: str
) -> None:
    body = f'{json.dumps(wire)[:-1]}, "data": {{"v": {data}}}}}'
    try:
        (event,) = decode_events(body.encode(errors="surrogatepass"), content="single", now=NOW)
    except InvalidEventError:
        return
    append_events(connection, batch(event), now=NOW)
    columns = "id, source, type, subject, time, data::text, specversion, dataschema"
    row = connection.execute(f"DELETE FROM events RETURNING {columns}").fetchone()
    assert row is not None
    back = json.loads(row[5], parse_float=Decimal)
    assert back == json.loads(event.data or b"", parse_float=Decimal)
    assert row[:5] + row[6:] == (
        event.id, event.source, event.type, event.subject, event.time, event.specversion, event.dataschema
    )  # fmt: skip


def test_the_longest_names_fit_into_the_index_however_little_they_repeat(connection: Connection[Any]) -> None:
    strange = random.Random(1)  # noqa: S311  nobody's secret

    def name(length: int) -> str:
        return "".join(chr(strange.randrange(0x10000, 0x110000)) for _ in range(length))

    wire = {"id": name(1024), "source": name(1024), "type": name(128), "subject": name(512)}
    (event,) = decode_events(json.dumps(wire).encode(), content="single", now=NOW)
    assert append_events(connection, batch(event), now=NOW) == {key_bytes(event.source, event.id)}
    found = connection.execute(
        "SELECT id, source FROM events WHERE type = %s AND subject = %s", [event.type, event.subject]
    ).fetchall()
    assert found == [(event.id, event.source)]


def test_numbers_are_stored_to_the_last_digit(connection: Connection[Any]) -> None:
    data = b'{"v": [0.1, 1.50, 1e3, 12345678901234567890.00000000001, -1e-20]}'
    append_events(connection, batch(call("1", data=data)), now=NOW)
    assert connection.execute("SELECT data::text FROM events").fetchone() == (
        '{"v": [0.1, 1.50, 1000, 12345678901234567890.00000000001, -0.00000000000000000001]}',
    )
