"""POST /api/v1/ingest/kong/{source}: what Kong's http-log plugin is answered, and what is kept.

What becomes of an entry's fields is in test_kong.py; here it is what travels.
"""

import json
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import httpx
import pytest

from tests.server import Server, assert_problem

KONG = "/api/v1/ingest/kong/edge"
MAY = datetime(2026, 5, 1, tzinfo=UTC)
_numbers = count()


def entry(**changes: object) -> dict[str, Any]:
    """A served LLM call of 30 prompt and 12 completion tokens, unlike any other."""
    number = next(_numbers)
    usual = {
        "request": {"id": f"{number:032x}", "method": "POST", "uri": "/chat?key=secret-in-query", "size": 10},
        "response": {"status": 200, "size": 100, "headers": {"via": "1.1 kong/3.10.0"}},
        "consumer": {"id": f"consumer-{number}", "username": "app"},
        "workspace": "test",
        "started_at": int(MAY.timestamp() * 1000),
        "source": "upstream",
        "ai": {
            "proxy": {
                "meta": {"provider_name": "openai", "request_model": "gpt-4o", "response_model": "gpt-4o"},
                "usage": {"prompt_tokens": 30, "completion_tokens": 12, "total_tokens": 42},
            }
        },
    }
    return {**usual, **changes}


def told(client: httpx.Client, body: object, path: str = KONG) -> tuple[int, int, int]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert set(found) == {"stored", "duplicate", "quarantined"}
    return found["stored"], found["duplicate"], found["quarantined"]


def tokens(client: httpx.Client, one: dict[str, Any]) -> int:
    """Counted for the entry's consumer, who is in no other entry."""
    question = {"subject": f"consumer:{one['consumer']['id']}"}
    rows = client.get("/api/v1/meters/llm_tokens_total/query", params=question).json()["data"]
    return sum(row["value"] for row in rows)


def quarantined(client: httpx.Client, source: str) -> list[dict[str, Any]]:
    answer = client.get("/api/v1/ingest/quarantine", params={"gateway": source})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["totalCount"] == len(found["items"])
    return list(found["items"])


def test_one_entry_or_an_array_of_them(client: httpx.Client) -> None:
    one, two, three = entry(), entry(), entry()
    assert told(client, one) == (1, 0, 0)
    assert told(client, [two, three]) == (2, 0, 0)
    assert told(client, [one, three, entry()]) == (1, 2, 0)
    assert [tokens(client, each) for each in (one, two, three)] == [42, 42, 42]


def test_the_content_type_is_not_what_decides(client: httpx.Client) -> None:
    """Older plugins send `application/json`, newer ones add a charset, proxies may drop it."""
    for headers in ({}, {"Content-Type": "application/json; charset=utf-8"}, {"Content-Type": "text/plain"}):
        answer = client.post(KONG, content=json.dumps(entry()), headers=headers)
        assert answer.json() == {"stored": 1, "duplicate": 0, "quarantined": 0}


def test_an_empty_array_is_nothing_to_do(client: httpx.Client) -> None:
    assert told(client, []) == (0, 0, 0)


def test_the_source_in_the_path_becomes_the_dimension_gateway(client: httpx.Client) -> None:
    one = entry()
    told(client, one, "/api/v1/ingest/kong/eu-west.1_blue")
    question = {"subject": f"consumer:{one['consumer']['id']}", "groupBy": ["gateway", "type"]}
    rows = client.get("/api/v1/meters/llm_tokens_total/query", params=question).json()["data"]
    assert [(row["groupBy"]["gateway"], row["groupBy"]["type"], row["value"]) for row in rows] == [
        ("eu-west.1_blue", "request", 30),
        ("eu-west.1_blue", "response", 12),
    ]


def test_the_same_entry_through_two_gateways_is_counted_once(client: httpx.Client) -> None:
    one = entry()
    assert told(client, one, "/api/v1/ingest/kong/blue") == (1, 0, 0)
    assert told(client, one, "/api/v1/ingest/kong/green") == (0, 1, 0)
    assert tokens(client, one) == 42


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"request": {"method": "GET"}}, "request.id is missing, empty or not text"),
        ({"response": {}}, "response.status is missing or not an integer from 0 to 999"),
        ({"started_at": None}, "started_at is missing or not a number"),
        ({"started_at": 1_770_000_000}, "started_at is not a time in milliseconds"),
        ({"consumer": {"id": "c" * 600}}, "consumer.id makes a name of more than 512 characters"),
        ({"workspace": "a\0b"}, "workspace contains U+0000"),
        ({"ai": {"proxy": {"usage": {"prompt_tokens": -1}}}}, "ai.*.usage.prompt_tokens is not an integer"),
    ],
)
def test_a_bad_entry_is_kept_with_its_reason_and_its_neighbours_are_counted(
    client: httpx.Client, change: dict[str, object], reason: str
) -> None:
    source = f"bad-{next(_numbers)}"
    path = f"/api/v1/ingest/kong/{source}"
    before, bad, after = entry(), entry(**change), entry()
    for again in range(2):
        assert told(client, [before, bad, after], path) == ((0, 2, 1) if again else (2, 0, 1))
    (kept,) = quarantined(client, source)
    assert kept["reason"].startswith(reason)
    assert kept["gateway"] == source
    assert (tokens(client, before), tokens(client, after)) == (42, 42)
    assert "secret-in-query" not in json.dumps(kept)


@pytest.mark.parametrize("nonsense", [None, 7, "text", [], [[]], {}, True])
def test_an_entry_that_is_no_entry_is_quarantined(client: httpx.Client, nonsense: object) -> None:
    good = entry()
    assert told(client, [nonsense, good]) == (1, 0, 1)
    assert tokens(client, good) == 42


def test_an_entry_dated_ahead_is_quarantined_with_the_events_that_it_would_be(client: httpx.Client) -> None:
    ahead = datetime.now(UTC) + timedelta(hours=1)  # noqa: TID251  the server's clock is the machine's
    one = entry(started_at=int(ahead.timestamp() * 1000))
    assert told(client, one, "/api/v1/ingest/kong/ahead") == (0, 0, 1)
    (kept,) = quarantined(client, "ahead")
    assert kept["requestId"] == one["request"]["id"]
    assert [event["type"] for event in kept["events"]] == ["kong.api_request"] + 2 * ["kong.llm_request"]
    assert json.loads(kept["events"][1]["data"])["tokens"] == 30
    assert tokens(client, one) == 0


def test_bytes_that_are_not_utf_8_and_numbers_that_are_none_spoil_no_neighbour(client: httpx.Client) -> None:
    good, latin, absurd, nan = entry(), entry(), entry(), entry()
    latin["consumer"]["username"] = "LATIN"
    absurd["ai"]["proxy"]["usage"]["prompt_tokens"] = 8888
    nan["ai"]["proxy"]["usage"]["prompt_tokens"] = 7777
    body = json.dumps([latin, good, absurd, nan]).encode()
    body = body.replace(b"LATIN", b"caf\xe9").replace(b"8888", b"1e99999").replace(b"7777", b"NaN")
    assert b"caf\xe9" in body
    stored, _, bad = told(client, body)
    assert (stored, bad) == (1, 3)
    assert tokens(client, good) == 42


def test_a_number_keeps_its_digits_into_the_event(client: httpx.Client) -> None:
    one = entry()
    one["ai"]["proxy"]["usage"] = {"prompt_tokens": 10**15, "completion_tokens": 1}
    assert told(client, one) == (1, 0, 0)
    assert tokens(client, one) == 10**15 + 1


def test_a_server_told_so_takes_another_name_of_the_consumer_as_subject(shared_database_url: str) -> None:
    environment = {
        "TOLLGATE_DATABASE_URL": shared_database_url,
        "TOLLGATE_KONG_SUBJECT": "custom_id,username",
    }
    with Server(environment=environment) as server, server.client() as client:
        told(client, [entry(consumer={"id": "1", "username": "by-name", "custom_id": "by-custom-id"})])
        told(client, [entry(consumer={"id": "2", "username": "by-name"})])
        told(client, [entry(consumer={"id": "3"})])
        question = {"groupBy": "subject", "subject": ["by-name", "by-custom-id", "consumer:3"]}
        rows = client.get("/api/v1/meters/api_requests_total/query", params=question).json()["data"]
        assert [(row["subject"], row["value"]) for row in rows] == [("by-custom-id", 1), ("by-name", 1)]


def test_the_quarantine_list_is_bounded_and_newest_first(client: httpx.Client) -> None:
    told(client, [entry(started_at=None) for _ in range(12)], "/api/v1/ingest/kong/many")
    answer = client.get("/api/v1/ingest/quarantine", params={"gateway": "many", "limit": 5}).json()
    assert (answer["totalCount"], len(answer["items"])) == (12, 5)
    at = [bad["receivedAt"] for bad in answer["items"]]
    assert at == sorted(at, reverse=True)
    assert_problem(
        client.get("/api/v1/ingest/quarantine", params={"limit": 0}), 400, "greater_than_equal", "$.limit"
    )
