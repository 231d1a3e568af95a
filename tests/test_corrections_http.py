"""Corrections over HTTP: a session from its creation to its revert, who did it, and what is refused."""

import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from api.keys import create_key
from tests.builders import START
from tests.server import Server, assert_problem

CORRECTIONS = "/api/v1/corrections"
BATCH = {"Content-Type": "application/cloudevents-batch+json"}
FROM, TO = "2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z"


class Usage:
    """A meter of its own, and the source that its events come from."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.name = f"u{uuid.uuid4().hex[:10]}"
        meter = {"slug": self.name, "eventType": self.name, "aggregation": "SUM", "valueProperty": "$.v"}
        assert client.post("/api/v1/meters", json=meter).status_code == 201

    def event(self, name: str, value: object, time: str = "2026-03-10T10:00:00Z") -> dict[str, Any]:
        event = {"id": name, "source": self.name, "type": self.name, "subject": "ada", "time": time}
        return {**event, "data": {"v": value}}

    def send(self, **values: object) -> None:
        sent = [self.event(name, value) for name, value in values.items()]
        assert self.client.post("/api/v1/events", json=sent).status_code == 204

    @property
    def window(self) -> dict[str, Any]:
        return {"source": self.name, "from": FROM, "to": TO}

    def total(self) -> int:
        answer = self.client.get(f"/api/v1/meters/{self.name}/query", params={"from": FROM, "to": TO})
        assert answer.status_code == 200, answer.text
        return sum(row["value"] for row in answer.json()["data"])

    def create(self, **more: Any) -> dict[str, Any]:
        body = {"kind": "void", "selection": self.window, "reason": "sent twice", **more}
        answer = self.client.post(CORRECTIONS, json=body)
        assert answer.status_code == 201, answer.text
        created: dict[str, Any] = answer.json()
        return created

    def step(self, correction: dict[str, Any], step: str, **options: Any) -> httpx.Response:
        return self.client.post(f"{CORRECTIONS}/{correction['id']}/{step}", **options)

    def stage(self, correction: dict[str, Any], *events: dict[str, Any]) -> httpx.Response:
        return self.step(correction, "events", content=json.dumps(events), headers=BATCH)


@pytest.fixture
def usage(client: httpx.Client) -> Usage:
    return Usage(client)


@pytest.fixture
def reading(server: Server, shared_engine: Engine) -> Iterator[httpx.Client]:
    with Session(shared_engine) as session, session.begin():
        _, key = create_key(session, name="auditor", role="read", now=START)
    with server.client(key) as client:
        yield client


def test_a_window_is_voided_looked_at_and_restored(usage: Usage) -> None:
    usage.send(a=1, b=10)
    correction = usage.create()
    assert {name: correction[name] for name in ("kind", "status", "reason", "createdBy", "selection")} == {
        "kind": "void",
        "status": "open",
        "reason": "sent twice",
        "createdBy": "admin",
        "selection": usage.window,
    }
    preview = usage.client.get(f"{CORRECTIONS}/{correction['id']}/preview").json()
    assert preview["voided"] == {
        "events": 2,
        "alreadyVoid": 0,
        "first": "2026-03-10T10:00:00Z",
        "last": "2026-03-10T10:00:00Z",
        "groups": [{"type": usage.name, "subject": "ada", "events": 2, "alreadyVoid": 0}],
    }
    assert preview["backfilled"] == {"events": 0, "alreadyVoid": 0, "groups": []}
    assert usage.total() == 11
    closed = usage.step(correction, "close").json()
    assert (closed["status"], closed["voidedEvents"], closed["closedBy"]) == ("closed", 2, "admin")
    assert usage.total() == 0
    reverted = usage.step(correction, "revert").json()
    assert (reverted["status"], usage.total()) == ("reverted", 11)
    assert usage.client.get(f"{CORRECTIONS}/{correction['id']}").json() == reverted


def test_an_event_is_replaced_by_one_of_the_same_id(usage: Usage) -> None:
    usage.send(a=1, b=10)
    named = {"events": [{"source": usage.name, "id": "a"}]}
    correction = usage.create(kind="replace", selection=named)
    assert correction["selection"] == named
    assert usage.stage(correction, usage.event("a", "5")).json() == {"staged": 1, "duplicate": 0}
    assert usage.stage(correction, usage.event("a", "7")).json() == {"staged": 0, "duplicate": 1}
    assert usage.total() == 11
    assert usage.step(correction, "close").json()["stagedEvents"] == 1
    assert usage.total() == 15
    usage.send(a=1)
    assert usage.total() == 15
    usage.step(correction, "revert")
    assert usage.total() == 11


@pytest.mark.parametrize(
    "content_type",
    ["application/cloudevents+json", "application/json", "application/json; charset=utf-8"],
)
def test_one_event_is_staged_by_itself(usage: Usage, content_type: str) -> None:
    correction = usage.create(kind="replace")
    headers = {"Content-Type": content_type}
    answer = usage.step(correction, "events", content=json.dumps(usage.event("a", 1)), headers=headers)
    assert (answer.status_code, answer.json()) == (200, {"staged": 1, "duplicate": 0})


def test_a_void_is_made_and_closed_in_one_request(usage: Usage) -> None:
    usage.send(a=1)
    correction = usage.create(close=True)
    assert (correction["status"], correction["voidedEvents"], usage.total()) == ("closed", 1, 0)


def test_a_step_that_does_not_fit_is_a_conflict_and_says_so(usage: Usage) -> None:
    void, replacement = usage.create(), usage.create(kind="replace")
    assert "no events were sent" in assert_problem(usage.step(replacement, "close"), 409)["detail"]
    assert "kind replace" in assert_problem(usage.stage(void, usage.event("a", 1)), 409)["detail"]
    assert "only one that is closed" in assert_problem(usage.step(void, "revert"), 409)["detail"]
    assert usage.step(void, "discard").json()["status"] == "discarded"
    for step in ("close", "discard", "revert"):
        assert "the correction is discarded" in assert_problem(usage.step(void, step), 409)["detail"]
    assert_problem(usage.client.get(f"{CORRECTIONS}/{void['id']}/preview"), 409)


def test_what_does_not_fit_the_selection_is_refused_with_its_place(usage: Usage) -> None:
    correction = usage.create(kind="replace")
    early = usage.event("b", 1, "2026-02-28T23:59:59Z")
    answer = usage.stage(correction, usage.event("a", 1), early)
    assert_problem(answer, 400, "invalid_correction", "$[1].time")
    single = usage.step(correction, "events", json=early)
    assert_problem(single, 400, "invalid_correction", "$.time")
    assert_problem(usage.stage(correction, {**early, "id": ""}), 400, "invalid_event", "$[0].id")
    text = usage.step(correction, "events", content="a", headers={"Content-Type": "text/plain"})
    assert_problem(text, 400, "content_type")
    assert_problem(usage.step(correction, "events"), 400, "content_type")
    assert usage.client.get(f"{CORRECTIONS}/{correction['id']}").json()["stagedEvents"] == 0


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"reason": " "}, "invalid_correction", "$.reason"),
        ({"reason": ""}, "string_too_short", "$.reason"),
        ({"kind": "delete"}, "literal_error", "$.kind"),
        ({"kind": "replace", "close": True}, "invalid_correction", "$.close"),
        ({"selection": {}}, "invalid_correction", "$.selection"),
        ({"selection": {"source": "s", "from": FROM}}, "invalid_correction", "$.selection.to"),
        ({"selection": {"source": "s", "from": FROM, "to": FROM}}, "invalid_correction", "$.selection.to"),
        ({"selection": {"from": FROM, "to": TO}}, "invalid_correction", "$.selection"),
        ({"selection": {"events": [{"id": "a"}]}}, "field_required", "$.selection.events[0].source"),
        ({"selection": {"source": "s", "until": TO}}, "unknown_field", "$.selection.until"),
        ({"selection": {"events": [{"source": "s", "id": str(i)} for i in range(10_001)]}}, "too_long",
         "$.selection.events"),
    ],
)  # fmt: skip
def test_a_correction_that_can_not_work_is_refused_with_the_place(
    client: httpx.Client, change: dict[str, Any], code: str, field: str
) -> None:
    selection = {"source": "s", "from": FROM, "to": TO}
    body = {"kind": "void", "selection": selection, "reason": "why", **change}
    assert_problem(client.post(CORRECTIONS, json=body), 400, code, field)


def test_corrections_are_listed_by_status_and_page(usage: Usage) -> None:
    first, second = usage.create(), usage.create()
    usage.step(first, "discard")
    page = usage.client.get(CORRECTIONS, params={"pageSize": 1}).json()
    assert (page["page"], page["pageSize"], [one["id"] for one in page["items"]]) == (1, 1, [second["id"]])
    discarded = usage.client.get(CORRECTIONS, params={"status": "discarded"}).json()
    assert first["id"] in [one["id"] for one in discarded["items"]]
    assert {one["status"] for one in discarded["items"]} == {"discarded"}
    assert_problem(usage.client.get(CORRECTIONS, params={"status": "gone"}), 400)


def test_who_reads_may_look_and_not_correct(usage: Usage, reading: httpx.Client) -> None:
    correction = usage.create()
    for path in ("", f"/{correction['id']}", f"/{correction['id']}/preview"):
        assert reading.get(CORRECTIONS + path).status_code == 200
    assert_problem(reading.post(CORRECTIONS, json={}), 403)
    for step in ("close", "revert", "discard", "events"):
        assert_problem(reading.post(f"{CORRECTIONS}/{correction['id']}/{step}"), 403)


def test_the_key_that_took_a_step_is_named(usage: Usage, server: Server, shared_engine: Engine) -> None:
    with Session(shared_engine, expire_on_commit=False) as session, session.begin():
        stored, key = create_key(session, name="on-call", role="admin", now=START)
    correction = usage.create()
    with server.client(key) as client:
        closed = client.post(f"{CORRECTIONS}/{correction['id']}/close").json()
    assert (closed["createdBy"], closed["closedBy"]) == ("admin", f"on-call ({stored.id})")


def test_an_unknown_correction_is_not_found(client: httpx.Client) -> None:
    for path in ("nobody", "01JQ5ZK7F8M3N2P4R6S8T0V1W3"):
        assert_problem(client.get(f"{CORRECTIONS}/{path}"), 404)
        assert_problem(client.post(f"{CORRECTIONS}/{path}/close"), 404)


def test_one_of_many_that_close_at_once_does_while_usage_goes_on(usage: Usage) -> None:
    usage.send(**{f"before{i}": 1 for i in range(20)})
    correction = usage.create()
    with ThreadPoolExecutor(8) as pool:
        sending = [pool.submit(usage.send, **{f"beside{i}": 1}) for i in range(20)]
        closing = [pool.submit(usage.step, correction, "close") for _ in range(4)]
        statuses = sorted(future.result().status_code for future in closing)
        assert [future.result() for future in sending] == [None] * 20
    assert statuses == [200, 409, 409, 409]
    voided = usage.client.get(f"{CORRECTIONS}/{correction['id']}").json()["voidedEvents"]
    assert usage.total() == 40 - voided
    usage.step(correction, "revert")
    assert usage.total() == 40
