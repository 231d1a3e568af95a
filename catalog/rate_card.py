"""Rate cards and phases: what a plan sells, for which price, how often, and for how long."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from catalog.discount import Discounts
from catalog.price import FlatPrice, Price
from catalog.tax import TaxConfig
from catalog.unit_config import UnitConfig
from metering.wire import WIRE, Number

__all__ = [
    "BooleanEntitlement",
    "EntitlementTemplate",
    "FlatFeeRateCard",
    "MeteredEntitlement",
    "Phase",
    "RateCard",
    "StaticEntitlement",
    "UsageBasedRateCard",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class BooleanEntitlement:
    """The subscriber may use the feature."""

    __pydantic_config__: ClassVar = WIRE

    type: Literal["boolean"]
    metadata: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticEntitlement:
    """The subscriber gets `config`, a JSON text, with the feature."""

    __pydantic_config__: ClassVar = WIRE

    type: Literal["static"]
    config: str
    metadata: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeteredEntitlement:
    """So much of the feature in each `usage_period`, by default the billing cadence."""

    __pydantic_config__: ClassVar = WIRE

    type: Literal["metered"]
    is_soft_limit: bool = False
    issue_after_reset: Number | None = None
    issue_after_reset_priority: int | None = None
    preserve_overage_at_reset: bool = False
    usage_period: str | None = None
    metadata: Mapping[str, str] | None = None


EntitlementTemplate = BooleanEntitlement | StaticEntitlement | MeteredEntitlement


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatFeeRateCard:
    """A fee for each billing cadence, or once when it has none."""

    __pydantic_config__: ClassVar = WIRE

    type: Literal["flat_fee"]
    key: str
    name: str
    description: str | None = None
    metadata: Mapping[str, str] | None = None
    feature_key: str | None = None
    entitlement_template: EntitlementTemplate | None = None
    tax_config: TaxConfig | None = None
    billing_cadence: str | None = None
    price: FlatPrice | None = None
    discounts: Discounts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageBasedRateCard:
    """A price on the usage of a metered feature, billed each billing cadence."""

    __pydantic_config__: ClassVar = WIRE

    type: Literal["usage_based"]
    key: str
    name: str
    description: str | None = None
    metadata: Mapping[str, str] | None = None
    feature_key: str | None = None
    entitlement_template: EntitlementTemplate | None = None
    tax_config: TaxConfig | None = None
    billing_cadence: str
    price: Price | None = None
    discounts: Discounts | None = None
    unit_config: UnitConfig | None = None


RateCard = FlatFeeRateCard | UsageBasedRateCard


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of the contract with its own rate cards; only the last has no duration."""

    __pydantic_config__: ClassVar = WIRE

    key: str
    name: str
    description: str | None = None
    metadata: Mapping[str, str] | None = None
    duration: str | None = None
    rate_cards: tuple[RateCard, ...]
