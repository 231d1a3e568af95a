"""How long it takes to invoice all subscriptions that are due at once, and how much memory it needs.

    python -m benchmarks.billing [--quick] [CUSTOMERS [WORKERS]]

Every customer has a monthly fee and usage, both in arrears, and signed up a month and some days ago: an
invoice of two lines is due. The workers are those that `tollgate worker` starts. Status 0 when all were
billed, each once.
"""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from psycopg import Connection
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from api import clock
from benchmarks.stage import ROOT, connect, place, postgres, processes
from tests.builders import a_customer, a_metered_feature, a_plan, fee, per_unit, phase, sign_up
from tests.many import SUBJECT, multiply
from tests.server import environment_of

__all__ = ["LINES", "differences", "due", "sign_all_up", "worker"]

CUSTOMERS = 100_000
QUICK = 2_000
BAR_SECONDS = 15 * 60
LINES = 2
"""Of each customer: the fee, and the usage."""
USED = 5
"""Events of each customer within that month, each of 100 tokens for 1.00."""


def sign_all_up(url: str, customers: int) -> None:
    start = clock.now().replace(microsecond=0) - timedelta(days=40)
    engine = create_engine(url, connect_args={"options": "-c timezone=UTC"})
    with Session(engine) as session, session.begin():
        a_metered_feature(session)
        plan = a_plan(session, phase(fee("20", term="in_arrears"), per_unit()))
        sign_up(session, a_customer(session, SUBJECT), plan, start=start)
    engine.dispose()
    with connect(url) as connection:
        multiply(connection, customers)
        connection.execute(_EVENTS, {"customers": customers, "used": USED, "start": start})
        connection.execute("VACUUM (ANALYZE)")


_EVENTS = """
    WITH begun AS (
        INSERT INTO pending_batches (events, stored_at)
        VALUES (%(customers)s::bigint * %(used)s, now()) RETURNING batch)
    INSERT INTO events
        (key, id, source, type, subject, time, data, specversion, ingested_at, stored_at, batch)
    SELECT md5(customer || '-' || number)::uuid, customer || '-' || number, 'billing', 'llm',
        'subject-' || lpad(customer::text, 6, '0'), %(start)s + number * interval '1 day',
        '{"tokens": 100}', '1.0', now(), now(), batch
    FROM begun, generate_series(0, %(customers)s - 1) AS customer, generate_series(1, %(used)s) AS number"""


@contextmanager
def worker(url: str) -> Iterator["subprocess.Popen[bytes]"]:
    environment = {"TOLLGATE_DATABASE_URL": url, "TOLLGATE_BILLING_INTERVAL": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "api", "worker"],
        cwd=ROOT,
        env=environment_of(environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
        process.terminate()
        process.wait(60)
    finally:
        process.kill()
        process.wait(60)


@dataclass
class Progress:
    """The seconds until everything was billed, and the MB of each worker at every look."""

    seconds: float = 0.0
    memory: dict[int, list[float]] = field(default_factory=dict)


def billed(connection: Connection[Any], running: Sequence["subprocess.Popen[bytes]"], total: int) -> Progress:
    found, began, told = Progress(), time.perf_counter(), 0
    while left := due(connection):
        for process in running:
            if process.poll() is not None:
                raise RuntimeError("a worker ended")
            for pid, usage in processes(process.pid).items():
                found.memory.setdefault(pid, []).append(usage.memory)
        if (total - left) * 10 // total > told:
            told = (total - left) * 10 // total
            print(
                f"  {time.perf_counter() - began:6.0f} s: {total - left:,} of {total:,} customers", flush=True
            )
        time.sleep(0.5)
    found.seconds = time.perf_counter() - began
    return found


def due(connection: Connection[Any]) -> int:
    """How many subscriptions have something due in the present."""
    query = "SELECT count(*) FROM subscriptions WHERE next_billing_at <= %s"
    return int(connection.execute(query, [clock.now()]).fetchall()[0][0])


def differences(connection: Connection[Any], customers: int) -> list[str]:
    """All that does not hold: every charge billed once and right, numbers without a gap, everything paid."""
    amount = customers * (20 + USED)
    checks = {
        "lines": ("SELECT count(*) FROM invoice_lines", customers * LINES),
        "charges": ("SELECT count(DISTINCT identity) FROM invoice_lines", customers * LINES),
        "invoices": ("SELECT count(*) FROM invoices", customers),
        "paid": ("SELECT count(*) FROM invoices WHERE status = 'paid'", customers),
        "customers": ("SELECT count(DISTINCT customer_id) FROM invoices", customers),
        "numbers": ("SELECT count(DISTINCT number) FROM invoices WHERE number LIKE 'INV-%'", customers),
        "last number": ("SELECT last FROM number_sequences WHERE scope = 'invoices'", customers),
        "amount": ("SELECT sum(amount) FROM invoices", amount),
        "recorded": ("SELECT sum(created) FROM billing_runs", customers),
        "failed": ("SELECT count(*) FROM billing_run_failures", 0),
    }
    found = {name: connection.execute(query).fetchall()[0][0] for name, (query, _) in checks.items()}
    return [
        f"{name}: {found[name]}, not {right}" for name, (_, right) in checks.items() if found[name] != right
    ]


def main(customers: int = CUSTOMERS, workers: int = 2) -> bool:
    with place() as directory, postgres(directory) as url, connect(url) as connection:
        began = time.perf_counter()
        sign_all_up(url, customers)
        took = time.perf_counter() - began
        print(f"{customers:,} subscriptions are due, each with {USED} events ({took:.0f} s)", flush=True)
        with ExitStack() as stack:
            running = [stack.enter_context(worker(url)) for _ in range(workers)]
            found = billed(connection, running, customers)
        wrong = differences(connection, customers)
    rate = customers / found.seconds
    print(f"{workers} workers: {found.seconds:.0f} s, {rate:.0f} invoices/s")
    for sizes in found.memory.values():
        tenth = max(1, len(sizes) // 10)
        print(f"  memory of a worker: {max(sizes[: 2 * tenth]):.0f} MB at first, {max(sizes):.0f} MB at most")
    print(f"  100,000 would take {100_000 / rate / 60:.1f} minutes; the bar is {BAR_SECONDS // 60}")
    for difference in wrong:
        print(f"✗ {difference}")
    if not wrong:
        print("✓ each charge was billed once; numbers have no gap")
    return not wrong


if __name__ == "__main__":
    quick = "--quick" in sys.argv
    numbers = [int(one) for one in sys.argv[1:] if one != "--quick"]
    raise SystemExit(not main(*(numbers or ([QUICK] if quick else []))))
