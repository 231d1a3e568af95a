"""Group commit on a real PostgreSQL: who is answered when, and what a failure takes with it."""

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import psycopg
import pytest
from psycopg import Connection, OperationalError
from sqlalchemy import Engine

from api.database import connector
from api.flusher import (
    MAX_FLUSH,
    MAX_FLUSH_BYTES,
    MAX_PENDING,
    MAX_PENDING_BYTES,
    Flusher,
    QueueFullError,
    Receipt,
    StoreUnavailableError,
)
from metering.event import Event
from metering.events import Batch, append_events, keyed
from metering.kong import QuarantinedEntry
from tests.server import until

NOW = datetime(2026, 3, 15, 12, tzinfo=UTC)
Request = Sequence[Sequence[Event]]
Answer = Receipt | BaseException
T = TypeVar("T")


def call(name: str, *, subject: str = "ada", data: bytes | None = None) -> Event:
    return Event(id=name, source="gateway", type="call", subject=subject, time=NOW, data=data)


def calls(start: int, end: int) -> list[Event]:
    return [call(f"{i}") for i in range(start, end)]


def encoded(request: Request, received_at: datetime = NOW) -> list[Batch]:
    """As the ingest route hands it over."""
    return [keyed((event, received_at) for event in group) for group in request]


def bad(name: str, reason: str = "no time") -> tuple[str, QuarantinedEntry]:
    return "kong", QuarantinedEntry(digest=name.encode(), reason=reason, request_id=None, events=())


@pytest.fixture
def flusher(engine: Engine) -> Iterator[Flusher]:
    """Not yet started, so that requests can be made to wait for it."""
    flusher = Flusher(connector(engine), lambda: NOW)
    yield flusher
    flusher.stop()


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection[Any]]:
    """Another one, which sees what is committed."""
    with connector(engine)() as connection:
        yield connection


async def queued(flusher: Flusher, *requests: Request) -> "list[asyncio.Task[Receipt]]":
    """The requests, once they all wait."""
    tasks = [asyncio.create_task(flusher.store(encoded(request))) for request in requests]
    await asyncio.sleep(0)
    return tasks


def answers(flusher: Flusher, *requests: Request) -> list[Answer]:
    """What requests are answered that wait together when the flusher starts."""

    async def main() -> list[Answer]:
        tasks = await queued(flusher, *requests)
        flusher.start()
        return await asyncio.gather(*tasks, return_exceptions=True)

    return within_a_minute(main())


def within_a_minute(main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(main, 60))


def store(flusher: Flusher, *request: Sequence[Event]) -> Receipt:
    return within_a_minute(flusher.store(encoded(request)))


def stored(connection: Connection[Any]) -> dict[str, str]:
    """The subject of each event, by its id."""
    return dict(connection.execute("SELECT id, subject FROM events").fetchall())


def commits(connection: Connection[Any]) -> int:
    row = connection.execute("SELECT count(DISTINCT xmin::text) FROM events").fetchone()
    assert row is not None
    return int(row[0])


@contextmanager
def commits_held(connection: Connection[Any]) -> Iterator[None]:
    """Within the block, whoever stores an event waits at its COMMIT; it begins to do so at `until_held`."""
    connection.execute("SELECT pg_advisory_lock(1)")
    connection.execute("""
        CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql
            AS 'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END';
        CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON events DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION hold()""")
    try:
        yield
    finally:
        connection.execute("SELECT pg_advisory_unlock(1)")


def blocked(connection: Connection[Any]) -> int | None:
    """The process that waits for a lock in this database, if one does."""
    row = connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    ).fetchone()
    return row and row[0]


def test_an_answer_means_committed(flusher: Flusher, connection: Connection[Any]) -> None:
    async def main() -> None:
        with commits_held(connection):
            (task,) = await queued(flusher, [[call("1")]])
            flusher.start()
            until(lambda: blocked(connection) is not None)
            for _ in range(3):
                await asyncio.sleep(0)
            assert not task.done()
            assert stored(connection) == {}
        assert await task == Receipt(stored=1, duplicate=0)
        assert stored(connection) == {"1": "ada"}

    within_a_minute(main())


def test_requests_that_wait_together_share_a_commit(flusher: Flusher, connection: Connection[Any]) -> None:
    assert answers(flusher, *([[call(f"{i}")]] for i in range(50))) == [Receipt(1, 0)] * 50
    assert (len(stored(connection)), commits(connection)) == (50, 1)


def test_requests_one_after_another_are_committed_by_themselves(
    flusher: Flusher, connection: Connection[Any]
) -> None:
    flusher.start()
    for i in range(3):
        assert store(flusher, [call(f"{i}")]) == Receipt(1, 0)
    assert commits(connection) == 3


def test_what_comes_during_a_commit_shares_the_next_one(
    flusher: Flusher, connection: Connection[Any]
) -> None:
    async def main() -> None:
        with commits_held(connection):
            first = await queued(flusher, [[call("0")]])
            flusher.start()
            until(lambda: blocked(connection) is not None)
            rest = await queued(flusher, *([[call(f"{i}")]] for i in range(1, 10)))
        await asyncio.gather(*first, *rest)

    within_a_minute(main())
    assert (len(stored(connection)), commits(connection)) == (10, 2)


def test_a_commit_takes_whole_requests_up_to_its_size(flusher: Flusher, connection: Connection[Any]) -> None:
    third = MAX_FLUSH // 3
    requests = [[calls(i * third, (i + 1) * third)] for i in range(3)]
    large = [calls(MAX_FLUSH, 2 * MAX_FLUSH + 1)]
    assert answers(flusher, *requests, [calls(-10, 0)], large) == [Receipt(1, 0)] * 5
    assert commits(connection) == 3


def test_large_events_share_a_commit_only_up_to_its_bytes(
    flusher: Flusher, connection: Connection[Any]
) -> None:
    text = b'{"a": "%b"}' % (b"x" * (MAX_FLUSH_BYTES // 2))
    requests = [[[call(f"{i}", data=text)]] for i in range(2)]
    assert answers(flusher, *requests, [[call("small")]]) == [Receipt(1, 0)] * 3
    assert commits(connection) == 2


def test_few_events_are_too_many_when_they_are_large(flusher: Flusher) -> None:
    async def main() -> None:
        waiting = asyncio.create_task(flusher.store([{b"key": (bytes(MAX_PENDING_BYTES),)}]))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await flusher.store(encoded([[call("late")]]))
        waiting.cancel()

    within_a_minute(main())


def test_times_tell_when_an_event_was_received_and_when_it_was_stored(
    engine: Engine, connection: Connection[Any]
) -> None:
    stored_at, received = NOW + timedelta(seconds=3), [NOW + timedelta(seconds=i) for i in range(2)]
    flusher = Flusher(connector(engine), lambda: stored_at)
    requests = [[call("1", subject="first")]], [[call("1"), call("2")]]

    async def main() -> list[Receipt]:
        groups = [encoded(request, at) for request, at in zip(requests, received, strict=True)]
        tasks = [asyncio.create_task(flusher.store(each)) for each in groups]
        await asyncio.sleep(0)
        flusher.start()
        return await asyncio.gather(*tasks)

    assert within_a_minute(main()) == [Receipt(1, 0)] * 2
    flusher.stop()
    rows = connection.execute("SELECT id, subject, ingested_at, stored_at FROM events ORDER BY id").fetchall()
    assert rows == [("1", "first", received[0], stored_at), ("2", "ada", received[1], stored_at)]


@pytest.mark.parametrize(
    ("requests", "receipts"),
    [
        ([[]], [(0, 0)]),
        ([["1", "2"]], [(2, 0)]),
        ([["12"]], [(1, 0)]),
        ([["0"]], [(0, 1)]),
        ([["01"]], [(1, 0)]),
        ([["01", "0"]], [(1, 1)]),
        ([["11"]], [(1, 0)]),
        ([["1", "1"]], [(1, 1)]),
        ([["12", "21"]], [(1, 1)]),
        ([["12", "23"]], [(2, 0)]),
        ([["1"], ["1"]], [(1, 0), (0, 1)]),
        ([["12"], ["1", "2"]], [(1, 0), (0, 2)]),
        ([["1"], ["12"], ["2", "0"]], [(1, 0), (1, 0), (0, 2)]),
    ],
)
def test_a_group_is_stored_when_any_event_of_it_was_new_to_everybody(
    flusher: Flusher,
    connection: Connection[Any],
    requests: list[list[str]],
    receipts: list[tuple[int, int]],
) -> None:
    """Each digit is an event, each word a group; 0 is stored already."""
    append_events(connection, keyed([(call("0"), NOW)]), now=NOW)
    found = answers(flusher, *([[call(digit) for digit in group] for group in groups] for groups in requests))
    assert found == [Receipt(*receipt) for receipt in receipts]


def test_entries_for_the_quarantine_are_in_the_same_commit(
    flusher: Flusher, connection: Connection[Any]
) -> None:
    async def main() -> list[Receipt]:
        requests = [
            flusher.store(encoded([[call("1")]]), quarantined=[bad("a"), bad("b")]),
            flusher.store([], quarantined=[bad("b"), bad("c")]),
        ]
        tasks = [asyncio.create_task(request) for request in requests]
        await asyncio.sleep(0)
        flusher.start()
        return await asyncio.gather(*tasks)

    assert within_a_minute(main()) == [Receipt(1, 0), Receipt(0, 0)]
    found = connection.execute("SELECT digest, received_at, xmin::text FROM quarantined_entries").fetchall()
    assert {(digest, at) for digest, at, _ in found} == {(b"a", NOW), (b"b", NOW), (b"c", NOW)}
    assert {xmin for *_, xmin in found} == set(
        *connection.execute("SELECT xmin::text FROM events").fetchall()
    )


def test_when_too_much_waits_a_request_is_turned_away_and_nothing_of_it_is_stored(
    flusher: Flusher, connection: Connection[Any]
) -> None:
    async def main() -> list[Answer]:
        tasks = await queued(
            flusher,
            [calls(0, MAX_PENDING - 1)],
            [[call("too"), call("many")]],
            [[call("last")]],
            [[call("late")]],
        )
        flusher.start()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, too_many, last, late = within_a_minute(main())
    assert (first, last) == (Receipt(1, 0), Receipt(1, 0))
    assert isinstance(too_many, QueueFullError)
    assert isinstance(late, QueueFullError)
    names = stored(connection)
    assert len(names) == MAX_PENDING
    assert "last" in names
    assert store(flusher, [call("late")]) == Receipt(1, 0)


def test_one_request_alone_may_be_larger_than_the_queue(flusher: Flusher) -> None:
    async def main() -> None:
        tasks = await queued(flusher, [[call("x"), *calls(0, MAX_PENDING)]])
        assert not tasks[0].done()
        tasks[0].cancel()

    within_a_minute(main())


def test_entries_for_the_quarantine_take_up_room_in_the_queue(flusher: Flusher) -> None:
    async def main() -> None:
        full = asyncio.create_task(flusher.store([], quarantined=[bad("a")] * MAX_PENDING))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await flusher.store([], quarantined=[bad("b")])
        full.cancel()

    within_a_minute(main())


def test_what_was_accepted_is_committed_before_the_end_and_nothing_is_accepted_after(
    flusher: Flusher, connection: Connection[Any]
) -> None:
    async def main() -> list[Receipt]:
        tasks = await queued(flusher, *([calls(i * MAX_FLUSH, (i + 1) * MAX_FLUSH)] for i in range(3)))
        flusher.start()
        flusher.stop()
        assert len(stored(connection)) == 3 * MAX_FLUSH
        with pytest.raises(StoreUnavailableError, match="shutting down"):
            await flusher.store(encoded([[call("late")]]))
        return await asyncio.gather(*tasks)

    assert within_a_minute(main()) == [Receipt(1, 0)] * 3
    assert "late" not in stored(connection)


def test_one_that_never_started_can_be_stopped(flusher: Flusher) -> None:
    flusher.stop()
    with pytest.raises(StoreUnavailableError):
        store(flusher, [call("1")])


# What can go wrong.


def test_a_connection_that_died_is_replaced_at_the_next_request(
    flusher: Flusher, connection: Connection[Any]
) -> None:
    flusher.start()
    store(flusher, [call("1")])
    end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
    connection.execute(f"{end} AND datname = current_database() AND application_name = 'tollgate ingest'")
    with pytest.raises(StoreUnavailableError, match="send it again"):
        store(flusher, [call("2")])
    assert store(flusher, [call("2")]) == Receipt(1, 0)


def test_a_connection_that_dies_during_the_commit_fails_all_of_it(
    flusher: Flusher, connection: Connection[Any]
) -> None:
    async def main() -> list[Answer]:
        with commits_held(connection):
            tasks = await queued(flusher, [[call("1")]], [[call("2")]])
            flusher.start()
            until(lambda: blocked(connection) is not None)
            connection.execute("SELECT pg_terminate_backend(%s, 5000)", [blocked(connection)])
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(answer) for answer in within_a_minute(main())] == [StoreUnavailableError] * 2
    assert stored(connection) == {}
    assert store(flusher, [call("1")], [call("2")]) == Receipt(2, 0)


@pytest.mark.parametrize(
    "error", [OperationalError("no route\nto host"), OperationalError(), psycopg.InterfaceError()]
)
def test_a_database_that_can_not_be_reached_is_tried_again_at_the_next_request(
    engine: Engine, error: Exception
) -> None:
    outages = [error, error]

    def connect() -> Connection[Any]:
        if outages:
            raise outages.pop()
        return connector(engine)()

    flusher = Flusher(connect, lambda: NOW)
    unavailable = answers(flusher, [[call("1")]], [[call("2")]])
    assert [type(answer) for answer in unavailable] == [StoreUnavailableError] * 2
    with pytest.raises(StoreUnavailableError):
        store(flusher, [call("1")])
    assert store(flusher, [call("1")], [call("2")]) == Receipt(2, 0)
    flusher.stop()


@pytest.mark.parametrize(
    "poison",
    [
        call("p", data=b'{"a": "\\u0000"}'),
        call("p", data=b"no json"),
        call("p", subject="a\0b"),
        call("p", data=b"[" * 100_000 + b"]" * 100_000),
    ],
    ids=["U+0000", "no JSON", "U+0000 in a name", "too deep"],
)
def test_a_request_that_can_not_be_stored_fails_alone_and_whole(
    flusher: Flusher, connection: Connection[Any], poison: Event
) -> None:
    first, poisoned, last = answers(
        flusher, [[call("1")]], [[call("2"), poison], [call("3")]], [[call("4")], [call("1")]]
    )
    assert (first, last) == (Receipt(1, 0), Receipt(1, 1))
    assert isinstance(poisoned, Exception)
    assert not isinstance(poisoned, StoreUnavailableError)
    assert stored(connection).keys() == {"1", "4"}
    assert store(flusher, [call("2")]) == Receipt(1, 0)


def test_of_two_events_with_one_identity_in_a_request_the_first_counts(
    flusher: Flusher, connection: Connection[Any]
) -> None:
    flusher.start()
    twice = [call("1", subject="first"), call("1", subject="second")]
    assert store(flusher, twice, [call("1", subject="third")]) == Receipt(1, 1)
    assert stored(connection) == {"1": "first"}


def test_an_entry_that_can_not_be_quarantined_fails_alone(
    flusher: Flusher, connection: Connection[Any]
) -> None:
    async def main() -> list[Answer]:
        requests = [
            flusher.store(encoded([[call("1")]]), quarantined=[bad("a")]),
            flusher.store(encoded([[call("2")]]), quarantined=[bad("b", "because of U+\0")]),
        ]
        tasks = [asyncio.create_task(request) for request in requests]
        await asyncio.sleep(0)
        flusher.start()
        return await asyncio.gather(*tasks, return_exceptions=True)

    good, poisoned = within_a_minute(main())
    assert good == Receipt(1, 0)
    assert isinstance(poisoned, Exception)
    assert stored(connection).keys() == {"1"}
    assert connection.execute("SELECT digest FROM quarantined_entries").fetchall() == [(b"a",)]


def test_an_event_that_another_server_is_storing_at_the_moment_is_stored_once(
    flusher: Flusher, connection: Connection[Any], engine: Engine
) -> None:
    async def main() -> list[Receipt]:
        with connector(engine)() as another:
            another.autocommit = False
            append_events(another, keyed([(call("1", subject="theirs"), NOW)]), now=NOW)
            tasks = await queued(flusher, [[call("0")], [call("1")]], [[call("1")]], [[call("1"), call("2")]])
            entry = asyncio.create_task(flusher.store([], quarantined=[bad("a")]))
            await asyncio.sleep(0)
            flusher.start()
            until(lambda: blocked(connection) is not None)
            another.commit()
        return await asyncio.gather(*tasks, entry)

    assert within_a_minute(main()) == [Receipt(1, 1), Receipt(0, 1), Receipt(1, 0), Receipt(0, 0)]
    assert stored(connection) == {"0": "ada", "1": "theirs", "2": "ada"}
    assert commits(connection) == 2
    assert connection.execute("SELECT digest FROM quarantined_entries").fetchall() == [(b"a",)]


def test_two_flushers_with_the_same_events_store_each_once(
    engine: Engine, connection: Connection[Any]
) -> None:
    flushers = [Flusher(connector(engine), lambda: NOW) for _ in range(2)]
    requests = [[calls(i, i + 20)] for i in range(0, 400, 10)]

    async def main() -> list[Receipt]:
        tasks = [
            asyncio.create_task(f.store(encoded([[one] for one in group])))
            for (group,) in requests
            for f in flushers
        ]
        await asyncio.sleep(0)
        for flusher in flushers:
            flusher.start()
        return await asyncio.gather(*tasks)

    receipts = within_a_minute(main())
    for flusher in flushers:
        flusher.stop()
    assert len(stored(connection)) == 410
    assert sum(receipt.stored for receipt in receipts) == 410
    assert sum(receipt.duplicate for receipt in receipts) == 2 * 800 - 410


def test_a_client_that_goes_away_takes_no_one_along(flusher: Flusher, connection: Connection[Any]) -> None:
    async def main() -> Receipt:
        gone, here = await queued(flusher, [[call("1")]], [[call("2")]])
        gone.cancel()
        flusher.start()
        return await here

    assert within_a_minute(main()) == Receipt(1, 0)
    assert stored(connection).keys() == {"1", "2"}


def test_when_nobody_waits_any_more_the_flusher_goes_on(
    flusher: Flusher, connection: Connection[Any]
) -> None:
    async def main() -> None:
        await queued(flusher, [[call("1")]])

    within_a_minute(main())
    flusher.start()
    assert store(flusher, [call("2")]) == Receipt(1, 0)
    assert stored(connection).keys() == {"1", "2"}


def test_one_connection_is_held_and_it_looks_keys_up_in_the_index(engine: Engine) -> None:
    opened: list[Connection[Any]] = []

    def connect() -> Connection[Any]:
        opened.append(connector(engine)())
        return opened[-1]

    flusher = Flusher(connect, lambda: NOW)
    flusher.start()
    store(flusher, [call("1")])
    store(flusher, [call("2")])
    (held,) = opened
    assert held.execute("SHOW enable_seqscan").fetchone() == ("off",)
    flusher.stop()
    assert held.closed
