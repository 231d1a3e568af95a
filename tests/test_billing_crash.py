"""kill -9 of the worker in the middle of a run, again and again: nothing is lost, nothing is repeated."""

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from psycopg import Connection
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from api.clock import now
from api.database import connector
from billing.invoices.invoice import Invoice, InvoiceLine
from billing.runs.run import due_at
from tests.builders import a_customer, a_metered_feature, a_plan, fee, per_unit, phase, sign_up
from tests.many import SUBJECT, multiply
from tests.server import ROOT, environment_of, until

CUSTOMERS = 300
"""The first portion has 200 of them."""
DEATHS = (("INSERT INTO invoice_lines", 0), ("", 200))
"""What the worker is doing when it dies, in a transaction after so many customers were billed."""


@contextmanager
def worker(database_url: str, log: Path) -> Iterator[Callable[[], None]]:
    """Gives what kills it; else it is stopped in order, and had no reason to end before."""
    environment = {"TOLLGATE_DATABASE_URL": database_url, "TOLLGATE_BILLING_INTERVAL": "1"}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "api", "worker"],
            cwd=ROOT,
            env=environment_of(environment),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process.kill
        process.terminate()
        assert process.wait(timeout=60) in (0, -signal.SIGKILL), log.read_text()
    finally:
        process.kill()


def is_at(connection: Connection[Any], statement: str, billed: int) -> bool:
    found = connection.execute(
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'tollgate'"
        " AND xact_start IS NOT NULL AND query LIKE %s",
        [f"%{statement}%"],
    )
    done = connection.execute("SELECT coalesce(sum(customers), 0) FROM billing_runs").fetchall()[0][0]
    return bool(found.fetchall()) and done >= billed


def test_a_worker_killed_in_the_middle_of_a_run_bills_nobody_twice_and_leaves_nobody_out(
    engine: Engine, database_url: str, tmp_path: Path
) -> None:
    start = now().replace(microsecond=0) - timedelta(days=40)
    with Session(engine) as session, session.begin():
        a_metered_feature(session)
        plan = a_plan(session, phase(fee("20"), per_unit()))
        sign_up(session, a_customer(session, SUBJECT), plan, start=start)
    with connector(engine)() as connection:
        multiply(connection, CUSTOMERS)
        for statement, done in DEATHS:
            with worker(database_url, tmp_path / "log") as kill:
                until(lambda: is_at(connection, statement, done))  # noqa: B023  called at once
                kill()
        assert invoices(connection) < CUSTOMERS * 2
        with worker(database_url, tmp_path / "log"):
            until(lambda: not is_due(engine))
    with Session(engine) as session:
        assert_billed_once(session, start)


def invoices(connection: Connection[Any]) -> int:
    return int(connection.execute("SELECT count(*) FROM invoices").fetchall()[0][0])


def is_due(engine: Engine) -> bool:
    with Session(engine) as session:
        at = due_at(session)
        return at is not None and at <= now()


def assert_billed_once(session: Session, start: datetime) -> None:
    """Two fees and the usage of the month between them, for each; numbers without a gap."""
    lines = session.scalars(select(InvoiceLine)).all()
    assert len(lines) == len({line.identity for line in lines}) == CUSTOMERS * 3
    names = Counter((line.subscription_id, line.name) for line in lines)
    assert Counter(name for (_, name), count in names.items() for _ in range(count)) == {
        "seat": CUSTOMERS * 2,
        "tokens": CUSTOMERS,
    }
    assert {count for (_, name), count in names.items() if name == "seat"} == {2}
    assert {line.period_start for line in lines if line.name == "tokens"} == {start}
    found = session.scalars(select(Invoice)).all()
    assert {invoice.status for invoice in found} == {"paid"}
    assert {invoice.number for invoice in found} == {f"INV-KOAI-{n}" for n in range(1, CUSTOMERS * 2 + 1)}
    assert len(found) == CUSTOMERS * 2
