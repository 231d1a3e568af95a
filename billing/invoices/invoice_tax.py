"""Taxes on invoices: each line by where the customer is and when its charge falls due; then the totals.

A line whose tax can't be told stops the invoice where taxes are enforced, and is issued without tax, with a
warning, where they are not. Who has no tax rates at all has nothing to do with taxes, and is not warned.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Any

from sqlalchemy import and_, not_, select
from sqlalchemy.orm import Session, aliased, selectinload

from billing.contracts.customer import Address
from billing.invoices.invoice import Invoice, InvoiceLine, lines_by_identity
from billing.invoices.state import EDITABLE
from billing.rating.rater import Totals, add_totals, totals_of
from billing.taxes.tax import LineTax, Taxation, TaxedAmount, codes_of, new_of, rate_of, resolve, taxes_of
from billing.taxes.tax_rates import TaxRate, any_tax_rate, rates_in
from catalog.tax import TaxBehavior, TaxConfig
from metering.exact import total
from metering.ids import derived_id

__all__ = [
    "RATE_MISSING",
    "Rates",
    "country_of",
    "tax_and_sum_up",
    "tax_as",
    "taxation_of",
    "taxed_amounts",
    "with_taxes",
]

RATE_MISSING = "invoice_tax_rate_missing"
COMPONENT = "tollgate.tax"

Rates = Mapping[str, Sequence[TaxRate]]


def tax_and_sum_up(session: Session, invoices: Sequence[Invoice], *, now: datetime) -> None:
    """Tax what was rated, by the rates as they are now, and note what has no rate.

    A line that another is the difference to keeps its tax, as that one goes on from it. Unless it lacked a
    rate: then it is taxed, and with it the drafts that go on from it.
    """
    untaxed = _untaxed(invoices)
    invoices = [*invoices, *_drafts_after(session, untaxed, invoices)]
    rates = rates_in(session, {country for invoice in invoices if (country := _country(invoice))})
    earlier = _earlier(session, invoices)
    fixed = _gone_on_from(session, invoices) - untaxed
    missing: dict[str, list[InvoiceLine]] = {invoice.id: [] for invoice in invoices}
    every = [(invoice, line) for invoice in invoices for line in invoice.lines if line.id not in fixed]
    for invoice, line in sorted(every, key=lambda one: one[1].sequence):
        before = taxed_amounts(one for one in earlier.get(line.identity, ()) if one.sequence < line.sequence)
        taxation = _taxation(invoice, line, rates) if invoice.workflow.tax.enabled else None
        tax_as(line, taxation, before, invoice.currency)
        if taxation is None and new_of(_amount(line), before) and invoice.workflow.tax.enabled:
            missing[invoice.id].append(line)
    in_use = cache(lambda: any_tax_rate(session))
    for invoice in invoices:
        lines = missing[invoice.id]
        told = lines if lines and (invoice.workflow.tax.enforced or in_use()) else []
        _tell(invoice, told, now)
        invoice.totals = add_totals(line.totals for line in invoice.lines) if invoice.lines else Totals()


def tax_as(
    line: InvoiceLine, taxation: Taxation | None, before: Sequence[TaxedAmount], currency: str
) -> None:
    """The line's taxes and totals, from its details."""
    line.taxes = taxes_of(_amount(line), taxation, earlier=before, currency=currency)
    line.totals = with_taxes(totals_of(line.details), line.taxes)


def with_taxes(totals: Totals, taxes: Iterable[LineTax]) -> Totals:
    amounts: dict[TaxBehavior, list[Decimal]] = {"inclusive": [], "exclusive": []}
    for tax in taxes:
        amounts[tax.behavior].append(tax.amount)
    inclusive, exclusive = total(amounts["inclusive"]), total(amounts["exclusive"])
    return replace(totals, taxes_inclusive=inclusive, taxes_exclusive=exclusive)


def taxed_amounts(lines: Iterable[InvoiceLine]) -> list[TaxedAmount]:
    return [TaxedAmount(amount=_amount(line), taxes=line.taxes) for line in lines]


def _amount(line: InvoiceLine) -> Any:
    """After discounts, before tax."""
    return totals_of(line.details).total


def _earlier(session: Session, invoices: Sequence[Invoice]) -> Mapping[str, Sequence[InvoiceLine]]:
    """The lines that count of each charge that has more than one."""
    again = {line.identity for invoice in invoices for line in invoice.lines if line.sequence}
    if not again:
        return {}
    found = lines_by_identity(session, again)
    return {name: [line for line in lines if line.released_at is None] for name, lines in found.items()}


def _gone_on_from(session: Session, invoices: Sequence[Invoice]) -> set[str]:
    """Lines, by id, with a later one of their charge on another invoice, which will not be rated anew."""
    ids = [invoice.id for invoice in invoices if invoice.status not in ("draft.created", "deleted")]
    if not ids:
        return set()
    again = and_(Invoice.status.in_(EDITABLE), Invoice.quantity_snapshotted_at.is_(None))
    query = select(InvoiceLine.id).join(_LATER, _FOLLOWS).join(Invoice, Invoice.id == _LATER.invoice_id)
    here, elsewhere = InvoiceLine.invoice_id.in_(ids), _LATER.invoice_id.not_in(ids)
    return set(session.scalars(query.where(here, elsewhere, not_(again))))


_LATER = aliased(InvoiceLine)
_FOLLOWS = and_(_LATER.identity == InvoiceLine.identity, _LATER.sequence > InvoiceLine.sequence)


def _drafts_after(
    session: Session, line_ids: Collection[str], invoices: Sequence[Invoice]
) -> Sequence[Invoice]:
    """Other drafts with later lines of the same charges."""
    if not line_ids:
        return []
    after = select(_LATER.invoice_id).join(InvoiceLine, _FOLLOWS).where(InvoiceLine.id.in_(line_ids))
    query = select(Invoice).options(selectinload(Invoice.lines), selectinload(Invoice.app))
    others = Invoice.id.in_(after), Invoice.id.not_in([invoice.id for invoice in invoices])
    return session.scalars(query.where(*others, Invoice.status.in_(EDITABLE)).order_by(Invoice.id)).all()


def _untaxed(invoices: Iterable[Invoice]) -> set[str]:
    """Lines, by id, of which it was told that they have no rate."""
    told = {issue["id"] for invoice in invoices for issue in invoice.validation_issues}
    every = ((invoice, line) for invoice in invoices if invoice.validation_issues for line in invoice.lines)
    return {line.id for invoice, line in every if _issue_id(invoice, line) in told}


def _where(invoice: Invoice) -> Address:
    return invoice.customer.addresses[0] if invoice.customer.addresses else Address()


def _country(invoice: Invoice) -> str:
    return country_of(_where(invoice))


def country_of(address: Address) -> str:
    """As tax rates name it; "" for none."""
    return (address.country or "").strip().upper()


def _config(invoice: Invoice, line: InvoiceLine) -> TaxConfig:
    """A line's own configuration is that of its rate card, which is the line's."""
    return resolve(line.rate_card.tax_config, invoice.workflow.invoicing.default_tax_config)


def _taxation(invoice: Invoice, line: InvoiceLine, rates: Rates) -> Taxation | None:
    return taxation_of(rates, _config(invoice, line), address=_where(invoice), at=line.invoice_at)


def taxation_of(rates: Rates, config: TaxConfig, *, address: Address, at: datetime) -> Taxation | None:
    """How somebody there is taxed for what falls due then; None: there is no rate for it."""
    here = rates.get(country_of(address), ())
    rate = rate_of(here, config, country=address.country, state=address.state, at=at)
    if rate is None:
        return None
    behavior = config.behavior or "exclusive"
    return Taxation(percent=rate.percent, behavior=behavior, code=rate.code, config=config)


def _tell(invoice: Invoice, missing: Sequence[InvoiceLine], now: datetime) -> None:
    """What was told before keeps its id and since when it is so."""
    told = {issue["id"]: issue for issue in invoice.validation_issues}
    kept = [issue for issue in invoice.validation_issues if issue["code"] != RATE_MISSING]
    found = [_issue(invoice, line, now) for line in missing]
    for issue in found:
        issue["created_at"] = told.get(issue["id"], issue)["created_at"]
    if found or len(kept) != len(invoice.validation_issues):
        invoice.validation_issues = kept + found


def _issue(invoice: Invoice, line: InvoiceLine, now: datetime) -> dict[str, Any]:
    return {
        "id": _issue_id(invoice, line),
        "created_at": now.isoformat(),
        "updated_at": now.isoformat(),
        "severity": "critical" if invoice.workflow.tax.enforced else "warning",
        "component": COMPONENT,
        "code": RATE_MISSING,
        "field": f"$.lines[{line.position}].taxConfig",
        "message": _message(invoice, line),
    }


def _issue_id(invoice: Invoice, line: InvoiceLine) -> str:
    return derived_id(invoice.id, RATE_MISSING, line.id)


def _message(invoice: Invoice, line: InvoiceLine) -> str:
    address, codes = _where(invoice), " or ".join(codes_of(_config(invoice, line)))
    if not address.country:
        return f"{line.name!r} can't be taxed: the customer has no country"
    place = f"{address.country}, {address.state}" if address.state else address.country
    what = f"for {codes} in {place}" if codes else f"in {place}"
    return f"{line.name!r} can't be taxed: no tax rate {what} holds on {line.invoice_at:%Y-%m-%d}"
