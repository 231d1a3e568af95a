"""What was asked before and can't have changed is not asked again; whatever changes behind the present is."""

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session

from billing.rating.billable import usage_from, wire_of
from billing.rating.metered import Demand, usage_of
from billing.rating.pricing import Usage
from catalog.features import Feature
from metering.corrections import revert_correction
from metering.cubes.folding import maintain
from metering.event import Event
from metering.late_usage import BEHIND, arrivals_of
from metering.period import Period
from tests.billing_clock import fold, void_event
from tests.builders import START, a_metered_feature, at, spent, store
from tests.test_metered import BY_MODEL, FEBRUARY, JANUARY, PERCENTAGE, UNIT, demand
from tests.test_usage import driver

AFTER = at("2026-02-10")
FALSE = Decimal(12345)
"""Nobody used so much: who answers this has not read anything."""


def asked(session: Session, one: Demand) -> Usage:
    (usage,) = usage_of(session, [one])
    return usage


def is_read(session: Session, one: Demand, known: Usage) -> bool:
    """Whether the events are looked at, though something is known."""
    return asked(session, replace(one, known=replace(known, quantity=FALSE))).quantity != FALSE


@pytest.fixture
def feature(session: Session) -> Feature:
    feature = a_metered_feature(session)
    store(
        session, spent("ada", 5, "2026-01-05"), spent("ada", 7, "2026-02-05"), spent("bob", 1, "2026-01-05")
    )
    fold(session, AFTER)
    return feature


def test_what_has_not_changed_is_not_read_again_also_when_it_was_stored_meanwhile(
    session: Session, feature: Feature
) -> None:
    january = demand(feature, "ada")
    known = usage_from(wire_of(asked(session, january)))
    assert known.quantity == 5
    assert known.seen is not None
    assert not is_read(session, january, known)


@pytest.mark.parametrize("folded", [False, True])
def test_who_sent_late_usage_is_read_again_and_nobody_else(
    session: Session, feature: Feature, folded: bool
) -> None:
    january, bobs = demand(feature, "ada"), demand(feature, "bob")
    known, of_bob = asked(session, january), asked(session, bobs)
    store(session, spent("ada", 2, "2026-01-31T23:59:59"))
    if folded:
        fold(session, AFTER)
    assert is_read(session, january, known)
    assert not is_read(session, bobs, of_bob)
    again = asked(session, replace(january, known=known))
    assert again.quantity == 7
    if folded:
        assert not is_read(session, january, again)


def test_usage_of_later_changes_nothing(session: Session, feature: Feature) -> None:
    january = demand(feature, "ada")
    known = asked(session, january)
    store(session, spent("ada", 2, "2026-02-10T00:00:01"))
    assert not is_read(session, january, known)
    fold(session, at("2026-02-10T00:01"))
    assert not is_read(session, january, known)


def test_what_may_still_come_on_time_is_read_each_time(session: Session, feature: Feature) -> None:
    for end, settled in ((AFTER - BEHIND, True), (AFTER - BEHIND + timedelta(seconds=1), False)):
        one = demand(feature, "ada", period=Period(start=START, end=end))
        assert (asked(session, one).seen is not None) == settled


def test_corrections_are_noticed_and_their_reversal_too(session: Session, feature: Feature) -> None:
    january = demand(feature, "ada")
    event = spent("ada", 3, "2026-01-06")
    store(session, event)
    fold(session, AFTER)
    known = asked(session, january)
    correction = void_event(session, event, AFTER)
    assert is_read(session, january, known)
    without = asked(session, january)
    assert without.quantity == 5
    assert not is_read(session, january, without)
    revert_correction(session, correction, by="test", now=AFTER)
    assert is_read(session, january, without)


def test_another_question_has_another_answer(session: Session, feature: Feature) -> None:
    january = demand(feature, "ada")
    known = asked(session, january)
    assert feature.meter
    narrower = replace(feature.meter.definition, event_from=at("2026-01-07"))
    assert is_read(session, demand(feature, "ada", "bob"), known)
    assert is_read(session, demand(feature, "bob"), known)
    assert is_read(session, demand(feature, "ada", price=BY_MODEL), known)
    assert is_read(session, demand(feature, "ada", period=FEBRUARY), known)
    feature.meter.event_from = narrower.event_from
    assert is_read(session, january, known)


def test_nothing_is_taken_as_known_before_the_first_fold(session: Session) -> None:
    feature = a_metered_feature(session)
    store(session, spent("ada", 5, "2026-01-05"))
    assert asked(session, demand(feature, "ada")).seen is None


def test_while_nothing_comes_usage_settles_all_the_same_but_not_at_every_look(session: Session) -> None:
    def settled(now: datetime) -> tuple[int, timedelta]:
        fold(session, now)
        found = arrivals_of(session, [])
        return found.number, now - found.settled_until

    assert settled(AFTER) == (1, BEHIND)
    assert settled(AFTER + timedelta(minutes=10)) == (1, BEHIND + timedelta(minutes=10))
    assert settled(AFTER + timedelta(minutes=16)) == (2, BEHIND)
    assert settled(AFTER) == (
        2,
        BEHIND - timedelta(minutes=16),
    )  # a clock that was set back unsettles nothing


def test_events_whose_commit_took_long_are_noticed(engine: Engine) -> None:
    """They were stored, with a number and a time, before the usage was read that does not have them."""
    with Session(engine, expire_on_commit=False) as session, session.begin():
        feature = a_metered_feature(session)
        store(session, spent("ada", 5, "2026-01-05"))
        fold(session, AFTER)
        january = demand(feature, "ada")
    with Session(engine) as slow, slow.begin():
        store(slow, spent("ada", 2, "2026-01-06"))
        with Session(engine) as session, session.begin():
            store(session, spent("bob", 2, "2026-02-09"))
            fold(session, AFTER)
        with Session(engine) as session, session.begin():
            known = asked(session, january)
            assert known.quantity == 5
            assert not is_read(session, january, known)
    with Session(engine) as session, session.begin():
        assert asked(session, replace(january, known=known)).quantity == 7
        fold(session, AFTER)
        assert asked(session, replace(january, known=known)).quantity == 7


def test_a_fold_between_two_looks_at_what_waits_hides_nothing(engine: Engine) -> None:
    """It takes the waiting events in, and retires them."""
    with Session(engine, expire_on_commit=False) as session, session.begin():
        january = demand(a_metered_feature(session), "ada")
        store(session, spent("ada", 5, "2026-01-05"))
        fold(session, AFTER)
        known = asked(session, january)
    with Session(engine) as session, session.begin():
        store(session, spent("ada", 2, "2026-01-06"))

    def fold_meanwhile(_: Any, __: Any, statement: str, *___: Any) -> None:
        if "FROM usage_settled AS s LEFT JOIN" in statement:
            with Session(engine) as other, other.begin():
                while maintain(driver(other.connection()), now=at("2026-06-01"), retire_after=timedelta(1)):
                    pass

    with Session(engine) as session, session.begin():
        event.listen(engine, "before_cursor_execute", fold_meanwhile)
        assert is_read(session, january, known)
        event.remove(engine, "before_cursor_execute", fold_meanwhile)
        assert session.scalar(text("SELECT count(*) FROM retired_events")) == 2


# -- Whatever happens ----------------------------------------------------------------------------------------

SUBJECTS = ("ada", "bob")
steps = st.one_of(
    st.tuples(
        st.just("store"), st.sampled_from(SUBJECTS), st.integers(0, 60 * 24), st.sampled_from(["a", "b"])
    ),
    st.tuples(st.just("wait"), st.sampled_from([1, 20, 600])),
    st.just(("fold",)),
    st.just(("fold",)),
    st.tuples(st.just("void"), st.integers(0, 9)),
    st.tuples(st.just("revert"), st.integers(0, 9)),
    st.just(("look",)),
    st.just(("look",)),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(steps, max_size=25))
def test_what_is_known_is_always_what_would_be_read(session: Session, history: list[tuple]) -> None:  # type: ignore[type-arg]
    with session.begin_nested() as savepoint:
        world = World(session)
        for step in [*history, ("fold",), ("look",)]:
            world.take(*step)
        savepoint.rollback()
    session.expunge_all()


class World:
    """Looks, also after each correction, with what it knew from the look before, and without."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.now = START + timedelta(days=40)
        self.events: list[Event] = []
        self.voids: list[str] = []
        feature = a_metered_feature(session)
        self.demands = [
            demand(feature, *subjects, price=price, period=period, customer=f"customer-{n}")
            for n, subjects in enumerate((("ada",), SUBJECTS))
            for price in (UNIT, BY_MODEL, PERCENTAGE)
            for period in (JANUARY, FEBRUARY)
        ]
        self.take("store", "bob", 5, "a")
        self.take("fold")
        self.known: list[Usage] = usage_of(session, self.demands)

    def take(self, step: str, *details: object) -> None:
        match step, *details:
            case "store", str(subject), int(hour), str(model):
                time = START + hour * timedelta(hours=1)
                event = spent(subject, 3, time.isoformat(), model=model)
                self.events.append(event)
                store(self.session, event)
            case "wait", int(minutes):
                self.now += minutes * timedelta(minutes=1)
            case ("fold",):
                fold(self.session, self.now)
            case "void", int(n):
                self.voids.append(void_event(self.session, self.events[n % len(self.events)], AFTER))
                self.look()
            case "revert", int(n) if self.voids:
                revert_correction(self.session, self.voids.pop(n % len(self.voids)), by="test", now=AFTER)
                self.look()
            case ("look",):
                self.look()

    def look(self) -> None:
        fresh = usage_of(self.session, self.demands)
        pairs = zip(self.demands, self.known, strict=True)
        self.known = usage_of(self.session, [replace(one, known=usage) for one, usage in pairs])
        assert self.known == fresh
