"""What is wrong with an event for the meters of its type, in OpenMeter's words."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.event import Event
from metering.meter import Aggregation, MeterDefinition, UsageQuery, fold
from metering.validation import counted_by, data_of, problems_of

NOON = datetime(2026, 3, 15, 12, tzinfo=UTC)
EXACTLY = msgspec.json.Encoder(decimal_format="number")
NUMERIC: tuple[Aggregation, ...] = ("SUM", "AVG", "MIN", "MAX", "LATEST")


def meter(
    aggregation: Aggregation = "SUM", path: str = "$.tokens", event_from: datetime | None = None
) -> MeterDefinition:
    value = None if aggregation == "COUNT" else path
    return MeterDefinition(
        event_type="llm", aggregation=aggregation, value_property=value, event_from=event_from
    )


def messages(data: object, *meters: MeterDefinition) -> list[str]:
    return [problem.message for problem in problems_of("llm", data, meters or [meter()])]


def test_a_type_that_no_meter_counts_is_said() -> None:
    (problem,) = problems_of("llm", {"tokens": 1}, [])
    assert problem.message == "no meter found for event type: llm"
    assert (problem.code, problem.field) == ("no_meter", "$.type")


WRONG: list[tuple[object, str]] = [
    (None, "invalid event: null and missing value property"),
    ({}, 'invalid event: missing value property: "$.tokens"'),
    ({"Tokens": 1}, 'invalid event: missing value property: "$.tokens"'),
    ({"tokens": None}, "invalid event: value cannot be null"),
    ({"tokens": "NaN"}, "invalid event: value cannot be NaN"),
    ({"tokens": "nan"}, "invalid event: value cannot be NaN"),
    ({"tokens": "Infinity"}, "invalid event: value cannot be infinity"),
    ({"tokens": "-inf"}, "invalid event: value cannot be infinity"),
    ({"tokens": "+Inf"}, "invalid event: value cannot be infinity"),
    ({"tokens": "not a number"}, "invalid event: value cannot be parsed as float64: not a number"),
    ({"tokens": ""}, "invalid event: value cannot be parsed as float64: "),
    ({"tokens": "0x10"}, "invalid event: value cannot be parsed as float64: 0x10"),
    ({"tokens": True}, "invalid event: unsupported value property type: boolean"),
    ({"tokens": {"n": 1}}, "invalid event: unsupported value property type: object"),
    ({"tokens": [1]}, "invalid event: unsupported value property type: array"),
]


@pytest.mark.parametrize("aggregation", NUMERIC)
@pytest.mark.parametrize(("data", "message"), WRONG)
def test_meters_of_numbers_say_why_a_value_is_none(
    aggregation: Aggregation, data: object, message: str
) -> None:
    assert messages(data, meter(aggregation)) == [message]


GOOD: list[object] = [0, -1, Decimal("0.1"), "25.5", " 7 ", "-1e-9", "1" * 1000, Decimal(10) ** 400]


@pytest.mark.parametrize("aggregation", NUMERIC)
@pytest.mark.parametrize("value", GOOD)
def test_numbers_and_text_that_is_one_are_good(aggregation: Aggregation, value: object) -> None:
    assert messages({"tokens": value}, meter(aggregation)) == []


def test_a_count_never_complains() -> None:
    anything: list[object] = [None, {}, {"tokens": None}, {"tokens": "x"}, {"tokens": []}]
    for data in anything:
        assert messages(data, meter("COUNT")) == []


@pytest.mark.parametrize("value", ["gpt", "", 7, Decimal("1.5"), True, "NaN"])
def test_a_unique_count_takes_texts_numbers_and_booleans(value: object) -> None:
    assert messages({"tokens": value}, meter("UNIQUE_COUNT")) == []


@pytest.mark.parametrize(("data", "message"), [WRONG[0], WRONG[1], WRONG[3], WRONG[-2], WRONG[-1]])
def test_a_unique_count_says_when_there_is_no_text(data: object, message: str) -> None:
    assert messages(data, meter("UNIQUE_COUNT")) == [message]


def test_each_meter_of_the_type_is_asked_and_what_several_say_is_said_once() -> None:
    meters = [meter("SUM"), meter("AVG"), meter("COUNT"), meter("SUM", "$.usage.total")]
    assert messages({"tokens": "x"}, *meters) == [
        "invalid event: value cannot be parsed as float64: x",
        'invalid event: missing value property: "$.usage.total"',
    ]


def test_meters_of_other_types_have_no_say() -> None:
    other = MeterDefinition(event_type="api", aggregation="SUM", value_property="$.ms")
    assert messages({"tokens": 1}, other, meter()) == []
    assert messages({"tokens": 1}, other) == ["no meter found for event type: llm"]


def test_a_problem_tells_the_value_s_place_and_a_long_text_is_cut() -> None:
    (problem,) = problems_of("llm", {"tokens": "x" * 5000}, [meter()])
    assert problem.field == "$.data.tokens"
    assert len(problem.message) < 300
    assert problem.message.endswith("...")


def test_who_counts_an_event() -> None:
    meters = {
        "sum": meter("SUM"),
        "count": meter("COUNT"),
        "unique": meter("UNIQUE_COUNT"),
        "later": meter("COUNT", event_from=NOON + timedelta(seconds=1)),
        "since": meter("COUNT", event_from=NOON),
    }

    def who(data: object) -> list[str]:
        counting = counted_by("llm", data, NOON, meters.values())
        return [name for name, one in meters.items() if any(one is counter for counter in counting)]

    assert who({"tokens": 1}) == ["sum", "count", "unique", "since"]
    assert who({"tokens": "x"}) == ["count", "unique", "since"]
    assert who({"tokens": None}) == ["count", "since"]
    assert who({}) == ["count", "unique", "since"]  # a missing value is a value of its own: ""
    assert who(None) == ["count", "unique", "since"]
    assert counted_by("api", {"tokens": 1}, NOON, meters.values()) == []


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.decimals(allow_nan=False, allow_infinity=False, places=3)
    | st.sampled_from(["", "1", "1.5e3", "NaN", "inf", "-Infinity", "x", "1_000", "٣"])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["tokens", "n"]), inner),
    max_leaves=5,
)


@given(st.none() | st.dictionaries(st.sampled_from(["tokens", "other"]), json_values))
def test_an_event_without_a_problem_is_counted_and_a_number_counts_exactly_then(data: Any) -> None:
    for aggregation in ("SUM", "AVG", "MIN", "MAX", "LATEST", "UNIQUE_COUNT", "COUNT"):
        one = meter(aggregation)
        counted = bool(counted_by("llm", data, NOON, [one]))
        fine = not problems_of("llm", data, [one])
        assert counted or not fine
        if aggregation in NUMERIC:
            assert counted == fine


@given(st.none() | st.dictionaries(st.sampled_from(["tokens", "other"]), json_values))
def test_who_counts_an_event_agrees_with_the_fold(data: Any) -> None:
    raw = None if data is None else EXACTLY.encode(data)
    event = Event(id="1", source="s", type="llm", subject="me", time=NOON, data=raw)
    for aggregation in (*NUMERIC, "UNIQUE_COUNT"):
        one = meter(aggregation)
        rows = fold(one, UsageQuery(), [event])
        adds = bool(rows) and (aggregation != "UNIQUE_COUNT" or rows[0].value == 1)
        assert bool(counted_by("llm", data_of(event.data), NOON, [one])) == adds


def test_data_is_decoded_with_every_digit() -> None:
    assert data_of(None) is None
    assert data_of('{"tokens": 0.1000000000000000000000000000001}') == {
        "tokens": Decimal("0.1000000000000000000000000000001")
    }
