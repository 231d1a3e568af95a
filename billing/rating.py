"""The one rater: a price and a quantity in, detailed invoice lines out.

Live usage, preview, invoice and simulation all call `rate`. Unit prices and products are exact; each
detailed line is rounded once, and every total is a sum of rounded lines.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Literal

from catalog.money import round_money
from catalog.price import FlatPrice, Price, UnitPrice
from metering.exact import EXACT, total

__all__ = ["DetailedLine", "Totals", "add_totals", "rate", "totals_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DetailedLine:
    """`amount` is round(per_unit_amount x quantity); `reference` tells it from its siblings for ever."""

    reference: Literal["flat-price", "unit-price-usage"]
    name: str
    quantity: Decimal
    per_unit_amount: Decimal
    amount: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """As OpenMeter's InvoiceTotals; total = amount + charges - discounts - credits + exclusive taxes."""

    amount: Decimal = Decimal(0)
    charges: Decimal = Decimal(0)
    discounts: Decimal = Decimal(0)
    credits: Decimal = Decimal(0)
    taxes_inclusive: Decimal = Decimal(0)
    taxes_exclusive: Decimal = Decimal(0)

    @property
    def taxes(self) -> Decimal:
        return total([self.taxes_inclusive, self.taxes_exclusive])

    @property
    def total(self) -> Decimal:
        minus = EXACT.add(self.discounts, self.credits)
        return EXACT.subtract(total([self.amount, self.charges, self.taxes_exclusive]), minus)


def rate(
    price: Price,
    *,
    name: str,
    currency: str,
    quantity: Decimal,
    before: Decimal = Decimal(0),  # noqa: ARG001  flat and unit prices climb no tiers
    share: Fraction = Fraction(1),
) -> tuple[DetailedLine, ...]:
    """Price `quantity` units that come after the first `before` units of the same service period.

    A flat price takes no quantity; `share` is the part of a full period it is charged for, and what rounds
    to nothing gives no line. Nor do no units.
    """
    match price:
        case FlatPrice(amount=amount):
            prorated = amount if share == 1 else round_money(Fraction(amount) * share, currency)
            lines = _lines("flat-price", name, prorated, Decimal(1), currency)
            return lines if lines[0].amount else ()
        case UnitPrice(amount=amount):
            label = f"{name}: usage in period"
            return _lines("unit-price-usage", label, amount, quantity, currency) if quantity else ()


def _lines(
    reference: Literal["flat-price", "unit-price-usage"],
    name: str,
    per_unit_amount: Decimal,
    quantity: Decimal,
    currency: str,
) -> tuple[DetailedLine, ...]:
    amount = round_money(EXACT.multiply(per_unit_amount, quantity), currency)
    line = DetailedLine(
        reference=reference, name=name, quantity=quantity, per_unit_amount=per_unit_amount, amount=amount
    )
    return (line,)


def totals_of(lines: Iterable[DetailedLine]) -> Totals:
    return Totals(amount=total(line.amount for line in lines))


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
