"""Four workers bill the same few customers whom eight clients change at once: every charge is billed once.

    python -m benchmarks.billing_race [CHANGES [SEED]]

Two acts, each on a database of its own, each until so many changes were made. In the first, time is real and
the workers are `tollgate worker`; the contracts began weeks ago. In the second a test clock is advanced by
hours all the while, and four processes do what `tollgate bill run` does, again and again. The clients sign
up, change, migrate, cancel, continue, restore and edit contracts, buy add-ons, send usage, late too, void it,
invoice now, approve, change, delete, void, pay and credit invoices. At the end all contracts end, and all is
billed. Nobody may have got an answer of 500 or a refusal without a code, and PostgreSQL no deadlock; numbers
have no gap, the lines of each charge come to what one invoice over the whole would have said, the cubes equal
their events, and the auditor is content. Status 0 when all holds.
"""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import httpx
from rich.console import Console
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from api import clock
from api.billing_worker import billed
from api.database import open_database
from benchmarks.stage import ROOT, connect, place, postgres
from billing.runs.run import due_customers
from billing.runs.test_clock import stored_clock
from metering.cubes.checking import check_cubes
from tests.billing_race import Race, a_world, bill_the_rest, end_all
from tests.billing_race_checks import inconsistencies, wrong_sums
from tests.server import Server, environment_of, seeded, tollgate, until

WORKERS = 4
CLIENTS = 8
CUSTOMERS = 6
DAYS = 40
"""So long ago the first of them signed up."""
BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
"""What the test clock shows at first."""
PATIENCE = 120.0
COMPLAINTS = (
    "customer_not_billed",
    "unexpected_error",
    "work_failed",
    "billing_failed",
    "billing_interrupted",
)
"""What processes log when something went wrong that should not."""


def act(console: Console, changes: int, seed: int, *, real: bool) -> bool:
    with place() as directory, postgres(directory) as url, ExitStack() as stack:
        engine = create_engine(url, connect_args={"options": "-c timezone=UTC"})
        stack.callback(engine.dispose)
        arguments = () if real else ("--test-clock", BEGIN.isoformat())
        server = stack.enter_context(Server(arguments, {"TOLLGATE_DATABASE_URL": url}))
        with Session(engine) as session, session.begin():
            world = a_world(session, now=_now(engine), days=DAYS, customers=CUSTOMERS)
        logs = [directory / f"{n}.log" for n in range(WORKERS)]
        for log in logs:
            stack.enter_context(_worker(url, log, real=real))
        race = Race(server, world, partial(_now, engine), changes)
        began = time.perf_counter()
        with _time_flies(race, seed) if not real else ExitStack():
            race.run(clients=CLIENTS, seed=seed)
        took = time.perf_counter() - began
        wrong = [*race.wrong, *_ended(race, engine, url, real=real)]
        wrong += [line for log in logs for line in _complaints(log.read_text())]
        wrong += _complaints(server.output)
        _tell(console, race, engine, took, real=real)
    for difference in wrong[:40]:
        console.print(f"✗ {difference}", style="red", markup=False, soft_wrap=True)
    if not wrong:
        console.print("[green]✓[/] no charge was billed twice or not at all; the books are sound")
    return not wrong


def _now(engine: Engine) -> datetime:
    with Session(engine) as session:
        return stored_clock(session) or clock.now()


@contextmanager
def _worker(url: str, log: Path, *, real: bool) -> Iterator[None]:
    """It must not have ended by itself."""
    module = ("api", "worker") if real else ("benchmarks.billing_race", "--bill", url)
    environment = {"TOLLGATE_DATABASE_URL": url, "TOLLGATE_BILLING_INTERVAL": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
            cwd=ROOT,
            env=environment_of(environment),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
        if process.poll() is not None:
            raise RuntimeError(f"a worker ended:\n{log.read_text()}")
        process.terminate()
        process.wait(60)
    finally:
        process.kill()
        process.wait(60)


def bill_for_ever(url: str) -> None:
    """As `tollgate bill run` does, again and again, by the test clock."""
    engine = open_database(url, connections=1)
    while True:
        for _ in billed(sessionmaker(engine), now=_now(engine)):
            pass
        time.sleep(0.1)


@contextmanager
def _time_flies(race: Race, seed: int) -> Iterator[None]:
    """Some hours at a time; whoever advances the clock bills what falls due on the way."""
    thread = threading.Thread(target=_advance, args=(race, seed))
    thread.start()
    try:
        yield
    finally:
        race.stopping.set()
        thread.join()


def _advance(race: Race, seed: int) -> None:
    chance = seeded(seed)
    with race.server.client() as http:
        while not race.stopping.wait(0.5):
            to = race.now() + timedelta(hours=chance.uniform(1, 30))
            race.note("clock", http.post("/api/v1/test-clock/advance", json={"to": to.isoformat()}))


def _ended(race: Race, engine: Engine, url: str, *, real: bool) -> list[str]:
    """All that does not hold, once nothing goes on."""
    with race.server.client() as http:
        wrong = end_all(http, race.world)
        if not real:
            wrong += _pass(http, race, timedelta(days=4))
        until(lambda: not _due(engine), PATIENCE)
        with Session(engine) as session, session.begin():
            bill_the_rest(session, _now(engine))
        if not real:
            wrong += _pass(http, race, timedelta(days=4))
        until(lambda: not _due(engine), PATIENCE)
    with connect(url) as connection:
        until(lambda: not connection.execute("SELECT FROM pending_batches").fetchall(), PATIENCE)
        wrong += check_cubes(connection)
    with Session(engine) as session:
        wrong += [*inconsistencies(session), *wrong_sums(session, race.world)]
    audited = tollgate("audit", environment={"TOLLGATE_DATABASE_URL": url}, seconds=PATIENCE)
    found = [line for line in audited.stdout.splitlines() if line.startswith("error")]
    return wrong + (found or [audited.stderr] if audited.returncode else [])


def _pass(http: httpx.Client, race: Race, time: timedelta) -> list[str]:
    answer = http.post("/api/v1/test-clock/advance", json={"to": (race.now() + time).isoformat()})
    settled = answer.is_success and answer.json()["settled"] and not answer.json()["failures"]
    return [] if settled else [f"the clock: {answer.status_code} {answer.text}"]


def _due(engine: Engine) -> int:
    with Session(engine) as session:
        return due_customers(session, now=_now(engine))


def _complaints(output: str) -> list[str]:
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return [_complaint(line) for line in lines if line["event"] in COMPLAINTS]


def _complaint(line: Mapping[str, str]) -> str:
    told = line.get("exception") or line.get("error") or ""
    return f"{line['event']}: " + "\n".join(told.splitlines()[-12:])


def _tell(console: Console, race: Race, engine: Engine, took: float, *, real: bool) -> None:
    refused = {status: count for status, count in sorted(race.answers.items()) if status >= 400}
    with engine.connect() as connection:
        counts = connection.execute(text(_COUNTS)).mappings().one()
    console.print("[b]real time[/]" if real else "[b]test clock[/]")
    console.print(
        f"{race.changes.total():,} changes in {took:.0f} s by {CLIENTS} clients; refused: {refused}"
    )
    console.print(", ".join(f"{name} {count:,}" for name, count in counts.items()))
    console.print("changes:", dict(sorted(race.changes.items())))
    console.print("refusals:", dict(race.codes.most_common()))


_COUNTS = """
    SELECT (SELECT count(*) FROM invoices) AS invoices,
           (SELECT count(*) FROM invoices WHERE type = 'credit_note') AS "of them credit notes",
           (SELECT count(*) FROM invoices WHERE deleted_at IS NOT NULL) AS deleted,
           (SELECT count(*) FROM invoices WHERE voided_at IS NOT NULL) AS voided,
           (SELECT count(*) FROM invoice_lines) AS lines,
           (SELECT count(DISTINCT identity) FROM invoice_lines) AS charges,
           (SELECT count(*) FROM subscriptions) AS contracts,
           (SELECT count(*) FROM billing_runs) AS runs"""


def main(changes: int = 2_000, seed: int = 1) -> bool:
    console = Console()
    acts = [act(console, changes, seed, real=real) for real in (True, False)]
    return all(acts)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    if sys.argv[1:2] == ["--bill"]:
        bill_for_ever(sys.argv[2])
    raise SystemExit(not main(*map(int, sys.argv[1:3])))
