"""Replay: an issued invoice computed again from nothing but what is stored with its lines.

Pinned are the terms, the usage, and the lines before it; neither the contract nor an event is looked at. So
it says, to the last digit, whether the invoice still is what was once computed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from fractions import Fraction

from sqlalchemy import or_, select
from sqlalchemy.orm import Session, selectinload

from billing.invoices.due import billable_of
from billing.invoices.invoice import Invoice, InvoiceLine, InvoiceNotFoundError, lines_by_identity
from billing.invoices.invoice_tax import taxed_amounts
from billing.rating.billable import usage_from
from billing.rating.pricing import NOTHING
from billing.rating.rater import DetailedLine, Rating, Totals, add_totals, difference, settle, totals_of
from billing.taxes.tax import LineTax, taxes_of
from metering.errors import InvalidError, Issue
from metering.exact import plain, total

__all__ = [
    "Difference",
    "InvoiceReplay",
    "LineReplay",
    "NotIssuedError",
    "counted_before",
    "find_invoice",
    "replay",
    "replay_invoice",
    "replay_line",
]


class NotIssuedError(InvalidError):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """`what` was stored, and what comes out now."""

    what: str
    stored: str
    replayed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LineReplay:
    line_id: str
    name: str
    identity: str
    sequence: int
    total: Decimal
    differences: tuple[Difference, ...]

    @property
    def identical(self) -> bool:
        return not self.differences


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceReplay:
    """`differences` are those of the invoice itself; each line has its own."""

    invoice_id: str
    number: str
    currency: str
    total: Decimal
    lines: tuple[LineReplay, ...]
    differences: tuple[Difference, ...]

    @property
    def identical(self) -> bool:
        return not self.differences and all(line.identical for line in self.lines)


def find_invoice(session: Session, id_or_number: str) -> Invoice:
    """With its lines."""
    query = select(Invoice).options(selectinload(Invoice.lines))
    query = query.where(or_(Invoice.id == id_or_number, Invoice.number == id_or_number))
    if found := session.scalar(query):
        return found
    raise InvoiceNotFoundError(f"no invoice has the id or the number {id_or_number!r}")


def replay_invoice(session: Session, id_or_number: str) -> InvoiceReplay:
    """Raises NotIssuedError of a draft: that may still change."""
    invoice = find_invoice(session, id_or_number)
    if invoice.issued_at is None:
        message = f"invoice {invoice.number} is not issued yet"
        issue = Issue(code="invoice_not_issued", message=message, hint="A draft changes as usage comes in.")
        raise NotIssuedError(message, issue)
    return replay(invoice, lines_by_identity(session, {line.identity for line in invoice.lines}))


def replay(invoice: Invoice, by_identity: Mapping[str, Sequence[InvoiceLine]]) -> InvoiceReplay:
    """`by_identity`: all lines of each charge that the invoice bills, in their order."""
    lines = sorted(invoice.lines, key=lambda line: line.position)
    return InvoiceReplay(
        invoice_id=invoice.id,
        number=invoice.number,
        currency=invoice.currency,
        total=invoice.totals.total,
        lines=tuple(replay_line(invoice, line, by_identity[line.identity]) for line in lines),
        differences=tuple(_differing(invoice.totals, add_totals(line.totals for line in lines))),
    )


def replay_line(invoice: Invoice, line: InvoiceLine, siblings: Sequence[InvoiceLine]) -> LineReplay:
    """`siblings`: the lines of its charge, itself among them."""
    before = counted_before(line, siblings)
    again = _rated(invoice, line, before)
    differences = [*_line_differences(line, again), *_tax_differences(invoice, line, again, before)]
    return LineReplay(
        line_id=line.id,
        name=line.name,
        identity=line.identity,
        sequence=line.sequence,
        total=line.totals.total,
        differences=tuple(differences),
    )


def counted_before(line: InvoiceLine, siblings: Iterable[InvoiceLine]) -> Sequence[InvoiceLine]:
    """The lines that this one was the difference to: earlier ones that were not yet released."""
    return [
        one
        for one in siblings
        if one.sequence < line.sequence and not _released_by(one.released_at, line.rated_at)
    ]


def _released_by(released_at: datetime | None, at: datetime) -> bool:
    return released_at is not None and released_at <= at


def _rated(invoice: Invoice, line: InvoiceLine, before: Sequence[InvoiceLine]) -> Rating:
    """A share of nought says that the charge was none any more, and all of it was given back."""
    billed = [detail for one in before for detail in one.details]
    if not Fraction(line.share):
        return Rating(details=difference((), billed))
    return settle(
        billable_of(line, invoice.currency).terms,
        usage_from(line.usage),
        before=usage_from(before[-1].usage) if before else NOTHING,
        billed=billed,
        last=line.last or any(one.last for one in before),
    )


# -- What differs --------------------------------------------------------------------------------------------


def _line_differences(line: InvoiceLine, again: Rating) -> Iterator[Difference]:
    for what in ("quantity", "quantity_before", "usage_discount", "usage_discount_before"):
        yield from _unequal(what, getattr(line, what), getattr(again, what))
    yield from _differing_details(line.details, again.details)
    yield from _differing(_untaxed(line.totals), totals_of(again.details))


def _tax_differences(
    invoice: Invoice, line: InvoiceLine, again: Rating, before: Sequence[InvoiceLine]
) -> Iterator[Difference]:
    """The rates are those that the line names. A credit by hand has the taxes of what it gives back."""
    if line.credited_line_id is None:
        amount, earlier = again.totals.total, taxed_amounts(before)
        named = [*(tax.taxation for tax in line.taxes), None]
        found = [taxes_of(amount, one, earlier=earlier, currency=invoice.currency) for one in named]
        if line.taxes not in found:
            yield Difference(what="taxes", stored=_taxes(line.taxes), replayed=_taxes(found[0]))
    for behavior, stored in (("inclusive", line.taxes_inclusive), ("exclusive", line.taxes_exclusive)):
        summed = total(tax.amount for tax in line.taxes if tax.behavior == behavior)
        yield from _unequal(f"{behavior} taxes", stored, summed)


def _taxes(taxes: Iterable[LineTax]) -> str:
    """In words: `1.90 (19 % of 10)`."""
    said = (f"{plain(tax.amount)} ({plain(tax.percent)} % of {plain(tax.base)})" for tax in taxes)
    return ", ".join(said) or "none"


def _differing_details(stored: Sequence[DetailedLine], again: Sequence[DetailedLine]) -> Iterator[Difference]:
    if len(stored) != len(again):
        yield from _unequal("number of detailed lines", Decimal(len(stored)), Decimal(len(again)))
    for one, other in zip(stored, again, strict=False):
        if one != other:
            yield Difference(what=f"detailed line {one.reference}", stored=_said(one), replayed=_said(other))


def _said(detail: DetailedLine) -> str:
    off = "".join(f", less {plain(one.amount)} ({one.description})" for one in detail.discounts)
    return f"{detail.name}: {detail.description}{off}"


def _untaxed(totals: Totals) -> Totals:
    """What follows from the detailed lines alone."""
    return Totals(amount=totals.amount, charges=totals.charges, discounts=totals.discounts)


def _differing(stored: Totals, again: Totals) -> Iterator[Difference]:
    for one in fields(Totals):
        yield from _unequal(one.name, getattr(stored, one.name), getattr(again, one.name))


def _unequal(what: str, stored: Decimal, again: Decimal) -> Iterator[Difference]:
    if stored != again:
        yield Difference(what=what, stored=plain(stored), replayed=plain(again))
