"""What add-ons do to the items of a contract: pure.

The contract without its add-ons is remembered; with them it is always worked out anew from that, so that an
add-on that is taken away leaves no trace. A card of an add-on adds to the item of its key, or is an item of
its own where there is none. Each version of an item is charged for; a fee that is paid once must not be paid
again with every version, and so a version has only what is new in it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from functools import reduce
from typing import ClassVar, TypeVar

from billing.contracts.edits import ContractSpec, Sale, SpecItem, SpecPhase, sell
from catalog.discount import Discounts, UsageDiscount
from catalog.price import FlatPrice
from catalog.rate_card import EntitlementTemplate, MeteredEntitlement, RateCard
from metering.exact import EXACT
from metering.wire import WIRE

__all__ = ["BoughtAddon", "Quantity", "combined", "quantity_at", "with_addons"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """From `start` on, until another one starts."""

    __pydantic_config__: ClassVar = WIRE

    start: datetime
    quantity: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BoughtAddon:
    """What is bought in quantities that change with time, for `from_phase` and those after it."""

    rate_cards: Sequence[RateCard]
    feature_ids: Mapping[str, str]
    from_phase: str
    quantities: Sequence[Quantity]

    def begins(self, spec: ContractSpec) -> int:
        """The first phase that it is sold in; a contract that has left it out begins later."""
        keys = [phase.key for phase in spec.phases]
        return keys.index(self.from_phase) if self.from_phase in keys else 0


def quantity_at(quantities: Sequence[Quantity], at: datetime) -> int:
    return next((each.quantity for each in reversed(quantities) if each.start <= at), 0)


def with_addons(
    spec: ContractSpec, base: ContractSpec, addons: Sequence[BoughtAddon], *, since: datetime
) -> ContractSpec:
    """`spec` as it is from `since` on: what `base`, the same without add-ons, sells, and the add-ons."""
    bases = {phase.key: phase for phase in base.phases}
    phases = []
    for i, phase in enumerate(spec.phases):
        sold = [addon for addon in addons if addon.begins(spec) <= i]
        ended = phase.ended_by(since)
        phases.append(phase if ended else _phase(phase, bases[phase.key], sold, max(since, phase.start)))
    return replace(spec, phases=tuple(phases))


def _phase(phase: SpecPhase, base: SpecPhase, addons: Sequence[BoughtAddon], at: datetime) -> SpecPhase:
    own = (item.key for item in phase.items)
    for key in dict.fromkeys([*own, *(card.key for addon in addons for card in addon.rate_cards)]):
        items = [item for item in base.items if item.key == key]
        phase = sell(phase, key, at, _sales(phase, items, key, addons, at))
    return phase


def _sales(
    phase: SpecPhase, items: Sequence[SpecItem], key: str, addons: Sequence[BoughtAddon], at: datetime
) -> list[Sale]:
    """What is sold under `key` from `at` until the phase ends; what does not change is one sale."""
    sales: list[Sale] = []
    before = next((_going_on(each, at) for each in phase.items if each.key == key and each.lasts(at)), None)
    cuts = [*_cuts(phase, items, addons, at)]
    for start, end in zip(cuts, [*cuts[1:], phase.end], strict=True):
        item = next((each for each in items if each.sold_at(start)), None)
        sale = _sale(item, _parts(key, addons, start), start, end, before)
        if sale and sales and sale == replace(sales[-1], start=start, end=end) and before:
            sales[-1] = replace(sales[-1], end=end)
        elif sale:
            sales.append(sale)
        before = sale
    return sales


def _going_on(item: SpecItem, at: datetime) -> Sale:
    return Sale(rate_card=item.rate_card, feature_id=item.feature_id, start=at, end=item.end)


def _cuts(
    phase: SpecPhase, items: Sequence[SpecItem], addons: Sequence[BoughtAddon], at: datetime
) -> Iterator[datetime]:
    """`at`, and each later instant of the phase at which something may change."""
    moments = {each.start for addon in addons for each in addon.quantities}
    moments |= {moment for item in items for moment in (item.start, item.end) if moment is not None}
    yield at
    yield from sorted(
        moment for moment in moments if at < moment and (phase.end is None or moment < phase.end)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A card of an add-on: how many of it there are at an instant, and how many there were until then."""

    card: RateCard
    feature_id: str | None
    quantity: int
    before: int


def _parts(key: str, addons: Sequence[BoughtAddon], at: datetime) -> list[_Part]:
    found = (
        _Part(
            card=card,
            feature_id=addon.feature_ids.get(card.feature_key or ""),
            quantity=quantity_at(addon.quantities, at),
            before=quantity_at(addon.quantities, at - datetime.resolution),
        )
        for addon in addons
        for card in addon.rate_cards
        if card.key == key
    )
    return [part for part in found if part.quantity or part.before]


def _sale(
    item: SpecItem | None,
    parts: Sequence[_Part],
    start: datetime,
    end: datetime | None,
    before: Sale | None,
) -> Sale | None:
    """The item and its parts as one card; a fee that is paid once is that of what begins at `start`."""
    there = [part for part in parts if part.quantity]
    card = combined(item.rate_card if item else None, [(part.card, part.quantity) for part in there])
    if card is None:
        return None
    if card.billing_cadence is None:
        begins = item is not None and item.start == start
        if before and not begins and all(part.quantity == part.before for part in parts):
            return replace(before, start=start, end=end)
        more = [(part.card, part.quantity - part.before) for part in parts if part.quantity > part.before]
        begun = combined(item.rate_card if item and begins else None, more)
        card = _replaced(card, price=begun.price if begun else None)
    feature_id = item.feature_id if item else there[0].feature_id
    return Sale(rate_card=card, feature_id=feature_id, start=start, end=end)


def combined(base: RateCard | None, parts: Sequence[tuple[RateCard, int]]) -> RateCard | None:
    """One card that is `base` and so many of each part; None of nothing."""
    cards = [] if base is None else [base]
    cards += [_times(card, quantity) for card, quantity in parts]
    return reduce(_plus, cards) if cards else None


def _times(card: RateCard, quantity: int) -> RateCard:
    price, template, discounts = card.price, card.entitlement_template, card.discounts
    if isinstance(price, FlatPrice):
        price = replace(price, amount=EXACT.multiply(price.amount, Decimal(quantity)))
    if isinstance(template, MeteredEntitlement) and template.issue_after_reset is not None:
        issued = EXACT.multiply(template.issue_after_reset, Decimal(quantity))
        template = replace(template, issue_after_reset=issued)
    if discounts is not None and discounts.usage is not None:
        free = EXACT.multiply(discounts.usage.quantity, Decimal(quantity))
        discounts = replace(discounts, usage=UsageDiscount(quantity=free))
    return _replaced(card, price=price, entitlement_template=template, discounts=discounts)


def _plus(one: RateCard, other: RateCard) -> RateCard:
    """`one`, with what `other` adds; the catalog's rules have seen to it that they are alike."""
    price = one.price if one.price is not None else other.price
    if isinstance(one.price, FlatPrice) and isinstance(other.price, FlatPrice):
        price = replace(one.price, amount=EXACT.add(one.price.amount, other.price.amount))
    return _replaced(
        one,
        price=price,
        entitlement_template=_entitled(one.entitlement_template, other.entitlement_template),
        discounts=_discounted(one.discounts, other.discounts),
    )


def _entitled(
    one: EntitlementTemplate | None, other: EntitlementTemplate | None
) -> EntitlementTemplate | None:
    if not isinstance(one, MeteredEntitlement) or not isinstance(other, MeteredEntitlement):
        return one or other
    amounts = [each.issue_after_reset for each in (one, other) if each.issue_after_reset is not None]
    return replace(one, issue_after_reset=reduce(EXACT.add, amounts) if amounts else None)


def _discounted(one: Discounts | None, other: Discounts | None) -> Discounts | None:
    added = other.usage if other else None
    if one is None or added is None:
        return one if added is None else Discounts(usage=added)
    if one.usage is None:
        return replace(one, usage=added)
    return replace(one, usage=UsageDiscount(quantity=EXACT.add(one.usage.quantity, added.quantity)))


C = TypeVar("C", bound=RateCard)


def _replaced(card: C, **changes: object) -> C:
    """`replace`, whose annotations can't follow two kinds of card at once."""
    return replace(card, **changes)  # type: ignore[arg-type]
