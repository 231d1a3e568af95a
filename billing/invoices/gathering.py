"""The gathering invoice: what a customer would be billed, computed whenever somebody asks, never stored.

Live usage goes through the one rater over the contract's timeline, so the preview and the invoice that will
be issued can't disagree.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select, union
from sqlalchemy.orm import Session
from ulid import ULID

from billing.contracts.customer import Address, Customer, customers_by_id
from billing.contracts.pending import PendingLine
from billing.contracts.subscriptions import Subscription
from billing.invoices.due import Earlier, Payer, due_of, earlier_of, payers_of
from billing.invoices.invoice_tax import Rates, country_of, taxation_of, taxed_amounts, with_taxes
from billing.profiles.profile import BillingProfile
from billing.rating.billable import DueLine
from billing.rating.rater import Totals, add_totals
from billing.taxes.tax import LineTax, TaxedAmount, resolve, taxes_of
from billing.taxes.tax_rates import rates_in
from catalog.money import currencies
from metering.ids import is_ulid

__all__ = [
    "GatheringInvoice",
    "customer_of_gathering",
    "gathering_customers",
    "gathering_id",
    "gathering_invoices",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheringInvoice:
    """All that one customer has yet to pay: in one currency, which the first priced subscription settles.

    `taxes` are those of each line, as the invoice would have them.
    """

    customer: Customer
    profile: BillingProfile
    currency: str
    since: datetime
    lines: tuple[DueLine, ...]
    taxes: tuple[tuple[LineTax, ...], ...]

    @property
    def totals(self) -> Totals:
        taxed = zip(self.lines, self.taxes, strict=True)
        return add_totals(with_taxes(line.totals, taxes) for line, taxes in taxed)


def gathering_id(customer_id: str, currency: str) -> str:
    """The id of the gathering invoice: the customer's, with the currency folded into its random part."""
    folded = ULID.from_str(customer_id).bytes
    mask = hashlib.blake2b(f"gathering/{currency}".encode(), digest_size=10).digest()
    return str(ULID(folded[:6] + bytes(a ^ b for a, b in zip(folded[6:], mask, strict=True))))


def customer_of_gathering(session: Session, invoice_id: str) -> Customer | None:
    """Whose gathering invoice has this id."""
    if not is_ulid(invoice_id):
        return None
    ids = {gathering_id(invoice_id, currency): currency for currency in currencies()}
    found = customers_by_id(session, ids).values()
    return next((one for one in found if one.currency in (None, ids[one.id])), None)


def gathering_customers(
    session: Session, *, customer_ids: Sequence[str], at: datetime, offset: int, limit: int
) -> tuple[list[Customer], int]:
    """One page of the customers who have a gathering invoice at `at`, by id, and how many there are."""
    begun = select(Subscription.customer_id).where(Subscription.active_from <= at)
    waiting = select(PendingLine.customer_id).where(
        PendingLine.next_billing_at.is_not(None), PendingLine.deleted_at.is_(None)
    )
    if customer_ids:
        begun = begun.where(Subscription.customer_id.in_(customer_ids))
        waiting = waiting.where(PendingLine.customer_id.in_(customer_ids))
    either = union(begun, waiting).subquery()
    counted = select(either.c.customer_id, func.count().over()).order_by(either.c.customer_id)
    page = session.execute(counted.offset(offset).limit(limit)).all()
    if not page and offset:
        return [], session.scalar(select(func.count()).select_from(either)) or 0
    found = customers_by_id(session, [customer_id for customer_id, _ in page])
    return [found[customer_id] for customer_id, _ in page], page[0][1] if page else 0


def gathering_invoices(
    session: Session, customers: Iterable[Customer], *, at: datetime, usage_until: datetime | None = None
) -> list[GatheringInvoice]:
    """What each customer would pay for all that has begun by `at` and is on no invoice yet, by id.

    None without a subscription by then or a line that waits. A period that is still open is priced as if it
    ended now: with all of its minimum spend. Usage counts up to `usage_until`; None counts all that is known
    of each period, events that a fast clock dated ahead included.
    """
    payers = [
        payer for payer in payers_of(session, list(customers), {}, at) if _signed(payer) or _waiting(payer)
    ]
    earlier = earlier_of(session, payers)
    due = due_of(session, payers, earlier, reach="begun", usage_until=usage_until)
    rates = rates_in(session, {country for payer in payers if (country := _country(payer))})
    payers.sort(key=lambda payer: payer.customer.id)
    return [_invoice(payer, list(_taxed(payer, due[payer.customer.id], earlier, rates))) for payer in payers]


def _signed(payer: Payer) -> list[Subscription]:
    return [signed for signed in payer.subscriptions if signed.active_from <= payer.at]


def _waiting(payer: Payer) -> list[PendingLine]:
    """Lines added by hand that are on no invoice yet."""
    return [line for line in payer.pending if line.next_billing_at is not None]


def _country(payer: Payer) -> str:
    """In which it may be taxed."""
    address = payer.customer.billing_address
    return country_of(address) if address and payer.profile.workflow.tax.enabled else ""


def _taxed(
    payer: Payer, lines: Iterable[DueLine], earlier: Earlier, rates: Rates
) -> Iterator[tuple[DueLine, tuple[LineTax, ...]]]:
    """Each after the lines of its charge that were billed before, and those that come before it here."""
    workflow, address = payer.profile.workflow, payer.customer.billing_address or Address()
    before: dict[str, list[TaxedAmount]] = {}
    for line in lines:
        one, amount = line.billable, line.totals.total
        counted = (line for line in earlier.get(one.identity, ()) if line.released_at is None)
        charge = before.setdefault(one.identity, taxed_amounts(counted))
        config = resolve(one.rate_card.tax_config, workflow.invoicing.default_tax_config)
        found = taxation_of(rates, config, address=address, at=line.invoice_at)
        taxation = found if workflow.tax.enabled else None
        taxes = taxes_of(amount, taxation, earlier=charge, currency=one.currency)
        charge.append(TaxedAmount(amount=amount, taxes=taxes))
        yield line, taxes


def _invoice(payer: Payer, taxed: Sequence[tuple[DueLine, tuple[LineTax, ...]]]) -> GatheringInvoice:
    shown = [(line, taxes) for line, taxes in taxed if not line.waived]
    sources: list[Subscription | PendingLine] = [*_signed(payer), *_waiting(payer)]
    return GatheringInvoice(
        customer=payer.customer,
        profile=payer.profile,
        currency=payer.customer.currency or sources[-1].currency,
        since=sources[0].created_at,
        lines=tuple(line for line, _ in shown),
        taxes=tuple(taxes for _, taxes in shown),
    )
