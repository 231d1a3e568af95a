"""`tollgate audit` and `tollgate invoice replay`: what proves the bills, for people and for machines."""

import json
from dataclasses import asdict
from datetime import datetime
from typing import Self

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from api import clock
from billing.proof.audit import Finding, audit
from billing.proof.replay import InvoiceReplay, LineReplay, replay_invoice
from billing.runs.test_clock import stored_clock
from metering.exact import plain

__all__ = ["replay", "run"]


def run(engine: Engine, *, since: datetime | None, as_json: bool) -> bool:
    """Whether nothing is wrong; everything is read as it was at one instant, and nothing is written."""
    with Session(engine) as session, session.begin(), _Bars() as tell:
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        now = stored_clock(session) or clock.now()
        found = audit(session, now=now, since=since, tell=tell)
    typer.echo(json.dumps([asdict(finding) for finding in found], indent=2) if as_json else _told(found))
    return all(finding.severity != "error" for finding in found)


class _Bars:
    """A bar for each step, on standard error."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description:10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, step: str, done: int, total: int) -> None:
        if step not in self._tasks:
            self._tasks[step] = self._progress.add_task(step, total=total)
        self._progress.update(self._tasks[step], completed=done)


def _told(found: list[Finding]) -> str:
    if not found:
        return "Everything that was billed is right."
    lines = [f"{finding.severity:5} {finding.code}: {finding.message}{_ids(finding)}" for finding in found]
    errors = sum(finding.severity == "error" for finding in found)
    return "\n".join([*lines, f"{errors} errors, {len(found) - errors} to know."])


def _ids(finding: Finding) -> str:
    return f" ({', '.join(f'{name} {id_}' for name, id_ in finding.ids.items())})" if finding.ids else ""


def replay(engine: Engine, id_or_number: str) -> bool:
    """Whether the invoice is identical to the last digit; prints each line."""
    with Session(engine) as session, session.begin():
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        found = replay_invoice(session, id_or_number)
    typer.echo("\n".join(_replayed(found)))
    return found.identical


def _replayed(found: InvoiceReplay) -> list[str]:
    lines = [said for line in found.lines for said in _line(line, found.currency)]
    own = [f"  {one.what}: stored {one.stored}, computed {one.replayed}" for one in found.differences]
    verdict = "identical to the last digit" if found.identical else "NOT what comes out when computed again"
    return [*lines, *own, f"{found.number}, {plain(found.total)} {found.currency}: {verdict}."]


def _line(line: LineReplay, currency: str) -> list[str]:
    mark = "same" if line.identical else "DIFFERENT"
    differences = [f"  {one.what}: stored {one.stored}, computed {one.replayed}" for one in line.differences]
    return [
        f"{mark:9} {line.name} {plain(line.total)} {currency} ({line.identity}, {line.sequence})",
        *differences,
    ]
