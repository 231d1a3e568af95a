"""A backtest over HTTP and on the command line: the same sums as JSON, as CSV and on the screen."""

import csv
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from api.http.progress import announce
from tests.builders import (
    a_customer,
    a_draft,
    a_metered_feature,
    a_plan,
    fee,
    per_unit,
    phase,
    sign_up,
    spent,
    store,
)
from tests.server import assert_problem, refusal, tollgate, until

WINDOW = {"from": "2026-01-01T00:00:00Z", "to": "2026-02-01T00:00:00Z"}
BACKTEST = "/api/v1/plans/pro/backtest"
USED = {"small": 10, "even": 40, "large": 100, "=evil()": 70}


@pytest.fixture(scope="module", autouse=True)
def world(shared_engine: Engine) -> dict[str, str]:
    """Four customers of a plan at 1 a unit, and a draft with half of that and 20 a month; ids by name."""
    with Session(shared_engine) as session, session.begin():
        a_metered_feature(session)
        plan = a_plan(session, phase(per_unit("1")))
        euro = a_plan(session, phase(per_unit("1")), key="euro", currency="EUR")
        ids = {}
        for subject, tokens in {**USED, "europe": 5}.items():
            customer = a_customer(session, subject)
            customer.name, ids[subject] = subject, customer.id
            sign_up(session, customer, euro if subject == "europe" else plan)
            store(session, spent(subject, tokens, "2026-01-05"))
        a_draft(session, phase(per_unit("0.5"), fee("20")))
    return ids


def asked(client: httpx.Client, *, accept: str = "application/json", **more: Any) -> httpx.Response:
    return client.post(BACKTEST, json={**WINDOW, **more}, headers={"Accept": accept})


def names(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["customerName"] for item in answer.json()["items"]]


def test_the_sums_and_each_customer(client: httpx.Client, world: dict[str, str]) -> None:
    answer = asked(client)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert {name: found[name] for name in ("planKey", "planVersion", "currency", "from", "to")} == {
        "planKey": "pro",
        "planVersion": 2,
        "currency": "USD",
        **WINDOW,
    }
    counts = {"customers": 5, "winners": 2, "losers": 1, "unchanged": 1, "incomparable": 1}
    assert {name: found[name] for name in counts} == counts
    euro = {"billedCurrency": "EUR", "customers": 1, "wouldBill": "22.50", "billed": "5.00"}
    dollars = {"billedCurrency": "USD", "customers": 4, "wouldBill": "190.00", "billed": "220.00"}
    assert found["totals"] == [euro, {**dollars, "difference": "-30.00"}]
    assert [item["customerId"] for item in found["items"]] == sorted(world.values())
    small = {"wouldBill": "25.00", "billed": "10.00", "billedCurrency": "USD", "difference": "15.00"}
    by_name = {item["customerName"]: item for item in found["items"]}
    assert by_name["small"] == {"customerId": world["small"], "customerName": "small", **small}
    assert "difference" not in by_name["europe"]


def test_rows_come_in_the_order_and_number_asked_for(client: httpx.Client, world: dict[str, str]) -> None:
    by_difference = ["large", "=evil()", "even", "small"]
    assert names(asked(client, orderBy="difference")) == [*by_difference, "europe"]
    assert names(asked(client, orderBy="difference", order="DESC")) == [*by_difference[::-1], "europe"]
    assert names(asked(client, orderBy="difference", order="DESC", limit=2)) == ["small", "even"]
    by_id = sorted(world, key=world.__getitem__)
    assert names(asked(client, order="DESC", limit=3)) == by_id[::-1][:3]
    none = asked(client, limit=0).json()
    assert (none["items"], none["customers"]) == ([], 5)
    some = asked(client, customerIds=[world["small"], world["even"]])
    assert sorted(names(some)) == ["even", "small"]
    assert some.json()["customers"] == 2


def test_a_published_version_is_tested_by_its_id(client: httpx.Client) -> None:
    plan = client.get("/api/v1/plans/pro").json()
    answer = client.post(f"/api/v1/plans/{plan['id']}/backtest", json=WINDOW).json()
    assert (answer["planVersion"], answer["unchanged"], answer["incomparable"]) == (1, 4, 1)


def test_a_table_has_all_rows(client: httpx.Client, world: dict[str, str]) -> None:
    answer = asked(client, accept="text/csv", limit=1)
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="backtest-pro-2.csv"'
    table = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["customer_id"] for row in table] == sorted(world.values())
    by_name = {row["customer_name"]: row for row in table}
    assert set(by_name) == {"small", "even", "large", "'=evil()", "europe"}
    assert by_name["europe"] == {
        "customer_id": world["europe"],
        "customer_key": "",
        "customer_name": "europe",
        "currency": "USD",
        "would_bill": "22.50",
        "billed_currency": "EUR",
        "billed": "5.00",
        "difference": "",
    }
    ordered = asked(client, accept="text/csv", orderBy="difference", order="DESC").text
    found = [row["difference"] for row in csv.DictReader(io.StringIO(ordered))]
    assert found == ["15.00", "0.00", "-15.00", "-30.00", ""]


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"from": "2026-02-01T00:00:00Z"}, "empty_period", "$.to"),
        ({"to": "2999-01-01T00:00:00Z"}, "window_not_over", "$.to"),
        ({"customerIds": ["unknown"]}, "customer_not_found", "$.customerIds[0]"),
        ({"customerIds": []}, "too_short", "$.customerIds"),
        ({"limit": 1001}, "less_than_equal", "$.limit"),
        ({"plan": "pro"}, "unknown_field", "$.plan"),
        ({"from": None}, "datetime_type", "$.from"),
    ],
)
@pytest.mark.parametrize("accept", ["application/json", "text/csv"])
def test_bad_questions_say_what_is_wrong_in_whatever_form_is_asked_for(
    client: httpx.Client, changes: dict[str, Any], code: str, field: str, accept: str
) -> None:
    assert_problem(asked(client, accept=accept, **changes), 400, code, field)


def test_an_unknown_plan_is_not_found(client: httpx.Client) -> None:
    assert_problem(client.post("/api/v1/plans/unknown/backtest", json=WINDOW), 404)


def test_a_backtest_tells_how_far_it_is(client: httpx.Client, shared_engine: Engine) -> None:
    """Held up by somebody who keeps the events to himself."""

    def progress() -> httpx.Response:
        return client.get("/api/v1/info/progress/mine")

    with ThreadPoolExecutor(1) as pool:
        with shared_engine.begin() as connection:
            connection.execute(text("LOCK TABLE usage_cubes, events IN ACCESS EXCLUSIVE MODE"))
            running = pool.submit(asked, client, clientId="mine")
            until(lambda: progress().is_success and progress().json()["total"] == 5)
            assert progress().json()["success"] == 0
        assert running.result().status_code == 200
    assert_problem(progress(), 404)
    with Session(shared_engine) as session:
        announce(session, "mine", done=1_234_567, total=99_999_999)
        assert (progress().json()["success"], progress().json()["total"]) == (1_234_567, 99_999_999)


def test_the_command_shows_the_sums_and_writes_the_table(
    client: httpx.Client, shared_database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "backtest.csv"
    environment = {"TOLLGATE_DATABASE_URL": shared_database_url}
    window = ("--from", "2026-01-01", "--to", "2026-02-01T00:00:00+00:00")
    ended = tollgate("backtest", "pro", *window, "--csv", str(file), environment=environment)
    assert ended.returncode == 0, ended.stderr
    assert "2 would pay less, 1 more, 1 the same, 1 pay in another currency" in ended.stdout
    (dollars,) = [line for line in ended.stdout.splitlines() if "USD" in line and "220" in line]
    assert [cell.strip() for cell in dollars.strip("│").split("│")] == [
        "USD", "4", "220.00", "190.00", "-30.00"
    ]  # fmt: skip
    assert "5/5" in ended.stderr
    assert file.read_bytes().decode() == asked(client, accept="text/csv").text
    assert "is not an instant" in refusal(
        "backtest", "pro", "--from", "x", "--to", "y", environment=environment
    )
