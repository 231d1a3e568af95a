from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import psycopg
from sqlalchemy.orm import Session

from metering.event import Event
from metering.kong import QuarantinedEntry
from metering.quarantine import Quarantined, list_quarantined, quarantine

TOKENS = Event(
    id="r1/request",
    source="kong",
    type="llm",
    subject="Ä",
    time=datetime(2026, 3, 1, 10, 0, 0, 123456, tzinfo=UTC),
    data=b'{"tokens": 12.50, "huge": 12345678901234567890.5}',
)


def entry(
    name: str, *events: Event, reason: str = "no time", request_id: str | None = "r1"
) -> QuarantinedEntry:
    return QuarantinedEntry(digest=name.encode(), reason=reason, request_id=request_id, events=events)


def keep(session: Session, *entries: QuarantinedEntry, gateway: str = "kong", now: datetime) -> None:
    connection = session.connection().connection.driver_connection
    assert isinstance(connection, psycopg.Connection)
    quarantine(connection, [(gateway, one) for one in entries], now=now)


def digests(found: Sequence[Quarantined]) -> list[bytes]:
    return [one.digest for one in found]


def test_an_entry_is_kept_with_its_reason_and_what_it_would_count_as(session: Session, now: datetime) -> None:
    keep(session, entry("a", TOKENS, reason="estimated", request_id="r1"), gateway="prod", now=now)
    (found,), count = list_quarantined(session)
    assert (found.digest, found.gateway, found.request_id, found.reason) == (b"a", "prod", "r1", "estimated")
    assert (found.received_at, count) == (now, 1)
    assert found.events == [
        {
            "id": "r1/request",
            "source": "kong",
            "type": "llm",
            "subject": "Ä",
            "time": "2026-03-01T10:00:00.123456+00:00",
            "data": '{"tokens": 12.50, "huge": 12345678901234567890.5}',
        }
    ]


def test_what_could_not_be_read_at_all_is_kept_too(session: Session, now: datetime) -> None:
    bare = Event(id="1", source="kong", type="call", subject="ada", time=now)
    keep(session, entry("a", request_id=None), entry("b", bare), now=now)
    (first, second), _ = list_quarantined(session)
    assert (first.request_id, first.events) == (None, [])
    assert second.events[0]["data"] == "null"


def test_nothing_to_keep_is_no_trouble(session: Session, now: datetime) -> None:
    keep(session, now=now)
    assert list_quarantined(session) == ([], 0)


def test_a_retried_entry_is_kept_once_and_as_it_came_first(session: Session, now: datetime) -> None:
    keep(session, entry("a"), entry("b"), now=now)
    keep(session, entry("b", reason="another"), entry("c"), entry("c"), now=now + timedelta(days=1))
    found, count = list_quarantined(session)
    assert (digests(found), count) == ([b"c", b"a", b"b"], 3)
    assert {one.reason for one in found} == {"no time"}


def test_the_newest_come_first_and_all_are_counted(session: Session, now: datetime) -> None:
    for day in range(5):
        keep(session, entry(f"{day}", reason=f"day {day}"), now=now + timedelta(days=day))
    found, count = list_quarantined(session, limit=2)
    assert (digests(found), count) == ([b"4", b"3"], 5)


def test_a_gateway_has_its_own_list(session: Session, now: datetime) -> None:
    keep(session, entry("a"), entry("b"), gateway="prod", now=now)
    keep(session, entry("c"), gateway="test", now=now)
    found, count = list_quarantined(session, gateway="prod", limit=1)
    assert (digests(found), count) == ([b"a"], 2)
    assert list_quarantined(session, gateway="prod-2") == ([], 0)
