"""What may be given up: never so much that more was given back for a charge than was charged for it.

Of a charge count the lines that were neither released nor given up, less what was given back of them by hand.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal

from sqlalchemy.orm import Session

from billing.invoices.invoice import InvoiceLine, lines_by_identity
from billing.invoices.uncharged import credits_by_hand, given_up_among
from metering.errors import InvalidError, Issue
from metering.exact import plain, total

__all__ = ["require_charged"]


def require_charged(
    session: Session, lines: Sequence[InvoiceLine], fields: Mapping[str, str], *, hint: str
) -> None:
    """None of `lines` is to count any more; `fields` says, by its id, where somebody asked to give one up.

    Raises InvalidError where the other lines of its charge would come to less than nothing.
    """
    given_up = [line for line in lines if line.id in fields and line.totals.total > 0]
    left = _left(session, given_up, without={line.id for line in lines})
    issues = [
        Issue(
            code="invoice_line_given_back",
            message=f"for {line.name!r} {plain(-excess)} more would be given back than was charged",
            field=fields[line.id],
            hint=hint,
        )
        for line in given_up
        if (excess := left[line.identity]) < 0
    ]
    if issues:
        raise InvalidError(issues[0].message, *issues)


def _left(session: Session, lines: Iterable[InvoiceLine], *, without: Collection[str]) -> dict[str, Decimal]:
    """What is charged for each of their charges, by identity, without some lines, by id."""
    charges = lines_by_identity(session, {line.identity for line in lines})
    given_up = given_up_among(session, {line.invoice_id for some in charges.values() for line in some})
    counted = [
        line
        for some in charges.values()
        for line in some
        if line.id not in without and line.released_at is None and line.invoice_id not in given_up
    ]
    credits_ = credits_by_hand(session, [line.id for line in counted])
    left = dict.fromkeys(charges, Decimal(0))
    for line in counted:
        amounts = [one.totals.total for one in (line, *credits_.get(line.id, ()))]
        left[line.identity] = total([left[line.identity], *amounts])
    return left
