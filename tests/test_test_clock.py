"""A server with a test clock: time stands still, goes forward when told to, and is billed on the way."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from api.billing_worker import advanced
from billing.runs.test_clock import stored_clock, wind_up
from metering.errors import ConflictError
from tests.billing_clock import ledger
from tests.builders import START, a_customer, a_metered_feature, a_plan, at, fee, per_unit, phase, sign_up
from tests.server import Server, assert_problem, refusal

CLOCK = "/api/v1/test-clock"


# -- Steps ---------------------------------------------------------------------------------------------------


def signed_up(session: Session) -> str:
    a_metered_feature(session)
    customer = a_customer(session, "ada")
    sign_up(session, customer, a_plan(session, phase(fee("20"), per_unit())))
    session.commit()
    return customer.id


def advance(session: Session, to: str) -> None:
    sessions = sessionmaker(session.connection(), join_transaction_mode="create_savepoint")
    for _ in advanced(sessions, to=at(to)):
        pass
    session.expire_all()


def test_everything_on_the_way_is_billed_at_its_own_instant(session: Session) -> None:
    wind_up(session, START)
    signed_up(session)
    advance(session, "2026-03-15")
    assert [line.partition(":")[0] for line in ledger(session)] == [
        "2026-01-01 paid 20.00",
        "2026-02-01 paid 20.00",
        "2026-03-01 paid 20.00",
    ]
    assert stored_clock(session) == at("2026-03-15")


def test_the_clock_moves_though_nothing_falls_due_and_never_back(session: Session) -> None:
    assert wind_up(session, START) == START
    advance(session, "2026-02-01T10:00")
    assert stored_clock(session) == at("2026-02-01T10:00")
    advance(session, "2026-01-05")
    assert wind_up(session, START) == stored_clock(session) == at("2026-02-01T10:00")


def test_what_fell_due_while_the_clock_stood_is_billed_at_once(session: Session) -> None:
    wind_up(session, at("2026-01-20"))
    signed_up(session)
    advance(session, "2026-01-20")
    assert [line.partition(":")[0] for line in ledger(session)] == ["2026-01-20 paid 20.00"]


def test_who_cannot_be_billed_does_not_stop_the_clock(session: Session) -> None:
    wind_up(session, START)
    plan = a_plan(session, phase(fee("20")))
    bad, good = (sign_up(session, a_customer(session), plan) for _ in range(2))
    bad.billing_cadence = "P0M"
    session.commit()
    sessions = sessionmaker(session.connection(), join_transaction_mode="create_savepoint")
    failed = [id_ for _, outcome in advanced(sessions, to=at("2026-02-10")) for id_ in outcome.failed]
    assert failed == [bad.customer_id]
    session.expire_all()
    assert stored_clock(session) == at("2026-02-10")
    assert len(ledger(session)) == 2
    assert good.customer_id not in failed


def test_a_database_used_in_real_time_gets_no_test_clock(session: Session) -> None:
    a_customer(session)
    with pytest.raises(ConflictError, match="real time"):
        wind_up(session, START)
    assert stored_clock(session) is None


# -- Over HTTP -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(shared_database_url: str) -> Iterator[Server]:
    """Two API processes and a worker, which share one clock."""
    environment = {"TOLLGATE_DATABASE_URL": shared_database_url, "TOLLGATE_BILLING_INTERVAL": "1"}
    arguments = ("--test-clock", "2026-01-01T00:00:00Z", "--workers", "2")
    with Server(arguments=arguments, environment=environment) as server:
        yield server


def test_a_story_is_billed_month_after_month(
    server: Server, client: httpx.Client, shared_engine: Engine
) -> None:
    """The customer, the usage and the invoices all go by the clock; each request may meet another process."""
    assert get_clock(server) == "2026-01-01T00:00:00Z"
    subscribe(client)
    report(server, 500)
    answer = client.post(f"{CLOCK}/advance", json={"to": "2026-01-15T12:00:00Z"}).json()
    assert answer | {"customers": 0} == {
        "now": "2026-01-15T12:00:00Z",
        "settled": True,
        "customers": 0,
        "created": 1,
        "issued": 1,
        "paid": 1,
        "failures": [],
    }
    assert {get_clock(server) for _ in range(8)} == {"2026-01-15T12:00:00Z"}
    report(server, 1000)
    answer = client.post(f"{CLOCK}/advance", json={"to": "2026-03-02T00:00:00Z"}).json()
    assert (answer["created"], answer["paid"]) == (2, 2)
    with Session(shared_engine) as session:
        assert ledger(session) == [
            "2026-01-01 paid 20.00: Seat 01-01..02-01 20.00",
            "2026-02-01 paid 35.00: Tokens 01-01..02-01 15.00, Seat 02-01..03-01 20.00",
            "2026-03-01 paid 20.00: Tokens 02-01..03-01 0.00, Seat 03-01..04-01 20.00",
        ]
    assert client.get("/api/v1/billing/runs").json()["totalCount"] == 2


def subscribe(client: httpx.Client) -> None:
    """To a fee of 20 in advance and 0.01 for each token."""
    seat = {
        "type": "flat_fee",
        "key": "seat",
        "name": "Seat",
        "billingCadence": "P1M",
        "price": {"type": "flat", "amount": "20", "paymentTerm": "in_advance"},
    }
    tokens = {
        "type": "usage_based",
        "key": "tokens",
        "name": "Tokens",
        "featureKey": "tokens",
        "billingCadence": "P1M",
        "price": {"type": "unit", "amount": "0.01"},
    }
    only = {"key": "main", "name": "Main", "duration": None, "rateCards": [seat, tokens]}
    plan = {"key": "pro", "name": "Pro", "currency": "USD", "billingCadence": "P1M", "phases": [only]}
    meter = {"slug": "tokens", "eventType": "llm", "aggregation": "SUM", "valueProperty": "$.tokens"}
    create(client, "meters", meter)
    create(client, "features", {"key": "tokens", "name": "Tokens", "meterSlug": "tokens"})
    made = create(client, "plans", plan)
    assert client.post(f"/api/v1/plans/{made['id']}/publish").status_code == 200
    customer = create(client, "customers", {"name": "Ada", "usageAttribution": {"subjectKeys": ["ada"]}})
    create(client, "subscriptions", {"customerId": customer["id"], "plan": {"key": "pro"}})


def create(client: httpx.Client, collection: str, body: dict[str, Any]) -> Any:
    answer = client.post(f"/api/v1/{collection}", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


def report(server: Server, tokens: int) -> None:
    """Without a time: it happens when it is reported."""
    with server.client() as client:
        body = {"id": f"{tokens}", "source": "t", "type": "llm", "subject": "ada", "data": {"tokens": tokens}}
        content = {"Content-Type": "application/cloudevents+json"}
        body["specversion"] = "1.0"
        assert client.post("/api/v1/events", json=body, headers=content).status_code == 204


def get_clock(server: Server) -> Any:
    """Over a new connection, which any of the processes may take."""
    with server.client() as client:
        return client.get(CLOCK).json()["now"]


@pytest.mark.parametrize(
    ("to", "code"),
    [("2025-12-31T00:00:00Z", "clock_goes_forward"), ("2199-01-01T00:00:00Z", "too_far_ahead")],
)
def test_it_goes_neither_back_nor_too_far(client: httpx.Client, to: str, code: str) -> None:
    before = client.get(CLOCK).json()
    assert_problem(client.post(f"{CLOCK}/advance", json={"to": to}), 400, code, "$.to")
    assert client.get(CLOCK).json() == before


def test_without_a_test_clock_it_is_not_there_and_its_database_is_refused(
    server: Server, database_url: str
) -> None:
    theirs = server.environment["TOLLGATE_DATABASE_URL"]
    for command in (("serve", "--port", "0"), ("api", "--port", "0"), ("worker",)):
        said = refusal(*command, environment={"TOLLGATE_DATABASE_URL": theirs})
        assert "test clock" in said
    with Server(environment={"TOLLGATE_DATABASE_URL": database_url}) as other, other.client() as client:
        assert_problem(client.get(CLOCK), 404)
        assert_problem(client.post(f"{CLOCK}/advance", json={"to": "2199-01-01T00:00:00Z"}), 404)
        assert "/api/v1/test-clock" not in client.get("/api/openapi.json").json()["paths"]


def test_a_server_that_comes_back_keeps_the_time(server: Server, client: httpx.Client) -> None:
    before = client.get(CLOCK).json()
    with Server(arguments=("--test-clock", "2026-01-01"), environment=server.environment) as another:
        assert get_clock(another) == before["now"]
