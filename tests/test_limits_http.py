"""What one request may ask for, and what many at once get: bounds, each with an answer that says so."""

import asyncio
import uuid
from collections import Counter
from typing import Any

import httpx
import pytest

from tests.server import ADMIN_KEY, Server, assert_problem

AT_ONCE = 200


def name(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def a_customer(client: httpx.Client, **more: Any) -> dict[str, Any]:
    answer = client.post("/api/v1/customers", json={"name": "A", "key": name("c"), **more})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def a_plan(client: httpx.Client) -> str:
    key = name("plan")
    fee = {"type": "flat", "amount": "5"}
    card = {"type": "flat_fee", "key": "fee", "name": "Fee", "billingCadence": "P1M", "price": fee}
    phase = {"key": "main", "name": "Main", "duration": None, "rateCards": [card]}
    plan = {"key": key, "name": "P", "currency": "USD", "billingCadence": "P1M", "phases": [phase]}
    assert client.post("/api/v1/plans", json=plan).status_code == 201
    assert client.post(f"/api/v1/plans/{key}/publish").status_code == 200
    return key


@pytest.mark.parametrize("path", ["/api/v1/meters", "/api/v1/meters/llm_tokens_total/query"])
def test_more_requests_at_once_than_connections_are_all_answered(server: Server, path: str) -> None:
    """Once they waited for each other: for threads those that had connections, for connections the others."""

    async def all_at_once() -> Counter[int]:
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        limits = httpx.Limits(max_connections=AT_ONCE)
        async with httpx.AsyncClient(
            base_url=server.url, headers=headers, timeout=60, limits=limits
        ) as client:
            answers = await asyncio.gather(*(client.get(path) for _ in range(AT_ONCE)))
        return Counter(answer.status_code for answer in answers)

    assert asyncio.run(all_at_once()) == {200: AT_ONCE}


def test_a_subject_is_no_name_for_a_customer_that_is_to_be_changed_or_signed_up(client: httpx.Client) -> None:
    subject = name("globex")
    acme = a_customer(client, usageAttribution={"subjectKeys": [subject]})
    plan = {"key": a_plan(client)}
    signed = client.post("/api/v1/subscriptions", json={"plan": plan, "customerKey": subject})
    assert_problem(signed, 404)
    assert_problem(client.put(f"/api/v1/customers/{subject}", json={"name": "Mine"}), 404)
    assert_problem(client.delete(f"/api/v1/customers/{subject}"), 404)
    assert client.get(f"/api/v1/customers/{subject}").json() == acme


def test_an_id_and_a_key_must_name_one_customer(client: httpx.Client) -> None:
    one, other = a_customer(client), a_customer(client)
    body = {"plan": {"key": a_plan(client)}, "customerId": one["id"], "customerKey": other["key"]}
    assert_problem(client.post("/api/v1/subscriptions", json=body), 400, "customer_mismatch", "$.customerKey")


def test_a_contract_begins_at_most_ten_years_ago_and_is_previewed_at_most_two_ahead(
    client: httpx.Client,
) -> None:
    customer = a_customer(client)
    body = {"plan": {"key": a_plan(client)}, "customerId": customer["id"]}
    too_early = {**body, "timing": "2001-01-01T00:00:00Z"}
    assert_problem(client.post("/api/v1/subscriptions", json=too_early), 400, "too_long_ago", "$.timing")
    assert client.post("/api/v1/subscriptions", json=body).status_code == 201
    preview = client.get(f"/api/v1/customers/{customer['id']}/invoice-preview?at=2999-01-01T00:00:00Z")
    assert_problem(preview, 400, "too_far_ahead", "$.at")


def test_a_log_batch_beyond_all_measure_is_refused_and_keeps_nothing(client: httpx.Client) -> None:
    path = "/api/v1/ingest/kong/too-much"
    assert_problem(client.post(path, json=list(range(10_001))), 413, "too_many_entries")
    assert client.get("/api/v1/ingest/quarantine", params={"gateway": "too-much"}).json()["totalCount"] == 0


def test_what_a_later_member_of_the_same_name_hides_is_checked_too(client: httpx.Client) -> None:
    event = '{"id":"1","source":"s","type":"t","subject":"x","data":{"a":"\\u0000","a":1}}'
    headers = {"Content-Type": "application/cloudevents+json"}
    answer = client.post("/api/v1/events", content=event, headers=headers)
    assert_problem(answer, 400, "invalid_event", "$.data.a")


def test_what_was_read_can_be_changed_and_sent_back(client: httpx.Client) -> None:
    customer = a_customer(client)
    path = f"/api/v1/customers/{customer['id']}"
    answer = client.put(path, json={**customer, "name": "Renamed"})
    assert answer.status_code == 200, answer.text
    assert client.get(path).json()["name"] == "Renamed"


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/billing/invoices?issuedYesterday=true",
        "/api/v1/customers?planKey=x",
        "/api/v1/plans?typo=1",
    ],
)
def test_a_filter_that_is_not_understood_is_refused(client: httpx.Client, path: str) -> None:
    parameter = path.partition("?")[2].partition("=")[0]
    assert_problem(client.get(path), 400, "unknown_field", f"$.{parameter}")


def test_instants_at_the_ends_of_the_calendar_break_nothing(client: httpx.Client) -> None:
    question = {"from": "1970-01-01T00:00:00+01:00", "to": "2030-01-01T00:00:00Z"}
    assert client.get("/api/v1/meters/llm_tokens_total/query", params=question).status_code == 200
    meter = {"slug": name("m").replace("-", "_"), "aggregation": "COUNT", "eventType": "t"}
    answer = client.post("/api/v1/meters", json={**meter, "eventFrom": "1970-01-01T00:00:00+01:00"})
    assert answer.status_code == 201, answer.text
    assert client.get(f"/api/v1/meters/{meter['slug']}").status_code == 200
