"""Where a price does what is rarely meant: the total falls although more is used.

Of all models only volume tiers can do that: there all units cost what the last one's tier says. Every other
price adds up parts that are never negative.
"""

from collections.abc import Iterator
from decimal import Decimal
from itertools import count, pairwise

from catalog.issues import advice
from catalog.price import Price, PriceTier, TieredPrice
from metering.errors import Issue
from metering.exact import EXACT, plain

__all__ = ["advise_on_price"]

ZERO = Decimal(0)


def advise_on_price(price: Price, path: str) -> Iterator[Issue]:
    """What to think over about a price that keeps all rules; `path` is where it stands in the request."""
    if not isinstance(price, TieredPrice) or price.mode != "volume":
        return
    for i, (tier, after) in enumerate(pairwise(price.tiers), start=1):
        if (more := _more_for_less(price, tier, after)) is not None:
            worked = f"{_worked(price, tier, _end(tier))}, {_worked(price, after, more)}"
            message = f"the total falls as more is used: {worked}"
            hint = "To have it grow, take mode graduated, or give this tier a flatPrice that makes up for it."
            yield advice("price_total_falls", message, f"{path}.tiers[{i}]", hint)


def _more_for_less(price: TieredPrice, tier: PriceTier, after: PriceTier) -> Decimal | None:
    """A quantity of the next tier that costs less than all of this one, a whole unit more if that does."""
    end, whole = _end(tier), _total(price, tier, _end(tier))
    if _total(price, after, end) >= whole:
        return None  # not even the very least of more costs less
    for places in count():
        more = EXACT.add(end, Decimal(1).scaleb(-places))
        reached = after.up_to_amount is None or more <= after.up_to_amount
        if reached and _total(price, after, more) < whole:
            return more
    raise AssertionError  # pragma: no cover  count() has no end


def _end(tier: PriceTier) -> Decimal:
    return tier.up_to_amount if tier.up_to_amount is not None else ZERO


def _total(price: TieredPrice, tier: PriceTier, quantity: Decimal) -> Decimal:
    """What so much costs if it is in this tier."""
    flat = tier.flat_price.amount if tier.flat_price else ZERO
    unit = tier.unit_price.amount if tier.unit_price else ZERO
    total = EXACT.add(flat, EXACT.multiply(unit, quantity))
    least, most = price.minimum_amount, price.maximum_amount
    total = total if least is None else max(total, least)
    return total if most is None else min(total, most)


def _worked(price: TieredPrice, tier: PriceTier, quantity: Decimal) -> str:
    amount = EXACT.normalize(_total(price, tier, quantity))
    return f"{plain(EXACT.normalize(quantity))} units cost {plain(amount)}"
