"""Prices: what one feature, or one subscription, costs. A price is a value; billing/rating.py applies it."""

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar, Literal

from metering.errors import Issue
from metering.exact import plain
from metering.wire import WIRE, Numeric

__all__ = ["PRICE_TYPES", "FlatPrice", "PaymentTerm", "Price", "UnitPrice", "check_price"]

PaymentTerm = Literal["in_advance", "in_arrears"]

MAX_DIGITS = 30
"""Digits before, and after, the point of an amount: far beyond money, and every product stays exact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatPrice:
    """`amount` for each period, or once."""

    __pydantic_config__: ClassVar = WIRE

    type: Literal["flat"]
    amount: Numeric
    payment_term: PaymentTerm = "in_advance"

    def __post_init__(self) -> None:
        object.__setattr__(self, "amount", _written_out(self.amount))


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPrice:
    """`amount` for each unit used, paid in arrears."""

    __pydantic_config__: ClassVar = WIRE

    type: Literal["unit"]
    amount: Numeric

    def __post_init__(self) -> None:
        object.__setattr__(self, "amount", _written_out(self.amount))


def _written_out(amount: Decimal) -> Decimal:
    """1E+2 as 100, which is how the wire spells it; what check_price will refuse stays as it is."""
    return Decimal(plain(amount)) if _in_range(amount) else amount


def _in_range(amount: Decimal) -> bool:
    exponent = amount.as_tuple().exponent
    return isinstance(exponent, int) and max(amount.adjusted() + 1, -exponent) <= MAX_DIGITS


Price = FlatPrice | UnitPrice
PRICE_TYPES = ("flat", "unit")


def check_price(price: Price, path: str) -> Iterator[Issue]:
    """Everything that is wrong with a price; `path` is where it stands in the request."""
    if not _in_range(price.amount):
        message = f"an amount has at most {MAX_DIGITS} digits before and after the point"
        yield Issue(code="price_amount_out_of_range", message=message, field=f"{path}.amount")
    elif price.amount < 0:
        yield Issue(
            code="price_amount_negative",
            message="a price can't be negative",
            field=f"{path}.amount",
            hint="Give money back with a discount or a credit, not with a negative price.",
        )
