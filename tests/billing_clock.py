"""Walks billing through time, and writes down what was invoiced, so that a test reads like a ledger."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from billing.invoices.invoice import Invoice
from billing.proof.audit import Finding, audit
from billing.runs.run import due_at, run_portion
from catalog.money import minor_digits
from metering.correction import EventIdentity, Selection
from metering.corrections import create_correction
from metering.cubes.folding import maintain
from metering.event import Event
from tests.test_usage import driver

__all__ = ["bill_until", "fold", "invoices_of", "ledger", "void_event", "wrong"]


def bill_until(
    session: Session, until: datetime, *, since: datetime | None = None, folding: bool = False
) -> None:
    """Everything that falls due on the way, in order, each at its own instant; `since` it is already.

    `folding`: each time the worker has been there just before.
    """
    while (at := due_at(session)) is not None and at <= until:
        now = max(at, since or at)
        if folding:
            fold(session, now)
        outcome = run_portion(session, now=now)
        assert outcome.failed == {}
        assert outcome.customers, "something is due, and nobody for whom it is"


def fold(session: Session, now: datetime) -> None:
    """What was stored so far goes into the cubes."""
    while maintain(driver(session.connection()), now=now):
        pass


def void_event(session: Session, event: Event, now: datetime) -> str:
    """By a correction, whose id it returns."""
    selection = Selection(events=(EventIdentity(source=event.source, id=event.id),))
    return create_correction(
        session, kind="void", selection=selection, reason="a test", close=True, by="test", now=now
    ).id


def invoices_of(session: Session) -> Sequence[Invoice]:
    session.expire_all()
    query = select(Invoice).options(selectinload(Invoice.lines)).where(Invoice.deleted_at.is_(None))
    return session.scalars(query.order_by(Invoice.id)).all()


def ledger(session: Session) -> list[str]:
    """Each invoice with its day and total, and its lines below it:

    2026-02-01 paid 25.00: seat 01-01..02-01 20.00, tokens 01-01..02-01 5.00
    """
    return [
        f"{invoice.created_at:%Y-%m-%d} {invoice.status} {_money(invoice.totals.total, invoice.currency)}: "
        + ", ".join(
            f"{line.name} {line.period_start:%m-%d}..{line.period_end:%m-%d}"
            f" {_money(line.totals.total, invoice.currency)}"
            for line in sorted(invoice.lines, key=lambda line: line.position)
        )
        for invoice in invoices_of(session)
    ]


def _money(amount: Decimal, currency: str) -> str:
    return f"{amount:.{minor_digits(currency)}f}"


def wrong(session: Session, now: datetime) -> list[Finding]:
    """What the auditor objects to; and so every invoice comes out again when it is replayed."""
    return [finding for finding in audit(session, now=now) if finding.severity == "error"]
