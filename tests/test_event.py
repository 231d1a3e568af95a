"""What is an event, and what is refused where."""

import json
from datetime import UTC, datetime
from typing import Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from metering.event import CONTENT_TYPES, Event, InvalidEventError, check_storable, decode_events

NOW = datetime(2026, 3, 15, 12, tzinfo=UTC)
Content = Literal["single", "batch", "either"]
GOOD: dict[str, Any] = {"id": "1", "source": "gateway", "type": "call", "subject": "ada"}


def decoded(body: object, content: Content = "either") -> list[Event]:
    return decode_events(json.dumps(body).encode(), content=content, now=NOW)


def with_data(data: bytes) -> bytes:
    return b'{"id": "1", "source": "gateway", "type": "call", "subject": "ada", "data": %b}' % data


def refused(body: bytes, content: Content = "either") -> tuple[str, str]:
    """The code and the field of the one issue."""
    with pytest.raises(InvalidEventError) as caught:
        decode_events(body, content=content, now=NOW)
    (issue,) = caught.value.issues
    assert issue.message
    return issue.code, issue.field


def test_the_least_event_has_the_time_of_its_arrival() -> None:
    assert decoded(GOOD) == [Event(id="1", source="gateway", type="call", subject="ada", time=NOW)]


def test_every_attribute_is_kept_and_data_as_it_was_sent() -> None:
    data = b'{"tokens":  12.50, "nested": {"a": [1, null]}, "\\u00fc": "\\ud83d\\ude00"}'
    wire = {"specversion": "1.0", "time": "2026-03-01T10:00:00.123456+02:00", "dataschema": "urn:x"}
    body = json.dumps(GOOD | wire | {"datacontenttype": "application/json"}).encode()
    (event,) = decode_events(body[:-1] + b', "data": ' + data + b"}", content="single", now=NOW)
    assert event == Event(
        **GOOD, time=datetime(2026, 3, 1, 8, 0, 0, 123456, tzinfo=UTC), data=data, dataschema="urn:x"
    )


def test_null_is_as_good_as_missing_and_extensions_are_passed_over() -> None:
    nothing = dict.fromkeys(["time", "data", "datacontenttype", "dataschema", "data_base64"])
    assert decoded(GOOD | nothing | {"traceparent": "00-0af7", "number": 5}) == decoded(GOOD)


@pytest.mark.parametrize(
    ("content_type", "single", "batch"),
    [
        ("application/cloudevents+json", True, False),
        ("application/cloudevents-batch+json", False, True),
        ("application/json", True, True),
    ],
)
def test_a_content_type_holds_one_event_or_an_array(content_type: str, single: bool, batch: bool) -> None:
    content = CONTENT_TYPES[content_type]
    for body, allowed in [(GOOD, single), ([GOOD, GOOD], batch)]:
        if allowed:
            assert len(decoded(body, content)) == (2 if body is not GOOD else 1)
        else:
            assert refused(json.dumps(body).encode(), content) == ("invalid_event", "$")


def test_an_array_may_be_indented() -> None:
    assert len(decode_events(b" \n\t" + json.dumps([GOOD, GOOD]).encode(), content="either", now=NOW)) == 2


def test_an_empty_array_is_refused() -> None:
    for content in ("batch", "either"):
        with pytest.raises(InvalidEventError, match="no events found") as caught:
            decode_events(b" [ ] ", content=content, now=NOW)
        assert caught.value.issues[0].code == "no_events"


WRONG: list[tuple[dict[str, Any], str]] = [
    *(({name: value}, f".{name}") for name in GOOD for value in ("", 5, None, "a\0b", ["x"])),
    *(({name: "x" * (limit + 1)}, f".{name}") for name, limit in
      [("id", 1024), ("source", 1024), ("type", 128), ("subject", 512), ("dataschema", 1024)]),
    *(({"time": time}, ".time") for time in
      ["", "yesterday", 5, "2026-03-01", "2026-03-01T10:00:00", "2026-02-30T10:00:00Z",
       "2026-03-01T10:00:00+25:00", "1969-12-31T23:59:59Z", "1970-01-01T00:00:00+00:01",
       "0001-01-01T00:00:00+23:59", "9990-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59"]),
    *(({"data": data}, ".data") for data in ["text", ["array"], 5, True, ""]),
    *(({"data_base64": data}, ".data_base64") for data in ["eyJ9", "", 5]),
    *(({"datacontenttype": kind}, ".datacontenttype") for kind in
      ["text/xml", "application/json; charset=utf-8", "", 5]),
    ({"specversion": ""}, ".specversion"),
    ({"specversion": None}, ".specversion"),
    ({"specversion": "1\0"}, ".specversion"),
    ({"dataschema": ""}, ".dataschema"),
    ({"dataschema": "urn:\0"}, ".dataschema"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "field"), WRONG)
def test_what_is_wrong_is_named_by_its_path(change: dict[str, Any], field: str) -> None:
    wrong = GOOD | change
    assert refused(json.dumps(wrong).encode()) == ("invalid_event", f"${field}")
    assert refused(json.dumps([GOOD, wrong, wrong]).encode()) == ("invalid_event", f"$[1]{field}")


@pytest.mark.parametrize("name", GOOD)
def test_what_is_missing_is_named_by_its_path(name: str) -> None:
    rest = {key: value for key, value in GOOD.items() if key != name}
    assert refused(json.dumps(rest).encode()) == ("invalid_event", f"$.{name}")
    assert refused(json.dumps([GOOD, rest]).encode()) == ("invalid_event", f"$[1].{name}")


@pytest.mark.parametrize("body", [b"5", b"null", b'"text"', b"true", b"[5]", b"[[]]", b"[null]"])
def test_what_is_no_object_is_no_event(body: bytes) -> None:
    code, field = refused(body)
    assert code == "invalid_event"
    assert field == ("$[0]" if body.startswith(b"[") else "$")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  ",
        b"{",
        b"[",
        b"id=1",
        json.dumps(GOOD).encode("utf-16"),
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
        json.dumps(GOOD).encode() + b"x",
        json.dumps([GOOD]).encode()[:-1],
        b'{"id": "\xff"}',
        b'{"id": "\\ud800"}',
        with_data(b'{"a": "\xff"}'),
        with_data(b'{"\xed\xa0\x80": 1}'),
        with_data(b'{"a": "\\ud800"}'),
        with_data(b'{"a": "\\udc00\\ud800"}'),
        with_data(b'{"\\ud800\\u0041": 1}'),
        with_data(b'{"a": NaN}'),
        with_data(b'{"a": -Infinity}'),
        with_data(b'{"a": 01}'),
        with_data(b'{"a": +1}'),
        with_data(b'{"a": 1.}'),
        with_data(b'{"a": .5}'),
        with_data(b'{"a": 1e}'),
        with_data(b'{"a": "\\x"}'),
        with_data(b'{"a": "\n"}'),
        with_data(b'{"a\x01": 1}'),
        with_data(b'{"a": 1,}'),
        with_data(b'{"a": [1,]}'),
        with_data(b"{'a': 1}"),
        with_data(b"[" * 100_000 + b"]" * 100_000),
    ],
)
def test_what_is_no_json_in_utf_8_is_refused_as_a_whole(body: bytes) -> None:
    assert refused(body) == ("malformed_json", "$")


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b'{"a": "\\u0000"}', ".a"),
        (b'{"a": {"b": [1, "x\\u0000y"]}}', ".a.b[1]"),
        (b'{"\\u0000": 1}', ""),
        (b'{"a": "\\\\\\u0000"}', ".a"),
        (b'{"a": 1e1000}', ".a"),
        (b'{"a": [0, -1E-1000 ]}', ".a[1]"),
        (b'{"a": 0e1000}', ".a"),
        (b'{"a": 12e999}', ".a"),
        (b'{"a": 1e99999999999999999999}', ""),
        (b'{"a": 1e-99999999999999999999}', ""),
        (b'{"a": %b}' % (b"9" * 1001), ".a"),
        (b'{"a": 0.%b}' % (b"9" * 1000), ".a"),
        (b'{"a": %b}' % (b"[" * 100 + b"]" * 100), ".a" + "[0]" * 99),
        (b'{"a": 1e300, "b": %b}' % (b"[" * 900 + b"]" * 900), ".b" + "[0]" * 99),
        (b'{"a": %b1%b}' % (b'{"a":' * 100, b"}" * 100), ".a" * 100),
    ],
)
def test_what_postgresql_can_not_hold_is_refused(data: bytes, field: str) -> None:
    assert refused(with_data(data)) == ("invalid_event", f"$.data{field}")
    assert refused(b"[" + with_data(b"null") + b"," + with_data(data) + b"]") == (
        "invalid_event",
        f"$[1].data{field}",
    )


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b'{"a": "\\\\u0000"}',
        b'{"a": 1e999, "b": -1e-999}',
        b'{"a": %b, "b": "%b"}' % (b"9" * 1000, b"9" * 5000),
        b'{"a": 0.%b}' % (b"9" * 999),
        b'{"a": %b}' % (b"[" * 99 + b"]" * 99),
        b'{"a": [%b{}]}' % (b"{}, " * 1000),
        b'{"a": "\\ud83d\\ude00 \\/ \x7f \xe2\x80\xa8"}',
        b'{"a": 1, "a": 2}',
        b' {"a" : 1 } ',
    ],
)
def test_everything_else_in_data_is_kept_byte_for_byte(data: bytes) -> None:
    (event,) = decode_events(with_data(data), content="single", now=NOW)
    assert event.data == data.strip()


def test_half_a_surrogate_pair_is_refused_also_by_those_who_write_data_themselves() -> None:
    for text in ('{"a": ["\\ud800"]}', '{"a": ["\\udfff x"]}'):
        with pytest.raises(InvalidEventError) as caught:
            check_storable(text.encode(), "$.data")
        assert caught.value.issues[0].field == "$.data.a[0]"


def test_many_objects_side_by_side_are_not_deep_whatever_brackets_their_texts_have() -> None:
    many = json.dumps([{"text": '[{"\\'}] * 1000).encode()
    check_storable(many, "$")
    hidden = '[{"a":"]}]}"},' * 101 + "1" + "]" * 101
    with pytest.raises(InvalidEventError, match="nested 100 deep"):
        check_storable(hidden.encode(), "$")


def test_nesting_without_end_is_refused_also_where_nobody_parsed_it_before() -> None:
    with pytest.raises(InvalidEventError, match="nested 100 deep"):
        check_storable(b"[" * 100_000 + b"]" * 100_000, "$.data")


@pytest.mark.parametrize("time", ["1970-01-01T00:00:00Z", "9989-12-31T23:59:59.999999Z"])
def test_time_has_a_first_and_a_last_instant(time: str) -> None:
    assert decoded(GOOD | {"time": time})[0].time == datetime.fromisoformat(time)


def test_nothing_of_a_batch_is_decoded_when_one_event_is_wrong() -> None:
    assert refused(json.dumps([GOOD, GOOD, GOOD | {"id": ""}]).encode()) == ("invalid_event", "$[2].id")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=8,
)
attributes = st.fixed_dictionaries(
    {}, optional=dict.fromkeys([*GOOD, "time", "data", "specversion", "data_base64"], json_values)
)
bodies = st.one_of(
    st.binary(),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.lists(attributes.map(lambda some: GOOD | some), max_size=3).map(
        lambda some: json.dumps(some).encode()
    ),
    st.binary().map(with_data),
    json_values.map(
        lambda value: with_data(json.dumps({"a": value}, ensure_ascii=False).encode(errors="surrogatepass"))
    ),
)


@given(bodies, st.sampled_from(["single", "batch", "either"]))
@example(with_data(b'{"b": "\\u0000", "a": %b}' % (b"[" * 985 + b"]" * 985)), "single")
def test_any_bytes_are_events_or_refused_as_such(body: bytes, content: Content) -> None:
    try:
        events = decode_events(body, content=content, now=NOW)
    except InvalidEventError as error:
        assert [issue.field[0] for issue in error.issues] == ["$"]  # noqa: PT017
    else:
        assert events
