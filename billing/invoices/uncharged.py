"""What counts as billed and yet was not charged: what was given up, and what was given back by hand."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from decimal import Decimal

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from billing.invoices.invoice import Invoice, InvoiceLine
from metering.database import among
from metering.exact import total

__all__ = ["credits_by_hand", "given_up_among", "may_be_waived", "uncharged_among"]


def may_be_waived(amount: Decimal, *, metered: bool) -> bool:
    """Usage that is charged is charged, whatever was given up before."""
    return amount < 0 or (amount > 0 and not metered)


Uncharged = Callable[[Sequence[InvoiceLine]], tuple[list[InvoiceLine], Decimal]]
"""Of the lines of a charge those that were given up, and how much was given back of the others by hand."""


def uncharged_among(session: Session, charged: Collection[Sequence[InvoiceLine]]) -> Uncharged:
    """For some charges, by two statements, however many there are."""
    lines = [line for one in charged for line in one if line.released_at is None]
    given_up = given_up_among(session, {line.invoice_id for line in lines})
    credits_ = credits_by_hand(session, [line.id for line in lines if line.invoice_id not in given_up])
    credited = {id_: -total(one.amount for one in some) for id_, some in credits_.items()}

    def uncharged(lines: Sequence[InvoiceLine]) -> tuple[list[InvoiceLine], Decimal]:
        gone = [line for line in lines if line.released_at is None and line.invoice_id in given_up]
        return gone, total(credited.get(line.id, Decimal(0)) for line in lines)

    return uncharged


def given_up_among(session: Session, invoice_ids: Collection[str]) -> set[str]:
    """Those that were deleted as drafts, or voided for good."""
    if not invoice_ids:
        return set()
    gone = or_(Invoice.deleted_at.is_not(None), Invoice.voided_at.is_not(None))
    return set(session.scalars(select(Invoice.id).where(Invoice.id.in_(invoice_ids), gone)))


def credits_by_hand(session: Session, line_ids: Iterable[str]) -> Mapping[str, Sequence[InvoiceLine]]:
    """The lines of credit notes that count, by the line they give back of, in their order."""
    if not (ids := list(line_ids)):
        return {}
    found: dict[str, list[InvoiceLine]] = {}
    for line in session.scalars(_CREDITS, {"ids": ids}):
        found.setdefault(str(line.credited_line_id), []).append(line)
    return found


_CREDITS = (
    select(InvoiceLine)
    .join(Invoice, Invoice.id == InvoiceLine.invoice_id)
    .where(among(InvoiceLine.credited_line_id, "ids"))
    .where(Invoice.deleted_at.is_(None), Invoice.voided_at.is_(None))
    .order_by(InvoiceLine.created_at, InvoiceLine.id)
)
