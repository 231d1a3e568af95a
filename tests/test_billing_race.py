"""Clients change the same few customers at once while others bill them: no charge twice, none left out."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from api import clock
from api.billing_worker import billed
from api.database import open_database
from billing.runs.run import due_customers
from tests.billing_clock import wrong
from tests.billing_race import Race, World, a_world, bill_the_rest, end_all
from tests.billing_race_checks import inconsistencies, wrong_sums
from tests.server import Server, until

WORKERS, CLIENTS, CUSTOMERS, CHANGES = 2, 4, 4, 40


@contextmanager
def workers(engine: Engine) -> Iterator[None]:
    """They bill in threads of their own, as `tollgate worker` does, until the block ends."""
    stopping = threading.Event()
    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(bill, engine, stopping) for _ in range(WORKERS)]
        try:
            yield
        finally:
            stopping.set()
    for future in futures:
        future.result()


def bill(engine: Engine, stopping: threading.Event) -> None:
    own = open_database(engine.url, connections=1)
    while not stopping.wait(0.05):
        for outcome in billed(sessionmaker(own), now=clock.now()):
            assert outcome.failed == {}
    own.dispose()


def is_settled(engine: Engine) -> bool:
    with Session(engine) as session:
        return not due_customers(session, now=clock.now())


def ended(race: Race, world: World, engine: Engine) -> list[str]:
    """What did not work, once no contract goes on and all is billed."""
    with race.server.client() as http:
        refused = end_all(http, world)
    until(partial(is_settled, engine))
    with Session(engine) as session, session.begin():
        bill_the_rest(session, clock.now())
    until(partial(is_settled, engine))
    return refused


def test_who_changes_and_who_bills_the_same_customers_at_once_bill_each_charge_once(
    server: Server, shared_engine: Engine
) -> None:
    with Session(shared_engine) as session, session.begin():
        world = a_world(session, now=clock.now(), days=20, customers=CUSTOMERS)
    race = Race(server, world, clock.now, CHANGES)
    with workers(shared_engine):
        race.run(clients=CLIENTS, seed=1)
        assert race.changes.total() >= CHANGES
        assert race.wrong == []
        assert ended(race, world, shared_engine) == []
    with Session(shared_engine) as session:
        assert inconsistencies(session) == []
        assert list(wrong_sums(session, world)) == []
        assert wrong(session, clock.now()) == []
