"""POST /api/v1/events: what a 204 promises, however the events come."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import httpx
import pytest
from cloudevents.conversion import to_json
from cloudevents.http import CloudEvent

from tests.server import assert_problem, seeded

EVENTS = "/api/v1/events"
SINGLE, BATCH = "application/cloudevents+json", "application/cloudevents-batch+json"
APRIL = datetime(2026, 4, 1, tzinfo=UTC)
_numbers = count()


@pytest.fixture
def kind(client: httpx.Client) -> str:
    """An event type of its own, with two meters: `<kind>` sums $.n, `<kind>_count` counts."""
    kind = f"ingest_{next(_numbers)}"
    for slug, aggregation in ((kind, "SUM"), (f"{kind}_count", "COUNT")):
        meter = {"slug": slug, "eventType": kind, "aggregation": aggregation}
        value = {"valueProperty": "$.n"} if aggregation == "SUM" else {}
        assert client.post("/api/v1/meters", json=meter | value).status_code == 201
    return kind


def event(kind: str, number: int, **changes: object) -> dict[str, Any]:
    usual = {"specversion": "1.0", "id": str(number), "source": f"test/{kind}", "type": kind, "subject": "s"}
    return {**usual, "time": APRIL.isoformat(), "data": {"n": number}, **changes}


def sent(client: httpx.Client, body: object, content_type: str = "application/json") -> None:
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = client.post(EVENTS, content=content, headers={"Content-Type": content_type})
    assert (answer.status_code, answer.content) == (204, b""), answer.text


def counted(client: httpx.Client, kind: str) -> tuple[int, int]:
    """How many events of the type there are, and the sum of their $.n."""
    found = []
    for slug in (f"{kind}_count", kind):
        rows = client.get(f"/api/v1/meters/{slug}/query").json()["data"]
        found.append(rows[0]["value"] if rows else 0)
    return found[0], found[1]


@pytest.mark.parametrize(
    ("content_type", "wrap"),
    [
        (SINGLE, lambda event: event),
        (BATCH, lambda event: [event]),
        ("application/json", lambda event: event),
        ("application/json", lambda event: [event]),
        ("Application/JSON; charset=UTF-8", lambda event: event),
        (f"{BATCH};charset=utf-8", lambda event: [event]),
    ],
)
def test_each_content_type_is_taken_and_stored_at_once(
    client: httpx.Client, kind: str, content_type: str, wrap: Callable[[object], object]
) -> None:
    sent(client, wrap(event(kind, 5)), content_type)
    assert counted(client, kind) == (1, 5)


@pytest.mark.parametrize(("content_type", "body"), [(SINGLE, [{}]), (BATCH, {})])
def test_one_event_is_no_batch_and_a_batch_is_not_one_event(
    client: httpx.Client, content_type: str, body: object
) -> None:
    answer = client.post(EVENTS, content=json.dumps(body), headers={"Content-Type": content_type})
    assert_problem(answer, 400, "invalid_event")


def test_what_an_independent_library_encodes_is_understood(client: httpx.Client, kind: str) -> None:
    """The CNCF's own `cloudevents` package, with an extension attribute that Tollgate does not keep."""
    attributes = {
        "id": "1",
        "source": "/libraries/cncf",
        "type": kind,
        "subject": "s",
        "time": APRIL.isoformat(),
        "datacontenttype": "application/json",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    encoded = to_json(CloudEvent(attributes, {"n": 41}))
    sent(client, encoded, SINGLE)
    sent(client, b"[" + encoded + b"]", BATCH)
    assert counted(client, kind) == (1, 41)


def test_an_event_counts_once_by_source_and_id_whatever_else_it_says(client: httpx.Client, kind: str) -> None:
    first = event(kind, 7)
    sent(client, first)
    sent(client, {**first, "data": {"n": 1000}, "subject": "other", "time": "2026-05-01T00:00:00Z"})
    sent(client, [first, first, event(kind, 8), event(kind, 8, data={"n": 9})])
    assert counted(client, kind) == (2, 7 + 8)
    sent(client, {**first, "source": "another"})
    assert counted(client, kind) == (3, 7 + 8 + 7)


def test_a_batch_with_one_bad_event_stores_none_and_works_once_it_is_mended(
    client: httpx.Client, kind: str
) -> None:
    batch = [event(kind, i) for i in range(100)]
    batch[99]["data"] = "n=99"
    assert_problem(client.post(EVENTS, json=batch), 400, "invalid_event", "$[99].data")
    assert counted(client, kind) == (0, 0)
    batch[99]["data"] = {"n": 99}
    sent(client, batch)
    assert counted(client, kind) == (100, sum(range(100)))


def test_an_event_without_time_happened_when_it_arrived(client: httpx.Client, kind: str) -> None:
    before = datetime.now(UTC)  # noqa: TID251  the server's clock is the machine's
    sent(client, [event(kind, 1, time=None), {**event(kind, 2), "time": None}])
    without = event(kind, 3)
    del without["time"]
    sent(client, without)
    hour = {
        "from": (before - timedelta(minutes=1)).isoformat(),
        "to": (before + timedelta(minutes=9)).isoformat(),
    }
    (row,) = client.get(f"/api/v1/meters/{kind}_count/query", params=hour).json()["data"]
    assert row["value"] == 3


@pytest.mark.parametrize("data", [None, {}, {"n": None}, {"n": "many"}, {"n": {"n": 1}}, {"m": 1}])
def test_an_event_that_no_meter_can_use_is_kept_all_the_same(
    client: httpx.Client, kind: str, data: object
) -> None:
    """It counts as an event; only its sum is nothing."""
    sent(client, [event(kind, 1, data=data), event(kind, 2, data={"n": "2"})])
    assert counted(client, kind) == (2, 2)


def test_meters_made_after_the_events_count_them_too(client: httpx.Client) -> None:
    kind = f"ingest_{next(_numbers)}"
    sent(client, [event(kind, i) for i in range(10)])
    meter = {"slug": kind, "eventType": kind, "aggregation": "COUNT"}
    assert client.post("/api/v1/meters", json=meter).status_code == 201
    (row,) = client.get(f"/api/v1/meters/{kind}/query").json()["data"]
    assert row["value"] == 10


def test_text_of_every_kind_comes_through_unharmed(client: httpx.Client, kind: str) -> None:
    subject = "Zoë 😀 'quoted\" \\ %s %% \t\u2028 {x} ;--"
    sent(client, event(kind, 1, subject=subject, id="ü" * 300, source="ß" * 1024))
    (row,) = client.get(f"/api/v1/meters/{kind}/query", params={"groupBy": "subject"}).json()["data"]
    assert (row["subject"], row["value"]) == (subject, 1)
    rows = client.get(f"/api/v1/meters/{kind}/query", params={"subject": subject}).json()["data"]
    assert [row["value"] for row in rows] == [1]


def test_a_batch_of_many_events_is_one_request(client: httpx.Client, kind: str) -> None:
    sent(client, [event(kind, i) for i in range(25_000)], BATCH)
    assert counted(client, kind) == (25_000, sum(range(25_000)))


def test_clients_that_overlap_all_get_204_and_each_event_counts_once(client: httpx.Client, kind: str) -> None:
    """Sixteen senders shuffle the same thousand events into batches of their own."""
    events = [event(kind, i) for i in range(1000)]

    def send(seed: int) -> None:
        mine = list(events)
        seeded(seed).shuffle(mine)
        for i in range(0, len(mine), 50):
            sent(client, mine[i : i + 50], BATCH)

    with ThreadPoolExecutor(16) as senders:
        list(senders.map(send, range(16)))
    assert counted(client, kind) == (1000, sum(range(1000)))


def test_a_body_in_chunks_is_read_whole(client: httpx.Client, kind: str) -> None:
    body = json.dumps([event(kind, i) for i in range(50)]).encode()
    pieces = (body[i : i + 97] for i in range(0, len(body), 97))
    answer = client.post(EVENTS, content=pieces, headers={"Content-Type": BATCH})
    assert answer.status_code == 204
    assert counted(client, kind) == (50, sum(range(50)))


def test_a_client_that_hangs_up_in_the_middle_of_a_body_stores_nothing(
    client: httpx.Client, kind: str
) -> None:
    class HungUpError(Exception):
        pass

    def pieces() -> Any:
        yield json.dumps([event(kind, i) for i in range(50)]).encode()[:-1]
        raise HungUpError

    with pytest.raises(HungUpError):
        client.post(EVENTS, content=pieces(), headers={"Content-Type": BATCH})
    sent(client, event(kind, 1))
    assert counted(client, kind) == (1, 1)
