import json
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.errors import InvalidError
from metering.event import Event, check_storable, decode_events
from metering.kong import (
    ANONYMOUS,
    MAX_AHEAD,
    BadEntryError,
    QuarantinedEntry,
    SubjectRule,
    decode_entries,
    events_of_entry,
    read_entries,
)

FIXTURES = Path(__file__).parent / "fixtures" / "kong"
NAMES = sorted(path.stem for path in FIXTURES.glob("*.json"))
NOW = datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
RULES: tuple[SubjectRule, ...] = ("consumer",)
ABSENT = object()
CONSUMER = "6d4f4b1e-0c8f-4d1e-8d0e-0f3a8e3f1a11"
WORKSPACE = "f381e34e-5c25-4e65-b91b-3c0a86cfc393"

Entry = dict[str, Any]


def entry(name: str) -> Entry:
    (found,) = decode_entries((FIXTURES / f"{name}.json").read_bytes())
    assert isinstance(found, dict)
    return found


def changed(original: Entry, path: str, value: object) -> Entry:
    """A copy with the value at the path, or without what stands there; `a|b` is the path of b in a."""
    copy = deepcopy(original)
    *parents, last = path.split("|")
    place: Any = copy
    for key in parents:
        place = place.setdefault(key, {})
    if value is ABSENT:
        place.pop(last, None)
    else:
        place[last] = value
    return copy


def events(of: object, *, rules: tuple[SubjectRule, ...] = RULES, gateway: str = "prod") -> tuple[Event, ...]:
    return events_of_entry(of, gateway=gateway, subject_rules=rules, now=NOW)


def data(event: Event) -> dict[str, Any]:
    assert event.data is not None
    decoded = json.loads(event.data, parse_float=Decimal)
    assert isinstance(decoded, dict)
    return decoded


def fact(of: Entry, name: str) -> object:
    return data(events(of)[0]).get(name, ABSENT)


def read(entries: list[object]) -> tuple[list[tuple[Event, ...]], list[QuarantinedEntry]]:
    return read_entries(entries, gateway="prod", subject_rules=RULES, now=NOW)


def reason(of: object) -> str:
    with pytest.raises(BadEntryError) as caught:
        events(of)
    return caught.value.detail


# -- whole entries -------------------------------------------------------------------------------------------


def test_a_chat_completion_gives_its_request_and_both_halves() -> None:
    request, prompt, completion = events(entry("chat"))
    shared = {
        "route_id": "0f1a4101-3327-4274-b1e4-484a4ab0c030",
        "route_name": "openai-chat",
        "service_id": "fb4eecf8-dec2-40ef-b779-16de7e2384c7",
        "service_name": "llm",
        "workspace": WORKSPACE,
        "gateway": "prod",
        "gateway_version": "3.10.0",
        "subject_type": "consumer_id",
        "consumer_id": CONSUMER,
        "consumer_username": "acme-prod",
        "consumer_custom_id": "cust_acme",
        "billable": True,
    }
    assert (request.id, request.type) == ("2f6946328ffc4946b8c9120704a4a155", "kong.api_request")
    assert request.source == f"kong/http-log/{WORKSPACE}"
    assert request.subject == f"consumer:{CONSUMER}"
    assert request.time == datetime(2024, 9, 19, 22, 10, 39, 538_000, tzinfo=UTC)
    assert data(request) == shared | {
        "request_method": "POST",
        "request_host": "gw.example.com",
        "request_uri": "/openai/v1/chat/completions",
        "request_size_bytes": 512,
        "response_http_status": 200,
        "response_size_bytes": 1243,
        "upstream_status": "200",
        "service_port": 443,
        "service_protocol": "https",
        "client_ip": "192.168.65.1",
        "workspace_name": "default",
        "latency_ms": 741,
        "source": "upstream",
    }
    call = {
        "provider": "openai",
        "ai_plugin_id": "da587462-a802-4c22-931a-e6a92c5866d1",
        "ai_plugin_name": "proxy",
        "http_status": 200,
        "api_request_id": request.id,
        "estimated": False,
    }
    assert data(prompt) == shared | call | {"type": "request", "tokens": 25, "model": "gpt-3.5-turbo"}
    assert data(completion) == shared | call | {
        "type": "response",
        "tokens": 12,
        "model": "gpt-3.5-turbo-0613",
    }
    assert (prompt.id, completion.id) == (f"{request.id}:proxy:request", f"{request.id}:proxy:response")
    assert {event.type for event in (prompt, completion)} == {"kong.llm_request"}
    assert {(event.source, event.subject, event.time) for event in (prompt, completion)} == {
        (request.source, request.subject, request.time)
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chat", [("request", 25, "gpt-3.5-turbo", False), ("response", 12, "gpt-3.5-turbo-0613", False)]),
        ("stream_estimated", [("request", 18, "gpt-4o", True), ("response", 13, "gpt-4o", True)]),
        ("stream_exact", [("request", 1800, "gpt-4o", False), ("response", 240, "gpt-4o-2024-08-06", False)]),
        ("ai_proxy_old_key", [("request", 31, "claude-2.1", False), ("response", 7, "claude-2.1", False)]),
        ("unauthorized", []),
        ("upstream_error", []),
        ("anonymous", []),
        ("retried", []),
    ],
)
def test_tokens_of_whole_entries(name: str, expected: list[tuple[str, int, str, bool]]) -> None:
    halves = [data(event) for event in events(entry(name))[1:]]
    assert [(half["type"], half["tokens"], half["model"], half["estimated"]) for half in halves] == expected


@pytest.mark.parametrize(
    ("name", "subject", "status", "billable"),
    [
        ("chat", f"consumer:{CONSUMER}", 200, True),
        ("retried", f"consumer:{CONSUMER}", 200, True),
        ("unauthorized", ANONYMOUS, 401, False),
        ("upstream_error", f"consumer:{CONSUMER}", 500, False),
        ("anonymous", ANONYMOUS, 200, False),
    ],
)
def test_what_is_billable(name: str, subject: str, status: int, billable: bool) -> None:
    event = events(entry(name))[0]
    assert event.subject == subject
    assert (data(event)["response_http_status"], data(event)["billable"]) == (status, billable)


def test_a_request_that_kong_retried_is_billed_once() -> None:
    (event,) = events(entry("retried"))
    assert event.time == datetime(2024, 9, 19, 22, 10, 48, 335_250, tzinfo=UTC)
    facts = data(event)
    assert (facts["upstream_status"], facts["latency_ms"]) == ("502, 200", Decimal("741.0000001"))
    assert (facts["request_size_bytes"], facts["response_size_bytes"]) == (231, 918)
    assert (facts["consumer_group"], facts["consumer_groups"]) == ("gold", "gold, beta")
    assert facts["gateway_version"] == "3.10.0"


def test_the_query_string_is_cut() -> None:
    assert "?verbose&apikey=" in entry("anonymous")["request"]["uri"]
    assert fact(entry("anonymous"), "request_uri") == "/orders"


def test_the_cache_status_is_kept() -> None:
    assert {data(event).get("cache_status") for event in events(entry("stream_exact"))[1:]} == {"Miss"}


@pytest.mark.parametrize("name", NAMES)
def test_no_marked_secret_of_a_fixture_is_kept(name: str) -> None:
    assert not any(b"do-not-keep" in msgspec.json.encode(event) for event in events(entry(name)))


# -- one fact at a time --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "subject", "subject_type"),
    [
        (("consumer",), f"consumer:{CONSUMER}", "consumer_id"),
        (("custom_id", "consumer"), "cust_acme", "consumer_custom_id"),
        (("username",), "acme-prod", "consumer_username"),
        ((), ANONYMOUS, ANONYMOUS),
    ],
)
def test_the_first_rule_that_finds_something_names_the_subject(
    rules: tuple[SubjectRule, ...], subject: str, subject_type: str
) -> None:
    event = events(entry("chat"), rules=rules)[0]
    assert (event.subject, data(event)["subject_type"]) == (subject, subject_type)


@pytest.mark.parametrize("missing", [ABSENT, None, "", 7])
def test_an_empty_custom_id_leaves_the_subject_to_the_next_rule(missing: object) -> None:
    original = changed(entry("chat"), "consumer|custom_id", missing)
    assert events(original, rules=("custom_id", "username"))[0].subject == "acme-prod"


@pytest.mark.parametrize(
    ("path", "value", "name", "expected"),
    [
        ("request|size", "512", "request_size_bytes", 512),
        ("request|size", Decimal("512.0"), "request_size_bytes", 512),
        ("request|size", Decimal("512.5"), "request_size_bytes", ABSENT),
        ("request|size", -1, "request_size_bytes", ABSENT),
        ("request|size", 10**15, "request_size_bytes", 10**15),
        ("request|size", 10**15 + 1, "request_size_bytes", ABSENT),
        ("request|size", "1_000", "request_size_bytes", ABSENT),
        ("request|size", "٣", "request_size_bytes", ABSENT),
        ("request|size", True, "request_size_bytes", ABSENT),
        ("latencies|request", 741.5, "latency_ms", Decimal("741.5")),
        ("latencies|request", -1, "latency_ms", ABSENT),
        ("latencies|request", Decimal("1e-21"), "latency_ms", ABSENT),
        ("latencies|request", Decimal("NaN"), "latency_ms", ABSENT),
        ("latencies|request", 10**16, "latency_ms", ABSENT),
        ("latencies", "741", "latency_ms", ABSENT),
        ("upstream_status", "", "upstream_status", ABSENT),
        ("upstream_status", 200, "upstream_status", ABSENT),
        ("service", "llm", "service_name", ABSENT),
        ("service|port", None, "service_port", ABSENT),
        ("route|name", None, "route_name", ABSENT),
        ("request|uri", "/a%20b?q=1", "request_uri", "/a%20b"),
        ("request|uri", "/a#b?c", "request_uri", "/a"),
        ("request|uri", "/é", "request_uri", "/é"),
        ("request|uri", "*", "request_uri", ABSENT),
        ("request|uri", "http://user:pw@host/a", "request_uri", ABSENT),
        ("request|url", "https://user:pw@Example.com:8443/a?b", "request_host", "example.com"),
        ("request|url", "http://[2001:db8::1]:80/", "request_host", "2001:db8::1"),
        ("request|url", "http://[2001:db8::1/", "request_host", ABSENT),
        ("request|url", "http://a b/", "request_host", ABSENT),
        ("request|url", "/relative", "request_host", ABSENT),
        ("request|url", 1, "request_host", ABSENT),
        ("consumer_groups", ["gold"], "consumer_group", "gold"),
        ("consumer_groups", ["gold", 1], "consumer_groups", ABSENT),
        ("consumer_groups", ["gold", ""], "consumer_groups", ABSENT),
        ("consumer_groups", [], "consumer_group", ABSENT),
        ("consumer_groups", {}, "consumer_groups", ABSENT),
        ("consumer_groups", "gold", "consumer_groups", ABSENT),
        ("source", "kong", "source", "kong"),
        ("source", "kong", "billable", False),
        ("source", ABSENT, "source", ABSENT),
        ("source", ABSENT, "billable", True),
        ("source", "elsewhere", "source", ABSENT),
        ("source", [], "source", ABSENT),
        ("response|status", "404", "response_http_status", 404),
        ("response|status", 499, "billable", True),
        ("response|headers|via", "1.1 kong/3.12.0.1-enterprise-edition", "gateway_version", "3.12.0.1"),
        ("response|headers|via", "1.1 varnish", "gateway_version", ABSENT),
        ("response|headers|via", "1.1 kong/3.10.secret", "gateway_version", "3.10"),
        ("response|headers|via", [None, 3], "gateway_version", ABSENT),
        ("response|headers", "via", "gateway_version", ABSENT),
        ("workspace", None, "workspace", ABSENT),
        ("ai", "none", "request_method", "POST"),
    ],
)
def test_optional_facts(path: str, value: object, name: str, expected: object) -> None:
    assert fact(changed(entry("chat"), path, value), name) == expected


def test_kong_names_its_version_in_server_where_it_answers_itself() -> None:
    assert fact(entry("unauthorized"), "gateway_version") == "3.10.0"


@pytest.mark.parametrize("workspace", [ABSENT, None, ""])
def test_without_a_workspace_the_source_is_that_of_the_default_one(workspace: object) -> None:
    assert events(changed(entry("chat"), "workspace", workspace))[0].source == "kong/http-log/default"


@pytest.mark.parametrize(
    ("started_at", "microsecond"),
    [
        (1726783839538, 538_000),
        (1726783839538.25, 538_250),
        (Decimal("1726783839538.0000001"), 538_000),
        ("1726783839538", 538_000),
        ("1.726783839538e12", 538_000),
    ],
)
def test_times_are_exact_in_every_notation(started_at: object, microsecond: int) -> None:
    event = events(changed(entry("chat"), "started_at", started_at))[0]
    assert event.time == datetime(2024, 9, 19, 22, 10, 39, microsecond, tzinfo=UTC)


# -- LLM calls -----------------------------------------------------------------------------------------------


def tokens(call: Entry, *, stream: bool = False) -> list[tuple[str, int, bool]]:
    original = changed(entry("stream_estimated" if stream else "chat"), "ai", {"proxy": call})
    facts = [data(event) for event in events(original)[1:]]
    return [(half["type"], half["tokens"], half["estimated"]) for half in facts]


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"input_tokens": 5, "output_tokens": 6}, [("request", 5), ("response", 6)]),
        ({"prompt_tokens": 5}, [("request", 5)]),
        ({"prompt_tokens": None, "input_tokens": 5}, [("request", 5)]),
        ({"completion_tokens": 0}, [("response", 0)]),
        ({"prompt_tokens": "25", "completion_tokens": Decimal("12.0")}, [("request", 25), ("response", 12)]),
        ({"total_tokens": 9}, []),
        ({}, []),
    ],
)
def test_a_half_without_a_count_gives_no_event(usage: Entry, expected: list[tuple[str, int]]) -> None:
    assert tokens({"usage": usage}) == [(half, count, False) for half, count in expected]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({}, (True, True)),
        ({"usage_exact": {"prompt_tokens": 20, "completion_tokens": 9}}, (False, False)),
        ({"usage_exact": {"completion_tokens": 9}}, (True, False)),
        ({"usage_exact": "none"}, (True, True)),
        ({"meta": {"provider_name": "anthropic"}}, (False, False)),
        ({"meta": {"provider_name": "mistral"}}, (True, True)),
        ({"usage": {"prompt_tokens": 1, "output_tokens": 1, "output_tokens_details": {}}}, (False, False)),
    ],
)
def test_which_counts_of_a_stream_are_estimates(call: Entry, expected: tuple[bool, bool]) -> None:
    usage = {"usage": {"prompt_tokens": 18, "completion_tokens": 13}}
    assert tuple(estimated for *_, estimated in tokens(usage | call, stream=True)) == expected


def test_a_call_that_says_it_streams_is_a_stream() -> None:
    call = {"meta": {"request_mode": "stream"}, "usage": {"prompt_tokens": 1}}
    assert tokens(call) == [("request", 1, True)]


def test_exact_usage_is_preferred_and_enough() -> None:
    exact = {"prompt_tokens": 20, "completion_tokens": 9}
    expected = [("request", 20, False), ("response", 9, False)]
    assert tokens({"usage": {"prompt_tokens": 18}, "usage_exact": exact}, stream=True) == expected
    assert tokens({"usage_exact": exact}) == expected


@pytest.mark.parametrize(
    ("present", "model"), [("request_model", "m"), ("response_model", "m"), ("other", None)]
)
def test_a_half_without_its_model_takes_the_other_ones(present: str, model: str | None) -> None:
    call = {"meta": {present: "m"}, "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    halves = events(changed(entry("chat"), "ai", {"proxy": call}))[1:]
    assert [data(half).get("model") for half in halves] == [model, model]


def test_each_llm_call_of_an_entry_has_its_own_events() -> None:
    usage = {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    others = {"mcp": {"rpc": []}, "a2a": {}, "guard": "on", "sanitizer": {"usage": "none"}}
    calls = {"ai-request-transformer": usage, "proxy": usage, **others}
    request, *halves = events(changed(entry("chat"), "ai", calls))
    assert [half.id.removeprefix(request.id) for half in halves] == [
        ":ai-request-transformer:request",
        ":ai-request-transformer:response",
        ":proxy:request",
        ":proxy:response",
    ]


# -- bad entries ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("request", ABSENT, "request.id is missing"),
        ("request", "text", "request.id is missing"),
        ("request|id", ABSENT, "request.id is missing"),
        ("request|id", "", "request.id is missing"),
        ("request|id", 7, "request.id is missing"),
        ("request|id", "a" * 257, "request.id makes a name of more than 256"),
        ("request|id", "a\0", "request.id contains U+0000"),
        ("request|id", "a\ud800", "request.id contains U+0000"),
        ("started_at", ABSENT, "started_at is missing"),
        ("started_at", "yesterday", "started_at is missing"),
        ("started_at", True, "started_at is missing"),
        ("started_at", Decimal("Infinity"), "started_at is missing"),
        ("started_at", 1726783839, "started_at is not a time"),
        ("started_at", -1, "started_at is not a time"),
        ("started_at", 10**30, "started_at is not a time"),
        ("started_at", 253_402_300_799_999, "started_at is more than 5 minutes in the future"),
        ("response", ABSENT, "response.status is missing"),
        ("response|status", None, "response.status is missing"),
        ("response|status", "OK", "response.status is missing"),
        ("response|status", Decimal("200.5"), "response.status is missing"),
        ("response|status", 1000, "response.status is missing"),
        ("ai|proxy|usage|prompt_tokens", -1, "ai.*.usage.prompt_tokens is not"),
        ("ai|proxy|usage|prompt_tokens", Decimal("1.5"), "ai.*.usage.prompt_tokens is not"),
        ("ai|proxy|usage|prompt_tokens", "many", "ai.*.usage.prompt_tokens is not"),
        ("ai|proxy|usage|prompt_tokens", [], "ai.*.usage.prompt_tokens is not"),
        ("ai|proxy|usage|prompt_tokens", False, "ai.*.usage.prompt_tokens is not"),
        ("ai|proxy|usage|completion_tokens", 10**15 + 1, "ai.*.usage.completion_tokens is not"),
        ("ai|proxy|usage_exact", {"completion_tokens": -1}, "ai.*.usage_exact.completion_tokens is not"),
        ("ai|proxy|meta|response_model", "gpt\0", "ai.*.meta.response_model contains"),
        ("ai", {"a" * 129: {"usage": {}}}, "ai makes a name of more than 128"),
        ("ai", {"a\0": {"usage": {}}}, "ai contains"),
        ("workspace", "w" * 129, "workspace makes a name of more than 128"),
        ("workspace", "\0", "workspace contains"),
        ("consumer|id", "c" * 504, "consumer.id makes a name of more than 512"),
        ("consumer|username", "\udfff", "consumer.username contains"),
        ("request|uri", "/\0", "request.uri contains"),
        ("request|uri", "/\ud800", "request.uri contains"),
        ("consumer_groups", ["\0"], "consumer_groups contains"),
        ("client_ip", "\0", "client_ip contains"),
    ],
)
def test_bad_entries_and_their_reasons(path: str, value: object, expected: str) -> None:
    assert expected in reason(changed(entry("chat"), path, value))


@pytest.mark.parametrize("value", [None, 1, "entry", [], [{}]])
def test_what_is_not_an_object_is_no_entry(value: object) -> None:
    assert reason(value) == "the entry is not a JSON object"


def test_a_bad_half_takes_its_whole_entry_with_it() -> None:
    good, (bad,) = read([changed(entry("chat"), "ai|proxy|usage|completion_tokens", -1)])
    assert (good, bad.events) == ([], ())
    assert bad.request_id == "2f6946328ffc4946b8c9120704a4a155"


def test_an_entry_from_the_future_waits_with_its_events() -> None:
    ahead = int((NOW + MAX_AHEAD).timestamp() * 1000)
    in_time, too_early = (changed(entry("chat"), "started_at", ahead + ms) for ms in (0, 1))
    (good,), (bad,) = read([in_time, too_early])
    assert [event.id for event in good] == [event.id for event in bad.events]
    assert {event.time for event in bad.events} == {NOW + MAX_AHEAD + timedelta(milliseconds=1)}


def test_an_issue_says_where_the_entry_is_wrong() -> None:
    with pytest.raises(BadEntryError) as caught:
        events(changed(entry("chat"), "request|id", ""))
    (issue,) = caught.value.issues
    assert (issue.code, issue.field) == ("bad_entry", "$.request.id")


@pytest.mark.parametrize("bad_id", [ABSENT, "a" * 257, "a\0", 3])
def test_an_id_that_cannot_be_stored_is_not_kept(bad_id: object) -> None:
    _, (bad,) = read([changed(entry("chat"), "request|id", bad_id)])
    assert bad.request_id is None


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    bad = changed(entry("chat"), "started_at", None)
    turned = dict(reversed(bad.items()))
    _, (one, other) = read([bad, turned])
    assert one.digest == other.digest
    assert len(one.digest) == 16


def test_different_bad_entries_have_different_digests() -> None:
    bad = changed(entry("chat"), "started_at", None)
    _, quarantined = read([bad, changed(bad, "request|size", 513), None, 1, "1", [], {}])
    assert len({each.digest for each in quarantined}) == len(quarantined)


# -- bodies --------------------------------------------------------------------------------------------------


def test_one_entry_and_an_array_of_one_decode_the_same() -> None:
    assert decode_entries(b' {"a": 1}') == decode_entries(b'[{"a": 1}]\n') == [{"a": 1}]
    assert decode_entries(b"[]") == []


def test_numbers_are_exact() -> None:
    (found,) = decode_entries(b'{"a": 1.7e-06, "b": 741.0000001, "c": 123456789012345678901, "d": 1.0}')
    assert found == {
        "a": Decimal("0.0000017"),
        "b": Decimal("741.0000001"),
        "c": 123456789012345678901,
        "d": Decimal(1),
    }


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "malformed_json"),
        (b"{", "malformed_json"),
        (b"{} {}", "malformed_json"),
        (b"{'a': 1}", "malformed_json"),
        (b"\xff\xfe{\x00}\x00", "malformed_json"),
        (b"\xef\xbb\xbf{}", "malformed_json"),
        (b"[" * 100_000, "malformed_json"),
        (b'{"a":' * 100_000, "malformed_json"),
        (b'"entry"', "invalid_body"),
        (b"17", "invalid_body"),
        (b"null", "invalid_body"),
    ],
)
def test_a_body_that_holds_no_entries_is_refused(body: bytes, code: str) -> None:
    with pytest.raises(InvalidError) as caught:
        decode_entries(body)
    assert [issue.code for issue in caught.value.issues] == [code]


GOOD = (FIXTURES / "retried.json").read_bytes()


@pytest.mark.parametrize(
    "number",
    [
        b"1e9999999999999999999999",
        b"-1E-9999999999999999999999",
        b"9" * 5000,
        b"1.0e400",
        b"NaN",
        b"-Infinity",
    ],
)
@pytest.mark.parametrize("place", [b'"started_at": ', b'"status": ', b'"request": '])
def test_an_absurd_number_hurts_its_own_entry_at_most(number: bytes, place: bytes) -> None:
    hurt = GOOD.replace(place + GOOD.split(place)[-1].split(b",")[0], place + number)
    assert number in hurt
    good, bad = read(decode_entries(b"[%b,%b]" % (hurt, GOOD)))
    assert good[-1] == events(entry("retried"))
    assert len(good) + len(bad) == 2


@pytest.mark.parametrize("raw", [rb"\ud800", rb"\u0000", b"\xff", b"\xed\xa0\x80"])
def test_a_bad_character_hurts_its_own_entry_only_where_it_would_be_kept(raw: bytes) -> None:
    in_header = GOOD.replace(b"curl", raw)
    in_route = GOOD.replace(b"orders-route", raw)
    (ignored, untouched), (bad,) = read(decode_entries(b"[%b,%b,%b]" % (in_header, in_route, GOOD)))
    assert ignored == untouched == events(entry("retried"))
    assert bad.reason.startswith("route.name contains")


def test_a_raw_byte_in_its_path_keeps_no_request_off_the_bill() -> None:
    (raw,) = decode_entries(GOOD.replace(b"/orders/42", b"/orders/\xe942\xff?\xfe"))
    (event,) = events(raw)
    assert data(event)["request_uri"] == "/orders/%E942%FF"
    assert data(event)["billable"] is True


def test_an_entry_nested_deeper_than_an_encoder_goes_is_quarantined() -> None:
    deep: object = 1
    for _ in range(5000):
        deep = [{"a": deep}]
    good, (one, other) = read([deep, entry("retried"), deep])
    assert len(good) == 1
    assert one == other


# -- theorems ------------------------------------------------------------------------------------------------

theorem = settings(derandomize=True, deadline=None, max_examples=150)

any_text = st.text(st.characters(exclude_categories=()), max_size=12)
numbers = (
    st.integers() | st.decimals() | st.floats() | st.sampled_from([0, 10**15, 10**400, Decimal("1E+999")])
)
leaves = st.none() | st.booleans() | numbers | any_text | st.sampled_from(["200", "1726783839538", "stream"])
any_json = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=12,
)


def paths(value: object, prefix: str = "") -> list[str]:
    """Every place in an entry, as `changed` takes it."""
    if not isinstance(value, dict):
        return []
    return [
        path
        for key, inner in value.items()
        for path in (f"{prefix}{key}", *paths(inner, f"{prefix}{key}|"))
        if "|" not in key
    ]


ENTRIES = [entry(name) for name in NAMES]
PLACES = sorted(
    {path for each in ENTRIES for path in paths(each)} | {"consumer_groups", "ai|proxy|usage_exact"}
)


@st.composite
def nearly_good_entries(draw: st.DrawFn) -> Entry:
    """A real entry with an id of its own and up to three places overwritten by anything."""
    found = changed(draw(st.sampled_from(ENTRIES)), "request|id", draw(st.uuids()).hex)
    for place in draw(st.lists(st.sampled_from(PLACES), max_size=3)):
        *parents, last = place.split("|")
        inner: Any = found
        for key in parents:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner[last] = draw(any_json)
    return found


any_entries: st.SearchStrategy[object] = nearly_good_entries() | any_json


def outcome(of: object) -> tuple[Event, ...] | str:
    try:
        return events(of)
    except BadEntryError as error:
        return error.detail


@theorem
@given(any_entries)
def test_the_same_entry_gives_the_same_events(of: object) -> None:
    assert outcome(of) == outcome(deepcopy(of))


@theorem
@given(st.lists(any_entries, max_size=6), st.data())
def test_recutting_a_batch_changes_no_event(entries: list[object], draw: st.DataObject) -> None:
    cut = draw.draw(st.integers(0, len(entries)))
    whole, first, second = read(entries), read(entries[:cut]), read(entries[cut:])
    assert whole == (first[0] + second[0], first[1] + second[1])


@theorem
@given(any_json, st.integers(0, 3))
def test_a_bad_entry_never_changes_its_neighbours(bad: object, at: int) -> None:
    neighbours: list[object] = [*ENTRIES[:3]]
    batch = [*neighbours[:at], bad, *neighbours[at:]]
    assert read(batch)[0] == read(neighbours)[0]
    assert len(read(batch)[1]) == 1


@theorem
@given(any_entries)
def test_arbitrary_json_never_raises_anything_but_bad_entry(of: object) -> None:
    assert isinstance(outcome(of), tuple | str)


@theorem
@given(st.binary(max_size=40) | any_json.map(lambda value: json.dumps(value, default=str).encode()))
def test_arbitrary_bodies_never_raise_anything_but_invalid(body: bytes) -> None:
    try:
        entries = decode_entries(body)
    except InvalidError:
        return
    good, bad = read(entries)
    assert len(good) + len(bad) == len(entries)


@theorem
@given(nearly_good_entries())
def test_every_event_can_be_stored(of: Entry) -> None:
    good, bad = read([of])
    for event in [*sum(good, ()), *(event for each in bad for event in each.events)]:
        assert event.data is not None
        check_storable(event.data, "$.data")
        wire = msgspec.json.encode({**msgspec.structs.asdict(event), "data": msgspec.Raw(event.data)})
        assert decode_events(wire, content="single", now=NOW) == [event]


@theorem
@given(nearly_good_entries())
def test_what_is_kept_of_a_bad_entry_can_be_stored(of: Entry) -> None:
    for each in read([of])[1]:
        check_storable(json.dumps([each.reason, each.request_id]).encode(), "$")


@theorem
@given(nearly_good_entries())
def test_the_ids_of_an_entry_are_distinct_and_begin_with_the_request_s(of: Entry) -> None:
    found = outcome(of)
    ids = [event.id for event in found] if isinstance(found, tuple) else []
    assert len(ids) == len(set(ids))
    assert all(each.startswith(of["request"]["id"]) for each in ids)


@theorem
@given(nearly_good_entries(), st.sampled_from(["prod", "staging", "a-b"]))
def test_the_url_changes_nothing_of_an_event_but_its_gateway(of: Entry, gateway: str) -> None:
    try:
        one, other = events(of), events(of, gateway=gateway)
    except BadEntryError:
        return
    for left, right in zip(one, other, strict=True):
        assert data(left) | {"gateway": gateway} == data(right)
        assert msgspec.structs.replace(left, data=None) == msgspec.structs.replace(right, data=None)


SECRET = "s3cr3t-marker"  # noqa: S105
secrets = st.builds("{}{}{}".format, st.text(max_size=5), st.just(SECRET), st.text(max_size=5))
header_values = secrets | st.lists(secrets, min_size=1, max_size=3)
header_names = st.sampled_from(
    ["cookie", "apikey", "authorization", "via", "server", "content-type", "user-agent"]
)
headers = st.dictionaries(header_names | secrets, header_values, min_size=1)


@theorem
@given(st.sampled_from(ENTRIES), headers, secrets, st.sampled_from([None, 0, "1726783839538", "9" * 14]))
def test_nothing_secret_survives(original: Entry, of_client: Entry, secret: str, started_at: object) -> None:
    of = deepcopy(original)
    of["request"] |= {
        "headers": of_client,
        "querystring": {"key": secret, secret: True},
        "uri": f"/orders?key={secret}",
        "url": f"https://user:{secret}@api.example.com/orders?key={secret}",
    }
    of["response"]["headers"] = of_client
    of |= {"upstream_uri": f"/?{secret}", "tries": [{"ip": secret}], "authenticated_entity": {"id": secret}}
    of |= {
        "ai": {"proxy": {"usage": {"prompt_tokens": 1}, "payload": {"request": secret, "response": secret}}}
    }
    good, bad = read([of, changed(of, "started_at", started_at)])
    assert SECRET not in repr((good, bad))
    assert SECRET not in repr(outcome(changed(of, "started_at", secret)))
