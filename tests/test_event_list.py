"""Lists of stored events: newest first, page by page, each event once, wherever it is stored."""

import json
import uuid
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from metering.event import Event
from metering.event_list import EventCursor, EventQuery, ListedEvent, list_events
from metering.filter_string import FilterString, matches
from metering.filter_time import FilterTime, is_within
from metering.ids import event_key, new_id
from metering.period import LAST_INSTANT
from tests.builders import at, store

NOW = at("2026-03-15T12:00:00")


def happened(number: int, time: datetime, subject: str = "me", kind: str = "llm", **more: Any) -> Event:
    return Event(id=f"id-{number}", source="gateway", type=kind, subject=subject, time=time, **more)


def ids(found: list[ListedEvent]) -> list[str]:
    return [one.id for one in found]


def listed(session: Session, **asked: Any) -> list[str]:
    return ids(list_events(session, EventQuery(**{"limit": 100, **asked}), now=NOW))


def paged(session: Session, *, limit: int, crowd: int = 2000, **asked: Any) -> list[ListedEvent]:
    """Every page, one after the other."""
    found: list[ListedEvent] = []
    after = None
    while page := list_events(session, EventQuery(limit=limit, after=after, **asked), now=NOW, crowd=crowd):
        found += page
        after = page[-1].cursor
    return found


def retire(session: Session, *numbers: int) -> None:
    keys = [event_key("gateway", f"id-{number}") for number in numbers]
    moved = (
        "WITH gone AS (DELETE FROM events WHERE key = ANY(:keys) RETURNING *)"
        " INSERT INTO retired_events SELECT * FROM gone"
    )
    session.execute(text(moved), {"keys": keys})


def test_an_event_is_listed_as_it_was_sent(session: Session) -> None:
    data = b'{"tokens": 0.10000000000000000000000000000000001, "none": null}'
    sent = happened(1, at("2026-03-15T11:00:00.123456"), data=data, dataschema="https://example.com/schema")
    store(session, sent)
    (found,) = list_events(session, EventQuery(limit=10), now=NOW)
    assert found.key == event_key("gateway", "id-1")
    assert (found.id, found.source, found.type, found.subject) == ("id-1", "gateway", "llm", "me")
    assert (found.time, found.specversion, found.dataschema) == (sent.time, "1.0", sent.dataschema)
    assert json.loads(found.data or "", parse_float=str) == json.loads(data, parse_float=str)
    assert (found.ingested_at, found.stored_at) == (sent.time, at("2026-01-01"))
    assert found.voided_at is None


def test_the_newest_comes_first_from_both_tables_and_from_the_future(session: Session) -> None:
    times = [NOW + timedelta(days=days) for days in (-4000, -20000, -1, 0, 3, 0, -31, 1000000)]
    store(session, *(happened(i, time) for i, time in enumerate(times)))
    retire(session, 0, 2, 3)
    same = sorted(["id-3", "id-5"], key=lambda name: event_key("gateway", name), reverse=True)
    expected = ["id-7", "id-4", *same, "id-2", "id-6", "id-0", "id-1"]
    assert listed(session) == expected
    assert listed(session, subjects=("me", "you")) == expected
    for limit in (1, 2, 3, 7, 8):
        assert ids(paged(session, limit=limit)) == expected
        assert ids(paged(session, limit=limit, subjects=("me",))) == expected


FILTERS: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [5, 4, 3, 2, 1, 0]),
    ({"subjects": ()}, []),
    ({"subjects": ("s1",)}, [4, 1]),
    ({"subjects": ("s1", "s2", "s9")}, [5, 4, 2, 1]),
    ({"subject": FilterString(eq="s1")}, [4, 1]),
    ({"subject": FilterString(in_=("s0", "s1")), "subjects": ("s1", "s2")}, [4, 1]),
    ({"subject": FilterString(eq="s1", ne="s1")}, []),
    ({"subject": FilterString(in_=())}, []),
    ({"subject": FilterString(nin=("s1", "s2"))}, [3, 0]),
    ({"subject": FilterString(or_=(FilterString(eq="s0"), FilterString(like="%2")))}, [5, 3, 2, 0]),
    ({"id": FilterString(eq="id-3")}, [3]),
    ({"id": FilterString(eq="id-3"), "source": FilterString(eq="gateway")}, [3]),
    ({"id": FilterString(eq="id-3"), "source": FilterString(eq="other")}, []),
    ({"id": FilterString(eq="id-3"), "source": FilterString(eq="gateway"), "subjects": ("s1",)}, []),
    ({"id": FilterString(eq="id-3"), "source": FilterString(eq="gateway", ne="gateway")}, []),
    ({"id": FilterString(gt="id-3")}, [5, 4]),
    ({"id_part": "-3"}, [3]),
    ({"id_part": "%"}, []),
    ({"source": FilterString(ne="gateway")}, []),
    ({"type": FilterString(ilike="LLM")}, [4, 2, 0]),
    ({"type": FilterString(eq="api"), "subjects": ("s1",)}, [1]),
    ({"time": FilterTime(gte=NOW - timedelta(hours=4), lt=NOW - timedelta(hours=2))}, [3, 2]),
    ({"time": FilterTime(gt=NOW - timedelta(hours=4), lte=NOW - timedelta(hours=2))}, [4, 3]),
    ({"time": FilterTime(gte=NOW, lt=NOW)}, []),
    ({"time": FilterTime(lt=at("1969-01-01"))}, []),
    ({"time": FilterTime(gte=LAST_INSTANT)}, []),
    ({"time": FilterTime(gte=NOW - timedelta(hours=4)), "subjects": ("s1",)}, [4]),
    ({"ingested_at": FilterTime(lt=NOW - timedelta(hours=4))}, [1, 0]),
    ({"limit": 2}, [5, 4]),
]


@pytest.mark.parametrize(("asked", "expected"), FILTERS)
def test_every_filter_finds_what_it_names(
    session: Session, asked: dict[str, Any], expected: list[int]
) -> None:
    for i in range(6):
        time = NOW - timedelta(hours=6 - i)
        store(session, happened(i, time, subject=f"s{i % 3}", kind=("llm", "api")[i % 2]))
    assert listed(session, **asked) == [f"id-{i}" for i in expected]
    retire(session, 1, 2, 3)
    assert listed(session, **asked) == [f"id-{i}" for i in expected]
    limit = asked.get("limit", 2)
    rest = {name: value for name, value in asked.items() if name != "limit"}
    assert ids(paged(session, limit=limit, **rest))[: len(expected)] == [f"id-{i}" for i in expected]


def test_a_cursor_is_a_place_whether_or_not_an_event_is_there(session: Session) -> None:
    store(session, *(happened(i, NOW - timedelta(hours=i)) for i in range(3)))
    nowhere = EventCursor(NOW - timedelta(minutes=1), uuid.UUID(int=0))
    assert listed(session, after=nowhere) == ["id-1", "id-2"]
    assert listed(session, after=EventCursor(at("9989-12-31T23:59:59"), uuid.UUID(int=0)), limit=1) == [
        "id-0"
    ]
    assert listed(session, after=EventCursor(at("1960-01-01"), uuid.UUID(int=0))) == []


def test_a_void_event_stays_listed_and_says_since_when_until_it_is_restored(session: Session) -> None:
    store(session, happened(1, NOW - timedelta(hours=1)), happened(2, NOW - timedelta(hours=2)))
    row = {"key": event_key("gateway", "id-1"), "correction": new_id(NOW), "now": NOW}
    session.execute(text("INSERT INTO voided_events VALUES (:key, :correction, :now, NULL)"), row)
    found = list_events(session, EventQuery(limit=10), now=NOW)
    assert [one.voided_at for one in found] == [NOW, None]
    session.execute(text("UPDATE voided_events SET restored_at = :now"), row)
    assert list_events(session, EventQuery(limit=10), now=NOW)[0].voided_at is None


def test_many_events_of_one_instant_are_paged_by_key(session: Session) -> None:
    store(session, *(happened(i, NOW) for i in range(250)))
    found = [one.key for one in paged(session, limit=100)]
    assert found == sorted((event_key("gateway", f"id-{i}") for i in range(250)), reverse=True)


spans = st.sampled_from([timedelta(0), timedelta(microseconds=1), timedelta(seconds=1), timedelta(hours=1)])
moments = st.builds(
    lambda span, factor: NOW + span * factor,
    spans | st.just(timedelta(days=100)),
    st.integers(-30, 30),
)
texts = st.sampled_from(["a", "b", "ab"])
text_filters = st.builds(
    FilterString,
    eq=st.none() | texts,
    ne=st.none() | texts,
    in_=st.none() | st.lists(texts, max_size=2).map(tuple),
    like=st.none() | st.sampled_from(["a%", "%b"]),
)
time_filters = st.builds(FilterTime, gte=st.none() | moments, lt=st.none() | moments, lte=st.none() | moments)
happenings = st.lists(st.tuples(moments, texts, texts, st.booleans()), max_size=40)


@settings(max_examples=150)
@given(
    events=happenings,
    subject=text_filters,
    kind=text_filters,
    time=time_filters,
    limit=st.integers(1, 6),
    crowd=st.integers(2, 9),
)
def test_pages_hold_what_passes_newest_first_however_the_windows_are_cut(
    *,
    shared_engine: Engine,
    events: list[tuple[datetime, str, str, bool]],
    subject: FilterString,
    kind: FilterString,
    time: FilterTime,
    limit: int,
    crowd: int,
) -> None:
    sent = [happened(i, at_, subject=s, kind=k) for i, (at_, s, k, _) in enumerate(events)]
    expected = sorted(
        (
            one
            for one in sent
            if matches(subject, one.subject) and matches(kind, one.type) and is_within(time, one.time)
        ),
        key=lambda one: (one.time, event_key(one.source, one.id)),
        reverse=True,
    )
    with Session(shared_engine) as session:
        store(session, *sent)
        retire(session, *(i for i, (_, _, _, old) in enumerate(events) if old))
        found = ids(paged(session, limit=limit, crowd=crowd, subject=subject, type=kind, time=time))
        session.rollback()
    assert found == [one.id for one in expected]
