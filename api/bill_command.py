"""`tollgate bill run`: bill all that has fallen due, by hand; or show what would be billed.

The same portions that the worker bills by itself, so both may run at once. Ctrl-C ends after the present one.
"""

import signal
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy import Engine
from sqlalchemy.orm import sessionmaker

from api import clock
from api.billing_worker import billed, would_be_billed
from api.http.backtest_csv import money_text
from billing.runs.run import Billed, Outcome, due_customers
from billing.runs.test_clock import stored_clock
from metering.errors import InvalidError

__all__ = ["run"]


@dataclass(slots=True)
class _Summary:
    """Of invoices, how many and their totals, by currency and state; and who could not be billed."""

    customers: int = 0
    sums: dict[tuple[str, str], tuple[int, Decimal]] = field(
        default_factory=lambda: defaultdict(lambda: (0, Decimal(0)))
    )
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        self.customers += outcome.customers
        self.failed |= outcome.failed
        for one in outcome.invoices.values():
            count, total = self.sums[one.currency, one.status]
            self.sums[one.currency, one.status] = count + 1, total + one.total


def run(engine: Engine, *, now: datetime | None, dry_run: bool, limit: int | None) -> bool:
    """Bill what is due by `now`, which is the present unless it is given; whether all could be billed."""
    sessions = sessionmaker(engine)
    with sessions.begin() as session:
        present = stored_clock(session) or clock.now()
        now = now or present
        _check(now, present, dry_run=dry_run)
        due = due_customers(session, now=now)
    portions = would_be_billed if dry_run else billed
    console, summary, shown = Console(), _Summary(), list[Billed]()
    outcomes = portions(sessions, now=now, limit=limit)
    with _bar(min(due, limit or due)) as progress, _stopping() as asked, closing(outcomes):
        for outcome in _until(asked, outcomes):
            summary.add(outcome)
            progress.advance(progress.task_ids[0], outcome.customers)
            shown += outcome.invoices.values() if dry_run else ()
    _list(console, shown)
    _show(console, summary, now, dry_run=dry_run)
    if asked:
        console.print("Stopped; what is left is billed by the next run.")
    return not summary.failed


def _check(now: datetime, present: datetime, *, dry_run: bool) -> None:
    if now > present and not dry_run:
        raise InvalidError(
            f"{now:%Y-%m-%dT%H:%M:%SZ} is in the future: to bill what is not yet used would be wrong;"
            " --dry-run shows what would be billed by then"
        )


def _bar(total: int) -> Progress:
    columns = (TextColumn("customers"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=Console(stderr=True))
    progress.add_task("", total=total)
    return progress


@contextmanager
def _stopping() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM are written down, so that a portion is never left in the middle."""
    asked: list[int] = []

    def note(kind: int, _: FrameType | None) -> None:
        asked.append(kind)

    former = {kind: signal.signal(kind, note) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for kind, handler in former.items():
            signal.signal(kind, handler)


def _until(asked: list[int], outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    for outcome in outcomes:
        yield outcome
        if asked:
            return


# -- What is shown -------------------------------------------------------------------------------------------


def _list(console: Console, invoices: Iterable[Billed]) -> None:
    """A line for each invoice that would be made or moved."""
    for one in sorted(invoices, key=lambda one: (one.customer, one.customer_id, one.id)):
        what = "an invoice of before" if one.lines is None else f"lines: {one.lines}"
        line = f"{one.customer} ({one.customer_id}): {money_text(one.total, one.currency)} {one.currency}"
        console.print(f"{line}, {what}, {one.status}", markup=False, highlight=False, soft_wrap=True)


def _show(console: Console, summary: _Summary, now: datetime, *, dry_run: bool) -> None:
    until = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    done = "Would bill" if dry_run else "Billed"
    console.print(f"{done} what was due by {until}: {summary.customers} customers.")
    if summary.sums:
        console.print(_table(summary))
    for customer_id, reason in sorted(summary.failed.items()):
        console.print(f"not billed: {customer_id}: {reason}", markup=False, highlight=False, soft_wrap=True)


def _table(summary: _Summary) -> Table:
    table = Table("currency", "state", "invoices", "total")
    for column in table.columns[2:]:
        column.justify = "right"
    for (currency, status), (count, total) in sorted(summary.sums.items()):
        table.add_row(currency, status, str(count), money_text(total, currency))
    return table
