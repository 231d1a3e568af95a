"""Prices: what one feature, or one subscription, costs. A price is a value that billing/rating applies.

Six models are OpenMeter's (flat, unit, tiered graduated and volume, package, dynamic). Percentage, matrix and
`groupBy` on tiers are our own. The rules that a price must keep are in price_rules.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import ClassVar, Literal, get_args

from metering.exact import plain
from metering.wire import WIRE, Numeric

__all__ = [
    "DynamicPrice",
    "FlatPrice",
    "MatrixCell",
    "MatrixPrice",
    "PackagePrice",
    "PaymentTerm",
    "PercentagePrice",
    "Price",
    "PriceTier",
    "TierFlatPrice",
    "TierUnitPrice",
    "TieredPrice",
    "UnitPrice",
    "UsagePrice",
    "amounts_of",
    "dimensions_of",
    "in_range",
]

PaymentTerm = Literal["in_advance", "in_arrears"]

MAX_DIGITS = 30
"""Digits before, and after, the point of an amount: far beyond money, and every product stays exact."""


class _Amounts:
    """1E+2 is written out as 100, which is how the wire spells it; what the rules refuse stays as it is."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for name, amount in amounts_of(self):
            text = str(amount)
            if ("E" in text or text[0] == "-") and in_range(amount):
                object.__setattr__(self, name, Decimal(plain(amount)))


def amounts_of(value: object) -> list[tuple[str, Decimal]]:
    """The decimals that a price, or a part of one, has in itself, by the name of their field."""
    names = _names_of(type(value))
    return [(name, amount) for name in names if (amount := getattr(value, name)) is not None]


_NAMES: dict[type, tuple[str, ...]] = {}
"""By class: asked for every price that is made or checked, and `fields` takes its time."""


def _names_of(kind: type) -> tuple[str, ...]:
    if kind not in _NAMES:
        decimals = (field for field in fields(kind) if Numeric in (field.type, *get_args(field.type)))
        _NAMES[kind] = tuple(field.name for field in decimals)
    return _NAMES[kind]


def in_range(amount: Decimal) -> bool:
    text = str(amount)
    if len(text) <= MAX_DIGITS and text.replace(".", "", 1).isdigit():
        return True  # nearly always, and in half the time
    exponent = amount.as_tuple().exponent
    return isinstance(exponent, int) and max(amount.adjusted() + 1, -exponent) <= MAX_DIGITS


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatPrice(_Amounts):
    """`amount` for each period, or once."""

    __pydantic_config__: ClassVar = WIRE

    type: Literal["flat"]
    amount: Numeric
    payment_term: PaymentTerm = "in_advance"


# Every price on usage is paid in arrears and may have commitments: over a service period it comes to at least
# `minimum_amount` and to no more than `maximum_amount`.


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPrice(_Amounts):
    """`amount` for each unit used."""

    __pydantic_config__: ClassVar = WIRE

    type: Literal["unit"]
    amount: Numeric
    minimum_amount: Numeric | None = None
    maximum_amount: Numeric | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TierFlatPrice(_Amounts):
    """`amount` once, as soon as the tier is reached."""

    __pydantic_config__: ClassVar = WIRE

    type: Literal["flat"]
    amount: Numeric


@dataclass(frozen=True, slots=True, kw_only=True)
class TierUnitPrice(_Amounts):
    """`amount` for each unit."""

    __pydantic_config__: ClassVar = WIRE

    type: Literal["unit"]
    amount: Numeric


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceTier(_Amounts):
    """From above the tier before it, up to and including `up_to_amount`; the last one has no end."""

    __pydantic_config__: ClassVar = WIRE

    up_to_amount: Numeric | None = None
    flat_price: TierFlatPrice | None = None
    unit_price: TierUnitPrice | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TieredPrice(_Amounts):
    """Graduated: each unit costs what its own tier says. Volume: all cost what the last one's tier says.

    `group_by` names dimensions of the feature's meter: each combination of their values climbs its own
    ladder.
    """

    __pydantic_config__: ClassVar = WIRE

    type: Literal["tiered"]
    mode: Literal["graduated", "volume"]
    tiers: tuple[PriceTier, ...]
    group_by: tuple[str, ...] = ()
    minimum_amount: Numeric | None = None
    maximum_amount: Numeric | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagePrice(_Amounts):
    """`amount` for each package of so many units, also for one that was only begun."""

    __pydantic_config__: ClassVar = WIRE

    type: Literal["package"]
    amount: Numeric
    quantity_per_package: Numeric
    minimum_amount: Numeric | None = None
    maximum_amount: Numeric | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicPrice(_Amounts):
    """The usage is money already, such as a provider's cost; it is passed on times `multiplier`."""

    __pydantic_config__: ClassVar = WIRE

    type: Literal["dynamic"]
    multiplier: Numeric = Decimal(1)
    minimum_amount: Numeric | None = None
    maximum_amount: Numeric | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PercentagePrice(_Amounts):
    """A part of the value that each event carries, such as a payment's, and a fee for each event.

    The first `free_units` of value cost no percentage. What one event costs is never below
    `minimum_per_event` nor above `maximum_per_event`.
    """

    __pydantic_config__: ClassVar = WIRE

    type: Literal["percentage"]
    percentage: Numeric
    fixed_amount: Numeric = Decimal(0)
    free_units: Numeric = Decimal(0)
    minimum_per_event: Numeric | None = None
    maximum_per_event: Numeric | None = None
    minimum_amount: Numeric | None = None
    maximum_amount: Numeric | None = None

    @property
    def limited(self) -> bool:
        """Whether it takes each event's value to tell what they cost together."""
        return self.minimum_per_event is not None or self.maximum_per_event is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixCell(_Amounts):
    """`amount` for each unit of this combination: a value for every dimension of the matrix."""

    __pydantic_config__: ClassVar = WIRE

    values: Mapping[str, str]
    amount: Numeric


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixPrice(_Amounts):
    """A unit price for each combination of dimensions, such as provider, model and type of token.

    Units of any other combination cost `default_amount`.
    """

    __pydantic_config__: ClassVar = WIRE

    type: Literal["matrix"]
    dimensions: tuple[str, ...]
    cells: tuple[MatrixCell, ...]
    default_amount: Numeric
    minimum_amount: Numeric | None = None
    maximum_amount: Numeric | None = None


UsagePrice = UnitPrice | TieredPrice | PackagePrice | DynamicPrice | PercentagePrice | MatrixPrice
Price = FlatPrice | UsagePrice


def dimensions_of(price: Price | None) -> tuple[str, ...]:
    """The dimensions of the feature's meter that it tells usage apart by."""
    match price:
        case MatrixPrice(dimensions=names) | TieredPrice(group_by=names):
            return names
    return ()
