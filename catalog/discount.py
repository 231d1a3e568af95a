"""Discounts of a rate card: a part of the price, or units that are not charged for."""

from dataclasses import dataclass
from typing import ClassVar

from metering.wire import WIRE, Number, Numeric

__all__ = ["Discounts", "PercentageDiscount", "UsageDiscount"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PercentageDiscount:
    """From 0 to 100, off each detailed line before commitments."""

    __pydantic_config__: ClassVar = WIRE

    percentage: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageDiscount:
    """The first `quantity` units of each service period, counted after conversion."""

    __pydantic_config__: ClassVar = WIRE

    quantity: Numeric


@dataclass(frozen=True, slots=True, kw_only=True)
class Discounts:
    __pydantic_config__: ClassVar = WIRE

    percentage: PercentageDiscount | None = None
    usage: UsageDiscount | None = None
