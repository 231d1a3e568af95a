"""The rules of what stands beside a price, its discounts and its unit conversion; every breach is found.

Codes are OpenMeter's where it has one.
"""

from collections.abc import Iterator

from catalog.discount import Discounts
from catalog.issues import critical, warning
from catalog.price import FlatPrice, MatrixPrice, PercentagePrice, Price, TieredPrice, in_range
from catalog.unit_config import QUOTIENT_DIGITS, UnitConfig
from metering.errors import Issue
from metering.exact import plain
from metering.wire import MAX_NUMBER_DIGITS, is_wire_number

__all__ = ["check_discounts", "check_unit_config"]

OUT_OF_RANGE = "Write fewer digits: at most 30 before and after the point."


def check_discounts(discounts: Discounts, price: Price | None, path: str) -> Iterator[Issue]:
    """`path` is where the discounts stand in the request."""
    if discounts.percentage is not None and not 0 <= discounts.percentage.percentage <= 100:
        where = f"{path}.percentage.percentage"
        message = f"{discounts.percentage.percentage} is no percentage"
        yield critical("percentage_discount_invalid_value", message, where, "Take one from 0 to 100.")
    elif discounts.percentage is not None and not is_wire_number(discounts.percentage.percentage):
        where, hint = f"{path}.percentage.percentage", f"Write at most {MAX_NUMBER_DIGITS} digits."
        yield critical("percentage_discount_invalid_value", "it has too many digits", where, hint)
    if discounts.usage is None:
        return
    quantity, where = discounts.usage.quantity, f"{path}.usage"
    if not in_range(quantity):
        field = f"{where}.quantity"
        yield critical("usage_discount_out_of_range", "it has too many digits", field, OUT_OF_RANGE)
    elif quantity < 0:
        message = f"{plain(quantity)} units can't be free"
        yield warning("usage_discount_negative_quantity", message, f"{where}.quantity", "Take 0 or more.")
    if isinstance(price, FlatPrice):
        message = "a flat price is not for units, so none of them can be free"
        yield warning("usage_discount_with_flat_price", message, where, "Use a percentage discount.")
    elif price is not None and _asks_for_more(price):
        message = "the price asks what the units are, and the discount can't tell which of them are free"
        yield critical("usage_discount_ambiguous", message, where, "Use a percentage discount.")


def _asks_for_more(price: Price) -> bool:
    """Whether the quantity alone does not tell what it costs."""
    match price:
        case MatrixPrice():
            return True
        case TieredPrice(group_by=names):
            return bool(names)
        case PercentagePrice():
            return price.limited
        case _:
            return False


def check_unit_config(config: UnitConfig, price: Price | None, path: str) -> Iterator[Issue]:
    """`path` is where the conversion stands in the request."""
    if isinstance(price, FlatPrice):
        message = "a flat price is not for units, so there is nothing to convert"
        yield warning("unit_config_requires_usage_based_price", message, path, "Leave it out.")
    if not in_range(config.conversion_factor):
        field = f"{path}.conversionFactor"
        yield critical("unit_config_factor_invalid", "it has too many digits", field, OUT_OF_RANGE)
    elif config.conversion_factor <= 0:
        field, message = f"{path}.conversionFactor", "a conversion factor is above 0"
        yield critical("unit_config_factor_invalid", message, field, "Say how many units make one.")
    if not 0 <= config.precision <= QUOTIENT_DIGITS:
        field, message = f"{path}.precision", f"from 0 to {QUOTIENT_DIGITS} digits can be left"
        yield critical(
            "unit_config_precision_invalid", message, field, "Leave it out to round to whole units."
        )
