"""The story that must always work, over HTTP: from a gateway's log to the customer's invoice preview.

Every expected number is added up here, from the log entries that were sent.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import httpx
import pytest

from api.demo_traffic import Consumer, log_entries, make_consumers
from tests.server import seeded

START = datetime(2025, 3, 1, tzinfo=UTC)
LATER = START + timedelta(days=20)
UNIT_PRICE = Decimal("0.00002")
CENT = Decimal("0.01")

Entry = dict[str, Any]


@dataclass(frozen=True)
class Story:
    """A customer whose three applications went through the gateway, and what the gateway logged."""

    consumers: tuple[Consumer, ...]
    entries: list[Entry]


def made(client: httpx.Client, path: str, body: object) -> Any:
    answer = client.post(f"/api/v1/{path}", json=body)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


@pytest.fixture(scope="module")
def story(client: httpx.Client) -> Story:
    chance = seeded(20250301)
    consumers = make_consumers(chance)
    filters = {"provider": "openai", "type": "request"}
    feature = {"key": "ai-token", "name": "Prompt tokens", "meterSlug": "llm_tokens_total"}
    made(client, "features", {**feature, "meterGroupByFilters": filters})
    card = {
        "type": "usage_based",
        "key": "ai-token",
        "featureKey": "ai-token",
        "name": "OpenAI prompt tokens",
        "billingCadence": "P1M",
        "price": {"type": "unit", "amount": str(UNIT_PRICE)},
        "entitlementTemplate": {"type": "boolean"},
    }
    phase = {"key": "default", "name": "Default", "duration": None, "rateCards": [card]}
    plan = {"key": "ai", "name": "AI", "currency": "USD", "billingCadence": "P1M", "phases": [phase]}
    made(client, f"plans/{made(client, 'plans', plan)['id']}/publish", {})
    owned = {"subjectKeys": [f"consumer:{consumer.id}" for consumer in consumers]}
    made(client, "customers", {"name": "Kong Air", "key": "kong-air", "usageAttribution": owned})
    signed = {"plan": {"key": "ai"}, "customerKey": "kong-air", "timing": START.isoformat()}
    made(client, "subscriptions", signed)
    entries = list(log_entries(consumers, start=START, length=LATER - START, chance=chance))
    return Story(consumers, entries)


def post(client: httpx.Client, batches: Sequence[Sequence[Entry]]) -> Counter[str]:
    """What the gateway is told about all its batches together."""
    counts: Counter[str] = Counter()
    for batch in batches:
        counts.update(made(client, "ingest/kong/edge", batch))
    return +counts


def cut(entries: Sequence[Entry], size: int) -> list[Sequence[Entry]]:
    return [entries[i : i + size] for i in range(0, len(entries), size)]


def preview(client: httpx.Client) -> Any:
    answer = client.get("/api/v1/customers/kong-air/invoice-preview", params={"at": LATER.isoformat()})
    assert answer.status_code == 200, answer.text
    (line,) = answer.json()["lines"]
    return line["quantity"], line["totals"]["total"], answer.json()["totals"]["total"]


def tokens_by_hand(entries: Sequence[Entry], name: str) -> Counter[tuple[str, str, str]]:
    """Tokens by provider, model and type, or by consumer, provider and model."""
    sums: Counter[tuple[str, str, str]] = Counter()
    for entry in entries:
        for call in entry.get("ai", {}).values():
            provider, model = call["meta"]["provider_name"], call["meta"]["response_model"]
            for kind, count in (("request", "prompt_tokens"), ("response", "completion_tokens")):
                key = (entry["consumer"]["username"], provider, model)
                sums[key if name == "consumer" else (provider, model, kind)] += call["usage"][count]
    return sums


def test_the_preview_equals_the_log_added_up_by_hand_to_the_cent(client: httpx.Client, story: Story) -> None:
    assert post(client, cut(story.entries, 30)) == {"stored": len(story.entries)}
    prompts = [
        entry["ai"]["proxy"]["usage"]["prompt_tokens"]
        for entry in story.entries
        if "ai" in entry and entry["ai"]["proxy"]["meta"]["provider_name"] == "openai"
    ]
    amount = (sum(prompts) * UNIT_PRICE).quantize(CENT, ROUND_HALF_UP)
    assert preview(client) == (str(sum(prompts)), str(amount), str(amount))
    assert amount > 5  # the traffic is worth comparing


def test_usage_by_any_dimensions_equals_the_log_added_up_by_hand(client: httpx.Client, story: Story) -> None:
    post(client, cut(story.entries, 90))
    until_later = {"to": LATER.isoformat()}
    for name, dimensions in (
        ("type", ["provider", "model", "type"]),
        ("consumer", ["consumer_username", "provider", "model"]),
    ):
        answer = made(client, "meters/llm_tokens_total/query", {"groupBy": dimensions, **until_later})
        found = {tuple(row["groupBy"][d] for d in dimensions): row["value"] for row in answer["data"]}
        assert found == tokens_by_hand(story.entries, name)
        assert len(found) == (6 if name == "type" else 9)


def test_the_same_batches_sent_five_times_and_cut_anew_change_nothing(
    client: httpx.Client, story: Story
) -> None:
    post(client, cut(story.entries, 30))
    before = preview(client)
    again = {"duplicate": len(story.entries)}
    for _ in range(5):
        assert post(client, cut(story.entries, 30)) == again
    shuffled = list(story.entries)
    seeded(7).shuffle(shuffled)
    for size in (1000, 77):
        assert post(client, cut(shuffled, size)) == again
    assert post(client, cut(story.entries[:40], 1)) == {"duplicate": 40}
    assert preview(client) == before


def test_of_gateways_that_send_the_same_log_at_once_each_entry_is_counted_once(
    client: httpx.Client, story: Story
) -> None:
    """As after a failover: four senders, four ways to cut, one log that nobody has seen."""
    chance = seeded(4)
    entries = list(log_entries(story.consumers, start=LATER, length=timedelta(days=5), chance=chance))
    with ThreadPoolExecutor(4) as senders:
        sizes = (20, 33, 50, 71)
        told = sum(senders.map(lambda size: post(client, cut(entries, size)), sizes), Counter())
    assert told == {"stored": len(entries), "duplicate": 3 * len(entries)}
    requests = made(client, "meters/api_requests_total/query", {"from": LATER.isoformat()})
    assert [row["value"] for row in requests["data"]] == [len(entries)]


def test_requests_that_no_consumer_made_are_kept_and_billed_to_nobody(
    client: httpx.Client, story: Story
) -> None:
    post(client, cut(story.entries, 90))
    question = {"groupBy": ["billable"], "to": LATER.isoformat()}
    answer = made(client, "meters/api_requests_total/query", question)
    found = {row["groupBy"]["billable"]: row["value"] for row in answer["data"]}
    served = sum(entry["response"]["status"] == 200 for entry in story.entries)
    assert found == {"true": served, "false": len(story.entries) - served}
    assert client.get("/api/v1/ingest/quarantine").json()["totalCount"] == 0


def test_every_line_is_rounded_once_and_the_total_is_the_sum_of_lines(
    client: httpx.Client, story: Story
) -> None:
    """The list of invoices prices all that has come in so far, month by month."""
    post(client, cut(story.entries, 90))
    parameters = {"statuses": "gathering", "expand": "lines"}
    (invoice,) = client.get("/api/v1/billing/invoices", params=parameters).json()["items"]
    amounts = [Decimal(line["totals"]["total"]) for line in invoice["lines"]]
    exact = [Decimal(line["quantity"]) * UNIT_PRICE for line in invoice["lines"]]
    assert amounts == [each.quantize(CENT, ROUND_HALF_UP) for each in exact]
    assert Decimal(invoice["totals"]["total"]) == sum(amounts)
