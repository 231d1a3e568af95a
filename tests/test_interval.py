from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.interval import Interval, InvalidIntervalError, parse_interval
from tests.builders import at

TICK = timedelta(microseconds=1)
NOTHING = timedelta(0)

instants = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  bounds are naive
months = st.builds(Interval, st.integers(1, 30), st.just(NOTHING))
times = st.builds(Interval, st.just(0), st.timedeltas(timedelta(minutes=1), timedelta(days=400)))
mixed = st.builds(Interval, st.integers(1, 30), st.timedeltas(TICK, timedelta(days=60)))
intervals = months | times | mixed


@pytest.mark.parametrize(
    ("text", "count", "time"),
    [
        ("P1M", 1, NOTHING),
        ("P1Y", 12, NOTHING),
        ("P12M", 12, NOTHING),
        ("P1Y2M", 14, NOTHING),
        ("P0Y3M", 3, NOTHING),
        ("P001M", 1, NOTHING),
        ("P2W", 0, timedelta(weeks=2)),
        ("P1D", 0, timedelta(days=1)),
        ("PT1H", 0, timedelta(hours=1)),
        ("PT90M", 0, timedelta(minutes=90)),
        ("PT1S", 0, timedelta(seconds=1)),
        ("P1DT12H30M15S", 0, timedelta(days=1, hours=12, minutes=30, seconds=15)),
        ("P1M2D", 1, timedelta(days=2)),
        ("P100Y", 1200, NOTHING),
    ],
)
def test_a_duration_is_months_and_a_fixed_time(text: str, count: int, time: timedelta) -> None:
    assert parse_interval(text) == Interval(count, time)


FOREIGN_DIGITS = ["P\N{ARABIC-INDIC DIGIT ONE}M", "P\N{FULLWIDTH DIGIT ONE}M"]
NONSENSE = ["", "P", "PT", "P1", "1M", "P1MT", "T1H", "P1H", "PT1D", "p1m", " P1M", "P1M ", "P1M\n", "-P1M"]
NEARLY = ["P-1M", "+P1M", "P1.5D", "PT0,5H", "P1M1Y", "P1D1W", "P1M1M", "P12345Y", "monthly", "R/P1M"]


@pytest.mark.parametrize("text", NONSENSE + NEARLY + FOREIGN_DIGITS)
def test_what_is_not_iso_8601_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidIntervalError) as caught:
        parse_interval(text)
    (issue,) = caught.value.issues
    assert issue.code == "invalid_duration"
    assert issue.hint


@pytest.mark.parametrize("text", ["P0D", "P0M", "PT0S", "P0Y0M0W0DT0H0M0S"])
def test_nothing_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidIntervalError):
        parse_interval(text)


@pytest.mark.parametrize("text", ["P101Y", "P1201M", "P9999Y", "P99999M", "P99999W", "P999999D"])
def test_more_than_a_century_is_no_duration_for_it_would_leave_the_calendar(text: str) -> None:
    with pytest.raises(InvalidIntervalError):
        parse_interval(text)


@pytest.mark.parametrize(
    ("anchor", "interval", "expected"),
    [
        ("2026-01-31", "P1M", ["2026-01-31", "2026-02-28", "2026-03-31", "2026-04-30", "2026-05-31"]),
        ("2024-01-31", "P1M", ["2024-01-31", "2024-02-29", "2024-03-31"]),
        ("2026-01-30", "P1M", ["2026-01-30", "2026-02-28", "2026-03-30"]),
        ("2026-11-30", "P3M", ["2026-11-30", "2027-02-28", "2027-05-30"]),
        ("2024-02-29", "P1Y", ["2024-02-29", "2025-02-28", "2026-02-28", "2027-02-28", "2028-02-29"]),
        ("2026-12-31T23:59:59", "P1M", ["2026-12-31T23:59:59", "2027-01-31T23:59:59", "2027-02-28T23:59:59"]),
        ("2026-01-01", "P1W", ["2026-01-01", "2026-01-08", "2026-01-15"]),
        ("2026-01-31", "P1M1D", ["2026-01-31", "2026-03-01", "2026-04-02"]),
        ("2026-03-29T00:30:00", "PT1H", ["2026-03-29T00:30:00", "2026-03-29T01:30:00"]),
    ],
)
def test_recurrences_are_counted_from_the_anchor_and_never_drift(
    anchor: str, interval: str, expected: list[str]
) -> None:
    counted = [parse_interval(interval).after(at(anchor), n) for n in range(len(expected))]
    assert counted == [at(each) for each in expected]


@pytest.mark.parametrize(
    ("anchor", "interval", "count", "expected"),
    [
        ("2026-03-31", "P1M", -1, "2026-02-28"),
        ("2026-03-31", "P1M", -2, "2026-01-31"),
        ("2026-03-31", "P1M", -3, "2025-12-31"),
        ("2026-01-15", "P1M", -13, "2024-12-15"),
        ("2024-02-29", "P1Y", -1, "2023-02-28"),
        ("2024-02-29", "P1Y", -4, "2020-02-29"),
        ("2026-01-01", "P1W", -1, "2025-12-25"),
        ("2026-03-31", "P1M1D", -1, "2026-02-27"),
    ],
)
def test_recurrences_are_counted_backwards_alike(
    anchor: str, interval: str, count: int, expected: str
) -> None:
    assert parse_interval(interval).after(at(anchor), count) == at(expected)


def test_an_anchor_in_another_zone_counts_by_its_day_in_utc() -> None:
    midnight_in_berlin = datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    counted = parse_interval("P1M").after(midnight_in_berlin)
    assert counted == at("2026-01-31T23:00:00")
    assert counted.tzinfo is UTC


@given(instants, st.integers(-400, 400))
def test_a_month_later_is_the_same_day_and_time_or_the_last_day_of_the_month(
    anchor: datetime, count: int
) -> None:
    later = Interval(1, NOTHING).after(anchor, count)
    assert (later.year - anchor.year) * 12 + later.month - anchor.month == count
    assert later.timetz() == anchor.timetz()
    last_of_month = (later + timedelta(days=1)).month != later.month
    assert later.day == anchor.day or (later.day < anchor.day and last_of_month)


@given(intervals, instants, instants)
def test_periods_tile_time(interval: Interval, anchor: datetime, instant: datetime) -> None:
    period = interval.period_of(anchor, instant)
    assert instant in period
    assert interval.period_of(anchor, period.start) == period
    assert interval.period_of(anchor, period.end - TICK) == period
    assert interval.period_of(anchor, period.end).start == period.end
    assert interval.period_of(anchor, period.start - TICK).end == period.start


@given(intervals, instants, st.integers(-50, 50))
def test_every_recurrence_of_the_anchor_begins_a_period(
    interval: Interval, anchor: datetime, count: int
) -> None:
    period = interval.period_of(anchor, interval.after(anchor, count))
    assert (period.start, period.end) == (interval.after(anchor, count), interval.after(anchor, count + 1))


@pytest.mark.parametrize(
    ("part", "whole", "fits"),
    [
        ("P1M", "P1Y", True),
        ("P12M", "P1Y", True),
        ("P3M", "P6M", True),
        ("P1W", "P4W", True),
        ("P1D", "P2W", True),
        ("PT1H", "P1D", True),
        ("P1Y", "P1M", False),
        ("P2M", "P3M", False),
        ("P2W", "P1W", False),
        ("P4W", "P1M", False),
        ("P1D", "P1M", False),
        ("P1M", "P4W", False),
        ("P1M1D", "P2M", False),
        ("PT7H", "P1D", False),
    ],
)
def test_an_interval_divides_what_is_a_whole_number_of_it(part: str, whole: str, *, fits: bool) -> None:
    assert parse_interval(part).divides(parse_interval(whole)) is fits


@given(months | times, st.integers(1, 12), instants, st.integers(-5, 5))
def test_the_periods_of_a_divisor_never_straddle_those_of_the_whole(
    part: Interval, times_over: int, anchor: datetime, count: int
) -> None:
    whole = Interval(part.months * times_over, part.time * times_over)
    assert part.divides(whole)
    boundary = whole.after(anchor, count)
    assert part.period_of(anchor, boundary).start == boundary
