"""Corrections: what counts afterwards, what counted before, and that nothing is ever lost."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from metering import correction as rules
from metering import corrections
from metering.correction import (
    CorrectionStateError,
    EventIdentity,
    InvalidCorrectionError,
    Kind,
    Selection,
    Status,
    Step,
    backfill_key,
    check_correction,
    next_status,
)
from metering.corrections import (
    Correction,
    CorrectionNotFoundError,
    close_correction,
    corrections_of,
    create_correction,
    discard_correction,
    get_correction,
    list_corrections,
    preview_correction,
    revert_correction,
    stage_events,
)
from metering.cubes.folding import maintain
from metering.event import Event
from metering.events import VoidedEvent, append_events, keyed
from metering.ids import event_key
from metering.meter import MeterDefinition, UsageQuery, UsageRow, fold
from metering.usage import query_usage
from tests.builders import at_once
from tests.test_folding import declare, settle
from tests.test_usage import Happening, Question, driver, scenarios, theorem

HOUR = timedelta(hours=1)
T0 = datetime(2026, 3, 1, 10, tzinfo=UTC)
NOW = datetime(2026, 3, 15, 12, tzinfo=UTC)
TOKENS = MeterDefinition(event_type="llm", aggregation="SUM", value_property="$.tokens")
CALLS = MeterDefinition(event_type="llm", aggregation="COUNT")
EVERYTHING = UsageQuery(start=T0 - timedelta(days=40), end=T0 + timedelta(days=40))
DAY = Selection(source="gateway", from_=T0, to=T0 + 24 * HOUR)


def llm(name: str, tokens: object = 1, *, hours: float = 0, subject: str = "ada", **more: str) -> Event:
    data = f'{{"tokens": {tokens}}}'.encode()
    event = Event(id=name, source="gateway", type="llm", subject=subject, time=T0 + hours * HOUR, data=data)
    changes: dict[str, Any] = more
    return Event(**{**{name: getattr(event, name) for name in event.__struct_fields__}, **changes})


def store(session: Session, *events: Event, now: datetime = NOW - HOUR) -> None:
    append_events(driver(session.connection()), keyed((event, now) for event in events), now=now)


def retire(session: Session, *, before: datetime) -> None:
    """As retention does: the old events move, in one transaction."""
    old = {"before": before}
    session.execute(text("INSERT INTO retired_events SELECT * FROM events WHERE time < :before"), old)
    session.execute(text("DELETE FROM events WHERE time < :before"), old)


def opened(session: Session, selection: Selection = DAY, kind: Kind = "void") -> Correction:
    return create_correction(session, kind=kind, selection=selection, reason="sent twice", by="Ada", now=NOW)


def closed(session: Session, selection: Selection = DAY, *, now: datetime = NOW) -> Correction:
    return close_correction(session, opened(session, selection).id, by="Bob", now=now)


def stage(session: Session, correction: Correction, *events: Event, now: datetime = NOW) -> int:
    places = [f"$[{i}]" for i in range(len(events))]
    return stage_events(session, correction.id, events=events, places=places, now=now)[1]


def replaced(session: Session, selection: Selection, *events: Event, now: datetime = NOW) -> Correction:
    correction = opened(session, selection, "replace")
    stage(session, correction, *events, now=now)
    return close_correction(session, correction.id, by="Bob", now=now)


def named(*ids: str, source: str = "gateway") -> Selection:
    return Selection(events=tuple(EventIdentity(source=source, id=one) for one in ids))


def tokens(session: Session, as_of: datetime | None = None, **more: Any) -> int:
    rows = query_usage(session, TOKENS, replace(EVERYTHING, as_of=as_of, **more))
    return int(rows[0].value) if rows else 0


# What a correction may be


@pytest.mark.parametrize(
    ("selection", "fields"),
    [
        (Selection(), ["$.selection.from", "$.selection.to", "$.selection"]),
        (Selection(source="gateway"), ["$.selection.from", "$.selection.to"]),
        (Selection(from_=T0, to=T0 + HOUR), ["$.selection"]),
        (Selection(source="gateway", from_=T0, to=T0), ["$.selection.to"]),
        (Selection(source="gateway", from_=T0), ["$.selection.to"]),
        (Selection(subjects=("a",) * 101, from_=T0, to=T0 + HOUR), ["$.selection.subjects"]),
        (replace(named("1"), source="gateway"), ["$.selection"]),
        (replace(named("1"), to=T0), ["$.selection"]),
        (named(*map(str, range(10_001))), ["$.selection.events"]),
        (named(*map(str, range(10_000))), []),
        (DAY, []),
        (Selection(type="llm", from_=T0, to=T0 + HOUR), []),
        (Selection(subjects=("ada",), from_=T0, to=T0 + HOUR), []),
    ],
)
def test_a_selection_is_named_events_or_a_window_that_is_narrowed(
    selection: Selection, fields: Sequence[str]
) -> None:
    assert [issue.field for issue in check_correction("void", selection, "why")] == fields


def test_a_correction_says_why_and_a_replacement_is_not_closed_before_it_has_events() -> None:
    assert [issue.field for issue in check_correction("void", DAY, " ", close=True)] == ["$.reason"]
    assert [issue.field for issue in check_correction("replace", DAY, "why", close=True)] == ["$.close"]


STEPS: dict[tuple[Status, Step], Status] = {
    ("open", "stage"): "open",
    ("open", "close"): "closed",
    ("open", "discard"): "discarded",
    ("closed", "revert"): "reverted",
}


@pytest.mark.parametrize("status", ["open", "closed", "reverted", "discarded"])
@pytest.mark.parametrize("step", ["stage", "close", "revert", "discard"])
def test_which_step_leads_where(status: Status, step: Step) -> None:
    if then := STEPS.get((status, step)):
        assert next_status("replace", status, step, staged=1) == then
    else:
        with pytest.raises(CorrectionStateError, match=f"the correction is {status}; only one"):
            next_status("replace", status, step, staged=1)


def test_a_void_takes_no_events_and_a_replacement_without_any_is_not_closed() -> None:
    with pytest.raises(CorrectionStateError, match="make one of kind replace"):
        next_status("void", "open", "stage", staged=0)
    with pytest.raises(CorrectionStateError, match="no events were sent"):
        next_status("replace", "open", "close", staged=0)
    assert next_status("void", "open", "close", staged=0) == "closed"


ULID = "01JQ5ZK7F8M3N2P4R6S8T0V1W3"


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=3),
        min_size=4,
        max_size=4,
    )
)
def test_an_event_that_is_brought_in_has_a_key_that_no_event_has_that_is_simply_sent(
    names: list[str],
) -> None:
    source, name, other_source, other_name = names
    key = backfill_key(ULID, llm(name, source=source))
    assert key == backfill_key(ULID, llm(name, 2, hours=1, subject="bob", source=source))
    assert key.bytes[:6] == event_key("any", ULID).bytes[:6]
    assert key != backfill_key("01JQ5ZK7F8M3N2P4R6S8T0V1W4", llm(name, source=source))
    assert key not in {event_key(a, b) for a in names for b in [*names, ULID]}
    if (source, name) != (other_source, other_name):
        assert key != backfill_key(ULID, llm(other_name, source=other_source))


# What counts


def test_a_voided_window_holds_its_begin_and_not_its_end_and_spares_others(session: Session) -> None:
    inside = [llm("1", 1), llm("2", 2, hours=23.999, subject="bob")]
    outside = [
        llm("3", 10, hours=-0.001),
        llm("4", 100, hours=24),
        llm("5", 1000, source="another"),
    ]
    store(session, *inside, *outside)
    assert tokens(session) == 1113
    correction = closed(session)
    assert (tokens(session), correction.voided_events, correction.status) == (1110, 2, "closed")


@pytest.mark.parametrize(
    ("more", "left"),
    [
        ({"source": "gateway"}, 1000 + 10),
        ({"type": "llm"}, 10),
        ({"subjects": ("ada",)}, 10 + 2),
        ({"subjects": ("ada", "bob"), "source": "another"}, 10 + 1 + 2),
        ({"subjects": ("nobody",)}, 1013),
        ({"type": "call"}, 1013),
    ],
)
def test_a_window_is_narrowed_by_all_that_is_given(session: Session, more: dict[str, Any], left: int) -> None:
    store(session, llm("1", 1), llm("2", 2, subject="bob"), llm("3", 1000, source="another"))
    store(session, llm("4", 10, hours=30))
    closed(session, Selection(from_=T0, to=T0 + 24 * HOUR, **more))
    assert tokens(session) == left


def test_named_events_are_voided_wherever_they_are_and_unknown_ones_are_no_error(session: Session) -> None:
    store(session, llm("1", 1), llm("2", 10, hours=1), llm("3", 100))
    retire(session, before=T0 + HOUR / 2)
    correction = closed(session, named("1", "2", "nobody"))
    assert (tokens(session), correction.voided_events) == (100, 2)


def test_a_window_reaches_into_retired_events(session: Session) -> None:
    store(session, llm("1", 1), llm("2", 10, hours=1), llm("3", 100, hours=30))
    retire(session, before=T0 + HOUR / 2)
    correction = closed(session)
    assert (tokens(session), correction.voided_events) == (100, 2)
    revert_correction(session, correction.id, by="Eve", now=NOW + HOUR)
    assert tokens(session) == 111


def test_a_retry_of_a_voided_event_stays_a_repeat(session: Session) -> None:
    store(session, llm("1", 1))
    closed(session)
    store(session, llm("1", 1), now=NOW + HOUR)
    assert tokens(session) == 0


def test_what_arrives_after_the_close_counts_in_the_window_too(session: Session) -> None:
    store(session, llm("1", 1))
    correction = closed(session)
    store(session, llm("2", 10), now=NOW + HOUR)
    assert tokens(session) == 10
    revert_correction(session, correction.id, by="Eve", now=NOW + 2 * HOUR)
    assert tokens(session) == 11


def test_an_open_and_a_discarded_correction_change_nothing(session: Session) -> None:
    store(session, llm("1", 1))
    correction = opened(session, DAY, "replace")
    stage(session, correction, llm("2", 10))
    assert tokens(session) == 1
    discarded = discard_correction(session, correction.id, by="Eve", now=NOW)
    assert (tokens(session), discarded.status, discarded.discarded_by) == (1, "discarded", "Eve")


def test_a_replacement_brings_in_the_same_id_with_another_quantity(session: Session) -> None:
    store(session, llm("1", 1), llm("2", 10))
    correction = replaced(session, named("1"), llm("1", "3"))
    assert tokens(session) == 13
    assert (correction.voided_events, correction.staged_events) == (1, 1)
    revert_correction(session, correction.id, by="Eve", now=NOW + HOUR)
    assert tokens(session) == 11


def test_what_was_brought_in_is_found_by_its_id_and_by_its_window(session: Session) -> None:
    store(session, llm("1", 1))
    first = replaced(session, named("1"), llm("1", 5))
    by_id = closed(session, named("1"), now=NOW + HOUR)
    assert (tokens(session), by_id.voided_events) == (0, 2)
    revert_correction(session, by_id.id, by="Eve", now=NOW + 2 * HOUR)
    assert tokens(session) == 5
    by_window = closed(session, now=NOW + 3 * HOUR)
    assert (tokens(session), by_window.voided_events) == (0, 2)
    revert_correction(session, first.id, by="Eve", now=NOW + 4 * HOUR)
    assert tokens(session) == 0
    revert_correction(session, by_window.id, by="Eve", now=NOW + 5 * HOUR)
    assert tokens(session) == 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_event_that_two_corrections_void_counts_again_when_neither_does(
    session: Session, order: Sequence[int]
) -> None:
    store(session, llm("1", 1))
    both = [closed(session), closed(session, named("1"))]
    counted = []
    for which in order:
        revert_correction(session, both[which].id, by="Eve", now=NOW + HOUR)
        counted.append(tokens(session))
    assert counted == [0, 1]


def test_numbers_are_brought_in_to_the_last_digit(session: Session) -> None:
    number = "12345678901234567890123456789.12345678901234567890"
    replaced(session, DAY, llm("1", number))
    (row,) = query_usage(session, TOKENS, EVERYTHING)
    assert str(row.value) == number


def test_an_event_is_brought_in_as_it_was_sent(session: Session) -> None:
    event = llm("1", dataschema="https://example.com/s", specversion="1.0", subject="Ä")
    replaced(session, DAY, event, now=NOW)
    row = session.execute(text("SELECT * FROM events")).one()
    assert all(getattr(row, name) == getattr(event, name) for name in ("id", "source", "type", "subject"))
    assert (row.time, row.specversion, row.dataschema) == (event.time, "1.0", "https://example.com/s")
    assert (row.data, row.ingested_at, row.stored_at) == ({"tokens": 1}, NOW, NOW)


def test_many_are_brought_in_as_batches_of_a_size(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corrections, "BATCH", 3)
    replaced(session, DAY, *(llm(str(i)) for i in range(7)))
    sizes = session.execute(
        text(
            "SELECT p.events, (SELECT count(*) FROM events e WHERE e.batch = p.batch) FROM pending_batches p"
        )
    ).all()
    assert sorted(map(tuple, sizes)) == [(1, 1), (3, 3), (3, 3)]
    assert tokens(session) == 7


# Sending what a replacement brings in


def test_a_retry_within_a_correction_is_a_repeat_and_the_first_one_wins(session: Session) -> None:
    correction = opened(session, DAY, "replace")
    assert stage(session, correction, llm("1", 1), llm("2", 10), llm("1", 500)) == 2
    assert stage(session, correction, llm("1", 900), llm("3", 100)) == 1
    assert get_correction(session, correction.id).staged_events == 3
    close_correction(session, correction.id, by="Bob", now=NOW)
    assert tokens(session) == 111


@pytest.mark.parametrize(
    ("selection", "event", "field"),
    [
        (DAY, llm("1", hours=-1), "$[1].time"),
        (DAY, llm("1", hours=24), "$[1].time"),
        (DAY, llm("1", source="another"), "$[1].source"),
        (replace(DAY, type="llm"), llm("1", type="call"), "$[1].type"),
        (replace(DAY, subjects=("ada",)), llm("1", subject="bob"), "$[1].subject"),
        (named("0"), llm("1"), "$[1].id"),
        (named("0"), llm("0", source="another"), "$[1].id"),
    ],
)
def test_what_a_correction_does_not_take_out_it_does_not_bring_in(
    session: Session, selection: Selection, event: Event, field: str
) -> None:
    correction = opened(session, selection, "replace")
    with pytest.raises(InvalidCorrectionError) as caught:
        stage(session, correction, llm("0"), event)
    assert [issue.field for issue in caught.value.issues] == [field]
    assert get_correction(session, correction.id).staged_events == 0


def test_a_correction_has_bounds_and_beyond_them_nothing_happens(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corrections, "MAX_EVENTS", 2)
    store(session, llm("1"), llm("2"), llm("3"))
    void, replacement = opened(session), opened(session, DAY, "replace")
    with pytest.raises(InvalidCorrectionError, match="take out at most 2"), session.begin_nested():
        close_correction(session, void.id, by="Bob", now=NOW)
    with pytest.raises(InvalidCorrectionError, match="bring in at most 2"), session.begin_nested():
        stage(session, replacement, llm("1"), llm("2"), llm("3"))
    assert tokens(session) == 3
    assert session.scalar(select(func.count()).select_from(VoidedEvent)) == 0
    assert rules.MAX_EVENTS == 1_000_000


# Looking


def test_it_is_kept_who_did_what_when_and_why(session: Session) -> None:
    correction = opened(session)
    close_correction(session, correction.id, by="Bob", now=NOW + HOUR)
    revert_correction(session, correction.id, by="Eve", now=NOW + 2 * HOUR)
    session.expire_all()
    found = get_correction(session, correction.id)
    assert (found.kind, found.status, found.selection, found.reason) == (
        "void",
        "reverted",
        DAY,
        "sent twice",
    )
    assert (found.created_by, found.closed_by, found.reverted_by) == ("Ada", "Bob", "Eve")
    times = (found.created_at, found.closed_at, found.reverted_at, found.discarded_at)
    assert times == (NOW, NOW + HOUR, NOW + 2 * HOUR, None)


def test_a_void_can_be_made_and_closed_in_one_step(session: Session) -> None:
    store(session, llm("1"))
    correction = create_correction(
        session, kind="void", selection=named("1"), reason="why", close=True, by="Ada", now=NOW
    )
    assert (correction.status, correction.closed_by, tokens(session)) == ("closed", "Ada", 0)


def test_corrections_are_listed_newest_first_by_status_and_page(session: Session) -> None:
    ids = []
    for i in range(4):
        made = create_correction(
            session, kind="void", selection=DAY, reason="why", by="Ada", now=NOW + i * HOUR
        )
        ids.append(made.id)
    close_correction(session, ids[1], by="Bob", now=NOW)
    listed, count = list_corrections(session, offset=1, limit=2)
    assert ([one.id for one in listed], count) == ([ids[2], ids[1]], 4)
    listed, count = list_corrections(session, statuses=["closed"])
    assert ([one.id for one in listed], count) == ([ids[1]], 1)


def test_an_unknown_correction_is_not_found(session: Session) -> None:
    for lock in (False, True):
        with pytest.raises(CorrectionNotFoundError, match="'nobody'"):
            get_correction(session, "nobody", lock=lock)


def test_a_preview_says_what_closing_would_change_and_changes_nothing(session: Session) -> None:
    store(session, llm("1"), llm("2", hours=2), llm("3", hours=1, subject="bob"), llm("4", hours=30))
    closed(session, named("1"))
    correction = opened(session, DAY, "replace")
    empty = preview_correction(session, correction.id).backfilled
    assert (empty.events, empty.first, empty.groups) == (0, None, ())
    stage(session, correction, llm("2", 5, hours=3))
    preview = preview_correction(session, correction.id)
    assert (preview.voided.events, preview.voided.already_void) == (3, 1)
    assert (preview.voided.first, preview.voided.last) == (T0, T0 + 2 * HOUR)
    assert [(g.type, g.subject, g.events, g.already_void) for g in preview.voided.groups] == [
        ("llm", "ada", 2, 1),
        ("llm", "bob", 1, 0),
    ]
    assert (preview.backfilled.events, preview.backfilled.last) == (1, T0 + 3 * HOUR)
    assert tokens(session) == 3


def test_a_preview_lists_the_largest_groups_and_counts_all(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corrections, "MAX_GROUPS", 2)
    store(session, *(llm(f"{s}{i}", subject=s) for n, s in enumerate("abc") for i in range(n + 1)))
    voided = preview_correction(session, opened(session).id).voided
    assert (voided.events, [g.subject for g in voided.groups]) == (6, ["c", "b"])


def test_an_event_voided_twice_is_previewed_once(session: Session) -> None:
    store(session, llm("1"))
    closed(session)
    closed(session, named("1"))
    voided = preview_correction(session, opened(session).id).voided
    assert (voided.events, voided.already_void) == (1, 1)


def test_only_an_open_correction_is_previewed(session: Session) -> None:
    with pytest.raises(CorrectionStateError, match="the correction is closed"):
        preview_correction(session, closed(session).id)


def test_the_correction_that_voids_an_event_explains_it(session: Session) -> None:
    store(session, llm("1"), llm("2", hours=30))
    one, two = event_key("gateway", "1"), event_key("gateway", "2")
    first, second = closed(session), closed(session, named("1"), now=NOW + HOUR)
    assert corrections_of(session, [one, two]) == {one: second}
    revert_correction(session, second.id, by="Eve", now=NOW + 2 * HOUR)
    assert corrections_of(session, [one, two]) == {one: first}
    revert_correction(session, first.id, by="Eve", now=NOW + 2 * HOUR)
    assert corrections_of(session, [one, two]) == {}


# As of an instant


def test_as_of_an_instant_before_a_step_the_answer_is_as_it_was(session: Session) -> None:
    store(session, llm("1", 1), llm("2", 10))
    correction = replaced(session, named("1"), llm("1", 5), now=NOW)
    revert_correction(session, correction.id, by="Eve", now=NOW + HOUR)
    moments = [NOW - 2 * HOUR, NOW - HOUR, NOW - HOUR / 2, NOW, NOW + HOUR / 2, NOW + HOUR, None]
    assert [tokens(session, moment) for moment in moments] == [0, 11, 11, 15, 15, 11, 11]


# Two at once


def result(future: "Future[Correction]") -> Correction | Exception:
    error = future.exception()
    return error if isinstance(error, Exception) else future.result()


def step(do: Callable[..., Correction], correction_id: str) -> Callable[[Session], Correction]:
    return lambda session: do(session, correction_id, by="Bob", now=NOW)


@pytest.mark.parametrize("second", [close_correction, discard_correction])
def test_of_two_that_close_at_once_one_does_and_the_other_is_told(
    engine: Engine, second: Callable[..., Correction]
) -> None:
    with Session(engine) as session, session.begin():
        store(session, llm("1"))
        correction_id = opened(session).id
    other = result(at_once(engine, step(close_correction, correction_id), step(second, correction_id)))
    assert isinstance(other, CorrectionStateError)
    assert "the correction is closed" in other.detail
    with Session(engine) as session:
        assert get_correction(session, correction_id).voided_events == 1


def test_what_is_sent_while_the_correction_is_closed_is_refused_and_not_lost_in_between(
    engine: Engine,
) -> None:
    with Session(engine) as session, session.begin():
        correction = opened(session, DAY, "replace")
        stage(session, correction, llm("1"))
        correction_id = correction.id

    def send(session: Session) -> int:
        return stage_events(session, correction_id, events=[llm("2")], places=["$"], now=NOW)[1]

    late = at_once(engine, step(close_correction, correction_id), send)
    assert isinstance(late.exception(), CorrectionStateError)
    with Session(engine) as session:
        assert tokens(session) == 1


def test_two_corrections_of_the_same_events_close_at_once(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        store(session, *(llm(str(i)) for i in range(50)))
        first, second = opened(session).id, opened(session, named(*map(str, range(50)))).id
    other = result(at_once(engine, step(close_correction, first), step(close_correction, second)))
    assert isinstance(other, Correction)
    with Session(engine) as session:
        assert tokens(session) == 0
        assert session.scalar(select(func.count()).select_from(VoidedEvent)) == 100


def test_an_event_stored_beside_the_close_counts(engine: Engine) -> None:
    """Its commit comes after the correction has looked: as if it had come afterwards."""
    with Session(engine) as session, session.begin():
        store(session, llm("1", 1))
        correction_id = opened(session).id
    with Session(engine) as ingest, Session(engine) as session:
        store(ingest, llm("2", 10))
        close_correction(session, correction_id, by="Bob", now=NOW)
        ingest.commit()
        session.commit()
        assert tokens(session) == 10


# Theorems


def answers(
    session: Session, asked: Iterable[Question], as_of: datetime | None = None, *, latest: bool = True
) -> list[list[UsageRow]]:
    return [
        query_usage(session, meter, replace(query, as_of=as_of))
        for meters, query in asked
        for meter in meters
        if latest or meter.aggregation != "LATEST"
    ]


@st.composite
def selections(draw: st.DrawFn, happening: Happening) -> Selection:
    """Some of what happened: by name, or a window about it."""
    events = [one for batch in happening.batches for one in batch]
    if draw(st.booleans()):
        chosen = draw(st.lists(st.sampled_from(events), min_size=1, max_size=5))
        return Selection(events=tuple(EventIdentity(source=one.source, id=one.id) for one in chosen))
    start, end = sorted(draw(st.lists(st.sampled_from(happening.edges), min_size=2, max_size=2, unique=True)))
    narrowed = draw(st.sampled_from(["source", "type", "subjects"]))
    one = draw(st.sampled_from(events))
    return Selection(
        source=one.source if narrowed == "source" else None,
        type=one.type if narrowed == "type" else None,
        subjects=(one.subject,) if narrowed == "subjects" else (),
        from_=start,
        to=end,
    )


def hit(selection: Selection, event: Event) -> bool:
    """The meaning of a selection, said once more."""
    if selection.events:
        return (event.source, event.id) in {(one.source, one.id) for one in selection.events}
    assert selection.from_
    assert selection.to
    return (
        selection.source in (None, event.source)
        and selection.type in (None, event.type)
        and (not selection.subjects or event.subject in selection.subjects)
        and selection.from_ <= event.time < selection.to
    )


def all_of(happening: Happening) -> list[Event]:
    """What is stored when it has happened: the first of each identity."""
    events = (one for batch in happening.batches for one in batch)
    return list({(one.source, one.id): one for one in reversed(list(events))}.values())


def happen(session: Session, happening: Happening) -> None:
    for batch in happening.batches:
        store(session, *batch)


@theorem(50)
@given(scenario=scenarios(), data=st.data())
def test_voiding_leaves_what_was_not_selected_and_reverting_is_the_identity(
    session: Session, scenario: tuple[Happening, list[Question]], data: st.DataObject
) -> None:
    happening, asked = scenario
    selection = data.draw(selections(happening))
    with session.begin_nested() as savepoint:
        happen(session, happening)
        before = answers(session, asked)
        correction = closed(session, selection)
        left = [one for one in all_of(happening) if not hit(selection, one)]
        assert answers(session, asked) == [
            fold(meter, query, left) for meters, query in asked for meter in meters
        ]
        assert answers(session, asked, NOW - timedelta(microseconds=1)) == before
        revert_correction(session, correction.id, by="Eve", now=NOW + HOUR)
        assert answers(session, asked) == answers(session, asked, NOW + HOUR) == before
        savepoint.rollback()


@theorem(50)
@given(scenario=scenarios(), data=st.data())
def test_replacing_events_by_themselves_changes_nothing(
    session: Session, scenario: tuple[Happening, list[Question]], data: st.DataObject
) -> None:
    """But for LATEST: which of two events of one instant is the later one is decided by their keys."""
    happening, asked = scenario
    selection = data.draw(selections(happening))
    chosen = [one for one in all_of(happening) if hit(selection, one)]
    with session.begin_nested() as savepoint:
        happen(session, happening)
        before = answers(session, asked, latest=False)
        if chosen:
            replaced(session, selection, *chosen)
        assert answers(session, asked, latest=False) == before
        savepoint.rollback()


@dataclass
class Model:
    """Corrections in plain Python: events by (correction, source, id), and what each correction voids."""

    events: dict[tuple[str, str, str], Event] = field(default_factory=dict)
    staged: dict[str, dict[tuple[str, str, str], Event]] = field(default_factory=dict)
    selected: dict[str, Selection] = field(default_factory=dict)
    voids: dict[str, set[tuple[str, str, str]]] = field(default_factory=dict)

    def store(self, events: Iterable[Event], correction: str = "") -> None:
        for one in events:
            self.events.setdefault((correction, one.source, one.id), one)

    def open(self, correction: str, selection: Selection, events: Iterable[Event]) -> None:
        self.selected[correction] = selection
        self.staged[correction] = {}
        for one in events:
            self.staged[correction].setdefault((correction, one.source, one.id), one)

    def close(self, correction: str) -> None:
        selection = self.selected[correction]
        self.voids[correction] = {key for key, one in self.events.items() if hit(selection, one)}
        self.events |= self.staged[correction]

    def revert(self, correction: str) -> None:
        self.voids[correction] = set(self.staged[correction])

    def counting(self) -> list[Event]:
        void = set().union(*self.voids.values())
        return [one for key, one in self.events.items() if key not in void]


NAMES = [*"abcdef"]
happened = st.builds(
    llm,
    st.sampled_from(NAMES),
    st.integers(-5, 100),
    hours=st.integers(0, 47).map(lambda half: half / 2),
    subject=st.sampled_from(["ada", "bob"]),
    source=st.sampled_from(["gateway", "gateway", "another"]),
)
several = st.lists(happened, min_size=5, max_size=9)
windows = st.builds(
    lambda start, hours: Selection(source="gateway", from_=T0 + start * HOUR, to=T0 + (start + hours) * HOUR),
    st.integers(0, 12),
    st.integers(4, 24),
)
picks = windows | st.lists(st.sampled_from(NAMES), min_size=2, max_size=4).map(lambda ids: named(*ids))
which = st.integers(0, 5)
plays = st.lists(
    st.one_of(
        st.tuples(st.just("store"), several),
        st.tuples(st.just("open"), picks, st.just([]) | several),
        st.tuples(st.just("correct"), picks, st.just([]) | several),
        st.tuples(st.just("correct"), picks, several),
        st.tuples(st.sampled_from(["close", "revert", "revert", "discard"]), which),
        st.tuples(st.just("maintain"), st.sampled_from([T0 - HOUR, T0 + 13 * HOUR, NOW])),
        st.tuples(st.just("retire"), st.integers(6, 24)),
    ),
    min_size=5,
    max_size=10,
)
STEP = {"close": close_correction, "revert": revert_correction, "discard": discard_correction}
NEEDED = {"close": "open", "revert": "closed", "discard": "open"}


class Play:
    """The same steps in PostgreSQL and in the model, an hour apart; it begins with cubes that hold events."""

    def __init__(self, session: Session, events: Sequence[Event]) -> None:
        self.session = session
        self.model = Model()
        self.now = NOW
        self.corrections: list[Correction] = []
        self.take(("store", events))
        settle(driver(session.connection()))

    def take(self, move: tuple[Any, ...]) -> None:
        self.now += HOUR
        match move:
            case "store", events:
                store(self.session, *events, now=self.now)
                self.model.store(events)
            case "open", selection, events:
                self._open(selection, events)
            case "correct", selection, events:
                self._step("close", self._open(selection, events))
            case "maintain", moment:
                maintain(driver(self.session.connection()), now=moment)
            case "retire", hours:
                settle(driver(self.session.connection()))  # only what has been folded is retired
                retire(self.session, before=T0 + hours * HOUR)
            case step, which:
                if able := [one for one in self.corrections if one.status == NEEDED[step]]:
                    self._step(step, able[which % len(able)])

    def _open(self, selection: Selection, events: Sequence[Event]) -> Correction:
        fitting = [one for one in events if hit(selection, one)]
        correction = opened(self.session, selection, "replace" if fitting else "void")
        if fitting:
            stage(self.session, correction, *fitting, now=self.now)
        self.corrections.append(correction)
        self.model.open(correction.id, selection, fitting)
        return correction

    def _step(self, step: str, correction: Correction) -> None:
        STEP[step](self.session, correction.id, by="Eve", now=self.now)
        if step != "discard":
            getattr(self.model, step)(correction.id)


METERS = [
    MeterDefinition(event_type="llm", aggregation="SUM", value_property="$.tokens"),
    MeterDefinition(event_type="llm", aggregation="UNIQUE_COUNT", value_property="$.tokens"),
]
BY_HOUR = UsageQuery(start=T0, end=T0 + 24 * HOUR, window_size="HOUR", group_by=("subject",))
QUERIES = [BY_HOUR, UsageQuery()]


def asked(session: Session, as_of: datetime | None = None) -> list[list[UsageRow]]:
    return [query_usage(session, meter, replace(query, as_of=as_of)) for meter in METERS for query in QUERIES]


@theorem(40)
@given(events=several, moves=plays)
def test_any_sequence_of_steps_agrees_with_the_model_and_the_past_stays_as_it_was(
    session: Session, events: list[Event], moves: list[tuple[Any, ...]]
) -> None:
    with session.begin_nested() as savepoint:
        session.execute(text("DELETE FROM meters"))
        declare(driver(session.connection()), METERS)
        play = Play(session, events)
        known: list[tuple[datetime, list[list[UsageRow]]]] = []
        for move in moves:
            play.take(move)
            counting = play.model.counting()
            rows = [fold(meter, query, counting) for meter in METERS for query in QUERIES]
            assert asked(session) == rows
            known.append((play.now, rows))
        settle(driver(session.connection()))
        assert asked(session) == rows
        for moment, then in known:
            assert asked(session, moment) == then
        savepoint.rollback()
