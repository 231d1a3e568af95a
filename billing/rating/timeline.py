"""The contract as a timeline of dated items, and what falls due on it: pure values, no clock, no storage.

What a customer owes is a function of this timeline and of the usage, nothing else. Each charge has an
identity made of subscription, phase, item, version and service period; the same identity is never billed
twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from itertools import islice

from billing.rating.rater import Terms
from catalog.interval import Interval, parse_interval
from catalog.price import FlatPrice, Price
from catalog.rate_card import RateCard
from metering.errors import InvalidError, Issue
from metering.period import Period

__all__ = ["Charge", "Contract", "ContractItem", "TooManyChargesError", "charges"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractItem:
    """One rate card, sold from `start` until `end` (None: until further notice)."""

    id: str
    phase_id: str
    phase_key: str
    key: str
    version: int
    rate_card: RateCard
    feature_id: str | None
    start: datetime
    end: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    subscription_id: str
    currency: str
    billing_anchor: datetime
    billing_cadence: Interval
    prorate: bool
    items: tuple[ContractItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One item over one service period: what becomes an invoice line.

    `full_period` is the uncut recurrence that the service period lies in, `invoice_at` when it is due.
    """

    subscription_id: str
    currency: str
    item: ContractItem
    price: Price
    period: Period
    full_period: Period
    billing_period: Period
    invoice_at: datetime
    prorate: bool

    @property
    def identity(self) -> str:
        item = self.item
        start = self.period.start.astimezone(UTC).isoformat()
        return f"{self.subscription_id}/{item.phase_key}/{item.key}/v{item.version}/{start}"

    @property
    def metered(self) -> bool:
        return not isinstance(self.price, FlatPrice)

    @property
    def share(self) -> Fraction:
        """The part of a full period that a flat price is charged for; usage is never prorated."""
        if not self.prorate or self.period == self.full_period or not self.full_period.length:
            return WHOLE
        return Fraction(self.period.length // _TICK, self.full_period.length // _TICK)

    @property
    def terms(self) -> Terms:
        return Terms.of(self.item.rate_card, self.price, currency=self.currency, share=self.share)


_TICK = datetime.resolution
WHOLE = Fraction(1)
MAX_CHARGES = 200_000
"""Of ten items by the day in half a century; some seconds' work."""


class TooManyChargesError(InvalidError):
    pass


def charges(contract: Contract, *, until: datetime, since: datetime | None = None) -> list[Charge]:
    """Every charge that has begun or is due by `until`: by period, within it as the plan lists them.

    Fees in advance are due as the billing period begins that they lie in, for all of it. With `since`, only
    those whose service period began then or later. A one-time fee in arrears is due when its phase ends, and
    so is no charge while that is open. Raises TooManyChargesError beyond MAX_CHARGES of them.
    """
    every = (charge for item in contract.items for charge in _charges_of(contract, item, until, since))
    begun = (charge for charge in every if since is None or charge.period.start >= since)
    found = list(islice(begun, MAX_CHARGES + 1))
    if len(found) > MAX_CHARGES:
        message = f"the subscription {contract.subscription_id} has more than {MAX_CHARGES} charges by then"
        raise TooManyChargesError(message, Issue(code="too_many_charges", message=message, field="$.at"))
    return sorted(found, key=lambda charge: charge.period.start)


def _charges_of(
    contract: Contract, item: ContractItem, until: datetime, since: datetime | None
) -> Iterator[Charge]:
    price, cadence = item.rate_card.price, item.rate_card.billing_cadence
    if price is None or item.start > until:
        return
    if cadence is None:
        yield from _one_time(contract, item, price)
        return
    at, interval = max(item.start, since or item.start), parse_interval(cadence)
    while _is_charged(contract, price, at, until) and (item.end is None or at < item.end):
        full = interval.period_of(contract.billing_anchor, at)
        yield _charge(contract, item, price, _while_sold(item, full), full)
        at = full.end


def _is_charged(contract: Contract, price: Price, start: datetime, until: datetime) -> bool:
    if start <= until or not _in_advance(price):
        return start <= until
    return contract.billing_cadence.period_of(contract.billing_anchor, start).start <= until


def _one_time(contract: Contract, item: ContractItem, price: Price) -> Iterator[Charge]:
    if _in_advance(price):
        once = Period(start=item.start, end=item.start)
        yield _charge(contract, item, price, once, once)
    elif item.end is not None:
        whole = Period(start=item.start, end=item.end)
        yield _charge(contract, item, price, whole, whole)


def _charge(contract: Contract, item: ContractItem, price: Price, period: Period, full: Period) -> Charge:
    whole = contract.billing_cadence.period_of(contract.billing_anchor, period.start)
    billing = _while_sold(item, whole)
    return Charge(
        subscription_id=contract.subscription_id,
        currency=contract.currency,
        item=item,
        price=price,
        period=period,
        full_period=full,
        billing_period=billing,
        invoice_at=billing.start if _in_advance(price) else max(period.end, billing.end),
        prorate=contract.prorate,
    )


def _while_sold(item: ContractItem, period: Period) -> Period:
    end = period.end if item.end is None else min(period.end, item.end)
    return Period(start=max(period.start, item.start), end=end)


def _in_advance(price: Price) -> bool:
    return isinstance(price, FlatPrice) and price.payment_term == "in_advance"
