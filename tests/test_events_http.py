"""Lists of events over HTTP: what was sent comes back with its owner and with all that is wrong with it."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, text
from sqlalchemy import event as on
from sqlalchemy.orm import Session

from api import clock
from api.http.events import list_v2
from metering.ids import event_key, new_id
from tests.builders import a_customer, a_meter, spent, store
from tests.server import assert_problem

NOW = clock.now().replace(microsecond=0)
V1, V2 = "/api/v1/events", "/api/v2/events"


def sent(number: int, kind: str = "listed", subject: str = "owned", **more: object) -> dict[str, Any]:
    """Numbered events lie an hour apart: the higher the number, the older."""
    time = (NOW - timedelta(hours=number)).isoformat()
    return {"id": f"e-{number}", "source": "here", "type": kind, "subject": subject, "time": time, **more}


EVENTS: list[dict[str, Any]] = [
    sent(0, data={"tokens": 1}),
    sent(1, data={"tokens": "1.5"}, subject="unowned"),
    sent(2, data=None),
    sent(3, data={}),
    sent(4, data={"tokens": None}),
    sent(5, data={"tokens": "NaN"}),
    sent(6, data={"tokens": "-Infinity"}),
    sent(7, data={"tokens": "many", "words": None}),
    sent(8, kind="unknown", subject="unowned", data={"tokens": 1}),
    sent(9, data={"tokens": [1]}),
    sent(10, data={"tokens": 2}, subject="by-key"),
]
INVALID = "invalid event: "
ERRORS: list[str | None] = [
    None,
    "no customer found for event subject: unowned",
    f"{INVALID}null and missing value property",
    f'{INVALID}missing value property: "$.tokens"',
    f"{INVALID}value cannot be null",
    f"{INVALID}value cannot be NaN",
    f"{INVALID}value cannot be infinity",
    f"{INVALID}value cannot be parsed as float64: many",
    "no meter found for event type: unknown\nno customer found for event subject: unowned",
    f"{INVALID}unsupported value property type: array",
    None,
]


@pytest.fixture(scope="module")
def owner(client: httpx.Client) -> str:
    """Eleven events, ten hours, two meters of one type, and a customer who owns most of them."""
    for slug, how in (
        ("listed_sum", {"aggregation": "SUM", "valueProperty": "$.tokens"}),
        ("listed_max", {"aggregation": "MAX", "valueProperty": "$.tokens"}),
        ("listed_count", {"aggregation": "COUNT"}),
    ):
        assert (
            client.post("/api/v1/meters", json={"slug": slug, "eventType": "listed", **how}).status_code
            == 201
        )
    customer = {"name": "Kong Air", "key": "by-key", "usageAttribution": {"subjectKeys": ["owned"]}}
    made = client.post("/api/v1/customers", json=customer)
    assert made.status_code == 201
    assert client.post(V1, json=EVENTS).status_code == 204
    return str(made.json()["id"])


def numbers(answer: httpx.Response) -> list[int]:
    """Of the events on a page of either version."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return [int(item["event"]["id"][2:]) for item in (body if isinstance(body, list) else body["items"])]


def filtered(client: httpx.Client, **fields: object) -> list[int]:
    """Of the last day, unless the filter has another time."""
    recent = {"time": {"$gt": (NOW - timedelta(days=1)).isoformat()}}
    return numbers(client.get(V2, params={"filter": json.dumps(recent | fields)}))


def test_each_event_comes_with_its_owner_and_with_what_is_wrong(client: httpx.Client, owner: str) -> None:
    recent = json.dumps({"time": {"$gt": (NOW - timedelta(days=1)).isoformat()}})
    first, second = client.get(V1), client.get(V2, params={"filter": recent})
    assert first.json() == second.json()["items"]
    assert "nextCursor" not in second.json()
    items = first.json()
    assert [item["event"]["id"] for item in items] == [event["id"] for event in EVENTS]
    assert [item.get("validationError") for item in items] == ERRORS
    owners = [item.get("customerId") for item in items]
    assert owners == [None if event["subject"] == "unowned" else owner for event in EVENTS]
    for item in items:
        assert set(item) - {"customerId", "validationError"} == {"event", "ingestedAt", "storedAt"}
        assert NOW.isoformat()[:10] <= item["ingestedAt"] <= item["storedAt"]


def test_an_event_comes_back_as_it_was_sent_digit_for_digit(client: httpx.Client, owner: str) -> None:
    assert owner
    raw = (
        '{"id":"exact","source":"here","specversion":"1.0","type":"exact","subject":"owned",'
        '"time":"2001-02-03T04:05:06.789Z","dataschema":"https://example.com/s",'
        '"data":{"tokens":0.1000000000000000000000000000000001,"none":null,"big":12345678901234567890123}}'
    )
    posted = client.post(V1, content=raw, headers={"Content-Type": "application/json"})
    assert posted.status_code == 204
    answer = client.get(V1, params={"id": "xac", "from": "2001-01-01T00:00:00Z"})
    (item,) = json.loads(answer.text, parse_float=str)
    found = item["event"]
    expected = json.loads(raw, parse_float=str)
    assert found.pop("time") == "2001-02-03T04:05:06.789000Z"
    assert found == {name: value for name, value in expected.items() if name != "time"}


V1_QUESTIONS: list[tuple[dict[str, object], list[int]]] = [
    ({"limit": 2}, [0, 1]),
    ({"subject": "unowned"}, [1, 8]),
    ({"subject": "unown"}, []),
    ({"id": "-1"}, [1, 10]),
    ({"id": "%"}, []),
    ({"from": NOW - timedelta(hours=2), "to": NOW}, [1, 2]),
    ({"to": NOW - timedelta(hours=8)}, [9, 10]),
    ({"to": NOW - timedelta(days=40)}, []),
    ({"from": NOW - timedelta(days=400), "to": NOW - timedelta(hours=9), "clientId": "me"}, [10]),
    ({"ingestedAtTo": NOW - timedelta(days=1)}, []),
    ({"ingestedAtFrom": NOW - timedelta(days=1), "subject": "by-key"}, [10]),
]


@pytest.mark.parametrize(("asked", "expected"), V1_QUESTIONS)
def test_the_parameters_of_v1(
    client: httpx.Client, owner: str, asked: dict[str, object], expected: list[int]
) -> None:
    assert owner
    params = {k: v.isoformat() if isinstance(v, datetime) else str(v) for k, v in asked.items()}
    assert numbers(client.get(V1, params=params)) == expected


def test_a_customers_events_are_those_of_its_subjects_and_key(client: httpx.Client, owner: str) -> None:
    mine = [0, 2, 3, 4, 5, 6, 7, 9, 10]
    assert numbers(client.get(V1, params={"customerId": owner})) == mine
    assert numbers(client.get(V1, params={"customerId": owner, "subject": "by-key"})) == [10]
    assert numbers(client.get(V1, params={"customerId": owner, "subject": "unowned"})) == []
    assert filtered(client, customerId={"$in": [owner]}) == mine
    assert filtered(client, customerId={"$in": [owner]}, subject={"$ne": "owned"}) == [10]
    assert filtered(client, customerId={"$in": []}) == []
    assert filtered(client, customerId={"$in": None}) == filtered(client, customerId=None) == list(range(11))


V2_FILTERS: list[tuple[dict[str, object], list[int]]] = [
    ({}, list(range(11))),
    ({"id": {"$in": ["e-3", "e-1", "nope"]}}, [1, 3]),
    ({"id": {"$eq": "e-3"}, "source": {"$eq": "here"}}, [3]),
    ({"source": {"$ne": "here"}}, []),
    ({"subject": {"$like": "%own%"}, "type": {"$eq": "unknown"}}, [8]),
    ({"subject": {"$eq": "unowned"}}, [1, 8]),
    ({"type": {"$or": [{"$eq": "unknown"}, {"$ilike": "UNK%"}]}}, [8]),
    ({"time": {"$gt": (NOW - timedelta(hours=2)).isoformat()}}, [0, 1]),
    ({"time": {"$lte": (NOW - timedelta(hours=8)).isoformat()}, "subject": {"$eq": "unowned"}}, [8]),
    ({"ingestedAt": {"$and": [{"$lt": "2001-01-01T00:00:00Z"}]}}, []),
]


@pytest.mark.parametrize(("asked", "expected"), V2_FILTERS)
def test_the_filters_of_v2(
    client: httpx.Client, owner: str, asked: dict[str, object], expected: list[int]
) -> None:
    assert owner
    assert filtered(client, **asked) == expected


def test_the_pages_of_v2_hold_each_event_once(client: httpx.Client, owner: str) -> None:
    assert owner
    recent = json.dumps({"time": {"$gt": (NOW - timedelta(days=1)).isoformat()}})
    for limit in (1, 3, 10, 11, 12):
        seen: list[int] = []
        cursor: dict[str, str] = {}
        while True:
            page = client.get(V2, params={"limit": limit, "filter": recent, **cursor})
            seen += numbers(page)
            assert len(page.json()["items"]) <= limit
            if "nextCursor" not in page.json():
                break
            cursor = {"cursor": page.json()["nextCursor"]}
        assert seen == list(range(11))


MADE_UP = base64.urlsafe_b64encode(b"2026-01-01T00:00:00,1").decode()
REFUSED: list[tuple[str, dict[str, str], str, str]] = [
    (V1, {"limit": "0"}, "greater_than_equal", "$.limit"),
    (V1, {"limit": "101"}, "less_than_equal", "$.limit"),
    (V1, {"from": "yesterday"}, "datetime_from_date_parsing", "$.from"),
    (V1, {"from": "2026-03-02T00:00:00Z", "to": "2026-03-02T00:00:00Z"}, "empty_period", "$.to"),
    (
        V1,
        {"ingestedAtFrom": "2026-03-02T00:00:00Z", "ingestedAtTo": "2026-03-01T00:00:00Z"},
        "empty_period",
        "$.ingestedAtTo",
    ),
    (V1, {"customerId": "nobody"}, "customer_not_found", "$.customerId[0]"),
    (V1, {"hasError": "true"}, "unknown_field", "$.hasError"),
    (V1, {"clientId": "x" * 37}, "string_too_long", "$.clientId"),
    (V2, {"limit": "101"}, "less_than_equal", "$.limit"),
    (V2, {"subject": "owned"}, "unknown_field", "$.subject"),
    (V2, {"cursor": ""}, "invalid_cursor", "$.cursor"),
    (V2, {"cursor": "§"}, "invalid_cursor", "$.cursor"),
    (V2, {"cursor": MADE_UP}, "invalid_cursor", "$.cursor"),
    (V2, {"filter": "{"}, "invalid_filter", "$.filter"),
    (V2, {"filter": "[" * 100_00}, "invalid_filter", "$.filter"),
    (V2, {"filter": "[]"}, "invalid_filter", "$.filter"),
    (V2, {"filter": '{"data":{}}'}, "invalid_filter", "$.filter.data"),
    (V2, {"filter": '{"id":"e-1"}'}, "invalid_filter", "$.filter.id"),
    (V2, {"filter": '{"id":{"$is":"e-1"}}'}, "invalid_filter", "$.filter.id.$is"),
    (V2, {"filter": '{"subject":{"$eq":"\\u0000"}}'}, "invalid_filter", "$.filter.subject.$eq"),
    (V2, {"filter": '{"time":{"$gte":"today"}}'}, "invalid_filter", "$.filter.time.$gte"),
    (V2, {"filter": '{"customerId":{"$eq":"x"}}'}, "invalid_filter", "$.filter.customerId"),
    (V2, {"filter": '{"customerId":{"$in":["\\u0000"]}}'}, "invalid_filter", "$.filter.customerId.$in"),
    (V2, {"filter": '{"customerId":{"$in":["x"]}}'}, "customer_not_found", "$.filter.customerId.$in[0]"),
]


@pytest.mark.parametrize(("path", "params", "code", "field"), REFUSED)
def test_what_is_wrong_is_refused_with_its_place(
    client: httpx.Client, path: str, params: dict[str, str], code: str, field: str
) -> None:
    assert_problem(client.get(path, params=params), 400, code, field)


def test_a_list_needs_a_key_that_may_read(client: httpx.Client) -> None:
    for path in (V1, V2):
        assert_problem(client.get(path, headers={"Authorization": ""}), 401)
        assert_problem(client.put(path), 405)
        assert_problem(client.delete(path), 405)
    assert_problem(client.post(V2, json=EVENTS), 405)


def test_both_methods_of_the_path_are_documented(client: httpx.Client) -> None:
    paths = client.get("/api/openapi.json").json()["paths"]
    assert set(paths[V1]) == {"get", "post"}
    assert set(paths[V2]) == {"get"}


def test_a_void_event_says_that_it_is(client: httpx.Client, owner: str, shared_engine: Engine) -> None:
    assert owner
    gone = sent(777, kind="voided", subject="owned")
    assert client.post(V1, json=gone).status_code == 204
    row = {"key": event_key("here", "e-777"), "correction": new_id(NOW), "now": NOW}
    with shared_engine.begin() as connection:
        connection.execute(text("INSERT INTO voided_events VALUES (:key, :correction, :now, NULL)"), row)
    (item,) = client.get(V1, params={"id": "e-777", "from": "2001-01-01T00:00:00Z"}).json()
    assert item["validationError"].splitlines() == [
        "no meter found for event type: voided",
        f"the event is void since {NOW.isoformat()}",
    ]


@contextmanager
def counting(engine: Engine) -> Iterator[list[str]]:
    """The statements that are sent while the block runs."""
    statements: list[str] = []

    def count(*arguments: Any) -> None:
        statements.append(arguments[2])

    on.listen(engine, "before_cursor_execute", count)
    yield statements
    on.remove(engine, "before_cursor_execute", count)


def test_a_page_takes_as_many_queries_for_a_hundred_events_as_for_one(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        a_meter(session, "tokens")
        for i in range(100):
            a_customer(session, f"s{i}")
            store(session, *(spent(f"s{i}", n, "2026-03-01T00:00:00") for n in range(2)))
    sent_for = {}
    for limit in (1, 100):
        with Session(engine) as session, counting(engine) as statements:
            answer = list_v2(session=session, now=NOW, limit=limit)
        assert len(json.loads(bytes(answer.body))["items"]) == limit
        sent_for[limit] = [one for one in statements if "SET" not in one]
    for statements in sent_for.values():
        assert [sum(table in one for one in statements) for table in ("subject_owners", "FROM meters")] == [
            1,
            1,
        ]
    assert len(sent_for[1]) == len(sent_for[100]) < 15
