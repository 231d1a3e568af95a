"""What a price makes of usage: exact parts, not yet rounded, discounted or limited (rating.py does that).

Every part is a function of all that was used in the service period so far. A negative quantity, which a
correction may leave, costs the exact reverse of the positive one.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import chain

from catalog.price import (
    DynamicPrice,
    FlatPrice,
    MatrixPrice,
    PackagePrice,
    PercentagePrice,
    Price,
    PriceTier,
    TieredPrice,
    UnitPrice,
)
from catalog.unit_config import UnitConfig, convert
from metering.exact import EXACT, plain, total

__all__ = ["NOTHING", "Group", "Part", "Seen", "Usage", "parts"]

Group = tuple[str | None, ...]
"""A value for each dimension by which a price tells units apart; None where an event has none."""

ZERO, ONE = Decimal(0), Decimal(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """As of which step of metering/late_usage.py, and as the answer to which question, usage was read."""

    number: int
    question: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What was used, as far as its price asks: the quantity, and maybe the number of events, the quantity of
    each group, and how many events had each value.

    `seen`: it was settled when it was read, and whether it has changed since is known without reading it.
    """

    quantity: Decimal = ZERO
    events: int = 0
    groups: Mapping[Group, Decimal] = field(default_factory=dict)
    sizes: Mapping[Decimal, int] = field(default_factory=dict)
    seen: Seen | None = field(default=None, compare=False)

    def __add__(self, other: "Usage") -> "Usage":
        if self is NOTHING:
            return other
        sizes = Counter(self.sizes)
        sizes.update(other.sizes)
        return Usage(
            quantity=EXACT.add(self.quantity, other.quantity),
            events=self.events + other.events,
            groups=_summed(chain(self.groups.items(), other.groups.items())),
            sizes=sizes,
        )

    def __neg__(self) -> "Usage":
        return Usage(
            quantity=-self.quantity,
            events=-self.events,
            groups={group: -quantity for group, quantity in self.groups.items()},
            sizes={size: -count for size, count in self.sizes.items()},
        )

    def converted(self, config: UnitConfig) -> "Usage":
        """In the units that the price is for; each group, and each event, by itself."""
        sizes: Counter[Decimal] = Counter()
        for size, count in self.sizes.items():
            sizes[convert(size, config)] += count
        groups = {group: convert(quantity, config) for group, quantity in self.groups.items()}
        return replace(self, quantity=convert(self.quantity, config), groups=groups, sizes=sizes)


NOTHING = Usage()


def _summed(items: Iterable[tuple[Group, Decimal]]) -> dict[Group, Decimal]:
    sums: dict[Group, Decimal] = {}
    for group, quantity in items:
        sums[group] = EXACT.add(sums.get(group, ZERO), quantity)
    return sums


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """`quantity` at `per_unit_amount`; `reference` tells it from its siblings for ever, `note` says how it
    came about.
    """

    reference: str
    label: str
    quantity: Decimal
    per_unit_amount: Decimal
    note: str = ""


def parts(price: Price, usage: Usage, *, last: bool) -> Iterable[Part]:
    """`last`: nothing more will be used in the period; a first tier's flat price is due even for nothing."""
    match price:
        case FlatPrice(amount=amount):
            return (Part(reference="flat-price", label="", quantity=ONE, per_unit_amount=amount),)
        case UnitPrice(amount=amount):
            return _usage("unit-price-usage", usage.quantity, amount)
        case DynamicPrice(multiplier=multiplier):
            return _usage("usage", usage.quantity, multiplier)
        case PackagePrice(amount=amount, quantity_per_package=size):
            note = f"packages of {plain(size)}"
            return _usage("usage", _packages(usage.quantity, size), amount, note=note)
        case TieredPrice(group_by=()):
            return _ladder(price, usage.quantity, last=last)
        case TieredPrice():
            return _ladders(price, usage.groups, last=last)
        case PercentagePrice():
            return _percentage(price, usage)
        case MatrixPrice():
            return _matrix(price, usage.groups)


def _usage(reference: str, quantity: Decimal, amount: Decimal, *, note: str = "") -> tuple[Part, ...]:
    if not quantity:
        return ()
    label = "usage in period"
    return (Part(reference=reference, label=label, quantity=quantity, per_unit_amount=amount, note=note),)


def _packages(quantity: Decimal, size: Decimal) -> Decimal:
    whole, rest = EXACT.divmod(abs(quantity), size)
    packages = whole + (rest > 0)
    return packages if quantity >= 0 else -packages


# -- Tiers ---------------------------------------------------------------------------------------------------


def _ladders(price: TieredPrice, groups: Mapping[Group, Decimal], *, last: bool) -> Iterator[Part]:
    for group in sorted(groups, key=_order):
        for part in _ladder(price, groups[group], last=last):
            label = f"{part.label}, {_named(group)}"
            yield replace(part, reference=f"{part.reference}{json.dumps(group)}", label=label)


def _ladder(price: TieredPrice, quantity: Decimal, *, last: bool) -> Iterable[Part]:
    if quantity < 0:
        return [replace(part, quantity=-part.quantity) for part in _ladder(price, -quantity, last=last)]
    if not quantity and not last:
        return ()
    climb = _graduated if price.mode == "graduated" else _volume
    return climb(price.tiers, quantity)


def _graduated(tiers: Iterable[PriceTier], quantity: Decimal) -> Iterator[Part]:
    """A tier is reached when the quantity is above where it begins; the first one always."""
    above = ZERO
    for n, tier in enumerate(tiers, start=1):
        if n > 1 and quantity <= above:
            return
        end = tier.up_to_amount
        inside = EXACT.subtract(quantity if end is None or quantity < end else end, above)
        yield from _tier("graduated", tier, n, above=above, quantity=inside)
        above = end if end is not None else quantity


def _volume(tiers: Iterable[PriceTier], quantity: Decimal) -> Iterator[Part]:
    above = ZERO
    for n, tier in enumerate(tiers, start=1):
        if tier.up_to_amount is None or quantity <= tier.up_to_amount:
            yield from _tier("volume", tier, n, above=above, quantity=quantity)
            return
        above = tier.up_to_amount


def _tier(mode: str, tier: PriceTier, n: int, *, above: Decimal, quantity: Decimal) -> Iterator[Part]:
    end = "" if tier.up_to_amount is None else f" up to {plain(tier.up_to_amount)}"
    note = f"tier {n}: above {plain(above)}{end}"
    if tier.unit_price is not None and quantity:
        yield Part(
            reference=f"{mode}-tiered-{n}-price-usage",
            label=f"usage price for tier {n}",
            quantity=quantity,
            per_unit_amount=tier.unit_price.amount,
            note=note,
        )
    if tier.flat_price is not None:
        yield Part(
            reference=f"{mode}-tiered-{n}-flat-price",
            label=f"flat price for tier {n}",
            quantity=ONE,
            per_unit_amount=tier.flat_price.amount,
            note=note,
        )


# -- Matrix --------------------------------------------------------------------------------------------------


def _matrix(price: MatrixPrice, groups: Mapping[Group, Decimal]) -> Iterator[Part]:
    """A part for each cell that was used, in the price's order, and one for all other combinations."""
    others = dict(groups)
    for cell in price.cells:
        group = tuple(cell.values[name] for name in price.dimensions)
        if quantity := others.pop(group, ZERO):
            yield Part(
                reference=f"matrix-price-usage{json.dumps(group)}",
                label=_named(group),
                quantity=quantity,
                per_unit_amount=cell.amount,
                note=", ".join(f"{name} {cell.values[name]}" for name in price.dimensions),
            )
    if quantity := total(others.values()):
        yield Part(
            reference="matrix-default-price-usage",
            label="other combinations",
            quantity=quantity,
            per_unit_amount=price.default_amount,
            note=f"no price of its own for this {', '.join(price.dimensions)}",
        )


def _order(group: Group) -> tuple[tuple[bool, str], ...]:
    return tuple((value is not None, value or "") for value in group)


def _named(group: Group) -> str:
    return ", ".join("none" if value is None else value for value in group)


# -- Percentage ----------------------------------------------------------------------------------------------


def _percentage(price: PercentagePrice, usage: Usage) -> Iterator[Part]:
    rate = EXACT.scaleb(price.percentage, -2)
    within, at_least, at_most = _limited(price, rate, usage) if price.limited else (usage, 0, 0)
    free = max(-price.free_units, min(within.quantity, price.free_units))
    note = f"{plain(price.percentage)} % of the value" + (f" beyond {plain(free)}" if free else "")
    charged = EXACT.subtract(within.quantity, free)
    if charged:
        yield _share("price-usage", "percentage of value", charged, rate, note)
    if within.events and price.fixed_amount:
        yield _share("price-fixed", "fee per event", Decimal(within.events), price.fixed_amount)
    if at_least and price.minimum_per_event:
        yield _share("price-minimum", "minimum per event", Decimal(at_least), price.minimum_per_event)
    if at_most and price.maximum_per_event:
        yield _share("price-maximum", "maximum per event", Decimal(at_most), price.maximum_per_event)


def _share(reference: str, label: str, quantity: Decimal, amount: Decimal, note: str = "") -> Part:
    reference = f"percentage-{reference}"
    return Part(reference=reference, label=label, quantity=quantity, per_unit_amount=amount, note=note)


def _limited(price: PercentagePrice, rate: Decimal, usage: Usage) -> tuple[Usage, int, int]:
    """The events that cost what they cost, and how many cost the minimum and the maximum instead.

    An event that gives value back has no limits: it gives back the percentage, not its fee.
    """
    least, most = price.minimum_per_event, price.maximum_per_event
    value, events, at_least, at_most = ZERO, 0, 0, 0
    for size, count in usage.sizes.items():
        cost = EXACT.add(EXACT.multiply(size, rate), price.fixed_amount)
        if size >= 0 and least is not None and cost < least:
            at_least += count
        elif size >= 0 and most is not None and cost > most:
            at_most += count
        else:
            value = EXACT.add(value, EXACT.multiply(size, Decimal(count)))
            events += count
    return Usage(quantity=value, events=events), at_least, at_most
