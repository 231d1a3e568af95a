"""How a line is taxed: what a rate card says of it. Rates and amounts are billing's."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from metering.wire import WIRE

__all__ = ["CustomInvoicingTaxConfig", "StripeTaxConfig", "TaxBehavior", "TaxConfig"]

TaxBehavior = Literal["inclusive", "exclusive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StripeTaxConfig:
    """Stripe's code of a product category: txcd_ and eight digits."""

    __pydantic_config__: ClassVar = WIRE

    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomInvoicingTaxConfig:
    __pydantic_config__: ClassVar = WIRE

    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaxConfig:
    """`behavior`: whether prices contain the tax already."""

    __pydantic_config__: ClassVar = WIRE

    behavior: TaxBehavior | None = None
    stripe: StripeTaxConfig | None = None
    custom_invoicing: CustomInvoicingTaxConfig | None = None
    tax_code_id: str | None = None
