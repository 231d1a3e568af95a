"""The run: whatever is due is billed once, by however many, and each run leaves a record of what it did."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session, sessionmaker
from structlog.testing import capture_logs

from api.billing_worker import Sessions, billed, billing, would_be_billed
from api.database import open_database
from billing.contracts.subscriptions import Subscription
from billing.invoices.invoice import Invoice
from billing.runs.records import BillingRun, failures_of, list_runs
from billing.runs.run import due_at, due_customers, run_portion
from tests.billing_clock import invoices_of, ledger
from tests.builders import a_customer, a_metered_feature, a_plan, at, fee, per_unit, phase, sign_up
from tests.server import Server, assert_problem, until

NOW = at("2026-01-10")


@pytest.fixture
def sessions(session: Session) -> Sessions:
    """What a run opens, in the test's transaction."""
    return sessionmaker(session.connection(), join_transaction_mode="create_savepoint")


def signed_up(session: Session, count: int, currency: str = "USD") -> list[Subscription]:
    plan = a_plan(session, phase(fee("20")), currency=currency, key=f"in-{currency.lower()}")
    found = [sign_up(session, a_customer(session), plan) for _ in range(count)]
    session.flush()
    return found


def broken(subscription: Subscription) -> str:
    """Nobody can bill it; whose it is."""
    subscription.billing_cadence = "P0M"
    return subscription.customer_id


def runs(session: Session) -> list[BillingRun]:
    session.expire_all()
    return [*list_runs(session, offset=0, limit=100)[0]]


# -- Records -------------------------------------------------------------------------------------------------


def test_a_record_says_what_a_run_did(session: Session, sessions: Sessions) -> None:
    signed_up(session, 3)
    signed_up(session, 1, "EUR")
    bad = broken(signed_up(session, 1, "JPY")[0])
    session.commit()
    assert due_customers(session, now=NOW) == 5
    portions = list(billed(sessions, now=NOW))
    assert [portion.customers for portion in portions] == [5]
    (run,) = runs(session)
    assert (run.customers, run.created, run.issued, run.paid, run.failed) == (5, 4, 4, 4, 1)
    assert run.amounts == {"EUR": "20.00", "USD": "60.00"}
    assert run.now == NOW
    assert run.ended_at is not None
    assert run.started_at <= run.ended_at
    (failure,) = failures_of(session, run.id)
    assert failure.customer_id == bad
    assert failure.reason
    assert "\n" not in failure.reason


def test_a_run_that_finds_nothing_leaves_no_record(session: Session, sessions: Sessions) -> None:
    signed_up(session, 1)
    session.commit()
    assert list(billed(sessions, now=at("2025-12-31"))) == []
    assert runs(session) == []


def test_portions_add_up_in_one_record(session: Session, sessions: Sessions) -> None:
    signed_up(session, 5)
    session.commit()
    with sessions.begin() as own:
        assert run_portion(own, now=NOW, limit=2).customers == 2
    assert [portion.customers for portion in billed(sessions, now=NOW, limit=2)] == [2]
    assert [portion.customers for portion in billed(sessions, now=NOW)] == [1]
    assert [run.created for run in runs(session)] == [1, 2]
    assert len(invoices_of(session)) == 5


def test_a_run_that_is_stopped_keeps_what_it_did(session: Session, sessions: Sessions) -> None:
    signed_up(session, 2)
    session.commit()
    with closing(billed(sessions, now=NOW)) as portions:
        next(portions)
    (run,) = runs(session)
    assert run.created == 2
    assert run.ended_at is not None


def test_who_fails_again_and_again_fills_no_table(session: Session, sessions: Sessions) -> None:
    good, bad = signed_up(session, 2)
    failing = broken(bad)
    session.commit()
    for _ in range(3):
        assert sum(len(portion.failed) for portion in billed(sessions, now=NOW)) == 1
    found = runs(session)
    assert [(run.customers, run.created, run.failed) for run in found] == [(1, 0, 1), (2, 1, 1)]
    assert [one.customer_id for one in failures_of(session, found[0].id)] == [failing]
    assert good.customer_id != failing


def test_those_who_fail_keep_nobody_else_from_being_billed(
    session: Session, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though they were due first, and fill all the places of those that are looked at."""
    monkeypatch.setattr("billing.runs.run.CANDIDATES", 2)
    first = signed_up(session, 3)
    for subscription in first:
        broken(subscription)
    later = sign_up(session, a_customer(session), a_plan(session, phase(fee("5"))), start=at("2026-01-05"))
    session.commit()
    failed = {id_ for portion in billed(sessions, now=NOW) for id_ in portion.failed}
    assert failed == {subscription.customer_id for subscription in first}
    assert [invoice.customer_id for invoice in invoices_of(session)] == [later.customer_id]
    assert due_at(session) == first[0].next_billing_at
    assert due_at(session, skip=failed) == later.next_billing_at


def test_a_dry_run_shows_the_same_and_changes_nothing(session: Session, sessions: Sessions) -> None:
    signed_up(session, 3)
    bad = broken(signed_up(session, 1, "EUR")[0])
    session.commit()
    shown = list(would_be_billed(sessions, now=NOW))
    assert invoices_of(session) == []
    assert runs(session) == []
    done = list(billed(sessions, now=NOW))
    assert [portion.amounts for portion in shown] == [portion.amounts for portion in done]
    assert [portion.customer_ids for portion in shown] == [portion.customer_ids for portion in done]
    assert [{*portion.failed} for portion in shown] == [{*portion.failed} for portion in done] == [{bad}]
    assert len(ledger(session)) == 3


# -- Several at once -----------------------------------------------------------------------------------------


def test_any_number_of_workers_bill_each_customer_once(engine: Engine) -> None:
    """Each over its own connection, and all at the same moment, in portions of a few."""
    with Session(engine) as session, session.begin():
        signed_up(session, 60)
    together = threading.Barrier(4)

    def work() -> int:
        done = 0
        together.wait()
        for _ in range(100):
            with Session(engine) as session, session.begin():
                customers = run_portion(session, now=NOW, limit=7).customers
            done += customers
            if not customers:
                break
        return done

    with ThreadPoolExecutor(4) as pool:
        done = [future.result() for future in [pool.submit(work) for _ in range(4)]]
    with Session(engine) as session:
        counts = session.execute(select(func.count()).group_by(Invoice.customer_id).select_from(Invoice))
        assert [*counts.scalars()] == [1] * 60
        numbers = session.scalars(select(Invoice.number)).all()
        assert {*numbers} == {f"INV-KOAI-{number}" for number in range(1, 61)}
    assert sum(done) >= 60


def test_whoever_somebody_works_for_is_left_to_them(engine: Engine) -> None:
    """Drafts only, which wait for late usage: who issues waits for whoever took the number before."""
    now = at("2026-02-01")
    with Session(engine) as session, session.begin():
        a_metered_feature(session)
        plan = a_plan(session, phase(per_unit()))
        for _ in range(3):
            sign_up(session, a_customer(session), plan)
    with Session(engine) as theirs, Session(engine) as ours:
        assert run_portion(theirs, now=now, limit=2).customers == 2
        assert run_portion(ours, now=now).customers == 1
        ours.commit()
        theirs.rollback()  # as a crash would
    with Session(engine) as session, session.begin():
        assert run_portion(session, now=now).customers == 2
        assert len(invoices_of(session)) == 3
        assert run_portion(session, now=now).customers == 0


# -- By itself -----------------------------------------------------------------------------------------------


@pytest.fixture
def database(database_url: str) -> Iterator[Engine]:
    engine = open_database(database_url, connections=2)
    yield engine
    engine.dispose()


def test_the_worker_bills_at_once_and_again_with_each_interval(database: Engine) -> None:
    def invoices() -> int:
        with Session(database) as session:
            return session.scalar(select(func.count()).select_from(Invoice)) or 0

    with Session(database) as session, session.begin():
        signed_up(session, 2)
    due = invoices_until(datetime.now(UTC))  # noqa: TID251  the worker's time is the real one
    with billing(database, every=1):
        until(lambda: invoices() == 2 * due)
        with Session(database) as session, session.begin():
            sign_up(session, a_customer(session), a_plan(session, phase(fee("5")), key="late"))
        until(lambda: invoices() == 3 * due)


def invoices_until(now: datetime) -> int:
    """Of a monthly fee from January 2026 on."""
    return (now.year - 2026) * 12 + now.month


def test_the_worker_outlives_a_run_that_fails(database: Engine) -> None:
    def rename(old: str, new: str) -> None:
        with database.begin() as connection:
            connection.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))

    def records() -> list[BillingRun]:
        with Session(database) as session:
            return runs(session)

    with Session(database) as session, session.begin():
        signed_up(session, 1)
    rename("billing_runs", "gone")
    with capture_logs() as logs, billing(database, every=1):
        until(lambda: any(line["event"] == "billing_failed" for line in logs))
        rename("gone", "billing_runs")
        until(lambda: bool(records()))
    with Session(database) as session:
        numbers = [invoice.number for invoice in invoices_of(session)]
    assert {*numbers} == {f"INV-KOAI-{n}" for n in range(1, len(numbers) + 1)}


def test_a_server_bills_by_itself_and_stops_in_order(database: Engine, database_url: str) -> None:
    environment = {"TOLLGATE_DATABASE_URL": database_url, "TOLLGATE_BILLING_INTERVAL": "1"}
    with Server(environment=environment) as server, server.client() as client:
        with Session(database) as session, session.begin():
            signed_up(session, 1)
        until(lambda: client.get("/api/v1/billing/runs").json()["totalCount"] == 1)
        assert server.stop() == 0
    assert "Traceback" not in server.output


# -- Over HTTP -----------------------------------------------------------------------------------------------


def test_runs_are_listed_the_newest_first_with_their_failures_one_by_one(
    shared_engine: Engine, client: httpx.Client
) -> None:
    sessions = sessionmaker(shared_engine)
    with sessions.begin() as session:
        failing = broken(signed_up(session, 2)[0])
    list(billed(sessions, now=NOW))
    list(billed(sessions, now=NOW + timedelta(days=40)))
    page = client.get("/api/v1/billing/runs").json()
    assert page["totalCount"] == 2
    newest, oldest = page["items"]
    assert newest["startedAt"] >= oldest["startedAt"]
    assert pick(oldest) == {"customers": 2, "created": 1, "issued": 1, "paid": 1, "failed": 1}
    assert oldest["amounts"] == {"USD": "20.00"}
    assert "failures" not in oldest
    found = client.get(f"/api/v1/billing/runs/{oldest['id']}").json()
    assert [failure["customerId"] for failure in found["failures"]] == [failing]
    assert client.get("/api/v1/billing/runs", params={"pageSize": 1, "page": 2}).json()["items"] == [oldest]
    assert_problem(client.get("/api/v1/billing/runs/01ARZ3NDEKTSV4RRFFQ69G5FAV"), 404)


def pick(run: dict[str, Any]) -> dict[str, int]:
    return {name: run[name] for name in ("customers", "created", "issued", "paid", "failed")}
