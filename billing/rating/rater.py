"""The one rater: a price and usage in, detailed invoice lines out.

Live usage, preview, invoice, simulation and backtest all call `rate`. The order is OpenMeter's: unit
conversion, usage discount, price, percentage discount, maximum spend, minimum spend.

Each part of a price is rounded once, as a function of all that was used in the service period so far. A line
is the difference between where the period stands after it and where it stood before. So a period that is
billed in any number of lines comes to the same as in one, to the cent, and reversing a line nets to zero.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from typing import Literal

from billing.rating.pricing import NOTHING, ZERO, Part, Usage, parts
from catalog.discount import Discounts
from catalog.money import round_money
from catalog.price import FlatPrice, Price
from catalog.rate_card import RateCard, UsageBasedRateCard
from catalog.unit_config import UnitConfig
from metering.exact import EXACT, plain, total

__all__ = [
    "NO_DISCOUNTS",
    "AmountDiscount",
    "DetailedLine",
    "Rating",
    "Terms",
    "Totals",
    "add_totals",
    "difference",
    "owed",
    "rate",
    "settle",
    "together",
    "totals_of",
]

NO_DISCOUNTS = Discounts()
DiscountReason = Literal["ratecard_percentage", "maximum_spend"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a rate card says of its price, and in which currency and by which name it is billed.

    `share` is the part of a full period that a flat price is charged for; usage is never prorated.
    """

    price: Price
    name: str
    currency: str
    discounts: Discounts = NO_DISCOUNTS
    unit_config: UnitConfig | None = None
    share: Fraction = Fraction(1)

    @staticmethod
    def of(card: RateCard, price: Price, *, currency: str, share: Fraction) -> "Terms":
        return Terms(
            price=price,
            name=card.name,
            currency=currency,
            discounts=card.discounts or NO_DISCOUNTS,
            unit_config=card.unit_config if isinstance(card, UsageBasedRateCard) else None,
            share=share,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AmountDiscount:
    reason: DiscountReason
    amount: Decimal
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DetailedLine:
    """`amount` is rounded; `reference` tells it from its siblings for ever, `note` how it came about."""

    reference: str
    name: str
    category: Literal["regular", "commitment"] = "regular"
    quantity: Decimal
    per_unit_amount: Decimal
    amount: Decimal
    discounts: tuple[AmountDiscount, ...] = ()
    note: str = ""

    @property
    def discounted(self) -> Decimal:
        return total(discount.amount for discount in self.discounts) if self.discounts else ZERO

    @property
    def total(self) -> Decimal:
        return EXACT.subtract(self.amount, self.discounted) if self.discounts else self.amount

    @property
    def description(self) -> str:
        """The sum in words: `5 x 0.125 = 0.625, rounded to 0.63 (tier 2: above 10)`."""
        exact = EXACT.multiply(self.quantity, self.per_unit_amount)
        result = plain(self.amount)
        if exact != self.amount:
            result = f"{plain(exact)}, rounded to {result}"
        says = f"{plain(self.quantity)} x {plain(self.per_unit_amount)} = {result}"
        return f"{says} ({self.note})" if self.note else says


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """As OpenMeter's InvoiceTotals; total = amount + charges - discounts - credits + exclusive taxes."""

    amount: Decimal = ZERO
    charges: Decimal = ZERO
    discounts: Decimal = ZERO
    credits: Decimal = ZERO
    taxes_inclusive: Decimal = ZERO
    taxes_exclusive: Decimal = ZERO

    @property
    def taxes(self) -> Decimal:
        return total([self.taxes_inclusive, self.taxes_exclusive])

    @property
    def total(self) -> Decimal:
        minus = EXACT.add(self.discounts, self.credits)
        return EXACT.subtract(total([self.amount, self.charges, self.taxes_exclusive]), minus)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """`quantity` is what was charged for on this line, `usage_discount` what was not; both after conversion,
    and both again for the lines before it.
    """

    details: tuple[DetailedLine, ...]
    quantity: Decimal = ZERO
    quantity_before: Decimal = ZERO
    usage_discount: Decimal = ZERO
    usage_discount_before: Decimal = ZERO
    totals: Totals = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "totals", totals_of(self.details))


def rate(terms: Terms, usage: Usage = NOTHING, *, before: Usage = NOTHING, last: bool = True) -> Rating:
    """Price `usage` that comes after what was used `before` in the same service period.

    `last`: the period ends with this line; a minimum spend is due then. A flat price takes no usage.
    """
    begins = before is NOTHING or isinstance(terms.price, FlatPrice)
    stood = () if begins else owed(terms, before, last=False)
    return settle(terms, before + usage, before=before, billed=stood, last=last)


def settle(
    terms: Terms, usage: Usage, *, before: Usage, billed: Iterable[DetailedLine], last: bool = True
) -> Rating:
    """What is left to bill of a period in which `usage` was used in all, and `billed` was billed already.

    `before` is the usage that was billed, whatever it was billed at.
    """
    (then, free_then), (now, free_now) = _charged(terms, before), _charged(terms, usage)
    return Rating(
        details=difference(_owed(terms, now, last=last), billed),
        quantity=EXACT.subtract(now.quantity, then.quantity),
        quantity_before=then.quantity,
        usage_discount=EXACT.subtract(free_now, free_then),
        usage_discount_before=free_then,
    )


def owed(terms: Terms, usage: Usage, *, last: bool = True) -> tuple[DetailedLine, ...]:
    """All that is owed for a period in which so much was used, whatever was billed of it already."""
    return _owed(terms, _charged(terms, usage)[0], last=last)


def _charged(terms: Terms, usage: Usage) -> tuple[Usage, Decimal]:
    """The usage that is charged for, and how much of it is free by a usage discount."""
    converted = usage if terms.unit_config is None else usage.converted(terms.unit_config)
    if terms.discounts.usage is None:
        return converted, ZERO
    most = terms.discounts.usage.quantity
    free = max(-most, min(converted.quantity, most))
    return replace(converted, quantity=EXACT.subtract(converted.quantity, free)), free


def _owed(terms: Terms, usage: Usage, *, last: bool) -> tuple[DetailedLine, ...]:
    lines = [_line(terms, part) for part in parts(terms.price, usage, last=last)]
    if isinstance(terms.price, FlatPrice):
        return tuple(line for line in lines if line.amount)
    if terms.price.maximum_amount is not None:
        lines = _capped(lines, round_money(terms.price.maximum_amount, terms.currency))
    if terms.price.minimum_amount is not None and last:
        lines += _topped_up(terms, lines, round_money(terms.price.minimum_amount, terms.currency))
    return tuple(lines)


def _line(terms: Terms, part: Part) -> DetailedLine:
    per_unit, note = part.per_unit_amount, part.note
    if isinstance(terms.price, FlatPrice) and terms.share != 1:
        per_unit = round_money(Fraction(per_unit) * terms.share, terms.currency)
        note = f"{plain(part.per_unit_amount)} x {terms.share} of the period"
    amount = round_money(EXACT.multiply(part.quantity, per_unit), terms.currency)
    percentage = terms.discounts.percentage
    return DetailedLine(
        reference=part.reference,
        name=f"{terms.name}: {part.label}" if part.label else terms.name,
        quantity=part.quantity,
        per_unit_amount=per_unit,
        amount=amount,
        discounts=() if percentage is None else _percent_off(amount, percentage.percentage, terms.currency),
        note=note,
    )


def _percent_off(amount: Decimal, percentage: Decimal, currency: str) -> tuple[AmountDiscount, ...]:
    off = round_money(EXACT.multiply(amount, EXACT.scaleb(percentage, -2)), currency)
    if not off:
        return ()
    description = f"{plain(percentage)} % discount"
    return (AmountDiscount(reason="ratecard_percentage", amount=off, description=description),)


def _capped(lines: Sequence[DetailedLine], most: Decimal) -> list[DetailedLine]:
    """What is beyond the maximum is taken off the lines that were reached last."""
    whole = total(line.total for line in lines)
    sign = -1 if whole < 0 else 1
    surplus = EXACT.subtract(abs(whole), most)
    capped: list[DetailedLine] = []
    for line in reversed(lines):
        off = max(ZERO, min(surplus, sign * line.total))
        surplus = EXACT.subtract(surplus, off)
        capped.append(_less(line, sign * off, most) if off else line)
    return capped[::-1]


def _less(line: DetailedLine, off: Decimal, most: Decimal) -> DetailedLine:
    description = f"Maximum spend discount for charges over {plain(most)}"
    discount = AmountDiscount(reason="maximum_spend", amount=off, description=description)
    return replace(line, discounts=(*line.discounts, discount))


def _topped_up(terms: Terms, lines: Iterable[DetailedLine], least: Decimal) -> Iterator[DetailedLine]:
    spent = total(line.total for line in lines)
    if spent < least:
        missing = EXACT.subtract(least, spent)
        yield DetailedLine(
            reference="min-spend",
            name=f"{terms.name}: minimum spend",
            category="commitment",
            quantity=Decimal(1),
            per_unit_amount=missing,
            amount=missing,
            note=f"at least {plain(least)} in the period, {plain(spent)} spent",
        )


# -- Differences ---------------------------------------------------------------------------------------------


def difference(owed: Iterable[DetailedLine], billed: Iterable[DetailedLine]) -> tuple[DetailedLine, ...]:
    """What is left to bill: line by line, and what was billed for units that now have another price, back."""
    before = {_key(line): line for line in together(billed)}
    found = [_minus(line, before.pop(_key(line), None)) for line in owed] if before else list(owed)
    found += map(_reversed, before.values())
    return tuple(line for line in found if line.quantity or line.amount or line.discounts)


def together(lines: Iterable[DetailedLine]) -> tuple[DetailedLine, ...]:
    """The lines of one charge added up, part by part."""
    sums: dict[tuple[str, Decimal | None], DetailedLine] = {}
    for line in lines:
        key = _key(line)
        sums[key] = _minus(line, _reversed(sums[key])) if key in sums else line
    return tuple(sums.values())


def _key(line: DetailedLine) -> tuple[str, Decimal | None]:
    return line.reference, None if _lump(line) else line.per_unit_amount


def _lump(line: DetailedLine) -> bool:
    """One sum, not so many units at a price: what changes about it is its amount."""
    return line.category == "commitment" or line.reference == "flat-price"


def _minus(line: DetailedLine, billed: DetailedLine | None) -> DetailedLine:
    if billed is None:
        return line
    amount, lump = EXACT.subtract(line.amount, billed.amount), _lump(line)
    quantity = Decimal(bool(amount)) if lump else EXACT.subtract(line.quantity, billed.quantity)
    return replace(
        line,
        quantity=quantity,
        per_unit_amount=amount if lump else line.per_unit_amount,
        amount=amount,
        discounts=_discounts(line.discounts, billed.discounts),
    )


def _reversed(line: DetailedLine) -> DetailedLine:
    """Back to the last cent."""
    discounts = tuple(replace(discount, amount=-discount.amount) for discount in line.discounts)
    return replace(line, quantity=-line.quantity, amount=-line.amount, discounts=discounts)


def _discounts(
    owed: Iterable[AmountDiscount], billed: Iterable[AmountDiscount]
) -> tuple[AmountDiscount, ...]:
    left = {discount.reason: discount for discount in owed}
    for was in billed:
        now = left.get(was.reason, replace(was, amount=ZERO))
        left[was.reason] = replace(now, amount=EXACT.subtract(now.amount, was.amount))
    return tuple(discount for discount in left.values() if discount.amount)


# -- Totals --------------------------------------------------------------------------------------------------


def totals_of(lines: Iterable[DetailedLine]) -> Totals:
    amount = charges = discounts = ZERO
    for line in lines:
        if line.category == "regular":
            amount = EXACT.add(amount, line.amount)
        else:
            charges = EXACT.add(charges, line.amount)
        if line.discounts:
            discounts = EXACT.add(discounts, line.discounted)
    return Totals(amount=amount, charges=charges, discounts=discounts)


def add_totals(parts: Iterable[Totals]) -> Totals:
    """The sum of each kind."""
    every = list(parts)
    return Totals(
        amount=total(part.amount for part in every),
        charges=total(part.charges for part in every),
        discounts=total(part.discounts for part in every),
        credits=total(part.credits for part in every),
        taxes_inclusive=total(part.taxes_inclusive for part in every),
        taxes_exclusive=total(part.taxes_exclusive for part in every),
    )
