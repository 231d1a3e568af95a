"""`tollgate backtest PLAN --from ... --to ...`: what a plan would have billed in a past window.

A bar shows how far it is, a summary who would win and who would lose; `--csv` has every customer.
"""

from collections import deque
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from api.http.backtest_csv import money_text, write_backtest
from billing.reports.backtest import Backtest, BacktestRow, BacktestSum, BacktestSummary, backtest
from catalog.plans import Plan, get_plan

__all__ = ["run"]


def run(
    engine: Engine, plan: str, *, start: datetime, end: datetime, file: Path | None, now: datetime
) -> None:
    """Everything is read as it was at one instant; nothing is written but `file`."""
    summary = BacktestSummary()
    with Session(engine) as session, session.begin():
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        found = get_plan(session, plan, include_latest=True)
        asked = backtest(session, found, start=start, end=end, now=now)
        with _bar() as progress:
            rows = _rows(session, asked, summary, progress)
            if file is None:
                deque(rows, maxlen=0)
            else:
                with file.open("w", encoding="utf-8", newline="") as table:
                    write_backtest(table, rows, currency=found.currency)
        _show(Console(), found, summary)


def _bar() -> Progress:
    columns = (TextColumn("customers"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))


def _rows(
    session: Session, asked: Backtest, summary: BacktestSummary, progress: Progress
) -> Iterator[BacktestRow]:
    task = progress.add_task("", total=asked.customer_count)
    for part in asked.parts(session):
        for row in part.rows:
            summary.add(row)
            yield row
        progress.advance(task, part.looked_at)


def _show(console: Console, plan: Plan, summary: BacktestSummary) -> None:
    console.print(f"{plan.name} ({plan.key}, version {plan.version}), {summary.customers} customers:")
    console.print(
        f"{summary.winners} would pay less, {summary.losers} more, {summary.unchanged} the same"
        + (f", {summary.incomparable} pay in another currency" if summary.incomparable else "")
    )
    table = Table("billed in", "customers", "billed", f"would bill, {plan.currency}", "difference")
    for column in table.columns[1:]:
        column.justify = "right"
    for billed_currency, found in sorted(summary.sums.items()):
        table.add_row(*_cells(plan.currency, billed_currency, found))
    console.print(table)


def _cells(currency: str, billed_currency: str, found: BacktestSum) -> Iterator[str]:
    yield billed_currency
    yield str(found.customers)
    yield money_text(found.billed, billed_currency)
    yield money_text(found.would_bill, currency)
    yield "" if found.difference is None else money_text(found.difference, currency)
