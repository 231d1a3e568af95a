"""Unit conversion: the meter counts tokens or seconds, the price is for a million, or for an hour."""

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import ClassVar, Literal

from metering.exact import EXACT
from metering.wire import WIRE, Numeric

__all__ = ["QUOTIENT_DIGITS", "UnitConfig", "convert"]

QUOTIENT_DIGITS = 30
"""Digits after the point of a quotient that does not come out, rounded half up; far beyond any price."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitConfig:
    """`conversion_factor` is above 0; `precision` are the digits that rounding leaves after the point."""

    __pydantic_config__: ClassVar = WIRE

    operation: Literal["divide", "multiply"]
    conversion_factor: Numeric
    rounding: Literal["none", "ceiling", "floor", "half_up"] = "none"
    precision: int = 0
    display_unit: str | None = None


def convert(quantity: Decimal, config: UnitConfig) -> Decimal:
    """The quantity in the units that the price is for. A negative one is the exact reverse of a positive."""
    if quantity < 0:
        return -convert(-quantity, config)
    if config.operation == "multiply" and config.rounding == "none":
        return EXACT.multiply(quantity, config.conversion_factor)
    factor = Fraction(config.conversion_factor)
    exact = Fraction(quantity) * factor if config.operation == "multiply" else Fraction(quantity) / factor
    return _rounded(exact, config)


def _rounded(exact: Fraction, config: UnitConfig) -> Decimal:
    digits = QUOTIENT_DIGITS if config.rounding == "none" else config.precision
    units, rest = divmod(exact.numerator * 10**digits, exact.denominator)
    match config.rounding:
        case "ceiling":
            units += rest > 0
        case "half_up" | "none":
            units += 2 * rest >= exact.denominator
    return EXACT.normalize(EXACT.scaleb(Decimal(units), -digits))
