"""What an invoice over given quantities would come to: lines in, rated lines and totals out.

Nothing is looked up and nothing is kept; the prices go through the one rater, so a simulated line costs what
a real one would. Every line is the last of its service period, so that a minimum spend is due on it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from billing.rating.pricing import NOTHING, Group, Usage
from billing.rating.rater import NO_DISCOUNTS, Rating, Terms, Totals, add_totals, rate
from catalog.discount import Discounts
from catalog.discount_rules import check_discounts, check_unit_config
from catalog.money import is_currency
from catalog.price import FlatPrice, MatrixPrice, PercentagePrice, Price, TieredPrice, UnitPrice
from catalog.price_rules import check_price
from catalog.unit_config import UnitConfig
from metering.errors import InvalidError, Issue
from metering.exact import EXACT, plain, total

__all__ = [
    "EventUsage",
    "GroupUsage",
    "InvalidSimulationError",
    "SimulatedLine",
    "Simulation",
    "simulate",
]

ZERO = Decimal(0)
MAX_LINES = 1000
MAX_QUANTITY_DIGITS = 100
"""Digits before, and after, the point of a quantity."""
MAX_STEPS = 20_000
"""Tiers, once for each group that climbs them, of all lines together: each may become a line of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupUsage:
    """So much of the quantity had these values; None where an event has none."""

    dimensions: Mapping[str, str | None]
    quantity: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class EventUsage:
    """So many events carried this value."""

    value: Decimal
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedLine:
    """`price` None is free. `groups` and `events` say what the quantity is made of, for prices that ask.

    `price_path` is where in the line its price stands.
    """

    name: str
    price: Price | None
    quantity: Decimal
    quantity_before: Decimal = ZERO
    discounts: Discounts = NO_DISCOUNTS
    unit_config: UnitConfig | None = None
    groups: Sequence[GroupUsage] = ()
    events: Sequence[EventUsage] = ()
    id: str | None = None
    price_path: str = "rateCard.price"


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """A rating for each line, in their order."""

    ratings: tuple[Rating, ...]
    totals: Totals


class InvalidSimulationError(InvalidError):
    pass


def simulate(*, currency: str, lines: Sequence[SimulatedLine]) -> Simulation:
    """Raises InvalidSimulationError with every problem of the lines."""
    if issues := list(_issues(currency, lines)):
        raise InvalidSimulationError(issues[0].message, *issues)
    ratings = tuple(_rated(line, currency) for line in lines)
    return Simulation(ratings=ratings, totals=add_totals(rating.totals for rating in ratings))


def _rated(line: SimulatedLine, currency: str) -> Rating:
    terms = Terms(
        price=line.price or _FREE,
        name=line.name,
        currency=currency,
        discounts=line.discounts,
        unit_config=line.unit_config,
    )
    if isinstance(line.price, FlatPrice):
        return rate(terms)
    before = Usage(quantity=line.quantity_before) if line.quantity_before else NOTHING
    rating = rate(terms, _usage(line), before=before)
    return rating if line.price else replace(rating, details=())


_FREE = UnitPrice(type="unit", amount=ZERO)


def _usage(line: SimulatedLine) -> Usage:
    names = _dimensions(line.price)
    return Usage(
        quantity=line.quantity,
        events=sum(event.count for event in line.events),
        groups={_group(used, names): used.quantity for used in line.groups},
        sizes={event.value: event.count for event in line.events},
    )


def _dimensions(price: Price | None) -> tuple[str, ...]:
    """By which the price tells units apart."""
    match price:
        case MatrixPrice(dimensions=names) | TieredPrice(group_by=names):
            return names
        case _:
            return ()


def _group(used: GroupUsage, names: Sequence[str]) -> Group:
    return tuple(used.dimensions[name] for name in names)


# -- What may be wrong ---------------------------------------------------------------------------------------


def _issues(currency: str, lines: Sequence[SimulatedLine]) -> Iterator[Issue]:
    if not is_currency(currency):
        hint = "Use the ISO 4217 code of a currency in use, such as USD."
        yield _issue("currency_invalid", f"{currency!r} is no currency", "$.currency", hint)
    if not lines:
        yield _issue("lines_empty", "there is nothing to simulate", "$.lines", "Add a line.")
    if len(lines) > MAX_LINES:
        message = f"an invoice of more than {MAX_LINES} lines can't be simulated"
        yield _issue("lines_too_many", message, "$.lines", "Simulate some of them at a time.")
        return
    if sum(_steps(line) for line in lines) > MAX_STEPS:
        message = f"the lines have more than {MAX_STEPS} tiers, each counted for every group"
        yield _issue("tiers_too_many", message, "$.lines", "Simulate some of them at a time.")
        return
    seen: set[str] = set()
    for i, line in enumerate(lines):
        path = f"$.lines[{i}]"
        if line.id is not None and line.id in seen:
            message = f"the id {line.id} is another line's"
            yield _issue("line_id_duplicated", message, f"{path}.id", "Leave it out, or make a new one.")
        seen.add(line.id or "")
        yield from _line_issues(line, path)


def _steps(line: SimulatedLine) -> int:
    tiers = len(line.price.tiers) if isinstance(line.price, TieredPrice) else 1
    return tiers * max(1, len(line.groups))


def _line_issues(line: SimulatedLine, path: str) -> Iterator[Issue]:
    if line.price is not None:
        yield from check_price(line.price, f"{path}.{line.price_path}")
    yield from check_discounts(line.discounts, line.price, f"{path}.rateCard.discounts")
    if line.unit_config is not None:
        yield from check_unit_config(line.unit_config, line.price, f"{path}.rateCard.unitConfig")
    numbers = list(_number_issues(line, path))
    yield from numbers
    if not numbers:  # what has too many digits is not added up
        yield from _group_issues(line, f"{path}.groups")
        yield from _event_issues(line, f"{path}.events")
    if line.quantity_before and (_dimensions(line.price) or line.events or _asks_for_events(line.price)):
        message = "what was used before the line is one quantity, and can't be told apart"
        hint = "Leave it out, and put all that was used into the line."
        yield _issue("pre_line_quantity_not_simulated", message, f"{path}.preLinePeriodQuantity", hint)


def _number_issues(line: SimulatedLine, path: str) -> Iterator[Issue]:
    numbers = [("quantity", line.quantity), ("preLinePeriodQuantity", line.quantity_before)]
    numbers += [(f"groups[{i}].quantity", used.quantity) for i, used in enumerate(line.groups)]
    numbers += [(f"events[{i}].value", event.value) for i, event in enumerate(line.events)]
    for name, number in numbers:
        if not _short(number):
            message = f"a quantity has at most {MAX_QUANTITY_DIGITS} digits before and after the point"
            yield _issue("quantity_out_of_range", message, f"{path}.{name}", "Write fewer digits.")


def _short(number: Decimal) -> bool:
    exponent = number.as_tuple().exponent
    return isinstance(exponent, int) and max(number.adjusted() + 1, -exponent) <= MAX_QUANTITY_DIGITS


def _group_issues(line: SimulatedLine, path: str) -> Iterator[Issue]:
    names = _dimensions(line.price)
    if not names:
        if line.groups:
            message = "the price does not tell units apart, so groups can't change what they cost"
            yield _issue("groups_not_applicable", message, path, "Leave them out.")
        return
    wanted, seen = ", ".join(names), set[Group]()
    for i, used in enumerate(line.groups):
        if set(used.dimensions) != set(names):
            message = f"a group has a value, or null, for each dimension of the price: {wanted}"
            hint = f"Name exactly {wanted}."
            yield _issue("group_dimensions_mismatch", message, f"{path}[{i}].dimensions", hint)
            return
        if (group := _group(used, names)) in seen:
            hint = "Add their quantities up."
            yield _issue("group_duplicated", "the group is there already", f"{path}[{i}].dimensions", hint)
        seen.add(group)
    quantity = total(used.quantity for used in line.groups)
    yield from _sum_issues("groups", "quantities", quantity, line.quantity, path)


def _event_issues(line: SimulatedLine, path: str) -> Iterator[Issue]:
    if not isinstance(line.price, PercentagePrice):
        if line.events:
            message = "only a percentage price asks for events"
            yield _issue("events_not_applicable", message, path, "Leave them out.")
        return
    seen: set[Decimal] = set()
    for i, event in enumerate(line.events):
        if event.value in seen:
            message = f"the value {plain(event.value)} is there already"
            yield _issue("event_value_duplicated", message, f"{path}[{i}].value", "Add their counts up.")
        seen.add(event.value)
    if line.events or _asks_for_events(line.price):
        value = total(EXACT.multiply(event.value, Decimal(event.count)) for event in line.events)
        yield from _sum_issues("events", "values", value, line.quantity, path)


def _asks_for_events(price: Price | None) -> bool:
    return isinstance(price, PercentagePrice) and (price.limited or price.fixed_amount > 0)


def _sum_issues(what: str, of: str, found: Decimal, quantity: Decimal, path: str) -> Iterator[Issue]:
    if found != quantity:
        message = f"the {of} of the {what} sum to {plain(found)}, the line's quantity is {plain(quantity)}"
        yield _issue(f"{what}_quantity_mismatch", message, path, f"List all {what} of the line, or mend one.")


def _issue(code: str, message: str, field: str, hint: str) -> Issue:
    return Issue(code=code, message=message, field=field, hint=hint)
