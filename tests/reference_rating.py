"""The rater once more, slowly, by somebody who has not seen the other one: fractions, and one sum per tier.

It knows the rules of docs/pricing.md and nothing of how billing/rating/ goes about them. `owed` gives, by
reference, what each part of a price comes to and what is taken off it.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from billing.rating.pricing import Group, Usage
from billing.rating.rater import Terms
from catalog.price import (
    DynamicPrice,
    FlatPrice,
    MatrixPrice,
    PackagePrice,
    PercentagePrice,
    PriceTier,
    TieredPrice,
    UnitPrice,
)
from catalog.unit_config import UnitConfig

DIGITS = {"JPY": 0, "USD": 2, "KWD": 3}


@dataclass
class Sum:
    """In order: what part, how much it costs, how much is taken off."""

    reference: str
    cost: Fraction
    off: Fraction = Fraction(0)


def cents(amount: Fraction, currency: str) -> Fraction:
    scale = 10 ** DIGITS[currency]
    half_up = math.floor(abs(amount) * scale + Fraction(1, 2))
    return Fraction(half_up if amount > 0 else -half_up, scale)


def owed(terms: Terms, usage: Usage, *, last: bool) -> dict[str, tuple[Fraction, Fraction]]:
    sums = [
        Sum(reference, cents(cost, terms.currency)) for reference, cost in costs_of(terms, usage, last=last)
    ]
    percentage = terms.discounts.percentage
    for one in sums:
        if percentage is not None:
            one.off = cents(one.cost * Fraction(percentage.percentage) / 100, terms.currency)
    if isinstance(terms.price, FlatPrice):
        return {one.reference: (one.cost, one.off) for one in sums if one.cost}
    most, least = terms.price.maximum_amount, terms.price.minimum_amount
    if most is not None:
        cap(sums, cents(Fraction(most), terms.currency))
    spent = sum((one.cost - one.off for one in sums), Fraction(0))
    if last and least is not None and spent < cents(Fraction(least), terms.currency):
        sums.append(Sum("min-spend", cents(Fraction(least), terms.currency) - spent))
    return {one.reference: (one.cost, one.off) for one in sums}


def cap(sums: list[Sum], most: Fraction) -> None:
    """Walk on from the first, keeping what still fits under the maximum."""
    whole = sum((one.cost - one.off for one in sums), Fraction(0))
    if abs(whole) <= most:
        return
    too_much = abs(whole) - most
    towards = 1 if whole > 0 else -1
    for one in sums[::-1]:
        net = (one.cost - one.off) * towards
        if net > 0:
            taken = min(net, too_much)
            one.off += taken * towards
            too_much -= taken


def costs_of(terms: Terms, usage: Usage, *, last: bool) -> list[tuple[str, Fraction]]:
    quantity = converted(Fraction(usage.quantity), terms.unit_config)
    groups = {g: converted(Fraction(q), terms.unit_config) for g, q in usage.groups.items()}
    if terms.discounts.usage is not None:
        free = Fraction(terms.discounts.usage.quantity)
        quantity = max(quantity - free, Fraction(0)) if quantity >= 0 else min(quantity + free, Fraction(0))
    match terms.price:
        case FlatPrice(amount=amount):
            return [("flat-price", cents(Fraction(amount) * terms.share, terms.currency))]
        case UnitPrice(amount=amount):
            return [("unit-price-usage", quantity * Fraction(amount))]
        case DynamicPrice(multiplier=multiplier):
            return [("usage", quantity * Fraction(multiplier))]
        case PackagePrice(amount=amount, quantity_per_package=size):
            packages = math.ceil(abs(quantity) / Fraction(size))
            return [("usage", Fraction(amount) * (packages if quantity > 0 else -packages))]
        case TieredPrice(group_by=()) as price:
            return ladder(price, quantity, last=last)
        case TieredPrice() as price:
            ordered = sorted(groups, key=lambda g: [(v is not None, v or "") for v in g])
            return [
                (reference + json.dumps(group), cost)
                for group in ordered
                for reference, cost in ladder(price, groups[group], last=last)
            ]
        case MatrixPrice() as price:
            return matrix(price, groups)
        case PercentagePrice() as price:
            return percentage_of(price, usage, terms.unit_config)


def converted(quantity: Fraction, config: UnitConfig | None) -> Fraction:
    if config is None:
        return quantity
    factor = Fraction(config.conversion_factor)
    exact = quantity * factor if config.operation == "multiply" else quantity / factor
    digits = config.precision
    if config.rounding == "none":
        if config.operation == "multiply":
            return exact
        digits = 30
    scaled = abs(exact) * 10**digits
    units = {"ceiling": math.ceil(scaled), "floor": math.floor(scaled)}.get(
        config.rounding, math.floor(scaled + Fraction(1, 2))
    )
    return Fraction(units if exact > 0 else -units, 10**digits)


def ladder(price: TieredPrice, quantity: Fraction, *, last: bool) -> list[tuple[str, Fraction]]:
    if quantity == 0 and not last:
        return []
    sign, size = (-1, -quantity) if quantity < 0 else (1, quantity)
    ends = [Fraction(tier.up_to_amount) if tier.up_to_amount is not None else None for tier in price.tiers]
    begins = [Fraction(0), *[end for end in ends if end is not None]]
    found = []
    for n, (tier, begin, end) in enumerate(zip(price.tiers, begins, ends, strict=True), start=1):
        if price.mode == "volume":
            here = (n == 1 or size > begin) and (end is None or size <= end)
            inside = size if here else Fraction(0)
        else:
            here = n == 1 or size > begin
            inside = max(Fraction(0), (size if end is None else min(size, end)) - begin)
        if here:
            found += tier_costs(tier, f"{price.mode}-tiered-{n}", sign * inside, sign)
    return found


def tier_costs(tier: PriceTier, name: str, inside: Fraction, sign: int) -> list[tuple[str, Fraction]]:
    unit = Fraction(tier.unit_price.amount) if tier.unit_price is not None else Fraction(0)
    flat = Fraction(tier.flat_price.amount) if tier.flat_price is not None else Fraction(0)
    return [(f"{name}-price-usage", inside * unit), (f"{name}-flat-price", sign * flat)]


def matrix(price: MatrixPrice, groups: Mapping[Group, Fraction]) -> list[tuple[str, Fraction]]:
    cells = {tuple(cell.values[d] for d in price.dimensions): Fraction(cell.amount) for cell in price.cells}
    found = [
        ("matrix-price-usage" + json.dumps(cell), groups.get(cell, Fraction(0)) * amount)
        for cell, amount in cells.items()
    ]
    rest = sum((q for group, q in groups.items() if group not in cells), Fraction(0))
    return [*found, ("matrix-default-price-usage", rest * Fraction(price.default_amount))]


def percentage_of(
    price: PercentagePrice, usage: Usage, config: UnitConfig | None
) -> list[tuple[str, Fraction]]:
    part, fixed = Fraction(price.percentage) / 100, Fraction(price.fixed_amount)
    if not price.limited:
        value = converted(Fraction(usage.quantity), config)
        free = Fraction(price.free_units)
        charged = max(value - free, Fraction(0)) if value >= 0 else min(value + free, Fraction(0))
        return [("percentage-price-usage", charged * part), ("percentage-price-fixed", fixed * usage.events)]
    costs: dict[str, Fraction] = defaultdict(Fraction)
    for size, count in each_event(usage, config):
        cost = size * part + fixed
        if size >= 0 and price.minimum_per_event is not None and cost < Fraction(price.minimum_per_event):
            costs["percentage-price-minimum"] += count * Fraction(price.minimum_per_event)
        elif size >= 0 and price.maximum_per_event is not None and cost > Fraction(price.maximum_per_event):
            costs["percentage-price-maximum"] += count * Fraction(price.maximum_per_event)
        else:
            costs["percentage-price-usage"] += count * size * part
            costs["percentage-price-fixed"] += count * fixed
    names = ("usage", "fixed", "minimum", "maximum")
    return [(f"percentage-price-{name}", costs[f"percentage-price-{name}"]) for name in names]


def each_event(usage: Usage, config: UnitConfig | None) -> Iterable[tuple[Fraction, int]]:
    for size, count in usage.sizes.items():
        yield converted(Fraction(size), config), count
