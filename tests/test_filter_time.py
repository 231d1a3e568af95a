"""Conditions on instants: what they mean in Python and in SQL, and what is refused."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from metering.errors import InvalidError
from metering.expressions import Statement
from metering.filter_time import FilterTime, bounds_of, instant_sql, is_within, parse_time_filter
from tests.builders import at

NOON = datetime(2026, 3, 15, 12, tzinfo=UTC)
instants = st.integers(-3, 3).map(lambda ticks: NOON + timedelta(microseconds=ticks))
simple = st.builds(
    FilterTime,
    gt=st.none() | instants,
    gte=st.none() | instants,
    lt=st.none() | instants,
    lte=st.none() | instants,
)
filters = st.recursive(
    simple,
    lambda inner: st.builds(
        FilterTime,
        gt=st.none() | instants,
        and_=st.none() | st.lists(inner, min_size=1, max_size=3).map(tuple),
        or_=st.none() | st.lists(inner, min_size=1, max_size=3).map(tuple),
    ),
    max_leaves=4,
)


def wire(condition: FilterTime) -> dict[str, Any]:
    """As a client would send it."""
    sent: dict[str, Any] = {
        f"${name}": value.isoformat()
        for name in ("gt", "gte", "lt", "lte")
        if (value := getattr(condition, name)) is not None
    }
    sent |= {"$and": [wire(one) for one in condition.and_]} if condition.and_ else {}
    return sent | ({"$or": [wire(one) for one in condition.or_]} if condition.or_ else {})


@given(filters)
def test_what_is_sent_is_read_back(condition: FilterTime) -> None:
    assert parse_time_filter(wire(condition), "$") == condition


@given(st.lists(st.tuples(filters, instants), min_size=1, max_size=20))
def test_sql_means_what_python_means(shared_engine: Engine, cases: list[tuple[FilterTime, datetime]]) -> None:
    statement = Statement()
    asked = [
        instant_sql(condition, statement.bind(instant, "timestamptz"), statement.bind)
        for condition, instant in cases
    ]
    with shared_engine.connect() as connection:
        answer = list(connection.execute(text(f"SELECT {', '.join(asked)}"), statement.parameters).one())
    assert answer == [is_within(condition, instant) for condition, instant in cases]


@given(filters, instants)
def test_nothing_outside_of_its_bounds_passes(condition: FilterTime, instant: datetime) -> None:
    start, end = bounds_of(condition)
    if (start is not None and instant < start) or (end is not None and instant >= end):
        assert not is_within(condition, instant)


def test_bounds_of_one_operator_are_exact() -> None:
    tick = timedelta(microseconds=1)
    assert bounds_of(FilterTime()) == (None, None)
    assert bounds_of(FilterTime(gte=NOON, lt=NOON + tick)) == (NOON, NOON + tick)
    assert bounds_of(FilterTime(gt=NOON, lte=NOON + tick)) == (NOON + tick, NOON + 2 * tick)
    either = FilterTime(or_=(FilterTime(gte=NOON), FilterTime(gte=NOON + tick, lt=NOON + 2 * tick)))
    assert bounds_of(either) == (NOON, None)


def test_times_are_rfc_3339() -> None:
    for sent in ("2026-03-15T13:00:00+01:00", "2026-03-15t12:00:00z", "2026-03-15 12:00:00.000Z"):
        assert parse_time_filter({"$gt": sent}, "$") == FilterTime(gt=at("2026-03-15T12:00:00"))
    assert parse_time_filter({"$gt": None}, "$") == FilterTime()


REFUSED: list[tuple[object, str]] = [
    ([], "$.filter.time"),
    ({"$eq": "2026-03-15T12:00:00Z"}, "$.filter.time.$eq"),
    ({"$gt": 5}, "$.filter.time.$gt"),
    ({"$gt": "2026-03-15"}, "$.filter.time.$gt"),
    ({"$gt": "2026-03-15T12:00:00"}, "$.filter.time.$gt"),
    ({"$gt": "2026-02-30T12:00:00Z"}, "$.filter.time.$gt"),
    ({"$gt": "9999-12-31T23:59:59Z"}, "$.filter.time.$gt"),
    ({"$gt": "0001-01-01T00:00:00+14:00"}, "$.filter.time.$gt"),
    ({"$and": {}}, "$.filter.time.$and"),
    ({"$and": []}, "$.filter.time.$and"),
    ({"$or": [{}, {"$lt": ""}]}, "$.filter.time.$or[1].$lt"),
    ({"$or": [{}] * 101}, "$.filter.time.$or"),
]


@pytest.mark.parametrize(("sent", "place"), REFUSED)
def test_what_is_no_filter_is_refused_with_its_place(sent: object, place: str) -> None:
    with pytest.raises(InvalidError) as refused:
        parse_time_filter(sent, "$.filter.time")
    assert [issue.field for issue in refused.value.issues] == [place]


def test_nesting_has_a_bound() -> None:
    sent: dict[str, Any] = {}
    for _ in range(5):
        sent = {"$and": [sent]}
    parse_time_filter(sent, "$")
    with pytest.raises(InvalidError, match="nested"):
        parse_time_filter({"$or": [sent]}, "$")
