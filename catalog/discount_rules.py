"""The rules of what stands between usage and price: unit conversion and discounts, and whether they fit it.

Where a price looks at each event, or at each group of usage by itself, free units or another unit would have
to be given to some of them first, and nothing says to which.
"""

from collections.abc import Iterator
from decimal import Decimal

from catalog.discount import Discounts, UsageDiscount
from catalog.issues import critical, warning
from catalog.price import MAX_DIGITS, FlatPrice, MatrixPrice, PercentagePrice, Price, TieredPrice, in_range
from catalog.unit_config import UnitConfig
from metering.errors import Issue
from metering.wire import MAX_NUMBER_DIGITS, is_wire_number

__all__ = ["check_discounts", "check_unit_config"]

MAX_PERCENTAGE = 100
MAX_PRECISION = 18


def check_discounts(discounts: Discounts, price: Price | None, path: str) -> Iterator[Issue]:
    """`path` is where the discounts stand in the request."""
    if discounts.percentage is not None:
        yield from _percentage_issues(discounts.percentage.percentage, f"{path}.percentage.percentage")
    if discounts.usage is not None:
        yield from _quantity_issues(discounts.usage, f"{path}.usage.quantity")
        yield from _usage_fit_issues(price, f"{path}.usage")


def _percentage_issues(percentage: Decimal, where: str) -> Iterator[Issue]:
    if not is_wire_number(percentage) or not 0 <= percentage <= MAX_PERCENTAGE:
        message = f"{percentage} is no part: from 0 to 100, of at most {MAX_NUMBER_DIGITS} digits"
        yield critical("percentage_discount_invalid_value", message, where, "Write 50 for half the price.")


def _quantity_issues(discount: UsageDiscount, where: str) -> Iterator[Issue]:
    if not in_range(discount.quantity):
        message = f"a quantity has at most {MAX_DIGITS} digits before and after the point"
        yield critical("usage_discount_quantity_out_of_range", message, where, "Write fewer digits.")
    elif discount.quantity <= 0:
        message = "a usage discount gives more than nothing"
        hint = "Say how many units are free, or leave the discount out."
        yield warning("usage_discount_negative_quantity", message, where, hint)


def _usage_fit_issues(price: Price | None, path: str) -> Iterator[Issue]:
    match price:
        case FlatPrice():
            message = "a flat price counts no usage, so that none of it can be free"
            yield warning("usage_discount_with_flat_price", message, path, "Take a percentage discount.")
        case PercentagePrice():
            message = "free units don't go with a percentage of each event: the order of events would decide"
            yield critical(
                "usage_discount_with_percentage_price", message, path, "Set the price's freeUnits instead."
            )
        case MatrixPrice() | TieredPrice(group_by=[_, *_]):
            message = "free units don't go with prices for groups: which group gets them would decide"
            hint = "Leave the discount out; lower the prices, or take a percentage discount."
            yield critical("usage_discount_with_grouped_price", message, path, hint)


def check_unit_config(config: UnitConfig, price: Price | None, path: str) -> Iterator[Issue]:
    """`path` is where the conversion stands in the request."""
    factor = config.conversion_factor
    if not in_range(factor) or factor <= 0:
        message = f"units are converted by a number above 0, of at most {MAX_DIGITS} digits on either side"
        hint = "Write 1000000 to price millions."
        yield critical("unit_config_invalid_conversion_factor", message, f"{path}.conversionFactor", hint)
    if not 0 <= config.precision <= MAX_PRECISION:
        message = f"{config.precision} digits can't be kept after the point: from 0 to {MAX_PRECISION} can"
        yield critical("unit_config_invalid_precision", message, f"{path}.precision", "Write 0 for wholes.")
    match price:
        case None | FlatPrice():
            message = "only a price on usage has units to convert"
            hint = "Leave unitConfig out, or set a unit, tiered, package or dynamic price."
            yield warning("unit_config_requires_usage_based_price", message, path, hint)
        case PercentagePrice():
            message = "the value of an event is money already, and is not converted"
            hint = "Leave unitConfig out; have the events say their value in the plan's currency."
            yield critical("unit_config_with_percentage_price", message, path, hint)
