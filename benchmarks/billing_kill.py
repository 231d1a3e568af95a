"""Kill -9 of workers in the middle of a billing run, again and again; then every charge is billed once.

    python -m benchmarks.billing_kill [KILLS [CUSTOMERS [SEED]]]

Two workers share the run of subscriptions that are all due. At a random moment of a transaction one of them
is killed, and another takes its place. Nothing may be missing or there twice, numbers have no gap,
the records say what was done, and the auditor is content. Status 0 when all holds.
"""

import random
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from rich.console import Console
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from api import clock
from benchmarks.billing import differences, due, sign_all_up, worker
from benchmarks.kill import wait_until
from benchmarks.stage import connect, place, postgres
from billing.proof.audit import audit

WORKERS = 2
MOMENT = 4.0
"""A transaction is at most so many seconds old when its worker is killed, if it lasts so long."""


@dataclass
class Victims:
    """The workers, and whom the next death meets."""

    url: str
    stack: ExitStack
    chance: random.Random

    def __post_init__(self) -> None:
        self.running = [self.stack.enter_context(worker(self.url)) for _ in range(WORKERS)]

    def kill_one(self) -> None:
        place = self.chance.randrange(WORKERS)
        self.running[place].kill()
        self.running[place].wait()
        self.running[place] = self.stack.enter_context(worker(self.url))


def in_the_middle(connection: Connection[Any]) -> bool:
    """Whether somebody is in a transaction of a run."""
    query = """
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'tollgate' AND xact_start IS NOT NULL"""
    return bool(connection.execute(query).fetchall()[0][0])


@contextmanager
def finished(connection: Connection[Any], victims: Victims) -> Iterator[None]:
    """Afterwards the survivors have billed what was left."""
    yield
    while due(connection):
        if any(process.poll() is not None for process in victims.running):
            raise RuntimeError("a worker ended by itself")
        time.sleep(0.2)


def kill_again_and_again(connection: Connection[Any], victims: Victims, kills: int) -> int:
    """How many died before everything was billed."""
    for number in range(kills):
        wait_until(lambda: in_the_middle(connection) or not due(connection))
        if not due(connection):
            return number
        time.sleep(victims.chance.uniform(0, MOMENT))
        victims.kill_one()
    return kills


def main(kills: int = 50, customers: int = 50_000, seed: int = 1) -> bool:
    console = Console()
    with place() as directory, postgres(directory) as url, connect(url) as connection, ExitStack() as stack:
        sign_all_up(url, customers)
        began = time.perf_counter()
        victims = Victims(url, stack, random.Random(seed))
        with finished(connection, victims):
            died = kill_again_and_again(connection, victims, kills)
            left = due(connection)
        took = time.perf_counter() - began
        wrong = [*differences(connection, customers), *audited(url)]
        records = "SELECT count(*), count(*) FILTER (WHERE ended_at IS NULL) FROM billing_runs"
        runs, interrupted = connection.execute(records).fetchall()[0]
    console.print(f"{died} deaths, the last with {left:,} of {customers:,} customers still due; {took:.0f} s")
    console.print(f"{runs} runs are recorded, {interrupted} of them interrupted")
    for difference in wrong:
        console.print(f"[red]✗[/] {difference}")
    if died < kills:
        console.print(f"[yellow]only {died} deaths: more customers would last longer[/]")
    if not wrong:
        console.print("[green]✓[/] each charge was billed once; numbers have no gap; the books are sound")
    return not wrong and died == kills


def audited(url: str) -> list[str]:
    engine = create_engine(url, connect_args={"options": "-c timezone=UTC"})
    with Session(engine) as session:
        found = [str(finding) for finding in audit(session, now=clock.now())]
    engine.dispose()
    return found[:20]


if __name__ == "__main__":
    raise SystemExit(not main(*map(int, sys.argv[1:4])))
