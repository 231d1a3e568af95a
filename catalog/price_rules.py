"""The rules a price must keep; every breach is found, with its place and how to mend it."""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from itertools import pairwise

from catalog.price import (
    MAX_DIGITS,
    FlatPrice,
    MatrixPrice,
    PackagePrice,
    PercentagePrice,
    Price,
    PriceTier,
    TieredPrice,
    amounts_of,
    in_range,
)
from metering.errors import Issue
from metering.wire import camel

__all__ = ["check_price"]

MAX_TIERS = 1000
MAX_CELLS = 10_000
OUT_OF_RANGE = "price_amount_out_of_range"


def check_price(price: Price, path: str) -> Iterator[Issue]:
    """Everything that is wrong with a price; `path` is where it stands in the request."""
    amounts = [issue for part, where in _parts(price, path) for issue in _amount_issues(part, where)]
    yield from amounts
    if any(issue.code == OUT_OF_RANGE for issue in amounts):
        return  # what is not a number can't be compared
    if not isinstance(price, FlatPrice):
        yield from _limit_issues(price.minimum_amount, price.maximum_amount, path, "Amount")
    match price:
        case TieredPrice():
            yield from _tier_issues(price.tiers, f"{path}.tiers")
            yield from _dimension_issues(price.group_by, f"{path}.groupBy")
        case PackagePrice(quantity_per_package=quantity) if quantity == 0:
            message = "a package holds more than nothing"
            where = f"{path}.quantityPerPackage"
            yield _issue("price_package_quantity_invalid", message, where, "Say how many units it holds.")
        case PercentagePrice():
            yield from _percentage_issues(price, path)
        case MatrixPrice():
            yield from _matrix_issues(price, path)


def _parts(price: Price, path: str) -> Iterator[tuple[object, str]]:
    """All that has amounts, and where it stands."""
    yield price, path
    match price:
        case TieredPrice(tiers=tiers):
            for i, tier in enumerate(tiers):
                where = f"{path}.tiers[{i}]"
                yield tier, where
                if tier.flat_price is not None:
                    yield tier.flat_price, f"{where}.flatPrice"
                if tier.unit_price is not None:
                    yield tier.unit_price, f"{where}.unitPrice"
        case MatrixPrice(cells=cells):
            for i, cell in enumerate(cells):
                yield cell, f"{path}.cells[{i}]"


def _amount_issues(part: object, path: str) -> Iterator[Issue]:
    for name, amount in amounts_of(part):
        if not in_range(amount):
            message = f"an amount has at most {MAX_DIGITS} digits before and after the point"
            yield _issue(OUT_OF_RANGE, message, f"{path}.{camel(name)}", "Write fewer digits.")
        elif amount < 0:
            hint = "Give money back with a discount or a credit, not with a negative price."
            message = "a price can't be negative"
            yield _issue("price_amount_negative", message, f"{path}.{camel(name)}", hint)


def _limit_issues(least: Decimal | None, most: Decimal | None, path: str, of: str) -> Iterator[Issue]:
    if least is not None and most is not None and least > most:
        message = f"the minimum {least:f} is above the maximum {most:f}"
        where = f"{path}.minimum{of}"
        yield _issue("price_minimum_above_maximum", message, where, f"Raise maximum{of}, or lower this.")


def _tier_issues(tiers: Sequence[PriceTier], path: str) -> Iterator[Issue]:
    if not tiers:
        message = "a tiered price needs a tier"
        yield _issue("price_tiers_empty", message, path, "Add one without upToAmount.")
        return
    if len(tiers) > MAX_TIERS:
        yield _issue("price_tiers_too_many", f"a price has at most {MAX_TIERS} tiers", path, "Merge some.")
    for i, tier in enumerate(tiers):
        yield from _one_tier_issues(tier, f"{path}[{i}]", last=i == len(tiers) - 1)
    for i, (one, next_one) in enumerate(pairwise(tiers), start=1):
        if one.up_to_amount and next_one.up_to_amount and one.up_to_amount >= next_one.up_to_amount:
            message = (
                f"the tier ends at {next_one.up_to_amount:f}, but the one before only at {one.up_to_amount:f}"
            )
            where = f"{path}[{i}].upToAmount"
            yield _issue("price_tiers_not_ascending", message, where, "Order tiers by upToAmount, each once.")


def _one_tier_issues(tier: PriceTier, path: str, *, last: bool) -> Iterator[Issue]:
    where = f"{path}.upToAmount"
    if last and tier.up_to_amount is not None:
        message = "the last tier has an end, and nothing says what more units cost"
        yield _issue("price_tiers_missing_open_ended", message, where, "Leave it out.")
    elif not last and tier.up_to_amount is None:
        message = "only the last tier may be without end"
        yield _issue("price_tiers_many_open_ended", message, where, "Say up to which quantity it goes.")
    if tier.up_to_amount == 0:
        yield _issue("price_tier_empty", "nothing is in a tier that ends at 0", where, "Raise it.")
    if tier.flat_price is None and tier.unit_price is None:
        message = "a tier needs a flat price, a unit price or both"
        yield _issue("price_tier_without_price", message, path, "Add a unitPrice; its amount may be 0.")


def _percentage_issues(price: PercentagePrice, path: str) -> Iterator[Issue]:
    yield from _limit_issues(price.minimum_per_event, price.maximum_per_event, path, "PerEvent")
    if price.free_units and price.limited:
        message = "free units and limits for each event don't go together: the order of events would decide"
        yield _issue("price_free_units_with_limits", message, f"{path}.freeUnits", "Take one of them.")


def _matrix_issues(price: MatrixPrice, path: str) -> Iterator[Issue]:
    if not price.dimensions:
        message = "a matrix needs a dimension"
        yield _issue("price_dimensions_empty", message, f"{path}.dimensions", "Name one of the meter.")
    yield from _dimension_issues(price.dimensions, f"{path}.dimensions")
    if len(price.cells) > MAX_CELLS:
        message = f"a matrix has at most {MAX_CELLS} cells"
        yield _issue("price_cells_too_many", message, f"{path}.cells", "Let defaultAmount cover some.")
    seen: set[tuple[str, ...]] = set()
    for i, cell in enumerate(price.cells):
        where = f"{path}.cells[{i}]"
        if set(cell.values) != set(price.dimensions):
            message = f"a cell has a value for each dimension: {', '.join(price.dimensions)}"
            yield _issue("price_cell_dimensions_mismatch", message, f"{where}.values", "Name each once.")
            continue
        values = tuple(cell.values[name] for name in price.dimensions)
        if values in seen:
            message = f"{', '.join(values)} has a price already"
            yield _issue("price_cell_duplicated", message, f"{where}.values", "Remove one of them.")
        seen.add(values)


def _dimension_issues(names: Sequence[str], path: str) -> Iterator[Issue]:
    for i, name in enumerate(names):
        if name in names[:i]:
            message = f"the dimension {name!r} is named twice"
            yield _issue("price_dimension_duplicated", message, f"{path}[{i}]", "Remove one of them.")


def _issue(code: str, message: str, field: str, hint: str) -> Issue:
    return Issue(code=code, message=message, field=field, hint=hint)
