"""What a meter counts, as tables: events in, usage out."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest

from metering.errors import InvalidError
from metering.event import Event
from metering.exact import plain
from metering.meter import Aggregation, MeterDefinition, UsageQuery, check_meter, check_query, fold
from metering.period import Period

TOKENS = MeterDefinition(
    event_type="llm", aggregation="SUM", value_property="$.tokens", group_by={"model": "$.model"}
)
CALLS = MeterDefinition(event_type="llm", aggregation="COUNT", group_by={"model": "$.model"})


def at(moment: str) -> datetime:
    """An instant of 15 March 2026, or of another day that is named."""
    text = moment if "-" in moment else f"2026-03-15T{moment}"
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def reported(*lines: str, kind: str = "llm") -> list[Event]:
    """Events from lines of time, subject and data."""
    events = []
    for i, line in enumerate(lines):
        time, subject, *data = line.split(maxsplit=2)
        raw = data[0].encode() if data else None
        events.append(Event(id=f"{i}", source="gateway", type=kind, subject=subject, time=at(time), data=raw))
    return events


def usage(meter: MeterDefinition, query: UsageQuery, events: list[Event]) -> list[str]:
    """Rows as lines of window, group and value."""
    return [
        " ".join([_span(row.window), *row.group.values(), plain(row.value)])
        for row in fold(meter, query, events)
    ]


def _span(period: Period) -> str:
    start, end = (edge.astimezone(UTC) for edge in (period.start, period.end))
    return f"{start:%H:%M}-{end:%H:%M}" if end - start < timedelta(days=1) else f"{start:%m-%d}/{end:%m-%d}"


def total_of(aggregation: Aggregation, *values: str) -> str | None:
    """What one meter says of events with these values, one a minute; None when it says nothing."""
    meter = MeterDefinition(
        event_type="llm", aggregation=aggregation, value_property=None if aggregation == "COUNT" else "$.v"
    )
    rows = fold(meter, UsageQuery(), reported(*(f"10:{i:02} ada {value}" for i, value in enumerate(values))))
    return plain(rows[0].value) if rows else None


DAY = reported(
    '10:00:30 ada {"model": "gpt", "tokens": 10}',
    '10:01:00 bob {"model": "gpt", "tokens": "2.5"}',
    '10:59:59.999999 ada {"model": "claude", "tokens": 100}',
    '11:00:00 ada {"model": "gpt", "tokens": 1000}',
    '13:30:00 eve {"tokens": 7}',
)  # fmt: skip


def test_usage_of_everything_spans_the_minutes_that_hold_the_events() -> None:
    assert usage(TOKENS, UsageQuery(), DAY) == ["10:00-13:31 1119.5"]
    assert usage(CALLS, UsageQuery(), DAY) == ["10:00-13:31 5"]
    assert fold(CALLS, UsageQuery(), DAY)[0].window == Period(start=at("10:00:00"), end=at("13:31:00"))


def test_usage_of_a_period_spans_it_and_excludes_its_end() -> None:
    assert usage(TOKENS, UsageQuery(start=at("10:01"), end=at("11:00")), DAY) == ["10:01-11:00 102.5"]
    assert usage(TOKENS, UsageQuery(start=at("11:00")), DAY) == ["11:00-13:31 1007"]
    assert usage(TOKENS, UsageQuery(end=at("10:01")), DAY) == ["10:00-10:01 10"]


def test_only_windows_with_events_are_answered() -> None:
    assert usage(TOKENS, UsageQuery(window_size="HOUR"), DAY) == [
        "10:00-11:00 112.5",
        "11:00-12:00 1000",
        "13:00-14:00 7",
    ]
    assert usage(CALLS, UsageQuery(window_size="MINUTE", end=at("11:00")), DAY) == [
        "10:00-10:01 1",
        "10:01-10:02 1",
        "10:59-11:00 1",
    ]


def test_windows_are_whole_even_where_the_period_cuts_them() -> None:
    query = UsageQuery(start=at("10:01"), end=at("11:00:01"), window_size="HOUR")
    assert usage(TOKENS, query, DAY) == ["10:00-11:00 102.5", "11:00-12:00 1000"]


def test_windows_are_those_of_the_zone() -> None:
    day = replace(TOKENS, group_by={})
    events = reported('2026-03-28T22:59 ada {"tokens": 1}', '2026-03-28T23:00 ada {"tokens": 2}')
    assert usage(day, UsageQuery(window_size="DAY"), events) == ["03-28/03-29 3"]
    berlin = UsageQuery(window_size="DAY", zone="Europe/Berlin")
    assert usage(day, berlin, events) == ["03-27/03-28 1", "23:00-22:00 2"]
    kathmandu = UsageQuery(window_size="HOUR", zone="Asia/Kathmandu")
    assert usage(day, kathmandu, events) == ["22:15-23:15 3"]


def test_groups_are_ordered_within_their_window_and_what_lacks_a_dimension_has_an_empty_one() -> None:
    assert usage(TOKENS, UsageQuery(group_by=("model",), start=at("10:00"), end=at("14:00")), DAY) == [
        "10:00-14:00  7",
        "10:00-14:00 claude 100",
        "10:00-14:00 gpt 1012.5",
    ]
    assert usage(CALLS, UsageQuery(group_by=("subject", "model"), window_size="HOUR"), DAY) == [
        "10:00-11:00 ada claude 1",
        "10:00-11:00 ada gpt 1",
        "10:00-11:00 bob gpt 1",
        "11:00-12:00 ada gpt 1",
        "13:00-14:00 eve  1",
    ]


def test_without_windows_the_group_that_began_first_comes_first() -> None:
    assert usage(CALLS, UsageQuery(group_by=("model",)), DAY) == [
        "10:00-11:01 gpt 3",
        "10:59-11:00 claude 1",
        "13:30-13:31  1",
    ]


def test_subjects_and_filters_choose_events() -> None:
    all_day = UsageQuery(start=at("00:00"), end=at("23:00"))
    for query, value in [
        (replace(all_day, subjects=("ada",)), "1110"),
        (replace(all_day, subjects=("ada", "bob")), "1112.5"),
        (replace(all_day, filters={"model": ("gpt",)}), "1012.5"),
        (replace(all_day, filters={"model": ("gpt", "")}), "1019.5"),
        (replace(all_day, filters={"model": ("gpt",)}, subjects=("ada",)), "1010"),
    ]:
        assert usage(TOKENS, query, DAY) == [f"00:00-23:00 {value}"]
    for nobody in (replace(all_day, subjects=()), replace(all_day, filters={"model": ()})):
        assert usage(TOKENS, nobody, DAY) == []
        assert usage(CALLS, nobody, DAY) == ["00:00-23:00 0"]


def test_events_of_another_type_or_before_the_meter_counts_are_not_counted() -> None:
    assert usage(CALLS, UsageQuery(), DAY + reported("10:00 ada", kind="other")) == ["10:00-13:31 5"]
    late = replace(CALLS, event_from=at("11:00"))
    assert usage(late, UsageQuery(), DAY) == ["11:00-13:31 2"]
    assert usage(late, UsageQuery(start=at("10:00"), end=at("12:00")), DAY) == ["10:00-12:00 1"]
    assert usage(late, UsageQuery(start=at("12:00")), DAY) == ["12:00-13:31 1"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (['{"v": 1}', '{"v": 2.5}', '{"v": "3"}'],
         {"SUM": "6.5", "COUNT": "3", "UNIQUE_COUNT": "3", "MIN": "1", "MAX": "3", "LATEST": "3"}),
        # What is no number is passed over, but it was a call, and another value.
        (['{"v": 5}', '{"v": "many"}', '{"v": true}', '{"v": [1]}', '{"v": {"v": 1}}'],
         {"SUM": "5", "COUNT": "5", "UNIQUE_COUNT": "4", "AVG": "5", "MIN": "5", "MAX": "5", "LATEST": "5"}),
        # Null is no value at all; what is missing is one, the empty text.
        (['{"v": null}', '{"v": null}'], {"COUNT": "2", "UNIQUE_COUNT": "0"}),
        (['{"v": "x"}', '{"w": 1}', "", '{"v": ""}', '{"v": null}', '{"v": "null"}'],
         {"COUNT": "6", "UNIQUE_COUNT": "3"}),
        # Values are told apart as text.
        (['{"v": 1}', '{"v": 1.0}', '{"v": "1"}', '{"v": 1e2}', '{"v": 100}', '{"v": true}', '{"v": "true"}'],
         {"UNIQUE_COUNT": "4", "SUM": "203.0", "LATEST": "100"}),
        (['{"v": 0.1}', '{"v": 0.2}'], {"SUM": "0.3", "AVG": "0.15"}),
        (['{"v": -5}', '{"v": "-7.50"}', '{"v": 0}'],
         {"SUM": "-12.50", "MIN": "-7.50", "MAX": "0", "LATEST": "0"}),
        (['{"v": 1}', '{"v": 1}', '{"v": 0}'], {"AVG": "0." + "6" * 49 + "7"}),
        (['{"v": 12345678901234567890123456789.000000000000000000000000000001}', '{"v": 1}'],
         {"SUM": "12345678901234567890123456790.000000000000000000000000000001"}),
        ([], dict.fromkeys(get_args(Aggregation))),
        (["", '{"v": "x"}'],
         {"SUM": None, "AVG": None, "MIN": None, "MAX": None, "LATEST": None, "COUNT": "2"}),
    ],
)  # fmt: skip
def test_each_aggregation_says_what_it_should(
    values: list[str], expected: Mapping[Aggregation, str | None]
) -> None:
    assert {aggregation: total_of(aggregation, *values) for aggregation in expected} == expected


def test_the_latest_value_is_the_one_with_the_latest_time_however_it_arrived() -> None:
    latest = replace(TOKENS, aggregation="LATEST", group_by={})
    events = reported(
        '10:05 ada {"tokens": 5}',
        '10:09 ada {"tokens": 9}',
        '10:10 ada {"tokens": "?"}',
        '10:01 ada {"tokens": 1}',
    )
    for order in (events, events[::-1]):
        assert usage(latest, UsageQuery(), order) == ["10:01-10:11 9"]


def test_of_two_latest_values_at_one_time_the_choice_does_not_depend_on_the_order_of_arrival() -> None:
    latest = replace(TOKENS, aggregation="LATEST", group_by={})
    events = reported(*(f'10:00 ada {{"tokens": {i}}}' for i in range(10)))
    assert usage(latest, UsageQuery(), events) == usage(latest, UsageQuery(), events[::-1])


@pytest.mark.parametrize(
    ("value", "dimension"),
    [
        ('"gpt"', "gpt"), ('" GPT "', " GPT "), ("5", "5"), ("1e2", "100"), ("1.50", "1.50"), ("-0.0", "0.0"),
        ("true", "true"), ("false", "false"), ("null", "null"), ("[1]", ""), ("{}", ""), ('""', ""),
    ],
)  # fmt: skip
def test_a_dimension_is_the_value_as_text(value: str, dimension: str) -> None:
    events = reported(f'10:00 ada {{"model": {value}}}')
    assert fold(CALLS, UsageQuery(group_by=("model",)), events)[0].group == {"model": dimension}
    assert len(fold(CALLS, UsageQuery(filters={"model": (dimension,)}), events)) == 1


def test_counting_nothing_is_nought_over_one_known_period_and_otherwise_no_row() -> None:
    known = UsageQuery(start=at("10:00"), end=at("11:00"))
    unique = replace(TOKENS, aggregation="UNIQUE_COUNT")
    for meter, query, rows in [
        (CALLS, known, ["10:00-11:00 0"]),
        (unique, known, ["10:00-11:00 0"]),
        (TOKENS, known, []),
        (CALLS, UsageQuery(), []),
        (CALLS, UsageQuery(start=at("10:00")), []),
        (CALLS, UsageQuery(end=at("11:00")), []),
        (CALLS, replace(known, window_size="HOUR"), []),
        (CALLS, replace(known, group_by=("model",)), []),
    ]:
        assert usage(meter, query, []) == rows


def problems(meter: MeterDefinition) -> list[tuple[str, str]]:
    found = check_meter(meter)
    assert all(issue.hint for issue in found)
    return [(issue.code, issue.field) for issue in found]


@pytest.mark.parametrize("aggregation", get_args(Aggregation))
def test_every_aggregation_but_count_needs_a_value(aggregation: Aggregation) -> None:
    without = replace(TOKENS, aggregation=aggregation, value_property=None)
    having = replace(TOKENS, aggregation=aggregation)
    good, bad = (without, having) if aggregation == "COUNT" else (having, without)
    assert problems(good) == []
    assert problems(bad) == [("invalid_meter", "$.valueProperty")]


@pytest.mark.parametrize(
    ("meter", "expected"),
    [
        (replace(TOKENS, value_property="tokens"), [("invalid_json_path", "$.valueProperty")]),
        (replace(TOKENS, value_property="$"), [("invalid_json_path", "$.valueProperty")]),
        (replace(TOKENS, group_by={"model": "model"}), [("invalid_json_path", "$.groupBy.model")]),
        (replace(TOKENS, group_by={"n": "$.tokens"}), [("invalid_meter", "$.groupBy.n")]),
        (replace(TOKENS, group_by={"subject": "$.a"}), [("invalid_meter", "$.groupBy.subject")]),
        (replace(TOKENS, group_by={"customer_id": "$.a"}), [("invalid_meter", "$.groupBy.customer_id")]),
        (replace(TOKENS, group_by={"1st": "$.a"}), [("invalid_meter", "$.groupBy.1st")]),
        (replace(TOKENS, group_by={"a-b": "$.a"}), [("invalid_meter", "$.groupBy.a-b")]),
        (replace(TOKENS, group_by={"": "$.a"}), [("invalid_meter", "$.groupBy.")]),
        (replace(TOKENS, group_by={"ü": "$.a"}), [("invalid_meter", "$.groupBy.ü")]),
        (replace(TOKENS, group_by={"a\n": "$.a"}), [("invalid_meter", "$.groupBy.a\n")]),
        (
            replace(TOKENS, value_property="$..", group_by={"a b": "x", "ok": "$.ok"}),
            [
                ("invalid_json_path", "$.valueProperty"),
                ("invalid_json_path", "$.groupBy.a b"),
                ("invalid_meter", "$.groupBy.a b"),
            ],
        ),
        (replace(TOKENS, group_by={"_a1": "$.a", "B": "$['b c'][0]"}), []),
    ],
)
def test_everything_that_is_wrong_with_a_meter_is_named(
    meter: MeterDefinition, expected: list[tuple[str, str]]
) -> None:
    assert problems(meter) == expected


@pytest.mark.parametrize(
    ("query", "code", "field"),
    [
        (UsageQuery(group_by=("model", "region")), "unknown_group_by", "$.groupBy"),
        (UsageQuery(group_by=("customer_id",)), "unknown_group_by", "$.groupBy"),
        (UsageQuery(filters={"region": ("eu",)}), "unknown_group_by", "$.filterGroupBy"),
        (UsageQuery(filters={"subject": ("ada",)}), "unknown_group_by", "$.filterGroupBy"),
        (UsageQuery(start=at("10:00"), end=at("10:00")), "empty_period", "$.to"),
        (UsageQuery(start=at("10:00"), end=at("09:59")), "empty_period", "$.to"),
        (UsageQuery(zone="Mars/Olympus"), "invalid_time_zone", "$.windowTimeZone"),
    ],
)
def test_a_question_that_can_not_be_answered_is_refused(query: UsageQuery, code: str, field: str) -> None:
    with pytest.raises(InvalidError) as caught:
        fold(TOKENS, query, DAY)
    (issue,) = caught.value.issues
    assert (issue.code, issue.field) == (code, field)
    if code == "unknown_group_by":
        assert issue.hint == "This meter's dimensions: model."


def test_a_meter_without_dimensions_says_so() -> None:
    with pytest.raises(InvalidError) as caught:
        check_query(replace(CALLS, group_by={}), UsageQuery(group_by=("model",)))
    assert caught.value.issues[0].hint == "This meter's dimensions: none."


def test_an_average_is_exact_as_long_as_it_can_be() -> None:
    large = 10**80
    assert total_of("AVG", f'{{"v": {large + 1}}}', f'{{"v": {large + 3}}}') == f"{large + 2}"
