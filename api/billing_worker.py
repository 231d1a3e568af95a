"""The billing run as the worker makes it: every minute or so all that has fallen due, portion by portion.

Each portion is a transaction, with its part of the run's record. Several workers may run at the same time:
each takes customers whom nobody else works for. A stop waits for the present portion.
"""

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime

import structlog
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from api import clock
from api.database import open_database
from billing.runs.records import end_run, record
from billing.runs.run import PORTION, Outcome, run_portion
from billing.runs.test_clock import step

__all__ = ["Sessions", "advanced", "billed", "billing", "would_be_billed"]

Sessions = sessionmaker[Session]

log = structlog.get_logger()


@contextmanager
def billing(engine: Engine, *, every: int) -> Iterator[None]:
    """Bills in a thread of its own, now and every so many seconds, until the block ends."""
    own = open_database(engine.url, connections=1)
    stopping = threading.Event()
    scheduler = BackgroundScheduler(timezone=UTC)
    scheduler.add_job(
        lambda: _bill(sessionmaker(own), stopping),
        "interval",
        seconds=every,
        next_run_time=clock.now(),
        max_instances=1,
        coalesce=True,
        misfire_grace_time=None,  # however late: after a long run comes one, not all that it held up
    )
    scheduler.start()
    try:
        yield
    finally:
        stopping.set()
        scheduler.shutdown()
        own.dispose()


def _bill(sessions: Sessions, stopping: threading.Event) -> None:
    """Whatever happens, the next run comes: what was not committed is found again."""
    try:
        with closing(billed(sessions)) as outcomes:
            for outcome in outcomes:
                _tell(outcome)
                if stopping.is_set():
                    return
    except OperationalError as error:
        log.warning("billing_interrupted", error=str(error.orig).partition("\n")[0])
    except Exception:
        log.exception("billing_failed")


def _tell(outcome: Outcome) -> None:
    log.info(
        "billed",
        customers=outcome.customers,
        created=outcome.created,
        issued=outcome.issued,
        paid=outcome.paid,
        failed=len(outcome.failed),
        amounts={currency: str(amount) for currency, amount in outcome.amounts.items()},
    )


def billed(
    sessions: Sessions, *, now: datetime | None = None, limit: int | None = None
) -> Generator[Outcome]:
    """Bill all that is due by `now` and that nobody else works on; yields each portion once it is committed.

    Without `now` each portion is billed by its own present: a run may take long, and usage is read as it is.
    `limit`: at most so many customers.
    """
    failed: set[str] = set()
    with _recorded(sessions) as noted:
        while limit is None or limit > 0:
            at = now or clock.now()
            with sessions.begin() as session:
                outcome = run_portion(session, now=at, skip=failed, limit=min(limit or PORTION, PORTION))
                noted(session, outcome, at)
            if not outcome.customers:
                return
            failed |= outcome.failed.keys()
            limit = None if limit is None else limit - outcome.customers
            yield outcome


def would_be_billed(sessions: Sessions, *, now: datetime, limit: int | None = None) -> Generator[Outcome]:
    """The same, and nothing stays: each portion is rolled back."""
    seen: set[str] = set()
    while limit is None or limit > 0:
        with sessions() as session:
            outcome = run_portion(session, now=now, skip=seen, limit=min(limit or PORTION, PORTION))
            session.rollback()
        if not outcome.customers:
            return
        seen |= {*outcome.customer_ids}
        limit = None if limit is None else limit - outcome.customers
        yield outcome


def advanced(sessions: Sessions, *, to: datetime) -> Generator[tuple[datetime, Outcome]]:
    """Advance the test clock and bill what falls due on the way, each thing at its own instant."""
    failed: set[str] = set()
    with _recorded(sessions) as noted:
        while True:
            with sessions.begin() as session:
                now, outcome = step(session, to=to, skip=failed)
                if outcome is not None:
                    noted(session, outcome, now)
            if outcome is None:
                return
            failed |= outcome.failed.keys()
            yield now, outcome


@contextmanager
def _recorded(sessions: Sessions) -> Iterator[Callable[[Session, Outcome, datetime], None]]:
    """Gives what notes a portion in the run's record; one that finds nothing to do leaves no record."""
    run_id: str | None = None
    began = clock.now()

    def note(session: Session, outcome: Outcome, now: datetime) -> None:
        nonlocal run_id
        if outcome.customers:
            run_id = record(session, run_id, outcome, now=now, started_at=began)

    try:
        yield note
    finally:
        if run_id is not None:
            with sessions.begin() as session:
                end_run(session, run_id, ended_at=clock.now())
