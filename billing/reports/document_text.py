"""How amounts, quantities and dates are written on documents: in English, in UTC, with every digit."""

from datetime import UTC, datetime, time, timedelta
from decimal import Decimal

from catalog.money import minor_digits
from metering.exact import EXACT
from metering.period import Period

__all__ = ["day_text", "money_text", "percent_text", "period_text", "price_text", "quantity_text"]

NO_BREAK = "\N{NO-BREAK SPACE}"


def money_text(amount: Decimal, currency: str) -> str:
    """With the digits of the currency's minor unit: 1,234.50 in USD, 1,235 in JPY."""
    return _grouped(amount, minor_digits(currency))


def price_text(amount: Decimal, currency: str) -> str:
    """A price per unit, which may have more digits than the minor unit: 20.00, 0.0000125."""
    return _grouped(amount, max(minor_digits(currency), _digits(amount)))


def quantity_text(quantity: Decimal) -> str:
    return _grouped(quantity, _digits(quantity))


def percent_text(percent: Decimal) -> str:
    """With a space that no line ends at."""
    return f"{quantity_text(percent)}{NO_BREAK}%"


def _digits(number: Decimal) -> int:
    """After the point, without zeros at the end."""
    exponent = EXACT.normalize(number).as_tuple().exponent
    return max(0, -int(exponent))


def _grouped(number: Decimal, digits: int) -> str:
    """With a hyphen for a minus, so that spreadsheets take it for a number."""
    return f"{number:,.{digits}f}"


def day_text(at: datetime) -> str:
    """1 Feb 2026."""
    at = at.astimezone(UTC)
    return f"{at.day} {at:%b} {at.year}"


def period_text(period: Period) -> str:
    """Whole days with the last one included: 1 - 28 Feb 2026; otherwise both instants, to the minute.

    A line may end behind the dash, and nowhere else.
    """
    start, end = period.start.astimezone(UTC), period.end.astimezone(UTC)
    if start == end:
        return _joined(day_text(start))
    if not (_is_midnight(start) and _is_midnight(end)):
        return _joined(f"{day_text(start)}, {start:%H:%M}", f"{day_text(end)}, {end:%H:%M}")
    return _days(start, end - timedelta(days=1))


def _days(first: datetime, last: datetime) -> str:
    """What both have in common is said once."""
    if first == last:
        return _joined(day_text(first))
    if (first.year, first.month) == (last.year, last.month):
        return _joined(f"{first.day} \N{EN DASH} {day_text(last)}")
    if first.year == last.year:
        return _joined(f"{first.day} {first:%b}", day_text(last))
    return _joined(day_text(first), day_text(last))


def _joined(*sides: str) -> str:
    return f"{NO_BREAK}\N{EN DASH} ".join(side.replace(" ", NO_BREAK) for side in sides)


def _is_midnight(at: datetime) -> bool:
    return at.time() == time()
