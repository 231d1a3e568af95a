"""Windows tile time, in every zone and over every kind of clock change."""

from bisect import bisect
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import get_args
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.errors import InvalidError
from metering.period import MAX_WINDOWS, Period, WindowSize, window_of, windows, zone_of

ZONES = sorted(available_timezones() - {"localtime", "Factory"})
SIZES: tuple[WindowSize, ...] = get_args(WindowSize)
sizes = st.sampled_from(SIZES)
instants = st.integers(365 * 86400 * 10**6, 130 * 365 * 86400 * 10**6).map(
    lambda microseconds: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
)


def at(moment: str) -> datetime:
    return datetime.fromisoformat(moment).replace(tzinfo=UTC)


def local(moment: datetime, zone: str) -> str:
    return moment.astimezone(ZoneInfo(zone)).strftime("%m-%d %H:%M")


def days(start: str, end: str, zone: str) -> list[tuple[str, int]]:
    """When each day begins on the wall clock, and how many minutes it has."""
    found = windows(Period(start=at(start), end=at(end)), "DAY", ZoneInfo(zone))
    return [(local(day.start, zone), int(day.length.total_seconds()) // 60) for day in found]


def clock_changes(year: int) -> Iterator[tuple[datetime, ZoneInfo]]:
    """The days of that year on which some clock changes, and one zone for each kind of change."""
    dates = [datetime(year, 1, 1, tzinfo=UTC) + timedelta(days=day) for day in range(366)]
    kinds = {
        (before, before.astimezone(zone).utcoffset(), after.astimezone(zone).utcoffset()): zone
        for zone in map(ZoneInfo, ZONES)
        for before, after in pairwise(dates)
        if before.astimezone(zone).utcoffset() != after.astimezone(zone).utcoffset()
    }
    return ((day, zone) for (day, _, _), zone in kinds.items())


def test_a_period_includes_its_start_and_not_its_end() -> None:
    day = Period(start=at("2026-03-01"), end=at("2026-03-02"))
    assert day.start in day
    assert day.end - timedelta(microseconds=1) in day
    assert day.end not in day
    assert day.length == timedelta(days=1)


def test_a_period_needs_aware_instants_in_order() -> None:
    naive = datetime(2026, 3, 1)  # noqa: DTZ001
    for start, end in [(naive, at("2026-03-02")), (at("2026-03-01"), naive), (naive, naive)]:
        with pytest.raises(ValueError, match="aware"):
            Period(start=start, end=end)
    with pytest.raises(ValueError, match="before it starts"):
        Period(start=at("2026-03-02"), end=at("2026-03-01"))
    assert Period(start=at("2026-03-01"), end=at("2026-03-01")).length == timedelta(0)


@given(instants, sizes, st.sampled_from(ZONES))
def test_every_instant_lies_in_its_window_and_in_no_neighbour(
    instant: datetime, size: WindowSize, name: str
) -> None:
    zone = ZoneInfo(name)
    window = window_of(instant, size, zone)
    assert instant in window
    assert window_of(window.start, size, zone) == window
    assert window_of(window.end - timedelta(microseconds=1), size, zone) == window
    assert window_of(window.end, size, zone).start == window.end
    assert window_of(window.start - timedelta(microseconds=1), size, zone).end == window.start


@pytest.mark.parametrize("year", [1919, 1937, 1972, 1987, 2009, 2011, 2026])
def test_windows_tile_time_over_every_clock_change_of_a_year(year: int) -> None:
    for day, zone in clock_changes(year):
        around = Period(start=day - timedelta(hours=1), end=day + timedelta(hours=25))
        for size in SIZES[1:]:
            tiles = list(windows(around, size, zone))
            assert tiles[0].start <= around.start < tiles[0].end
            assert tiles[-1].start < around.end <= tiles[-1].end
            assert all(tile.end == following.start for tile, following in pairwise(tiles))
            starts = [tile.start for tile in tiles]
            for instant in (around.start + timedelta(minutes=10 * i, seconds=1) for i in range(156)):
                tile = tiles[bisect(starts, instant) - 1]
                assert window_of(instant, size, zone) == tile, (instant, zone)


@pytest.mark.parametrize(
    ("start", "end", "zone", "expected"),
    [
        ("2026-03-28T12:00", "2026-03-30T12:00", "Europe/Berlin",
         [("03-28 00:00", 24 * 60), ("03-29 00:00", 23 * 60), ("03-30 00:00", 24 * 60)]),
        ("2026-10-24T12:00", "2026-10-26T12:00", "Europe/Berlin",
         [("10-24 00:00", 24 * 60), ("10-25 00:00", 25 * 60), ("10-26 00:00", 24 * 60)]),
        # The clock jumps from midnight to 1:00.
        ("2018-11-03T12:00", "2018-11-05T12:00", "America/Sao_Paulo",
         [("11-03 00:00", 24 * 60), ("11-04 01:00", 23 * 60), ("11-05 00:00", 24 * 60)]),
        # At 1:00 it is put back to midnight.
        ("2026-10-31T12:00", "2026-11-02T12:00", "America/Havana",
         [("10-31 00:00", 24 * 60), ("11-01 00:00", 25 * 60), ("11-02 00:00", 24 * 60)]),
        # At midnight it is put back to 23:00.
        ("2018-02-17T12:00", "2018-02-19T12:00", "America/Sao_Paulo",
         [("02-17 00:00", 25 * 60), ("02-18 00:00", 24 * 60), ("02-19 00:00", 24 * 60)]),
        # At 0:01 it is put back to 23:01: the new day began, and the hour before midnight comes again.
        ("2009-10-31T12:00", "2009-11-02T12:00", "America/St_Johns",
         [("10-31 00:00", 24 * 60), ("11-01 00:00", 25 * 60), ("11-02 00:00", 24 * 60)]),
        # Samoa moved to the other side of the date line and had no 30 December.
        ("2011-12-29T12:00", "2011-12-31T12:00", "Pacific/Apia",
         [("12-29 00:00", 24 * 60), ("12-31 00:00", 24 * 60), ("01-01 00:00", 24 * 60)]),
        ("2026-04-04T00:00", "2026-04-05T15:00", "Australia/Lord_Howe",
         [("04-04 00:00", 24 * 60), ("04-05 00:00", 24 * 60 + 30), ("04-06 00:00", 24 * 60)]),
        ("2026-03-01T00:00", "2026-03-01T18:16", "Asia/Kathmandu",
         [("03-01 00:00", 24 * 60), ("03-02 00:00", 24 * 60)]),
    ],
)  # fmt: skip
def test_a_day_lasts_from_its_first_instant_to_that_of_the_next(
    start: str, end: str, zone: str, expected: list[tuple[str, int]]
) -> None:
    assert days(start, end, zone) == expected


def test_days_that_the_clock_shows_twice_are_one_window_each() -> None:
    """The hour between 23:00 and midnight came twice, the second time after the new day had begun."""
    zone = ZoneInfo("America/St_Johns")
    again = at("2009-11-01T03:00")
    assert local(again, "America/St_Johns") == "10-31 23:30"
    assert window_of(again, "DAY", zone).start == at("2009-11-01T02:30")
    assert window_of(again, "MONTH", zone).start == at("2009-11-01T02:30")


@pytest.mark.parametrize(
    ("zone", "start", "expected"),
    [
        ("Europe/Berlin", "2026-03-29T00:00", [("01:00", 60), ("03:00", 60), ("04:00", 60)]),
        ("Europe/Berlin", "2026-10-25T00:00", [("02:00", 60), ("02:00", 60), ("03:00", 60)]),
        ("Australia/Lord_Howe", "2026-04-04T14:00", [("01:00", 60), ("01:30", 30), ("02:00", 60)]),
        ("Australia/Lord_Howe", "2026-10-03T15:00", [("01:00", 60), ("02:30", 30), ("03:00", 60)]),
        ("Asia/Kathmandu", "2026-03-01T00:20", [("06:00", 60), ("07:00", 60), ("08:00", 60)]),
        ("America/St_Johns", "2009-11-01T02:00", [("23:00", 60), ("00:00", 1), ("23:01", 59)]),
    ],
)
def test_an_hour_is_cut_where_the_clock_is_changed_within_it(
    zone: str, start: str, expected: list[tuple[str, int]]
) -> None:
    found = windows(Period(start=at(start), end=at(start) + 3 * timedelta(hours=1)), "HOUR", ZoneInfo(zone))
    hours = [(local(hour.start, zone)[6:], int(hour.length.total_seconds()) // 60) for hour in found]
    assert hours[:3] == expected


def test_months_begin_at_the_local_midnight_of_their_first_day() -> None:
    year = Period(start=at("2024-01-15"), end=at("2024-12-15"))
    months = list(windows(year, "MONTH", ZoneInfo("Europe/Berlin")))
    assert [local(month.start, "Europe/Berlin") for month in months] == [
        f"{month:02}-01 00:00" for month in range(1, 13)
    ]
    assert [month.length.total_seconds() / 3600 for month in months[:4]] == [744, 696, 743, 720]


def test_a_minute_is_a_minute_of_utc_in_every_zone() -> None:
    for zone in ("UTC", "Asia/Kathmandu", "Australia/Lord_Howe"):
        minute = window_of(at("2026-03-01T10:20:30.5"), "MINUTE", ZoneInfo(zone))
        assert minute == Period(start=at("2026-03-01T10:20"), end=at("2026-03-01T10:21"))


def test_an_instant_may_be_given_in_any_zone() -> None:
    instant = at("2026-03-28T23:30")
    for zone in map(ZoneInfo, ("Asia/Tokyo", "America/New_York")):
        day = window_of(instant.astimezone(zone), "DAY", ZoneInfo("Europe/Berlin"))
        assert day == Period(start=at("2026-03-28T23:00"), end=at("2026-03-29T22:00"))


def test_an_empty_period_has_no_windows() -> None:
    assert list(windows(Period(start=at("2026-03-01"), end=at("2026-03-01")), "DAY", UTC)) == []


def test_more_windows_than_anybody_can_read_are_refused() -> None:
    start = at("2026-01-01")
    allowed = Period(start=start, end=start + timedelta(minutes=MAX_WINDOWS))
    assert len(list(windows(allowed, "MINUTE", UTC))) == MAX_WINDOWS
    beyond = Period(start=start, end=allowed.end + timedelta(microseconds=1))
    with pytest.raises(InvalidError) as caught:
        list(windows(beyond, "MINUTE", UTC))
    (issue,) = caught.value.issues
    assert (issue.code, issue.field) == ("too_many_windows", "$.windowSize")


@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin", "America/New_York", "Etc/GMT+5"])
def test_a_zone_is_found_by_its_iana_name(name: str) -> None:
    assert str(zone_of(name)) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Mars/Olympus",
        "Europe",
        "../etc/passwd",
        "/etc/passwd",
        "utc\0",
        "\0",
        "Europe/Berlin ",
        "\ud800",
        "a" * 300,
    ],
)
def test_an_unknown_zone_is_refused_with_its_place(name: str) -> None:
    with pytest.raises(InvalidError) as caught:
        zone_of(name, "$.timeZone")
    (issue,) = caught.value.issues
    assert (issue.code, issue.field) == ("invalid_time_zone", "$.timeZone")
    assert "Europe/Berlin" in issue.hint
