"""How a customer is invoiced: OpenMeter's workflow settings, with its defaults."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar, Literal

from catalog.interval import Interval, parse_interval
from catalog.tax import TaxConfig
from metering.wire import WIRE

__all__ = [
    "AnchoredAlignment",
    "CollectionSettings",
    "InvoicingSettings",
    "PaymentSettings",
    "RecurringPeriod",
    "SubscriptionAlignment",
    "TaxSettings",
    "Workflow",
    "duration_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurringPeriod:
    """Every `interval`, counted from `anchor`."""

    __pydantic_config__: ClassVar = WIRE

    interval: str
    anchor: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionAlignment:
    """Lines are collected as they fall due."""

    __pydantic_config__: ClassVar = WIRE

    type: Literal["subscription"] = "subscription"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchoredAlignment:
    """Lines that fell due wait for the next recurrence."""

    __pydantic_config__: ClassVar = WIRE

    type: Literal["anchored"]
    recurring_period: RecurringPeriod


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionSettings:
    """`interval` is how long usage that comes late still finds its way onto the invoice."""

    __pydantic_config__: ClassVar = WIRE

    alignment: SubscriptionAlignment | AnchoredAlignment = SubscriptionAlignment()
    interval: str = "PT1H"


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoicingSettings:
    __pydantic_config__: ClassVar = WIRE

    auto_advance: bool = True
    draft_period: str = "P0D"
    due_after: str = "P30D"
    progressive_billing: bool = True
    subscription_end_proration_mode: Literal["bill_actual_period", "bill_full_period"] = "bill_actual_period"
    default_tax_config: TaxConfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentSettings:
    __pydantic_config__: ClassVar = WIRE

    collection_method: Literal["charge_automatically", "send_invoice"] = "charge_automatically"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaxSettings:
    """`enforced`: an invoice whose tax can't be told is not issued."""

    __pydantic_config__: ClassVar = WIRE

    enabled: bool = True
    enforced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    __pydantic_config__: ClassVar = WIRE

    collection: CollectionSettings = CollectionSettings()
    invoicing: InvoicingSettings = InvoicingSettings()
    payment: PaymentSettings = PaymentSettings()
    tax: TaxSettings = TaxSettings()


def duration_of(text: str) -> Interval:
    """A setting's duration, which may be none at all: P0D."""
    return NO_TIME if text in ("P0D", "PT0S", "PT0M", "PT0H") else parse_interval(text)


NO_TIME = Interval(0, timedelta(0))
