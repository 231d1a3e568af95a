"""Usage questions over HTTP: GET and POST ask the same, and the answer's digits are exact.

What each aggregation means is in test_usage.py; here it is what travels.
"""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openmeter import Client, models
from sqlalchemy import Engine, text

from tests.server import ADMIN_KEY, Server, assert_problem

_numbers = count()
JUNE = datetime(2026, 6, 1, tzinfo=UTC)
QUERY = "/api/v1/meters/asked/query"
ADVANCED = "advancedMeterGroupByFilters"
MODELS, KINDS, APPS = ("m0", "m1", "m2"), ("request", "response"), ("a", "b", "c", "d")


@pytest.fixture(scope="module", autouse=True)
def _usage(client: httpx.Client) -> None:
    """Forty-eight hours, an event each hour, worth its number."""
    definition = {"eventType": "asked", "groupBy": {"model": "$.model", "type": "$.type"}}
    for slug, how in (
        ("asked", {"aggregation": "SUM", "valueProperty": "$.n"}),
        ("asked_count", {"aggregation": "COUNT"}),
        ("asked_avg", {"aggregation": "AVG", "valueProperty": "$.n"}),
    ):
        assert client.post("/api/v1/meters", json={"slug": slug, **definition, **how}).status_code == 201
    sent(client, [event(i) for i in range(48)])


def event(number: int, kind: str = "asked", **changes: object) -> dict[str, Any]:
    return {
        "id": f"{kind}-{number}",
        "source": "query",
        "type": kind,
        "subject": APPS[number % 4],
        "time": (JUNE + timedelta(hours=number)).isoformat(),
        "data": {"n": number, "model": MODELS[number % 3], "type": KINDS[number % 2]},
        **changes,
    }


def sent(client: httpx.Client, body: object) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = client.post("/api/v1/events", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 204, answer.text


def get(client: httpx.Client, path: str = QUERY, **parameters: Any) -> Any:
    answer = client.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def post(client: httpx.Client, path: str = QUERY, **question: Any) -> Any:
    answer = client.post(path, json=question)
    assert answer.status_code == 200, answer.text
    return answer.json()


def by(answer: Any, *names: str) -> dict[tuple[str, ...], int]:
    return {tuple(row["groupBy"][name] for name in names): row["value"] for row in answer["data"]}


def total(**where: object) -> int:
    """The sum by hand, of the events whose n leaves these remainders."""
    remainders = {"model": (3, MODELS), "type": (2, KINDS), "subject": (4, APPS)}
    return sum(
        n
        for n in range(48)
        if all(remainders[name][1][n % remainders[name][0]] == value for name, value in where.items())
    )


def test_without_anything_it_is_one_row_over_all_there_is(client: httpx.Client) -> None:
    assert get(client) == post(client)
    assert get(client)["data"] == [
        {
            "value": sum(range(48)),
            "windowStart": "2026-06-01T00:00:00Z",
            "windowEnd": "2026-06-02T23:01:00Z",
            "subject": None,
            "groupBy": {},
        }
    ]


def test_group_by_one_or_several_dimensions(client: httpx.Client) -> None:
    expected = {(model, kind): total(model=model, type=kind) for model in MODELS for kind in KINDS}
    for answer in (get(client, groupBy=["model", "type"]), post(client, groupBy=["model", "type"])):
        assert by(answer, "model", "type") == expected
        order = [(row["windowStart"], *row["groupBy"].values()) for row in answer["data"]]
        assert order == sorted(order)
    assert by(get(client, groupBy="type"), "type") == {(kind,): total(type=kind) for kind in KINDS}


def test_filters_in_the_url_and_in_the_body(client: httpx.Client) -> None:
    one: dict[str, Any] = {"filterGroupBy[model]": "m1", "filterGroupBy[type]": "request"}
    assert by(get(client, **one)) == {(): total(model="m1", type="request")}
    several = {"model": ["m0", "m1"], "type": ["request"]}
    both = total(model="m0", type="request") + total(model="m1", type="request")
    assert by(post(client, filterGroupBy=several)) == {(): both}
    two: dict[str, Any] = {**one, "filterGroupBy[model]": ["m0", "m1"]}
    assert by(get(client, **two)) == {(): both}
    assert post(client, filterGroupBy={"model": ["none"]})["data"] == []


def test_one_subject_is_a_filter_and_several_are_told_apart(client: httpx.Client) -> None:
    (row,) = get(client, subject="b")["data"]
    assert (row["subject"], row["value"], row["groupBy"]) == (None, total(subject="b"), {})
    for answer in (get(client, subject=["d", "b", "none"]), post(client, subject=["d", "b", "none"])):
        found = [(row["subject"], row["value"], row["groupBy"]) for row in answer["data"]]
        assert found == [("b", total(subject="b"), {}), ("d", total(subject="d"), {})]
    answer = get(client, groupBy=["model", "subject"], subject=["a", "c"])
    apart = {(row["subject"], row["groupBy"]["model"]): row["value"] for row in answer["data"]}
    assert apart == {(s, m): total(subject=s, model=m) for s in ("a", "c") for m in MODELS}


def test_from_is_included_and_to_is_not(client: httpx.Client) -> None:
    window = {"from": "2026-06-01T10:00:00Z", "to": "2026-06-01T12:00:00Z"}
    for answer in (get(client, **window), post(client, **window)):
        assert {name: answer[name] for name in window} == window
        assert answer["data"] == [
            {
                "value": 10 + 11,
                "windowStart": window["from"],
                "windowEnd": window["to"],
                "subject": None,
                "groupBy": {},
            }
        ]


def test_instants_of_any_offset_are_answered_in_utc(client: httpx.Client) -> None:
    window = {"from": "2026-06-01T12:00:00+02:00", "to": "2026-06-01T05:00:00-07:00"}
    answer = get(client, **window)
    assert (answer["from"], answer["to"]) == ("2026-06-01T10:00:00Z", "2026-06-01T12:00:00Z")
    assert by(answer) == {(): 21}


@pytest.mark.parametrize(
    ("size", "zone", "starts"),
    [
        ("DAY", "UTC", ["2026-06-01T00:00:00Z", "2026-06-02T00:00:00Z"]),
        ("DAY", "Europe/Berlin", ["2026-05-31T22:00:00Z", "2026-06-01T22:00:00Z", "2026-06-02T22:00:00Z"]),
        ("DAY", "Asia/Kolkata", ["2026-05-31T18:30:00Z", "2026-06-01T18:30:00Z", "2026-06-02T18:30:00Z"]),
        ("MONTH", "America/New_York", ["2026-05-01T04:00:00Z", "2026-06-01T04:00:00Z"]),
        ("MONTH", "UTC", ["2026-06-01T00:00:00Z"]),
    ],
)
def test_windows_are_those_of_the_calendar_in_the_zone(
    client: httpx.Client, size: str, zone: str, starts: list[str]
) -> None:
    question = {"windowSize": size, "windowTimeZone": zone}
    for answer in (get(client, **question), post(client, **question)):
        assert answer["windowSize"] == size
        assert [row["windowStart"] for row in answer["data"]] == starts
        assert sum(row["value"] for row in answer["data"]) == sum(range(48))
        assert all(row["windowEnd"] > row["windowStart"] for row in answer["data"])


def test_hours_and_minutes_hold_one_event_each_and_empty_ones_are_left_out(client: httpx.Client) -> None:
    for size, length in (("HOUR", timedelta(hours=1)), ("MINUTE", timedelta(minutes=1))):
        rows = get(client, windowSize=size, **{"from": "2026-06-01T20:30:00Z"})["data"]
        assert [row["value"] for row in rows] == list(range(21, 48))
        for row in rows:
            start, end = (datetime.fromisoformat(row[name]) for name in ("windowStart", "windowEnd"))
            assert end - start == length
            assert start == JUNE + timedelta(hours=row["value"])


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        (["0.1", "0.2"], "0.3"),
        (["123456789012345678901234567890", "1"], "123456789012345678901234567891"),
        (["9007199254740993", "0.000000000000000000001"], "9007199254740993.000000000000000000001"),
        (["1e3", "-1E+3", "2.50"], "2.50"),
        (['"0.10"', "0.20"], "0.30"),
        (["-0.7", "0.2"], "-0.5"),
    ],
)
def test_a_sum_is_exact_digit_for_digit_in_the_text_of_the_answer(
    client: httpx.Client, numbers: list[str], text: str
) -> None:
    kind = f"exact_{next(_numbers)}"
    meter = {"slug": kind, "eventType": kind, "aggregation": "SUM", "valueProperty": "$.n"}
    assert client.post("/api/v1/meters", json=meter).status_code == 201
    for i, number in enumerate(numbers):
        body = json.dumps(event(i, kind, data={"n": "NUMBER"})).replace('"NUMBER"', number)
        sent(client, body.encode())
    for answer in (
        client.get(f"/api/v1/meters/{kind}/query"),
        client.post(f"/api/v1/meters/{kind}/query", json={}),
    ):
        assert f'"value":{text},' in answer.text
        assert answer.json()["data"]


def test_an_average_that_has_no_last_digit_is_answered_with_fifty(client: httpx.Client) -> None:
    answer = client.get(
        "/api/v1/meters/asked_avg/query", params={"to": "2026-06-01T06:00:00Z", "groupBy": "type"}
    )
    found = json.loads(answer.text, parse_float=Decimal)["data"]
    assert [row["value"] for row in found] == [2, 3]
    thirds = client.get("/api/v1/meters/asked_avg/query", params={"to": "2026-06-01T03:00:00Z"})
    assert json.loads(thirds.text, parse_float=Decimal)["data"][0]["value"] == 1


def test_counting_an_empty_period_is_zero_and_summing_it_is_nothing(client: httpx.Client) -> None:
    period = {"from": "2020-01-01T00:00:00Z", "to": "2020-02-01T00:00:00Z"}
    (row,) = get(client, "/api/v1/meters/asked_count/query", **period)["data"]
    assert (row["value"], row["windowStart"], row["windowEnd"]) == (0, period["from"], period["to"])
    assert get(client, **period)["data"] == []


@pytest.mark.parametrize(
    ("question", "code", "field"),
    [
        ({"groupBy": ["model", "colour"]}, "unknown_group_by", "$.groupBy"),
        ({"filterGroupBy": {"colour": ["red"]}}, "unknown_group_by", "$.filterGroupBy"),
        ({"filterGroupBy": {"subject": ["a"]}}, "unknown_group_by", "$.filterGroupBy"),
        ({"from": "2026-06-01T00:00:00Z", "to": "2026-06-01T00:00:00Z"}, "empty_period", "$.to"),
        ({"from": "2026-06-02T00:00:00Z", "to": "2026-06-01T00:00:00Z"}, "empty_period", "$.to"),
        ({"from": "2026-06-01T00:00:00"}, "timezone_aware", "$.from"),
        ({"to": "yesterday"}, None, None),
        ({"windowSize": "YEAR"}, "literal_error", "$.windowSize"),
        ({"windowTimeZone": "Mars/Olympus"}, "invalid_time_zone", "$.windowTimeZone"),
        ({"windowTimeZone": ""}, "invalid_time_zone", "$.windowTimeZone"),
        ({"subject": ["s"] * 101}, "too_long", "$.subject"),
        ({"clientId": "c" * 37}, "string_too_long", "$.clientId"),
        ({"asOf": "2026-06-01"}, None, None),
        ({"filterCustomerId": ["nobody"]}, "customer_not_found", "$.filterCustomerId[0]"),
        ({"filterCustomerId": ["c"] * 101}, "too_long", "$.filterCustomerId"),
        ({"groupBy": ["customer_id"]}, "customers_required", "$.groupBy"),
        ({"groupBy": ["model"] * 101}, "too_long", "$.groupBy"),
        ({ADVANCED: {"colour": {"$eq": "red"}}}, "unknown_group_by", f"$.{ADVANCED}"),
        ({ADVANCED: {"subject": {"$eq": "a"}}}, "unknown_group_by", f"$.{ADVANCED}"),
        ({ADVANCED: {"model": {"$is": "m0"}}}, "invalid_filter", f"$.{ADVANCED}.model.$is"),
        ({ADVANCED: {"model": {"$in": "m0"}}}, "invalid_filter", f"$.{ADVANCED}.model.$in"),
        (
            {ADVANCED: {"model": {"$or": [{}, {"$gt": 1}]}}},
            "invalid_filter",
            f"$.{ADVANCED}.model.$or[1].$gt",
        ),
        ({ADVANCED: {"model": "m0"}}, "invalid_filter", f"$.{ADVANCED}.model"),
        ({ADVANCED: {"model": None}}, "invalid_filter", f"$.{ADVANCED}.model"),
        ({ADVANCED: [{"$eq": "m0"}]}, "invalid_filter", f"$.{ADVANCED}"),
        (
            {ADVANCED: {"model": {"$eq": "m0"}}, "filterGroupBy": {"type": ["request"]}},
            "exclusive_filters",
            f"$.{ADVANCED}",
        ),
        ({"windowsize": "DAY"}, "unknown_field", "$.windowsize"),
        (
            {"windowSize": "HOUR", "from": "1975-01-01T00:00:00Z", "to": "2020-01-01T00:00:00Z"},
            "too_many_windows",
            "$.windowSize",
        ),
    ],
)
def test_a_question_that_can_not_be_answered_is_refused_with_its_place(
    client: httpx.Client, question: dict[str, Any], code: str | None, field: str | None
) -> None:
    assert_problem(client.post(QUERY, json=question), 400, code, field)
    assert_problem(client.get(QUERY, params=in_a_url(question)), 400, code, field)


def in_a_url(question: dict[str, Any]) -> dict[str, Any]:
    """The same question as parameters of GET."""
    parameters = {name: value for name, value in question.items() if name not in ("filterGroupBy", ADVANCED)}
    for name, value in question.get("filterGroupBy", {}).items():
        parameters[f"filterGroupBy[{name}]"] = value
    if ADVANCED in question:
        parameters[ADVANCED] = json.dumps(question[ADVANCED])
    return parameters


@pytest.mark.parametrize("sent", ["", "{", "[" * 2_000, '{"model": {"$eq": "m0"}', "m0"])
def test_a_filter_in_the_url_must_be_json(client: httpx.Client, sent: str) -> None:
    assert_problem(client.get(QUERY, params={ADVANCED: sent}), 400, "malformed_json", f"$.{ADVANCED}")


@pytest.mark.parametrize(
    "name", ["filterGroupBy", "group_by", "advancedMeterGroupByFilters[model]", "From", "filterGroupBy[x"]
)
def test_an_unknown_parameter_is_refused_and_never_ignored(client: httpx.Client, name: str) -> None:
    found = assert_problem(client.get(QUERY, params={name: "x"}), 400, "unknown_field", f"$.{name}")
    assert repr(name) in found["detail"]


def test_the_largest_filters_are_answered(client: httpx.Client) -> None:
    one_by_one = {"$or": [{"$eq": f"m{i}"} for i in range(999)]}
    pattern = "%" * 1000 + "REQUEST"
    question: dict[str, Any] = {ADVANCED: {"model": one_by_one, "type": {"$ilike": pattern}}}
    assert by(post(client, **question)) == {(): total(type="request")}


def test_half_a_character_is_in_no_dimension(client: httpx.Client) -> None:
    escaped = r'{"model": {"$eq": "\ud800"}}'
    place = f"$.{ADVANCED}.model.$eq"
    assert_problem(client.get(QUERY, params={ADVANCED: escaped}), 400, "invalid_filter", place)
    body = f'{{"{ADVANCED}": {escaped}}}'.encode()
    json_body = {"Content-Type": "application/json"}
    assert_problem(client.post(QUERY, content=body, headers=json_body), 400)


@pytest.mark.parametrize(
    ("filters", "where"),
    [
        ({}, [{}]),
        ({"model": {}}, [{}]),
        ({"model": {"$eq": "m1"}}, [{"model": "m1"}]),
        ({"model": {"$ne": "m1"}}, [{"model": "m0"}, {"model": "m2"}]),
        ({"model": {"$in": ["m0", "m2", "m9"]}}, [{"model": "m0"}, {"model": "m2"}]),
        ({"model": {"$nin": ["m0", "m2"]}}, [{"model": "m1"}]),
        ({"model": {"$like": "_1%"}}, [{"model": "m1"}]),
        ({"model": {"$nlike": "%0"}}, [{"model": "m1"}, {"model": "m2"}]),
        ({"type": {"$ilike": "REQ%"}}, [{"type": "request"}]),
        ({"type": {"$nilike": "REQ%"}}, [{"type": "response"}]),
        ({"model": {"$gt": "m0", "$lte": "m1", "$eq": None}}, [{"model": "m1"}]),
        (
            {"model": {"$gte": "m1"}, "type": {"$lt": "res"}},
            [{"model": m, "type": "request"} for m in ("m1", "m2")],
        ),
        ({"model": {"$or": [{"$eq": "m0"}, {"$and": [{"$gt": "m1"}]}]}}, [{"model": "m0"}, {"model": "m2"}]),
        ({"model": {"$eq": "none"}}, []),
    ],
)
def test_advanced_filters_in_the_url_and_in_the_body(
    client: httpx.Client, filters: dict[str, Any], where: list[dict[str, str]]
) -> None:
    expected = {(): sum(total(**one) for one in where)} if where else {}
    in_the_body: dict[str, Any] = {ADVANCED: filters}
    assert by(post(client, **in_the_body)) == expected
    assert by(get(client, **{ADVANCED: json.dumps(filters)})) == expected


@pytest.fixture(scope="module")
def owners(client: httpx.Client) -> dict[str, str]:
    """Two customers, one of them also by its own key, and their ids."""
    made = {}
    for key, subjects in (("two", ["a", "b"]), ("c", []), ("idle", ["z"])):
        body = {"name": key, "key": key, "usageAttribution": {"subjectKeys": subjects}}
        answer = client.post("/api/v1/customers", json=body)
        assert answer.status_code == 201, answer.text
        made[key] = answer.json()["id"]
    return made


def test_usage_of_customers_is_that_of_their_subjects_and_keys(
    client: httpx.Client, owners: dict[str, str]
) -> None:
    expected = {owners["two"]: total(subject="a") + total(subject="b"), owners["c"]: total(subject="c")}
    question: dict[str, Any] = {"filterCustomerId": list(owners.values())}
    for answer in (get(client, **question), post(client, **question)):
        assert {row["customerId"]: row["value"] for row in answer["data"]} == expected
        assert all(row["subject"] is None and row["groupBy"] == {} for row in answer["data"])
    (one,) = get(client, filterCustomerId=owners["c"])["data"]
    assert (one["customerId"], one["value"]) == (owners["c"], total(subject="c"))
    assert get(client, filterCustomerId=owners["idle"])["data"] == []
    assert "customerId" not in get(client)["data"][0]


def test_customers_are_told_apart_by_subject_dimension_and_window(
    client: httpx.Client, owners: dict[str, str]
) -> None:
    rows = post(
        client,
        filterCustomerId=[owners["two"], owners["c"]],
        groupBy=["subject", "model", "customer_id"],
        windowSize="DAY",
    )["data"]
    found = {(r["customerId"], r["subject"], r["groupBy"]["model"], r["windowStart"][8:10]) for r in rows}
    whose = {"a": owners["two"], "b": owners["two"], "c": owners["c"]}
    assert found == {(whose[s], s, m, d) for s in whose for m in MODELS for d in ("01", "02")}
    assert len(rows) == len(found)
    assert sum(row["value"] for row in rows) == sum(total(subject=s) for s in whose)


def test_subjects_and_customers_together_are_those_in_both(
    client: httpx.Client, owners: dict[str, str]
) -> None:
    rows = get(client, filterCustomerId=owners["two"], subject=["b", "c", "d"])["data"]
    assert [(r["customerId"], r["subject"], r["value"]) for r in rows] == [
        (owners["two"], "b", total(subject="b"))
    ]
    assert get(client, filterCustomerId=owners["c"], subject="a")["data"] == []


def test_a_deleted_customer_is_not_found(client: httpx.Client) -> None:
    body = {"name": "gone", "key": "gone"}
    gone = client.post("/api/v1/customers", json=body).json()["id"]
    assert get(client, filterCustomerId=gone)["data"] == []
    assert client.delete(f"/api/v1/customers/{gone}").status_code == 204
    question = {"filterCustomerId": [gone]}
    assert_problem(client.post(QUERY, json=question), 400, "customer_not_found", "$.filterCustomerId[0]")


def test_as_of_answers_what_was_known_then(client: httpx.Client, shared_engine: Engine) -> None:
    meter = {"slug": "learned", "eventType": "learned", "aggregation": "SUM", "valueProperty": "$.n"}
    assert client.post("/api/v1/meters", json=meter).status_code == 201
    known = []
    for number in (1, 2, 3):
        sent(client, event(number, "learned"))
        with shared_engine.connect() as connection:
            known.append(connection.execute(text("SELECT clock_timestamp()")).scalar_one().isoformat())
    path = "/api/v1/meters/learned/query"
    assert [by(get(client, path, asOf=at)) for at in known] == [{(): 1}, {(): 3}, {(): 6}]
    assert [by(post(client, path, asOf=at)) for at in known] == [{(): 1}, {(): 3}, {(): 6}]
    assert by(get(client, path)) == {(): 6}


def test_a_body_may_be_left_out(client: httpx.Client) -> None:
    answer = client.post(QUERY)
    assert (answer.status_code, answer.json()) == (200, get(client))


def test_the_subjects_of_a_meter(client: httpx.Client) -> None:
    path = "/api/v1/meters/asked/subjects"
    assert get(client, path) == list(APPS)
    assert get(client, path, **{"from": "2026-06-02T22:00:00Z"}) == ["c", "d"]
    assert get(client, path, to="2026-06-01T01:00:00Z") == ["a"]
    assert get(client, path, to="2020-01-01T00:00:00Z") == []


def test_the_values_of_a_dimension_in_a_period_of_any_length(client: httpx.Client) -> None:
    path = "/api/v1/meters/asked/group-by/model/values"
    assert get(client, path, **{"from": "2000-01-01T00:00:00Z"}) == list(MODELS)
    assert get(client, path, **{"from": "2026-06-01T00:00:00Z", "to": "2026-06-01T02:00:00Z"}) == ["m0", "m1"]
    assert get(client, path, to="2026-06-01T01:00:00Z") == ["m0"]  # the day before


def test_without_a_period_the_values_are_those_of_the_last_day(
    client: httpx.Client, shared_engine: Engine
) -> None:
    meter = {"slug": "lately", "eventType": "lately", "aggregation": "COUNT", "groupBy": {"model": "$.model"}}
    assert client.post("/api/v1/meters", json=meter).status_code == 201
    with shared_engine.connect() as connection:
        now = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    ages = {"old": timedelta(hours=25), "new": timedelta(hours=23), "newest": timedelta(0)}
    for i, (model, age) in enumerate(ages.items()):
        sent(client, event(i, "lately", data={"model": model}, time=(now - age).isoformat()))
    sent(client, event(9, "lately", data={}, time=now.isoformat()))
    assert get(client, "/api/v1/meters/lately/group-by/model/values") == ["", "new", "newest"]


@pytest.mark.parametrize(
    ("path", "parameters", "code", "field"),
    [
        ("group-by/colour/values", {}, "unknown_group_by", "$.groupByKey"),
        ("group-by/subject/values", {}, "unknown_group_by", "$.groupByKey"),
        ("group-by/model/values", {"from": JUNE, "to": JUNE}, "empty_period", "$.to"),
        ("group-by/model/values", {"limit": "5"}, "unknown_field", "$.limit"),
        ("subjects", {"from": JUNE, "to": JUNE}, "empty_period", "$.to"),
        ("subjects", {"from": "2026-06-01T00:00:00"}, "timezone_aware", "$.from"),
    ],
)
def test_lists_that_can_not_be_given_are_refused_with_their_place(
    client: httpx.Client, path: str, parameters: dict[str, Any], code: str, field: str
) -> None:
    parameters = {n: v.isoformat() if isinstance(v, datetime) else v for n, v in parameters.items()}
    assert_problem(client.get(f"/api/v1/meters/asked/{path}", params=parameters), 400, code, field)


@pytest.mark.parametrize("path", ["subjects", "group-by/model/values", "query"])
def test_an_unknown_meter_is_not_found(client: httpx.Client, path: str) -> None:
    assert_problem(client.get(f"/api/v1/meters/nothing/{path}"), 404)


def test_the_official_sdk_asks_all_of_it(server: Server, owners: dict[str, str]) -> None:
    with Client(endpoint=server.url, token=ADMIN_KEY) as sdk:
        filters = {"model": models.FilterString(eq="m1")}
        plain: Any = {"model": {"$eq": "m1"}}  # for the URL, it can't encode its own model
        answer = sdk.meters.query_json("asked", advanced_meter_group_by_filters=plain)
        assert [row.value for row in answer.data] == [total(model="m1")]
        answer = sdk.meters.query_json("asked", filter_customer_id=[owners["c"]])
        assert [(row.customer_id, row.value) for row in answer.data] == [(owners["c"], total(subject="c"))]
        question = models.MeterQueryRequest(advanced_meter_group_by_filters=filters, group_by=["model"])
        assert [row.value for row in sdk.meters.query("asked", question).data] == [total(model="m1")]
        assert sdk.meters.list_subjects("asked") == list(APPS)
        assert sdk.meters.list_group_by_values("asked", "type", from_parameter=JUNE) == list(KINDS)
        table = sdk.meters.query_csv("asked", group_by=["type"])
        assert [line.split(",")[-1] for line in table.split()] == [
            "value",
            *(str(total(type=kind)) for kind in KINDS),
        ]
        assert sdk.meters.query_csv_post("asked").splitlines()[1].endswith(f",{sum(range(48))}")


strange = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["\0", "\ud800", "$eq"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["model", "$eq", "$or", "$in"]) | st.text(max_size=3), inner, max_size=3
        )
    ),
    max_leaves=6,
)
texts = st.sampled_from(["m0", "subject", "customer_id", "model", "type", "", "%", "é"]) | st.text(max_size=5)
instants = st.datetimes().map(lambda at: at.isoformat() + "Z") | texts
filters_of_text = st.dictionaries(
    st.sampled_from(["$eq", "$ne", "$gt", "$like", "$ilike"]), texts | st.none(), max_size=3
)
questions = st.fixed_dictionaries(
    {},
    optional={
        "from": instants | strange,
        "to": instants | strange,
        "asOf": instants | strange,
        "windowSize": st.sampled_from(["MINUTE", "HOUR", "DAY", "MONTH"]) | strange,
        "windowTimeZone": st.sampled_from(["Europe/Berlin", "../x", "posix"]) | texts | strange,
        "subject": st.lists(texts, max_size=3) | strange,
        "groupBy": st.lists(texts, max_size=3) | strange,
        "filterCustomerId": st.lists(texts, max_size=2) | strange,
        "filterGroupBy": st.dictionaries(texts, st.lists(texts, max_size=2), max_size=2) | strange,
        ADVANCED: st.dictionaries(texts, filters_of_text, max_size=2) | strange,
        "clientId": texts | strange,
    },
)


@given(questions, st.sampled_from(["application/json", "text/csv"]))
@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_question_is_answered_or_refused_with_a_place(
    client: httpx.Client, question: dict[str, Any], accept: str
) -> None:
    headers = {"Accept": accept}
    body = json.dumps(question).encode()
    answers = [client.post(QUERY, content=body, headers={**headers, "Content-Type": "application/json"})]
    if b"\\ud8" not in body:  # the URL of a client holds no half characters
        in_url = {n: v if isinstance(v, str | list) else json.dumps(v) for n, v in question.items()}
        parameters = {n: [str(one) for one in v] if isinstance(v, list) else v for n, v in in_url.items()}
        answers.append(client.get(QUERY, params=parameters, headers=headers))
    for answer in answers:
        if answer.status_code == 200:
            assert answer.headers["content-type"].startswith(accept)
        else:
            assert_problem(answer, 400)


def test_a_meter_that_counts_from_an_instant_forgets_what_came_before(client: httpx.Client) -> None:
    meter = {
        "slug": "asked_late",
        "eventType": "asked",
        "aggregation": "COUNT",
        "eventFrom": "2026-06-02T00:00:00Z",
    }
    assert client.post("/api/v1/meters", json=meter).status_code == 201
    assert by(get(client, "/api/v1/meters/asked_late/query")) == {(): 24}
